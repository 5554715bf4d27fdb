//! An event that has ended a guest's run is handed on to the host (spec/switcher.md, "Handing
//! events on").

use super::InterruptedCode;
use switcher_gen::arch::RFlags;
use switcher_gen::layout::IretFrame;
use switcher_model::{ARITHMETIC, Domain};

/// What a handler finds that the CPU calls through an interrupt gate in ring 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delivered<W> {
    /// RSP, which points to an [`IretFrame`] of the interrupted code.
    pub rsp: W,
    /// RFLAGS, of which the arithmetic flags are not compared.
    pub rflags: W,
    /// The interrupted code, as the frame has it. All other registers are as they are there.
    pub interrupted: InterruptedCode<W>,
}

/// The host's handler begins as if the CPU had just delivered the event to it, and `interrupted`
/// were what it has interrupted. Its gate has a stack of its own, which ends at `top`, or none.
pub fn delivered<D: Domain>(
    d: &D,
    interrupted: &InterruptedCode<D::Word>,
    top: Option<D::Word>,
) -> Delivered<D::Word> {
    // In 64-bit mode the CPU aligns either stack (Intel SDM vol. 3, 6.14.2).
    let aligned = d.mask(top.unwrap_or(interrupted.registers.rsp), !0xF);
    let cleared = RFlags::IF | RFlags::TF | RFlags::NT | RFlags::RF;
    Delivered {
        rsp: d.plus(aligned, -(size_of::<IretFrame>() as i64)),
        rflags: d.mask(interrupted.rflags, !(cleared.bits() | ARITHMETIC)),
        interrupted: *interrupted,
    }
}
