//! Where things lie: places in an object, where its code is put, and how much of it there may be.

use std::fmt;

/// A place in an object, in the way disassemblers show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceInFile {
    /// The section's name.
    pub section: String,
    /// Bytes from its start.
    pub offset: u64,
}

impl fmt::Display for PlaceInFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.section, self.offset)
    }
}

/// Where the code of an object is put: see [`Foreign::BASE`](super::Foreign::BASE).
///
/// It is an address as Linux's code has one, in the last 2 GiB of addresses, which 32 bits reach
/// with their sign: in front of it is room for the host's routines, and after the code for per-CPU
/// variables.
pub(super) const BASE: u64 = 0xFFFF_FFFF_A000_0000;
/// Code, and the names in it, may not take more memory than this, whatever a file says.
pub(super) const LIMIT: u64 = 16 << 20;
/// An object's code reaches all of itself, as far as a displacement of 32 bits can.
pub(super) const REACH: u64 = 1 << 30;
/// How much of that is left for what an object refers to and does not have.
pub(super) const ELSEWHERE: u64 = 1 << 20;
