//! The parts of a switcher that a verdict is about, or is not about because the code does not say
//! where they are.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::target::Target;
use crate::theorem::Theorem;
use switcher_gen::Hazard;
use switcher_gen::asm::Window;

/// A part of a switcher that is judged, or is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Area {
    /// Entering a guest, its 64-bit SYSCALL, and exits.
    Routines,
    /// The answer to a 32-bit SYSCALL.
    Compat,
    /// The ranges of code in which a host's own event entries take RSP for the guest's.
    Windows,
    /// The ranges in which they take the root for a guest's.
    RootWindow,
    /// The event entries, and the IDT that leads to them.
    Events,
    /// Where the IRETQ to a guest takes its frame from.
    IretqFrame,
    /// Where the fault of an IRETQ to a guest is looked for.
    IretqFault,
}

/// A name that no area has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown area `{name}`: name some of {}", names())]
pub struct UnknownArea {
    /// The name.
    pub name: String,
}

/// An area that nothing is said about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotJudged {
    /// The area.
    pub area: Area,
    /// Why, in words.
    pub what: &'static str,
    /// The hazards of which nothing is said.
    pub rows: &'static [Hazard],
    /// What has to be given so that it is judged.
    pub how: &'static str,
}

impl Area {
    /// All there are.
    pub const ALL: [Self; 7] = [
        Self::Routines,
        Self::Compat,
        Self::Windows,
        Self::RootWindow,
        Self::Events,
        Self::IretqFrame,
        Self::IretqFault,
    ];

    /// Short and stable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Routines => "routines",
            Self::Compat => "compat",
            Self::Windows => "windows",
            Self::RootWindow => "root-window",
            Self::Events => "events",
            Self::IretqFrame => "iretq-frame",
            Self::IretqFault => "iretq-fault",
        }
    }

    /// The area that a theorem is about.
    #[must_use]
    pub fn of(theorem: Theorem) -> Self {
        match theorem {
            Theorem::SyscallCompat => Self::Compat,
            theorem if theorem.is_of_events() => Self::Events,
            _ => Self::Routines,
        }
    }

    /// Why nothing is said about it, if the code does not say where it is.
    fn missing(self) -> NotJudged {
        use Hazard::{
            IretqFrame, MovSsSyscall, NmiRoot, NmisStayBlocked, OpenEntries, RspAtNmiStack,
            SwapgsParity, VectorSpoofing, VectorUnlikeOthers, WindowGap,
        };
        let (what, rows, how): (_, &[Hazard], _) = match self {
            // Code without them is no target.
            Self::Routines => ("a symbol is missing", &[], "name all of them"),
            Self::Compat => (
                "there is no symbol `entry_SYSCALL_compat_switcher`",
                &[OpenEntries],
                "give the code the symbol `entry_SYSCALL_compat_switcher`, where CSTAR leads to",
            ),
            Self::Windows => (
                "nothing says where the host's handlers take RSP for the guest's",
                &[WindowGap, RspAtNmiStack],
                "say all ranges (`--window unsafe-stack=START..END`), or name a profile whose symbols \
                 the code has (`--profile`)",
            ),
            Self::RootWindow => (
                "nothing says where the host's handlers take the root for a guest's",
                &[WindowGap, NmiRoot],
                "say all ranges (`--window guest-root=START..END`), if the handlers go by them",
            ),
            Self::Events => (
                "there are no symbols `switcher_event_stubs` and `switcher_event_stubs_end`",
                &[NmiRoot, RspAtNmiStack, NmisStayBlocked, MovSsSyscall, VectorSpoofing],
                "give the code the symbols `switcher_event_stubs` and `switcher_event_stubs_end` \
                 around 256 entries of equal stride, or say where the IDT leads \
                 (`--gate 0-255=SYMBOL,stride=N`)",
            ),
            Self::IretqFrame => (
                "whoever looks for the frame of the IRETQ to a guest when that has faulted is no event \
                 entry that is judged",
                &[IretqFrame],
                "give the code its event entries (`events`), which look for the frame",
            ),
            Self::IretqFault => (
                "there is no symbol `entry_IRETQ_switcher`",
                &[SwapgsParity, VectorUnlikeOthers],
                "give the code the symbol `entry_IRETQ_switcher` at its IRETQ to a guest, or say what \
                 it is called (`--symbol entry_IRETQ_switcher=NAME`)",
            ),
        };
        NotJudged { area: self, what, rows, how }
    }
}

impl Target {
    /// What nothing is said about, because the code does not say where it is.
    #[must_use]
    pub fn not_judged(&self) -> Vec<NotJudged> {
        let missing = [
            (!self.windows.contains_key(&Window::UnsafeStack), Area::Windows),
            (!self.windows.contains_key(&Window::GuestRoot), Area::RootWindow),
            (self.syscall_compat.is_none(), Area::Compat),
            (self.gates.is_none(), Area::Events),
            (self.gates.is_none(), Area::IretqFrame),
            (self.iretq.is_none() && self.gates.is_none(), Area::IretqFault),
        ];
        missing
            .into_iter()
            .filter(|(is_missing, _)| *is_missing)
            .map(|(_, it)| it.missing())
            .collect()
    }
}

/// The names of all areas.
fn names() -> String {
    Area::ALL.map(Area::name).join(", ")
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Area {
    type Err = UnknownArea;

    fn from_str(name: &str) -> Result<Self, UnknownArea> {
        let found = Self::ALL.into_iter().find(|area| area.name() == name);
        found.ok_or_else(|| UnknownArea { name: name.into() })
    }
}

impl fmt::Display for NotJudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { area, what, rows, .. } = self;
        write!(f, "{area}: {what} (spec/hazards.md, {})", Hazard::join(rows))
    }
}
