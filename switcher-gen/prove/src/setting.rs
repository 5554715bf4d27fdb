//! What a switcher is meant for: the variant, and what else its host has to say of itself.

use std::hash::Hash;
use switcher_spec::Host;

use switcher_gen::arch::RFlags;
use switcher_gen::layout::Revision;
use switcher_gen::{Variant, layout};
use switcher_model::{CpuModel, Features};

/// Where in the per-CPU block the data lies: relative to the block's address, which is the host's
/// GS base or a number, by the variant's placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockOffsets {
    /// The offset of the TSS.
    pub tss: i64,
    /// The offset of the switcher's data.
    pub tss_extra: i64,
}

impl Default for BlockOffsets {
    /// The offsets of [`layout::PerCpu`].
    fn default() -> Self {
        let at = |bytes: usize| bytes as i64;
        let (tss, extra) = (layout::PerCpu::tss, layout::PerCpu::tss_extra);
        Self { tss: at(tss.bytes()), tss_extra: at(extra.bytes()) }
    }
}

/// What a switcher is meant for. It is made from a variant, and the rest is as for our own images
/// until it is said otherwise:
///
/// ```
/// use switcher_gen::Variant;
/// use switcher_model::Features;
/// use switcher_prove::{BlockOffsets, Setting};
///
/// let offsets = BlockOffsets { tss: 0x6000, tss_extra: 0x6080 };
/// let setting = Setting::from(&Variant::REFERENCE)
///     .with_block(offsets)
///     .with_features(Features::SMAP);
/// assert_eq!(setting.block, offsets);
/// assert!(setting.model().features.contains(Features::SMAP));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Setting {
    /// The CPU, the paging mode and the selectors.
    pub variant: Variant,
    /// Where the per-CPU data is.
    pub block: BlockOffsets,
    /// The flags that SYSCALL clears: what the host has in SFMASK.
    pub sfmask: RFlags,
    /// What its CPUs have besides what the variant implies.
    pub features: Features,
}

impl From<&Variant> for Setting {
    /// The setting of our own images.
    fn from(variant: &Variant) -> Self {
        let (block, sfmask) = (BlockOffsets::default(), RFlags::SYSCALL_CLEARS);
        Self { variant: *variant, block, sfmask, features: Features::empty() }
    }
}

impl Setting {
    /// With the per-CPU data there.
    #[must_use]
    pub const fn with_block(self, block: BlockOffsets) -> Self {
        Self { block, ..self }
    }

    /// With these flags cleared by SYSCALL.
    #[must_use]
    pub const fn with_sfmask(self, sfmask: RFlags) -> Self {
        Self { sfmask, ..self }
    }

    /// With these features on all CPUs, besides what the variant implies.
    #[must_use]
    pub const fn with_features(self, features: Features) -> Self {
        Self { features, ..self }
    }

    /// What the PVCS looks like.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.variant.revision()
    }

    /// The CPU.
    #[must_use]
    pub fn model(&self) -> CpuModel {
        let model = CpuModel::from(&self.variant);
        CpuModel { features: model.features | self.features, ..model }
    }

    pub(crate) fn host(&self) -> Host {
        Host {
            paging: self.variant.paging(),
            selectors: self.variant.selectors(),
            revision: self.revision(),
            ibrs: self.variant.mitigations().ibrs,
            pku: self.variant.pku(),
        }
    }
}
