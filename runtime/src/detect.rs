//! What this CPU is and how it is set up.

use raw_cpuid::CpuIdReaderNative;
use raw_cpuid::native_cpuid::cpuid_count;
use switcher_gen::arch::{
    ArchCapabilities, HostFeatures, HostState, McuOptCtrl, Msr as MsrName, PagingMode, SpecCtrl,
    Speculation, TsxCtrl, Vendor, cr4, s_cet,
};
use switcher_gen::mitigations::Assessment;
use x86_64::registers::control::{Cr4, Cr4Flags};

use crate::registers::read_msr;

/// Detection of the CPU this code runs on.
pub trait Detect {
    /// Reads CPUID, CR4, EFER and, where they exist, S_CET, SPEC_CTRL, IA32_ARCH_CAPABILITIES,
    /// IA32_TSX_CTRL and IA32_MCU_OPT_CTRL: as this CPU has them now, so that a host sets them
    /// before. Must run at CPL 0: elsewhere it faults.
    #[must_use]
    fn detect() -> Self;
}

impl Detect for HostFeatures {
    fn detect() -> Self {
        let cr4 = Cr4::read_raw();
        let says = Speculation::from_cpuid(&CpuIdReaderNative);
        let arch_capabilities = arch_capabilities(says);
        let paging = if cr4 & Cr4Flags::L5_PAGING.bits() == 0 {
            PagingMode::FourLevel
        } else {
            PagingMode::FiveLevel
        };
        let state = HostState {
            paging,
            pcid: cr4 & Cr4Flags::PCID.bits() != 0,
            pku: cr4 & Cr4Flags::PROTECTION_KEY_USER.bits() != 0,
            ibt: cr4 & cr4::CET != 0 && endbranch_enabled(),
            smep: cr4 & Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION.bits() != 0,
            automatic_ibrs: automatic_ibrs(),
            spec_ctrl: spec_ctrl(says),
            tsx_ctrl: tsx_ctrl(arch_capabilities),
            mcu_opt_ctrl: mcu_opt_ctrl(says, arch_capabilities),
            arch_capabilities,
            return_thunks: false,
        };
        Self::from_cpuid(CpuIdReaderNative, state)
    }
}

/// What the faults of a CPU ask for, on a host that has return thunks (`untrained`) or has none.
pub(crate) fn assess(features: HostFeatures, vendor: Vendor, untrained: bool) -> Assessment {
    let features = if untrained { features.with_return_thunks() } else { features };
    Assessment::of(&features, vendor)
}

/// Whether S_CET.ENDBR_EN is set (Intel SDM vol. 1, 17.1), on CPUs that have indirect branch
/// tracking.
fn endbranch_enabled() -> bool {
    const CET_IBT: u32 = 1 << 20;
    // CR4.CET is set, so leaf 7 exists.
    let tracking = cpuid_count(7, 0).edx & CET_IBT != 0;
    // SAFETY: the MSR exists where CPUID reports CET_IBT; reading it changes nothing.
    tracking && unsafe { read_msr(MsrName::SCet.address()) } & s_cet::ENDBR_EN != 0
}

/// Whether EFER.AIBRSE is set (AMD APM vol. 2, 3.1.7). The bit is reserved, and zero, on CPUs
/// without automatic IBRS.
fn automatic_ibrs() -> bool {
    const AIBRSE: u64 = 1 << 21;
    // SAFETY: every 64-bit CPU has EFER; reading it changes nothing.
    let efer = unsafe { read_msr(MsrName::Efer.address()) };
    efer & AIBRSE != 0
}

/// Reads SPEC_CTRL. The result is empty on a CPU without this MSR: nothing is restricted there.
fn spec_ctrl(says: Speculation) -> SpecCtrl {
    if !says.has_spec_ctrl() {
        return SpecCtrl::empty();
    }
    // SAFETY: the MSR exists where CPUID reports any of its bits; reading it changes nothing.
    SpecCtrl::from_bits_retain(unsafe { read_msr(MsrName::SpecCtrl.address()) })
}

/// Reads IA32_TSX_CTRL. The result is empty on a CPU without this MSR: transactions, if the CPU has
/// any, do not abort there.
fn tsx_ctrl(capabilities: ArchCapabilities) -> TsxCtrl {
    if !capabilities.contains(ArchCapabilities::TSX_CTRL) {
        return TsxCtrl::empty();
    }
    // SAFETY: the MSR exists where IA32_ARCH_CAPABILITIES says so; reading it changes nothing.
    TsxCtrl::from_bits_retain(unsafe { read_msr(MsrName::TsxCtrl.address()) })
}

/// Reads IA32_MCU_OPT_CTRL. The result is `None` on a CPU without this MSR: its microcode has
/// nothing that the MSR could switch off.
fn mcu_opt_ctrl(says: Speculation, capabilities: ArchCapabilities) -> Option<McuOptCtrl> {
    has_mcu_opt_ctrl(says, capabilities).then(|| {
        // SAFETY: the MSR exists where CPUID or IA32_ARCH_CAPABILITIES reports one of its bits;
        // reading it changes nothing.
        let bits = unsafe { read_msr(MsrName::McuOptCtrl.address()) };
        McuOptCtrl::from_bits_retain(bits)
    })
}

/// Whether IA32_MCU_OPT_CTRL exists: one of its bits is reported (Intel SDM vol. 4,
/// IA32_MCU_OPT_CTRL).
const fn has_mcu_opt_ctrl(says: Speculation, capabilities: ArchCapabilities) -> bool {
    let of_capabilities = ArchCapabilities::GDS_CTRL.union(ArchCapabilities::FB_CLEAR_CTRL);
    says.contains(Speculation::SRBDS_CTRL) || capabilities.intersects(of_capabilities)
}

/// Reads IA32_ARCH_CAPABILITIES. The result is empty on a CPU without this MSR, which is then taken
/// to have every fault.
fn arch_capabilities(says: Speculation) -> ArchCapabilities {
    if !says.contains(Speculation::ARCH_CAPABILITIES) {
        return ArchCapabilities::empty();
    }
    // SAFETY: the MSR exists where CPUID says so; reading it changes nothing.
    let bits = unsafe { read_msr(MsrName::ArchCapabilities.address()) };
    ArchCapabilities::from_bits_retain(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microcodes_options_are_read_where_any_of_them_exists() {
        let (none, no) = (Speculation::empty(), ArchCapabilities::empty());
        assert!(has_mcu_opt_ctrl(Speculation::SRBDS_CTRL, no));
        assert!(has_mcu_opt_ctrl(none, ArchCapabilities::GDS_CTRL));
        assert!(has_mcu_opt_ctrl(none, ArchCapabilities::FB_CLEAR_CTRL));
        assert!(!has_mcu_opt_ctrl(none, ArchCapabilities::FB_CLEAR));
    }
}
