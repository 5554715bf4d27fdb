//! What a host's CPU has, and how the host has set it up.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use raw_cpuid::{CpuId, CpuIdReader};

use super::{
    ArchCapabilities, McuOptCtrl, PagingMode, PcidEnabled, Signature, SpecCtrl, Speculation,
    TsxCtrl,
};

/// The vendor, which decides how SYSRET behaves: vendors differ in when it faults and in what it
/// does to SS (spec/switcher.md, "Return to the guest").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// SYSRETQ to a non-canonical RCX raises #GP in ring 0.
    Intel,
    /// SYSRETQ leaves SS's attributes as they are, those of a null SS too. This includes Hygon.
    Amd,
}

impl Vendor {
    /// The name in variants and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Intel => "intel",
            Self::Amd => "amd",
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A feature no switcher can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// 64-bit mode.
    LongMode,
    /// SYSCALL and SYSRET.
    Syscall,
    /// RDGSBASE and WRGSBASE, with which a direct switch exchanges the guest's GS base.
    FsGsBase,
    /// RDTSCP, which guests may rely on (spec/hypervisor.md, section 9).
    Rdtscp,
    /// CMPXCHG16B, which guests may rely on (spec/hypervisor.md, section 9).
    Cmpxchg16b,
}

impl Feature {
    /// All features that are required, in the order in which they are reported.
    pub const REQUIRED: [Self; 5] =
        [Self::LongMode, Self::Syscall, Self::FsGsBase, Self::Rdtscp, Self::Cmpxchg16b];

    /// The feature's name in the manuals.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LongMode => "LM",
            Self::Syscall => "SYSCALL",
            Self::FsGsBase => "FSGSBASE",
            Self::Rdtscp => "RDTSCP",
            Self::Cmpxchg16b => "CMPXCHG16B",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the host has set up what its CPU offers: bits of control registers and MSRs, which CPUID
/// does not show. What cannot be read is taken to be as it is after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostState {
    /// The paging mode, by CR4.LA57.
    pub paging: PagingMode,
    /// CR4.PCIDE: CR3 has PCIDs.
    pub pcid: bool,
    /// CR4.CET and S_CET.ENDBR_EN: ring 0 indirect branches must land on ENDBR64.
    pub ibt: bool,
    /// CR4.PKE: RDPKRU and WRPKRU exist, for guests too.
    pub pku: bool,
    /// CR4.SMEP: nothing is executed at CPL 0, speculatively either, that CPL 3 can write.
    pub smep: bool,
    /// EFER.AIBRSE, AMD's automatic IBRS.
    pub automatic_ibrs: bool,
    /// MSR SPEC_CTRL while the host runs; empty where the CPU lacks it, or where it cannot be read.
    pub spec_ctrl: SpecCtrl,
    /// MSR IA32_TSX_CTRL; empty where the CPU lacks it, or where it cannot be read.
    pub tsx_ctrl: TsxCtrl,
    /// MSR IA32_MCU_OPT_CTRL; `None` where it has not been read, because its bits switch
    /// mitigations off.
    pub mcu_opt_ctrl: Option<McuOptCtrl>,
    /// MSR IA32_ARCH_CAPABILITIES; empty where the CPU lacks it, or where it cannot be read: the
    /// CPU is then taken to have every fault.
    pub arch_capabilities: ArchCapabilities,
    /// Every RET of the host's code is that of its return thunk, which it untrains. No register
    /// shows this, so it is the host's word. See [`HostFeatures::with_return_thunks`].
    pub return_thunks: bool,
}

impl HostState {
    /// A host with 4-level paging and no other feature.
    pub const PLAIN: Self = Self {
        paging: PagingMode::FourLevel,
        pcid: false,
        ibt: false,
        pku: false,
        smep: false,
        automatic_ibrs: false,
        spec_ctrl: SpecCtrl::empty(),
        tsx_ctrl: TsxCtrl::empty(),
        mcu_opt_ctrl: None,
        arch_capabilities: ArchCapabilities::empty(),
        return_thunks: false,
    };

    /// A proof that CR4.PCIDE is set, if it is, with which [`Cr3`](super::Cr3) values can have
    /// PCIDs.
    #[must_use]
    pub const fn pcid_enabled(self) -> Option<PcidEnabled> {
        if self.pcid { Some(PcidEnabled::new()) } else { None }
    }
}

/// The features of a host that decide which switcher it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFeatures {
    vendor: Result<Vendor, String>,
    brand: String,
    present: Vec<Feature>,
    signature: Signature,
    speculation: Speculation,
    state: HostState,
}

/// A host that no switcher can be emitted for. The error names everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsupportedCpu {
    /// The required features the CPU lacks.
    pub missing: Vec<Feature>,
    /// CPUID's vendor string, if SYSRET's behaviour on such CPUs is not known.
    pub unknown_vendor: Option<String>,
}

impl fmt::Display for UnsupportedCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this host cannot run a switcher:")?;
        let mut separator = " its CPU lacks ";
        for feature in &self.missing {
            write!(f, "{separator}{feature}")?;
            separator = ", ";
        }
        if let Some(vendor) = &self.unknown_vendor {
            if !self.missing.is_empty() {
                f.write_str(";")?;
            }
            write!(f, " how SYSRET behaves on CPUs of vendor `{vendor}` is not known")?;
        }
        Ok(())
    }
}

impl core::error::Error for UnsupportedCpu {}

impl HostFeatures {
    /// Reads a CPU's features through CPUID; `state` comes from whoever can read control registers.
    #[must_use]
    pub fn from_cpuid<R: CpuIdReader + Clone>(reader: R, state: HostState) -> Self {
        let speculation = Speculation::from_cpuid(&reader);
        let signature = Signature::from_cpuid(&reader);
        let cpuid = CpuId::with_cpuid_reader(reader);
        let basic = cpuid.get_feature_info();
        let structured = cpuid.get_extended_feature_info();
        let extended = cpuid.get_extended_processor_and_feature_identifiers();
        let has = |feature: &Feature| match feature {
            Feature::LongMode => extended.as_ref().is_some_and(|e| e.has_64bit_mode()),
            Feature::Syscall => extended.as_ref().is_some_and(|e| e.has_syscall_sysret()),
            Feature::Rdtscp => extended.as_ref().is_some_and(|e| e.has_rdtscp()),
            Feature::FsGsBase => structured.as_ref().is_some_and(|s| s.has_fsgsbase()),
            Feature::Cmpxchg16b => basic.as_ref().is_some_and(|b| b.has_cmpxchg16b()),
        };
        let vendor = cpuid.get_vendor_info();
        let vendor = vendor.as_ref().map_or("", |v| v.as_str());
        Self {
            vendor: match vendor {
                "GenuineIntel" => Ok(Vendor::Intel),
                "AuthenticAMD" | "HygonGenuine" => Ok(Vendor::Amd),
                other => Err(other.to_string()),
            },
            brand: cpuid
                .get_processor_brand_string()
                .map_or_else(|| vendor.to_string(), |b| b.as_str().trim().to_string()),
            present: Feature::REQUIRED.into_iter().filter(has).collect(),
            signature,
            speculation,
            state,
        }
    }

    /// The CPU's marketing name, for reports.
    #[must_use]
    pub fn brand(&self) -> &str {
        &self.brand
    }

    /// Whether the CPU has `feature`.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.present.contains(&feature)
    }

    /// The same features, for a host all of whose code returns through its return thunk. What its
    /// CPU needs for its returns then follows from the CPU, as the rest does: untraining, whether
    /// there is an IBPB or not.
    #[must_use]
    pub const fn with_return_thunks(mut self) -> Self {
        self.state.return_thunks = true;
        self
    }

    /// The host's control register settings.
    #[must_use]
    pub const fn state(&self) -> HostState {
        self.state
    }

    /// The family, model and stepping of the CPU.
    #[must_use]
    pub const fn signature(&self) -> Signature {
        self.signature
    }

    /// What CPUID says of the CPU's speculation.
    #[must_use]
    pub const fn speculation(&self) -> Speculation {
        self.speculation
    }

    /// The vendor, if the CPU has everything that a switcher needs.
    ///
    /// # Errors
    /// The error names every missing feature, and the vendor if it is unknown.
    pub fn fit(&self) -> Result<Vendor, UnsupportedCpu> {
        let missing: Vec<_> = Feature::REQUIRED.into_iter().filter(|f| !self.has(*f)).collect();
        match &self.vendor {
            Ok(vendor) if missing.is_empty() => Ok(*vendor),
            vendor => {
                Err(UnsupportedCpu { missing, unknown_vendor: vendor.as_ref().err().cloned() })
            }
        }
    }
}

/// CPUs made up for tests.
#[cfg(any(test, feature = "fake"))]
pub mod fake {
    use alloc::vec::Vec;

    use super::*;
    use raw_cpuid::CpuIdResult;

    /// The answers of a CPU's CPUID.
    #[derive(Clone, Debug)]
    pub struct FakeCpu {
        /// The vendor's name, as leaf 0 has it.
        pub vendor: &'static [u8; 12],
        /// Whether the CPU has FSGSBASE.
        pub fsgsbase: bool,
        /// Whether the CPU has CMPXCHG16B.
        pub cx16: bool,
        /// The bits about speculation: leaf 7, EDX of subleaves 0 and 2; leaf 8000_0008, EBX; leaf
        /// 8000_0021, EAX.
        pub speculation: [u32; 4],
        /// Further bits: leaf, subleaf, register (0 for EAX, and so on) and bits.
        pub more: Vec<(u32, u32, usize, u32)>,
    }

    impl FakeCpu {
        /// A CPU that can run guests, and has nothing more.
        #[must_use]
        pub fn complete(vendor: &'static [u8; 12]) -> Self {
            Self { vendor, fsgsbase: true, cx16: true, speculation: [0; 4], more: Vec::new() }
        }

        /// The same CPU, which also reports `flags`.
        #[must_use]
        pub fn saying(mut self, flags: Speculation) -> Self {
            self.more.extend(flags.cpuid());
            self
        }

        /// The same CPU with this family, model and stepping.
        #[must_use]
        pub fn signed(self, Signature { family, model, stepping }: Signature) -> Self {
            let (family, model) = (u32::from(family), u32::from(model));
            let base = family.min(0xF);
            let eax = (family - base) << 20 | (model >> 4) << 16 | base << 8 | (model & 0xF) << 4;
            self.with(1, 0, 0, eax | u32::from(stepping))
        }

        /// The same CPU with further bits in a register of a leaf.
        #[must_use]
        pub fn with(mut self, leaf: u32, subleaf: u32, register: usize, bits: u32) -> Self {
            self.more.push((leaf, subleaf, register, bits));
            self
        }
    }

    impl CpuIdReader for FakeCpu {
        fn cpuid2(&self, leaf: u32, subleaf: u32) -> CpuIdResult {
            let text = |i: usize| {
                let mut word = [0; 4];
                word.copy_from_slice(&self.vendor[i..i + 4]);
                u32::from_le_bytes(word)
            };
            let [basic, more, sizes, amd] = self.speculation;
            let (eax, ebx, ecx, edx) = match (leaf, subleaf) {
                (0, _) => (0xB, text(0), text(8), text(4)),
                (1, _) => (0, 0, u32::from(self.cx16) << 13, 0),
                (7, 0) => (2, u32::from(self.fsgsbase), 0, basic),
                (7, 2) => (0, 0, 0, more),
                (0x8000_0000, _) => (0x8000_0021, text(0), text(8), text(4)),
                (0x8000_0001, _) => (0, 0, 0, 1 << 11 | 1 << 27 | 1 << 29),
                (0x8000_0008, _) => (0, sizes, 0, 0),
                (0x8000_0021, _) => (amd, 0, 0, 0),
                _ => (0, 0, 0, 0),
            };
            let mut words = [eax, ebx, ecx, edx];
            for (_, _, register, bits) in self.more.iter().filter(|m| (m.0, m.1) == (leaf, subleaf))
            {
                words[*register] |= bits;
            }
            let [eax, ebx, ecx, edx] = words;
            CpuIdResult { eax, ebx, ecx, edx }
        }
    }

    /// The state of a host without anything special.
    pub const STATE: HostState = HostState::PLAIN;

    /// The features that are detected of a CPU.
    #[must_use]
    pub fn features(cpu: FakeCpu, state: HostState) -> HostFeatures {
        HostFeatures::from_cpuid(cpu, state)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{FakeCpu, STATE, features};
    use super::*;

    #[test]
    fn a_complete_cpu_fits() {
        assert_eq!(features(FakeCpu::complete(b"AuthenticAMD"), STATE).fit(), Ok(Vendor::Amd));
        assert_eq!(features(FakeCpu::complete(b"GenuineIntel"), STATE).fit(), Ok(Vendor::Intel));
    }

    #[test]
    fn an_unfit_cpu_is_refused_by_every_name() {
        let cpu = FakeCpu { fsgsbase: false, cx16: false, ..FakeCpu::complete(b"CyrixInstead") };
        assert_eq!(
            features(cpu, STATE).fit().unwrap_err().to_string(),
            "this host cannot run a switcher: its CPU lacks FSGSBASE, CMPXCHG16B; \
             how SYSRET behaves on CPUs of vendor `CyrixInstead` is not known"
        );
    }
}
