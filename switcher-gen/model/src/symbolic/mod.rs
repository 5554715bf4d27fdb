//! Terms over the unknowns of a state: the domain of proofs.
//!
//! [`Symbolic`] owns all terms; [`Word`] and [`Bit`] are handles, and equal handles are equal
//! terms. Most questions answer themselves because terms are kept in a normal form (`word.rs`,
//! which is to be read first, and `bit.rs`); the others go to the solver (`solve.rs`), together
//! with what is assumed and decided on the present path (`path.rs`).
//!
//! ```
//! use switcher_model::domain::Domain;
//! use switcher_model::symbolic::{Symbolic, Validity};
//!
//! let d = Symbolic::default();
//! let x = d.variable("x", 64);
//! // Two ways to clear the low bits.
//! let (a, b) = (d.mask(x, !0xFFF), d.sub(x, d.mask(x, 0xFFF)));
//! assert_eq!(a, b);
//! // An absolute value, on both paths.
//! let explored = d.explore(
//!     |d| if d.decide(d.test(x, 63)) { d.sub(d.word(0), x) } else { x },
//!     |_, y| assert!(matches!(d.check(d.not(d.lt(d.word(1 << 63), y))), Validity::Holds { .. })),
//! )?;
//! assert_eq!(explored.visited, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod answered;
mod bit;
mod eval;
mod lists;
mod lowering;
mod path;
mod question;
#[cfg(feature = "z3")]
mod second;
mod show;
mod solve;
mod span;
#[cfg(test)]
mod tests;
mod word;

use foldhash::HashMap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::concrete::{SLIDE, adversary_name, undefined_name};
use super::domain::{Domain, Origin};

use word::Atom;

pub use eval::Model;
pub use path::{Decision, ExploreError, Explored, MAX_PATHS, Path};
pub use solve::Statistics;

/// A 64-bit term. It belongs to the [`Symbolic`] that made it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Word(u32);

/// A truth value. It belongs to the [`Symbolic`] that made it.
// The node's index, and in bit 0 whether it is negated. Node 0 is `True`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bit(u32);

impl Bit {
    const TRUE: Self = Self(0);
    const FALSE: Self = Self(1);

    fn new(node: u32) -> Self {
        Self(node << 1)
    }
    fn from_bool(value: bool) -> Self {
        if value { Self::TRUE } else { Self::FALSE }
    }
    fn index(self) -> usize {
        self.0 as usize >> 1
    }
    fn negated(self) -> bool {
        self.0 & 1 != 0
    }
    fn negate_if(self, condition: bool) -> Self {
        Self(self.0 ^ u32::from(condition))
    }
    fn negate(self) -> Self {
        self.negate_if(true)
    }
}

/// What became of a goal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Validity {
    /// It holds for all values of the variables.
    Holds {
        /// How that is known.
        by: By,
    },
    /// Not for these values, which are possible on the path.
    Fails(Model),
    /// The solver gave up, or there is nothing to be known. That is no success.
    Unknown(String),
}

/// How it is known that a goal holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// Its normal form is true, or the path says it.
    Normalisation,
    /// The solver proved it, now or when it was first asked.
    Solver,
}

/// An operation whose result is remembered: a run repeats most of what runs before it did.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Operator {
    Add(Word, Word),
    Sub(Word, Word),
    And(Word, Word),
    Or(Word, Word),
    Xor(Word, Word),
    Shl(Word, u32),
    Shr(Word, u32),
    Sar(Word, u32),
    Select(Bit, Word, Word),
    Eq(Word, Word),
    Lt(Word, Word),
}

/// Terms, and the path that is being explored.
#[derive(Debug, Default)]
pub struct Symbolic {
    pool: RefCell<word::Pool>,
    words: RefCell<HashMap<Operator, Word>>,
    bits: RefCell<HashMap<Operator, Bit>>,
    /// What bytes of memory make, and the bytes of what goes there: apart from the operators, which
    /// they would make twice as large.
    loads: RefCell<HashMap<[Word; 8], Word>>,
    stores: RefCell<HashMap<Word, [Word; 8]>>,
    solver: RefCell<solve::Solver>,
    search: RefCell<path::Search>,
    exploring: Cell<bool>,
}

impl Symbolic {
    /// The unknown of this name, `width` bits wide: 64 at most, and zeros above. It is the host's.
    pub fn variable(&self, name: impl Into<Rc<str>>, width: u32) -> Word {
        self.variable_from(name, width, Origin::Host)
    }

    /// The same of whatever origin. A name has one.
    pub fn variable_from(&self, name: impl Into<Rc<str>>, width: u32, origin: Origin) -> Word {
        self.pool.borrow_mut().variable(name.into(), width, origin)
    }

    /// How far from where a program has it the code lies.
    pub fn slide(&self) -> Word {
        self.variable_from(SLIDE, 64, Origin::Place)
    }

    /// The word's number in a model.
    #[must_use]
    pub fn evaluate(&self, model: &Model, word: Word) -> u64 {
        self.under(model, |mut now| now.word(word))
    }

    /// Whether the truth value is true in a model.
    #[must_use]
    pub fn evaluate_bit(&self, model: &Model, bit: Bit) -> bool {
        self.under(model, |mut now| now.bit(bit))
    }

    fn under<T>(&self, model: &Model, compute: impl FnOnce(eval::Evaluation<'_>) -> T) -> T {
        let pool = self.pool.borrow();
        let number = |variable: &word::Variable| {
            model.value(&variable.name) & word::low_bits(variable.width)
        };
        let values: Vec<_> = pool.variables.iter().map(number).collect();
        compute(self.solver.borrow_mut().scratch.under(&pool, &values))
    }

    /// The names of the variables that a word depends on.
    #[must_use]
    pub fn variables_of(&self, word: Word) -> Vec<Rc<str>> {
        self.names(&self.pool.borrow().support(word))
    }

    /// The names of the variables that a truth value depends on.
    #[must_use]
    pub fn variables_of_bit(&self, bit: Bit) -> Vec<Rc<str>> {
        self.names(self.pool.borrow().variables_of_bit(bit))
    }

    fn names(&self, support: &[u32]) -> Vec<Rc<str>> {
        let pool = self.pool.borrow();
        support.iter().map(|&index| Rc::clone(&pool.variables[index as usize].name)).collect()
    }

    /// The word as text.
    #[must_use]
    pub fn display(&self, word: Word) -> String {
        self.pool.borrow().display(word)
    }

    /// The truth value as text.
    #[must_use]
    pub fn display_bit(&self, bit: Bit) -> String {
        self.pool.borrow().display_bit(bit)
    }

    /// How questions were answered so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics { terms: self.pool.borrow().size(), ..self.solver.borrow().statistics }
    }

    /// Whether ordeal's certificates are to be checked once more than ordeal does.
    pub fn recheck_certificates(&self, recheck: bool) {
        self.solver.borrow_mut().recheck = recheck;
    }

    fn make(&self, operator: Operator, make: impl Fn(&mut word::Pool) -> Word) -> Word {
        if let Some(&word) = self.words.borrow().get(&operator) {
            return word;
        }
        let word = make(&mut self.pool.borrow_mut());
        self.words.borrow_mut().insert(operator, word);
        word
    }

    fn compare(&self, operator: Operator, make: impl Fn(&mut word::Pool) -> Bit) -> Bit {
        if let Some(&bit) = self.bits.borrow().get(&operator) {
            return bit;
        }
        let bit = make(&mut self.pool.borrow_mut());
        self.bits.borrow_mut().insert(operator, bit);
        bit
    }
}

impl Domain for Symbolic {
    type Word = Word;
    type Bit = Bit;
    /// A word of which only the low byte is not zero.
    type Cell = Word;

    fn word(&self, value: u64) -> Word {
        self.pool.borrow_mut().constant(value)
    }
    fn bit(&self, value: bool) -> Bit {
        Bit::from_bool(value)
    }
    fn add(&self, a: Word, b: Word) -> Word {
        self.make(Operator::Add(a, b), |pool| pool.add(a, b))
    }
    fn sub(&self, a: Word, b: Word) -> Word {
        self.make(Operator::Sub(a, b), |pool| pool.sub(a, b))
    }
    fn and(&self, a: Word, b: Word) -> Word {
        self.make(Operator::And(a, b), |pool| pool.and(a, b))
    }
    fn or(&self, a: Word, b: Word) -> Word {
        self.make(Operator::Or(a, b), |pool| pool.or(a, b))
    }
    fn xor(&self, a: Word, b: Word) -> Word {
        self.make(Operator::Xor(a, b), |pool| pool.xor(a, b))
    }
    fn shl(&self, a: Word, by: u32) -> Word {
        self.make(Operator::Shl(a, by), |pool| pool.shl(a, by))
    }
    fn shr(&self, a: Word, by: u32) -> Word {
        self.make(Operator::Shr(a, by), |pool| pool.shr(a, by, false))
    }
    fn sar(&self, a: Word, by: u32) -> Word {
        self.make(Operator::Sar(a, by), |pool| pool.shr(a, by, true))
    }
    fn select(&self, condition: Bit, a: Word, b: Word) -> Word {
        self.make(Operator::Select(condition, a, b), |pool| pool.select(condition, a, b))
    }
    fn eq(&self, a: Word, b: Word) -> Bit {
        self.compare(Operator::Eq(a, b), |pool| pool.eq(a, b))
    }
    fn lt(&self, a: Word, b: Word) -> Bit {
        self.compare(Operator::Lt(a, b), |pool| pool.lt(a, b))
    }
    fn test(&self, a: Word, index: u32) -> Bit {
        self.pool.borrow_mut().test(a, index)
    }
    fn not(&self, a: Bit) -> Bit {
        a.negate()
    }
    fn both(&self, a: Bit, b: Bit) -> Bit {
        self.pool.borrow_mut().both(a, b)
    }
    fn either(&self, a: Bit, b: Bit) -> Bit {
        self.pool.borrow_mut().both(a.negate(), b.negate()).negate()
    }
    fn decide(&self, condition: Bit) -> bool {
        self.decide_bit(condition)
    }
    fn was_open(&self) -> bool {
        self.last_was_open()
    }
    fn undefined(&self, what: &'static str, of: &[Word]) -> Bit {
        let name = self.fresh_name(undefined_name(what));
        let unknown = self.variable_from(name, 1, Origin::Cpu);
        self.made_of(unknown, of);
        self.test(unknown, 0)
    }
    fn adversary(&self, offset: usize, size: usize) -> Word {
        let name = self.fresh_name(adversary_name(offset));
        self.variable_from(name, 8 * size as u32, Origin::Shared)
    }
    fn anew(&self, what: &'static str, size: usize) -> Word {
        let name = self.fresh_name(what.to_owned());
        self.variable_from(name, 8 * size as u32, Origin::Stale)
    }
    fn any_of(&self, what: &'static str, size: usize, from: &[Origin]) -> Word {
        let name = self.fresh_name(what.to_owned());
        // A name has one origin, and that says nothing.
        let unknown = self.variable_from(name, 8 * size as u32, Origin::Code);
        self.comes_from(unknown, from);
        unknown
    }
    fn forgotten(&self, of: &[Word]) -> Word {
        let name = self.fresh_name("forgotten".to_owned());
        let unknown = self.variable_from(name, 64, Origin::Code);
        self.made_of(unknown, of);
        self.lies_between(unknown, of);
        unknown
    }
    fn span(&self, a: Word) -> Option<(i64, i64)> {
        self.span_of(a)
    }
    fn alternatives(&self, a: Word) -> Vec<Word> {
        const MOST: usize = 64;
        let (mut found, mut ahead) = (Vec::new(), vec![(a, 0)]);
        while let Some((word, by)) = ahead.pop() {
            let sum = self.pool.borrow().as_sum(word);
            let atom = self.pool.borrow().as_atom(word);
            match (sum, atom) {
                _ if found.len() + ahead.len() >= MOST => found.push(self.add(word, self.word(by))),
                (Some((inner, more)), _) => ahead.push((inner, by.wrapping_add(more))),
                (None, Some(Atom::Select(_, yes, no))) => ahead.extend([(no, by), (yes, by)]),
                _ => found.push(self.add(word, self.word(by))),
            }
        }
        found
    }
    fn code(&self, address: u64) -> Word {
        self.add(self.slide(), self.word(address))
    }
    fn code_at(&self, address: Word) -> Option<u64> {
        self.known(self.sub(address, self.slide()))
    }
    fn settle(&self, a: Word) -> Word {
        let sum = self.pool.borrow().as_sum(a);
        if let Some((inner, by)) = sum {
            let settled = self.settle(inner);
            return if settled == inner { a } else { self.add(settled, self.word(by)) };
        }
        let atom = self.pool.borrow().as_atom(a);
        let Some(Atom::Select(condition, yes, no)) = atom else { return a };
        self.settle(if self.decide(condition) { yes } else { no })
    }
    fn settled_by(&self, a: Word) -> Vec<Bit> {
        let (mut found, mut ahead) = (Vec::new(), vec![a]);
        while let Some(word) = ahead.pop() {
            if let Some((inner, _)) = self.pool.borrow().as_sum(word) {
                ahead.push(inner);
            } else if let Some(Atom::Select(condition, yes, no)) = self.pool.borrow().as_atom(word)
            {
                // Of many that share what they are made of, each is looked at once.
                if !found.contains(&condition) {
                    found.push(condition);
                    ahead.extend([yes, no]);
                }
            }
        }
        found
    }
    fn is_of_code(&self, a: Word) -> bool {
        let pool = self.pool.borrow();
        pool.variables_of(a).any(|index| &*pool.variables[index as usize].name == SLIDE)
    }
    fn known(&self, a: Word) -> Option<u64> {
        self.pool.borrow().known(a)
    }
    fn load(&self, cells: &[Word]) -> Word {
        let zero = self.word(0);
        let cells = std::array::from_fn(|i| *cells.get(i).unwrap_or(&zero));
        let join = || self.pool.borrow_mut().join(&cells, 8);
        *self.loads.borrow_mut().entry(cells).or_insert_with(join)
    }
    fn mentions(&self, a: Word, is_one: impl Fn(Origin) -> bool) -> bool {
        let pool = self.pool.borrow();
        let search = self.search.borrow();
        pool.variables_of(a).any(|index| search.origins(&pool, index).any(&is_one))
    }
    fn shares(&self, a: Word, b: Word) -> bool {
        let pool = self.pool.borrow();
        pool.variables_of(a).any(|index| pool.variables_of(b).any(|other| other == index))
    }
    fn cells(&self, bytes: &[u8]) -> Vec<Word> {
        bytes.iter().map(|&byte| self.word(byte.into())).collect()
    }
    fn store(&self, cells: &mut [Word], value: Word) {
        let split = || self.pool.borrow_mut().split(value, 8);
        let bytes = *self.stores.borrow_mut().entry(value).or_insert_with(split);
        for (i, cell) in cells.iter_mut().enumerate() {
            *cell = bytes.get(i).copied().unwrap_or_else(|| self.word(0));
        }
    }
}
