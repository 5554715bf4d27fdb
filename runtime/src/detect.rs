//! What this CPU is and how it is set up.

use raw_cpuid::CpuIdReaderNative;
use raw_cpuid::native_cpuid::cpuid_count;
use switcher_gen::arch::{
    ArchCapabilities, HostFeatures, HostState, Msr as MsrName, PagingMode, Speculation,
};
use x86_64::registers::control::{Cr4, Cr4Flags};

use crate::registers::read_msr;

/// Detection of the CPU this code runs on.
pub trait Detect {
    /// Reads CPUID, CR4, EFER and, where they exist, S_CET and IA32_ARCH_CAPABILITIES. Must run at CPL 0: elsewhere it faults.
    #[must_use]
    fn detect() -> Self;
}

impl Detect for HostFeatures {
    fn detect() -> Self {
        let cr4 = Cr4::read_raw();
        let paging = if cr4 & Cr4Flags::L5_PAGING.bits() == 0 {
            PagingMode::FourLevel
        } else {
            PagingMode::FiveLevel
        };
        let state = HostState {
            paging,
            pcid: cr4 & Cr4Flags::PCID.bits() != 0,
            pku: cr4 & Cr4Flags::PROTECTION_KEY_USER.bits() != 0,
            ibt: cr4 & CR4_CET != 0 && endbranch_enabled(),
            automatic_ibrs: automatic_ibrs(),
            arch_capabilities: arch_capabilities(),
        };
        Self::from_cpuid(CpuIdReaderNative, state)
    }
}

/// CR4.CET (Intel SDM vol. 3, 2.5).
const CR4_CET: u64 = 1 << 23;

/// S_CET.ENDBR_EN (Intel SDM vol. 1, 17.1), on CPUs that have indirect branch tracking.
fn endbranch_enabled() -> bool {
    const CET_IBT: u32 = 1 << 20;
    const ENDBR_EN: u64 = 1 << 2;
    // CR4.CET is set, so leaf 7 exists.
    let tracking = cpuid_count(7, 0).edx & CET_IBT != 0;
    // SAFETY: the MSR exists where CPUID reports CET_IBT; reading it changes nothing.
    tracking && unsafe { read_msr(MsrName::SCet.address()) } & ENDBR_EN != 0
}

/// EFER.AIBRSE (AMD APM vol. 2, 3.1.7); reserved, and zero, on CPUs without automatic IBRS.
fn automatic_ibrs() -> bool {
    const AIBRSE: u64 = 1 << 21;
    // SAFETY: every 64-bit CPU has EFER; reading it changes nothing.
    let efer = unsafe { read_msr(MsrName::Efer.address()) };
    efer & AIBRSE != 0
}

/// Empty where there is none: the CPU is then taken to suffer from everything.
fn arch_capabilities() -> ArchCapabilities {
    if !Speculation::from_cpuid(&CpuIdReaderNative).contains(Speculation::ARCH_CAPABILITIES) {
        return ArchCapabilities::empty();
    }
    // SAFETY: the MSR exists where CPUID says so; reading it changes nothing.
    let bits = unsafe { read_msr(MsrName::ArchCapabilities.address()) };
    ArchCapabilities::from_bits_retain(bits)
}
