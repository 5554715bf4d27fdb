//! How #DB and #MC return to ring 0. NMIs are blocked afterwards if they were before, and only then
//! (spec/hazards.md, row 39).
//!
//! **Reached** from `event_ist`: the #DB has been ignored, or the hook of the #MC has returned.
//! **Live**: RSP points to the [`IretFrame`] that the CPU has pushed on the event's own stack, with
//! the flags to return with. Every other register holds the interrupted code's value again.
//! **May be clobbered**: flags, and the stack below the frame.
//!
//! An IRETQ ends the blocking of NMIs, whatever it returns to. If what was interrupted is an NMI's
//! own entry, its hook, its return or its exit, the next NMI would then come too early, and
//! overwrite the frame that this one still needs. So the IRETQ is only for code in which NMIs are
//! never blocked: the routines up to the common exit, from [`Label::Routines`] to
//! [`Label::RoutinesEnd`]. There RSP may be a guest's. Everywhere else, in the common exit, in
//! events, in stubs and in the host's code, RSP is a stack of ring 0, and there is another way
//! back: flags, RIP and CS are written below the 128 bytes under RSP that host code may use, and a
//! far RET takes them from there. A far RET does not change whether NMIs are blocked. CPUs do not
//! predict it either, so nothing that a guest has trained can lead it astray; a near RET would need
//! the mitigations of an exit.
//!
//! The interrupted RIP alone decides which way is taken, because RSP may be a guest's (row 10). A
//! CPU that takes a guest's code for ring 0's by a wrong prediction would write to and read from
//! wherever a guest's RSP points, and the far RET and VERW would read the descriptor that is named
//! there (row 61). An LFENCE keeps it from that until it knows.
//!
//! POPFQ cannot set RF, so an instruction breakpoint in code that is returned to by the far RET
//! would be met again for ever. A guest's breakpoints lie in its own addresses, and a host sets
//! none in that code while the switcher's IDT is loaded.

use switcher_macros::asm;

use super::mitigations;
use crate::asm::{Label, Sink};
use crate::layout::{FarFrame, IretFrame, ResumingRing0};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    asm!(a
        /// NMIs are not blocked in the routines, and RSP may be the guest's there: by IRETQ.
        ; =>Label::ResumeRing0
        ; push  rax
        ; push  rcx
        ; lea   rax, [=>Label::Routines]
        ; cmp   QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::rip], rax
        ; jb    BYTE =>Label::ResumeOnStack
        ; lea   rax, [=>Label::RoutinesEnd]
        ; cmp   QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::rip], rax
        ; jae   BYTE =>Label::ResumeOnStack
        ; pop   rcx
        ; pop   rax
    );
    mitigations::before_ring_0(a, variant);
    asm!(a
        ; iretq

        /// Elsewhere they may be: without IRETQ, below the interrupted RSP, which is a stack of ring 0.
        /// Not before it is certain that it is.
        ; =>Label::ResumeOnStack
        ; lfence
        ; mov   rax, QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::rsp]
        ; sub   rax, FarFrame::ROOM as i32
        ; mov   rcx, QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::eflags]
        ; mov   QWORD [BYTE rax + FarFrame::eflags], rcx
        ; mov   rcx, QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::rip]
        ; mov   QWORD [BYTE rax + FarFrame::rip], rcx
        ; mov   rcx, QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::cs]
        ; mov   QWORD [BYTE rax + FarFrame::cs], rcx
        ; mov   QWORD [BYTE rsp + ResumingRing0::iret + IretFrame::rsp], rax
        ; pop   rcx
        ; pop   rax
        ; mov   rsp, QWORD [BYTE rsp + IretFrame::rsp]
    );
    mitigations::before_far_return(a, variant);
    asm!(a
        ; popfq
        ; retfq FarFrame::RED_ZONE as i16
    );
}
