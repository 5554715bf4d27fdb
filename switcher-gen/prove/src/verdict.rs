//! What became of a target, and what was shown of each theorem.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::bad_code::BadCode;
use crate::counterexample::Counterexample;
use crate::theorem::{GuestMemory, Theorem};

/// What became of a target, or of one theorem about it.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Every goal of every theorem holds.
    Proved(Vec<Report>),
    /// A goal does not hold: a state from which the code breaks it.
    Refuted(Box<Counterexample>),
    /// The solver does not know whether a goal holds. That is no proof.
    Unknown(String),
    /// No theorem can be about the code: there is no telling what it does.
    Unsupported(BadCode),
    /// Somebody wanted an end before this theorem was gone through.
    Interrupted(Theorem),
}

/// What was shown of one theorem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The theorem.
    pub theorem: Theorem,
    /// Whether the guest writes its memory meanwhile.
    pub guest_memory: GuestMemory,
    /// How many paths there are through the code.
    pub paths: usize,
    /// How many goals were shown, on all of them.
    pub goals: usize,
    /// How many of them by the solver, and not by their normal form.
    pub by_solver: usize,
    /// Goals by the name of their obligation.
    pub obligations: BTreeMap<&'static str, usize>,
}

impl Report {
    pub(crate) const fn new(theorem: Theorem, guest_memory: GuestMemory) -> Self {
        let obligations = BTreeMap::new();
        Self { theorem, guest_memory, paths: 0, goals: 0, by_solver: 0, obligations }
    }

    /// Adds goals of the same paths that were judged apart.
    pub(crate) fn add_goals(&mut self, other: Self) {
        self.goals += other.goals;
        self.by_solver += other.by_solver;
        for (name, goals) in other.obligations {
            *self.obligations.entry(name).or_default() += goals;
        }
    }
}
