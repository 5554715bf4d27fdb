//! The direct switch from smod to umod: ERETU, a SYSCALL of smod at the agreed address.
//!
//! **Reached** from `syscall_64` in smod with no inhibitor set and RCX = retu_rip; on the sp0
//! stack, with the host's GS and smod's root.
//! **Live**: all general registers but RCX and R11, smod's RSP in sp2. RCX is known (retu_rip) and
//! R11 still belongs to an exit until the selectors are found to be the usual ones.
//! **May be clobbered**: RCX and R11; RCX must be retu_rip again for an exit.
//!
//! Each field of the PVCS is read once, and what is read is used as data only: RIP is checked after
//! it has been copied to the host's stack, flags are sanitised there, the GS base is made
//! canonical in a register (spec/hazards.md, rows 1, 5, 14 and 24).

use switcher_macros::asm;

use crate::arch::RFlags;
use crate::asm::{Label, Sink};
use crate::layout::{IretFrame, PerCpu, Pvcs, SwitchFlags, Tss, TssExtra};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();
    let paging = variant.axes().paging;

    asm!(a
        /// smod -> umod. Other selectors than SYSRETQ's are left to the host.
        ; gs mov rcx, QWORD [PerCpu::tss_extra + TssExtra::pvcs]
        ; cmp   DWORD [BYTE rcx + Pvcs::user_cs.pair(Pvcs::user_ss)], selectors.user_pair().cast_signed()
        ; jne   BYTE =>Label::ExitEretu
        ; gs mov r11, QWORD [PerCpu::tss + Tss::sp2]
        ; gs mov QWORD [PerCpu::tss_extra + TssExtra::smod_rsp], r11
        /// Mode and root change together.
        ; gs xor BYTE [PerCpu::tss_extra + TssExtra::switch_flags.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; gs mov r11, QWORD [PerCpu::tss_extra + TssExtra::umod_cr3]
        ; mov   cr3, r11
        /// umod's IRET frame below RSP; its selectors are added if there is an IRETQ.
        ; mov   r11, QWORD [BYTE rcx + Pvcs::rsp]
        ; mov   QWORD [BYTE rsp + IretFrame::rsp.below_end()], r11
        ; mov   r11d, DWORD [BYTE rcx + Pvcs::eflags]
        ; or    r11d, RFlags::GUEST_FIXED.imm32()
        ; mov   QWORD [BYTE rsp + IretFrame::eflags.below_end()], r11
        ; mov   r11, QWORD [BYTE rcx + Pvcs::rip]
        ; mov   QWORD [BYTE rsp + IretFrame::rip.below_end()], r11
        /// GS is the guest's from here on; WRGSBASE would fault on an address that is none.
        ; swapgs
        ; mov   r11, QWORD [BYTE rcx + Pvcs::user_gsbase]
        ; shl   r11, paging.sign_bits().cast_signed()
        ; sar   r11, paging.sign_bits().cast_signed()
        ; wrgsbase r11
        ; mov   r11, QWORD [BYTE rcx + Pvcs::r11]
        ; mov   rcx, QWORD [BYTE rcx + Pvcs::rcx]
        ; jmp   =>Label::ReturnToGuest
    );
}
