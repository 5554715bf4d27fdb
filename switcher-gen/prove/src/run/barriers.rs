//! What a path has done against speculative execution: order, place and effect of what
//! spec/switcher.md lists under "Mitigations" (hazards.md, rows 28, 29 and 41 to 44).
//!
//! The machine has no predictors. What is shown is that the sequences are executed where their
//! vendors say that they must be, on every path, that they are complete, and that nothing takes
//! back before the RET that they protect what they have done. An instruction counts by what it does
//! to a predictor, not by being there.

use std::collections::BTreeSet;
use std::hash::Hash;

use switcher_gen::arch::Msr;
use switcher_gen::asm::LINE;
use switcher_gen::mitigations::{Bhb, Mitigations, Rsb};
use switcher_model::Fence;

/// Calls that fill a return stack buffer: no CPU's has more entries.
const RSB_ENTRIES: usize = 32;
/// How many of the latest calls are kept in mind: what is older is in no buffer any more.
const CALLS: usize = 2 * RSB_ENTRIES;
/// How many calls within each other, from one place, are told apart from more of them.
const DEPTH: usize = 2;

/// An entry of the return stack buffer that the code has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    /// The address of a trap, left by a call of what is right after the trap.
    Trap,
    /// The return address of a call that may be returned from.
    Call(u64),
}

/// What a call has pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// The address of a trap.
    Trap,
    Address(u64),
}

/// What a path has done so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Barriers {
    /// What the return stack buffer has of the code, the latest last. A buffer with less room has
    /// the end of it.
    rsb: Vec<Entry>,
    /// How many of these, from the first, are in no buffer any more: later ones have overwritten
    /// them.
    lost: usize,
    /// How many of these a fence has made certain.
    fenced: usize,
    /// How the history is to be overwritten.
    bhb: Bhb,
    /// Branches taken since the last fence, and which of them stayed in their line.
    taken: usize,
    inner: Vec<u64>,
    /// Whether a run of such branches has overwritten the history, a fence has made it certain, and
    /// nothing that may be a guest's has got into it since.
    cleared: bool,
    /// All branches of such runs that have to stay in their line.
    lines: BTreeSet<u64>,
    /// Whether IBPB was executed.
    pub(crate) emptied: bool,
    /// Whether the host's untraining of returns was called.
    pub(crate) untrained: bool,
    /// Whether SPEC_CTRL was written: that it is the host's may not be enough, where a CPU that
    /// changes to ring 0 has to be told again (Intel, "Speculative Execution Side Channel
    /// Mitigations").
    pub(crate) restricted: bool,
    /// Whether VERW was executed, and nothing accessed since but the frame that is returned to.
    pub(crate) overwritten: bool,
}

/// What must hold at a RET, or where a hook is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtReturn {
    pub(crate) emptied: bool,
    pub(crate) untrained: bool,
    pub(crate) filled: bool,
    pub(crate) history: bool,
}

impl Barriers {
    /// Whether whatever is wrong from here on after `other` is so after this, too: nothing is done
    /// that `other` has not done, and RETs are predicted alike. A sequence of branches that has
    /// begun counts for nothing: it ends with a fence, and so do arms.
    pub(crate) fn is_no_better_than(&self, other: &Self, mitigations: Mitigations) -> bool {
        let done = |barriers: &Self| {
            let Self { emptied, untrained, restricted, overwritten, cleared, .. } = *barriers;
            let filled = barriers.at_return(mitigations, false, true, 0).filled;
            [emptied, untrained, restricted, overwritten, cleared, filled]
        };
        let are_traps = |barriers: &Self| barriers.rsb.iter().all(|entry| *entry == Entry::Trap);
        // What is deep within calls from one place ends as it does less deep within. Below the
        // traps is what a guest has left: what is wrong with a trap on top is wrong with that on
        // top, too.
        let is_predicted = self.deeper(other).is_some()
            || are_traps(self) && are_traps(other) && self.rsb.len() <= other.rsb.len();
        is_predicted
            && self.fenced <= other.fenced
            && self.lost <= other.lost
            && done(self).into_iter().zip(done(other)).all(|(a, b)| a <= b)
    }

    /// How many more calls `other` is within, each from where the one around it is from, if they
    /// differ in nothing else and in more than [`DEPTH`].
    pub(crate) fn deeper(&self, other: &Self) -> Option<usize> {
        let more = other.rsb.len().checked_sub(self.rsb.len())?;
        let same = self.rsb.iter().zip(&other.rsb).take_while(|(a, b)| a == b).count();
        if more == 0 {
            return (same == self.rsb.len()).then_some(0);
        }
        // The entries that one has more are all the same one, wherever among the equal entries they
        // begin.
        let one = *other.rsb.get(same).or(other.rsb.last())?;
        let (before, rest) = self.rsb.split_at(same);
        let is_same = other.rsb[same + more..] == *rest
            && other.rsb[same..same + more].iter().all(|entry| *entry == one);
        let depth = before.iter().rev().take_while(|entry| **entry == one).count();
        (is_same && depth >= DEPTH).then_some(more)
    }

    /// What the call that is `depth` calls around the latest has pushed, as far as the buffer says:
    /// an address, or that of a trap.
    pub(super) fn pushed(&self, depth: usize) -> Option<Pushed> {
        let index = self.rsb.len().checked_sub(depth + 1)?;
        Some(match self.rsb[index] {
            Entry::Trap => Pushed::Trap,
            Entry::Call(next) => Pushed::Address(next),
        })
    }

    /// Where the next RET is predicted to lead, if a call of the code's says so that may be
    /// returned from.
    pub(crate) fn prediction(&self) -> Option<u64> {
        match self.rsb.last() {
            Some(Entry::Call(next)) => Some(*next),
            Some(Entry::Trap) | None => None,
        }
    }

    /// The return addresses that a RET of somebody else's may still be predicted to lead to, each
    /// with what has been done by then: those of calls that nobody has returned from, but for the
    /// latest `within`.
    pub(crate) fn left(&self, within: usize) -> Vec<(u64, Self)> {
        let end = self.rsb.len().saturating_sub(within);
        let mut left: Vec<(u64, Self)> = Vec::new();
        for index in (self.lost..end).rev() {
            if let Entry::Call(next) = self.rsb[index]
                && left.iter().all(|(other, _)| *other != next)
            {
                let mut then = self.clone();
                then.rsb.truncate(index);
                then.fenced = then.fenced.min(index);
                then.lost = then.lost.min(index);
                left.push((next, then));
            }
        }
        left
    }

    /// WRMSR of the MSR with this number, if that is known.
    pub(crate) fn msr(&mut self, number: Option<u64>) {
        self.restricted |= number == Some(Msr::SpecCtrl.address().into());
        if number == Some(Msr::PredCmd.address().into()) {
            // Whether it is an IBPB is a goal of its own.
            self.emptied = true;
        }
    }

    /// A path that has done nothing yet; `bhb` says how the history is to be overwritten.
    pub(crate) fn new(bhb: Bhb) -> Self {
        Self { bhb, ..Self::default() }
    }

    /// A jump or RET is taken, from `at` to `to` if that is known.
    pub(crate) fn branch(&mut self, at: u64, to: Option<u64>) {
        self.taken += 1;
        let line = LINE as u64;
        if to.is_some_and(|to| to / line == at / line) {
            self.inner.push(at);
        }
    }

    /// A call; `next` is its return address, and whether it fills the buffer.
    pub(crate) fn called(&mut self, next: u64, fills: bool) {
        self.taken += 1;
        self.rsb.push(if fills { Entry::Trap } else { Entry::Call(next) });
        if self.rsb.len() > CALLS {
            self.rsb.remove(0);
            self.fenced = self.fenced.saturating_sub(1);
            self.lost = self.lost.saturating_sub(1);
        }
        self.lost = self.lost.max(self.rsb.len().saturating_sub(RSB_ENTRIES));
        if fills {
            // What fills the buffer does not count as a part of the history's sequence.
            self.forget();
        }
    }

    /// A RET has used an entry up: one of the code's, or what was there before.
    pub(crate) fn returned(&mut self) {
        self.rsb.pop();
        self.fenced = self.fenced.min(self.rsb.len());
        self.lost = self.lost.min(self.rsb.len());
    }

    /// Whether a RET to `to` is predicted to go there, by the call that it returns from.
    pub(crate) fn is_predicted(&self, to: Option<u64>) -> bool {
        self.rsb.last().is_some_and(|top| to.map(Entry::Call) == Some(*top))
    }

    /// Something of a guest's gets into the history: where an indirect branch leads, or which way a
    /// conditional one goes.
    pub(crate) fn poison(&mut self) {
        self.forget();
        self.cleared = false;
    }

    fn forget(&mut self) {
        self.taken = 0;
        self.inner.clear();
    }

    pub(crate) fn fence(&mut self, fence: Fence) {
        if !fence.stops_dispatch() {
            return;
        }
        self.fenced = self.rsb.len();
        let is_whole =
            self.taken >= self.bhb.taken() && self.inner.len() >= self.bhb.within_a_line();
        if self.bhb.is_on() && is_whole {
            self.cleared = true;
            self.lines.extend(&self.inner);
        }
        self.forget();
    }

    /// Whether all that keeps an indirect branch from being predicted by what a guest has left has
    /// been done by now, but for SPEC_CTRL.
    pub(crate) fn is_safe_to_branch(&self, mitigations: Mitigations) -> bool {
        (!mitigations.ibpb || self.emptied)
            && (!mitigations.untrain || self.untrained)
            && (!mitigations.bhb.is_on() || self.cleared)
    }

    /// Whether what `mitigations` ask for has been done by now, at a RET. One that is predicted by
    /// the call that it returns from needs less. If it is `within` calls of a hook, the first RET
    /// that is not of these calls is the hook's. Only the return of the host's thunk is untrained.
    pub(crate) fn at_return(
        &self,
        mitigations: Mitigations,
        is_own: bool,
        is_thunks: bool,
        within: usize,
    ) -> AtReturn {
        let wanted = match mitigations.rsb {
            Rsb::Left => 0,
            Rsb::Lite => 1,
            Rsb::Full => RSB_ENTRIES,
        };
        let top = self.rsb.len().saturating_sub(within);
        let traps = self.rsb[..top].iter().rev().take_while(|entry| **entry == Entry::Trap);
        // What a fence has not made certain may not be there yet.
        let filled = wanted == 0 || top <= self.fenced && traps.count() >= wanted;
        AtReturn {
            emptied: !mitigations.ibpb || self.emptied,
            untrained: !mitigations.untrain || self.untrained && is_thunks,
            filled: is_own || filled,
            history: is_own || !mitigations.bhb.is_on() || self.cleared,
        }
    }

    /// The branches that a proof relies on to stay in their line.
    pub(crate) const fn lines(&self) -> &BTreeSet<u64> {
        &self.lines
    }

    /// The branches that a proof relies on to stay in their line.
    pub(crate) fn into_lines(self) -> BTreeSet<u64> {
        self.lines
    }
}
