//! What a switcher does against speculative execution: one choice per axis, made from what is known
//! of the CPU (spec/switcher.md, "Mitigations").
//!
//! Direct switches have no mitigations: both modes are the same guest's, and what one of them
//! leaves in the predictors for the other stays within that guest. The mitigations stand on the way
//! between guest and host. What every variant does anyway has no axis: registers, DF and AC are
//! cleared on exits, and no image has an indirect jump or call. Nor has the code that is loaded
//! beside an image: the runtime's thunks, which lead to hooks too far for a call, are retpolines.
//!
//! A choice is made once, of everything that is known: [`Mitigations`] do not say why they are what
//! they are, so nothing is derived from them that depends on the reason.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::arch::{HostFeatures, Vendor};

mod fault;
mod table;

pub use fault::{
    Assessment, Condition, Countermeasure, Cpus, Done, Duty, Fault, Instead, Measure, NotRelevant,
    Place, Switch, Unmet,
};

/// Two words of a name contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{first}` and `{second}` contradict each other: leave one")]
pub struct Contradiction {
    /// The word that comes first in the name.
    pub first: &'static str,
    /// The word that contradicts it.
    pub second: &'static str,
}

impl NotRelevant {
    /// All that is published and has no row in a vendor's table.
    pub const ALL: &'static [Self] = table::ELSEWHERE;
}

impl Fault {
    /// The table of a vendor.
    #[must_use]
    pub const fn of(vendor: Vendor) -> &'static [Self] {
        match vendor {
            Vendor::Intel => table::INTEL,
            Vendor::Amd => table::AMD,
        }
    }
}

/// What an exit does about the return stack buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rsb {
    /// The buffer is left as it is: for comparisons, and for hosts that fill it themselves.
    #[default]
    Left,
    /// One entry becomes harmless: for CPUs on which only the first RET of an exit may be predicted
    /// by what the guest has left there. No table chooses this, because a guest may execute at the
    /// host's addresses; it is for hosts whose guests' roots prevent that.
    Lite,
    /// All entries become harmless: some 80 instructions on an exit, and none on a direct switch.
    Full,
}

/// What an exit does about the history of branches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bhb {
    /// The history is left as it is: it is not used, or the CPU keeps privilege levels apart.
    #[default]
    Left,
    /// It is overwritten by Intel's sequence for cores before Golden Cove.
    Short,
    /// It is overwritten by the sequence for the longer histories since (Alder Lake, Sapphire
    /// Rapids).
    Long,
}

impl Bhb {
    /// The number of rounds, and of branches in a round, by Intel ("Branch History Injection and
    /// Intra-mode Branch Target Injection", software BHB-clearing sequence).
    #[must_use]
    pub const fn sequence(self) -> Option<(i32, i32)> {
        match self {
            Self::Left => None,
            Self::Short => Some((5, 5)),
            Self::Long => Some((12, 7)),
        }
    }

    /// Whether the history is overwritten.
    #[must_use]
    pub const fn is_on(self) -> bool {
        !matches!(self, Self::Left)
    }

    /// How many of the sequence's branches stay in their cache line: in each round its jumps over a
    /// NOP, and those back to the next jump. What a branch leaves in the history depends on its own
    /// address and on its target's, so a sequence at another place in its lines is another
    /// sequence.
    #[must_use]
    pub const fn within_a_line(self) -> usize {
        match self.sequence() {
            None => 0,
            Some((rounds, branches)) => (rounds * (2 * branches - 1)).unsigned_abs() as usize,
        }
    }

    /// How many branches the sequence takes. Each of its rounds calls the next one. Within a round
    /// each branch is a jump, followed by the jump of a loop, which is not taken the last time.
    #[must_use]
    pub const fn taken(self) -> usize {
        match self.sequence() {
            None => 0,
            Some((rounds, branches)) => {
                let (rounds, branches) = (rounds.unsigned_abs(), branches.unsigned_abs());
                // The branches are the calls of the rounds, those in the rounds, the loop around,
                // all RETs, and the jump away.
                (1 + rounds * (1 + 2 * branches - 1) + (rounds - 1) + (rounds + 1) + 1) as usize
            }
        }
    }
}

/// The mitigations of a variant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mitigations {
    /// MSR SPEC_CTRL is switched: an exit writes the host's value, an entry the guest's.
    pub ibrs: bool,
    /// An exit empties the branch predictors (MSR PRED_CMD). AMD's CPUs that predict returns by
    /// what a guest has trained need that, or [`untrain`](Self::untrain).
    pub ibpb: bool,
    /// An exit calls the host's untraining of returns, and returns through the host's return thunk:
    /// for hosts all of whose RETs do. See
    /// [`HostSymbol::RETURNS`](crate::asm::HostSymbol::RETURNS).
    pub untrain: bool,
    /// What is done about the return stack buffer.
    pub rsb: Rsb,
    /// What is done about the history of branches.
    pub bhb: Bhb,
    /// An entry ends with VERW, which overwrites the CPU's buffers.
    pub verw: bool,
}

/// A mitigation is of no use on the vendor's CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{mitigation}` is not for CPUs of vendor `{vendor}`: drop it")]
pub struct NotForVendor {
    /// The mitigation.
    pub mitigation: Mitigation,
    /// The vendor.
    pub vendor: Vendor,
}

/// One mitigation, as a variant's name has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mitigation {
    /// [`Mitigations::ibrs`].
    Ibrs,
    /// [`Mitigations::ibpb`].
    Ibpb,
    /// [`Mitigations::untrain`].
    Untrain,
    /// [`Rsb::Full`].
    Rsb,
    /// [`Rsb::Lite`].
    RsbLite,
    /// [`Bhb::Short`].
    Bhb,
    /// [`Bhb::Long`].
    BhbLong,
    /// [`Mitigations::verw`].
    Verw,
}

impl Mitigation {
    /// All mitigations, in the order in which a variant's name has them.
    pub const ALL: [Self; 8] = [
        Self::Ibrs,
        Self::Ibpb,
        Self::Untrain,
        Self::Rsb,
        Self::RsbLite,
        Self::Bhb,
        Self::BhbLong,
        Self::Verw,
    ];

    /// The mitigation's word in a variant's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ibrs => "ibrs",
            Self::Ibpb => "ibpb",
            Self::Untrain => "untrain",
            Self::Rsb => "rsb",
            Self::RsbLite => "rsblite",
            Self::Bhb => "bhb",
            Self::BhbLong => "bhblong",
            Self::Verw => "verw",
        }
    }

    /// The mitigation that this one replaces: of two ways to do the same, a variant has one.
    const fn instead_of(self) -> Option<Self> {
        match self {
            Self::Rsb => Some(Self::RsbLite),
            Self::RsbLite => Some(Self::Rsb),
            Self::Bhb => Some(Self::BhbLong),
            Self::BhbLong => Some(Self::Bhb),
            Self::Ibrs | Self::Ibpb | Self::Untrain | Self::Verw => None,
        }
    }
}

impl fmt::Display for Mitigation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads the mitigation's name, in upper or lower case.
impl FromStr for Mitigation {
    type Err = UnknownMitigation;

    fn from_str(text: &str) -> Result<Self, UnknownMitigation> {
        let named = |it: &Self| it.name().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownMitigation(text.into()))
    }
}

/// No mitigation has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown mitigation `{0}`; known are: {known}", known = Mitigation::ALL.map(Mitigation::name).join(", "))]
pub struct UnknownMitigation(pub String);

/// The text does not name mitigations that a variant can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownMitigations {
    /// One of the mitigations is unknown.
    #[error(transparent)]
    Unknown(#[from] UnknownMitigation),
    /// Two of the mitigations are two ways to do the same.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
}

impl Mitigations {
    /// No mitigations: for hosts that need none, and as the base of comparisons.
    pub const NONE: Self = Self {
        ibrs: false,
        ibpb: false,
        untrain: false,
        rsb: Rsb::Left,
        bhb: Bhb::Left,
        verw: false,
    };

    /// Every combination that is of use on the vendor's CPUs; the first one is empty.
    pub fn all(vendor: Vendor) -> Vec<Self> {
        let all = (0..1 << 4).flat_map(|on| {
            let [ibrs, ibpb, untrain, verw] = [8, 4, 2, 1].map(|bit| on & bit != 0);
            let one = Self { ibrs, ibpb, untrain, verw, ..Self::NONE };
            [Bhb::Left, Bhb::Short, Bhb::Long].into_iter().flat_map(move |bhb| {
                [Rsb::Left, Rsb::Full, Rsb::Lite].map(|rsb| Self { rsb, bhb, ..one })
            })
        });
        all.filter(|one| one.fit(vendor).is_ok()).collect()
    }

    /// # Errors
    /// Returns the first mitigation that is of no use on the vendor's CPUs.
    pub const fn fit(self, vendor: Vendor) -> Result<(), NotForVendor> {
        let mitigation = match vendor {
            // On Intel's CPUs, IBRS does what IBPB would be for.
            Vendor::Intel if self.ibpb => Mitigation::Ibpb,
            Vendor::Intel if self.untrain => Mitigation::Untrain,
            Vendor::Amd if matches!(self.bhb, Bhb::Short) => Mitigation::Bhb,
            Vendor::Amd if matches!(self.bhb, Bhb::Long) => Mitigation::BhbLong,
            _ => return Ok(()),
        };
        Err(NotForVendor { mitigation, vendor })
    }

    /// The mitigations that this CPU needs as its host has set it up, if `vendor` has made it:
    /// those of [`Assessment`], which also knows what the host has left undone. The choice is
    /// cautious where a host may know better. AMD's CPUs whose returns a guest can train get IBPB,
    /// which is the slow way, or untraining, on a host [with return
    /// thunks](HostFeatures::with_return_thunks).
    #[must_use]
    pub fn for_cpu(features: &HostFeatures, vendor: Vendor) -> Self {
        Assessment::of(features, vendor).mitigations
    }

    /// Whether a switcher with these mitigations does all that `needed` asks for. It may do more,
    /// and untraining takes the place of IBPB.
    #[must_use]
    pub fn covers(self, needed: Self) -> bool {
        (self.ibrs || !needed.ibrs)
            && (self.ibpb || self.untrain || !needed.ibpb)
            && (self.untrain || !needed.untrain)
            && self.rsb >= needed.rsb
            && self.bhb >= needed.bhb
            && (self.verw || !needed.verw)
    }

    /// Whether an exit has any mitigation.
    #[must_use]
    pub const fn at_exit(self) -> bool {
        self.ibrs
            || self.ibpb
            || self.untrain
            || !matches!(self.bhb, Bhb::Left)
            || !matches!(self.rsb, Rsb::Left)
    }

    /// Whether `mitigation` is on.
    #[must_use]
    pub const fn contains(self, mitigation: Mitigation) -> bool {
        match mitigation {
            Mitigation::Ibrs => self.ibrs,
            Mitigation::Ibpb => self.ibpb,
            Mitigation::Untrain => self.untrain,
            Mitigation::Rsb => matches!(self.rsb, Rsb::Full),
            Mitigation::RsbLite => matches!(self.rsb, Rsb::Lite),
            Mitigation::Bhb => matches!(self.bhb, Bhb::Short),
            Mitigation::BhbLong => matches!(self.bhb, Bhb::Long),
            Mitigation::Verw => self.verw,
        }
    }

    /// These mitigations and `mitigation`. Of two ways to do the same, the later one is taken.
    #[must_use]
    pub const fn with(mut self, mitigation: Mitigation) -> Self {
        match mitigation {
            Mitigation::Ibrs => self.ibrs = true,
            Mitigation::Ibpb => self.ibpb = true,
            Mitigation::Untrain => self.untrain = true,
            Mitigation::Rsb => self.rsb = Rsb::Full,
            Mitigation::RsbLite => self.rsb = Rsb::Lite,
            Mitigation::Bhb => self.bhb = Bhb::Short,
            Mitigation::BhbLong => self.bhb = Bhb::Long,
            Mitigation::Verw => self.verw = true,
        }
        self
    }

    /// The mitigations that are on, in the order in which a variant's name has them.
    pub fn iter(self) -> impl Iterator<Item = Mitigation> {
        Mitigation::ALL.into_iter().filter(move |one| self.contains(*one))
    }

    /// The names of the mitigations that are on, in the order in which a variant's name has them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.iter().map(Mitigation::name)
    }
}

/// Prints `+ibrs+rsb`, for example; nothing, if there are no mitigations.
impl fmt::Display for Mitigations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names().try_for_each(|name| write!(f, "+{name}"))
    }
}

/// Reads what [`Display`](fmt::Display) writes, in any order, with or without the first `+`.
impl FromStr for Mitigations {
    type Err = UnknownMitigations;

    fn from_str(text: &str) -> Result<Self, UnknownMitigations> {
        let mut read = Self::NONE;
        let words = text.strip_prefix('+').unwrap_or(text);
        for word in words.split('+').filter(|_| !text.is_empty()) {
            let one: Mitigation = word.parse()?;
            if let Some(other) = one.instead_of()
                && read.contains(other)
            {
                let (first, second) = (other.name(), one.name());
                return Err(Contradiction { first, second }.into());
            }
            read = read.with(one);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::fake::{FakeCpu, STATE, features};
    use crate::arch::{ArchCapabilities, HostState, SpecCtrl};
    use alloc::string::ToString;

    #[test]
    fn names_read_back_and_each_is_known() {
        let mut met = std::collections::BTreeSet::new();
        for vendor in [Vendor::Intel, Vendor::Amd] {
            let all = Mitigations::all(vendor);
            assert_eq!(all[0], Mitigations::NONE);
            for one in all {
                assert_eq!(one.to_string().parse(), Ok(one));
                met.extend(one.names());
            }
        }
        assert!(Mitigation::ALL.iter().all(|one| met.contains(one.name())));
        let refused = "+ibrs+magic".parse::<Mitigations>().unwrap_err().to_string();
        assert_eq!(
            refused,
            "unknown mitigation `magic`; known are: ibrs, ibpb, untrain, rsb, rsblite, bhb, bhblong, verw"
        );
        // No part of a text is ignored.
        for text in ["+", "magic+ibrs", "ibrs+", "+rsb+rsblite", "+bhblong+bhb"] {
            assert!(text.parse::<Mitigations>().is_err(), "{text}");
        }
        assert_eq!("VERW+ibrs".parse::<Mitigations>().unwrap().to_string(), "+ibrs+verw");
    }

    #[test]
    fn what_means_nothing_on_a_vendors_cpus_is_refused() {
        let count = |vendor| Mitigations::all(vendor).len();
        assert_eq!((count(Vendor::Intel), count(Vendor::Amd)), (36, 48));
        let verw = Mitigations { verw: true, ..Mitigations::NONE };
        assert_eq!((verw.fit(Vendor::Intel), verw.fit(Vendor::Amd)), (Ok(()), Ok(())));
        let refuse = |name: &str, vendor| {
            name.parse::<Mitigations>().unwrap().fit(vendor).unwrap_err().to_string()
        };
        let is_amds = "is not for CPUs of vendor `amd`: drop it";
        assert_eq!(refuse("+bhb", Vendor::Amd), std::format!("`bhb` {is_amds}"));
        assert_eq!(refuse("+bhblong+verw", Vendor::Amd), std::format!("`bhblong` {is_amds}"));
        let is_intels = "is not for CPUs of vendor `intel`: drop it";
        assert_eq!(refuse("+ibpb", Vendor::Intel), std::format!("`ibpb` {is_intels}"));
        assert_eq!(refuse("+untrain", Vendor::Intel), std::format!("`untrain` {is_intels}"));
    }

    #[test]
    fn a_sequence_takes_as_many_branches_as_a_history_holds() {
        // Golden Cove's history has 194 branches.
        let taken = [Bhb::Left, Bhb::Short, Bhb::Long].map(Bhb::taken);
        assert_eq!(taken, [0, 62, 194]);
    }

    #[test]
    fn more_covers_less_and_nothing_covers_more() {
        for vendor in [Vendor::Intel, Vendor::Amd] {
            for one in Mitigations::all(vendor) {
                assert!(one.covers(one) && one.covers(Mitigations::NONE));
                assert_eq!(Mitigations::NONE.covers(one), one == Mitigations::NONE);
                let untrain = Mitigations { ibpb: false, untrain: one.ibpb, ..one };
                assert!(one.untrain || untrain.covers(one), "{one}");
            }
        }
        let covers = |more: &str, less: &str| {
            more.parse::<Mitigations>().unwrap().covers(less.parse().unwrap())
        };
        assert!(covers("+rsb+bhblong", "+rsblite+bhb") && !covers("+rsblite+bhb", "+rsb"));
        assert!(!covers("+bhb", "+bhblong") && !covers("+ibrs+rsb+bhblong", "+verw"));
        assert!(!covers("+ibpb", "+untrain") && covers("+untrain", "+ibpb"));
    }

    fn chosen(cpu: &'static [u8; 12], speculation: [u32; 4], state: HostState) -> String {
        let features = features(FakeCpu { speculation, ..FakeCpu::complete(cpu) }, state);
        Mitigations::for_cpu(&features, features.fit().unwrap()).to_string()
    }

    #[test]
    fn an_intel_cpu_gets_what_it_does_not_say_it_can_do_without() {
        const ALL: [u32; 4] = [1 << 10 | 1 << 26 | 1 << 29, 0, 0, 0];
        let chosen = |speculation, arch_capabilities, spec_ctrl| {
            let state = HostState { arch_capabilities, spec_ctrl, smep: true, ..STATE };
            chosen(b"GenuineIntel", speculation, state)
        };
        type Caps = ArchCapabilities;
        let none = SpecCtrl::empty();
        // A CPU that nobody knows is taken to have a long history of branches. IBRS is to be
        // written each time.
        assert_eq!(chosen(ALL, Caps::empty(), none), "+ibrs+rsb+bhblong+verw");
        // There is no microcode for any of these.
        assert_eq!(chosen([0; 4], Caps::empty(), none), "+rsb+bhblong+verw");
        // On Cascade Lake and later, IBRS stays on, if it is on.
        let enhanced = Caps::IBRS_ALL | Caps::MDS_NO;
        assert_eq!(chosen(ALL, enhanced, SpecCtrl::IBRS), "+rsb+bhblong");
        assert_eq!(chosen(ALL, enhanced, none), "+ibrs+rsb+bhblong");
        assert_eq!(chosen(ALL, enhanced, !SpecCtrl::IBRS), "+ibrs+rsb+bhblong");
        let fill_buffers = enhanced | Caps::FB_CLEAR | Caps::PBRSB_NO;
        assert_eq!(chosen(ALL, fill_buffers, SpecCtrl::IBRS), "+rsb+bhblong+verw");
        let no_fill_buffers = Caps::SBDR_SSDP_NO | Caps::FBSDP_NO | Caps::PSDP_NO;
        assert_eq!(chosen(ALL, fill_buffers | no_fill_buffers, SpecCtrl::IBRS), "+rsb+bhblong");
        // This is an Atom.
        let atom = Caps::IBRS_ALL | Caps::MDS_NO | Caps::PBRSB_NO | Caps::BHI_NO;
        assert_eq!(chosen(ALL, atom | Caps::RFDS_CLEAR, SpecCtrl::IBRS), "+rsb+verw");
        assert_eq!(chosen(ALL, atom | Caps::RFDS_NO, SpecCtrl::IBRS), "+rsb");
        // On Golden Cove, BHI_DIS_S stays on, if it is on.
        let golden = [ALL[0], 1 << 4, 0, 0];
        let both = SpecCtrl::IBRS | SpecCtrl::BHI_DIS_S;
        assert_eq!(chosen(golden, fill_buffers | no_fill_buffers, both), "+rsb");
        assert_eq!(chosen(golden, fill_buffers | no_fill_buffers, SpecCtrl::IBRS), "+rsb+bhblong");
        assert_eq!(chosen(golden, fill_buffers | no_fill_buffers, none), "+ibrs+rsb+bhblong");
    }

    #[test]
    fn an_amd_cpu_gets_what_it_does_not_say_it_can_do_without() {
        let chosen = |sizes, amd, automatic_ibrs| {
            let state = HostState { automatic_ibrs, smep: true, ..STATE };
            chosen(b"AuthenticAMD", [0, 0, sizes, amd], state)
        };
        let (ibpb, ibrs, preferred, btc_no) = (1 << 12, 1 << 14, 1 << 18, 1 << 29);
        let (automatic, srso_no) = (1 << 8, 1 << 29);
        assert_eq!(chosen(0, 0, false), "+rsb");
        assert_eq!(chosen(ibpb | ibrs, 0, false), "+ibpb+rsb");
        let zen_3 = ibpb | ibrs | preferred | btc_no;
        assert_eq!(chosen(zen_3, 0, false), "+ibrs+ibpb+rsb");
        // Automatic IBRS stays on, if it exists and is on.
        assert_eq!(chosen(zen_3, automatic, false), "+ibrs+ibpb+rsb");
        assert_eq!(chosen(zen_3, automatic, true), "+ibpb+rsb");
        assert_eq!(chosen(zen_3, automatic | srso_no, true), "+rsb");
        assert_eq!(chosen(zen_3, automatic | srso_no, false), "+ibrs+rsb");
        // SRSO exists only between guests and hosts of one privilege, as from Zen 5 on.
        assert_eq!(chosen(zen_3, automatic | 1 << 30, true), "+rsb");
    }
}
