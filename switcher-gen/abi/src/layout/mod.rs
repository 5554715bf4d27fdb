//! The structs that emitted code reads and writes, and the typed offsets it reads and writes them
//! with. Everything follows spec/abi.md; each layout is asserted where it is defined, because
//! emitted code is only as sound as these offsets.

mod block;
mod frames;
mod message;
mod offset;
mod percpu;
mod pvcs;

pub(crate) use block::impl_block;
pub use block::{BlockLayout, in_block};
pub use frames::{
    EventFrame, EventOnIst, ExitReason, FarFrame, IretFrame, IstEntry, IstFrame, IstTop,
    LeavingIst, OrigAx, PtRegs, RefusedIretq, ResumingRing0, Sp0,
};
#[doc(hidden)]
pub use message::Message;
pub use offset::{
    Anchor, AsmLayout, End, Field, Half, Layout, Narrow, Offset, Operand, Popped, Scalar, Start,
    after_pop, disp8, disp32, layout_of, needed,
};
pub use percpu::{Mode, PerCpu, Placement, Split64, SwitchFlags, Tss, TssExtra};
pub use pvcs::{EventFlags, Pvcs, PvcsLayout, PvcsV2026, Revision};
pub use switcher_macros::AsmLayout;

/// Every layout emitted code may name, in the order of a reader's journey.
pub const LAYOUTS: &[&Layout] = &[
    PerCpu::LAYOUT,
    Tss::LAYOUT,
    TssExtra::LAYOUT,
    Pvcs::LAYOUT,
    PvcsV2026::LAYOUT,
    PtRegs::LAYOUT,
    OrigAx::LAYOUT,
    IretFrame::LAYOUT,
    IstTop::LAYOUT,
];
