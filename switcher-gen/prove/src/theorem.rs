//! What a theorem is about: one entry point, and whose state it finds.
//!
//! Most of the proof is the same for all of them. What differs between them is asked here, by
//! questions such as [`Theorem::is_in_ring_0`], and nowhere by a list of theorems.

use std::hash::Hash;

use serde::Serialize;

use crate::target::Target;
use crate::vectors::Vectors;
use switcher_gen::arch::vector;

/// What a theorem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Theorem {
    /// `switcher_enter_guest`, called.
    EnterGuest,
    /// `entry_SYSCALL_64_switcher`, reached by SYSCALL.
    Syscall64,
    /// `entry_SYSCALL_compat_switcher`, reached by a SYSCALL in 32-bit code.
    SyscallCompat,
    /// `switcher_return_from_guest`, the frame on the sp0 stack.
    ReturnFromGuest,
    /// `switcher_return_from_guest`, the frame on a stack of the IST.
    ReturnFromGuestIst,
    /// The IDT, by looking at it.
    Gates,
    /// An event of a guest without an error code.
    Event,
    /// An event of a guest with an error code.
    EventError,
    /// #DB of a guest.
    EventDb,
    /// An NMI while a guest runs.
    EventNmi,
    /// A machine check while a guest runs.
    EventMc,
    /// A double fault of a guest.
    EventDf,
    /// #NP, #SS or #GP of the IRETQ to a guest.
    Iretq,
    /// #DB anywhere in ring 0.
    DbInRing0,
    /// An NMI anywhere in ring 0.
    NmiInRing0,
    /// A machine check anywhere in ring 0.
    McInRing0,
    /// A double fault anywhere in ring 0.
    DfInRing0,
    /// Anything else in ring 0 that is not the IRETQ's, without an error code.
    FatalInRing0,
    /// Anything else in ring 0 that is not the IRETQ's, with an error code.
    FatalErrorInRing0,
    /// An event at the IRETQ to a guest that the IRETQ does not cause, without an error code.
    FatalAtIretq,
    /// An event at the IRETQ to a guest that its frame's values do not cause, with an error code:
    /// such as a page fault of the stack, which is the host's.
    FatalErrorAtIretq,
    /// `switcher_hand_on`, called.
    HandOn,
    /// `switcher_hand_on_stack`, called.
    HandOnStack,
}

impl Theorem {
    /// The theorems about routines that are called or reached by SYSCALL.
    pub const ALL: [Self; 5] = [
        Self::EnterGuest,
        Self::Syscall64,
        Self::SyscallCompat,
        Self::ReturnFromGuest,
        Self::ReturnFromGuestIst,
    ];

    /// The theorems about event entries.
    pub const EVENTS: [Self; 18] = [
        Self::Gates,
        Self::Event,
        Self::EventError,
        Self::EventDb,
        Self::EventNmi,
        Self::EventMc,
        Self::EventDf,
        Self::Iretq,
        Self::DbInRing0,
        Self::NmiInRing0,
        Self::McInRing0,
        Self::DfInRing0,
        Self::FatalInRing0,
        Self::FatalErrorInRing0,
        Self::FatalAtIretq,
        Self::FatalErrorAtIretq,
        Self::HandOn,
        Self::HandOnStack,
    ];

    /// The theorems that `target` has the code for.
    pub fn of(target: &Target) -> impl Iterator<Item = Self> {
        let events = if target.gates.is_some() { &Self::EVENTS[..] } else { &[] };
        let compat = target.syscall_compat.is_some();
        let hand_on = target.hand_on.map(|at| at.is_some());
        let all = Self::ALL.iter().chain(events).copied();
        all.filter(move |theorem| match theorem {
            Self::SyscallCompat => compat,
            Self::HandOn => hand_on[0],
            Self::HandOnStack => hand_on[1],
            _ => true,
        })
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EnterGuest => "enter_guest",
            Self::Syscall64 => "syscall_64",
            Self::SyscallCompat => "syscall_compat",
            Self::ReturnFromGuest => "return_from_guest",
            Self::ReturnFromGuestIst => "return_from_guest (IST)",
            Self::Gates => "gates",
            Self::Event => "event",
            Self::EventError => "event (error code)",
            Self::EventDb => "event (#DB)",
            Self::EventNmi => "event (NMI)",
            Self::EventMc => "event (#MC)",
            Self::EventDf => "event (#DF)",
            Self::Iretq => "IRETQ (#NP, #SS, #GP)",
            Self::DbInRing0 => "ring 0 (#DB)",
            Self::NmiInRing0 => "ring 0 (NMI)",
            Self::McInRing0 => "ring 0 (#MC)",
            Self::DfInRing0 => "ring 0 (#DF)",
            Self::FatalInRing0 => "ring 0 (others)",
            Self::FatalErrorInRing0 => "ring 0 (others, error code)",
            Self::FatalAtIretq => "IRETQ (others)",
            Self::FatalErrorAtIretq => "IRETQ (others, error code)",
            Self::HandOn => "hand_on",
            Self::HandOnStack => "hand_on (stack)",
        }
    }

    pub(crate) const fn start(self) -> Start {
        match self {
            Self::EnterGuest | Self::HandOn | Self::HandOnStack => Start::Call,
            Self::Syscall64 => Start::Guest,
            Self::SyscallCompat => Start::Guest32,
            Self::ReturnFromGuest => Start::Handler { ist: false },
            Self::ReturnFromGuestIst => Start::Handler { ist: true },
            _ => Start::Guest,
        }
    }
}

/// The moment a theorem starts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The host has called `switcher_enter_guest`.
    Call,
    /// A guest, in 64-bit code, is about to execute SYSCALL; RIP is after it.
    Guest,
    /// A guest, in 32-bit code, is about to execute SYSCALL.
    Guest32,
    /// A handler of the host jumps to the exit; the frame is on the sp0 stack, or on one of the
    /// IST.
    Handler {
        /// Whether it is on one of the IST.
        ist: bool,
    },
}

impl std::fmt::Display for Theorem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The code that an event interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A guest, at CPL 3.
    Guest,
    /// The IRETQ to a guest, which has refused its frame.
    Iretq,
    /// Ring 0, anywhere.
    Ring0,
    /// Ring 0 on the host's stack, but not at that IRETQ.
    Elsewhere,
    /// Ring 0 at that IRETQ, by an event that the IRETQ does not cause.
    AtIretq,
}

impl Theorem {
    /// The vectors and what they interrupt; `None` for a theorem that is not about one event.
    pub(crate) const fn event(self) -> Option<(Vectors, Whose)> {
        Some(match self {
            Self::Event => (Vectors::Plain, Whose::Guest),
            Self::EventError => (Vectors::Coded, Whose::Guest),
            Self::EventDb => (Vectors::One(vector::DB), Whose::Guest),
            Self::EventNmi => (Vectors::One(vector::NMI), Whose::Guest),
            Self::EventMc => (Vectors::One(vector::MC), Whose::Guest),
            Self::EventDf => (Vectors::One(vector::DF), Whose::Guest),
            Self::Iretq => (Vectors::OfIretq, Whose::Iretq),
            Self::DbInRing0 => (Vectors::One(vector::DB), Whose::Ring0),
            Self::NmiInRing0 => (Vectors::One(vector::NMI), Whose::Ring0),
            Self::McInRing0 => (Vectors::One(vector::MC), Whose::Ring0),
            Self::DfInRing0 => (Vectors::One(vector::DF), Whose::Ring0),
            Self::FatalInRing0 => (Vectors::Plain, Whose::Elsewhere),
            Self::FatalErrorInRing0 => (Vectors::Coded, Whose::Elsewhere),
            Self::FatalAtIretq => (Vectors::Plain, Whose::AtIretq),
            Self::FatalErrorAtIretq => (Vectors::NotOfIretq, Whose::AtIretq),
            _ => return None,
        })
    }

    /// Whether something happens at the IRETQ to a guest, or elsewhere: its address is a value.
    pub(crate) const fn is_of_iretq(self) -> bool {
        matches!(self.event(), Some((_, Whose::Iretq | Whose::Elsewhere | Whose::AtIretq)))
    }

    /// Whether it is about what has interrupted ring 0 somewhere.
    pub(crate) const fn is_elsewhere(self) -> bool {
        matches!(self.event(), Some((_, Whose::Elsewhere)))
    }

    /// Whether it is about event entries.
    pub(crate) const fn is_of_events(self) -> bool {
        matches!(self, Self::Gates) || self.hands_on() || self.event().is_some()
    }

    /// Whether the host hands an event on that has ended a guest's run: its own IDT is loaded then.
    pub(crate) const fn hands_on(self) -> bool {
        matches!(self, Self::HandOn | Self::HandOnStack)
    }

    /// Whether ring 0 is interrupted, in a state that may be any.
    pub(crate) const fn is_in_ring_0(self) -> bool {
        matches!(self.event(), Some((_, Whose::Ring0 | Whose::Elsewhere | Whose::AtIretq)))
    }

    /// Whether it calls a hook that returns.
    pub(crate) const fn has_hook(self) -> bool {
        matches!(self, Self::NmiInRing0 | Self::McInRing0)
    }

    /// Whether it ends in a hook that does not return, but for what is handed on: see
    /// [`Entry::is_fatal`](crate::entry::Entry::is_fatal).
    pub(crate) const fn is_fatal(self) -> bool {
        matches!(
            self,
            Self::DfInRing0
                | Self::FatalInRing0
                | Self::FatalErrorInRing0
                | Self::FatalAtIretq
                | Self::FatalErrorAtIretq
        )
    }

    /// Whether it is about an event that must leave the blocking of NMIs as it is.
    pub(crate) const fn keeps_blocking(self) -> bool {
        matches!(self, Self::DbInRing0 | Self::McInRing0)
    }

    /// Whether it is about NMIs, which no other interrupts before an IRET.
    pub(crate) const fn is_of_nmis(self) -> bool {
        matches!(self, Self::EventNmi | Self::NmiInRing0)
    }

    /// Whether a stack of the IST is the event's.
    pub(crate) const fn is_on_ist(self) -> bool {
        matches!(self.event(), Some((Vectors::One(_), _)))
    }
}

/// Whether the guest leaves the PVCS alone while the switcher runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMemory {
    /// The guest leaves it alone: the outcome is compared with the specification.
    Stable,
    /// Every read finds something new (hazards.md, row 24): the outcome must be right for what was
    /// read of the PVCS, and all that does not depend on it must be as with stable memory.
    Racing,
}
