//! What a run has to show: goals, in the order in which they come up.
//!
//! [`Goals`] is passed to whatever finds that something must hold. It knows nothing of the run but
//! which instruction is being executed; what is remembered of a run is in `run/watch.rs`.

use crate::obligation::Obligation;
use switcher_model::Domain;

/// One thing to be shown.
#[derive(Debug)]
pub struct Goal<D: Domain> {
    /// The obligation that it is a case of.
    pub obligation: Obligation,
    /// Whether it holds.
    pub holds: D::Bit,
    /// What of the state it is about.
    pub about: &'static str,
    /// What should be there and what is.
    pub values: Option<(D::Word, D::Word)>,
    /// The instruction, if one is concerned.
    pub at: Option<u64>,
}

/// All that a run has to show.
#[derive(Debug)]
pub(crate) struct Goals<D: Domain> {
    /// In the order in which they came up.
    all: Vec<Goal<D>>,
    /// What most faults break, too: these come last, for what else is wrong with a path says more.
    last: Vec<Goal<D>>,
    /// The instruction that is being executed.
    at: Option<u64>,
}

impl<D: Domain> Goals<D> {
    /// No goal yet, and nothing executed.
    pub(crate) fn new() -> Self {
        // About as many as there are.
        Self { all: Vec::with_capacity(256), last: Vec::with_capacity(64), at: None }
    }

    /// From here on, goals are about the instruction at `at`.
    pub(crate) const fn execute(&mut self, at: u64) {
        self.at = Some(at);
    }

    /// Something must hold of the instruction that is being executed.
    pub(crate) fn add(&mut self, obligation: Obligation, holds: D::Bit, about: &'static str) {
        self.all.push(Goal { obligation, holds, about, values: None, at: self.at });
    }

    /// Something must hold of the instruction at `at`, which is only looked at.
    pub(crate) fn add_at(
        &mut self,
        obligation: Obligation,
        holds: D::Bit,
        about: &'static str,
        at: u64,
    ) {
        self.all.push(Goal { obligation, holds, about, values: None, at: Some(at) });
    }

    /// Something must hold of the instruction that is being executed, and is broken by most other
    /// faults.
    pub(crate) fn add_last(&mut self, obligation: Obligation, holds: D::Bit, about: &'static str) {
        self.add_last_at(obligation, holds, about, self.at);
    }

    /// The same of the instruction at `at`.
    pub(crate) fn add_last_at(
        &mut self,
        obligation: Obligation,
        holds: D::Bit,
        about: &'static str,
        at: Option<u64>,
    ) {
        self.last.push(Goal { obligation, holds, about, values: None, at });
    }

    /// Two values must be equal at the end: no instruction is to blame.
    pub(crate) fn equal(
        &mut self,
        d: &D,
        obligation: Obligation,
        about: &'static str,
        expected: D::Word,
        got: D::Word,
    ) {
        let values = Some((expected, got));
        self.all.push(Goal { obligation, holds: d.eq(expected, got), about, values, at: None });
    }

    /// Two values must be equal, and the instruction that is being executed is to blame if they are
    /// not.
    pub(crate) fn equal_here(
        &mut self,
        d: &D,
        obligation: Obligation,
        about: &'static str,
        expected: D::Word,
        got: D::Word,
    ) {
        let (values, at) = (Some((expected, got)), self.at);
        self.all.push(Goal { obligation, holds: d.eq(expected, got), about, values, at });
    }

    /// Something must hold of `value` when the instruction is executed. No value is required.
    pub(crate) fn of(
        &mut self,
        obligation: Obligation,
        holds: D::Bit,
        about: &'static str,
        value: D::Word,
    ) {
        let (values, at) = (Some((value, value)), self.at);
        self.all.push(Goal { obligation, holds, about, values, at });
    }

    /// Something is broken by the instruction that is being executed.
    pub(crate) fn broken(
        &mut self,
        d: &D,
        obligation: Obligation,
        about: &'static str,
        values: Option<(D::Word, D::Word)>,
    ) {
        self.all.push(Goal { obligation, holds: d.bit(false), about, values, at: self.at });
    }

    /// What was kept for the end, to be judged apart.
    pub(crate) fn take_last(&mut self) -> Vec<Goal<D>> {
        std::mem::take(&mut self.last)
    }

    /// All that came up.
    pub(crate) fn into_all(self) -> Vec<Goal<D>> {
        self.all
    }

    /// All that came up, with goals that were found apart.
    pub(crate) fn append(&mut self, mut others: Vec<Goal<D>>) {
        self.all.append(&mut others);
    }
}
