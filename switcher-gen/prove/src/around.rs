//! What lies around an instruction: all that a proof may ask of code beside what is executed of it.
//!
//! What was proved of other code is taken for this only if the answers are the same: see
//! [`shared`](super::shared). So a question that is not in here must not be asked.

use iced_x86::Mnemonic;

use super::mitigations::is_in_upper_half;
use super::target::Target;
use switcher_gen::asm::LINE;
use switcher_model::program::Op;

/// The answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Around {
    /// The trap right behind the instruction, which catches speculation that goes on there.
    pub(super) trap: Option<Mnemonic>,
    /// Whether it is a call of what lies right behind its trap, so that the call's return address is
    /// that of a trap and the code goes on.
    pub(super) fills: bool,
    /// Whether it ends in the upper half of its cache line, if a predictor says where it leads.
    pub(super) is_upper: Option<bool>,
    /// Whether it leads to its own cache line, if it says itself where.
    pub(super) stays_in_line: Option<bool>,
}

impl Target {
    /// What lies around the instruction at `at`.
    pub(super) fn around(&self, at: u64) -> Around {
        let instruction = self.program.instruction(at);
        let next = instruction.next_ip();
        let trap = self.is_trap_behind(at).then(|| self.program.instruction(next));
        let to = (instruction.near_branch_target() != 0).then(|| instruction.near_branch_target());
        let op = self.program.at(at).and_then(Result::ok);
        let is_predicted = op.is_some_and(Op::is_predicted);
        let line = LINE as u64;
        Around {
            trap: trap.map(|trap| trap.mnemonic()),
            fills: to.is_some() && to == self.behind_trap(at),
            is_upper: is_predicted.then(|| is_in_upper_half(next.wrapping_sub(1))),
            stays_in_line: to.map(|to| to / line == at / line),
        }
    }
}
