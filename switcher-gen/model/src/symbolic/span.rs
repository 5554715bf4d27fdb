//! Between which numbers a word lies, where it was put together of several that are not told apart
//! any more ([`Domain::forgotten`](crate::Domain::forgotten)). No comparison is decided by this,
//! nor any other term: somebody else has to vouch for it.

use super::path::Search;
use super::word::{Atom, Pool, Slice, low_bits};
use super::{Symbolic, Word};

/// The least number and the greatest.
pub(super) type Span = (i64, i64);
/// With room for sums.
type Wide = (i128, i128);

/// How many terms are looked at before nothing is said: a term may be a part of another in many
/// ways.
const MOST: usize = 256;

impl Symbolic {
    pub(super) fn span_of(&self, word: Word) -> Option<Span> {
        let (pool, search) = (self.pool.borrow(), self.search.borrow());
        let (low, high) = Terms { pool: &pool, search: &search, left: MOST }.span(word)?;
        Some((low.try_into().ok()?, high.try_into().ok()?))
    }

    /// `unknown` is one of these words, or lies between them. The bounds are rounded to powers of
    /// two, so that what grows from round to round of a loop does not do so for long.
    pub(super) fn lies_between(&self, unknown: Word, words: &[Word]) {
        let bounds = || {
            let (mut least, mut most) = self.span_of(*words.first()?)?;
            for word in &words[1..] {
                let (low, high) = self.span_of(*word)?;
                (least, most) = (least.min(low), most.max(high));
            }
            Some((down(least)?, up(most)?))
        };
        let bounds = bounds();
        let support = self.pool.borrow().support(unknown);
        let spans = &mut self.search.borrow_mut().spans;
        for index in support {
            match bounds {
                Some(bounds) => spans.insert(index, bounds),
                None => spans.remove(&index),
            };
        }
    }
}

/// The next power of two from `number` up, or zero, or the contrary of a power of two.
fn up(number: i64) -> Option<i64> {
    match number {
        0 => Some(0),
        1.. => number.unsigned_abs().checked_next_power_of_two()?.try_into().ok(),
        _ => Some(-(1 << number.unsigned_abs().ilog2().min(62))),
    }
}

/// The same downwards.
fn down(number: i64) -> Option<i64> {
    Some(-up(number.checked_neg()?)?)
}

struct Terms<'a> {
    pool: &'a Pool,
    search: &'a Search,
    /// How many more are looked at.
    left: usize,
}

impl Terms<'_> {
    fn span(&mut self, word: Word) -> Option<Wide> {
        self.left = self.left.checked_sub(1)?;
        let pool = self.pool;
        if let Some(number) = pool.known(word) {
            let number = i128::from(number.cast_signed());
            return Some((number, number));
        }
        if let Some((inner, by)) = pool.as_sum(word) {
            let (low, high) = self.span(inner)?;
            let by = i128::from(by.cast_signed());
            return Some((low + by, high + by));
        }
        let (mut low, mut high, mut at) = (0, 0, 0);
        for &slice in pool.slices(word) {
            let width = slice.width();
            let (least, most) = self.slice(slice, at + width == 64)?;
            (low, high) = (low + (least << at), high + (most << at));
            at += width;
        }
        Some((low, high))
    }

    /// Of a slice, which has the word's sign if it is the last one.
    fn slice(&mut self, slice: Slice, is_last: bool) -> Option<Wide> {
        let width = slice.width();
        let room = 1_i128 << width;
        let any = (!is_last).then_some((0, room - 1));
        match slice {
            Slice::Const { value, .. } => {
                let value = i128::from(value);
                let value = if is_last && value >= room / 2 { value - room } else { value };
                Some((value, value))
            }
            Slice::Part { first, .. } => {
                let atom = first.atom().filter(|_| !first.inverted() && first.index() == 0);
                let of_atom = atom.and_then(|atom| self.atom(atom, width));
                let fits = |(least, most): &Wide| match is_last {
                    true => -room / 2 <= *least && *most < room / 2,
                    false => 0 <= *least && *most < room,
                };
                of_atom.filter(fits).or(any)
            }
            Slice::Fill { .. } => any,
        }
    }

    /// Of an atom of which the lowest `width` bits count.
    fn atom(&mut self, atom: u32, width: u32) -> Option<Wide> {
        let two = |terms: &mut Self, a, b| Some((terms.span(a)?, terms.span(b)?));
        match self.pool.atoms[atom as usize].atom {
            Atom::Variable(index) => {
                let (low, high) = *self.search.spans.get(&index)?;
                Some((low.into(), high.into()))
            }
            Atom::Sum(a, by) => {
                let (low, high) = self.span(a)?;
                let by = i128::from(by & low_bits(width));
                Some((low + by, high + by))
            }
            Atom::Add(a, b) => two(self, a, b).map(|(a, b)| (a.0 + b.0, a.1 + b.1)),
            Atom::Sub(a, b) => two(self, a, b).map(|(a, b)| (a.0 - b.1, a.1 - b.0)),
            Atom::Select(_, a, b) => two(self, a, b).map(|(a, b)| (a.0.min(b.0), a.1.max(b.1))),
            Atom::Truth(_) => Some((0, 1)),
            Atom::And(..) | Atom::Xor(..) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::symbolic::Symbolic;
    use crate::{Domain, Origin};

    #[test]
    fn what_is_forgotten_lies_between_what_it_was() {
        let d = Symbolic::default();
        let number = |number: i64| d.word(number.cast_unsigned());
        let of = |a, b| d.forgotten(&[number(a), number(b)]);
        assert_eq!(d.span(of(0, 5)), Some((0, 8)));
        assert_eq!(d.span(of(-100, -70)), Some((-128, -64)));
        assert_eq!(d.span(of(i64::MIN, 0)), None);
        let (index, base) = (of(0, 1), d.variable_from("base", 64, Origin::Host));
        let address = d.add(base, d.plus(d.shl(d.truncate(d.plus(index, 1), 4), 3), -64));
        assert_eq!(d.span(d.sub(address, base)), Some((-56, -48)));
        assert_eq!(d.span(address), None);
        // One more downwards has no 32 bits.
        assert_eq!(d.span(d.truncate(d.plus(index, -1), 4)), Some((0, 0xFFFF_FFFF)));
        assert_eq!(d.span(d.plus(index, -1)), Some((-1, 0)));
        // Nothing is decided by it.
        assert_eq!(d.known(d.number(d.lt(index, d.word(9)))), None);
    }

    #[test]
    fn a_term_that_is_a_part_of_another_in_many_ways_is_not_looked_at_for_ever() {
        let d = Symbolic::default();
        let mut last = [d.forgotten(&[d.word(0), d.word(1)]), d.forgotten(&[d.word(0), d.word(1)])];
        for _ in 0..90 {
            last = [last[1], d.add(last[0], last[1])];
        }
        assert_eq!(d.span(last[1]), None);
    }
}
