//! A second opinion: Z3, from terms to verdict by another way than [`super::solve`].

use std::collections::HashMap;

use z3::SatResult;
use z3::ast::{BV, Bool};

use super::question::Question;
use super::word::Node;
use super::word::{Atom, Literal, Slice};
use super::{Bit, Word};

/// The answer; nothing, if Z3 gives up.
pub(super) fn satisfiable(question: &Question) -> Option<bool> {
    let solver = z3::Solver::new();
    let mut translation = Translation { question, atoms: HashMap::new() };
    for &bit in question.asked() {
        solver.assert(translation.bit(bit));
    }
    match solver.check() {
        SatResult::Sat => Some(true),
        SatResult::Unsat => Some(false),
        SatResult::Unknown => None,
    }
}

struct Translation<'a> {
    question: &'a Question,
    /// Of 64 bits each.
    atoms: HashMap<u32, BV>,
}

impl Translation<'_> {
    fn bit(&mut self, bit: Bit) -> Bool {
        let plain = match self.question.node(bit) {
            Node::True => Bool::from_bool(true),
            Node::Of(literal) => self.literal(literal).eq(BV::from_u64(1, 1)),
            Node::Eq(a, b) => self.word(a).eq(self.word(b)),
            Node::Lt(a, b) => self.word(a).bvult(self.word(b)),
            Node::And(a, b) => Bool::and(&[self.bit(a), self.bit(b)]),
        };
        if bit.negated() { plain.not() } else { plain }
    }

    /// One bit.
    fn literal(&mut self, literal: Literal) -> BV {
        let Some(atom) = literal.atom() else { return BV::from_u64(literal.inverted().into(), 1) };
        let bit = self.atom(atom).extract(literal.index(), literal.index());
        if literal.inverted() { bit.bvnot() } else { bit }
    }

    fn word(&mut self, word: Word) -> BV {
        let question = self.question;
        let parts = question.slices(word).iter().map(|&slice| match slice {
            Slice::Const { width, value } => BV::from_u64(value, width),
            Slice::Fill { width, literal } => self.literal(literal).sign_ext(width - 1),
            Slice::Part { width, first } => {
                let low = first.index();
                let atom = first.atom().map(|atom| self.atom(atom));
                let atom = atom.unwrap_or_else(|| BV::from_u64(0, 64));
                let part = atom.extract(low + width - 1, low);
                if first.inverted() { part.bvnot() } else { part }
            }
        });
        parts.reduce(|low, high| high.concat(low)).unwrap_or_else(|| BV::from_u64(0, 64))
    }

    fn atom(&mut self, id: u32) -> BV {
        if let Some(term) = self.atoms.get(&id) {
            return term.clone();
        }
        let (atom, width) = self.question.atom(id);
        let term = match atom {
            Atom::Variable(index) => BV::new_const(index, width).zero_ext(64 - width),
            Atom::Sum(a, constant) => self.word(a).bvadd(BV::from_u64(constant, 64)),
            Atom::Add(a, b) => self.word(a).bvadd(self.word(b)),
            Atom::Sub(a, b) => self.word(a).bvsub(self.word(b)),
            Atom::And(a, b) => self.word(a).bvand(self.word(b)),
            Atom::Xor(a, b) => self.word(a).bvxor(self.word(b)),
            Atom::Select(condition, a, b) => self.bit(condition).ite(&self.word(a), &self.word(b)),
            Atom::Truth(bit) => self.bit(bit).ite(&BV::from_u64(1, 64), &BV::from_u64(0, 64)),
        };
        self.atoms.insert(id, term.clone());
        term
    }
}
