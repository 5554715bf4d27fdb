//! PKRU on the direct switches, in variants with protection keys: umod's is kept in the PVCS,
//! smod's is the host's choice (spec/abi.md, `TssExtra` and "PVCS").
//!
//! **Reached** within `to_smod` and `to_umod`, at CPL 0, with
//! [`Placement::Gs`](crate::layout::Placement::Gs) on the host's GS.
//! **Live**: all general registers but those that follow.
//! **May be clobbered**: RCX, R11, RSP and flags. RAX and RDX, which RDPKRU and WRPKRU use, are
//! restored.
//!
//! WRPKRU is executed only where it changes something: never for a guest that uses no keys.
//! Whatever umod's PVCS says is a PKRU, and applies to user pages alone, of which the switcher
//! accesses none.

use switcher_macros::asm;

use crate::asm::{Label, Sink};
use crate::layout::{PerCpu, PvcsLayout, TssExtra};
use crate::variant::Variant;

/// umod's goes to the PVCS, and smod's is loaded.
#[rustfmt::skip]
pub(super) fn to_smod<S: Sink, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    if !variant.pku() {
        return;
    }
    read(a);
    asm!(a
        ; mov   DWORD [BYTE rdx + P::PKRU], eax
        ; percpu mov edx, DWORD [PerCpu::tss_extra + TssExtra::smod_pkru]
    );
    write(a, Label::ToSmodPkru);
}

/// umod's is loaded from the PVCS, to which RCX points again.
#[rustfmt::skip]
pub(super) fn to_umod<S: Sink, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    if !variant.pku() {
        return;
    }
    read(a);
    asm!(a
        ; mov   edx, DWORD [BYTE rdx + P::PKRU]
    );
    write(a, Label::ToUmodPkru);
    asm!(a
        ; percpu mov rcx, QWORD [PerCpu::tss_extra + TssExtra::pvcs]
    );
}

/// EAX becomes PKRU, RDX the PVCS, ECX 0.
#[rustfmt::skip]
fn read<S: Sink>(a: &mut S) {
    asm!(a
        /// Each mode has a PKRU of its own. RDPKRU wants ECX to be 0, WRPKRU also EDX.
        ; mov   r11, rax
        ; mov   rsp, rdx
        ; xor   ecx, ecx
        ; rdpkru
        ; percpu mov rdx, QWORD [PerCpu::tss_extra + TssExtra::pvcs]
    );
}

/// PKRU, which EAX is, becomes EDX.
#[rustfmt::skip]
fn write<S: Sink>(a: &mut S, written: Label) {
    asm!(a
        ; cmp   eax, edx
        ; je    BYTE =>written
        ; mov   eax, edx
        ; xor   edx, edx
        ; wrpkru
        ; =>written
        ; mov   rax, r11
        ; mov   rdx, rsp
    );
}
