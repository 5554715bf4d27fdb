//! Emits and proves switchers: the ring-0 code that takes a PVM guest from its user mode to its kernel mode and
//! back without its hypervisor.
//!
//! # The journey
//!
//! 1. **struct -> offset.** [`arch`] holds the facts of x86-64; [`layout`] the structs that emitted
//!    code reads and writes, with a typed [`Offset`](layout::Offset) per field.
//! 2. **offset -> code.** A [`Variant`] says what to emit for which host. The emitters ([`emit`], one
//!    file per routine) write to a [`Sink`](asm::Sink), where those offsets are the only
//!    displacements there are. The result is an [`Image`]: bytes, entry points, windows.
//! 3. **code -> listing.** [`listing`] decodes the bytes again and gives every number its name back;
//!    [`elf`] and [`offsets`] are for other toolchains.
//! 4. **code -> proof.** [`machine`] is the CPU, [`spec`] what each routine must do, and [`prove`]
//!    shows that the bytes do it, for every state, or finds one in which they do not.
//!    [`mutate`] breaks the code to see whether it objects, [`fuzz`] tries many states, [`cost`]
//!    counts. Images that are proved are on record: [`certificate`].
//! 5. **code -> execution.** [`native`] runs the bytes here, in user mode,
//!    [`machine::Interpreter`] anywhere, in the model of the CPU; [`scenario`] is what both take and
//!    give. `switcher-runtime` does everything up to `Image` inside a host, in ring 0, without this
//!    crate's feature `std`.
//!
//! Each module knows only those before it. CAVEATS.md, beside this crate's Cargo.toml, says what the
//! proofs assume and do not cover.
//!
//! ```
//! use switcher_gen::arch::{PagingMode, Selectors};
//! use switcher_gen::asm::{Label, Window};
//! use switcher_gen::layout::{PerCpu, TssExtra};
//! use switcher_gen::listing::{Listing, ListingOptions};
//! use switcher_gen::prove::{Prover, Target, Verdict};
//! use switcher_gen::{Axes, Image, Variant, certificate};
//!
//! // Struct -> offset.
//! let flags = PerCpu::tss_extra + TssExtra::switch_flags;
//! assert_eq!(flags.bytes(), 0xC0);
//!
//! // Offset -> code, for one kind of host.
//! let axes = Axes { paging: PagingMode::FiveLevel, pcid: true, ..Variant::REFERENCE.axes() };
//! let variant = Variant::new(axes, Selectors::DEFAULT)?;
//! let image = Image::new(&variant)?;
//! assert!(image.is_in(Window::UnsafeStack, image.offset(Label::SysretqUnsafeStack)));
//!
//! // Code -> listing.
//! let listing = Listing::new(&image, &ListingOptions::default())?;
//! assert!(listing.to_string().contains("xor     byte ptr gs:[tss_extra.switch_flags]"));
//!
//! // Code -> proof.
//! let verdict = Prover::default().prove(&Target::image(&image))?;
//! assert!(matches!(verdict, Verdict::Proved(_)));
//! assert!(certificate::is_proved(&image));
//!
//! // Code -> an address to run at.
//! let linked = image.link_without_hooks(0xFFFF_FE80_0000_0000)?;
//! assert_eq!(linked.address(Label::EnterGuest), 0xFFFF_FE80_0000_0000);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(feature = "std"), no_std)]
#![deny(unsafe_code)]

extern crate alloc;
extern crate self as switcher_gen;
#[cfg(all(test, not(feature = "std")))]
extern crate std;

pub mod arch;
pub mod asm;
pub mod certificate;
#[cfg(feature = "std")]
pub mod cost;
#[cfg(feature = "std")]
pub mod elf;
pub mod emit;
#[cfg(feature = "std")]
pub mod fuzz;
mod hazard;
mod image;
pub mod layout;
#[cfg(feature = "std")]
pub mod listing;
#[cfg(feature = "std")]
pub mod machine;
pub mod mitigations;
#[cfg(feature = "std")]
pub mod mutate;
#[cfg(all(feature = "std", target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "runs emitted bytes; each block carries its proof")]
pub mod native;
#[cfg(feature = "std")]
pub mod offsets;
#[cfg(feature = "std")]
pub mod prove;
#[cfg(feature = "std")]
pub mod scenario;
#[cfg(feature = "std")]
pub mod spec;
#[cfg(feature = "std")]
pub mod superfluous;
mod variant;

pub use hazard::Hazard;
pub use image::{Fingerprint, Gate, GateDescriptor, Image, LinkError, LinkedImage};
pub use mitigations::{Bhb, Mitigations, NotForVendor, Rsb, UnknownMitigation};
pub use variant::{
    Axes, IllegalVariant, NoVariant, Policy, UnknownPolicy, UnknownVariant, Variant,
};

/// What expansions of the macros refer to.
#[doc(hidden)]
pub mod __private {
    pub use dynasm::dynasm;
    pub use memoffset;
    pub use switcher_macros::asm;
}
