//! What a path does against speculative execution, watched: order and place of what spec/switcher.md
//! lists under "Mitigations" (hazards.md, row 29).
//!
//! The machine has no predictors. What is shown is that the sequences are executed where their
//! vendors say that they must be, on every path, and that they are complete.

use crate::machine::Branch;
use crate::mitigations::{Mitigations, Rsb};

/// Calls that fill a return stack buffer: no CPU's has more entries.
const RSB_ENTRIES: u32 = 32;

/// What a path has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Barriers {
    /// Calls with a trap behind them, and those that a fence has made certain.
    filled: u32,
    fenced_fill: u32,
    /// Branches taken since the last fence, and the longest such run that a fence has followed.
    taken: u32,
    fenced_run: u32,
    /// Whether IBPB was executed.
    pub(super) emptied: bool,
    /// Whether the host's untraining of returns was called.
    pub(super) untrained: bool,
    /// Whether VERW was executed, and nothing accessed since but the frame that is returned to.
    pub(super) overwritten: bool,
}

/// What must hold at a RET, or where a hook is called.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtReturn {
    pub(super) emptied: bool,
    pub(super) untrained: bool,
    pub(super) filled: bool,
    pub(super) history: bool,
}

impl Barriers {
    /// A branch is taken; behind a call of the kind that fills the buffer there is a trap.
    pub(super) fn branch(&mut self, branch: Branch, is_trapped: bool) {
        self.taken += 1;
        // Counted apart: what fills the buffer is not the history's sequence.
        if branch == Branch::Call && is_trapped {
            (self.filled, self.taken) = (self.filled + 1, 0);
        }
    }

    pub(super) fn fence(&mut self) {
        self.fenced_fill = self.filled;
        self.fenced_run = self.fenced_run.max(self.taken);
        self.taken = 0;
    }

    /// Whether what `mitigations` ask for has been done by now, at a RET. One of the routine's own
    /// calls returns to where it has been called from, as predicted: that much need not have been
    /// done for it. What is untrained is the return of the host's `thunk` alone.
    pub(super) fn at_return(
        &self,
        mitigations: Mitigations,
        is_own: bool,
        is_thunks: bool,
    ) -> AtReturn {
        let entries = match mitigations.rsb {
            Rsb::Left => 0,
            Rsb::Lite => 1,
            Rsb::Full => RSB_ENTRIES,
        };
        AtReturn {
            emptied: !mitigations.ibpb || self.emptied,
            untrained: !mitigations.untrain || self.untrained && is_thunks,
            filled: is_own || self.fenced_fill >= entries,
            history: is_own || self.fenced_run >= mitigations.bhb.taken(),
        }
    }
}
