//! RFLAGS. The six arithmetic flags are computed only when an instruction reads them.

use super::domain::Domain;
use switcher_gen::arch::RFlags;

/// What an arithmetic instruction did, from which its flags follow.
#[derive(Debug)]
enum Arithmetic<D: Domain> {
    /// The flags are at their places in this word.
    Stored(D::Word),
    /// `result = a + b`.
    Add { size: usize, a: D::Word, b: D::Word, result: D::Word },
    /// `result = a - b`.
    Sub { size: usize, a: D::Word, b: D::Word, result: D::Word },
    /// AND, OR, XOR, TEST.
    Logic { size: usize, a: D::Word, b: D::Word, result: D::Word },
}

/// RFLAGS.
#[derive(Debug)]
pub struct Flags<D: Domain> {
    arithmetic: Arithmetic<D>,
    /// All other bits at their places. The arithmetic flags are zero in this word.
    others: D::Word,
}

impl<D: Domain> Clone for Flags<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Domain> Copy for Flags<D> {}

// This is not derived, because a derive would ask for a `D` that can be copied.
impl<D: Domain> Clone for Arithmetic<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Domain> Copy for Arithmetic<D> {}

const CF: u32 = RFlags::CF.bits().trailing_zeros();
const PF: u32 = RFlags::PF.bits().trailing_zeros();
const AF: u32 = RFlags::AF.bits().trailing_zeros();
const ZF: u32 = RFlags::ZF.bits().trailing_zeros();
const SF: u32 = RFlags::SF.bits().trailing_zeros();
const OF: u32 = RFlags::OF.bits().trailing_zeros();
/// The flags that arithmetic sets.
pub const ARITHMETIC: u64 = 1 << CF | 1 << PF | 1 << AF | 1 << ZF | 1 << SF | 1 << OF;

/// What Jcc, SETcc and CMOVcc ask (Intel SDM vol. 1, appendix B).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "conditions are what they are called")]
pub enum Condition {
    O,
    No,
    B,
    Ae,
    E,
    Ne,
    Be,
    A,
    S,
    Ns,
    P,
    Np,
    L,
    Ge,
    Le,
    G,
}

impl<D: Domain> Flags<D> {
    /// RFLAGS with this value.
    #[inline]
    pub fn new(d: &D, value: D::Word) -> Self {
        Self { arithmetic: Arithmetic::Stored(value), others: d.mask(value, !ARITHMETIC) }
    }

    /// The words that the arithmetic flags are computed from.
    pub fn made_of(&self) -> [D::Word; 3] {
        match self.arithmetic {
            Arithmetic::Stored(word) => [word; 3],
            Arithmetic::Add { a, b, result, .. }
            | Arithmetic::Sub { a, b, result, .. }
            | Arithmetic::Logic { a, b, result, .. } => [a, b, result],
        }
    }

    /// All other flags at their places. The arithmetic flags are zero in this word.
    pub fn others(&self) -> D::Word {
        self.others
    }

    /// These flags with the arithmetic ones of a value of RFLAGS.
    pub fn with_arithmetic(self, value: D::Word) -> Self {
        Self { arithmetic: Arithmetic::Stored(value), ..self }
    }

    /// These flags with all but the arithmetic ones of a value of RFLAGS.
    pub fn with_others(self, d: &D, value: D::Word) -> Self {
        Self { others: d.mask(value, !ARITHMETIC), ..self }
    }

    /// Whether the arithmetic flags of both are computed in the same way.
    pub fn is_same(&self, other: &Self) -> bool {
        let how = |flags: &Self| match flags.arithmetic {
            Arithmetic::Stored(_) => (0, 0),
            Arithmetic::Add { size, .. } => (1, size),
            Arithmetic::Sub { size, .. } => (2, size),
            Arithmetic::Logic { size, .. } => (3, size),
        };
        how(self) == how(other) && self.made_of() == other.made_of()
    }

    /// The whole register.
    pub fn value(&self, d: &D) -> D::Word {
        if let Arithmetic::Stored(word) = self.arithmetic {
            return d.or(self.others, d.mask(word, ARITHMETIC));
        }
        let flags = [
            (CF, self.carry(d)),
            (PF, self.parity(d)),
            (AF, self.adjust(d)),
            (ZF, self.zero(d)),
            (SF, self.sign(d)),
            (OF, self.overflow(d)),
        ];
        flags
            .into_iter()
            .fold(self.others, |word, (index, flag)| d.or(word, d.shl(d.number(flag), index)))
    }

    /// After `result = a + b` of `size` bytes, all of them truncated.
    #[inline]
    pub(super) fn add(&mut self, size: usize, a: D::Word, b: D::Word, result: D::Word) {
        self.arithmetic = Arithmetic::Add { size, a, b, result };
    }

    /// After `result = a - b` of `size` bytes, all of them truncated.
    #[inline]
    pub(super) fn sub(&mut self, size: usize, a: D::Word, b: D::Word, result: D::Word) {
        self.arithmetic = Arithmetic::Sub { size, a, b, result };
    }

    /// After a bitwise operation of `size` bytes.
    #[inline]
    pub(super) fn logic(&mut self, size: usize, a: D::Word, b: D::Word, result: D::Word) {
        self.arithmetic = Arithmetic::Logic { size, a, b, result };
    }

    /// Sets the flags of `mask` to those in `bits`, whichever they are.
    pub fn replace(&mut self, d: &D, mask: u64, bits: D::Word) {
        let value = d.or(d.mask(self.value(d), !mask), d.mask(bits, mask));
        *self = Self::new(d, value);
    }

    /// Sets one arithmetic or other flag.
    pub fn set(&mut self, d: &D, flag: RFlags, value: D::Bit) {
        let index = flag.bits().trailing_zeros();
        self.replace(d, flag.bits(), d.shl(d.number(value), index));
    }

    /// One flag that is not arithmetic.
    pub fn other(&self, d: &D, flag: RFlags) -> D::Bit {
        d.test(self.others, flag.bits().trailing_zeros())
    }

    pub(super) fn carry(&self, d: &D) -> D::Bit {
        match self.arithmetic {
            Arithmetic::Stored(word) => d.test(word, CF),
            Arithmetic::Add { a, result, .. } => d.lt(result, a),
            Arithmetic::Sub { a, b, .. } => d.lt(a, b),
            Arithmetic::Logic { .. } => d.bit(false),
        }
    }

    fn zero(&self, d: &D) -> D::Bit {
        match self.arithmetic {
            Arithmetic::Stored(word) => d.test(word, ZF),
            // The same as `result == 0`, and simpler to reason about.
            Arithmetic::Sub { a, b, .. } => d.eq(a, b),
            Arithmetic::Add { result, .. } | Arithmetic::Logic { result, .. } => d.is(result, 0),
        }
    }

    fn sign(&self, d: &D) -> D::Bit {
        match self.arithmetic {
            Arithmetic::Stored(word) => d.test(word, SF),
            Arithmetic::Add { size, result, .. }
            | Arithmetic::Sub { size, result, .. }
            | Arithmetic::Logic { size, result, .. } => d.test(result, top(size)),
        }
    }

    fn overflow(&self, d: &D) -> D::Bit {
        match self.arithmetic {
            Arithmetic::Stored(word) => d.test(word, OF),
            Arithmetic::Add { size, a, b, result } => {
                d.test(d.and(d.xor(a, result), d.xor(b, result)), top(size))
            }
            Arithmetic::Sub { size, a, b, result } => {
                d.test(d.and(d.xor(a, b), d.xor(a, result)), top(size))
            }
            Arithmetic::Logic { .. } => d.bit(false),
        }
    }

    fn adjust(&self, d: &D) -> D::Bit {
        match self.arithmetic {
            Arithmetic::Stored(word) => d.test(word, AF),
            Arithmetic::Add { a, b, result, .. } | Arithmetic::Sub { a, b, result, .. } => {
                d.test(d.xor(d.xor(a, b), result), 4)
            }
            Arithmetic::Logic { a, b, result, .. } => d.undefined("AF", &[a, b, result]),
        }
    }

    fn parity(&self, d: &D) -> D::Bit {
        match self.arithmetic {
            Arithmetic::Stored(word) => d.test(word, PF),
            Arithmetic::Add { result, .. }
            | Arithmetic::Sub { result, .. }
            | Arithmetic::Logic { result, .. } => even_parity(d, result),
        }
    }

    /// Whether `condition` holds.
    pub fn holds(&self, d: &D, condition: Condition) -> D::Bit {
        let less = |d: &D| d.differ(self.sign(d), self.overflow(d));
        match condition {
            Condition::O => self.overflow(d),
            Condition::No => d.not(self.overflow(d)),
            Condition::B => self.carry(d),
            Condition::Ae => d.not(self.carry(d)),
            Condition::E => self.zero(d),
            Condition::Ne => d.not(self.zero(d)),
            Condition::Be => d.either(self.carry(d), self.zero(d)),
            Condition::A => d.not(d.either(self.carry(d), self.zero(d))),
            Condition::S => self.sign(d),
            Condition::Ns => d.not(self.sign(d)),
            Condition::P => self.parity(d),
            Condition::Np => d.not(self.parity(d)),
            Condition::L => less(d),
            Condition::Ge => d.not(less(d)),
            Condition::Le => d.either(less(d), self.zero(d)),
            Condition::G => d.not(d.either(less(d), self.zero(d))),
        }
    }
}

/// Whether the low byte has an even number of ones.
pub(super) fn even_parity<D: Domain>(d: &D, word: D::Word) -> D::Bit {
    let odd = (1..8).fold(d.test(word, 0), |odd, index| d.differ(odd, d.test(word, index)));
    d.not(odd)
}

/// The sign bit's index.
const fn top(size: usize) -> u32 {
    8 * size as u32 - 1
}
