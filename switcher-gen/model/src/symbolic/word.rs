//! Words in normal form: two words that this module can see to be equal are one handle.
//!
//! A word is 64 [`Literal`]s: each is a constant, or one bit of an [`Atom`] (a variable, or the
//! result of an operation that nothing simplifies), inverted or not. Shifts, masks, constants and
//! the bytes of memory only move literals around, so they cost no atoms, and what is moved forth
//! and back is what it was. An operation of bits makes an atom of *all* the bits of its operands,
//! whichever of them are needed: `(x & y) >> 3` and `(x >> 3) & (y >> 3)` are bits of one atom.

use foldhash::HashMap;
use std::rc::Rc;

use super::super::domain::Origin;
use super::lists::{List, Lists};
use super::{Bit, Word};

/// A constant bit, or one bit of an atom, possibly inverted: `(atom + 1) << 7 | index << 1 |
/// inverted`; 0 and 1 are the constants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Literal(u32);

impl Literal {
    pub(super) const ZERO: Self = Self(0);
    pub(super) const ONE: Self = Self(1);

    pub(super) fn new(atom: u32, index: u32) -> Self {
        Self((atom + 1) << 7 | index << 1)
    }
    pub(super) fn from_bool(value: bool) -> Self {
        Self(value.into())
    }
    pub(super) fn constant(self) -> Option<bool> {
        (self.0 < 2).then_some(self.0 == 1)
    }
    /// The atom, if the literal is no constant.
    pub(super) fn atom(self) -> Option<u32> {
        (self.0 >> 7).checked_sub(1)
    }
    pub(super) fn index(self) -> u32 {
        self.0 >> 1 & 63
    }
    pub(super) fn inverted(self) -> bool {
        self.0 & 1 != 0
    }
    pub(super) fn invert_if(self, condition: bool) -> Self {
        Self(self.0 ^ u32::from(condition))
    }
    pub(super) fn invert(self) -> Self {
        self.invert_if(true)
    }
    pub(super) fn plain(self) -> Self {
        self.invert_if(self.inverted())
    }
    /// The bit of the same atom that is `by` above.
    fn above(self, by: u32) -> Self {
        Self(self.0 + 2 * by)
    }
    /// Whether this is the bit above `other` in the same atom.
    fn follows(self, other: Self) -> bool {
        other.atom().is_some() && self.index() > 0 && self.0 == other.0 + 2
    }
}

pub(super) type Bits = [Literal; 64];

/// Consecutive literals of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Slice {
    Const {
        width: u32,
        value: u64,
    },
    /// Consecutive bits of an atom, from `first` up.
    Part {
        width: u32,
        first: Literal,
    },
    /// One bit again and again: what an arithmetic shift makes.
    Fill {
        width: u32,
        literal: Literal,
    },
}

impl Slice {
    pub(super) fn width(self) -> u32 {
        match self {
            Self::Const { width, .. } | Self::Part { width, .. } | Self::Fill { width, .. } => {
                width
            }
        }
    }

    fn literal(self, index: u32) -> Literal {
        match self {
            Self::Const { value, .. } => Literal::from_bool(value >> index & 1 != 0),
            Self::Part { first, .. } => first.above(index),
            Self::Fill { literal, .. } => literal,
        }
    }
}

/// The slices of some literals, each as wide as can be: equal literals have equal slices.
pub(super) fn slices(literals: &[Literal]) -> Vec<Slice> {
    fn run(rest: &[Literal], same: impl Fn(usize) -> bool) -> usize {
        (1..rest.len()).take_while(|&i| same(i)).count() + 1
    }
    let mut slices = Vec::with_capacity(8);
    let mut at = 0;
    while let Some(&first) = literals.get(at) {
        let rest = &literals[at..];
        let width = if first.constant().is_some() {
            let width = run(rest, |i| rest[i].constant().is_some());
            let ones = (0..width).filter(|&i| rest[i] == Literal::ONE);
            let value = ones.fold(0, |value, i| value | 1 << i);
            slices.push(Slice::Const { width: width as u32, value });
            width
        } else {
            let fill = run(rest, |i| rest[i] == first);
            let part = run(rest, |i| rest[i].follows(rest[i - 1]));
            slices.push(match fill {
                1 => Slice::Part { width: part as u32, first },
                _ => Slice::Fill { width: fill as u32, literal: first },
            });
            fill.max(part)
        };
        at += width;
    }
    slices
}

/// The literals of some slices, zeros above.
pub(super) fn bits(slices: &[Slice]) -> Bits {
    let mut bits = [Literal::ZERO; 64];
    let mut at = bits.iter_mut();
    for &slice in slices {
        for (i, bit) in (0..slice.width()).zip(&mut at) {
            *bit = slice.literal(i);
        }
    }
    bits
}

/// The sides of [`Node::Eq`], as few bits as there are: constants are put together again.
pub(super) fn sides(a: &Bits, b: &Bits) -> (Vec<Literal>, Vec<Literal>) {
    let pairs = a.iter().copied().zip(b.iter().copied());
    let pairs = pairs.take_while(|pair| pair.1 != Literal::ZERO);
    let tidy = |(a, b): (Literal, Literal)| match a {
        Literal::ZERO => (b.plain(), Literal::from_bool(b.inverted())),
        _ => (a, b),
    };
    pairs.map(tidy).unzip()
}

/// Mask of the low `width` bits, `width` being at most 64.
pub(super) fn low_bits(width: u32) -> u64 {
    u64::MAX.checked_shr(64 - width).unwrap_or(0)
}

/// What literals are bits of. Words in an atom are operands from its bit 0 up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Atom {
    /// Index of a [`Variable`].
    Variable(u32),
    /// Plus a constant. The word is no sum of this kind itself, and has no constant one bits; where
    /// its lowest bits are zero, so are the constant's: they are constants beside the atom.
    Sum(Word, u64),
    Add(Word, Word),
    Sub(Word, Word),
    /// There is no `Or`: it is an inverted `And` of inverted operands.
    And(Word, Word),
    Xor(Word, Word),
    Select(Bit, Word, Word),
    /// A truth value as a number of one bit.
    Truth(Bit),
}

/// An atom, and what is worth knowing of it.
#[derive(Debug)]
pub(super) struct AtomEntry {
    pub(super) atom: Atom,
    pub(super) width: u32,
    /// The variables that it depends on, sorted.
    pub(super) support: List,
}

/// An unknown.
#[derive(Debug)]
pub(super) struct Variable {
    pub(super) name: Rc<str>,
    pub(super) width: u32,
    pub(super) origin: Origin,
}

/// What a truth value says, before its negation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Node {
    True,
    /// A bit of an atom, not inverted.
    Of(Literal),
    /// The words are made up for the comparison: see [`Pool::eq`].
    Eq(Word, Word),
    /// Unsigned.
    Lt(Word, Word),
    /// There is no `Or`: it is a negated `And` of negated operands.
    And(Bit, Bit),
}

/// Everything that handles refer to.
#[derive(Debug, Default)]
pub(super) struct Pool {
    words: Lists<Slice>,
    /// Sorted indices of variables: what words and truth values depend on.
    pub(super) supports: Lists<u32>,
    pub(super) atoms: Vec<AtomEntry>,
    atom_ids: HashMap<Atom, u32>,
    pub(super) variables: Vec<Variable>,
    variable_ids: HashMap<(Rc<str>, u32), Word>,
    pub(super) nodes: Vec<(Node, List)>,
    pub(super) node_ids: HashMap<Node, u32>,
}

impl Pool {
    /// How many terms there are.
    pub(super) fn size(&self) -> usize {
        self.words.len() + self.atoms.len() + self.nodes.len()
    }

    pub(super) fn slices(&self, word: Word) -> &[Slice] {
        self.words.get(List(word.0))
    }

    pub(super) fn bits(&self, word: Word) -> Bits {
        bits(self.slices(word))
    }

    /// One of a word's bits.
    pub(super) fn bit_of(&self, word: Word, index: u32) -> Literal {
        let mut at = index;
        for &slice in self.slices(word) {
            if at < slice.width() {
                return slice.literal(at);
            }
            at -= slice.width();
        }
        Literal::ZERO
    }

    pub(super) fn intern(&mut self, bits: &Bits) -> Word {
        self.of_slices(&slices(bits))
    }

    /// The word of these slices, which are as wide as can be.
    fn of_slices(&mut self, slices: &[Slice]) -> Word {
        Word(self.words.intern(slices).0)
    }

    fn atom(&mut self, atom: Atom, width: u32) -> u32 {
        if let Some(&id) = self.atom_ids.get(&atom) {
            return id;
        }
        let lists = match atom {
            Atom::Variable(variable) => vec![self.supports.intern(&[variable])],
            Atom::Sum(a, _) => self.supports_of(a).collect(),
            Atom::Add(a, b) | Atom::Sub(a, b) | Atom::And(a, b) | Atom::Xor(a, b) => {
                self.supports_of(a).chain(self.supports_of(b)).collect()
            }
            Atom::Select(c, a, b) => {
                let arms = self.supports_of(a).chain(self.supports_of(b));
                arms.chain(self.bit_support(c)).collect()
            }
            Atom::Truth(bit) => self.bit_support(bit).into_iter().collect(),
        };
        let support = union(&mut self.supports, lists);
        let id = self.atoms.len() as u32;
        // A literal has 25 bits for the atom; memory runs out long before.
        assert!(id < (1 << 25) - 1, "too many terms");
        self.atoms.push(AtomEntry { atom, width, support });
        self.atom_ids.insert(atom, id);
        id
    }

    /// Of each of a word's atoms, what it depends on.
    pub(super) fn supports_of(&self, word: Word) -> impl Iterator<Item = List> {
        let atom = |slice: &Slice| match *slice {
            Slice::Const { .. } => None,
            Slice::Part { first: literal, .. } | Slice::Fill { literal, .. } => literal.atom(),
        };
        self.slices(word).iter().filter_map(atom).map(|atom| self.atoms[atom as usize].support)
    }

    /// The variables that a word depends on, some of them more than once.
    pub(super) fn variables_of(&self, word: Word) -> impl Iterator<Item = u32> {
        self.supports_of(word).flat_map(|list| self.supports.get(list)).copied()
    }

    /// The variables that a word depends on, sorted.
    pub(super) fn support(&self, word: Word) -> Vec<u32> {
        all_of(&self.supports, self.supports_of(word))
    }

    /// The variables that truth values depend on, sorted.
    pub(super) fn support_of_bits(&self, bits: impl IntoIterator<Item = Bit>) -> Vec<u32> {
        all_of(&self.supports, bits.into_iter().filter_map(|bit| self.bit_support(bit)))
    }

    /// All of an atom, zeros above.
    fn whole(&mut self, atom: Atom, width: u32) -> Word {
        let id = self.atom(atom, width);
        let mut bits = [Literal::ZERO; 64];
        for (i, bit) in (0..width).zip(&mut bits) {
            *bit = Literal::new(id, i);
        }
        self.intern(&bits)
    }

    /// The atom that a word is all of.
    pub(super) fn as_atom(&self, word: Word) -> Option<Atom> {
        match *self.slices(word) {
            [Slice::Part { width: 64, first }] if !first.inverted() => {
                Some(self.atoms[first.atom()? as usize].atom)
            }
            _ => None,
        }
    }

    pub(super) fn variable(&mut self, name: Rc<str>, width: u32, origin: Origin) -> Word {
        let width = width.min(64);
        let key = (name, width);
        if let Some(&word) = self.variable_ids.get(&key) {
            return word;
        }
        let taken = self.variables.iter().any(|variable| variable.name == key.0);
        let name = if taken { format!("{}/{width}", key.0).into() } else { Rc::clone(&key.0) };
        let variable = self.variables.len() as u32;
        self.variables.push(Variable { name, width, origin });
        let word = self.whole(Atom::Variable(variable), width);
        self.variable_ids.insert(key, word);
        word
    }

    /// Whether the variable of this name, if there is one, has this value.
    pub(super) fn variable_is(&mut self, name: &str, value: u64) -> Option<Bit> {
        let known = self.variables.iter().find(|variable| &*variable.name == name)?;
        let (name, width, origin) = (Rc::clone(&known.name), known.width, known.origin);
        let word = self.variable(name, width, origin);
        let value = self.constant(value & low_bits(width));
        Some(self.eq(word, value))
    }

    pub(super) fn constant(&mut self, value: u64) -> Word {
        self.of_slices(&[Slice::Const { width: u64::BITS, value }])
    }

    pub(super) fn known(&self, word: Word) -> Option<u64> {
        match *self.slices(word) {
            [Slice::Const { value, .. }] => Some(value),
            _ => None,
        }
    }

    pub(super) fn shl(&mut self, word: Word, by: u32) -> Word {
        let bits = self.bits(word);
        let moved = |i: usize| Some(bits[i.checked_sub(by as usize)?]);
        self.intern(&std::array::from_fn(|i| moved(i).unwrap_or(Literal::ZERO)))
    }

    pub(super) fn shr(&mut self, word: Word, by: u32, sign: bool) -> Word {
        let bits = self.bits(word);
        let above = if sign { bits[63] } else { Literal::ZERO };
        self.intern(&std::array::from_fn(|i| *bits.get(i + by as usize).unwrap_or(&above)))
    }

    /// The low `width` bits of each word, one after the other.
    pub(super) fn join(&mut self, parts: &[Word], width: usize) -> Word {
        let mut bits = [Literal::ZERO; 64];
        for (to, &part) in bits.chunks_mut(width).zip(parts) {
            let from = self.bits(part);
            to.copy_from_slice(&from[..to.len()]);
        }
        self.intern(&bits)
    }

    /// The word in as many parts of `width` bits: [`join`](Self::join) makes it of them again.
    pub(super) fn split<const N: usize>(&mut self, word: Word, width: usize) -> [Word; N] {
        let from = self.bits(word);
        std::array::from_fn(|i| {
            let mut bits = [Literal::ZERO; 64];
            bits[..width].copy_from_slice(&from[i * width..][..width]);
            self.intern(&bits)
        })
    }

    pub(super) fn and(&mut self, a: Word, b: Word) -> Word {
        let bits = self.conjunction(&self.bits(a), &self.bits(b));
        self.intern(&bits)
    }

    pub(super) fn or(&mut self, a: Word, b: Word) -> Word {
        let invert = |bits: Bits| bits.map(Literal::invert);
        let neither = self.conjunction(&invert(self.bits(a)), &invert(self.bits(b)));
        self.intern(&invert(neither))
    }

    fn conjunction(&mut self, a: &Bits, b: &Bits) -> Bits {
        let pair = |a: Literal, b: Literal| match (a.constant(), b.constant()) {
            (Some(false), _) | (_, Some(false)) => Pair::Is(Literal::ZERO),
            (Some(true), _) => Pair::Is(b),
            (_, Some(true)) => Pair::Is(a),
            _ if a == b => Pair::Is(a),
            _ if a == b.invert() => Pair::Is(Literal::ZERO),
            _ => Pair::Of(a.min(b), a.max(b), false),
        };
        self.zip(a, b, pair, Atom::And)
    }

    pub(super) fn xor(&mut self, a: Word, b: Word) -> Word {
        let pair = |a: Literal, b: Literal| match (a.constant(), b.constant()) {
            (Some(a), _) => Pair::Is(b.invert_if(a)),
            (_, Some(b)) => Pair::Is(a.invert_if(b)),
            _ if a.plain() == b.plain() => Pair::Is(Literal::from_bool(a != b)),
            _ => {
                let (p, q) = (a.plain(), b.plain());
                Pair::Of(p.min(q), p.max(q), a.inverted() != b.inverted())
            }
        };
        let (mut left, mut right) = (self.bits(a), self.bits(b));
        for (a, b) in left.iter_mut().zip(&mut right) {
            (*a, *b) = self.cancel(*a, *b).or_else(|| self.cancel(*b, *a)).unwrap_or((*a, *b));
        }
        let bits = self.zip(&left, &right, pair, Atom::Xor);
        self.intern(&bits)
    }

    /// What is left of `(p ^ q) ^ p`.
    fn cancel(&self, xor: Literal, other: Literal) -> Option<(Literal, Literal)> {
        let Atom::Xor(p, q) = self.atoms[xor.atom()? as usize].atom else { return None };
        let (p, q) = (self.bit_of(p, xor.index()), self.bit_of(q, xor.index()));
        let rest = if p == other.plain() { q } else { (q == other.plain()).then_some(p)? };
        Some((rest, Literal::from_bool(xor.inverted() != other.inverted())))
    }

    pub(super) fn select(&mut self, condition: Bit, a: Word, b: Word) -> Word {
        let (condition, a, b) =
            if condition.negated() { (condition.negate(), b, a) } else { (condition, a, b) };
        if condition == Bit::TRUE || a == b {
            return a;
        }
        let truth = self.literal(condition);
        let pair = |a: Literal, b: Literal| match (a.constant(), b.constant()) {
            _ if a == b => Pair::Is(a),
            (Some(a), Some(_)) => Pair::Is(truth.invert_if(!a)),
            // Of an arm and the inverted arm, one is enough.
            _ => Pair::Of(a.invert_if(a.inverted()), b.invert_if(a.inverted()), a.inverted()),
        };
        let make = |a, b| Atom::Select(condition, a, b);
        let bits = self.zip(&self.bits(a), &self.bits(b), pair, make);
        self.intern(&bits)
    }

    /// A truth value as a literal.
    pub(super) fn literal(&mut self, bit: Bit) -> Literal {
        let literal = match self.node(bit) {
            Node::True => Literal::ONE,
            Node::Of(literal) => literal,
            _ => {
                let plain = if bit.negated() { bit.negate() } else { bit };
                Literal::new(self.atom(Atom::Truth(plain), 1), 0)
            }
        };
        literal.invert_if(bit.negated())
    }

    /// An operation bit by bit. What `pair` does not simplify becomes bits of atoms, one for each
    /// run of bits that are at a constant distance in their atoms; it covers all that is at this
    /// distance in the two.
    fn zip(
        &mut self,
        a: &Bits,
        b: &Bits,
        pair: impl Fn(Literal, Literal) -> Pair,
        make: impl Fn(Word, Word) -> Atom,
    ) -> Bits {
        let pairs: [Pair; 64] = std::array::from_fn(|i| pair(a[i], b[i]));
        let mut out = [Literal::ZERO; 64];
        let mut at = 0;
        while at < 64 {
            let (a, b, inverted) = match pairs[at] {
                Pair::Is(literal) => {
                    out[at] = literal;
                    at += 1;
                    continue;
                }
                Pair::Of(a, b, inverted) => (a, b, inverted),
            };
            let steps = |i: usize| match (pairs.get(i - 1)?, pairs.get(i)?) {
                (&Pair::Of(a, b, j), &Pair::Of(c, d, k)) if j == k => {
                    Some((step(a, c)?, step(b, d)?))
                }
                _ => None,
            };
            let alone = (a.atom().is_some(), b.atom().is_some());
            let (moves_a, moves_b) = steps(at + 1).unwrap_or(alone);
            let run =
                1 + (at + 1..64).take_while(|&i| steps(i) == Some((moves_a, moves_b))).count();

            // Widen to all that the atoms have at this distance.
            let moving = || [(a, moves_a), (b, moves_b)].into_iter().filter(|side| side.1);
            let low = moving().map(|(side, _)| side.index()).min().unwrap_or(0);
            let room = moving().filter_map(|(side, _)| {
                Some(self.atoms[side.atom()? as usize].width + low - side.index())
            });
            let width = room.min().unwrap_or(1);
            let operand = |pool: &mut Self, side: Literal, moves: bool| {
                let mut bits = [Literal::ZERO; 64];
                for (i, bit) in (0..width).zip(&mut bits) {
                    *bit = if moves { Literal(side.0 - 2 * low + 2 * i) } else { side };
                }
                pool.intern(&bits)
            };
            let (left, right) = (operand(self, a, moves_a), operand(self, b, moves_b));
            let atom = self.atom(make(left, right), width);
            let moves = u32::from(moves_a || moves_b);
            for (i, out) in (0..run as u32).zip(&mut out[at..]) {
                *out = Literal::new(atom, moves * (low + i)).invert_if(inverted);
            }
            at += run;
        }
        out
    }

    /// The word as another one plus a constant, if it is all of a sum and the constants below that.
    pub(super) fn as_sum(&self, word: Word) -> Option<(Word, u64)> {
        let (low, from, first) = match *self.slices(word) {
            [Slice::Part { width: 64, first }] => (0, 0, first),
            [Slice::Const { width, value }, Slice::Part { first, .. }] => (value, width, first),
            _ => return None,
        };
        let Atom::Sum(base, constant) = self.atoms[first.atom()? as usize].atom else {
            return None;
        };
        let is_all = !first.inverted() && first.index() == from;
        (is_all && from == self.zeros_below(base)).then_some((base, constant | low))
    }

    /// How many of the word's lowest bits are zero.
    fn zeros_below(&self, word: Word) -> u32 {
        match self.slices(word).first() {
            Some(&Slice::Const { width, value }) => value.trailing_zeros().min(width),
            _ => 0,
        }
    }

    /// The word as another one plus a constant: a sum's, or the constant one bits.
    pub(super) fn decompose(&mut self, word: Word) -> (Word, u64) {
        if let Some(sum) = self.as_sum(word) {
            return sum;
        }
        let mut bits = self.bits(word);
        let mut constant = 0;
        for (i, bit) in bits.iter_mut().enumerate().filter(|(_, bit)| **bit == Literal::ONE) {
            *bit = Literal::ZERO;
            constant |= 1 << i;
        }
        if constant == 0 { (word, 0) } else { (self.intern(&bits), constant) }
    }

    /// Plus a constant.
    pub(super) fn offset(&mut self, word: Word, by: u64) -> Word {
        let (base, constant) = self.decompose(word);
        let constant = constant.wrapping_add(by);
        if constant == 0 {
            return base;
        }
        let constants = self.constant(constant);
        match self.disjoint(base, constants) {
            Some(joined) => joined,
            None => self.sum(base, constant),
        }
    }

    /// What has carries; none come from where the word has no bits.
    fn sum(&mut self, base: Word, constant: u64) -> Word {
        let zeros = self.zeros_below(base);
        let low = constant & low_bits(zeros);
        let above = self.whole(Atom::Sum(base, constant - low), 64);
        if zeros == 0 {
            return above;
        }
        let mut bits = self.bits(above);
        for (i, bit) in bits.iter_mut().enumerate().take(zeros as usize) {
            *bit = Literal::from_bool(low >> i & 1 != 0);
        }
        self.intern(&bits)
    }

    /// The bits of both, if each bit is zero in one of them: no carries.
    fn disjoint(&mut self, a: Word, b: Word) -> Option<Word> {
        let (mut bits, other) = (self.bits(a), self.bits(b));
        for (bit, other) in bits.iter_mut().zip(other) {
            match (*bit, other) {
                (Literal::ZERO, _) => *bit = other,
                (_, Literal::ZERO) => {}
                _ => return None,
            }
        }
        Some(self.intern(&bits))
    }

    pub(super) fn add(&mut self, a: Word, b: Word) -> Word {
        let ((a, c), (b, d)) = (self.decompose(a), self.decompose(b));
        let constant = c.wrapping_add(d);
        let sum = match (self.disjoint(a, b), self.as_atom(a), self.as_atom(b)) {
            (Some(joined), _, _) => joined,
            (_, Some(Atom::Sub(rest, minus)), _) if minus == b => rest,
            (_, _, Some(Atom::Sub(rest, minus))) if minus == a => rest,
            _ => self.whole(Atom::Add(a.min(b), a.max(b)), 64),
        };
        self.offset(sum, constant)
    }

    pub(super) fn sub(&mut self, a: Word, b: Word) -> Word {
        let ((a, c), (b, d)) = (self.decompose(a), self.decompose(b));
        let constant = c.wrapping_sub(d);
        let difference = match (self.without(a, b), self.as_atom(a)) {
            (Some(rest), _) => rest,
            (_, Some(Atom::Add(rest, plus))) if plus == b => rest,
            (_, Some(Atom::Add(plus, rest))) if plus == b => rest,
            _ => self.whole(Atom::Sub(a, b), 64),
        };
        self.offset(difference, constant)
    }

    /// The bits of `a` that `b` does not have, if `b` has no others: no borrows.
    fn without(&mut self, a: Word, b: Word) -> Option<Word> {
        let (mut bits, other) = (self.bits(a), self.bits(b));
        for (bit, other) in bits.iter_mut().zip(other) {
            if other == *bit {
                *bit = Literal::ZERO;
            } else if other != Literal::ZERO {
                return None;
            }
        }
        Some(self.intern(&bits))
    }
}

/// What an operation makes of two bits: a literal, or an operand of each side and whether to invert
/// the result.
#[derive(Clone, Copy)]
enum Pair {
    Is(Literal),
    Of(Literal, Literal, bool),
}

/// Whether the next bit of a run is the next of the atom (or the same again), if there is a run.
fn step(bit: Literal, next: Literal) -> Option<bool> {
    if next == bit { Some(false) } else { next.follows(bit).then_some(true) }
}

/// All that is in one of the lists, sorted.
fn all_of(supports: &Lists<u32>, lists: impl Iterator<Item = List>) -> Vec<u32> {
    let mut all: Vec<u32> = lists.flat_map(|list| supports.get(list)).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The list of all that is in one of the lists.
pub(super) fn union(supports: &mut Lists<u32>, mut lists: Vec<List>) -> List {
    lists.sort_unstable();
    lists.dedup();
    match *lists {
        [one] => one,
        _ => {
            let all = all_of(supports, lists.into_iter());
            supports.intern(&all)
        }
    }
}
