//! The direct switch from smod to umod: ERETU, a SYSCALL of smod at the agreed address.
//!
//! **Reached** from `syscall_64` in smod with no inhibitor set and RCX = retu_rip, on smod's root.
//! GS is the host's with [`Placement::Gs`], smod's with [`Placement::PerCpu`].
//! **Live**: all general registers, RSP too, except RCX and R11. RCX is known to be retu_rip. R11
//! must be kept for an exit until the selectors are found to be the usual ones.
//! **May be clobbered**: RCX and R11; RCX must be retu_rip again for an exit.
//!
//! Each field of the PVCS is read once, and what is read is used as data only: RIP is checked after
//! it has been copied to the host's stack or to a register, and so are flags; the GS base is made
//! canonical in a register (spec/hazards.md, rows 1, 5, 14 and 24).

use switcher_macros::asm;

use super::pkru;
use crate::arch::RFlags;
use crate::asm::{Label, Sink, Window};
use crate::layout::{BlockLayout, IretFrame, Placement, Pvcs, PvcsLayout, Revision, SwitchFlags};
use crate::variant::Variant;

#[rustfmt::skip]
pub(super) fn emit<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();

    asm!(a
        /// smod -> umod. Other selectors than SYSRETQ's are left to the host.
        ; percpu mov rcx, QWORD [B::PVCS]
        ; cmp   DWORD [BYTE rcx + P::USER_CS.pair(P::USER_SS)], selectors.user_pair().cast_signed()
        ; jne   =>Label::ExitEretu
    );
    match variant.placement() {
        Placement::Gs => on_the_hosts_stack::<S, B, P>(a, variant),
        Placement::PerCpu => without_a_stack::<S, B, P>(a, variant),
    }
}

#[rustfmt::skip]
fn on_the_hosts_stack<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let revision = variant.revision();
    let paging = variant.paging();

    let pku = variant.pku();
    if revision == Revision::V2024 || pku {
        asm!(a
            /// RSP is saved to be a scratch register.
            ; gs mov QWORD [B::SMOD_RSP], rsp
        );
    }
    pkru::to_umod::<S, B, P>(a, variant);
    if revision == Revision::V2026 && !pku {
        asm!(a ; mov r11, rsp);
    }
    asm!(a
        /// umod's IRET frame below sp0; its selectors are added if there is an IRETQ.
        ; gs mov rsp, QWORD [B::SP0]
    );
    a.close(Window::UnsafeStack);
    match revision {
        Revision::V2024 => asm!(a ; mov r11, QWORD [BYTE rcx + Pvcs::rsp]),
        Revision::V2026 if pku => {
            asm!(a ; gs mov r11, QWORD [B::SMOD_RSP]);
        }
        Revision::V2026 => {}
    }
    asm!(a
        ; mov   QWORD [BYTE rsp + IretFrame::rsp.below_end()], r11
        ; mov   r11d, DWORD [BYTE rcx + P::EFLAGS]
        ; or    r11d, RFlags::GUEST_FIXED.imm32()
        ; mov   QWORD [BYTE rsp + IretFrame::eflags.below_end()], r11
        ; mov   r11, QWORD [BYTE rcx + P::RIP]
        ; mov   QWORD [BYTE rsp + IretFrame::rip.below_end()], r11
        /// Mode and root change together.
        ; gs xor BYTE [B::SWITCH_FLAGS.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; gs mov r11, QWORD [B::UMOD_CR3]
        ; mov   cr3, r11
        /// GS is the guest's from here on; WRGSBASE would fault on an address that is none.
        ; swapgs
        ; mov   r11, QWORD [BYTE rcx + P::USER_GSBASE]
        ; shl   r11, paging.sign_bits().cast_signed()
        ; sar   r11, paging.sign_bits().cast_signed()
        ; wrgsbase r11
        ; mov   r11, QWORD [BYTE rcx + P::R11]
        ; mov   rcx, QWORD [BYTE rcx + P::RCX]
        ; jmp   =>Label::ReturnToGuest
    );
    a.open(Window::UnsafeStack);
}

/// RSP serves as one more register for the checks that `return_to_guest` makes. A state that does
/// not pass them is returned to by `return_to_guest`, on the sp0 stack.
#[rustfmt::skip]
fn without_a_stack<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let revision = variant.revision();
    let paging = variant.paging();

    asm!(a
        /// RSP is saved to be a scratch register. (Where it passes through, this slot is free.)
        ; percpu mov QWORD [B::SMOD_RSP], rsp
    );
    pkru::to_umod::<S, B, P>(a, variant);
    asm!(a
        /// Mode and root change together.
        ; percpu xor BYTE [B::SWITCH_FLAGS.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; percpu mov r11, QWORD [B::UMOD_CR3]
        ; mov   cr3, r11
        /// WRGSBASE would fault on an address that is none.
        ; mov   r11, QWORD [BYTE rcx + P::USER_GSBASE]
        ; shl   r11, paging.sign_bits().cast_signed()
        ; sar   r11, paging.sign_bits().cast_signed()
        ; wrgsbase r11
        /// R11 equals the flags, and has none that SYSRETQ may not restore.
        ; mov   r11, QWORD [BYTE rcx + P::R11]
        ; mov   esp, DWORD [BYTE rcx + P::EFLAGS]
        ; or    esp, RFlags::GUEST_FIXED.imm32()
        ; cmp   r11, rsp
        ; jne   BYTE =>Label::ToUmodOtherFlags
        ; test  r11d, RFlags::sysret_obstacles().imm32()
        ; jnz   BYTE =>Label::ToUmodOtherFlags
        /// RCX equals RIP, in the lower half: user mode's, and canonical.
        ; mov   rsp, QWORD [BYTE rcx + P::RIP]
        ; mov   rcx, QWORD [BYTE rcx + P::RCX]
        ; cmp   rcx, rsp
        ; jne   BYTE =>Label::ToUmodOtherRip
        ; shr   rsp, 63 - paging.sign_bits().cast_signed()
        ; jnz   BYTE =>Label::ToUmodUpperHalf
        /// Nothing may come between the load of RSP and SYSRETQ.
        ; =>Label::ToUmodSysretq
    );
    match revision {
        Revision::V2024 => asm!(a
            ; percpu mov rsp, QWORD [B::PVCS]
            ; mov   rsp, QWORD [BYTE rsp + Pvcs::rsp]
        ),
        Revision::V2026 => {
            asm!(a ; percpu mov rsp, QWORD [B::SMOD_RSP]);
        }
    }
    asm!(a
        ; sysretq

        /// RSP has the flags, the forced ones set but not sanitised otherwise.
        ; =>Label::ToUmodOtherFlags
        ; mov   ecx, esp
        ; percpu mov rsp, QWORD [B::SP0]
    );
    a.close(Window::UnsafeStack);
    asm!(a
        ; mov   QWORD [BYTE rsp + IretFrame::eflags.below_end()], rcx
        ; percpu mov rcx, QWORD [B::PVCS]
    );
    match revision {
        Revision::V2024 => asm!(a ; push QWORD [BYTE rcx + Pvcs::rsp]),
        Revision::V2026 => {
            asm!(a ; percpu push QWORD [B::SMOD_RSP]);
        }
    }
    asm!(a
        ; pop   QWORD [BYTE rsp + IretFrame::rsp.below_end()]
        ; push  QWORD [BYTE rcx + P::RIP]
        ; pop   QWORD [BYTE rsp + IretFrame::rip.below_end()]
        ; mov   rcx, QWORD [BYTE rcx + P::RCX]
        ; jmp   =>Label::ReturnToGuest
    );
    a.open(Window::UnsafeStack);
    asm!(a
        /// RCX is RIP, and not in the lower half. Canonical all the same?
        ; =>Label::ToUmodUpperHalf
        ; mov   rsp, rcx
        ; shl   rsp, paging.sign_bits().cast_signed()
        ; sar   rsp, paging.sign_bits().cast_signed()
        ; cmp   rsp, rcx
        ; je    BYTE =>Label::ToUmodSysretq
        ; mov   rsp, rcx
        /// RSP has the RIP. R11 was found to be the flags.
        ; =>Label::ToUmodOtherRip
        ; percpu mov QWORD [B::SP2], rsp
        ; percpu mov rsp, QWORD [B::SP0]
    );
    a.close(Window::UnsafeStack);
    asm!(a
        ; mov   QWORD [BYTE rsp + IretFrame::eflags.below_end()], r11
        ; percpu push QWORD [B::SP2]
        ; pop   QWORD [BYTE rsp + IretFrame::rip.below_end()]
    );
    match revision {
        Revision::V2024 => asm!(a
            ; percpu mov r11, QWORD [B::PVCS]
            ; push  QWORD [BYTE r11 + Pvcs::rsp]
        ),
        Revision::V2026 => {
            asm!(a ; percpu push QWORD [B::SMOD_RSP]);
        }
    }
    asm!(a
        ; pop   QWORD [BYTE rsp + IretFrame::rsp.below_end()]
    );
    if revision == Revision::V2024 {
        asm!(a ; mov r11, QWORD [BYTE rsp + IretFrame::eflags.below_end()]);
    }
    asm!(a
        ; jmp   =>Label::ReturnByIretq
    );
    a.open(Window::UnsafeStack);
}
