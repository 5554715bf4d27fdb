//! Emits switchers.
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;
extern crate self as switcher_gen;
#[cfg(all(test, not(feature = "std")))]
extern crate std;

pub mod arch;
pub mod asm;
#[cfg(feature = "std")]
pub mod elf;
pub mod emit;
mod image;
pub mod layout;
#[cfg(feature = "std")]
pub mod listing;
#[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "runs emitted bytes; each block carries its proof")]
pub mod native;
#[cfg(feature = "std")]
pub mod offsets;
mod variant;

pub use image::{Fingerprint, Image, LinkError, LinkedImage};
pub use variant::{Axes, IllegalVariant, UnknownVariant, Variant};

/// What expansions of the macros refer to.
#[doc(hidden)]
pub mod __private {
    pub use dynasm::dynasm;
    pub use memoffset;
}
