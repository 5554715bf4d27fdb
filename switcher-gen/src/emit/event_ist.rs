//! Events with a stack of their own: #DB, NMI, #MC and #DF.
//!
//! **The CPU** has delivered an event through an interrupt gate with an IST index. It has loaded
//! RSP with the top of that stack, where an [`IstTop`](crate::layout::IstTop) lies, and pushed an
//! [`IretFrame`] and, for #DF, an error code. Everything else belongs to the interrupted code: a
//! guest, the switcher between any two of its instructions, or the host. After an NMI, NMIs are
//! blocked.
//! **Live**: all general registers, the flags in the frame, GS base, CR3.
//! **May be clobbered**: nothing before it is saved.
//!
//! *From a guest* it is an event like any other, but its frame moves to the sp0 stack. After an
//! NMI, NMIs stay blocked up to the host, which hands the NMI on to its handler; the handler's own
//! IRET ends the blocking (spec/hazards.md, rows 11 and 60). *From ring 0*, NMI and #MC call the
//! host's hook and leave everything as it was: CR3 and GS base are saved and restored exactly,
//! whatever they are, so that no decision rests on the address that was interrupted, on RSP or on
//! GS (rows 8 to 10). The host's GS base lies at the stack's top. The host's root is loaded if a
//! guest is being run (host_rsp is not zero). Otherwise the host's code was interrupted, on a root
//! of the host's. An LFENCE stands behind that choice: a wrong prediction must not call a hook on a
//! guest's root. What must be restored is kept on the stack, so that no register tells a hook
//! anything of what was interrupted (row 47). Mitigations stand around the hook as they do around
//! the host: see `mitigations`. The fatal hook needs none, because no guest runs on this CPU any
//! more.

use switcher_macros::asm;

use super::event::{push_registers, swapgs};
use super::event_return;
use super::mitigations::{self, Cleared};
use crate::arch::{RFlags, Selectors, vector};
use crate::asm::{HostSymbol, Label, Sink};
use crate::layout::{
    EventFrame, EventOnIst, IretFrame, IstEntry, IstFrame, LeavingIst, OrigAx, PerCpu, PtRegs, Tss,
    TssExtra,
};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    asm!(a
        ; =>Label::EventDb
        ; test  BYTE [BYTE rsp + IretFrame::cs.low_byte()], Selectors::RPL.cast_signed()
        ; jz    BYTE =>Label::EventDbRing0
        ; push  BYTE -1
        ; push  BYTE vector::DB.cast_signed()

        /// The guest's. To the sp0 stack, through RSI.
        ; =>Label::EventIstFromGuest
    );
    swapgs(a, variant);
    asm!(a
        ; push  rdi
        ; push  rsi
        ; percpu mov rdi, QWORD [PerCpu::tss + Tss::sp0]
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::iret + IretFrame::ss]
        ; mov   QWORD [BYTE rdi + IretFrame::ss.below_end()], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::iret + IretFrame::rsp]
        ; mov   QWORD [BYTE rdi + IretFrame::rsp.below_end()], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::iret + IretFrame::eflags]
        ; mov   QWORD [BYTE rdi + IretFrame::eflags.below_end()], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::iret + IretFrame::cs]
        ; mov   QWORD [BYTE rdi + IretFrame::cs.below_end()], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::iret + IretFrame::rip]
        ; mov   QWORD [BYTE rdi + IretFrame::rip.below_end()], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::error_code]
        ; mov   QWORD [BYTE rdi + EventFrame::error_code.below_end()], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::event + EventFrame::vector]
        ; mov   QWORD [BYTE rdi + EventFrame::vector.below_end()], rsi
        /// RDI below it, from where it is loaded once RSP is there. No IRETQ: NMIs stay as they are.
        ; sub   rdi, BYTE size_of::<LeavingIst>() as i8
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::rdi]
        ; mov   QWORD [BYTE rdi + LeavingIst::rdi], rsi
        ; mov   rsi, QWORD [BYTE rsp + EventOnIst::rsi]
        ; mov   rsp, rdi
        ; pop   rdi
        ; jmp   =>Label::EventOnSp0

        /// Ring 0's, left over from a MOV SS of the guest's: ignored, and not met again.
        ; =>Label::EventDbRing0
        ; and   QWORD [BYTE rsp + IretFrame::eflags], RFlags::NOT_TRACED.imm32()
        ; or    QWORD [BYTE rsp + IretFrame::eflags], RFlags::RF.imm32()
    );
    event_return::emit(a, variant);

    from_guest(a, Label::EventNmi, vector::NMI);
    asm!(a ; jmp BYTE =>Label::Interruption);
    from_guest(a, Label::EventMc, vector::MC);
    interruption(a, variant);

    asm!(a
        ; =>Label::EventDf
        ; push  BYTE vector::DF.cast_signed()
        ; test  BYTE [BYTE rsp + EventFrame::iret + IretFrame::cs.low_byte()], Selectors::RPL.cast_signed()
        ; jnz   =>Label::EventIstFromGuest
    );
    push_registers(a);
    asm!(a
        ; mov   rdi, rsp
        ; mov   rax, QWORD [rsp + IstFrame::gs_base]
        ; jmp   BYTE =>Label::Fatal

        /// RDI points to a PtRegs, wherever that is.
        ; =>Label::EventFatal
        ; mov   rax, QWORD [BYTE rsp + IstEntry::gs_base]
        ; =>Label::Fatal
        ; wrgsbase rax
        ; percpu cmp QWORD [PerCpu::tss_extra + TssExtra::host_rsp], BYTE 0
        ; je    BYTE =>Label::FatalHook
        ; percpu mov rcx, QWORD [PerCpu::tss_extra + TssExtra::host_cr3]
        ; mov   cr3, rcx
        /// No code of the host's before it is certain that this is its root.
        ; =>Label::FatalHook
        ; lfence
    );
    clear_registers(a, Cleared::default());
    asm!(a
        ; push  BYTE RFlags::HOST_EXIT.imm8()
        ; popfq
        ; push  rax
        ; call  extern HostSymbol::FATAL
        ; =>Label::NoHook
        ; ud2
    );
}

/// The entry of an event that has no error code and may come at any instruction. If it has
/// interrupted ring 0, it falls through.
#[rustfmt::skip]
fn from_guest<S: Sink>(a: &mut S, entry: Label, vector: u8) {
    asm!(a
        ; =>entry
        ; push  BYTE -1
        ; push  BYTE vector.cast_signed()
        ; test  BYTE [BYTE rsp + EventFrame::iret + IretFrame::cs.low_byte()], Selectors::RPL.cast_signed()
        ; jnz   =>Label::EventIstFromGuest
    );
}

/// Clears the registers, so that none holds a value of the interrupted code: it may be a guest's,
/// and the hook's speculation would read it. RDI points to the `PtRegs`. RAX holds the host's GS
/// base, SPEC_CTRL or a constant, unless [`Cleared`] says otherwise.
#[rustfmt::skip]
fn clear_registers<S: Sink>(a: &mut S, left: Cleared) {
    a.comment("No register that a guest could steer speculation with.");
    if left.untrained {
        asm!(a ; xor eax, eax);
    }
    if !left.rcx_known {
        asm!(a ; xor ecx, ecx);
    }
    if !left.rdx {
        asm!(a ; xor edx, edx);
    }
    asm!(a
        ; xor   ebx, ebx
        ; xor   ebp, ebp
        ; xor   esi, esi
        ; xor   r8d, r8d
        ; xor   r9d, r9d
        ; xor   r10d, r10d
        ; xor   r11d, r11d
        ; xor   r12d, r12d
        ; xor   r13d, r13d
        ; xor   r14d, r14d
        ; xor   r15d, r15d
    );
}

/// NMI and #MC in ring 0: calls the hook, restores everything and goes on.
#[rustfmt::skip]
fn interruption<S: Sink>(a: &mut S, variant: &Variant) {
    asm!(a ; =>Label::Interruption);
    push_registers(a);
    asm!(a
        /// Ring 0's. What is to be as it was is kept on the stack: the hook gets no register of it.
        ; mov   rdi, rsp
        ; rdgsbase rax
        ; push  rax
        ; mov   rax, cr3
        ; push  rax
        ; mov   rax, QWORD [rdi + IstFrame::gs_base]
        ; wrgsbase rax
        ; percpu cmp QWORD [PerCpu::tss_extra + TssExtra::host_rsp], BYTE 0
        ; je    BYTE =>Label::InterruptionHook
        ; percpu mov rcx, QWORD [PerCpu::tss_extra + TssExtra::host_cr3]
        ; mov   cr3, rcx
        /// No code of the host's before it is certain that this is its root.
        ; =>Label::InterruptionHook
        ; lfence
    );
    let left = mitigations::before_hook(a, variant);
    clear_registers(a, left);
    asm!(a
        ; push  BYTE RFlags::HOST_EXIT.imm8()
        ; popfq
        ; push  rax
        ; cmp   BYTE [BYTE rdi + PtRegs::orig_ax + OrigAx::reason.low_byte()], vector::MC.cast_signed()
        ; je    BYTE =>Label::McHook
        ; call  extern HostSymbol::NMI
        ; jmp   BYTE =>Label::InterruptionOver
        ; =>Label::McHook
        ; call  extern HostSymbol::MACHINE_CHECK
        ; =>Label::InterruptionOver
        ; pop   rax
    );
    mitigations::after_hook(a, variant);
    asm!(a
        ; pop   rax
        ; mov   cr3, rax
        ; pop   rax
        ; wrgsbase rax
        ; pop   r15
        ; pop   r14
        ; pop   r13
        ; pop   r12
        ; pop   rbp
        ; pop   rbx
        ; pop   r11
        ; pop   r10
        ; pop   r9
        ; pop   r8
        ; pop   rax
        ; pop   rcx
        ; pop   rdx
        ; pop   rsi
        ; pop   rdi
        /// An NMI's IRETQ ends the blocking of others. A #MC may have interrupted an NMI.
        ; add   rsp, BYTE size_of::<OrigAx>() as i8
        ; cmp   BYTE [BYTE rsp + OrigAx::reason.low_byte().below_end()], vector::MC.cast_signed()
        ; je    =>Label::ResumeRing0
    );
    mitigations::before_ring_0(a, variant);
    asm!(a ; iretq);
}
