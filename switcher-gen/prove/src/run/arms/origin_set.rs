//! Sets of where values come from.

use std::cell::Cell;

use switcher_model::{Domain, Origin};

/// A set of [`Origin`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origins(u16);

const _: () = assert!(Origin::ALL.len() <= u16::BITS as usize);

impl Origins {
    pub(crate) const NONE: Self = Self(0);
    /// Of what is known only to be nobody's choice.
    pub(crate) const CODE: Self = Self::NONE.with(Origin::Code);

    /// Where a word comes from.
    pub(crate) fn of<D: Domain>(d: &D, word: D::Word) -> Self {
        let set = Cell::new(Self::NONE);
        d.mentions(word, |origin| {
            set.set(set.get().with(origin));
            false
        });
        set.get()
    }

    pub(crate) const fn with(self, origin: Origin) -> Self {
        Self(self.0 | 1 << origin as u16)
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) const fn is_within(self, whole: Self) -> bool {
        self.0 & !whole.0 == 0
    }

    /// As a list.
    pub(crate) fn list(self) -> Vec<Origin> {
        Origin::ALL.into_iter().filter(|origin| Self::NONE.with(*origin).is_within(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_model::symbolic::Symbolic;

    #[test]
    fn a_set_has_what_a_word_comes_from() {
        let d = Symbolic::default();
        for (at, origin) in Origin::ALL.into_iter().enumerate() {
            assert_eq!(origin as usize, at);
            let word = d.variable_from(format!("{origin:?}"), 64, origin);
            let set = Origins::of(&d, d.plus(word, 1));
            assert_eq!(set.list(), [origin]);
            // What stands for it comes from there, too, and from no number.
            let from = d.any_of("x", 4, &set.list());
            assert_eq!(Origins::of(&d, from), set.and(Origins::CODE));
        }
        assert!(Origins::of(&d, d.word(7)).is_empty());
    }
}
