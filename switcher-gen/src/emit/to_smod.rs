//! The direct switch from umod to smod: a SYSCALL of the guest's user mode.
//!
//! **Reached** from `syscall_64` with no inhibitor set, so a PVCS is registered and smod's root is
//! prepared; on the sp0 stack, with the host's GS and umod's root.
//! **Live**: all general registers (RCX = RIP, R11 = RFLAGS), umod's RSP in sp2.
//! **May be clobbered**: RCX and R11, once they are saved; they and RSP are loaded for smod.
//!
//! The PVCS is only written here. smod's entry, GS base and RSP come from the host's memory.

use switcher_macros::asm;

use crate::arch::RFlags;
use crate::asm::Sink;
use crate::layout::{AsmLayout, IretFrame, PerCpu, Pvcs, SwitchFlags, Tss, TssExtra};
use crate::variant::Variant;

/// What is kept on the sp0 stack across SWAPGS, when the per-CPU block is out of reach.
#[derive(AsmLayout)]
#[repr(C)]
#[asm(size = 32)]
struct SmodFrame {
    rip: u64,
    gsbase: u64,
    rdi: u64,
    rsp: u64,
}

// The shared SYSRETQ finds RSP where an IRET frame has it.
const _: () = assert!(SmodFrame::rsp.bytes() == IretFrame::rsp.bytes());

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();

    asm!(a
        /// umod -> smod. RDI is saved to hold the PVCS.
        ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_rsp]
        ; push  rdi
        ; gs mov rdi, QWORD [PerCpu::tss_extra + TssExtra::pvcs]
        ; mov   QWORD [BYTE rdi + Pvcs::rip], rcx
        ; mov   QWORD [BYTE rdi + Pvcs::rcx], rcx
        ; mov   QWORD [BYTE rdi + Pvcs::r11], r11
        ; mov   DWORD [BYTE rdi + Pvcs::eflags], r11d
        ; mov   DWORD [BYTE rdi + Pvcs::user_cs.pair(Pvcs::user_ss)], selectors.user_pair().cast_signed()
        ; gs mov rcx, QWORD [PerCpu::tss + Tss::sp2]
        ; mov   QWORD [BYTE rdi + Pvcs::rsp], rcx
        /// Mode and root change together.
        ; gs xor BYTE [PerCpu::tss_extra + TssExtra::switch_flags.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; gs mov rcx, QWORD [PerCpu::tss_extra + TssExtra::smod_cr3]
        ; mov   cr3, rcx
        ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_gsbase]
        ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        /// GS is the guest's from here on: umod's, then smod's.
        ; swapgs
        ; rdgsbase rcx
        ; mov   QWORD [BYTE rdi + Pvcs::user_gsbase], rcx
        ; mov   rcx, QWORD [BYTE rsp + SmodFrame::gsbase]
        ; wrgsbase rcx
        ; mov   rdi, QWORD [BYTE rsp + SmodFrame::rdi]
        ; mov   rcx, QWORD [BYTE rsp + SmodFrame::rip]
        ; mov   r11d, RFlags::SMOD_ENTRY.imm32()
    );
    // Falls through to `Label::Sysretq`, which takes RSP from the frame.
}
