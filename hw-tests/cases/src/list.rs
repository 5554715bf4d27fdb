//! The case list. Names are sentences about what a right switcher does.

mod direct;
mod exits;
mod gs;
mod guest_faults;
mod returns;

use alloc::vec::Vec;

use crate::run::Case;

/// The parts of the list, in the order in which they are run.
const PARTS: [&[Case]; 5] =
    [direct::CASES, returns::CASES, gs::CASES, exits::CASES, guest_faults::CASES];

/// All cases.
#[must_use]
pub fn all() -> Vec<Case> {
    PARTS.concat()
}

/// How many random guests show that something holds for all.
const MANY: u32 = 2000;
/// How many, where each bit or row is tried by itself.
const SOME: u32 = 20;
