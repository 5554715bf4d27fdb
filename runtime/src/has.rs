//! The features of this CPU whose registers are looked at only where they exist: CPUID is asked
//! once.

use raw_cpuid::CpuIdReader;

/// The leaf of CPUID by which guests of a TDX module know it: it has "IntelTDX    " in EBX, EDX and
/// ECX (Intel TDX Module Base Architecture Specification; Linux, arch/x86/coco/tdx/tdx.c).
const TDX_LEAF: u32 = 0x21;
const TDX_NAME: [u32; 3] =
    [u32::from_le_bytes(*b"Inte"), u32::from_le_bytes(*b"lTDX"), u32::from_le_bytes(*b"    ")];

/// The features of this CPU whose registers are looked at only where they exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Has {
    /// CR4.UMIP can be set.
    pub(crate) umip: bool,
    /// MSR U_CET exists.
    pub(crate) user_cet: bool,
    /// MSR IA32_PEBS_ENABLE exists.
    pub(crate) pebs: bool,
    /// MSR SEV_STATUS exists.
    pub(crate) sev: bool,
    /// This CPU is one of a TDX module's guest.
    pub(crate) tdx: bool,
    /// MSR IA32_USER_MSR_CTL exists.
    pub(crate) user_msr: bool,
    /// DEBUGCTL has bus-lock detection.
    pub(crate) bus_lock_detection: bool,
    /// SPEC_CTRL has STIBP.
    pub(crate) stibp: bool,
    /// PRED_CMD has IBPB.
    pub(crate) ibpb: bool,
    /// The addresses of breakpoints have masks (AMD).
    pub(crate) breakpoint_masks: bool,
}

impl Has {
    /// Asks CPUID (Intel SDM vol. 2A; AMD APM vol. 3, E.4.7). Whether there is PEBS, a bit of CPUID
    /// and one of MISC_ENABLE say: `pebs_unavailable` reads the latter.
    pub(crate) fn from_cpuid<R: CpuIdReader>(
        reader: &R,
        pebs_unavailable: impl FnOnce() -> bool,
    ) -> Self {
        let bit = |word: u32, bit: u32| word >> bit & 1 != 0;
        let (basic, extended) = (reader.cpuid2(0, 0).eax, reader.cpuid2(0x8000_0000, 0).eax);
        // Architectural PEBS retires IA32_PEBS_ENABLE, and CPUs that have it need not take writes
        // to that MSR (Linux, perf/x86/intel, "Introduce pairs of PEBS static calls"). Leaf 23h has
        // two bits for it, both of which must be set.
        let arch_pebs = basic >= 0x23 && reader.cpuid2(0x23, 0).eax >> 4 & 0b11 == 0b11;
        // The debug store is BTS and PEBS.
        let mut has = Self {
            pebs: bit(reader.cpuid2(1, 0).edx, 21) && !arch_pebs && !pebs_unavailable(),
            ..Self::default()
        };
        if basic >= TDX_LEAF {
            let leaf = reader.cpuid2(TDX_LEAF, 0);
            has.tdx = [leaf.ebx, leaf.edx, leaf.ecx] == TDX_NAME;
        }
        if basic >= 7 {
            let leaf = reader.cpuid2(7, 0);
            has.umip = bit(leaf.ecx, 2);
            has.user_cet = bit(leaf.ecx, 7) || bit(leaf.edx, 20);
            has.bus_lock_detection = bit(leaf.ecx, 24);
            has.ibpb = bit(leaf.edx, 26);
            has.stibp = bit(leaf.edx, 27);
            if leaf.eax >= 1 {
                has.user_msr = bit(reader.cpuid2(7, 1).edx, 15);
            }
        }
        if extended >= 0x8000_0001 {
            has.breakpoint_masks = bit(reader.cpuid2(0x8000_0001, 0).ecx, 26);
        }
        if extended >= 0x8000_0008 {
            let leaf = reader.cpuid2(0x8000_0008, 0);
            has.ibpb |= bit(leaf.ebx, 12);
            has.stibp |= bit(leaf.ebx, 15);
        }
        if extended >= 0x8000_001F {
            has.sev = bit(reader.cpuid2(0x8000_001F, 0).eax, 1);
        }
        has
    }
}
