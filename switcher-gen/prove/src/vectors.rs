//! Sets of vectors that hardware treats alike, whatever the code makes of them.

use switcher_gen::arch::vector;
use switcher_model::Domain;

/// Vectors that have something in common, whatever the code makes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// One vector that has a stack of its own.
    One(u8),
    /// The vectors without a stack of their own and without an error code.
    Plain,
    /// The vectors without a stack of their own but with an error code.
    Coded,
    /// Of the vectors with an error code, those that an IRETQ raises when it refuses its frame.
    OfIretq,
    /// Of the vectors with an error code, those that an IRETQ does not raise.
    NotOfIretq,
}

impl Vectors {
    /// Whether `vector` is one of them. The vector that only the code's own INT raises is not: see
    /// [`vector::SEGMENT_OVERRUN`].
    pub(crate) const fn contains(self, vector: u8) -> bool {
        let has_own_stack = matches!(
            vector,
            vector::DB | vector::NMI | vector::MC | vector::DF | vector::SEGMENT_OVERRUN
        );
        let is_coded = vector::pushes_error_code(vector);
        let is_of_iretq = matches!(vector, vector::NP | vector::SS | vector::GP);
        match self {
            Self::One(one) => vector == one,
            Self::Plain => !has_own_stack && !is_coded,
            Self::Coded => !has_own_stack && is_coded,
            Self::OfIretq => is_of_iretq,
            Self::NotOfIretq => !has_own_stack && is_coded && !is_of_iretq,
        }
    }

    /// Whether they have an error code.
    pub(crate) const fn have_error_code(self) -> bool {
        match self {
            Self::One(vector) => vector::pushes_error_code(vector),
            Self::Plain => false,
            Self::Coded | Self::OfIretq | Self::NotOfIretq => true,
        }
    }

    pub(crate) fn all(self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |vector| self.contains(*vector))
    }

    /// Whether `word` is one of them.
    pub(crate) fn hold<D: Domain>(self, d: &D, word: D::Word) -> D::Bit {
        is_one_of(d, word, self.all())
    }
}

/// Whether `word` is one of `vectors`, which ascend.
pub(crate) fn is_one_of<D: Domain>(
    d: &D,
    word: D::Word,
    vectors: impl Iterator<Item = u8>,
) -> D::Bit {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for vector in vectors.map(u64::from) {
        match ranges.last_mut() {
            Some((_, end)) if *end == vector => *end += 1,
            _ => ranges.push((vector, vector + 1)),
        }
    }
    ranges.into_iter().fold(d.bit(false), |found, (start, end)| {
        let is_it = match end - start {
            1 => d.is(word, start),
            _ => d.both(d.not(d.lt(word, d.word(start))), d.lt(word, d.word(end))),
        };
        d.either(found, is_it)
    })
}
