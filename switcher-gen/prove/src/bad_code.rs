//! Code that no theorem can be about, and why.

use crate::target::overlap::Overlap;
use switcher_model::ProgramError;

/// Code that no theorem can be about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCode {
    /// An instruction without semantics, or none.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A jump or a fall through to elsewhere.
    #[error("{at:#x}: control leaves the code, to {target:#x}")]
    Leaves {
        /// The instruction.
        at: u64,
        /// Where to.
        target: u64,
    },
    /// More instructions than any path has.
    #[error(
        "{at:#x}: more than {limit} instructions on one path: a loop of too many rounds, or without a \
         bound"
    )]
    Loop {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// More jumps that the state decides than any path has.
    #[error(
        "{at:#x}: a loop that nothing bounds: more than {limit} jumps on one path that depend on the \
         state"
    )]
    Open {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
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
    /// More instructions on all paths together than any theorem has.
    #[error(
        "{at:#x}: more than {limit} instructions on all paths together: loops behind jumps that \
         depend on the state"
    )]
    Work {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// More instructions where jumps may be predicted to lead than any theorem has.
    #[error(
        "{at:#x}: more than {limit} instructions where jumps may be predicted to lead and no path goes \
         from there"
    )]
    Arms {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// A store to code.
    #[error("{at:#x}: the code writes to itself")]
    SelfModifying {
        /// The instruction.
        at: u64,
    },
    /// RDMSR or WRMSR of an MSR without semantics.
    #[error("{at:#x}: an access to an MSR that is not modelled")]
    Msr {
        /// The instruction.
        at: u64,
    },
    /// Its data lies over the code, or over each other.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}
