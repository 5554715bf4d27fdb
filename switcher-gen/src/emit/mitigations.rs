//! What stands between guest and host against speculative execution: each sequence is emitted only
//! where the variant has its mitigation (spec/switcher.md, "Mitigations"; hazards.md, row 29).
//!
//! An exit's sequences come in this order, all before the first RET that is not their own:
//! SPEC_CTRL, so that host code is restricted by it; IBPB; the return stack buffer; the history of
//! branches; the host's untraining of returns. An entry writes the guest's SPEC_CTRL first and ends
//! with VERW.
//!
//! An NMI or #MC in ring 0 brings host code, too, its hook, and may have come anywhere: before an
//! exit has got so far, or behind an entry's VERW. Nothing in the per-CPU block says where
//! (host_rsp is zero before an exit's sequences, not behind them), so it does all of this each
//! time: the sequences before the hook, then SPEC_CTRL as it was, and VERW last.

use switcher_macros::asm;

use crate::arch::Msr;
use crate::asm::{HostSymbol, Label, Sink};
use crate::layout::{FarFrame, IretFrame, PerCpu, TssExtra};
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

/// The places within one copy of the sequences.
struct Labels {
    fill: Label,
    filled_once: Label,
    filled_twice: Label,
    round: Label,
    branches: Label,
    branch: Label,
    target: Label,
    cleared: Label,
}

const EXIT: Labels = Labels {
    fill: Label::RsbFill,
    filled_once: Label::RsbFilledOnce,
    filled_twice: Label::RsbFilledTwice,
    round: Label::BhbRound,
    branches: Label::BhbBranches,
    branch: Label::BhbBranch,
    target: Label::BhbTarget,
    cleared: Label::BhbCleared,
};

const HOOK: Labels = Labels {
    fill: Label::HookRsbFill,
    filled_once: Label::HookRsbFilledOnce,
    filled_twice: Label::HookRsbFilledTwice,
    round: Label::HookBhbRound,
    branches: Label::HookBhbBranches,
    branch: Label::HookBhbBranch,
    target: Label::HookBhbTarget,
    cleared: Label::HookBhbCleared,
};

/// What an exit does, on the host's root, stack and GS.
///
/// **May be clobbered**: RAX, RCX, RDX, flags, and the host's stack below RSP. RCX and RDX are zero
/// afterwards where [`Cleared`] says so: neither has to be cleared once more.
#[rustfmt::skip]
pub(super) fn at_exit<S: Sink>(a: &mut S, variant: &Variant) -> Cleared {
    if variant.axes().mitigations.ibrs {
        asm!(a
            /// SPEC_CTRL is the host's.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
        );
    }
    sequences(a, variant, &EXIT)
}

/// The same before the hook of what has interrupted ring 0, on the host's root and GS and a stack
/// of the IST.
///
/// **May be clobbered**: RAX, RCX, RDX, flags, and the stack below RSP. R13D and R14D are kept for
/// [`after_hook`].
#[rustfmt::skip]
pub(super) fn before_hook<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.axes().mitigations.ibrs {
        asm!(a
            /// SPEC_CTRL is kept, its reserved half too, and is the host's.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; rdmsr
            ; mov   r13d, eax
            ; mov   r14d, edx
        );
    }
    sequences(a, variant, &HOOK);
}

/// What has no RET behind it but the guest's or an exit's, which has its own sequences. **May be
/// clobbered**: RAX, RCX, RDX.
#[rustfmt::skip]
pub(super) fn after_hook<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.axes().mitigations.ibrs {
        asm!(a
            /// SPEC_CTRL is as it was.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; mov   eax, r13d
            ; mov   edx, r14d
            ; wrmsr
        );
    }
}

/// RSP points to the frame by which ring 0 is returned to, and every other register is as it was.
/// **May be clobbered**: ZF.
#[rustfmt::skip]
pub(super) fn before_ring_0<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.axes().mitigations.verw {
        asm!(a
            /// What was interrupted may have its own VERW behind it.
            ; verw  WORD [BYTE rsp + IretFrame::ss.low_word()]
        );
    }
}

/// The same, but RSP points to the [`FarFrame`] by which ring 0 is returned to.
#[rustfmt::skip]
pub(super) fn before_far_return<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.axes().mitigations.verw {
        asm!(a
            /// As above.
            ; verw  WORD [BYTE rsp + FarFrame::cs.low_word()]
        );
    }
}

/// What comes before a RET of the host's. ECX is the number of SPEC_CTRL, if that is switched.
#[rustfmt::skip]
fn sequences<S: Sink>(a: &mut S, variant: &Variant, labels: &Labels) -> Cleared {
    let mitigations = variant.axes().mitigations;
    let mut cleared = Cleared::default();

    if mitigations.ibrs {
        asm!(a
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
            ; call  =>labels.filled_once
            ; int3
            ; =>labels.filled_once
            ; add   rsp, BYTE 8
        ),
        Rsb::Full => {
            asm!(a
                /// The return stack buffer is filled with addresses of traps.
                ; mov   ecx, RSB_ROUNDS
                ; =>labels.fill
                ; call  =>labels.filled_once
                ; int3
                ; =>labels.filled_once
                ; call  =>labels.filled_twice
                ; int3
                ; =>labels.filled_twice
                ; add   rsp, BYTE 16
                ; dec   ecx
                ; jnz   =>labels.fill
            );
            cleared.rcx = true;
        }
    }
    if mitigations.bhb {
        asm!(a
            /// The history of branches is overwritten: each round calls the next one.
            ; mov   ecx, BHB_ROUNDS
            ; call  =>labels.round
            ; jmp   =>labels.cleared
        );
        a.align(BHB_ALIGNMENT, super::FILLER);
        asm!(a
            ; =>labels.round
            ; call  =>labels.branches
            ; ret
        );
        a.align(BHB_ALIGNMENT, super::FILLER);
        asm!(a
            ; =>labels.branches
            ; mov   eax, BHB_BRANCHES
            ; =>labels.branch
            ; jmp   BYTE =>labels.target
            ; nop
            ; =>labels.target
            ; dec   eax
            ; jnz   =>labels.branch
            ; dec   ecx
            ; jnz   =>labels.round
            ; ret
            ; =>labels.cleared
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

/// Which registers the sequences have left zero.
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
