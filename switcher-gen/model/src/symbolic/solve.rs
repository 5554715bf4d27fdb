//! Whether truth values can be true together: known answers first, then models, then the solver.
//!
//! No verdict rests on what this module believes. "Satisfiable" is believed after an evaluation of
//! every conjunct under the model; "unsatisfiable" is ordeal's, which checks its own proof.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use foldhash::HashMap;

use super::eval::{Guess, Scratch, Values};
use super::lowering::Verdict;
use super::question::Question;
use super::word::Pool;
use super::{Bit, answered, lowering};

/// How often it may give up on the questions of one target before none is asked any more: where one
/// is too hard, so are many, and each takes seconds.
pub(super) const GIVE_UPS: u32 = 4;
/// How many models and answers are kept.
const MODELS: usize = 256;
const ANSWERS: usize = 1 << 16;

/// How questions were answered, and what that took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// By the normal form, or because the path says so.
    pub normal_form: u64,
    /// By a model: one that was known, or a good guess.
    pub model: u64,
    /// By an earlier answer to the same question.
    pub cache: u64,
    /// By ordeal, now or when another proof asked the same.
    pub solver: u64,
    /// ordeal's certificates that were checked once more.
    pub rechecked: u64,
    /// The time that ordeal and the translation took.
    pub solver_time: Duration,
    /// The longest that it took for one question.
    pub slowest: Duration,
    /// Terms that exist. They live as long as their owner: one that has too many is to be replaced.
    pub terms: usize,
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Unsatisfiable,
    Satisfiable(Values),
    Unknown(String),
}

/// What is remembered from question to question.
#[derive(Debug, Default)]
pub(super) struct Solver {
    /// By the sorted conjuncts.
    answers: HashMap<Box<[Bit]>, Answer>,
    /// The most recently useful first.
    models: VecDeque<Values>,
    pub(super) scratch: Scratch,
    pub(super) statistics: Statistics,
    pub(super) recheck: bool,
    /// How often ordeal has given up lately.
    pub(super) given_up: u32,
}

impl Solver {
    /// Whether `goal` can be true where all of `path` is. `witness`, if there is one, is a model of
    /// `path`: then only what shares variables with the goal matters, and the rest is as it has it.
    pub(super) fn solve(
        &mut self,
        pool: &Pool,
        path: &[Bit],
        goal: Bit,
        witness: Option<&Values>,
    ) -> Answer {
        let (mut conjuncts, variables) = match witness {
            Some(_) => cone(pool, path, goal),
            None => (path.to_vec(), HashSet::new()),
        };
        conjuncts.push(goal);
        conjuncts.sort_unstable();
        conjuncts.dedup();
        let contradicts = |two: &[Bit]| two[0] == two[1].negate();
        if conjuncts.contains(&Bit::FALSE) || conjuncts.windows(2).any(contradicts) {
            self.statistics.normal_form += 1;
            return Answer::Unsatisfiable;
        }
        let complete = |values: Values| -> Values {
            let Some(witness) = witness else { return values };
            let get = |values: &Values, i: usize| values.get(i).copied().unwrap_or_default();
            let of_cone = |i: usize| variables.contains(&(i as u32));
            (0..witness.len().max(values.len()))
                .map(|i| get(if of_cone(i) { &values } else { witness }, i))
                .collect()
        };
        let answer = match self.answers.get(&*conjuncts) {
            Some(answer) => {
                self.statistics.cache += 1;
                answer.clone()
            }
            None => {
                let answer = match self.guess(pool, &conjuncts, goal, witness) {
                    Some(values) => {
                        self.statistics.model += 1;
                        Answer::Satisfiable(values)
                    }
                    None => self.ask(pool, &conjuncts),
                };
                // Simple and rare: whatever is still needed comes back soon.
                if self.answers.len() >= ANSWERS {
                    self.answers.clear();
                }
                self.answers.insert(conjuncts.into(), answer.clone());
                answer
            }
        };
        match answer {
            Answer::Satisfiable(values) => Answer::Satisfiable(complete(values)),
            answer => answer,
        }
    }

    pub(super) fn holds(&mut self, pool: &Pool, values: &[u64], conjuncts: &[Bit]) -> bool {
        let mut now = self.scratch.under(pool, values);
        conjuncts.iter().all(|&bit| now.bit(bit))
    }

    /// A model that is at hand.
    fn guess(
        &mut self,
        pool: &Pool,
        conjuncts: &[Bit],
        goal: Bit,
        witness: Option<&Values>,
    ) -> Option<Values> {
        let known = |solver: &mut Self, i: usize| {
            let model = Rc::clone(&solver.models[i]);
            let holds =
                solver.holds(pool, &model, &[goal]) && solver.holds(pool, &model, conjuncts);
            holds.then_some((i, model))
        };
        if let Some((i, model)) = (0..self.models.len()).find_map(|i| known(self, i)) {
            self.models.remove(i);
            self.models.push_front(Rc::clone(&model));
            return Some(model);
        }
        let starts = [
            witness.map_or_else(Vec::new, |witness| witness.to_vec()),
            Vec::new(),
            vec![u64::MAX; pool.variables.len()],
        ];
        for values in starts {
            let mut guess = Guess::new(pool, &mut self.scratch, values);
            // The goal last, as the others may hold already; then what it undid.
            for &bit in conjuncts.iter().filter(|&&bit| bit != goal).chain([&goal]).chain(conjuncts)
            {
                guess.force(bit, true);
            }
            let values = guess.values;
            if self.holds(pool, &values, conjuncts) {
                return Some(self.keep(pool, values));
            }
        }
        None
    }

    /// Remembers a model.
    fn keep(&mut self, pool: &Pool, mut values: Vec<u64>) -> Values {
        for (value, variable) in values.iter_mut().zip(&pool.variables) {
            *value &= super::word::low_bits(variable.width);
        }
        let values: Values = values.into();
        self.models.truncate(MODELS - 1);
        self.models.push_front(Rc::clone(&values));
        values
    }

    /// What the solver says.
    pub(super) fn ask(&mut self, pool: &Pool, conjuncts: &[Bit]) -> Answer {
        if self.given_up >= GIVE_UPS {
            let why = format!("ordeal was not asked: it has given up {GIVE_UPS} times before");
            return Answer::Unknown(why);
        }
        let start = Instant::now();
        let (question, variables) = Question::new(pool, conjuncts);
        // Whoever wants a certificate checked wants one.
        let known = if self.recheck { None } else { answered::known(&question) };
        let verdict = known.unwrap_or_else(|| self.ask_first(question));
        let took = start.elapsed();
        self.statistics.solver += 1;
        self.statistics.solver_time += took;
        self.statistics.slowest = self.statistics.slowest.max(took);
        match verdict {
            Verdict::Unsatisfiable => Answer::Unsatisfiable,
            Verdict::Satisfiable(model) => {
                let mut values = vec![0; pool.variables.len()];
                for (&value, variable) in model.iter().zip(variables) {
                    values[variable as usize] = value;
                }
                if self.holds(pool, &values, conjuncts) {
                    Answer::Satisfiable(self.keep(pool, values))
                } else {
                    Answer::Unknown("ordeal's model is no model".into())
                }
            }
            Verdict::Unknown(why) => {
                self.given_up += 1;
                Answer::Unknown(why)
            }
        }
    }

    /// What ordeal says; with the feature `z3`, if Z3 says the same.
    fn ask_first(&mut self, question: Question) -> Verdict {
        let verdict = lowering::ask(&question, self.recheck);
        self.statistics.rechecked +=
            u64::from(self.recheck && matches!(verdict, Verdict::Unsatisfiable));
        // What is too hard for the one has no limit in the other.
        #[cfg(feature = "z3")]
        if !matches!(verdict, Verdict::Unknown(_)) {
            let second = super::second::satisfiable(&question);
            let agree = match &verdict {
                Verdict::Unsatisfiable => second == Some(false),
                Verdict::Satisfiable(_) => second == Some(true),
                Verdict::Unknown(_) => true,
            };
            if !agree {
                return Verdict::Unknown(format!("ordeal: {verdict:?}, Z3: {second:?}"));
            }
        }
        answered::keep(question, &verdict);
        verdict
    }
}

/// The conjuncts that share variables with the goal, directly or by way of others; and all their
/// variables.
fn cone(pool: &Pool, path: &[Bit], goal: Bit) -> (Vec<Bit>, HashSet<u32>) {
    let mut variables: HashSet<u32> = pool.variables_of_bit(goal).iter().copied().collect();
    let (mut inside, mut outside) = (Vec::new(), path.to_vec());
    loop {
        let before = inside.len();
        outside.retain(|&bit| {
            let support = pool.variables_of_bit(bit);
            let shares = support.iter().any(|variable| variables.contains(variable));
            if shares {
                variables.extend(support.iter().copied());
                inside.push(bit);
            }
            !shares
        });
        if inside.len() == before {
            return (inside, variables);
        }
    }
}
