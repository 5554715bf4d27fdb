//! Paths: what a run decided, and how [`Symbolic::explore`] finds the other ways.
//!
//! There are no copies of states. A run that decides otherwise is the same run from its beginning,
//! which is told its first decisions.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::rc::Rc;

use foldhash::HashMap;

use super::eval::Values;
use super::solve::Answer;
use super::word::Pool;
use super::{Bit, By, Model, Symbolic, Validity, Word};
use crate::Origin;

/// How many paths [`Symbolic::explore`] goes before it gives up.
pub const MAX_PATHS: usize = 4096;

/// A decision of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// What was to be decided.
    pub condition: Bit,
    /// Whether the condition was taken to hold.
    pub taken: bool,
    /// Whether what was before left no other way.
    pub implied: bool,
}

/// What leads to the end of one run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Path {
    /// In the order of the run. Questions that repeat an earlier one are left out.
    pub decisions: Vec<Decision>,
}

/// What [`Symbolic::explore`] went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Explored {
    /// Paths that were visited: all that are feasible.
    pub visited: usize,
    /// Runs in which an assumption contradicted the decisions before it: they are not visited.
    pub pruned: usize,
}

/// Why an exploration says nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExploreError {
    /// There may be no end to it.
    #[error("more than {0} paths")]
    TooMany(usize),
    /// The assumptions contradict each other: everything would hold.
    #[error("no path is feasible")]
    Contradiction,
    /// The solver did not find out whether a path is feasible.
    #[error("a path's feasibility is unknown: {0}")]
    Unknown(String),
    /// The run asked other questions when it was told the same answers.
    #[error("the run is not deterministic")]
    Diverged,
}

/// A run that is yet to be done.
#[derive(Debug, Default)]
struct Pending {
    decisions: Vec<Decision>,
    witness: Option<Values>,
}

/// The present run.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// What holds in all runs.
    assumptions: Vec<Bit>,
    /// What holds on this path.
    conjuncts: Vec<Bit>,
    /// The conjuncts, their parts and what they imply, as far as it was asked: by node.
    facts: HashMap<usize, bool>,
    decisions: Vec<Decision>,
    /// The decisions that the run is told.
    replay: Vec<Decision>,
    pending: Vec<Pending>,
    /// A model of the conjuncts; when replaying, of the whole of what was decided.
    witness: Option<Values>,
    infeasible: bool,
    diverged: bool,
    unknown: Option<String>,
    /// How many fresh variables of a name the run has.
    fresh: HashMap<String, u32>,
    /// Where those variables come from that a CPU makes of others, by their index.
    made_of: HashMap<u32, BTreeSet<Origin>>,
    /// Between which numbers some variables lie, by their index.
    pub(super) spans: HashMap<u32, (i64, i64)>,
    /// Whether the last decision could have gone either way.
    was_open: bool,
}

impl Search {
    fn fact(&self, bit: Bit) -> Option<bool> {
        match bit {
            Bit::TRUE | Bit::FALSE => Some(bit == Bit::TRUE),
            _ => self.facts.get(&bit.index()).map(|&value| value != bit.negated()),
        }
    }

    /// Where a variable comes from.
    pub(super) fn origins(&self, pool: &Pool, variable: u32) -> impl Iterator<Item = Origin> {
        let also = self.made_of.get(&variable).into_iter().flatten().copied();
        also.chain([pool.variables[variable as usize].origin])
    }
}

impl Symbolic {
    /// Takes a truth value for granted: in a run, from here to its end; outside of one, in all runs
    /// until [`reset`](Self::reset).
    pub fn assume(&self, bit: Bit) {
        let search = &mut *self.search.borrow_mut();
        self.learn(search, bit, true);
        let holds = |values: &Values| {
            self.solver.borrow_mut().holds(&self.pool.borrow(), values, &search.conjuncts)
        };
        if !search.witness.as_ref().is_some_and(holds) {
            search.witness = None;
        }
        if !self.exploring.get() {
            search.assumptions.push(bit);
        }
    }

    /// Back to the beginning of a run.
    fn restart(&self, next: Pending) {
        let search = &mut *self.search.borrow_mut();
        let old = std::mem::take(search);
        search.pending = old.pending;
        search.unknown = old.unknown;
        search.assumptions = old.assumptions;
        (search.replay, search.witness) = (next.decisions, next.witness);
        for bit in search.assumptions.clone() {
            self.learn(search, bit, true);
        }
    }

    /// Adds a fact to the path, and to the conjuncts if `asserted`: what is implied by them need
    /// not burden the solver.
    fn learn(&self, search: &mut Search, bit: Bit, asserted: bool) {
        match search.fact(bit) {
            Some(true) => return,
            Some(false) => {
                search.infeasible = true;
                search.conjuncts.push(Bit::FALSE);
                return;
            }
            None => {}
        }
        search.facts.insert(bit.index(), !bit.negated());
        let parts = match self.pool.borrow().node(bit) {
            super::word::Node::And(a, b) if !bit.negated() => Some([a, b]),
            _ => None,
        };
        match parts {
            Some(parts) => parts.into_iter().for_each(|part| self.learn(search, part, asserted)),
            None if asserted => search.conjuncts.push(bit),
            None => {}
        }
    }

    /// Forgets assumptions, decisions and trouble; not terms, models and answers.
    pub fn reset(&self) {
        *self.search.borrow_mut() = Search::default();
        self.exploring.set(false);
    }

    /// Forgets how often the solver has given up: what is asked next is about something else.
    pub fn try_again(&self) {
        self.solver.borrow_mut().given_up = 0;
    }

    /// Why something is not known that had to be; what was explored says nothing then.
    #[must_use]
    pub fn unknown(&self) -> Option<String> {
        self.search.borrow().unknown.clone()
    }

    /// Whether a model of the path exists, and then the search has it.
    fn feasible(&self, search: &mut Search) -> bool {
        if search.infeasible || search.witness.is_some() {
            return !search.infeasible;
        }
        let pool = self.pool.borrow();
        match self.solver.borrow_mut().solve(&pool, &search.conjuncts, Bit::TRUE, None) {
            Answer::Satisfiable(values) => search.witness = Some(values),
            Answer::Unsatisfiable => search.infeasible = true,
            Answer::Unknown(why) => search.unknown = Some(why),
        }
        !search.infeasible
    }

    pub(super) fn decide_bit(&self, bit: Bit) -> bool {
        let search = &mut *self.search.borrow_mut();
        search.was_open = false;
        if let Some(fact) = search.fact(bit) {
            self.solver.borrow_mut().statistics.normal_form += 1;
            return fact;
        }
        let decision = match search.replay.get(search.decisions.len()) {
            Some(&told) => {
                search.diverged |= told.condition != bit;
                told
            }
            None => self.choose(search, bit),
        };
        search.was_open = !decision.implied;
        self.learn(search, bit.negate_if(!decision.taken), !decision.implied);
        search.decisions.push(decision);
        decision.taken
    }

    /// Which way to go where both may be possible; the other one is left for later.
    fn choose(&self, search: &mut Search, bit: Bit) -> Decision {
        let feasible = self.feasible(search);
        let pool = self.pool.borrow();
        let mut solver = self.solver.borrow_mut();
        // A path that cannot be goes one way only, and its result is dropped.
        let values = search.witness.clone().unwrap_or_default();
        let here = solver.scratch.under(&pool, &values).bit(bit);
        if !feasible {
            return Decision { condition: bit, taken: here, implied: true };
        }
        let other = bit.negate_if(here);
        let found = solver.solve(&pool, &search.conjuncts, other, search.witness.as_ref());
        let elsewhere = match found {
            Answer::Unsatisfiable => {
                return Decision { condition: bit, taken: here, implied: true };
            }
            Answer::Satisfiable(values) => Some(values),
            Answer::Unknown(why) => {
                search.unknown = Some(why);
                None
            }
        };
        let (yes, no) = match here {
            true => (search.witness.take(), elsewhere),
            false => (elsewhere, search.witness.take()),
        };
        search.witness = yes;
        let decision = |taken| Decision { condition: bit, taken, implied: false };
        let decisions = search.decisions.iter().copied().chain([decision(false)]).collect();
        search.pending.push(Pending { decisions, witness: no });
        decision(true)
    }

    /// Runs `run` once for each way that its decisions can go, the ways of `true` first, and
    /// `visit`s each result. Both may [`check`](Self::check) and decide, but not explore. Returns
    /// how many paths there are.
    ///
    /// # Errors
    ///
    /// Whatever would make the visits less than all paths.
    pub fn explore<T>(
        &self,
        run: impl FnMut(&Self) -> T,
        mut visit: impl FnMut(&Path, T),
    ) -> Result<Explored, ExploreError> {
        self.explore_until(run, |path, result| {
            visit(path, result);
            ControlFlow::Continue(())
        })
    }

    /// The same, until `visit` has seen enough.
    ///
    /// # Errors
    ///
    /// As [`explore`](Self::explore).
    pub fn explore_until<T>(
        &self,
        mut run: impl FnMut(&Self) -> T,
        mut visit: impl FnMut(&Path, T) -> ControlFlow<()>,
    ) -> Result<Explored, ExploreError> {
        {
            let search = &mut *self.search.borrow_mut();
            search.unknown = None;
            search.pending = vec![Pending::default()];
        }
        let explored = self.explore_pending(&mut run, &mut visit);
        self.restart(Pending::default());
        explored
    }

    fn explore_pending<T>(
        &self,
        run: &mut impl FnMut(&Self) -> T,
        visit: &mut impl FnMut(&Path, T) -> ControlFlow<()>,
    ) -> Result<Explored, ExploreError> {
        let mut explored = Explored::default();
        loop {
            let next = self.search.borrow_mut().pending.pop();
            let Some(next) = next else { break };
            if explored.visited + explored.pruned == MAX_PATHS {
                return Err(ExploreError::TooMany(MAX_PATHS));
            }
            self.restart(next);
            self.exploring.set(true);
            let result = run(self);
            let path = Path { decisions: self.search.borrow().decisions.clone() };
            let feasible = self.feasible(&mut self.search.borrow_mut());
            if feasible {
                explored.visited += 1;
                if visit(&path, result).is_break() {
                    self.exploring.set(false);
                    break;
                }
            } else {
                explored.pruned += 1;
            }
            self.exploring.set(false);
            let search = self.search.borrow();
            if search.diverged || search.decisions.len() < search.replay.len() {
                return Err(ExploreError::Diverged);
            }
            if let Some(why) = &search.unknown {
                return Err(ExploreError::Unknown(why.clone()));
            }
        }
        match explored.visited {
            0 => Err(ExploreError::Contradiction),
            _ => Ok(explored),
        }
    }

    /// Whether `goal` holds wherever the assumptions and the decisions so far do.
    #[must_use]
    pub fn check(&self, goal: Bit) -> Validity {
        let search = &mut *self.search.borrow_mut();
        if search.fact(goal) == Some(true) {
            self.solver.borrow_mut().statistics.normal_form += 1;
            return Validity::Holds { by: By::Normalisation };
        }
        if !self.feasible(search) {
            return Validity::Unknown("the path is not feasible".into());
        }
        let pool = self.pool.borrow();
        let mut solver = self.solver.borrow_mut();
        let witness = search.witness.as_ref();
        let refuted = witness.filter(|values| !solver.holds(&pool, values, &[goal])).map(Rc::clone);
        let answer = match refuted {
            Some(values) => {
                solver.statistics.model += 1;
                Answer::Satisfiable(values)
            }
            None => solver.solve(&pool, &search.conjuncts, goal.negate(), witness),
        };
        match answer {
            Answer::Unsatisfiable => Validity::Holds { by: By::Solver },
            Answer::Unknown(why) => Validity::Unknown(why),
            Answer::Satisfiable(values) => {
                Validity::Fails(model(&pool, &search.conjuncts, goal, &values))
            }
        }
    }

    /// A state in which `goal` fails, and in which as many variables as can be have the values that
    /// are wished for, the first ones first. `None` if no wish can be met.
    pub fn fails_near(&self, goal: Bit, wishes: &[(Rc<str>, u64)]) -> Option<Model> {
        let search = self.search.borrow();
        let pool = &mut *self.pool.borrow_mut();
        let mut solver = self.solver.borrow_mut();
        let mut conjuncts = search.conjuncts.clone();
        conjuncts.push(goal.negate());
        let mut found = None;
        for (name, value) in wishes {
            let Some(wish) = pool.variable_is(name, *value) else { continue };
            conjuncts.push(wish);
            match solver.solve(pool, &conjuncts, Bit::TRUE, None) {
                Answer::Satisfiable(values) => found = Some(values),
                Answer::Unsatisfiable | Answer::Unknown(_) => {
                    conjuncts.pop();
                }
            }
        }
        found.map(|values| model(pool, &conjuncts, goal, &values))
    }

    pub(super) fn last_was_open(&self) -> bool {
        self.search.borrow().was_open
    }

    /// The variable `unknown` comes from wherever these come from, too, for as long as the run
    /// lasts.
    pub(super) fn made_of(&self, unknown: Word, of: &[Word]) {
        let pool = self.pool.borrow();
        let search = self.search.borrow();
        let variables = of.iter().flat_map(|word| pool.variables_of(*word));
        let origins: BTreeSet<Origin> =
            variables.flat_map(|index| search.origins(&pool, index)).collect();
        drop((pool, search));
        self.comes_from(unknown, &origins.into_iter().collect::<Vec<_>>());
    }

    /// The same of what comes from these.
    pub(super) fn comes_from(&self, unknown: Word, origins: &[Origin]) {
        let origins: BTreeSet<Origin> = origins.iter().copied().collect();
        let support = self.pool.borrow().support(unknown);
        let search = &mut *self.search.borrow_mut();
        search.made_of.extend(support.iter().map(|index| (*index, origins.clone())));
    }

    /// The number of the next fresh variable of this name in this run.
    pub(super) fn fresh_name(&self, what: String) -> String {
        let fresh = &mut self.search.borrow_mut().fresh;
        let count = fresh.entry(what.clone()).or_default();
        *count += 1;
        format!("{what}#{}", *count - 1)
    }
}

/// What `values` say of the variables of a path and a goal.
fn model(pool: &Pool, conjuncts: &[Bit], goal: Bit, values: &Values) -> Model {
    let variables = pool.support_of_bits(conjuncts.iter().copied().chain([goal]));
    let value = |&index: &u32| {
        let value = values.get(index as usize).copied().unwrap_or_default();
        (Rc::clone(&pool.variables[index as usize].name), value)
    };
    variables.iter().map(value).collect()
}
