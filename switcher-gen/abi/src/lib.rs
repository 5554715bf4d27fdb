//! What a switcher, its host and its guest share.
//!
//! | module | what it is |
//! |---|---|
//! | [`arch`] | facts of x86-64: RFLAGS, CR3, selectors, MSRs, paging modes, vectors, host features |
//! | [`Hazard`] | what has gone wrong in such code before, by the numbers of spec/hazards.md |
//! | [`kernels`] | the structs of kernels whose switcher may be replaced by one of ours |
//! | [`layout`] | the structs that emitted code reads and writes, with a typed [`Offset`](layout::Offset) per field |
//! | [`ReturnMethod`] | by which instruction a guest is returned to, and why |
//!
//! This crate is without std, and says nothing on how a switcher is made. Whoever writes a host or
//! a guest that knows only the interface of a switcher depends on this crate alone; everybody else
//! has it from `switcher-gen`, which re-exports all of it. The numbers are those of spec/abi.md,
//! and a test compares the two.
//!
//! ```
//! use switcher_abi::Hazard;
//! use switcher_abi::arch::{Cr3, RFlags};
//! use switcher_abi::layout::{AsmLayout, PerCpu, Pvcs, TssExtra};
//!
//! // Where a field lies, as a type that knows the struct and the field.
//! assert_eq!((PerCpu::tss_extra + TssExtra::switch_flags).bytes(), 0xC0);
//! assert_eq!(Pvcs::LAYOUT.name, "Pvcs");
//!
//! // Which flags a guest may have, whatever it asks for.
//! assert!(!RFlags::GUEST_ALLOWED.contains(RFlags::IOPL));
//! // What may be loaded into CR3: an address of a page and nothing else.
//! assert!(Cr3::new(0x1234).is_err());
//!
//! // The tools print hazards by row and title.
//! assert_eq!(Hazard::StaleGsBase.to_string(), "row 6: stale GS base");
//! ```
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
// The macros' expansions name this crate `switcher_gen`.
extern crate self as switcher_gen;
#[cfg(test)]
extern crate std;

pub mod arch;
mod hazard;
pub mod kernels;
pub mod layout;
mod return_method;

pub use hazard::Hazard;
pub use return_method::{Operand, ReturnMethod, Why};

/// The items to which expansions of the macros refer.
#[doc(hidden)]
pub mod __private {
    pub use memoffset;
}
