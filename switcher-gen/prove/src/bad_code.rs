//! Code that no theorem can be about, and why.

use crate::target::overlap::Overlap;
use switcher_model::ProgramError;

/// Code that no theorem can be about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCode {
    /// What lies there is no instruction, or one without semantics.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A jump leads out of the code, or the code ends.
    #[error("{at:#x}: control leaves the code, to {target:#x}")]
    Leaves {
        /// The instruction.
        at: u64,
        /// The address that it leads to.
        target: u64,
    },
    /// One path has more instructions than any path of a switcher.
    #[error(
        "{at:#x}: more than {limit} instructions on one path: a loop without a bound, or of more rounds \
         than `--instructions` allows"
    )]
    Loop {
        /// Where it was when it was given up.
        at: u64,
        /// The limit.
        limit: usize,
    },
    /// One path has more jumps that the state decides than any path of a switcher.
    #[error(
        "{at:#x}: a loop that nothing bounds: more than {limit} jumps on one path that depend on the \
         state"
    )]
    Open {
        /// Where it was when it was given up.
        at: u64,
        /// The limit.
        limit: usize,
    },
    /// A jump through a value that is an address of the code's own, and which is not known.
    #[error(
        "{at:#x}: jumps to one of several addresses, and which is not known: choose it by conditional \
         jumps"
    )]
    Several {
        /// The instruction.
        at: u64,
    },
    /// A REP repeats as often as the state says.
    #[error(
        "{at:#x}: a REP that repeats as often as the state says: load a constant into RCX in front of \
         it, on each path its own"
    )]
    Count {
        /// The instruction.
        at: u64,
    },
    /// All paths of a theorem together have more instructions than any theorem about a switcher.
    #[error(
        "{at:#x}: more than {limit} instructions on all paths together: loops after jumps that \
         depend on the state"
    )]
    Work {
        /// Where it was when it was given up.
        at: u64,
        /// The limit.
        limit: usize,
    },
    /// Where jumps may be predicted to lead, there are more instructions than in any theorem about
    /// a switcher.
    #[error(
        "{at:#x}: more than {limit} instructions where jumps may be predicted to lead and no path goes \
         from there"
    )]
    Arms {
        /// Where it was when it was given up.
        at: u64,
        /// The limit.
        limit: usize,
    },
    /// Arms come to one place in more states than can be told apart.
    #[error(
        "{at:#x}: jumps may be predicted to lead here in more than {limit} states that differ in what \
         registers point to or in which calls were made"
    )]
    States {
        /// The place.
        at: u64,
        /// The limit.
        limit: usize,
    },
    /// The code stores to itself.
    #[error("{at:#x}: the code writes to itself")]
    SelfModifying {
        /// The instruction.
        at: u64,
    },
    /// RDMSR or WRMSR accesses an MSR without semantics.
    #[error("{at:#x}: an access to an MSR that is not modelled")]
    Msr {
        /// The instruction.
        at: u64,
    },
    /// Regions of its data share bytes with the code, or with each other.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}
