//! What this CPU is and how it is set up.

use raw_cpuid::CpuId;
use raw_cpuid::native_cpuid::cpuid_count;
use switcher_gen::arch::{HostFeatures, HostState, Msr as MsrName, PagingMode};
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

/// Detection of the CPU this code runs on.
pub trait Detect {
    /// Reads CPUID, CR4 and, where there is one, S_CET. Must run at CPL 0: elsewhere it faults.
    #[must_use]
    fn detect() -> Self;
}

impl Detect for HostFeatures {
    fn detect() -> Self {
        let cpuid = CpuId::new();
        let cr4 = Cr4::read_raw();
        let paging = if cr4 & Cr4Flags::L5_PAGING.bits() == 0 {
            PagingMode::FourLevel
        } else {
            PagingMode::FiveLevel
        };
        let state = HostState {
            paging,
            pcid: cr4 & Cr4Flags::PCID.bits() != 0,
            ibt: cr4 & CR4_CET != 0 && endbranch_enabled(),
        };
        Self::from_cpuid(&cpuid, state)
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
    tracking && unsafe { Msr::new(MsrName::SCet.address()).read() } & ENDBR_EN != 0
}
