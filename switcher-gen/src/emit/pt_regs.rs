//! The registers of a [`PtRegs`](crate::layout::PtRegs), onto the stack: of what exits, and of what
//! an event interrupts.

use switcher_macros::asm;

use crate::asm::Sink;

/// The general registers that lie below RDI, which is there already.
#[rustfmt::skip]
pub(super) fn push_below_rdi<S: Sink>(a: &mut S) {
    asm!(a
        ; push  rsi
        ; push  rdx
        ; push  rcx
        ; push  rax
        ; push  r8
        ; push  r9
        ; push  r10
        ; push  r11
        ; push  rbx
        ; push  rbp
        ; push  r12
        ; push  r13
        ; push  r14
        ; push  r15
    );
}
