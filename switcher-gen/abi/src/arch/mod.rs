//! Facts of the x86-64 architecture, as types: flags, control registers, MSRs, selectors, paging
//! modes and what a host has of them. The module knows nothing of switchers.

mod control;
mod cr3;
mod features;
mod immediate;
mod msr;
mod paging;
mod rflags;
mod selectors;
mod speculation;
pub mod vector;

pub use control::{cr0, cr4, debugctl, dr7, efer, s_cet};
pub use cr3::{Cr3, Cr3Error, Pcid, PcidEnabled};
#[cfg(any(test, feature = "fake"))]
pub use features::fake;
pub use features::{Feature, HostFeatures, HostState, UnsupportedCpu, Vendor};
pub use immediate::imm32;
pub use msr::{Msr, Star};
pub use paging::{CanonicalAddr, NonCanonical, PagingMode};
pub use rflags::RFlags;
pub use selectors::{SelectorError, Selectors};
pub use speculation::{ArchCapabilities, McuOptCtrl, Signature, SpecCtrl, Speculation, TsxCtrl};
