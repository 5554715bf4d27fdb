//! What to emit: for which host and under which policy.
//!
//! A [`Variant`] is a value; an option that is off leaves no byte behind in the emitted code. Only
//! legal combinations can be built, so `emit` never has to ask.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::arch::{HostFeatures, HostState, PagingMode, Selectors, Unfit, Vendor};
use crate::layout::{Placement, Revision};

/// The independent choices a variant is made of.
///
/// Mitigations, host page-table isolation, event entries and PKRU will be further fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Axes {
    /// Whose SYSRET and SS semantics to emit for.
    pub vendor: Vendor,
    /// How wide a canonical address is.
    pub paging: PagingMode,
    /// Whether ring 0 indirect branches must land on ENDBR64.
    pub ibt: bool,
    /// Whether the CR3 slots may hold PCIDs and NOFLUSH. Changes no instruction: the switcher
    /// loads the slots as they are; it decides what the runtime may put into them.
    pub pcid: bool,
    /// What the host chooses, whatever its CPU.
    pub policy: Policy,
}

/// What no CPU decides, but the host and the guests it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// How emitted code reaches the per-CPU block.
    pub placement: Placement,
    /// What the PVCS looks like.
    pub revision: Revision,
}

impl Policy {
    /// One copy of the code for all CPUs, and the PVCS of the RFC: `Default`, for constants.
    pub const DEFAULT: Self = Self { placement: Placement::Gs, revision: Revision::Rfc };

    /// All of them, the default first.
    pub const ALL: [Self; 4] = [
        Self::DEFAULT,
        Self { placement: Placement::PerCpu, revision: Revision::Rfc },
        Self { placement: Placement::Gs, revision: Revision::Current },
        Self { placement: Placement::PerCpu, revision: Revision::Current },
    ];
}

/// A legal combination of [`Axes`], with the selectors of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    axes: Axes,
    selectors: Selectors,
}

/// Axes that no CPU has together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IllegalVariant {
    /// CET indirect branch tracking is Intel's.
    #[error("AMD CPUs have no indirect branch tracking: drop `ibt`, or take vendor `intel`")]
    IbtOnAmd,
}

/// Why there is no variant for a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoVariant {
    /// Its CPU cannot run any.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// It is set up as no CPU should be.
    #[error("this host cannot run a switcher: {0}")]
    Illegal(#[from] IllegalVariant),
}

/// A name no variant has. Lists those that exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown variant `{0}`; known are: {known}", known = Variant::names().join(", "))]
pub struct UnknownVariant(pub String);

impl Variant {
    /// What the others are compared with in reviews: the commonest host, nothing optional.
    pub const REFERENCE: Self = Self {
        axes: Axes {
            vendor: Vendor::Intel,
            paging: PagingMode::FourLevel,
            ibt: false,
            pcid: false,
            policy: Policy::DEFAULT,
        },
        selectors: Selectors::DEFAULT,
    };

    /// # Errors
    /// If no CPU has the combination.
    pub const fn new(axes: Axes, selectors: Selectors) -> Result<Self, IllegalVariant> {
        if axes.ibt && matches!(axes.vendor, Vendor::Amd) {
            return Err(IllegalVariant::IbtOnAmd);
        }
        Ok(Self { axes, selectors })
    }

    /// The variant for a host as it is, under the default policy: see
    /// [`with_policy`](Self::with_policy).
    ///
    /// # Errors
    /// If its CPU lacks something no switcher can do without (names all of it), or if it is set up
    /// in a way for which there is no variant.
    pub fn for_host(features: &HostFeatures, selectors: Selectors) -> Result<Self, NoVariant> {
        let vendor = features.fit()?;
        let HostState { paging, pcid, ibt } = features.state();
        let axes = Axes { vendor, paging, ibt, pcid, policy: Policy::DEFAULT };
        Ok(Self::new(axes, selectors)?)
    }

    /// The same under another policy, which any CPU allows.
    #[must_use]
    pub const fn with_policy(self, policy: Policy) -> Self {
        Self { axes: Axes { policy, ..self.axes }, ..self }
    }

    /// Every variant there is, with default selectors, the reference first.
    pub fn all() -> impl Iterator<Item = Self> {
        Policy::ALL
            .into_iter()
            .flat_map(|policy| Self::of_cpus().map(move |variant| variant.with_policy(policy)))
    }

    /// One for each kind of CPU, under the default policy.
    fn of_cpus() -> impl Iterator<Item = Self> {
        const BOOLS: [bool; 2] = [false, true];
        [Vendor::Intel, Vendor::Amd].into_iter().flat_map(|vendor| {
            [PagingMode::FourLevel, PagingMode::FiveLevel].into_iter().flat_map(move |paging| {
                BOOLS.into_iter().flat_map(move |ibt| {
                    BOOLS.into_iter().filter_map(move |pcid| {
                        let policy = Policy::DEFAULT;
                        let axes = Axes { vendor, paging, ibt, pcid, policy };
                        Self::new(axes, Selectors::DEFAULT).ok()
                    })
                })
            })
        })
    }

    /// The names of [`all`](Self::all).
    #[must_use]
    pub fn names() -> Vec<String> {
        Self::all().map(|v| alloc::format!("{v}")).collect()
    }

    /// The choices made.
    #[must_use]
    pub const fn axes(&self) -> Axes {
        self.axes
    }

    /// The host's selectors.
    #[must_use]
    pub const fn selectors(&self) -> Selectors {
        self.selectors
    }
}

/// The variant's name: stable, and what [`FromStr`] reads. Selectors are parameters of a host, not
/// part of the name.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Axes { vendor, paging, ibt, pcid, policy: Policy { placement, revision } } = self.axes;
        write!(f, "{vendor}-{paging}")?;
        let options = [
            (ibt, "-ibt"),
            (pcid, "-pcid"),
            (placement == Placement::PerCpu, "-percpu"),
            (revision == Revision::Current, "-current"),
        ];
        options.into_iter().filter(|(is_on, _)| *is_on).try_for_each(|(_, name)| f.write_str(name))
    }
}

impl FromStr for Variant {
    type Err = UnknownVariant;

    fn from_str(name: &str) -> Result<Self, UnknownVariant> {
        Self::all()
            .find(|v| alloc::format!("{v}") == name)
            .ok_or_else(|| UnknownVariant(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_are_stable_and_read_back() {
        let names = [
            "intel-4level",
            "intel-4level-pcid",
            "intel-4level-ibt",
            "intel-4level-ibt-pcid",
            "intel-la57",
            "intel-la57-pcid",
            "intel-la57-ibt",
            "intel-la57-ibt-pcid",
            "amd-4level",
            "amd-4level-pcid",
            "amd-la57",
            "amd-la57-pcid",
        ];
        let policies = ["", "-percpu", "-current", "-percpu-current"];
        let all: Vec<_> = policies
            .iter()
            .flat_map(|policy| names.iter().map(move |name| alloc::format!("{name}{policy}")))
            .collect();
        assert_eq!(Variant::names(), all);
        for variant in Variant::all() {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
        assert_eq!(Variant::all().next(), Some(Variant::REFERENCE));
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let refused = "amd-la57-ibt".parse::<Variant>().unwrap_err().to_string();
        assert!(refused.starts_with("unknown variant `amd-la57-ibt`; known are: intel-4level, "));
        assert!(refused.ends_with("amd-la57-pcid-percpu-current"));
    }

    #[test]
    fn amd_has_no_ibt() {
        let axes = Axes { vendor: Vendor::Amd, ibt: true, ..Variant::REFERENCE.axes() };
        assert_eq!(Variant::new(axes, Selectors::DEFAULT), Err(IllegalVariant::IbtOnAmd));
    }

    #[test]
    fn a_hosts_variant_follows_its_control_registers() {
        use crate::arch::fake::{FakeCpu, features};
        let state = HostState { paging: PagingMode::FiveLevel, pcid: true, ibt: true };
        let intel = features(FakeCpu::complete(b"GenuineIntel"), state);
        let variant = Variant::for_host(&intel, Selectors::DEFAULT).unwrap();
        assert_eq!(variant.to_string(), "intel-la57-ibt-pcid");
        let amd = FakeCpu::complete(b"AuthenticAMD");
        let refused =
            Variant::for_host(&features(amd.clone(), state), Selectors::DEFAULT).unwrap_err();
        assert_eq!(refused, NoVariant::Illegal(IllegalVariant::IbtOnAmd));
        let amd = features(amd, HostState { ibt: false, ..state });
        let variant = Variant::for_host(&amd, Selectors::DEFAULT).unwrap();
        assert_eq!(variant.to_string(), "amd-la57-pcid");
    }

    #[test]
    fn a_host_without_fsgsbase_gets_no_variant() {
        use crate::arch::Feature;
        use crate::arch::fake::{FakeCpu, STATE, features};
        let cpu = FakeCpu { fsgsbase: false, ..FakeCpu::complete(b"GenuineIntel") };
        let refused = Variant::for_host(&features(cpu, STATE), Selectors::DEFAULT).unwrap_err();
        let unfit = Unfit { missing: [Feature::FsGsBase].into(), unknown_vendor: None };
        assert_eq!(refused, NoVariant::Unfit(unfit));
    }
}
