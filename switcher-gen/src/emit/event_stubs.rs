//! The 256 entries of the IDT, at a fixed distance from each other: see
//! [`Image::gate`](crate::Image::gate).
//!
//! **The CPU**: as in `event` and `event_ist`.
//! **Live**: everything.
//! **May be clobbered**: nothing.
//!
//! A stub pushes its vector, as one byte that is sign-extended, and jumps to the code that it has
//! in common with others. The stubs of vectors with stacks of their own only jump.

use switcher_macros::asm;

use super::{ENTRY_ALIGNMENT, FILLER};
use crate::arch::vector;
use crate::asm::{Label, Sink, Window};
use crate::variant::Variant;

/// How many bytes there are from one stub to the next: an ENDBR64 takes four.
pub(crate) const fn stride(variant: &Variant) -> usize {
    if variant.ibt() { 16 } else { 8 }
}

#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    a.align(ENTRY_ALIGNMENT, FILLER);
    a.dynamic_label(Label::EventStubs);
    for vector in 0..=u8::MAX {
        if variant.ibt() {
            asm!(a ; endbr64);
        }
        match vector {
            vector::DB => asm!(a ; jmp =>Label::EventDb),
            vector::NMI => asm!(a ; jmp =>Label::EventNmi),
            vector::MC => asm!(a ; jmp =>Label::EventMc),
            vector::DF => asm!(a ; jmp =>Label::EventDf),
            vector::SEGMENT_OVERRUN => asm!(a ; jmp =>Label::EventFatal),
            _ => {
                asm!(a ; push BYTE vector.cast_signed());
                if vector::pushes_error_code(vector) {
                    asm!(a ; jmp =>Label::EventError);
                } else {
                    asm!(a ; jmp =>Label::Event);
                }
            }
        }
        a.align(stride(variant), FILLER);
    }
    a.dynamic_label(Label::EventStubsEnd);
    a.close(Window::GuestRoot);
}
