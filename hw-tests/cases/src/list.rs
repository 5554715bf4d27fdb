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

/// Machine code the guests are made of.
mod code {
    /// SYSCALL.
    pub(super) const SYSCALL: &[u8] = &[0x0F, 0x05];
    /// UD2: an exit that shows every register.
    pub(super) const PROBE: &[u8] = &[0x0F, 0x0B];
    /// NOP; UD2.
    pub(super) const NOP_PROBE: &[u8] = &[0x90, 0x0F, 0x0B];
    /// SYSCALL; UD2.
    pub(super) const SYSCALL_PROBE: &[u8] = &[0x0F, 0x05, 0x0F, 0x0B];
}

/// How many random guests show that something holds for all.
const MANY: u32 = 2000;
/// How many, where each bit or row is tried by itself.
const SOME: u32 = 20;
