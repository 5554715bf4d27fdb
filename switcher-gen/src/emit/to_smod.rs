//! The direct switch from umod to smod: a SYSCALL of the guest's user mode.
//!
//! **Reached** from `syscall_64` with no inhibitor set, so a PVCS is registered and smod's root is
//! prepared; on umod's root. GS is the host's with [`Placement::Gs`], umod's with
//! [`Placement::PerCpu`].
//! **Live**: all general registers, RSP too (RCX = RIP, R11 = RFLAGS).
//! **May be clobbered**: RCX and R11, once they are saved; they and RSP are loaded for smod.
//!
//! The PVCS is only written here. smod's entry, GS base and RSP come from the host's memory.

use switcher_macros::asm;

use super::pkru;
use crate::arch::RFlags;
use crate::asm::{Sink, Window};
use crate::layout::{BlockLayout, Placement, Pvcs, PvcsLayout, Revision, SwitchFlags};
use crate::variant::Variant;

pub(super) fn emit<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    match variant.placement() {
        Placement::Gs => with_swapgs::<S, B, P>(a, variant),
        Placement::PerCpu => without_swapgs::<S, B, P>(a, variant),
    }
}

/// RDI is saved so that it can point to the PVCS. RSP points to the per-CPU block, so that GS can
/// be the guest's.
#[rustfmt::skip]
fn with_swapgs<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();

    asm!(a
        /// umod -> smod. RDI is saved to hold the PVCS.
        ; gs mov QWORD [B::SP2], rdi
        ; gs mov rdi, QWORD [B::PVCS]
    );
    match variant.revision() {
        Revision::V2024 => asm!(a ; mov QWORD [BYTE rdi + Pvcs::rsp], rsp),
        Revision::V2026 => asm!(a
            /// RSP passes through.
            ; gs mov QWORD [B::SMOD_RSP], rsp
        ),
    }
    asm!(a
        ; mov   QWORD [BYTE rdi + P::RIP], rcx
        ; mov   QWORD [BYTE rdi + P::RCX], rcx
        ; mov   QWORD [BYTE rdi + P::R11], r11
        ; mov   DWORD [BYTE rdi + P::EFLAGS], r11d
        ; mov   DWORD [BYTE rdi + P::USER_CS.pair(P::USER_SS)], selectors.user_pair().cast_signed()
    );
    pkru::to_smod::<S, B, P>(a, variant);
    asm!(a
        /// RSP is the per-CPU block from here on, and GS the guest's: umod's.
        ; rdgsbase rsp
        ; swapgs
        /// Mode and root change together.
        ; xor   BYTE [rsp + B::SWITCH_FLAGS.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; mov   rcx, QWORD [rsp + B::SMOD_CR3]
        ; mov   cr3, rcx
        /// GS: umod's, then smod's.
        ; rdgsbase rcx
        ; mov   QWORD [BYTE rdi + P::USER_GSBASE], rcx
        ; mov   rcx, QWORD [rsp + B::SMOD_GSBASE]
        ; wrgsbase rcx
        /// smod. Nothing may come between the load of RSP and SYSRETQ.
        ; mov   rcx, QWORD [rsp + B::SMOD_ENTRY]
        ; mov   r11d, RFlags::SMOD_ENTRY.imm32()
    );
    match B::VARIABLE {
        None => asm!(a ; mov rdi, QWORD [BYTE rsp + B::SP2]),
        // Where the variable lies, the linker fills in: the displacement has 32 bits.
        Some(_) => asm!(a ; mov rdi, QWORD [rsp + B::SP2]),
    }
    asm!(a
        ; mov   rsp, QWORD [rsp + B::SMOD_RSP]
        ; sysretq
    );
    a.close(Window::UnsafeStack);
}

/// RSP itself points to the PVCS in between.
#[rustfmt::skip]
fn without_swapgs<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    let selectors = variant.selectors();
    let revision = variant.revision();

    match revision {
        Revision::V2024 => asm!(a
            /// umod -> smod. RSP is saved to hold the PVCS.
            ; percpu mov QWORD [B::SP2], rsp
        ),
        Revision::V2026 => asm!(a
            /// umod -> smod. RSP passes through; until then it holds the PVCS.
            ; percpu mov QWORD [B::SMOD_RSP], rsp
        ),
    }
    asm!(a
        ; percpu mov rsp, QWORD [B::PVCS]
        ; mov   QWORD [BYTE rsp + P::RIP], rcx
        ; mov   QWORD [BYTE rsp + P::RCX], rcx
        ; mov   QWORD [BYTE rsp + P::R11], r11
        ; mov   DWORD [BYTE rsp + P::EFLAGS], r11d
        ; mov   DWORD [BYTE rsp + P::USER_CS.pair(P::USER_SS)], selectors.user_pair().cast_signed()
    );
    if revision == Revision::V2024 {
        asm!(a
            ; percpu mov rcx, QWORD [B::SP2]
            ; mov   QWORD [BYTE rsp + Pvcs::rsp], rcx
        );
    }
    asm!(a
        /// Mode and root change together.
        ; percpu xor BYTE [B::SWITCH_FLAGS.low_byte()], SwitchFlags::MODE_TOGGLE.imm8()
        ; percpu mov rcx, QWORD [B::SMOD_CR3]
        ; mov   cr3, rcx
        /// GS has been the guest's all the time: umod's, then smod's.
        ; rdgsbase rcx
        ; mov   QWORD [BYTE rsp + P::USER_GSBASE], rcx
        ; percpu mov rcx, QWORD [B::SMOD_GSBASE]
        ; wrgsbase rcx
    );
    pkru::to_smod::<S, B, P>(a, variant);
    asm!(a
        /// smod. Nothing may come between the load of RSP and SYSRETQ.
        ; percpu mov rcx, QWORD [B::SMOD_ENTRY]
        ; mov   r11d, RFlags::SMOD_ENTRY.imm32()
        ; percpu mov rsp, QWORD [B::SMOD_RSP]
        ; sysretq
    );
    a.close(Window::UnsafeStack);
}
