//! What a switcher, its host and its guest share.
//!
//! | module | what it is |
//! |---|---|
//! | [`arch`] | facts of x86-64: RFLAGS, CR3, selectors, MSRs, paging modes, vectors, host features |
//! | [`Hazard`] | what has gone wrong in such code before, by the numbers of spec/hazards.md |
//! | [`layout`] | the structs that emitted code reads and writes, with a typed [`Offset`](layout::Offset) per field |
//!
//! The crate needs no std and knows nothing of how a switcher is made. `switcher-gen` re-exports
//! all of it.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
// The macros' expansions name this crate `switcher_gen`.
extern crate self as switcher_gen;
#[cfg(test)]
extern crate std;

pub mod arch;
mod hazard;
pub mod layout;

pub use hazard::Hazard;

/// What expansions of the macros refer to.
#[doc(hidden)]
pub mod __private {
    pub use memoffset;
}
