//! The bytes that are put over those of a file, and what is relocated in them.

use std::ops::Range;

use super::super::error::ReadError;
use super::super::leads::Out;

/// Bytes in the place of others.
#[derive(Clone)]
pub(in super::super) struct Piece {
    pub(in super::super) range: Range<u64>,
    pub(in super::super) bytes: Vec<u8>,
    /// What could not be resolved in them.
    pub(in super::super) wrong: Vec<(Range<u64>, ReadError)>,
    /// Where they hold distances to what a linker puts elsewhere.
    pub(in super::super) out: Vec<(Range<u64>, Out)>,
    /// Where they hold what follows from a number.
    pub(in super::super) numbers: Vec<Range<u64>>,
}

/// All of them, by address; no two overlap.
#[derive(Clone, Default)]
pub(in super::super) struct Overlay(Vec<Piece>);

impl Overlay {
    /// Puts a piece over what is there; `false` if it lies over a part of another one.
    pub(super) fn put(&mut self, piece: Piece) -> bool {
        let overlaps = |other: &Piece| {
            other.range.start < piece.range.end && piece.range.start < other.range.end
        };
        let first = self.0.partition_point(|other| other.range.end <= piece.range.start);
        match self.0.get(first) {
            Some(other) if other.range == piece.range => self.0[first] = piece,
            Some(other) if overlaps(other) => return false,
            _ => self.0.insert(first, piece),
        }
        true
    }

    /// The pieces that share bytes with a range.
    pub(in super::super) fn over(&self, range: &Range<u64>) -> &[Piece] {
        let first = self.0.partition_point(|piece| piece.range.end <= range.start);
        let last = self.0.partition_point(|piece| piece.range.start < range.end);
        self.0.get(first..last).unwrap_or_default()
    }
}
