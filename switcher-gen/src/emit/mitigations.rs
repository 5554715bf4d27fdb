//! What stands between guest and host against speculative execution: each sequence is emitted only
//! where the variant has its mitigation (spec/switcher.md, "Mitigations"; hazards.md, row 29).
//!
//! An exit's sequences come in this order, all before the first RET that is not their own:
//! SPEC_CTRL, so that host code is restricted by it; IBPB; the return stack buffer; the history of
//! branches; the host's untraining of returns. An entry writes the guest's SPEC_CTRL first and ends with VERW.

use switcher_macros::asm;

use crate::arch::Msr;
use crate::asm::{HostSymbol, Label, Sink};
use crate::layout::{IretFrame, PerCpu, TssExtra};
use crate::mitigations::Rsb;
use crate::variant::Variant;

/// How often [`Label::RsbFill`] runs: two entries each, and no CPU's buffer has more than 32.
const RSB_ROUNDS: i32 = 16;
/// Rounds of branches, and branches in a round: Intel's numbers for CPUs up to Golden Cove
/// ("Branch History Injection and Intra-mode Branch Target Injection", software sequence).
const BHB_ROUNDS: i32 = 5;
const BHB_BRANCHES: i32 = 5;
/// Of the branches' code: their addresses are part of the history.
const BHB_ALIGNMENT: usize = 64;

/// What an exit does, on the host's root, stack and GS.
///
/// **May be clobbered**: RAX, RCX, RDX, flags, and the host's stack below RSP. RCX and RDX are zero
/// afterwards where [`Cleared`] says so: neither has to be cleared once more.
#[rustfmt::skip]
pub(super) fn at_exit<S: Sink>(a: &mut S, variant: &Variant) -> Cleared {
    let mitigations = variant.axes().mitigations;
    let mut cleared = Cleared::default();

    if mitigations.ibrs {
        asm!(a
            /// SPEC_CTRL is the host's.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; percpu mov eax, DWORD [PerCpu::tss_extra + TssExtra::host_spec_ctrl]
            ; xor   edx, edx
            ; wrmsr
        );
        cleared.rdx = true;
    }
    if mitigations.ibpb {
        asm!(a
            /// IBPB: no prediction rests on what the guest has trained.
            ; mov   ecx, Msr::PredCmd.address().cast_signed()
            ; mov   eax, 1
        );
        if !cleared.rdx {
            asm!(a ; xor edx, edx);
        }
        asm!(a ; wrmsr);
        cleared.rdx = true;
    }
    match mitigations.rsb {
        Rsb::Left => {}
        Rsb::Lite => asm!(a
            /// No RET is predicted by what the guest has left in the return stack buffer.
            ; call  =>Label::RsbFilledOnce
            ; int3
            ; =>Label::RsbFilledOnce
            ; add   rsp, BYTE 8
        ),
        Rsb::Full => {
            asm!(a
                /// The return stack buffer is filled with addresses of traps.
                ; mov   ecx, RSB_ROUNDS
                ; =>Label::RsbFill
                ; call  =>Label::RsbFilledOnce
                ; int3
                ; =>Label::RsbFilledOnce
                ; call  =>Label::RsbFilledTwice
                ; int3
                ; =>Label::RsbFilledTwice
                ; add   rsp, BYTE 16
                ; dec   ecx
                ; jnz   =>Label::RsbFill
            );
            cleared.rcx = true;
        }
    }
    if mitigations.bhb {
        asm!(a
            /// The history of branches is overwritten: each round calls the next one.
            ; mov   ecx, BHB_ROUNDS
            ; call  =>Label::BhbRound
            ; jmp   =>Label::BhbCleared
        );
        a.align(BHB_ALIGNMENT, super::FILLER);
        asm!(a
            ; =>Label::BhbRound
            ; call  =>Label::BhbBranches
            ; ret
        );
        a.align(BHB_ALIGNMENT, super::FILLER);
        asm!(a
            ; =>Label::BhbBranches
            ; mov   eax, BHB_BRANCHES
            ; =>Label::BhbBranch
            ; jmp   BYTE =>Label::BhbTarget
            ; nop
            ; =>Label::BhbTarget
            ; dec   eax
            ; jnz   =>Label::BhbBranch
            ; dec   ecx
            ; jnz   =>Label::BhbRound
            ; ret
            ; =>Label::BhbCleared
        );
        cleared.rcx = true;
    }
    if mitigations.bhb || mitigations.rsb != Rsb::Left {
        asm!(a
            /// No RET is predicted before all of that is done.
            ; lfence
        );
    }
    if mitigations.untrain {
        asm!(a
            /// Nor as what the guest has trained. May change RAX, RCX and RDX.
            ; call  extern HostSymbol::UNTRAIN
        );
        cleared = Cleared::default();
    }
    cleared
}

/// Which registers an exit's sequences have left zero.
#[derive(Clone, Copy, Default)]
pub(super) struct Cleared {
    pub(super) rcx: bool,
    pub(super) rdx: bool,
}

/// What an entry starts with, on the host's root and GS. **May be clobbered**: RAX, RCX, RDX.
#[rustfmt::skip]
pub(super) fn at_entry<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.axes().mitigations.ibrs {
        asm!(a
            /// SPEC_CTRL is the guest's: no host code follows but this routine.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; percpu mov eax, DWORD [PerCpu::tss_extra + TssExtra::guest_spec_ctrl]
            ; xor   edx, edx
            ; wrmsr
        );
    }
}

/// What an entry ends with: every register is the guest's but RSP, which is sp0. **May be
/// clobbered**: ZF. From here on only the guest's own frame is read.
#[rustfmt::skip]
pub(super) fn before_guest<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.axes().mitigations.verw {
        asm!(a
            /// VERW overwrites the CPU's buffers, whatever the selector is.
            ; verw  WORD [BYTE rsp + IretFrame::ss.below_end().low_word()]
        );
    }
}
