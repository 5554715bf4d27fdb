//! Events on the sp0 stack: every vector without a stack of the IST.
//!
//! **The CPU** has delivered an event through an interrupt gate. IF, TF, NT and RF are clear; the
//! other flags and all registers except RSP, GS base and CR3 included, are those of the interrupted
//! code. If that ran at CPL 3, the CPU has loaded RSP with sp0; in ring 0 it has aligned RSP to 16.
//! It has pushed an [`IretFrame`](crate::layout::IretFrame) there and, with some vectors, an error
//! code. Then a stub of `event_stubs` has pushed the vector.
//! **Live**: all general registers.
//! **May be clobbered**: nothing before it is saved.
//!
//! The saved CS says whose event it is, because only the CPU can have written it; RSP and GS base
//! do not say it (spec/hazards.md, row 10). If CPL 3 was interrupted, GS base is the guest's. In
//! ring 0, only the one IRETQ to a guest may fault. A guest's registers and GS base are loaded by
//! then, so the fault is treated as the guest's event. Any other event in ring 0 that arrives here
//! is the host's: its handler gets what its own code has raised, as the CPU has delivered it; what
//! has interrupted the image itself cannot be gone on from, because RSP may be a guest's there.

use switcher_macros::asm;

use super::pt_regs::push_below_rdi;
use crate::arch::{Selectors, vector};
use crate::asm::{HostSymbol, Label, Sink, Window};
use crate::layout::{EventFrame, IretFrame, OrigAx, Placement, PtRegs, RefusedIretq};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    a.open(Window::GuestRoot);
    asm!(a
        /// No error code: -1 takes its place, behind the vector.
        ; =>Label::Event
        ; push  QWORD [BYTE rsp + EventFrame::vector]
        ; mov   QWORD [BYTE rsp + EventFrame::error_code], -1
        /// Whose event?
        ; =>Label::EventError
        ; test  BYTE [BYTE rsp + EventFrame::iret + IretFrame::cs.low_byte()], Selectors::RPL.cast_signed()
        ; jz    BYTE =>Label::EventRing0

        /// The guest's. No access by GS before it is certain whose GS base this is.
        ; =>Label::EventFromGuest
    );
    swapgs(a, variant);
    asm!(a ; =>Label::EventOnSp0);
    push_registers(a);
    asm!(a
        ; jmp   =>Label::ReturnFromGuest

        /// Of ring 0, #GP, #SS or #NP of the IRETQ to a guest?
        ; =>Label::EventRing0
        ; push  rax
        ; lea   rax, [=>Label::Iretq]
        ; cmp   rax, QWORD [BYTE rsp + RefusedIretq::rip]
        ; jne   BYTE =>Label::EventUnexpected
        ; movzx eax, BYTE [BYTE rsp + RefusedIretq::vector.low_byte()]
        ; sub   eax, BYTE vector::NP.cast_signed()
        ; cmp   eax, (vector::GP - vector::NP).into()
        ; ja    BYTE =>Label::EventUnexpected
        /// It is the guest's, of the registers that the IRETQ was to load.
        ; mov   rax, QWORD [BYTE rsp + RefusedIretq::error_code]
        ; mov   QWORD [BYTE rsp + RefusedIretq::guests + EventFrame::error_code], rax
        ; mov   rax, QWORD [BYTE rsp + RefusedIretq::vector]
        ; mov   QWORD [BYTE rsp + RefusedIretq::guests + EventFrame::vector], rax
        ; pop   rax
        ; add   rsp, BYTE (RefusedIretq::guests.bytes() - size_of::<u64>()) as i8
        ; jmp   BYTE =>Label::EventFromGuest

        /// The host's own code? Its handler goes on from here.
        ; =>Label::EventUnexpected
        ; lea   rax, [=>Label::Routines]
        ; cmp   QWORD [BYTE rsp + RefusedIretq::rip], rax
        ; jb    BYTE =>Label::EventInHost
        ; lea   rax, [=>Label::End]
        ; cmp   QWORD [BYTE rsp + RefusedIretq::rip], rax
        ; jae   BYTE =>Label::EventInHost
        ; pop   rax

        /// The stack may be any: go to a known one, through a gate that has it.
        ; =>Label::Unhandled
    );
    push_registers(a);
    asm!(a
        ; mov   rdi, rsp
        ; int   vector::SEGMENT_OVERRUN.cast_signed()
        ; ud2

        /// Not before it is certain that it is the host's, whose stack this is.
        ; =>Label::EventInHost
        ; lfence
        ; pop   rax
        ; jmp   extern HostSymbol::EXCEPTION
    );
}

/// SWAPGS, and a fence, since it depends on a test of what was interrupted (spec/hazards.md, row
/// 28). With [`Placement::PerCpu`], the next access relative to GS is the host's own. It comes
/// after the exit's load of CR3, which is a fence itself.
#[rustfmt::skip]
pub(super) fn swapgs<S: Sink>(a: &mut S, variant: &Variant) {
    asm!(a ; swapgs);
    if variant.placement() == Placement::Gs {
        asm!(a ; lfence);
    }
}

/// Turns an [`EventFrame`] into a [`PtRegs`]. The frame's lowest word holds the vector, in the
/// place of RDI.
#[rustfmt::skip]
pub(super) fn push_registers<S: Sink>(a: &mut S) {
    push_below_rdi(a);
    asm!(a
        ; movzx eax, BYTE [BYTE rsp + PtRegs::rdi.low_byte()]
        ; mov   QWORD [BYTE rsp + PtRegs::rdi], rdi
        ; mov   DWORD [BYTE rsp + PtRegs::orig_ax + OrigAx::reason], eax
    );
}
