//! The return to a guest: SYSRETQ where it gives the guest exactly its registers, IRETQ elsewhere.
//!
//! **Reached** from `enter_guest` (falling through) and from `to_umod` (with
//! [`Placement::PerCpu`](crate::layout::Placement::PerCpu), only if `to_umod` has not found by
//! itself that SYSRETQ will do), at CPL 0 on the guest's root, with the guest's GS.
//! **Live**: every general register but RSP is the guest's. RSP is sp0, and below it lies the frame
//! for an IRETQ. Its flags have the forced bits set but are not sanitised otherwise; its CS and SS
//! are the usual ones, whether they have been written or not.
//! **May be clobbered**: nothing, except RCX where it can be loaded again from the frame's RIP.
//!
//! SYSRETQ loads RIP from RCX and RFLAGS from R11, so it is taken exactly when RF and TF are clear,
//! R11 equals the sanitised RFLAGS, RCX equals RIP, and RIP is canonical (spec/switcher.md, "Return
//! to the guest"). The frame lies in host memory: no check here can be undone by the guest.
//!
//! The check for a canonical RIP is emitted for AMD too, although AMD's own SYSRETQ faults at CPL
//! 3: under a hypervisor, the vendor that CPUID names need not be that of the silicon, and an
//! emulator (Bochs 2.7) faults at CPL 0 whatever vendor it emulates. Four instructions keep such a
//! fault from the host.

use switcher_macros::asm;

use crate::arch::RFlags;
use crate::asm::{Label, Sink, Window};
use crate::layout::IretFrame;
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    let paging = variant.paging();

    let selectors = variant.selectors();

    asm!(a
        ; =>Label::ReturnToGuest
        ; cmp   rcx, QWORD [BYTE rsp + IretFrame::rip.below_end()]
        ; jne   BYTE =>Label::ReturnOtherRegisters
        /// With an RCX that is no address, SYSRETQ may fault in ring 0, on the guest's RSP.
        ; shl   rcx, paging.sign_bits().cast_signed()
        ; sar   rcx, paging.sign_bits().cast_signed()
        ; cmp   rcx, QWORD [BYTE rsp + IretFrame::rip.below_end()]
        ; jne   BYTE =>Label::ReturnNotCanonical
        /// R11 has no flag that SYSRETQ may not restore, and equals the frame's,
        ; test  r11, RFlags::sysret_obstacles().imm32()
        ; jnz   BYTE =>Label::ReturnOtherRegisters
        ; cmp   r11, QWORD [BYTE rsp + IretFrame::eflags.below_end()]
        ; je    =>Label::Sysretq
        /// or does once those are dropped that a guest may not have.
        ; and   QWORD [BYTE rsp + IretFrame::eflags.below_end()], RFlags::GUEST_ALLOWED.imm32()
        ; cmp   r11, QWORD [BYTE rsp + IretFrame::eflags.below_end()]
        ; je    =>Label::Sysretq

        /// An ERETU has left the selectors out; an entry's are the same.
        ; =>Label::ReturnByIretq
        ; mov   QWORD [BYTE rsp + IretFrame::cs.below_end()], selectors.user_cs().into()
        ; mov   QWORD [BYTE rsp + IretFrame::ss.below_end()], selectors.user_ds().into()
        ; =>Label::ReturnFrameComplete
        ; sub   rsp, BYTE size_of::<IretFrame>() as i8

        /// A fault here is the guest's; the host tells it by this address.
        ; =>Label::Iretq
        ; iretq

        /// RCX was the frame's RIP.
        ; =>Label::ReturnNotCanonical
        ; mov   rcx, QWORD [BYTE rsp + IretFrame::rip.below_end()]
        ; =>Label::ReturnOtherRegisters
        ; and   QWORD [BYTE rsp + IretFrame::eflags.below_end()], RFlags::GUEST_ALLOWED.imm32()
        ; jmp   BYTE =>Label::ReturnByIretq

        /// 32-bit umod, or a selector of the guest's own: IRETQ checks it.
        ; =>Label::ReturnOtherSelectors
        ; and   QWORD [BYTE rsp + IretFrame::eflags.below_end()], RFlags::GUEST_ALLOWED.imm32()
        ; jmp   BYTE =>Label::ReturnFrameComplete
    );
    a.close(Window::GuestRoot);
}
