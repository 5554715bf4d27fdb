//! What a CPU says about its speculation, as far as a mitigation depends on it.
//!
//! Sources: Intel SDM vol. 2A, CPUID leaf 7, and vol. 4, IA32_ARCH_CAPABILITIES; AMD APM vol. 3,
//! E.4.7 (Fn8000_0008) and E.4.16 (Fn8000_0021). What a CPU does not say it is safe from, it is taken
//! to suffer from.

use bitflags::bitflags;
use raw_cpuid::CpuIdReader;

bitflags! {
    /// MSR IA32_ARCH_CAPABILITIES, Intel's list of what a CPU does not suffer from and of what its
    /// mitigations cover.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ArchCapabilities: u64 {
        /// Enhanced IBRS: switched on once, it need not be written on every transition.
        const IBRS_ALL = 1 << 1;
        /// No microarchitectural data sampling.
        const MDS_NO = 1 << 5;
        /// No sampling of shared buffers.
        const SBDR_SSDP_NO = 1 << 13;
        /// No sampling of fill buffers by the stale data propagator.
        const FBSDP_NO = 1 << 14;
        /// No propagation of stale primary data.
        const PSDP_NO = 1 << 15;
        /// VERW overwrites fill buffers.
        const FB_CLEAR = 1 << 17;
        /// No branch history injection.
        const BHI_NO = 1 << 20;
        /// The return stack buffer respects barriers.
        const PBRSB_NO = 1 << 24;
        /// No register file data sampling.
        const RFDS_NO = 1 << 27;
        /// VERW overwrites stale register data.
        const RFDS_CLEAR = 1 << 28;
        // Others may be set.
        const _ = !0;
    }
}

bitflags! {
    /// What CPUID says of speculation.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Speculation: u16 {
        /// MSR SPEC_CTRL has IBRS.
        const IBRS = 1 << 0;
        /// MSR PRED_CMD has IBPB.
        const IBPB = 1 << 1;
        /// VERW overwrites buffers.
        const MD_CLEAR = 1 << 2;
        /// MSR IA32_ARCH_CAPABILITIES exists.
        const ARCH_CAPABILITIES = 1 << 3;
        /// SPEC_CTRL has BHI_DIS_S, which the host leaves on for guests as well.
        const BHI_CTRL = 1 << 4;
        /// AMD would rather have IBRS than retpolines.
        const IBRS_PREFERRED = 1 << 5;
        /// Returns are predicted as returns (AMD's BTC_NO).
        const BTC_NO = 1 << 6;
        /// And by nothing that a guest has trained (AMD's SRSO_NO).
        const SRSO_NO = 1 << 7;
    }
}

impl Speculation {
    /// Asks CPUID.
    pub fn from_cpuid<R: CpuIdReader>(reader: &R) -> Self {
        let mut found = Self::empty();
        let (basic, extended) = (reader.cpuid2(0, 0).eax, reader.cpuid2(0x8000_0000, 0).eax);
        let mut take = |word: u32, bits: &[(u32, Self)]| {
            for (bit, flag) in bits {
                found.set(*flag, found.contains(*flag) || word >> bit & 1 != 0);
            }
        };
        if basic >= 7 {
            let leaf = reader.cpuid2(7, 0);
            let bits = [
                (10, Self::MD_CLEAR),
                (26, Self::IBRS | Self::IBPB),
                (29, Self::ARCH_CAPABILITIES),
            ];
            take(leaf.edx, &bits);
            if leaf.eax >= 2 {
                take(reader.cpuid2(7, 2).edx, &[(4, Self::BHI_CTRL)]);
            }
        }
        if extended >= 0x8000_0008 {
            let bits = [
                (12, Self::IBPB),
                (14, Self::IBRS),
                (18, Self::IBRS_PREFERRED),
                (29, Self::BTC_NO),
            ];
            take(reader.cpuid2(0x8000_0008, 0).ebx, &bits);
        }
        if extended >= 0x8000_0021 {
            take(reader.cpuid2(0x8000_0021, 0).eax, &[(29, Self::SRSO_NO)]);
        }
        found
    }
}
