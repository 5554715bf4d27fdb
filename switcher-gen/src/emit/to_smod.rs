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
use crate::layout::{IretFrame, PerCpu, Pvcs, SwitchFlags, Tss, TssExtra, disp8};
use crate::variant::Variant;

// What is pushed first, RDI, makes room; what is pushed next is where the shared SYSRETQ finds RSP.
const _: () = assert!(
    disp8::<8, _, _>(IretFrame::rsp.below_end()) == -2 * size_of::<u64>() as i8,
    "smod's RSP is pushed second"
);

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();

    asm!(a
        /// umod -> smod. RDI is saved to hold the PVCS.
        ; push  rdi
        ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_rsp]
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
        ; gs push QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        ; gs mov r11, QWORD [PerCpu::tss_extra + TssExtra::smod_gsbase]
        /// GS is the guest's from here on: umod's, then smod's.
        ; swapgs
        ; rdgsbase rcx
        ; mov   QWORD [BYTE rdi + Pvcs::user_gsbase], rcx
        ; wrgsbase r11
        /// smod's RIP. Its RSP passes through R11 and stays below RSP, as in an IRET frame.
        ; pop   rcx
        ; pop   r11
        ; pop   rdi
        ; mov   r11d, RFlags::SMOD_ENTRY.imm32()
    );
    // Falls through to `Label::Sysretq`, which takes RSP from below sp0.
}
