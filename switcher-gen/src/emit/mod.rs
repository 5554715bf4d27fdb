//! The emitters: one file per routine, in the order in which the routines lie in memory. Each file
//! opens with what the CPU has just done, what is live and what may be clobbered.
//!
//! | file | routine |
//! |---|---|
//! | `enter_guest` | `switcher_enter_guest`: the host's call into the guest |
//! | `return_to_guest` | the choice between SYSRETQ and IRETQ, and the one IRETQ |
//! | `syscall_64` | `entry_SYSCALL_64_switcher`: the decision, the one SYSRETQ, the exit frame |
//! | `to_smod`, `to_umod` | the two direct switches |
//! | `pkru` | on direct switches, the exchange of PKRU, of which each mode has its own |
//! | `return_from_guest` | `switcher_return_from_guest`: the common exit |
//! | `mitigations` | the sequences between guest and host against speculative execution |
//! | `syscall_compat` | `entry_SYSCALL_compat_switcher`: the answer to a 32-bit SYSCALL |
//! | `event` | events on the sp0 stack; a fault of the IRETQ to a guest; events that must not happen |
//! | `event_ist` | #DB, NMI, #MC and #DF, which have stacks of their own |
//! | `event_return` | how #DB and #MC return to ring 0 while NMIs stay blocked |
//! | `event_stubs` | the 256 entries of the IDT |
//! | `hand_on` | the call of the host's own handler, once an event has ended a guest's run |
//! | `pt_regs` | the pushes by which exits and events save registers |
//!
//! `percpu` in front of an instruction is a GS prefix or nothing, by the variant's
//! [`Placement`]: with [`PerCpu`](crate::layout::Placement::PerCpu),
//! direct switches have neither SWAPGS nor a stack, and RSP is one of their scratch registers.
//!
//! `B` is the per-CPU block ([`BlockLayout`]): ours, or that of a kernel whose switcher is to be
//! replaced. Events have ours alone, because such a kernel has event entries of its own.
//!
//! Inside `asm!`, a `///` line becomes a comment of the listing, so it is written for its reader.

mod enter_guest;
mod event;
mod event_ist;
mod event_return;
mod event_stubs;
mod hand_on;
mod mitigations;
mod pkru;
mod pt_regs;
mod return_from_guest;
mod return_to_guest;
mod syscall_64;
mod syscall_compat;
mod to_smod;
mod to_umod;

pub(crate) use event_stubs::stride;

use switcher_macros::asm;

use crate::asm::{Label, Length, Sink};
use crate::layout::{BlockLayout, PerCpu, Placement};
use crate::variant::Variant;

/// INT3 fills gaps, so that a jump into one stops at once.
const FILLER: u8 = 0xCC;
/// The size of a RET and of the trap after it, which `asm!` writes. CPUs with "indirect target
/// selection" (ITS, CVE-2024-28956) mix up the targets of indirect branches in the lower half of a
/// cache line, so every RET of an image lies in the upper half. Filler moves it there, at a place
/// where nothing is executed.
const TRAPPED_RET: usize = 2;
/// The size of an image is a multiple of so many bytes, and one. What asks whether an address is in
/// it is then the same code in most variants, and proved once for all of them.
const SIZE: usize = 512;
/// Entry points start on a boundary of as many bytes as CPUs fetch at a time.
const ENTRY_ALIGNMENT: usize = 16;

/// Emits a whole switcher. Deterministic: equal variants give equal bytes.
pub fn switcher<S: Sink>(a: &mut S, variant: &Variant) {
    a.place(variant.placement());
    a.dynamic_label(Label::Routines);
    routines::<S, PerCpu>(a, variant);
    a.align(ENTRY_ALIGNMENT, FILLER);
    event::emit(a, variant);
    event_ist::emit(a, variant);
    event_stubs::emit(a, variant);
    hand_on::emit(a, variant);
    a.align(SIZE, FILLER);
    // A trap follows, because what is named must not be the end of a section.
    a.dynamic_label(Label::End);
    asm!(a ; int3);
}

/// Emits the routines of a switcher for a kernel that has a block `B` and event entries of its own.
/// The per-CPU block is reached through GS.
pub fn drop_in<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    a.place(Placement::Gs);
    routines::<S, B>(a, variant);
}

/// Emits what is called, or reached by SYSCALL.
///
/// The answer to a 32-bit SYSCALL lies between `entry_SYSCALL_64_switcher` and the label of its
/// safe stack, because that is the range in which the handlers of other kernels take RSP for the
/// guest's. The common exit is the last, because RSP is the host's from there on.
fn routines<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    enter_guest::emit::<S, B>(a, variant);
    return_to_guest::emit(a, variant);
    a.align(ENTRY_ALIGNMENT, FILLER);
    syscall_64::emit::<S, B>(a, variant);
    a.align(ENTRY_ALIGNMENT, FILLER);
    syscall_compat::emit(a, variant);
    exit::<S, B>(a, variant);
}

/// An exit by SYSCALL, and the part that all exits have in common, whose RET lies in the upper half
/// of its cache line. No code falls through to here, so filler may stand in front.
fn exit<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
    fn whole<S: Sink, B: BlockLayout>(a: &mut S, variant: &Variant) {
        syscall_64::exit::<S, B>(a, variant);
        return_from_guest::emit::<S, B>(a, variant);
    }
    // With these mitigations, there is a better place for filler.
    let mitigations = variant.mitigations();
    if !mitigations.bhb.is_on() && !mitigations.untrain {
        let mut length = Length::new(a.placement());
        whole::<_, B>(&mut length, variant);
        a.upper_half(length.bytes() - TRAPPED_RET, FILLER);
    }
    whole::<S, B>(a, variant);
}

/// Opens a routine that is reached by SYSCALL or through a pointer of the host's. With indirect
/// branch tracking, such a routine must start with an ENDBR64.
fn entry_point<S: Sink>(a: &mut S, variant: &Variant, label: Label) {
    a.dynamic_label(label);
    if variant.ibt() {
        asm!(a ; endbr64);
    }
}
