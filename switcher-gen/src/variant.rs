//! What to emit: for which host and under which policy.
//!
//! A [`Variant`] is a value; an option that is off leaves no byte behind in the emitted code. Only
//! legal combinations can be built, so `emit` never has to ask.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::arch::{HostFeatures, HostState, PagingMode, Selectors, UnsupportedCpu, Vendor};
use crate::layout::{Placement, Revision};
use crate::mitigations::{Bhb, Mitigation, Mitigations, NotForVendor, Rsb};

/// The independent choices that a variant is made of.
///
/// There is no choice about host page-table isolation: no variant accesses, on a guest's root,
/// anything that a guest's root need not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The vendor whose SYSRET and SS semantics to emit for.
    pub vendor: Vendor,
    /// The paging mode, which decides how wide a canonical address is.
    pub paging: PagingMode,
    /// Whether ring 0 indirect branches must land on ENDBR64.
    pub ibt: bool,
    /// Whether the CR3 slots may hold PCIDs and NOFLUSH. This changes no instruction, as the
    /// switcher loads the slots as they are; it decides what the runtime may put into them.
    pub pcid: bool,
    /// Whether protection keys are on (CR4.PKE), so that umod can execute WRPKRU: each mode then
    /// has a PKRU of its own.
    pub pku: bool,
    /// What the host chooses, whatever its CPU.
    pub policy: Policy,
    /// The mitigations against speculative execution.
    pub mitigations: Mitigations,
}

/// The choices that do not depend on the CPU, but on the host and its guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Policy {
    /// How emitted code reaches the per-CPU block.
    pub placement: Placement,
    /// The layout of the PVCS.
    pub revision: Revision,
}

impl Policy {
    /// One copy of the code for all CPUs, and V2024 of the PVCS: `Default`, for constants.
    pub const DEFAULT: Self = Self { placement: Placement::Gs, revision: Revision::V2024 };

    /// All policies, the default first.
    pub const ALL: [Self; 4] = [
        Self::DEFAULT,
        Self { placement: Placement::PerCpu, revision: Revision::V2024 },
        Self { placement: Placement::Gs, revision: Revision::V2026 },
        Self { placement: Placement::PerCpu, revision: Revision::V2026 },
    ];

    /// The names of the choices that differ from the default, in the order of a variant's name.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let options = [
            (self.placement == Placement::PerCpu, "percpu"),
            (self.revision == Revision::V2026, "current"),
        ];
        options.into_iter().filter_map(|(is_on, name)| is_on.then_some(name))
    }
}

/// Prints the names of its choices, with `-` between them: nothing for the default.
/// [`FromStr`](core::str::FromStr) reads this.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names().enumerate().try_for_each(|(at, name)| {
            f.write_str(if at == 0 { "" } else { "-" })?;
            f.write_str(name)
        })
    }
}

/// A legal combination of [`Config`], with the selectors of its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    config: Config,
    selectors: Selectors,
}

/// Choices that no CPU allows together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IllegalVariant {
    /// Indirect branch tracking (CET) exists only on Intel's CPUs.
    #[error("AMD CPUs have no indirect branch tracking: drop `ibt`, or take vendor `intel`")]
    IbtOnAmd,
    /// A mitigation is for CPUs of the other vendor.
    #[error(transparent)]
    Mitigation(#[from] NotForVendor),
}

/// Why there is no variant for a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoVariant {
    /// The host's CPU cannot run a switcher.
    #[error(transparent)]
    UnsupportedCpu(#[from] UnsupportedCpu),
    /// The host is set up in a way for which there is no variant.
    #[error("this host cannot run a switcher: {0}")]
    Illegal(#[from] IllegalVariant),
}

impl Variant {
    /// The variant that reviews compare others with: the commonest host, with nothing optional.
    pub const REFERENCE: Self = Self {
        config: Config {
            vendor: Vendor::Intel,
            paging: PagingMode::FourLevel,
            ibt: false,
            pcid: false,
            pku: false,
            policy: Policy::DEFAULT,
            mitigations: Mitigations::NONE,
        },
        selectors: Selectors::DEFAULT,
    };

    /// # Errors
    /// If no CPU has the combination.
    pub const fn new(config: Config, selectors: Selectors) -> Result<Self, IllegalVariant> {
        if config.ibt && matches!(config.vendor, Vendor::Amd) {
            return Err(IllegalVariant::IbtOnAmd);
        }
        if let Err(mitigation) = config.mitigations.fit(config.vendor) {
            return Err(IllegalVariant::Mitigation(mitigation));
        }
        Ok(Self { config, selectors })
    }

    /// A builder for a CPU of this vendor and a host in this paging mode, with nothing optional.
    pub const fn builder(vendor: Vendor, paging: PagingMode) -> VariantBuilder {
        Self::REFERENCE.to_builder().vendor(vendor).paging(paging)
    }

    /// A builder with the choices of this variant, to change some of them.
    pub const fn to_builder(self) -> VariantBuilder {
        VariantBuilder { config: self.config, selectors: self.selectors }
    }

    /// The variant for a host as it is, under the default policy: see
    /// [`with_policy`](Self::with_policy).
    ///
    /// # Errors
    /// If its CPU lacks something that no switcher can do without (the error names all of it), or
    /// if it is set up in a way for which there is no variant.
    pub fn for_host(features: &HostFeatures, selectors: Selectors) -> Result<Self, NoVariant> {
        let vendor = features.fit()?;
        let HostState { paging, pcid, ibt, pku, .. } = features.state();
        let mitigations = Mitigations::for_cpu(features, vendor);
        let policy = Policy::DEFAULT;
        let config = Config { vendor, paging, ibt, pcid, pku, policy, mitigations };
        Ok(Self::new(config, selectors)?)
    }

    /// The same variant under another policy. Any CPU allows any policy.
    #[must_use]
    pub const fn with_policy(self, policy: Policy) -> Self {
        Self { config: Config { policy, ..self.config }, ..self }
    }

    /// The same variant for a host that has protection keys off.
    #[must_use]
    pub const fn without_pku(self) -> Self {
        Self { config: Config { pku: false, ..self.config }, ..self }
    }

    /// Every variant, with default selectors, the reference first.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::unmitigated().flat_map(|variant| {
            Mitigations::all(variant.config.vendor).into_iter().filter_map(move |mitigations| {
                Self::new(Config { mitigations, ..variant.config }, variant.selectors).ok()
            })
        })
    }

    /// The variants of [`all`](Self::all) without any mitigation.
    pub fn unmitigated() -> impl Iterator<Item = Self> {
        Policy::ALL
            .into_iter()
            .flat_map(|policy| Self::of_cpus().map(move |variant| variant.with_policy(policy)))
    }

    /// One variant for each kind of CPU, under the default policy, without mitigations.
    fn of_cpus() -> impl Iterator<Item = Self> {
        [Vendor::Intel, Vendor::Amd].into_iter().flat_map(|vendor| {
            [PagingMode::FourLevel, PagingMode::FiveLevel].into_iter().flat_map(move |paging| {
                (0..1 << 3).filter_map(move |on| {
                    let [ibt, pcid, pku] = [on & 4 != 0, on & 2 != 0, on & 1 != 0];
                    let config =
                        Config { vendor, paging, ibt, pcid, pku, ..Self::REFERENCE.config };
                    Self::new(config, Selectors::DEFAULT).ok()
                })
            })
        })
    }

    /// Enough of [`all`](Self::all) for a test that takes long: each variant without mitigations
    /// and protection keys; with the keys, the first one of each vendor and policy; and of each
    /// vendor's first, each mitigation alone, and all of them.
    pub fn representative() -> impl Iterator<Item = Self> {
        let mitigated = [Vendor::Intel, Vendor::Amd].into_iter().flat_map(|vendor| {
            let config = Config { vendor, ..Self::REFERENCE.config };
            let all = Mitigations::all(vendor);
            let most = all.iter().map(|one| one.names().count()).max();
            let chosen = all.into_iter().filter(move |one| {
                let count = one.names().count();
                // With all mitigations, the return stack buffer is filled in full, and the history
                // of branches is overwritten by the short sequence.
                count == 1 || Some(count) == most && one.rsb == Rsb::Full && one.bhb != Bhb::Long
            });
            chosen.filter_map(move |mitigations| {
                Self::new(Config { mitigations, ..config }, Selectors::DEFAULT).ok()
            })
        });
        let is_first = |Config { paging, ibt, pcid, .. }: Config| {
            !ibt && !pcid && matches!(paging, PagingMode::FourLevel)
        };
        let unmitigated = Self::unmitigated()
            .filter(move |variant| !variant.config.pku || is_first(variant.config));
        unmitigated.chain(mitigated)
    }

    /// The names of [`unmitigated`](Self::unmitigated), with which the names of all other variants
    /// begin.
    #[must_use]
    pub fn names() -> Vec<String> {
        Self::unmitigated().map(|v| alloc::format!("{v}")).collect()
    }

    /// The choices that this variant is made of.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config
    }

    /// The vendor of the CPU.
    #[must_use]
    pub const fn vendor(&self) -> Vendor {
        self.config.vendor
    }

    /// The paging mode, which decides how wide canonical addresses are.
    #[must_use]
    pub const fn paging(&self) -> PagingMode {
        self.config.paging
    }

    /// Whether indirect branches in ring 0 must land on ENDBR64.
    #[must_use]
    pub const fn ibt(&self) -> bool {
        self.config.ibt
    }

    /// Whether the CR3 slots may hold PCIDs.
    #[must_use]
    pub const fn pcid(&self) -> bool {
        self.config.pcid
    }

    /// Whether protection keys are on.
    #[must_use]
    pub const fn pku(&self) -> bool {
        self.config.pku
    }

    /// What the host has chosen, whatever its CPU.
    #[must_use]
    pub const fn policy(&self) -> Policy {
        self.config.policy
    }

    /// How the code reaches the per-CPU block.
    #[must_use]
    pub const fn placement(&self) -> Placement {
        self.config.policy.placement
    }

    /// The layout of the PVCS.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.config.policy.revision
    }

    /// The mitigations against speculative execution.
    #[must_use]
    pub const fn mitigations(&self) -> Mitigations {
        self.config.mitigations
    }

    /// The host's selectors.
    #[must_use]
    pub const fn selectors(&self) -> Selectors {
        self.selectors
    }
}

/// Prints the variant's name, which is stable, and which [`FromStr`](core::str::FromStr) reads.
/// Selectors are parameters of a host, not part of the name.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { vendor, paging, ibt, pcid, pku, policy, mitigations } = self.config;
        write!(f, "{vendor}-{paging}")?;
        let of_cpu = [(ibt, "ibt"), (pcid, "pcid"), (pku, "pku")];
        let of_cpu = of_cpu.into_iter().filter_map(|(is_on, name)| is_on.then_some(name));
        of_cpu.chain(policy.names()).try_for_each(|name| write!(f, "-{name}"))?;
        write!(f, "{mitigations}")
    }
}

/// Chooses a variant step by step: [`Variant::builder`].
///
/// ```
/// # use switcher_gen::arch::{PagingMode, Vendor};
/// # use switcher_gen::{Mitigation, Variant};
/// let variant = Variant::builder(Vendor::Amd, PagingMode::FiveLevel)
///     .pcid(true)
///     .mitigation(Mitigation::Rsb)
///     .build()?;
/// assert_eq!(variant.to_string(), "amd-la57-pcid+rsb");
/// # Ok::<(), switcher_gen::IllegalVariant>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct VariantBuilder {
    config: Config,
    selectors: Selectors,
}

impl VariantBuilder {
    /// Sets the vendor of the CPU.
    pub const fn vendor(mut self, vendor: Vendor) -> Self {
        self.config.vendor = vendor;
        self
    }

    /// Sets the paging mode of the host.
    pub const fn paging(mut self, paging: PagingMode) -> Self {
        self.config.paging = paging;
        self
    }

    /// Sets whether the host tracks indirect branches in ring 0.
    pub const fn ibt(mut self, ibt: bool) -> Self {
        self.config.ibt = ibt;
        self
    }

    /// Sets whether the host has PCIDs on.
    pub const fn pcid(mut self, pcid: bool) -> Self {
        self.config.pcid = pcid;
        self
    }

    /// Sets whether the host has protection keys on.
    pub const fn pku(mut self, pku: bool) -> Self {
        self.config.pku = pku;
        self
    }

    /// Sets how the code reaches the per-CPU block.
    pub const fn placement(mut self, placement: Placement) -> Self {
        self.config.policy.placement = placement;
        self
    }

    /// Sets the layout of the PVCS.
    pub const fn revision(mut self, revision: Revision) -> Self {
        self.config.policy.revision = revision;
        self
    }

    /// Takes exactly these mitigations, whatever was chosen before.
    pub const fn mitigations(mut self, mitigations: Mitigations) -> Self {
        self.config.mitigations = mitigations;
        self
    }

    /// Adds this mitigation to those that were chosen before.
    pub const fn mitigation(mut self, mitigation: Mitigation) -> Self {
        self.config.mitigations = self.config.mitigations.with(mitigation);
        self
    }

    /// Sets the selectors of the host's GDT.
    pub const fn selectors(mut self, selectors: Selectors) -> Self {
        self.selectors = selectors;
        self
    }

    /// Makes the variant that was chosen.
    ///
    /// # Errors
    /// If no CPU has the combination.
    pub const fn build(self) -> Result<Variant, IllegalVariant> {
        Variant::new(self.config, self.selectors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn names_are_stable_and_read_back() {
        let of_intel = ["", "-pcid", "-ibt", "-ibt-pcid"].as_slice();
        let of_amd = &of_intel[..2];
        let cpus = [
            ("intel-4level", of_intel),
            ("intel-la57", of_intel),
            ("amd-4level", of_amd),
            ("amd-la57", of_amd),
        ];
        let names: Vec<_> = cpus
            .iter()
            .flat_map(|(cpu, has)| has.iter().map(move |has| alloc::format!("{cpu}{has}")))
            .flat_map(|name| [name.clone(), name + "-pku"])
            .collect();
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
    fn some_stand_for_all() {
        let some: Vec<_> = Variant::representative().collect();
        let all: Vec<_> = Variant::all().collect();
        assert!(some.iter().all(|variant| all.contains(variant)));
        assert!(Variant::unmitigated().all(|variant| some.contains(&variant.without_pku())));
        for name in [
            "intel-4level-pku-current",
            "intel-4level+verw",
            "intel-4level+ibrs+rsb+bhb+verw",
            "intel-4level+bhblong",
            "amd-4level+ibpb",
            "amd-4level+verw",
        ] {
            assert!(some.contains(&name.parse().unwrap()), "{name}");
        }
    }

    #[test]
    fn a_builder_makes_each_variant_and_nothing_else() {
        let own = Selectors::new(0x10, 0x33).unwrap();
        for variant in Variant::all() {
            assert_eq!(variant.to_builder().build(), Ok(variant));
            let Config { vendor, paging, ibt, pcid, pku, policy, mitigations } = variant.config();
            let Policy { placement, revision } = policy;
            let builder = Variant::builder(vendor, paging).ibt(ibt).pcid(pcid).pku(pku);
            let builder = builder.placement(placement).revision(revision);
            assert_eq!(builder.mitigations(mitigations).build(), Ok(variant));
            let one_by_one = mitigations.iter().fold(builder, VariantBuilder::mitigation);
            assert_eq!(one_by_one.build(), Ok(variant));
            let elsewhere = one_by_one.selectors(own).build().unwrap();
            assert_eq!((elsewhere.selectors(), elsewhere.config()), (own, variant.config()));
        }
        let amd = Variant::builder(Vendor::Amd, PagingMode::FourLevel);
        assert_eq!(amd.ibt(true).build(), Err(IllegalVariant::IbtOnAmd));
        assert!(matches!(
            amd.mitigation(Mitigation::Bhb).build(),
            Err(IllegalVariant::Mitigation(_))
        ));
    }

    #[test]
    fn amd_has_no_ibt() {
        let config = Config { vendor: Vendor::Amd, ibt: true, ..Variant::REFERENCE.config() };
        assert_eq!(Variant::new(config, Selectors::DEFAULT), Err(IllegalVariant::IbtOnAmd));
    }

    #[test]
    fn a_hosts_variant_follows_its_control_registers() {
        use crate::arch::fake::{FakeCpu, features};
        let paging = PagingMode::FiveLevel;
        let state = HostState { paging, pcid: true, ibt: true, pku: true, ..HostState::PLAIN };
        let intel = features(FakeCpu::complete(b"GenuineIntel"), state);
        let variant = Variant::for_host(&intel, Selectors::DEFAULT).unwrap();
        assert_eq!(variant.to_string(), "intel-la57-ibt-pcid-pku+rsb+bhblong+verw");
        let amd = FakeCpu::complete(b"AuthenticAMD");
        let refused =
            Variant::for_host(&features(amd.clone(), state), Selectors::DEFAULT).unwrap_err();
        assert_eq!(refused, NoVariant::Illegal(IllegalVariant::IbtOnAmd));
        let amd = features(amd, HostState { ibt: false, ..state });
        let variant = Variant::for_host(&amd, Selectors::DEFAULT).unwrap();
        assert_eq!(variant.to_string(), "amd-la57-pcid-pku+rsb");
        // This CPU's returns can be trained, and it has no IBPB.
        let variant = Variant::for_host(&amd.with_return_thunks(), Selectors::DEFAULT).unwrap();
        assert_eq!(variant.to_string(), "amd-la57-pcid-pku+untrain+rsb");
    }

    #[test]
    fn a_host_without_fsgsbase_gets_no_variant() {
        use crate::arch::Feature;
        use crate::arch::fake::{FakeCpu, STATE, features};
        let cpu = FakeCpu { fsgsbase: false, ..FakeCpu::complete(b"GenuineIntel") };
        let refused = Variant::for_host(&features(cpu, STATE), Selectors::DEFAULT).unwrap_err();
        let unfit = UnsupportedCpu { missing: [Feature::FsGsBase].into(), unknown_vendor: None };
        assert_eq!(refused, NoVariant::UnsupportedCpu(unfit));
    }
}
