//! Whether truth values can be true together: known answers first, then models, then the solver.
//!
//! No verdict rests on what this module believes. "Satisfiable" is believed after an evaluation of
//! every conjunct under the model; "unsatisfiable" is ordeal's, which checks its own proof.

use std::collections::{HashSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ordeal::{BoolTerm, BvTerm, CheckResult, Sort};

use foldhash::HashMap;

use super::Bit;
use super::eval::{Guess, Scratch, Values};
use super::word::Node;
use super::word::{Atom, Literal, Pool, Slice, slices};

/// After so many conflicts ordeal gives up. Queries of real code need a few dozen.
const CONFLICTS: u64 = 5_000;
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
    /// By ordeal.
    pub solver: u64,
    /// ordeal's certificates that were checked once more.
    pub rechecked: u64,
    /// The time that ordeal took, translation included.
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

    /// What ordeal says; with the feature `z3`, if Z3 says the same.
    pub(super) fn ask(&mut self, pool: &Pool, conjuncts: &[Bit]) -> Answer {
        let answer = self.ask_ordeal(pool, conjuncts);
        #[cfg(feature = "z3")]
        {
            let second = super::second::satisfiable(pool, conjuncts);
            let agree = match &answer {
                Answer::Unsatisfiable => second == Some(false),
                Answer::Satisfiable(_) => second == Some(true),
                Answer::Unknown(_) => true,
            };
            if !agree {
                return Answer::Unknown(format!("ordeal: {answer:?}, Z3: {second:?}"));
            }
        }
        answer
    }

    fn ask_ordeal(&mut self, pool: &Pool, conjuncts: &[Bit]) -> Answer {
        if self.given_up >= GIVE_UPS {
            let why = format!("ordeal was not asked: it has given up {GIVE_UPS} times before");
            return Answer::Unknown(why);
        }
        let start = Instant::now();
        let mut solver = ordeal::Solver::new();
        for term in Lowering::new(pool, conjuncts).finish(conjuncts) {
            solver.assert(term);
        }
        let result = solver.check_with_limit(CONFLICTS);
        let took = start.elapsed();
        self.statistics.solver += 1;
        self.statistics.solver_time += took;
        self.statistics.slowest = self.statistics.slowest.max(took);
        match result {
            CheckResult::Unsat(certificate) => {
                if self.recheck {
                    if let Err(error) = certificate.recheck() {
                        return Answer::Unknown(format!(
                            "ordeal's certificate is invalid: {error}"
                        ));
                    }
                    self.statistics.rechecked += 1;
                }
                Answer::Unsatisfiable
            }
            CheckResult::Sat(model) => {
                let mut values = vec![0; pool.variables.len()];
                for (name, value) in model.assignments {
                    let index = name.strip_prefix('v').and_then(|index| index.parse().ok());
                    if let Some(to) = index.and_then(|index: usize| values.get_mut(index)) {
                        *to = value as u64;
                    }
                }
                if self.holds(pool, &values, conjuncts) {
                    Answer::Satisfiable(self.keep(pool, values))
                } else {
                    Answer::Unknown("ordeal's model is no model".into())
                }
            }
            CheckResult::Unknown => {
                self.given_up += 1;
                Answer::Unknown(format!("ordeal gave up after {CONFLICTS} conflicts"))
            }
        }
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

/// The translation to ordeal's terms. Those are trees; what is used twice becomes a variable and an
/// equation that defines it.
struct Lowering<'a> {
    pool: &'a Pool,
    atom_uses: HashMap<u32, u32>,
    node_uses: HashMap<usize, u32>,
    defined: HashSet<String>,
    equations: Vec<BoolTerm>,
}

impl<'a> Lowering<'a> {
    fn new(pool: &'a Pool, conjuncts: &[Bit]) -> Self {
        let mut lowering = Self {
            pool,
            atom_uses: HashMap::default(),
            node_uses: HashMap::default(),
            defined: HashSet::new(),
            equations: Vec::new(),
        };
        for &bit in conjuncts {
            lowering.count(bit);
        }
        lowering
    }

    fn finish(mut self, conjuncts: &[Bit]) -> Vec<BoolTerm> {
        let mut terms: Vec<_> = conjuncts.iter().map(|&bit| self.bit(bit)).collect();
        terms.append(&mut self.equations);
        terms
    }

    fn count(&mut self, bit: Bit) {
        let uses = self.node_uses.entry(bit.index()).or_default();
        *uses += 1;
        if *uses > 1 {
            return;
        }
        match self.pool.node(bit) {
            Node::True => {}
            Node::Of(literal) => self.count_literals(&[literal]),
            Node::Eq(a, b) => {
                let (a, b) = self.pool.sides(a, b);
                self.count_literals(&a);
                self.count_literals(&b);
            }
            Node::Lt(a, b) => {
                self.count_literals(&self.pool.bits(a));
                self.count_literals(&self.pool.bits(b));
            }
            Node::And(a, b) => {
                self.count(a);
                self.count(b);
            }
        }
    }

    fn count_literals(&mut self, literals: &[Literal]) {
        for slice in slices(literals) {
            let (Slice::Part { first: literal, .. } | Slice::Fill { literal, .. }) = slice else {
                continue;
            };
            let Some(atom) = literal.atom() else { continue };
            let uses = self.atom_uses.entry(atom).or_default();
            *uses += 1;
            if *uses > 1 {
                continue;
            }
            match self.pool.atoms[atom as usize].atom {
                Atom::Variable(_) => {}
                Atom::Sum(a, _) => self.count_literals(&self.pool.bits(a)),
                Atom::Add(a, b) | Atom::Sub(a, b) | Atom::And(a, b) | Atom::Xor(a, b) => {
                    self.count_literals(&self.pool.bits(a));
                    self.count_literals(&self.pool.bits(b));
                }
                Atom::Select(condition, a, b) => {
                    self.count(condition);
                    self.count_literals(&self.pool.bits(a));
                    self.count_literals(&self.pool.bits(b));
                }
                Atom::Truth(bit) => self.count(bit),
            }
        }
    }

    fn bit(&mut self, bit: Bit) -> BoolTerm {
        let shared = self.node_uses.get(&bit.index()).is_some_and(|&uses| uses > 1);
        let term = match self.pool.node(bit) {
            Node::True => eq(constant(0, 1), constant(0, 1)),
            Node::Of(literal) => eq(self.literals(&[literal]), constant(1, 1)),
            _ if shared => {
                let name = format!("n{}", bit.index());
                if self.defined.insert(name.clone()) {
                    let plain = bit.negate_if(bit.negated());
                    let term = number(self.plain(plain));
                    self.equations.push(eq(variable(name.clone(), 1), term));
                }
                eq(variable(name, 1), constant(1, 1))
            }
            _ => self.plain(bit),
        };
        if bit.negated() { BoolTerm::Not(Box::new(term)) } else { term }
    }

    /// A node, without its negation.
    fn plain(&mut self, bit: Bit) -> BoolTerm {
        match self.pool.node(bit) {
            Node::Eq(a, b) => {
                let (a, b) = self.pool.sides(a, b);
                eq(self.literals(&a), self.literals(&b))
            }
            Node::Lt(a, b) => {
                let (a, b) = (self.pool.bits(a), self.pool.bits(b));
                let zeros = a.iter().zip(&b).rev();
                let zeros = zeros.take_while(|pair| pair == &(&Literal::ZERO, &Literal::ZERO));
                let width = 64 - zeros.count();
                let (a, b) = (self.literals(&a[..width]), self.literals(&b[..width]));
                BoolTerm::Ult(Box::new(a), Box::new(b))
            }
            Node::And(a, b) => BoolTerm::And(Box::new(self.bit(a)), Box::new(self.bit(b))),
            Node::True | Node::Of(_) => self.bit(bit.negate_if(bit.negated())),
        }
    }

    fn literals(&mut self, literals: &[Literal]) -> BvTerm {
        let parts = slices(literals).into_iter().map(|slice| match slice {
            Slice::Const { width, value } => constant(value, width),
            Slice::Part { width, first } => self.part(first, width),
            Slice::Fill { width, literal } => {
                BvTerm::SignExt { by: width - 1, arg: Box::new(self.part(literal, 1)) }
            }
        });
        let concat = |low, high| BvTerm::Concat(Box::new(high), Box::new(low));
        parts.reduce(concat).unwrap_or_else(|| constant(0, 1))
    }

    /// So many bits of an atom, from a literal up.
    fn part(&mut self, first: Literal, width: u32) -> BvTerm {
        let Some(atom) = first.atom() else { return constant(first.inverted().into(), width) };
        let entry = &self.pool.atoms[atom as usize];
        let shared = self.atom_uses.get(&atom).is_some_and(|&uses| uses > 1);
        let term = match entry.atom {
            Atom::Variable(index) => {
                extract(variable(format!("v{index}"), entry.width), entry.width, first, width)
            }
            _ if shared => {
                let name = format!("a{atom}");
                if self.defined.insert(name.clone()) {
                    let term = self.operation(entry.atom, 0, entry.width);
                    self.equations.push(eq(variable(name.clone(), entry.width), term));
                }
                extract(variable(name, entry.width), entry.width, first, width)
            }
            Atom::Sum(..) | Atom::Add(..) | Atom::Sub(..) => {
                // Higher bits do not matter.
                let end = first.index() + width;
                extract(self.operation(entry.atom, 0, end), end, first, width)
            }
            _ => self.operation(entry.atom, first.index(), width),
        };
        if first.inverted() { BvTerm::Not(Box::new(term)) } else { term }
    }

    /// Some bits of an operation's result: in a sum, from bit 0 up.
    fn operation(&mut self, atom: Atom, low: u32, width: u32) -> BvTerm {
        let range = low as usize..(low + width) as usize;
        let pool = self.pool;
        let mut side = |word| Box::new(self.literals(&pool.bits(word)[range.clone()]));
        match atom {
            Atom::Variable(index) => variable(format!("v{index}"), width),
            Atom::Sum(a, c) => BvTerm::Add(side(a), Box::new(constant(c, width))),
            Atom::Add(a, b) => BvTerm::Add(side(a), side(b)),
            Atom::Sub(a, b) => BvTerm::Sub(side(a), side(b)),
            Atom::And(a, b) => BvTerm::And(side(a), side(b)),
            Atom::Xor(a, b) => BvTerm::Xor(side(a), side(b)),
            Atom::Select(condition, a, b) => {
                let (then_, else_) = (side(a), side(b));
                BvTerm::Ite { cond: Box::new(self.bit(condition)), then_, else_ }
            }
            Atom::Truth(bit) => number(self.bit(bit)),
        }
    }
}

fn constant(value: u64, width: u32) -> BvTerm {
    let value = u128::from(value & super::word::low_bits(width));
    BvTerm::Const { value, sort: Sort::new(width) }
}

fn variable(name: String, width: u32) -> BvTerm {
    BvTerm::Var { name, sort: Sort::new(width) }
}

fn eq(a: BvTerm, b: BvTerm) -> BoolTerm {
    BoolTerm::Eq(Box::new(a), Box::new(b))
}

/// A truth value as a number of one bit.
fn number(truth: BoolTerm) -> BvTerm {
    let (then_, else_) = (Box::new(constant(1, 1)), Box::new(constant(0, 1)));
    BvTerm::Ite { cond: Box::new(truth), then_, else_ }
}

/// So many bits of a term of `of` bits, from the index of `first` up.
fn extract(term: BvTerm, of: u32, first: Literal, width: u32) -> BvTerm {
    let lo = first.index();
    if width == of {
        return term;
    }
    BvTerm::Extract { hi: lo + width - 1, lo, arg: Box::new(term) }
}
