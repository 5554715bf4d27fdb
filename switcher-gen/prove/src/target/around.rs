//! What lies around an instruction: all that a proof may ask of code beside what is executed of it.
//!
//! What was proved of other code is taken for this only if the answers are the same: see
//! [`Shared`](crate::Shared). So a question that is not in here must not be asked.

use std::hash::Hash;

use iced_x86::Mnemonic;

use crate::target::Target;
use switcher_gen::asm::LINE;
use switcher_model::program::Op;

/// What lies around an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Around {
    /// The trap right after the instruction, which catches speculation that goes on there.
    pub(crate) trap: Option<Mnemonic>,
    /// Whether it is a call of what lies right after its trap, so that the call's return address is
    /// that of a trap and the code goes on.
    pub(crate) fills: bool,
    /// Whether it ends in the upper half of its cache line, if a predictor says where it leads.
    pub(crate) is_upper: Option<bool>,
    /// Whether it leads to its own cache line, if it says itself where.
    pub(crate) stays_in_line: Option<bool>,
}

impl Target {
    /// What lies around the instruction at `at`.
    pub(crate) fn around(&self, at: u64) -> Around {
        let instruction = self.program.instruction(at);
        let next = instruction.next_ip();
        let trap = self.is_trap_after(at).then(|| self.program.instruction(next));
        let to = (instruction.near_branch_target() != 0).then(|| instruction.near_branch_target());
        let op = self.program.at(at).and_then(Result::ok);
        let is_predicted = op.is_some_and(Op::is_predicted);
        let line = LINE as u64;
        Around {
            trap: trap.map(|trap| trap.mnemonic()),
            fills: to.is_some() && to == self.after_trap(next),
            is_upper: is_predicted.then(|| is_in_upper_half(next.wrapping_sub(1))),
            stays_in_line: to.map(|to| to / line == at / line),
        }
    }
}

/// Whether the byte at `address` is in the upper half of its line.
const fn is_in_upper_half(address: u64) -> bool {
    address & (LINE as u64 / 2) != 0
}
