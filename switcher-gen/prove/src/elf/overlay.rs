//! Bytes that run instead of those of a file, and what is relocated in them.

use std::ops::Range;

use super::error::ReadError;
use super::leads::Out;

/// Bytes in the place of others.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) bytes: Vec<u8>,
    /// What could not be resolved in them.
    pub(super) wrong: Vec<(Range<u64>, ReadError)>,
    /// Where they hold distances to what a linker puts elsewhere.
    pub(super) out: Vec<(Range<u64>, Out)>,
    /// Where they hold what follows from a number.
    pub(super) numbers: Vec<Range<u64>>,
}

/// All of them, by address; no two overlap.
#[derive(Clone, Default)]
pub(super) struct Overlay(Vec<Piece>);

impl Overlay {
    /// Puts a piece over what is there; `false` if it lies over a part of another one.
    pub(super) fn put(&mut self, piece: Piece) -> bool {
        let first = self.0.partition_point(|other| other.range.end <= piece.range.start);
        let last = self.0.partition_point(|other| other.range.start < piece.range.end);
        let is_covered = |other: &Piece| {
            piece.range.start <= other.range.start && other.range.end <= piece.range.end
        };
        if !self.0[first..last].iter().all(is_covered) {
            return false;
        }
        self.0.splice(first..last, [piece]);
        true
    }

    /// Whether there is a piece over some of a range.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        !self.over(range).is_empty()
    }

    /// The pieces that share bytes with a range.
    pub(super) fn over(&self, range: &Range<u64>) -> &[Piece] {
        let first = self.0.partition_point(|piece| piece.range.end <= range.start);
        let last = self.0.partition_point(|piece| piece.range.start < range.end);
        self.0.get(first..last).unwrap_or_default()
    }
}
