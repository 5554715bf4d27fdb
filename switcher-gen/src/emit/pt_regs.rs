//! Pushes the registers of a [`PtRegs`](crate::layout::PtRegs): those of a guest that exits, or of
//! the code that an event has interrupted.

use switcher_macros::asm;

use crate::asm::Sink;

/// Pushes the general registers that lie below RDI in a `PtRegs`. RDI has been pushed already.
/// **May be clobbered**: nothing.
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
