//! PKRU on the direct switches, in variants with protection keys: umod's is kept in the PVCS,
//! smod's is the host's choice (spec/abi.md, `TssExtra` and "PVCS").
//!
//! **Reached** within `to_smod` and `to_umod`, at CPL 0, with
//! [`Placement::Gs`](crate::layout::Placement::Gs) on the host's GS.
//! **Live**: all general registers except RCX, R11 and RSP.
//! **May be clobbered**: RCX, R11, RSP and flags. RAX and RDX, which RDPKRU and WRPKRU use, are
//! restored.
//!
//! WRPKRU is executed only if it changes PKRU, so never for a guest that uses no keys. Any value
//! that umod's PVCS holds is a valid PKRU. It applies to user pages alone, and the switcher
//! accesses none of those.

use switcher_macros::asm;

use crate::asm::{Label, Sink};
use crate::layout::{BlockLayout, PvcsLayout, needed};
use crate::variant::Variant;

/// umod's PKRU goes to the PVCS, and smod's is loaded.
#[rustfmt::skip]
pub(super) fn to_smod<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    if !variant.pku() {
        return;
    }
    read::<S, B>(a);
    asm!(a
        ; mov   DWORD [BYTE rdx + P::PKRU], eax
        ; percpu mov edx, DWORD [needed(B::SMOD_PKRU)]
    );
    write(a, Label::ToSmodPkru);
}

/// umod's PKRU is loaded from the PVCS. RCX points to the PVCS again afterwards.
#[rustfmt::skip]
pub(super) fn to_umod<S: Sink, B: BlockLayout, P: PvcsLayout>(a: &mut S, variant: &Variant) {
    if !variant.pku() {
        return;
    }
    read::<S, B>(a);
    asm!(a
        ; mov   edx, DWORD [BYTE rdx + P::PKRU]
    );
    write(a, Label::ToUmodPkru);
    asm!(a
        ; percpu mov rcx, QWORD [B::PVCS]
    );
}

/// Loads PKRU into EAX, the address of the PVCS into RDX and 0 into ECX. R11 keeps RAX, and RSP
/// keeps RDX.
#[rustfmt::skip]
fn read<S: Sink, B: BlockLayout>(a: &mut S) {
    asm!(a
        /// Each mode has a PKRU of its own. RDPKRU wants ECX to be 0, WRPKRU also EDX.
        ; mov   r11, rax
        ; mov   rsp, rdx
        ; xor   ecx, ecx
        ; rdpkru
        ; percpu mov rdx, QWORD [B::PVCS]
    );
}

/// Writes EDX to PKRU, unless EAX says that PKRU holds it already. RAX and RDX are restored.
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
