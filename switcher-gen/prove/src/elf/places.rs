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
pub(super) const BASE: u64 = 0xFFFF_FE80_0000_0000;
/// Code, and the names in it, may not take more memory than this, whatever a file says.
pub(super) const LIMIT: u64 = 16 << 20;
/// An object's code reaches all of itself, as far as a displacement of 32 bits can.
pub(super) const REACH: u64 = 1 << 30;
