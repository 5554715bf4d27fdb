//! What the code around a switcher guarantees: a contract, clause by clause.
//!
//! The specification of our own switchers asks nothing of that code but what spec/host.md lists, so
//! its contract has no clause. Kernels share the work in other ways: their event entries have
//! cleared registers before they jump to the exit, and their C code has sanitised flags before it
//! enters. A clause makes a proof assume that, or ask for less; every verdict lists those that it
//! rests on.

use bitflags::bitflags;

bitflags! {
    /// The clauses of a contract.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Clauses: u16 {
        /// Event entries clear registers.
        const ENTRY_REGISTERS = 1 << 0;
        /// Event entries clear DF and AC.
        const ENTRY_FLAGS = 1 << 1;
        /// The frame's flags are a guest's.
        const FRAME_FLAGS = 1 << 2;
        /// The frame's selectors are a guest's.
        const FRAME_SELECTORS = 1 << 3;
        /// The frame's code is 64-bit code.
        const FRAME_64_BIT = 1 << 4;
        /// The host's code calls and jumps directly.
        const DIRECT_CALLS = 1 << 5;
        /// The host's code makes nothing of RDI.
        const ANY_RDI = 1 << 6;
        /// The host's code needs no SS.
        const ANY_SS = 1 << 7;
    }
}

/// A clause, for those who list them.
struct Clause {
    of: Clauses,
    name: &'static str,
    text: &'static str,
}

/// All clauses.
const CLAUSES: [Clause; 8] = [
    Clause {
        of: Clauses::ENTRY_REGISTERS,
        name: "entry-registers",
        text: "event entries have cleared all general registers but RAX, RDI and RSP before they jump \
               to switcher_return_from_guest",
    },
    Clause {
        of: Clauses::ENTRY_FLAGS,
        name: "entry-flags",
        text: "event entries have cleared DF and AC before they jump to switcher_return_from_guest",
    },
    Clause {
        of: Clauses::FRAME_FLAGS,
        name: "frame-flags",
        text: "whoever calls switcher_enter_guest has sanitised RFLAGS in the frame: it has the flags \
               that every guest has, and of the others only those that a guest may have",
    },
    Clause {
        of: Clauses::FRAME_SELECTORS,
        name: "frame-selectors",
        text: "whoever calls switcher_enter_guest has put a user's selectors of 64-bit or 32-bit code \
               into the frame's CS, and the user's data selector into its SS",
    },
    Clause {
        of: Clauses::FRAME_64_BIT,
        name: "frame-64-bit",
        text: "whoever calls switcher_enter_guest has put the user's selectors of 64-bit code into the \
               frame's CS and SS",
    },
    Clause {
        of: Clauses::DIRECT_CALLS,
        name: "direct-calls",
        text: "host code reaches switcher_enter_guest and switcher_return_from_guest by direct calls \
               and jumps, which need no ENDBR64",
    },
    Clause {
        of: Clauses::ANY_RDI,
        name: "any-rdi",
        text: "the code that switcher_enter_guest returns to makes nothing of RDI, in which the guest \
               may have left what it likes",
    },
    Clause {
        of: Clauses::ANY_SS,
        name: "any-ss",
        text: "the code that switcher_enter_guest returns to loads SS before it executes a SYSRET, \
               which on AMD leaves a null SS as it is",
    },
];

/// No clause has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no clause is called `{name}`: there is `{}`", Clauses::all_names().join("`, `"))]
pub struct NoClause {
    /// The name.
    pub name: String,
}

impl Clauses {
    /// The clause of this name.
    ///
    /// # Errors
    /// Lists the names that there are.
    pub fn named(name: &str) -> Result<Self, NoClause> {
        let clause = CLAUSES.iter().find(|clause| clause.name == name);
        clause.map(|clause| clause.of).ok_or_else(|| NoClause { name: name.into() })
    }

    /// The names of all clauses.
    #[must_use]
    pub fn all_names() -> Vec<&'static str> {
        CLAUSES.iter().map(|clause| clause.name).collect()
    }

    /// Each of these clauses: its name, and what it says.
    pub fn texts(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let own = CLAUSES.iter().filter(move |clause| self.contains(clause.of));
        own.map(|clause| (clause.name, clause.text))
    }
}

/// What the code around a switcher guarantees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contract {
    /// What it promises.
    pub clauses: Clauses,
    /// How many bytes of the stack that `TSS.sp0` points to may be used.
    pub entry_stack: Room,
    /// How many bytes of the caller's stack `switcher_enter_guest` may use.
    pub caller_stack: Room,
}

/// So many bytes of a stack: a multiple of 8, and no more than a few pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Room(u32);

/// A stack has no such room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes are no room on a stack: give a multiple of 8 from {} to {}",
    Room::LEAST,
    Room::MOST
)]
pub struct NoRoom {
    /// How many bytes.
    pub bytes: u64,
}

impl Room {
    /// A frame has to lie there.
    pub const LEAST: u64 = size_of::<switcher_gen::layout::PtRegs>() as u64;
    /// More is used by nobody, and a proof would take longer for it.
    pub const MOST: u64 = 1 << 14;

    /// Room for so many bytes.
    ///
    /// # Errors
    /// If no stack has that.
    pub const fn new(bytes: u64) -> Result<Self, NoRoom> {
        if bytes < Self::LEAST || bytes > Self::MOST || !bytes.is_multiple_of(8) {
            return Err(NoRoom { bytes });
        }
        Ok(Self(bytes as u32))
    }

    /// The number.
    #[must_use]
    pub const fn bytes(self) -> i64 {
        self.0 as i64
    }
}

impl Contract {
    /// That of our own switchers: see spec/host.md.
    pub const OURS: Self = {
        // What it saves, and as many return addresses at once as fill a return stack buffer.
        let (entry, caller) = (Room::new(switcher_gen::layout::Sp0::LEAST as u64), Room::new(512));
        match (entry, caller) {
            (Ok(entry_stack), Ok(caller_stack)) => {
                Self { clauses: Clauses::empty(), entry_stack, caller_stack }
            }
            _ => panic!("our own stacks have no room"),
        }
    };
}

impl Contract {
    /// What it lets a proof assume beside what our own does, in whole sentences.
    #[must_use]
    pub fn assumed(&self) -> Vec<String> {
        let clauses = self.clauses.texts().map(|(name, text)| format!("{text} (clause `{name}`)"));
        let Self { entry_stack, caller_stack, .. } = Self::OURS;
        let stacks = [
            (self.entry_stack, entry_stack, "the stack that TSS.sp0 points to"),
            (self.caller_stack, caller_stack, "the stack of whoever calls switcher_enter_guest"),
        ];
        let stacks = stacks.into_iter().filter(|(room, ours, _)| room != ours);
        let stacks =
            stacks.map(|(room, _, of)| format!("{of} has room for {} bytes", room.bytes()));
        clauses.chain(stacks).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_clause_has_a_name_and_a_text() {
        assert_eq!(Clauses::all().texts().count(), Clauses::all().iter().count());
        for clause in &CLAUSES {
            assert_eq!(Clauses::named(clause.name), Ok(clause.of));
            assert_eq!(clause.of.bits().count_ones(), 1, "{}", clause.name);
        }
        let error = Clauses::named("entry_flags").unwrap_err().to_string();
        assert!(error.contains("`entry-flags`"), "{error}");
    }

    #[test]
    fn room_is_for_a_frame_at_least() {
        for bytes in [0, 160, 169, 1 << 15, u64::MAX] {
            assert_eq!(Room::new(bytes), Err(NoRoom { bytes }));
        }
        assert_eq!(Room::new(4096).map(Room::bytes), Ok(4096));
    }
}
