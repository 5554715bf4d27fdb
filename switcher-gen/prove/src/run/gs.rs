//! Which GS base a CPU may go on with, whichever way it predicts jumps (spec/hazards.md, row 28).

use crate::theorem::Theorem;
use switcher_model::Fence;

/// Whether a CPU may go on with another GS base than the path has: as if a SWAPGS had been executed
/// that was not, or the other way round.
#[derive(Debug, Default)]
pub(crate) struct GsSpeculation {
    /// If SWAPGS was executed, whether that is certain: no jump before it may have gone elsewhere.
    swapped: Option<bool>,
    /// Whether there was a jump since the last fence.
    has_jumped: bool,
    /// Whether GS base was written: it is the same, whatever it was before.
    is_written: bool,
}

impl GsSpeculation {
    /// A conditional jump is executed.
    pub(crate) const fn jump(&mut self) {
        self.has_jumped = true;
    }

    /// SWAPGS is executed.
    pub(crate) const fn swap(&mut self) {
        self.swapped = Some(!self.has_jumped);
    }

    /// WRGSBASE is executed.
    pub(crate) const fn write(&mut self) {
        self.is_written = true;
    }

    /// A fence makes certain what came before it, if it stops dispatch.
    pub(crate) fn fence(&mut self, fence: Fence) {
        if fence.stops_dispatch() {
            self.swapped = self.swapped.map(|_| true);
            self.has_jumped = false;
        }
    }

    /// Whether a CPU has the path's GS base for certain; `None` where nothing of this `theorem`'s
    /// path may have changed it.
    pub(crate) fn is_certain(&self, theorem: Theorem) -> Option<bool> {
        // An event is of ring 0 or of a guest: a jump may have been taken for the other.
        let unswapped = theorem.is_of_events().then_some(self.is_written || !self.has_jumped);
        self.swapped.or(unswapped)
    }
}
