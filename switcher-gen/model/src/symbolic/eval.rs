//! What terms are under an assignment of numbers to their variables.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use super::word::Node;
use super::word::{Atom, Literal, Pool, Slice, low_bits};
use super::{Bit, Word};

/// Numbers for variables: a counterexample. Variables that it does not name are zero.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Model {
    values: BTreeMap<Rc<str>, u64>,
}

impl Model {
    /// The number of the variable of this name.
    #[must_use]
    pub fn value(&self, name: &str) -> u64 {
        self.values.get(name).copied().unwrap_or_default()
    }

    /// The same if there may be several of this name: of the one of so many bits.
    #[must_use]
    pub fn value_of_width(&self, name: &str, bits: u32) -> u64 {
        let of_width = self.values.get(&*format!("{name}/{bits}"));
        of_width.copied().unwrap_or_else(|| self.value(name))
    }

    /// All numbers, by the names of their variables.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.values.iter().map(|(name, value)| (&**name, *value))
    }
}

impl<N: Into<Rc<str>>> FromIterator<(N, u64)> for Model {
    fn from_iter<I: IntoIterator<Item = (N, u64)>>(values: I) -> Self {
        Self { values: values.into_iter().map(|(name, value)| (name.into(), value)).collect() }
    }
}

/// `name = value, name = value`.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{name} = {value:#x}")?;
        }
        Ok(())
    }
}

/// A model as the solver keeps it: by the variables' indices, zero beyond the end.
pub(super) type Values = Rc<[u64]>;

/// What is already computed: valid for atoms and nodes that carry the present epoch, so that to
/// forget everything costs nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    epoch: u64,
    atoms: Vec<(u64, u64)>,
    nodes: Vec<(u64, bool)>,
}

impl Scratch {
    /// To evaluate under `values`.
    pub(super) fn under<'a>(&'a mut self, pool: &'a Pool, values: &'a [u64]) -> Evaluation<'a> {
        self.epoch += 1;
        self.atoms.resize(pool.atoms.len(), (0, 0));
        self.nodes.resize(pool.nodes.len(), (0, false));
        Evaluation { pool, values, scratch: self }
    }
}

/// Terms under one assignment; each term is computed once.
pub(super) struct Evaluation<'a> {
    pool: &'a Pool,
    values: &'a [u64],
    scratch: &'a mut Scratch,
}

impl Evaluation<'_> {
    pub(super) fn word(&mut self, word: Word) -> u64 {
        let (mut value, mut at) = (0, 0);
        let pool = self.pool;
        for &slice in pool.slices(word) {
            let bits = match slice {
                Slice::Const { value, .. } => value,
                Slice::Part { width, first } => {
                    let flip = if first.inverted() { u64::MAX } else { 0 };
                    let atom = first.atom().map_or(0, |atom| self.atom(atom));
                    (atom >> first.index() ^ flip) & low_bits(width)
                }
                Slice::Fill { width, literal } => {
                    if self.literal(literal) {
                        low_bits(width)
                    } else {
                        0
                    }
                }
            };
            value |= bits << at;
            at += slice.width();
        }
        value
    }

    pub(super) fn literal(&mut self, literal: Literal) -> bool {
        let bit = literal.atom().is_some_and(|atom| self.atom(atom) >> literal.index() & 1 != 0);
        bit != literal.inverted()
    }

    fn atom(&mut self, id: u32) -> u64 {
        let (epoch, value) = self.scratch.atoms[id as usize];
        if epoch == self.scratch.epoch {
            return value;
        }
        let pool = self.pool;
        let value = match pool.atoms[id as usize].atom {
            Atom::Variable(index) => self.values.get(index as usize).copied().unwrap_or_default(),
            Atom::Sum(base, constant) => self.word(base).wrapping_add(constant),
            Atom::Add(a, b) => self.word(a).wrapping_add(self.word(b)),
            Atom::Sub(a, b) => self.word(a).wrapping_sub(self.word(b)),
            Atom::And(a, b) => self.word(a) & self.word(b),
            Atom::Xor(a, b) => self.word(a) ^ self.word(b),
            Atom::Select(condition, a, b) => {
                let arm = if self.bit(condition) { a } else { b };
                self.word(arm)
            }
            Atom::Truth(bit) => self.bit(bit).into(),
        };
        self.scratch.atoms[id as usize] = (self.scratch.epoch, value);
        value
    }

    pub(super) fn bit(&mut self, bit: Bit) -> bool {
        let Some(&(epoch, value)) = self.scratch.nodes.get(bit.index()) else {
            return !bit.negated();
        };
        if epoch == self.scratch.epoch {
            return value != bit.negated();
        }
        let value = match self.pool.node(bit) {
            Node::True => true,
            Node::Of(literal) => self.literal(literal),
            Node::Eq(a, b) => self.word(a) == self.word(b),
            Node::Lt(a, b) => self.word(a) < self.word(b),
            Node::And(a, b) => self.bit(a) && self.bit(b),
        };
        self.scratch.nodes[bit.index()] = (self.scratch.epoch, value);
        value != bit.negated()
    }
}

/// Numbers that are changed until they are hoped to be a model.
pub(super) struct Guess<'a> {
    pool: &'a Pool,
    scratch: &'a mut Scratch,
    pub(super) values: Vec<u64>,
    /// How many terms may still be looked at. Each leads to others, and there can be more ways
    /// through a deep term than anybody can go.
    left: u32,
}

impl<'a> Guess<'a> {
    /// What is not found within this, the solver finds sooner.
    const STEPS: u32 = 4096;

    /// To begin with `values`.
    pub(super) const fn new(pool: &'a Pool, scratch: &'a mut Scratch, values: Vec<u64>) -> Self {
        Self { pool, scratch, values, left: Self::STEPS }
    }

    fn under(&mut self) -> Evaluation<'_> {
        self.scratch.under(self.pool, &self.values)
    }

    /// Whether there is one term more to be looked at.
    const fn goes_on(&mut self) -> bool {
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }

    /// Changes variables so that `bit` becomes `wanted`, where it can see how: a guess, which may
    /// fail or undo another one. Whoever uses it evaluates afterwards.
    pub(super) fn force(&mut self, bit: Bit, wanted: bool) {
        if !self.goes_on() || self.under().bit(bit) == wanted {
            return;
        }
        let pool = self.pool;
        match pool.node(bit) {
            Node::True => {}
            Node::Of(literal) => {
                self.set(literal, wanted != bit.negated());
            }
            Node::And(a, b) if wanted != bit.negated() => {
                self.force(a, true);
                self.force(b, true);
            }
            Node::And(a, b) => {
                self.force(a, false);
                if self.under().bit(bit) != wanted {
                    self.force(b, false);
                }
            }
            Node::Eq(a, b) => {
                for (a, b) in pool.bits(a).into_iter().zip(pool.bits(b)) {
                    let mut now = self.under();
                    let (left, right) = (now.literal(a), now.literal(b));
                    if wanted == bit.negated() {
                        // To be unequal, one bit is enough.
                        if self.set(b, !left) {
                            return;
                        }
                    } else if left != right && !self.set(b, left) {
                        self.set(a, right);
                    }
                }
            }
            Node::Lt(a, b) => {
                let less = wanted != bit.negated();
                for (a, b) in pool.bits(a).into_iter().zip(pool.bits(b)) {
                    self.set(a, !less);
                    self.set(b, less);
                }
            }
        }
    }

    /// Changes variables so that a literal becomes `wanted`; whether that succeeded.
    fn set(&mut self, literal: Literal, wanted: bool) -> bool {
        let Some(atom) = literal.atom() else { return literal.inverted() == wanted };
        if !self.goes_on() {
            return false;
        }
        let (at, plain) = (literal.index(), wanted != literal.inverted());
        let pool = self.pool;
        match pool.atoms[atom as usize].atom {
            Atom::Variable(index) => {
                let index = index as usize;
                if self.values.len() <= index {
                    self.values.resize(index + 1, 0);
                }
                let value = &mut self.values[index];
                *value = *value & !(1 << at) | u64::from(plain) << at;
                return true;
            }
            Atom::And(a, b) => {
                let set_a = self.set(pool.bit_of(a, at), plain);
                if plain || !set_a {
                    self.set(pool.bit_of(b, at), plain);
                }
            }
            Atom::Xor(a, b) => {
                let other = self.under().literal(pool.bit_of(b, at));
                self.set(pool.bit_of(a, at), plain != other);
            }
            Atom::Select(condition, a, b) => {
                let arm = if self.under().bit(condition) { a } else { b };
                self.set(pool.bit_of(arm, at), plain);
            }
            Atom::Truth(bit) => self.force(bit, plain),
            // Carries: left to the solver.
            Atom::Sum(..) | Atom::Add(..) | Atom::Sub(..) => return false,
        }
        self.under().literal(literal) == wanted
    }
}
