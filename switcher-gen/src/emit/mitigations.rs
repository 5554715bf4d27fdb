//! The sequences between guest and host against speculative execution. Each is emitted only if the
//! variant has its mitigation (spec/switcher.md, "Mitigations"; hazards.md, row 29).
//!
//! An exit's sequences come in this order, all before the first RET that is not part of them:
//! SPEC_CTRL, which then restricts the host's code; IBPB; the return stack buffer; the history of
//! branches; the host's untraining of returns. An entry writes the guest's SPEC_CTRL first and ends
//! with VERW.
//!
//! An NMI or #MC in ring 0 runs host code, too: its hook. It may have come anywhere, before an
//! exit's sequences or after an entry's VERW. Nothing in the per-CPU block says where (host_rsp
//! becomes zero before an exit's sequences, not after them), so all of this is done each time: the
//! sequences before the hook, then SPEC_CTRL as it was, and VERW last.
//!
//! The addresses of the code matter, too. The branches that overwrite the history lie in one cache
//! line, as in the vendor's sequence, because the history is made of their addresses. Each RET lies
//! in the upper half of its line, as CPUs with ITS need it (Intel, "Indirect Target Selection"; the
//! layout is that of Linux's `clear_bhb_loop`). Filler stands where nothing is executed. The trap
//! after each return, against straight-line speculation, is written by `asm!`.

use switcher_macros::asm;

use super::{FILLER, TRAPPED_RET};
use crate::arch::Msr;
use crate::asm::{HostSymbol, LINE, Label, Length, Sink};
use crate::layout::{BlockLayout, FarFrame, IretFrame, PerCpu, needed};
use crate::mitigations::{Bhb, Rsb};
use crate::variant::Variant;

/// How often the loop at [`Label::RsbFill`] runs. Each round fills two entries, and no CPU's buffer
/// has more than 32.
const RSB_ROUNDS: i32 = 16;

/// The labels within one copy of the sequences.
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

/// The sequences of an exit, on the host's root, stack and GS. [`ready`] comes next, and a RET
/// follows `to_ret` bytes after the start of `ready`.
///
/// **May be clobbered**: RAX, RCX, RDX, flags, and the host's stack below RSP.
#[rustfmt::skip]
pub(super) fn at_exit<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant, to_ret: usize) {
    if variant.mitigations().ibrs {
        asm!(a
            /// SPEC_CTRL is the host's.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
        );
    }
    sequences::<S, B>(a, variant, &EXIT, Some(to_ret));
}

/// The sequences before the hook of an NMI or #MC in ring 0, on the host's root and GS and a stack
/// of the IST.
///
/// **May be clobbered**: RAX, RCX, RDX, flags, and the stack below RSP. If SPEC_CTRL is switched,
/// its old value is on the stack afterwards, as two words for [`after_hook`].
#[rustfmt::skip]
pub(super) fn before_hook<S: Sink>(a: &mut S, variant: &Variant) -> Cleared {
    if variant.mitigations().ibrs {
        asm!(a
            /// SPEC_CTRL is kept, its reserved half too, and is the host's.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; rdmsr
            ; push  rdx
            ; push  rax
        );
    }
    sequences::<S, PerCpu>(a, variant, &HOOK, None);
    ready(a, variant)
}

/// What is done once a hook has returned: SPEC_CTRL gets its old value. The only RETs that may
/// follow are an exit's, which has sequences of its own, and the guest's. RSP is what it was after
/// [`before_hook`]. **May be clobbered**: RAX, RCX, RDX.
#[rustfmt::skip]
pub(super) fn after_hook<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.mitigations().ibrs {
        asm!(a
            /// SPEC_CTRL is as it was.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; pop   rax
            ; pop   rdx
            ; wrmsr
        );
    }
}

/// What is done before the IRETQ to interrupted code of ring 0. RSP points to its frame, and every
/// other register holds the interrupted code's value.
/// **May be clobbered**: ZF.
#[rustfmt::skip]
pub(super) fn before_ring_0<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.mitigations().verw {
        asm!(a
            /// What was interrupted may have its own VERW behind it.
            ; verw  WORD [BYTE rsp + IretFrame::ss.low_word()]
        );
    }
}

/// The same as [`before_ring_0`], before the far RET. RSP points to its [`FarFrame`].
#[rustfmt::skip]
pub(super) fn before_far_return<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.mitigations().verw {
        asm!(a
            /// As above.
            ; verw  WORD [BYTE rsp + FarFrame::cs.low_word()]
        );
    }
}

/// The sequences that come before a RET of the host's, except the part in [`ready`]. `to_ret` says
/// how many bytes after the start of that part a RET of the switcher's own lies, if one follows.
/// ECX holds the number of SPEC_CTRL, if that is switched.
#[rustfmt::skip]
fn sequences<S: Sink, B: BlockLayout>(
    a: &mut S,
    variant: &Variant,
    labels: &Labels,
    to_ret: Option<usize>,
) {
    let mitigations = variant.mitigations();

    if mitigations.ibrs {
        asm!(a
            ; percpu mov eax, DWORD [needed(B::HOST_SPEC_CTRL)]
            ; xor   edx, edx
            ; wrmsr
        );
    }
    if mitigations.ibpb {
        asm!(a
            /// IBPB: no prediction rests on what the guest has trained.
            ; mov   ecx, Msr::PredCmd.address().cast_signed()
            ; mov   eax, 1
        );
        if !mitigations.ibrs {
            asm!(a ; xor edx, edx);
        }
        asm!(a ; wrmsr);
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
        }
    }
    if let Some((rounds, branches)) = mitigations.bhb.sequence() {
        asm!(a
            /// The history of branches is overwritten: each round calls the next one.
            ; mov   ecx, rounds
            ; call  =>labels.round
            ; jmp   =>labels.cleared
        );
        in_a_line(a, labels, RoundPart::Call);
        in_a_line(a, labels, RoundPart::Branches(branches));
        if let Some(to_ret) = to_ret {
            a.upper_half(to_ret, FILLER);
        }
        asm!(a ; =>labels.cleared);
    }
}

/// The two parts of a round. `Branches` holds the number of branches.
#[derive(Clone, Copy)]
enum RoundPart {
    Call,
    Branches(i32),
}

/// Emits a part of a round: the call of its branches, or the branches.
#[rustfmt::skip]
fn part<S: Sink>(a: &mut S, labels: &Labels, part: RoundPart) {
    match part {
        RoundPart::Call => asm!(a
            ; =>labels.round
            ; call  =>labels.branches
            ; ret
        ),
        RoundPart::Branches(branches) => asm!(a
            ; =>labels.branches
            ; mov   eax, branches
            ; =>labels.branch
            ; jmp   BYTE =>labels.target
            ; nop
            ; =>labels.target
            ; dec   eax
            ; jnz   BYTE =>labels.branch
            ; dec   ecx
            ; jnz   BYTE =>labels.round
            ; ret
        ),
    }
}

/// Emits a part of a round in a cache line of its own, because the addresses of its branches are
/// part of the history and must be as in the vendor's sequence. Its RET lies in the upper half of
/// the line.
fn in_a_line<S: Sink>(a: &mut S, labels: &Labels, of_round: RoundPart) {
    let mut length = Length::new(a.placement());
    part(&mut length, labels, of_round);
    a.align(LINE, FILLER);
    a.upper_half(length.bytes() - TRAPPED_RET, FILLER);
    part(a, labels, of_round);
}

/// Waits until the sequences have taken effect, and calls the host's untraining. Returns what is in
/// registers afterwards. **May be clobbered**: RAX, RCX, RDX, flags, and the stack below RSP.
#[rustfmt::skip]
pub(super) fn ready<S: Sink>(a: &mut S, variant: &Variant) -> Cleared {
    let mitigations = variant.mitigations();
    if mitigations.bhb != Bhb::Left || mitigations.rsb != Rsb::Left {
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
        return Cleared { untrained: true, ..Cleared::default() };
    }
    let msrs = mitigations.ibrs || mitigations.ibpb;
    let loops = mitigations.bhb.is_on() || mitigations.rsb == Rsb::Full;
    Cleared { rcx: loops, rdx: msrs, rcx_known: loops || msrs, untrained: false }
}

/// What the sequences have left in RAX, RCX and RDX. Each flag says one thing that is known.
#[derive(Clone, Copy, Default)]
pub(super) struct Cleared {
    /// RCX is zero.
    pub(super) rcx: bool,
    pub(super) rdx: bool,
    /// RCX is zero, or the number of an MSR.
    pub(super) rcx_known: bool,
    /// All three hold whatever the host's untraining leaves.
    pub(super) untrained: bool,
}

/// What an entry starts with, on the host's root and GS: the guest's SPEC_CTRL. **May be
/// clobbered**: RAX, RCX, RDX.
#[rustfmt::skip]
pub(super) fn at_entry<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    if variant.mitigations().ibrs {
        asm!(a
            /// SPEC_CTRL is the guest's: no host code follows but this routine.
            ; mov   ecx, Msr::SpecCtrl.address().cast_signed()
            ; percpu mov eax, DWORD [needed(B::GUEST_SPEC_CTRL)]
            ; xor   edx, edx
            ; wrmsr
        );
    }
}

/// What an entry ends with, VERW. Every register is the guest's except RSP, which is sp0. **May be
/// clobbered**: ZF. From here on only the guest's own frame is read.
#[rustfmt::skip]
pub(super) fn before_guest<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.mitigations().verw {
        asm!(a
            /// VERW overwrites the CPU's buffers, whatever the selector is.
            ; verw  WORD [BYTE rsp + IretFrame::ss.below_end().low_word()]
        );
    }
}
