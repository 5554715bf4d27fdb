//! Asking ordeal: a question in its terms, and its answer.

use std::collections::HashSet;

use foldhash::HashMap;
use ordeal::{BoolTerm, BvTerm, CheckResult, Sort};

use super::Bit;
use super::question::Question;
use super::word::{Atom, Literal, Node, Slice, low_bits, slices};

/// After so many conflicts ordeal gives up. Queries of real code need a few dozen.
const CONFLICTS: u64 = 5_000;

/// What ordeal says of a question.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// ordeal has checked its own proof of it.
    Unsatisfiable,
    /// By the numbers of the question's variables.
    Satisfiable(Box<[u64]>),
    /// It found no answer, or its certificate is invalid.
    Unknown(String),
}

/// Asks ordeal, and checks its certificate once more than it does itself if `recheck`.
pub(super) fn ask(question: &Question, recheck: bool) -> Verdict {
    let mut solver = ordeal::Solver::new();
    for term in Lowering::new(question).finish() {
        solver.assert(term);
    }
    match solver.check_with_limit(CONFLICTS) {
        CheckResult::Unsat(certificate) => match recheck.then(|| certificate.recheck()) {
            Some(Err(error)) => {
                Verdict::Unknown(format!("ordeal's certificate is invalid: {error}"))
            }
            Some(Ok(_)) | None => Verdict::Unsatisfiable,
        },
        CheckResult::Sat(model) => {
            let mut values = vec![0; question.variables()];
            for (name, value) in model.assignments {
                let index = name.strip_prefix('v').and_then(|index| index.parse().ok());
                if let Some(to) = index.and_then(|index: usize| values.get_mut(index)) {
                    *to = value as u64;
                }
            }
            Verdict::Satisfiable(values.into())
        }
        CheckResult::Unknown => {
            Verdict::Unknown(format!("ordeal gave up after {CONFLICTS} conflicts"))
        }
    }
}

/// The translation to ordeal's terms. Those are trees; what is used twice becomes a variable and an
/// equation that defines it.
struct Lowering<'a> {
    question: &'a Question,
    atom_uses: HashMap<u32, u32>,
    node_uses: HashMap<usize, u32>,
    defined: HashSet<String>,
    equations: Vec<BoolTerm>,
}

impl<'a> Lowering<'a> {
    fn new(question: &'a Question) -> Self {
        let mut lowering = Self {
            question,
            atom_uses: HashMap::default(),
            node_uses: HashMap::default(),
            defined: HashSet::new(),
            equations: Vec::new(),
        };
        for &bit in question.asked() {
            lowering.count(bit);
        }
        lowering
    }

    fn finish(mut self) -> Vec<BoolTerm> {
        let mut terms: Vec<_> = self.question.asked().iter().map(|&bit| self.bit(bit)).collect();
        terms.append(&mut self.equations);
        terms
    }

    fn count(&mut self, bit: Bit) {
        let uses = self.node_uses.entry(bit.index()).or_default();
        *uses += 1;
        if *uses > 1 {
            return;
        }
        match self.question.node(bit) {
            Node::True => {}
            Node::Of(literal) => self.count_literals(&[literal]),
            Node::Eq(a, b) => {
                let (a, b) = self.question.sides(a, b);
                self.count_literals(&a);
                self.count_literals(&b);
            }
            Node::Lt(a, b) => {
                self.count_literals(&self.question.bits(a));
                self.count_literals(&self.question.bits(b));
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
            match self.question.atom(atom).0 {
                Atom::Variable(_) => {}
                Atom::Sum(a, _) => self.count_literals(&self.question.bits(a)),
                Atom::Add(a, b) | Atom::Sub(a, b) | Atom::And(a, b) | Atom::Xor(a, b) => {
                    self.count_literals(&self.question.bits(a));
                    self.count_literals(&self.question.bits(b));
                }
                Atom::Select(condition, a, b) => {
                    self.count(condition);
                    self.count_literals(&self.question.bits(a));
                    self.count_literals(&self.question.bits(b));
                }
                Atom::Truth(bit) => self.count(bit),
            }
        }
    }

    fn bit(&mut self, bit: Bit) -> BoolTerm {
        let shared = self.node_uses.get(&bit.index()).is_some_and(|&uses| uses > 1);
        let term = match self.question.node(bit) {
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
        match self.question.node(bit) {
            Node::Eq(a, b) => {
                let (a, b) = self.question.sides(a, b);
                eq(self.literals(&a), self.literals(&b))
            }
            Node::Lt(a, b) => {
                let (a, b) = (self.question.bits(a), self.question.bits(b));
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
        let (operation, atom_width) = self.question.atom(atom);
        let shared = self.atom_uses.get(&atom).is_some_and(|&uses| uses > 1);
        let term = match operation {
            Atom::Variable(index) => {
                extract(variable(format!("v{index}"), atom_width), atom_width, first, width)
            }
            _ if shared => {
                let name = format!("a{atom}");
                if self.defined.insert(name.clone()) {
                    let term = self.operation(operation, 0, atom_width);
                    self.equations.push(eq(variable(name.clone(), atom_width), term));
                }
                extract(variable(name, atom_width), atom_width, first, width)
            }
            Atom::Sum(..) | Atom::Add(..) | Atom::Sub(..) => {
                // Higher bits do not matter.
                let end = first.index() + width;
                extract(self.operation(operation, 0, end), end, first, width)
            }
            _ => self.operation(operation, first.index(), width),
        };
        if first.inverted() { BvTerm::Not(Box::new(term)) } else { term }
    }

    /// Some bits of an operation's result: in a sum, from bit 0 up.
    fn operation(&mut self, atom: Atom, low: u32, width: u32) -> BvTerm {
        let range = low as usize..(low + width) as usize;
        let question = self.question;
        let mut side = |word| Box::new(self.literals(&question.bits(word)[range.clone()]));
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
    let value = u128::from(value & low_bits(width));
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
