//! What a switcher is meant for: the variant, and what else its host has to say of itself.

use std::hash::Hash;
use switcher_spec::Host;

use crate::contract::{Clauses, Contract};
use crate::layouts::{ExtraField, LayoutError, Places, PvcsField};

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
    /// Where the fields of the switcher's data lie.
    pub(crate) extra: Places<ExtraField>,
    /// Where the fields of the PVCS lie.
    pub(crate) pvcs: Places<PvcsField>,
    /// What the code around the switcher guarantees.
    pub contract: Contract,
}

impl From<&Variant> for Setting {
    /// The setting of our own images.
    fn from(variant: &Variant) -> Self {
        let (block, sfmask) = (BlockOffsets::default(), RFlags::SYSCALL_CLEARS);
        let (extra, pvcs) =
            (Places::<ExtraField>::ours(), Places::<PvcsField>::ours(variant.revision()));
        let (features, contract) = (Features::empty(), Contract::OURS);
        Self { variant: *variant, block, sfmask, features, extra, pvcs, contract }
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

    /// Whether the switcher's data is in a struct like ours.
    #[must_use]
    pub fn has_our_extra(&self) -> bool {
        self.extra == Places::<ExtraField>::ours()
    }

    /// The size of the switcher's data in bytes.
    #[must_use]
    pub const fn extra_size(&self) -> u64 {
        self.extra.size().cast_unsigned()
    }

    /// With code around the switcher that keeps this contract.
    #[must_use]
    pub const fn with_contract(self, contract: Contract) -> Self {
        Self { contract, ..self }
    }

    /// Whether the contract has all of these clauses.
    pub(crate) const fn promises(&self, clauses: Clauses) -> bool {
        self.contract.clauses.contains(clauses)
    }

    /// With the switcher's data in a struct like this one.
    ///
    /// # Errors
    /// If a field is missing that the variant needs.
    pub fn with_extra(self, extra: Places<ExtraField>) -> Result<Self, LayoutError> {
        let ibrs = self.variant.mitigations().ibrs;
        extra.check(self.revision(), ibrs, self.variant.pku())?;
        Ok(Self { extra, ..self })
    }

    /// With the PVCS in a struct like this one.
    ///
    /// # Errors
    /// If a field is missing that the variant needs.
    pub fn with_pvcs(self, pvcs: Places<PvcsField>) -> Result<Self, LayoutError> {
        pvcs.check(self.revision(), self.variant.pku())?;
        Ok(Self { pvcs, ..self })
    }

    /// Where a field of the switcher's data lies, from the address of the per-CPU block on; `None`
    /// if there is none, which the variant does not need then.
    #[must_use]
    pub fn extra_at(&self, field: ExtraField) -> Option<i64> {
        self.extra.at(field).map(|at| self.block.tss_extra + at)
    }

    /// The same of a field that every struct has.
    pub(crate) fn own_extra_at(&self, field: ExtraField) -> i64 {
        self.extra_at(field).expect("a struct without this field was refused")
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
