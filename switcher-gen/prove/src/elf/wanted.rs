//! A few names that are looked for among the many of a file: a kernel has hundreds of thousands.

/// Tells most names from those that were added, by their length and their last byte. It never
/// tells an added name from itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted(Vec<u64>);

impl Wanted {
    /// One bit for each length, modulo 256, and each last byte.
    const WORDS: usize = 256 * 256 / 64;

    fn place(name: &[u8]) -> (usize, u64) {
        let last = name.last().copied().unwrap_or_default();
        let index = (name.len() & 0xFF) << 8 | usize::from(last);
        (index / 64, 1 << (index % 64))
    }

    pub(super) fn add(&mut self, name: &[u8]) {
        self.0.resize(Self::WORDS, 0);
        let (word, bit) = Self::place(name);
        self.0[word] |= bit;
    }

    /// Whether a name may be one of those that were added.
    pub(super) fn may_be(&self, name: &[u8]) -> bool {
        let (word, bit) = Self::place(name);
        self.0.get(word).is_some_and(|bits| bits & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_may_be_it_and_most_others_are_not() {
        let mut wanted = Wanted::default();
        assert!(!wanted.may_be(b"switcher_enter_guest") && !wanted.may_be(b""));
        let long = [b'x'; 700];
        for name in [&b"switcher_enter_guest"[..], b"", b"a", &long] {
            wanted.add(name);
            assert!(wanted.may_be(name));
        }
        let others = (0..10_000).filter(|number| wanted.may_be(format!("f_{number}").as_bytes()));
        assert_eq!(others.count(), 0);
    }
}
