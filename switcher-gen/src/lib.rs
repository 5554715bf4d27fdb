//! Emits switchers: the ring-0 code that takes a PVM guest from its user mode to its kernel mode
//! and back without its hypervisor.
//!
//! 1. **struct -> offset.** [`arch`] holds the facts of x86-64; [`layout`] the structs that emitted
//!    code reads and writes, with a typed [`Offset`](layout::Offset) per field.
//! 2. **offset -> code.** A [`Variant`] says what to emit for which host. The emitters ([`emit`],
//!    one file per routine) write to a [`Sink`](asm::Sink), where those offsets are the only
//!    displacements there are. The result is an [`Image`]: bytes, entry points, windows.
//! 3. Images that are proved are on record: [`certificate`].
//!
//! This is what a hypervisor links (by way of `switcher-runtime`), and it needs no std. What lists,
//! proves and runs images is in crates of its own, in this crate's folder.
//!
//! ```
//! use switcher_gen::arch::{PagingMode, Vendor};
//! use switcher_gen::asm::{Label, Window};
//! use switcher_gen::layout::{PerCpu, TssExtra};
//! use switcher_gen::{Image, Variant, certificate};
//!
//! // Struct -> offset.
//! let flags = PerCpu::tss_extra + TssExtra::switch_flags;
//! assert_eq!(flags.bytes(), 0xC0);
//!
//! // Offset -> code, for one kind of host.
//! let variant = Variant::builder(Vendor::Intel, PagingMode::FiveLevel).pcid(true).build()?;
//! let image = Image::new(&variant)?;
//! assert!(image.is_in(Window::UnsafeStack, image.offset(Label::SysretqUnsafeStack)));
//! assert!(certificate::is_proved(&image));
//!
//! // Code -> an address to run at.
//! let linked = image.link_without_hooks(0xFFFF_FE80_0000_0000)?;
//! assert_eq!(linked.address(Label::EnterGuest), 0xFFFF_FE80_0000_0000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Errors are `#[non_exhaustive]`, as more may be checked in later versions. [`Config`],
//! [`Policy`], [`Mitigations`], labels and windows are not: what is new in them must be emitted,
//! listed, specified, proved and installed, and wherever that is forgotten the compiler says so.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
extern crate self as switcher_gen;
#[cfg(test)]
extern crate std;

pub mod asm;
pub mod certificate;
pub mod emit;
mod image;
pub mod mitigations;
mod names;
mod typed;
mod variant;

pub use image::{Fingerprint, Gate, GateDescriptor, Image, LinkError, LinkedImage};
pub use mitigations::{
    Bhb, Contradiction, Mitigation, Mitigations, NotForVendor, Rsb, UnknownMitigation,
    UnknownMitigations,
};
pub use switcher_abi::{Hazard, Operand, ReturnMethod, Why, arch, kernels, layout};
pub use typed::{Part, UnknownPolicy, UnknownVariant, UnknownVariantReason};
pub use variant::{Config, IllegalVariant, NoVariant, Policy, Variant, VariantBuilder};

/// The items to which expansions of the macros refer.
#[doc(hidden)]
pub mod __private {
    pub use dynasm::dynasm;
    pub use memoffset;
    pub use switcher_asm::Sink;
    pub use switcher_macros::asm;
}
