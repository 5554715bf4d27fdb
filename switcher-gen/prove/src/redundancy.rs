//! Does the switcher need each of its instructions? Each is taken away by itself; something must
//! object.
//!
//! What the proofs do not object to makes a path shorter, which is counted; or it is redundant, or
//! there for a reason that no obligation knows. Then the obligation is what is missing: there is no
//! list of exceptions.
//!
//! All instructions are tried that the theorems' entry points lead to: the entries, both direct
//! switches, the returns, the exit, and the entries of events, of whose stubs there is one of each
//! kind.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::cost::PathCost;
use crate::entry::EntryPoints;
use crate::mutate::Mutant;
use crate::prover::Prove;
use crate::target::Target;
use crate::theorem::Theorem;
use crate::verdict::Verdict;
use crate::{cost, mutate};

/// The instructions of a target, to be taken away one by one.
#[derive(Debug)]
pub struct Search {
    target: Target,
    trials: Vec<Trial>,
}

/// The code without one instruction.
#[derive(Debug)]
struct Trial {
    mutant: Mutant,
    /// All theorems, those first that come to where it was.
    order: Vec<Theorem>,
}

/// An instruction that no theorem needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unneeded {
    /// Its address.
    pub at: u64,
    /// The instruction.
    pub text: String,
    /// What the instruction is there for.
    pub purpose: Purpose,
}

/// What an instruction is there for that no theorem needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// It is there for nothing: it is redundant.
    None,
    /// It makes a path shorter, as a jump past a test does that would do no harm.
    Speed {
        /// The kind of path: [`cost::PathCost::kind`].
        path: String,
        /// How many instructions the path executes.
        with: usize,
        /// How many it executes without this one.
        without: usize,
    },
    /// The solver does not know whether the theorems hold without it.
    Unknown(String),
}

impl Search {
    /// Every instruction of `target` that a theorem may come to, in the order of addresses.
    #[must_use]
    pub fn new(target: &Target) -> Self {
        let points = EntryPoints::of(target);
        let mut reached: Vec<_> = Theorem::of(target)
            .map(|theorem| (theorem, points.entry(theorem).reached().collect::<BTreeSet<_>>()))
            .collect();
        // Theorems about little code take less time.
        reached.sort_by_key(|(_, reached)| reached.len());
        let trial = |mutant: Mutant| {
            let (first, rest): (Vec<_>, Vec<_>) =
                reached.iter().partition(|(_, reached)| reached.contains(&mutant.at));
            let order = first.iter().chain(&rest).map(|(theorem, _)| *theorem).collect();
            (!first.is_empty()).then_some(Trial { order, mutant })
        };
        let trials = mutate::deletions(target).into_iter().filter_map(trial).collect();
        Self { target: target.clone(), trials }
    }

    /// How many instructions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.trials.len()
    }

    /// The address of each, by number.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        self.trials.iter().map(|trial| trial.mutant.at)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trials.is_empty()
    }

    /// The instruction of that number, if no theorem needs it. An instruction is needed, too, if
    /// there is no code without it.
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn unneeded(&self, prover: &impl Prove, number: usize) -> Option<Unneeded> {
        let Trial { mutant, order } = &self.trials[number];
        let purpose = match mutant.target() {
            None => Purpose::Unknown("the code without it cannot be assembled".into()),
            Some(without) => match prover.prove_in_order(&without, order) {
                Verdict::Refuted(_) | Verdict::Unsupported(_) => return None,
                Verdict::Proved(_) => self.shortens(&without).unwrap_or(Purpose::None),
                Verdict::Unknown(why) => Purpose::Unknown(why),
                Verdict::Interrupted(theorem) => {
                    Purpose::Unknown(format!("{theorem}: interrupted"))
                }
            },
        };
        Some(Unneeded { at: mutant.at, text: mutant.original.clone(), purpose })
    }

    /// The path that is longer `without` an instruction, if there is one.
    fn shortens(&self, without: &Target) -> Option<Purpose> {
        let [with, without] = [&self.target, without].map(shortest);
        with.iter().find_map(|(path, &with)| {
            // NOPs in its place are not counted. A theorem that executes nothing has no path.
            let (path, without) = (path.clone(), *without.get(path)?);
            (with < without).then_some(Purpose::Speed { path, with, without })
        })
    }
}

/// How many instructions the shortest path of each kind executes. What has no finite number of
/// paths has no shortest ones.
fn shortest(target: &Target) -> BTreeMap<String, usize> {
    let mut shortest = BTreeMap::new();
    let paths = cost::paths_of(target, Theorem::of(target)).unwrap_or_default();
    for PathCost { kind, instructions, .. } in paths {
        let least = shortest.entry(kind).or_insert(instructions);
        *least = instructions.min(*least);
    }
    shortest
}
