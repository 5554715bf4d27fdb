//! A summary of what became of many mutants.

use std::collections::BTreeMap;

use crate::mutate::{Fate, Mutant};

/// A summary of fates.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many mutants there were.
    pub mutants: usize,
    /// How many of them each obligation killed.
    pub killed: BTreeMap<&'static str, usize>,
    /// How many were refused as code no theorem can be about.
    pub refused: usize,
    /// How many are the same code in effect.
    pub equivalent: usize,
    /// The holes: there should be none.
    pub holes: Vec<String>,
}

impl Tally {
    /// Counts what became of one mutant.
    pub fn count(&mut self, mutant: &Mutant, fate: &Fate) {
        self.mutants += usize::from(!matches!(fate, Fate::NoCode));
        match fate {
            Fate::Killed(obligation, _) => *self.killed.entry(obligation).or_default() += 1,
            Fate::NoCode => {}
            Fate::Refused(_) => self.refused += 1,
            Fate::Equivalent => self.equivalent += 1,
            Fate::Hole(why) => self.holes.push(format!("{mutant}: {why}")),
        }
    }

    /// Adds another one's counts.
    pub fn add(&mut self, other: Self) {
        self.mutants += other.mutants;
        for (obligation, count) in other.killed {
            *self.killed.entry(obligation).or_default() += count;
        }
        self.refused += other.refused;
        self.equivalent += other.equivalent;
        self.holes.extend(other.holes);
    }
}
