//! The direct switch from umod to smod: a SYSCALL of the guest's user mode.
//!
//! **Reached** from `syscall_64` with no inhibitor set, so a PVCS is registered and smod's root is
//! prepared; on umod's root. With [`Placement::Gs`] on the sp0 stack, with the host's GS, umod's RSP
//! in sp2; with [`Placement::PerCpu`] RSP and GS are umod's still.
//! **Live**: all general registers (RCX = RIP, R11 = RFLAGS).
//! **May be clobbered**: RCX and R11, once they are saved; they and RSP are loaded for smod.
//!
//! The PVCS is only written here. smod's entry, GS base and RSP come from the host's memory.

use switcher_macros::asm;

use crate::arch::RFlags;
use crate::asm::{Sink, Window};
use crate::layout::{
    IretFrame, PerCpu, Placement, Pvcs, PvcsLayout, Revision, SwitchFlags, Tss, TssExtra, disp8,
};
use crate::variant::Variant;

pub(super) fn emit<S: Sink, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    match variant.axes().policy.placement {
        Placement::Gs => on_the_hosts_stack::<S, P>(a, variant),
        Placement::PerCpu => without_a_stack::<S, P>(a, variant),
    }
}

// What is pushed first, RDI, makes room; what is pushed next is where the shared SYSRETQ finds RSP.
const _: () = assert!(
    disp8::<8, _, _>(IretFrame::rsp.below_end()) == -2 * size_of::<u64>() as i8,
    "smod's RSP is pushed second"
);

#[rustfmt::skip]
fn on_the_hosts_stack<S: Sink, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();
    let revision = variant.axes().policy.revision;

    asm!(a
        /// umod -> smod. RDI is saved to hold the PVCS.
        ; push  rdi
    );
    match revision {
        Revision::Rfc => asm!(a ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_rsp]),
        Revision::Current => asm!(a ; gs push QWORD [PerCpu::tss + Tss::sp2]),
    }
    asm!(a
        ; gs mov rdi, QWORD [PerCpu::tss_extra + TssExtra::pvcs]
        ; mov   QWORD [BYTE rdi + P::RIP], rcx
        ; mov   QWORD [BYTE rdi + P::RCX], rcx
        ; mov   QWORD [BYTE rdi + P::R11], r11
        ; mov   DWORD [BYTE rdi + P::EFLAGS], r11d
        ; mov   DWORD [BYTE rdi + P::USER_CS.pair(P::USER_SS)], selectors.user_pair().cast_signed()
    );
    if revision == Revision::Rfc {
        asm!(a
            ; gs mov rcx, QWORD [PerCpu::tss + Tss::sp2]
            ; mov   QWORD [BYTE rdi + Pvcs::rsp], rcx
        );
    }
    asm!(a
        /// Mode and root change together.
        ; gs xor BYTE [PerCpu::tss_extra + TssExtra::switch_flags.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; gs mov rcx, QWORD [PerCpu::tss_extra + TssExtra::smod_cr3]
        ; mov   cr3, rcx
        ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        ; gs mov r11, QWORD [PerCpu::tss_extra + TssExtra::smod_gsbase]
        /// GS is the guest's from here on: umod's, then smod's.
        ; swapgs
        ; rdgsbase rcx
        ; mov   QWORD [BYTE rdi + P::USER_GSBASE], rcx
        ; wrgsbase r11
        /// smod's RIP. Its RSP passes through R11 and stays below RSP, as in an IRET frame.
        ; pop   rcx
        ; pop   r11
        ; pop   rdi
        ; mov   r11d, RFlags::SMOD_ENTRY.imm32()
    );
    // Falls through to `Label::Sysretq`, which takes RSP from below sp0.
}

/// RSP itself holds the PVCS meanwhile.
#[rustfmt::skip]
fn without_a_stack<S: Sink, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();
    let revision = variant.axes().policy.revision;

    match revision {
        Revision::Rfc => asm!(a
            /// umod -> smod, without a stack: RSP is saved to hold the PVCS.
            ; percpu mov QWORD [PerCpu::tss + Tss::sp2], rsp
        ),
        Revision::Current => asm!(a
            /// umod -> smod. RSP passes through; until then it holds the PVCS.
            ; percpu mov QWORD [PerCpu::tss_extra + TssExtra::smod_rsp], rsp
        ),
    }
    asm!(a
        ; percpu mov rsp, QWORD [PerCpu::tss_extra + TssExtra::pvcs]
        ; mov   QWORD [BYTE rsp + P::RIP], rcx
        ; mov   QWORD [BYTE rsp + P::RCX], rcx
        ; mov   QWORD [BYTE rsp + P::R11], r11
        ; mov   DWORD [BYTE rsp + P::EFLAGS], r11d
        ; mov   DWORD [BYTE rsp + P::USER_CS.pair(P::USER_SS)], selectors.user_pair().cast_signed()
    );
    if revision == Revision::Rfc {
        asm!(a
            ; percpu mov rcx, QWORD [PerCpu::tss + Tss::sp2]
            ; mov   QWORD [BYTE rsp + Pvcs::rsp], rcx
        );
    }
    asm!(a
        /// Mode and root change together.
        ; percpu xor BYTE [PerCpu::tss_extra + TssExtra::switch_flags.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; percpu mov rcx, QWORD [PerCpu::tss_extra + TssExtra::smod_cr3]
        ; mov   cr3, rcx
        /// GS has been the guest's all the time: umod's, then smod's.
        ; rdgsbase rcx
        ; mov   QWORD [BYTE rsp + P::USER_GSBASE], rcx
        ; percpu mov rcx, QWORD [PerCpu::tss_extra + TssExtra::smod_gsbase]
        ; wrgsbase rcx
        /// smod. Nothing may come between the load of RSP and SYSRETQ.
        ; percpu mov rcx, QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        ; mov   r11d, RFlags::SMOD_ENTRY.imm32()
        ; percpu mov rsp, QWORD [PerCpu::tss_extra + TssExtra::smod_rsp]
        ; sysretq
    );
    a.close(Window::UnsafeStack);
}
