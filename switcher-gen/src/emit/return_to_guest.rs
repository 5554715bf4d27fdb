//! The return to a guest: SYSRETQ where it gives the guest exactly its registers, IRETQ elsewhere.
//!
//! **Reached** from `enter_guest` (falling through) and from `to_umod`, at CPL 0 on the guest's
//! root, with the guest's GS.
//! **Live**: every general register but RSP is the guest's. RSP points to an IRET frame on the sp0
//! stack whose flags have the forced bits set but are not sanitised otherwise.
//! **May be clobbered**: nothing, except RCX where it can be had again from the frame's RIP.
//!
//! SYSRETQ loads RIP from RCX and RFLAGS from R11, so it is taken exactly when RF and TF are clear,
//! R11 equals the sanitised RFLAGS, RCX equals RIP, and RIP is canonical (spec/switcher.md, "Return
//! to the guest"). The frame lies in host memory: no check here can be undone by the guest.
//!
//! The check for a canonical RIP is emitted for AMD too, although AMD's own SYSRETQ faults at CPL 3.
//! CPUID's vendor is not the silicon's under a hypervisor that plays another one, and emulators
//! (Bochs 2.7) fault at CPL 0 whatever vendor they play: four instructions against the host.

use switcher_macros::asm;

use crate::arch::RFlags;
use crate::asm::{Label, Sink, Window};
use crate::layout::IretFrame;
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    let paging = variant.axes().paging;

    asm!(a
        ; =>Label::ReturnToGuest
        /// R11 equals the frame's flags and has none that SYSRETQ may not restore.
        ; cmp   r11, QWORD [BYTE rsp + IretFrame::eflags]
        ; jne   BYTE =>Label::ReturnFlagsDiffer
        ; test  r11, RFlags::sysret_obstacles().imm32()
        ; jnz   BYTE =>Label::ReturnFlagsDiffer
        ; =>Label::ReturnFlagsFit
        ; cmp   rcx, QWORD [BYTE rsp + IretFrame::rip]
        ; jne   BYTE =>Label::Iretq
        /// With an RCX that is no address, SYSRETQ may fault in ring 0, on the guest's RSP.
        ; shl   rcx, paging.sign_bits().cast_signed()
        ; sar   rcx, paging.sign_bits().cast_signed()
        ; cmp   rcx, QWORD [BYTE rsp + IretFrame::rip]
        ; je    =>Label::Sysretq
        /// RCX was the frame's RIP.
        ; mov   rcx, QWORD [BYTE rsp + IretFrame::rip]
        ; jmp   BYTE =>Label::Iretq

        /// Either IRETQ is needed, or the frame asks for flags a guest may not have.
        ; =>Label::ReturnFlagsDiffer
        ; and   QWORD [BYTE rsp + IretFrame::eflags], RFlags::GUEST_ALLOWED.imm32()
        ; cmp   r11, QWORD [BYTE rsp + IretFrame::eflags]
        ; jne   BYTE =>Label::Iretq
        ; test  r11d, RFlags::NOT_BY_SYSRET.imm32()
        ; jz    BYTE =>Label::ReturnFlagsFit
        ; jmp   BYTE =>Label::Iretq

        /// 32-bit umod, or a selector of the guest's own: IRETQ checks it.
        ; =>Label::ReturnOtherSelectors
        ; and   QWORD [BYTE rsp + IretFrame::eflags], RFlags::GUEST_ALLOWED.imm32()

        /// A fault here is the guest's; the host tells it by this address.
        ; =>Label::Iretq
        ; iretq
    );
    a.close(Window::GuestRoot);
}
