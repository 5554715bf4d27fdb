//! `switcher_hand_on` and `switcher_hand_on_stack`: call the host's handler of an event that has
//! ended a guest's run, as the CPU would have called it.
//!
//! **Reached** by a call of the host's after the exit, with the host's own IDT, GDT and TSS loaded:
//! CPL 0, interrupts off, the host's root and GS. After an NMI's exit, NMIs are blocked, and stay
//! so up to the handler.
//! **Live**: RDI, the handler's address. RDX, the flags of the code that the handler returns to. In
//! `switcher_hand_on_stack` RSI, the top of the stack that the handler begins on; the other one's
//! begins on the stack that it is called on.
//! **May be clobbered**: RAX, RCX, RSI, R8, flags.
//!
//! The handler finds what an interrupt gate leaves: RSP below a frame on an aligned stack, and IF,
//! TF, NT and RF clear (Intel SDM vol. 3, 6.14.2). It returns by its own IRET, to the end of this
//! routine, with every register as it has found it. That IRET is what ends the blocking of NMIs, so
//! this leads to the handler by a far RET, which ends nothing; CPUs do not predict it either, so it
//! needs no retpoline. With IF in RDX, interrupts that wait come before this returns, as behind an
//! STI.

use switcher_macros::asm;

use super::{FILLER, entry_point};
use crate::asm::{HostSymbol, Label, Length, Sink};
use crate::variant::Variant;

/// A stack is aligned to 16 bytes before the CPU pushes a frame there.
const ALIGNED: i8 = -16;

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    if variant.mitigations().untrain {
        whole(a, variant);
        asm!(a
            /// RET, as all of the host's code does it.
            ; jmp   extern HostSymbol::RETURN_THUNK
        );
    } else {
        let mut length = Length::new(a.placement());
        whole(&mut length, variant);
        a.upper_half(length.bytes(), FILLER);
        whole(a, variant);
        asm!(a ; ret);
    }
}

/// Everything but the RET.
#[rustfmt::skip]
fn whole<S: Sink>(a: &mut S, variant: &Variant) {
    entry_point(a, variant, Label::HandOn);
    asm!(a
        /// The handler has no stack of its own.
        ; mov   rsi, rsp
    );
    entry_point(a, variant, Label::HandOnStack);
    asm!(a
        /// On the handler's stack, the frame of an event that has interrupted this code.
        ; mov   rax, rsp
        ; and   rsi, BYTE ALIGNED
        ; mov   rsp, rsi
        ; mov   ecx, ss
        ; push  rcx
        ; push  rax
        ; push  rdx
        ; mov   ecx, cs
        ; push  rcx
        ; lea   r8, [=>Label::HandedOn]
        ; push  r8
        /// To the handler, without an IRETQ and without a prediction.
        ; push  rcx
        ; push  rdi
        ; retfq
        /// Its IRET leads here.
        ; =>Label::HandedOn
        ; cli
    );
}
