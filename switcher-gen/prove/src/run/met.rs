//! What a run has read of the PVCS while the guest writes it.
//!
//! Each read finds something new, so no two reads need agree, and the specification has nothing to
//! compare with but this: for each field, **one of the values that were read of it**. With those it
//! must make what the machine has made. Anything else, such as a constant or a value of the host's,
//! is wrong, even if a guest might have written it.

use crate::world::fields::FieldAt;
use switcher_model::Domain;

/// One read of the PVCS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read<W> {
    at: usize,
    size: usize,
    value: W,
}

/// All reads, the latest last.
#[derive(Debug)]
pub(crate) struct Met<W> {
    reads: Vec<Read<W>>,
}

impl<W> Default for Met<W> {
    fn default() -> Self {
        Self { reads: Vec::new() }
    }
}

impl<W: Copy> Met<W> {
    /// `size` bytes at offset `at` of the PVCS were found to be `value`.
    pub(crate) fn read(&mut self, at: usize, size: usize, value: W) {
        self.reads.push(Read { at, size, value });
    }

    /// Whether some byte was read more than once, so that there is a choice between what was found.
    pub(crate) fn is_a_choice(&self) -> bool {
        let overlap = |a: &Read<W>, b: &Read<W>| a.at < b.at + b.size && b.at < a.at + a.size;
        let mut reads = self.reads.iter().enumerate();
        reads.any(|(n, one)| self.reads[n + 1..].iter().any(|other| overlap(one, other)))
    }

    /// What was read of a field: by each read that has all of it, and, put together, by the latest
    /// reads of its bytes.
    fn values<D: Domain<Word = W>>(&self, d: &D, (_, at, size): FieldAt) -> Vec<W> {
        let at = at as usize;
        let covers = |read: &&Read<W>, at, size| read.at <= at && at + size <= read.at + read.size;
        let part = |read: &Read<W>, at: usize, size| {
            d.truncate(d.shr(read.value, 8 * (at - read.at) as u32), size)
        };
        let whole = self.reads.iter().filter(|read| covers(read, at, size));
        let mut values: Vec<_> = whole.map(|read| part(read, at, size)).collect();
        if values.is_empty() {
            let bytes = (0..size).map(|index| {
                let read = self.reads.iter().rev().find(|read| covers(read, at + index, 1))?;
                Some(d.shl(part(read, at + index, 1), 8 * index as u32))
            });
            let bytes: Option<Vec<_>> = bytes.collect();
            values.extend(bytes.and_then(|bytes| bytes.into_iter().reduce(|a, b| d.or(a, b))));
        }
        values
    }

    /// A value that was read of `field` and `fits`; if none does, one that does not. `None` if the
    /// field was not read.
    pub(crate) fn one<D: Domain<Word = W>>(
        &self,
        d: &D,
        field: FieldAt,
        fits: impl Fn(W) -> D::Bit,
    ) -> Option<W> {
        self.values(d, field).into_iter().reduce(|other, one| d.select(fits(one), one, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_model::Concrete;

    fn met(reads: &[(usize, usize, u64)]) -> Met<u64> {
        let mut met = Met::default();
        reads.iter().for_each(|(at, size, value)| met.read(*at, *size, *value));
        met
    }

    #[test]
    fn of_several_reads_one_that_fits_is_taken() {
        let d = Concrete::default();
        let met = met(&[(8, 8, 1), (8, 8, 2), (8, 8, 3)]);
        assert_eq!(met.one(&d, ("rip", 8, 8), |value| value == 2), Some(2));
        assert_ne!(met.one(&d, ("rip", 8, 8), |value| value == 9), Some(9));
        assert_eq!(met.one(&d, ("rcx", 16, 8), |_| true), None);
    }

    #[test]
    fn two_reads_of_a_byte_are_a_choice() {
        assert!(!met(&[(8, 8, 1), (16, 8, 1)]).is_a_choice());
        assert!(met(&[(8, 8, 1), (16, 8, 1), (15, 1, 1)]).is_a_choice());
    }

    #[test]
    fn a_field_is_a_part_of_what_was_read_or_put_together() {
        let d = Concrete::default();
        let pair = met(&[(0x40, 4, 0x002B_0033)]);
        assert_eq!(pair.one(&d, ("user_cs", 0x40, 2), |_| true), Some(0x33));
        assert_eq!(pair.one(&d, ("user_ss", 0x42, 2), |_| true), Some(0x2B));
        let halves = met(&[(8, 4, 0x1111_1111), (12, 4, 0x2222_2222)]);
        assert_eq!(halves.one(&d, ("rip", 8, 8), |_| true), Some(0x2222_2222_1111_1111));
        // Half of it is not all of it.
        assert_eq!(met(&[(8, 4, 1)]).one(&d, ("rip", 8, 8), |_| true), None);
    }
}
