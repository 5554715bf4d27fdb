//! What a CPU says about its speculation, and what of it is switched on, as far as a mitigation
//! depends on it.
//!
//! Sources: Intel SDM vol. 2A, CPUID leaves 1, 7 and 0Bh, and vol. 4, IA32_SPEC_CTRL,
//! IA32_ARCH_CAPABILITIES, IA32_TSX_CTRL and IA32_MCU_OPT_CTRL; AMD APM vol. 3, E.4.7 (Fn8000_0008)
//! and E.4.16 (Fn8000_0021), with "Technical Guidance for Mitigating Transient Scheduler Attacks"
//! for VERW_CLEAR and the TSA bits. A CPU is taken to suffer from every fault that it does not
//! declare itself safe from, and a setting is taken to be off unless it was seen to be on.

use core::fmt;

use bitflags::bitflags;
use raw_cpuid::CpuIdReader;

bitflags! {
    /// MSR IA32_ARCH_CAPABILITIES, Intel's list of what a CPU does not suffer from and of what its
    /// mitigations cover.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ArchCapabilities: u64 {
        /// The CPU has no rogue data cache load.
        const RDCL_NO = 1 << 0;
        /// Enhanced IBRS: **if** it is switched on, it need not be written on every transition.
        const IBRS_ALL = 1 << 1;
        /// Returns are predicted by other predictors when the return stack buffer is empty.
        const RSBA = 1 << 2;
        /// The CPU has no speculative store bypass.
        const SSB_NO = 1 << 4;
        /// The CPU has no microarchitectural data sampling.
        const MDS_NO = 1 << 5;
        /// The CPU has no machine check by a changed page size.
        const PSCHANGE_MC_NO = 1 << 6;
        /// MSR IA32_TSX_CTRL exists.
        const TSX_CTRL = 1 << 7;
        /// The CPU has no asynchronous abort of transactions.
        const TAA_NO = 1 << 8;
        /// The CPU has no sampling of shared buffers.
        const SBDR_SSDP_NO = 1 << 13;
        /// The CPU has no sampling of fill buffers by the stale data propagator.
        const FBSDP_NO = 1 << 14;
        /// The CPU has no propagation of stale primary data.
        const PSDP_NO = 1 << 15;
        /// VERW overwrites fill buffers.
        const FB_CLEAR = 1 << 17;
        /// MSR IA32_MCU_OPT_CTRL has FB_CLEAR_DIS.
        const FB_CLEAR_CTRL = 1 << 18;
        /// Returns are predicted as with [`RSBA`](Self::RSBA), but within what enhanced IBRS
        /// restricts.
        const RRSBA = 1 << 19;
        /// The CPU has no branch history injection.
        const BHI_NO = 1 << 20;
        /// The return stack buffer respects barriers.
        const PBRSB_NO = 1 << 24;
        /// MSR IA32_MCU_OPT_CTRL has GDS_MITG_DIS.
        const GDS_CTRL = 1 << 25;
        /// The CPU has no gather data sampling.
        const GDS_NO = 1 << 26;
        /// The CPU has no register file data sampling.
        const RFDS_NO = 1 << 27;
        /// VERW overwrites stale register data.
        const RFDS_CLEAR = 1 << 28;
        /// The CPU has no indirect target selection; hypervisors set this bit, no hardware does.
        const ITS_NO = 1 << 62;
        // The MSR may have other bits set.
        const _ = !0;
    }
}

bitflags! {
    /// MSR SPEC_CTRL: what of speculation is restricted **now**.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct SpecCtrl: u64 {
        /// Indirect branches are not predicted by what less privileged code has trained.
        const IBRS = 1 << 0;
        /// Indirect branches are not predicted by what the core's other thread has trained.
        const STIBP = 1 << 1;
        /// Loads do not bypass stores whose address is unknown.
        const SSBD = 1 << 2;
        /// Returns at CPL 0 to 2 are not predicted by other predictors than the return stack
        /// buffer.
        const RRSBA_DIS_S = 1 << 6;
        /// Predictions at CPL 0 to 2 do not depend on CPL 3's history of branches.
        const BHI_DIS_S = 1 << 10;
        // The MSR may have other bits set.
        const _ = !0;
    }
}

bitflags! {
    /// MSR IA32_TSX_CTRL, which restricts transactions.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TsxCtrl: u64 {
        /// Transactions abort at once.
        const RTM_DISABLE = 1 << 0;
        // The MSR may have other bits set.
        const _ = !0;
    }
}

bitflags! {
    /// MSR IA32_MCU_OPT_CTRL, whose bits switch mitigations of the microcode **off**.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct McuOptCtrl: u64 {
        /// RDRAND and RDSEED leave their values in the shared buffer.
        const RNGDS_MITG_DIS = 1 << 0;
        /// VERW does not overwrite fill buffers.
        const FB_CLEAR_DIS = 1 << 3;
        /// Gathers may forward stale data.
        const GDS_MITG_DIS = 1 << 4;
        // The MSR may have other bits set.
        const _ = !0;
    }
}

bitflags! {
    /// What CPUID says of speculation.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Speculation: u64 {
        /// MSR SPEC_CTRL has IBRS.
        const IBRS = 1 << 0;
        /// MSR PRED_CMD has IBPB.
        const IBPB = 1 << 1;
        /// VERW overwrites buffers.
        const MD_CLEAR = 1 << 2;
        /// MSR IA32_ARCH_CAPABILITIES exists.
        const ARCH_CAPABILITIES = 1 << 3;
        /// SPEC_CTRL has BHI_DIS_S.
        const BHI_CTRL = 1 << 4;
        /// AMD would rather have IBRS than retpolines.
        const IBRS_PREFERRED = 1 << 5;
        /// Returns are predicted as returns (AMD).
        const BTC_NO = 1 << 6;
        /// Returns are predicted by nothing that a guest has trained (AMD).
        const SRSO_NO = 1 << 7;
        /// At CPL 0, returns are not predicted by what CPL 3 has trained (AMD).
        const SRSO_USER_KERNEL_NO = 1 << 8;
        /// SPEC_CTRL has STIBP.
        const STIBP = 1 << 9;
        /// SPEC_CTRL has SSBD.
        const SSBD = 1 << 10;
        /// SPEC_CTRL has RRSBA_DIS_S.
        const RRSBA_CTRL = 1 << 11;
        /// MSR IA32_MCU_OPT_CTRL has RNGDS_MITG_DIS.
        const SRBDS_CTRL = 1 << 12;
        /// Transactions exist.
        const RTM = 1 << 13;
        /// RDRAND exists.
        const RDRAND = 1 << 14;
        /// RDSEED exists.
        const RDSEED = 1 << 15;
        /// AVX exists, and with AVX2 gathers.
        const AVX = 1 << 16;
        /// This is a virtual CPU: it may hide what the physical one has.
        const HYPERVISOR = 1 << 17;
        /// Its cores have several threads.
        const SMT = 1 << 18;
        /// Automatic IBRS can be switched on (AMD).
        const AUTOMATIC_IBRS = 1 << 19;
        /// The CPU has no speculative store bypass (AMD).
        const SSB_NO = 1 << 20;
        /// LFENCE serialises whatever DE_CFG says (AMD).
        const LFENCE_ALWAYS = 1 << 21;
        /// VERW overwrites buffers (AMD).
        const VERW_CLEAR = 1 << 22;
        /// PRED_CMD has SBPB, which spares the predictions of returns (AMD).
        const SBPB = 1 << 23;
        /// IBPB forgets what kind of branch is where (AMD).
        const IBPB_BRTYPE = 1 << 24;
        /// The CPU has no transient scheduler attack by the store queue (AMD).
        const TSA_SQ_NO = 1 << 25;
        /// The CPU has no transient scheduler attack by the L1 data cache (AMD).
        const TSA_L1_NO = 1 << 26;
        /// IBPB empties the predictor of returns, too (AMD).
        const IBPB_RET = 1 << 27;
    }
}

/// A register in which CPUID answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Speculation {
    /// The place of each bit in CPUID: leaf, subleaf, register and bit. Intel's leaf 7 and AMD's
    /// extended leaves do not contradict each other: in either vendor's, the bits of the other's
    /// are clear.
    const BITS: [(Self, u32, u32, Word, u32); 31] = [
        (Self::AVX, 1, 0, Word::Ecx, 28),
        (Self::RDRAND, 1, 0, Word::Ecx, 30),
        (Self::HYPERVISOR, 1, 0, Word::Ecx, 31),
        (Self::RTM, 7, 0, Word::Ebx, 11),
        (Self::RDSEED, 7, 0, Word::Ebx, 18),
        (Self::SRBDS_CTRL, 7, 0, Word::Edx, 9),
        (Self::MD_CLEAR, 7, 0, Word::Edx, 10),
        (Self::IBRS, 7, 0, Word::Edx, 26),
        (Self::IBPB, 7, 0, Word::Edx, 26),
        (Self::STIBP, 7, 0, Word::Edx, 27),
        (Self::ARCH_CAPABILITIES, 7, 0, Word::Edx, 29),
        (Self::SSBD, 7, 0, Word::Edx, 31),
        (Self::RRSBA_CTRL, 7, 2, Word::Edx, 2),
        (Self::BHI_CTRL, 7, 2, Word::Edx, 4),
        (Self::IBPB, 0x8000_0008, 0, Word::Ebx, 12),
        (Self::IBRS, 0x8000_0008, 0, Word::Ebx, 14),
        (Self::STIBP, 0x8000_0008, 0, Word::Ebx, 15),
        (Self::IBRS_PREFERRED, 0x8000_0008, 0, Word::Ebx, 18),
        (Self::SSBD, 0x8000_0008, 0, Word::Ebx, 24),
        (Self::SSB_NO, 0x8000_0008, 0, Word::Ebx, 26),
        (Self::BTC_NO, 0x8000_0008, 0, Word::Ebx, 29),
        (Self::IBPB_RET, 0x8000_0008, 0, Word::Ebx, 30),
        (Self::LFENCE_ALWAYS, 0x8000_0021, 0, Word::Eax, 2),
        (Self::VERW_CLEAR, 0x8000_0021, 0, Word::Eax, 5),
        (Self::AUTOMATIC_IBRS, 0x8000_0021, 0, Word::Eax, 8),
        (Self::SBPB, 0x8000_0021, 0, Word::Eax, 27),
        (Self::IBPB_BRTYPE, 0x8000_0021, 0, Word::Eax, 28),
        (Self::SRSO_NO, 0x8000_0021, 0, Word::Eax, 29),
        (Self::SRSO_USER_KERNEL_NO, 0x8000_0021, 0, Word::Eax, 30),
        (Self::TSA_SQ_NO, 0x8000_0021, 0, Word::Ecx, 1),
        (Self::TSA_L1_NO, 0x8000_0021, 0, Word::Ecx, 2),
    ];

    /// Reads the bits from CPUID.
    pub fn from_cpuid<R: CpuIdReader>(reader: &R) -> Self {
        let mut found = Self::empty();
        let (basic, extended) = (reader.cpuid2(0, 0).eax, reader.cpuid2(0x8000_0000, 0).eax);
        let subleaves = if basic >= 7 { reader.cpuid2(7, 0).eax } else { 0 };
        for (flag, leaf, subleaf, word, bit) in Self::BITS {
            let last = if leaf < 0x8000_0000 { basic } else { extended };
            // For a leaf beyond the last one, Intel's CPUs answer with the last leaf.
            if leaf > last || leaf == 7 && subleaf > subleaves {
                continue;
            }
            let answer = reader.cpuid2(leaf, subleaf);
            let word = match word {
                Word::Eax => answer.eax,
                Word::Ebx => answer.ebx,
                Word::Ecx => answer.ecx,
                Word::Edx => answer.edx,
            };
            found.set(flag, found.contains(flag) || word >> bit & 1 != 0);
        }
        // Subleaf 0 of leaf 0Bh has the number of threads of a core. Zen 1 and Dhyana do not have
        // this leaf, but leaf 8000_001Eh, whose EBX[15:8] is that number less one (AMD APM vol. 3,
        // Fn8000_001E).
        let other_threads = [(0xB, basic, 0xFFFF, 1), (0x8000_001E, extended, 0xFF00, 0)];
        for (leaf, last, mask, one) in other_threads {
            if leaf <= last && reader.cpuid2(leaf, 0).ebx & mask > one {
                found |= Self::SMT;
            }
        }
        found
    }

    /// The places of these bits in CPUID, as the manuals write them.
    pub fn places(self) -> impl Iterator<Item = impl fmt::Display> {
        let of_bits = Self::BITS.into_iter().filter(move |(flag, ..)| self.contains(*flag));
        let places = of_bits.map(|(_, leaf, subleaf, word, bit)| {
            let word = match word {
                Word::Eax => "EAX",
                Word::Ebx => "EBX",
                Word::Ecx => "ECX",
                Word::Edx => "EDX",
            };
            match (leaf, subleaf) {
                (1, _) => alloc::format!("1.{word}[{bit}]"),
                (7, _) => alloc::format!("7.{subleaf}.{word}[{bit}]"),
                _ => alloc::format!("{leaf:X}.{word}[{bit}]"),
            }
        });
        let smt = ["B.0.EBX > 1", "8000001E.EBX[15:8] > 0"].map(alloc::string::String::from);
        places.chain(smt.into_iter().filter(move |_| self.contains(Self::SMT)))
    }

    /// These bits as CPUID has them, to make up CPUs in tests: leaf, subleaf, register from EAX on,
    /// bits.
    #[cfg(any(test, feature = "fake"))]
    pub fn cpuid(self) -> impl Iterator<Item = (u32, u32, usize, u32)> {
        let of_bits = Self::BITS.into_iter().filter(move |(flag, ..)| self.contains(*flag));
        let bits =
            of_bits.map(|(_, leaf, subleaf, word, bit)| (leaf, subleaf, word as usize, 1 << bit));
        bits.chain(self.contains(Self::SMT).then_some((0xB, 0, 1, 2)))
    }

    /// Whether MSR SPEC_CTRL exists: it does where any of its bits does.
    #[must_use]
    pub const fn has_spec_ctrl(self) -> bool {
        self.intersects(Self::IBRS.union(Self::STIBP).union(Self::SSBD))
    }
}

/// The family, model and stepping of a CPU as CPUID leaf 1 has them, with the extended ones added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Signature {
    /// The family, which is 6 for most of Intel's CPUs.
    pub family: u16,
    /// The model within the family.
    pub model: u8,
    /// The stepping within the model.
    pub stepping: u8,
}

impl Signature {
    /// Decodes EAX of leaf 1 (Intel SDM vol. 2A, CPUID, "INPUT EAX = 01H"; AMD APM vol. 3, E.3.2).
    #[must_use]
    pub const fn decode(eax: u32) -> Self {
        let family = eax >> 8 & 0xF;
        let model = eax >> 4 & 0xF;
        // AMD's families below 15 have no extended model, and zeroes in its place.
        let extended = if family == 6 || family == 0xF { eax >> 12 & 0xF0 } else { 0 };
        Self {
            family: (if family == 0xF { family + (eax >> 20 & 0xFF) } else { family }) as u16,
            model: (model | extended) as u8,
            stepping: (eax & 0xF) as u8,
        }
    }

    /// Reads the signature from CPUID.
    pub fn from_cpuid<R: CpuIdReader>(reader: &R) -> Self {
        Self::decode(reader.cpuid2(1, 0).eax)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, model, stepping } = self;
        write!(f, "family {family:#x} model {model:#x} stepping {stepping}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::fake::FakeCpu;

    #[test]
    fn signatures_are_decoded_with_their_extensions() {
        let decoded = |eax| {
            let Signature { family, model, stepping } = Signature::decode(eax);
            (family, model, stepping)
        };
        // These are Cascade Lake, Kaby Lake, Zen 2, Zen 4 and an old Opteron.
        assert_eq!(decoded(0x0005_0657), (6, 0x55, 7));
        assert_eq!(decoded(0x0009_06EA), (6, 0x9E, 10));
        assert_eq!(decoded(0x0083_0F10), (0x17, 0x31, 0));
        assert_eq!(decoded(0x00A1_0F11), (0x19, 0x11, 1));
        assert_eq!(decoded(0x0000_0F5A), (0xF, 5, 10));
    }

    #[test]
    fn each_flag_has_a_place_and_is_found_there_alone() {
        for flag in Speculation::all().iter() {
            assert!(flag.places().next().is_some(), "{flag:?}");
        }
        for (flag, leaf, subleaf, word, bit) in Speculation::BITS {
            let index = [Word::Eax, Word::Ebx, Word::Ecx, Word::Edx]
                .iter()
                .position(|one| *one == word)
                .unwrap();
            let cpu = FakeCpu::complete(b"GenuineIntel").with(leaf, subleaf, index, 1 << bit);
            let found = Speculation::from_cpuid(&cpu);
            let expected =
                if (leaf, bit) == (7, 26) { Speculation::IBRS | Speculation::IBPB } else { flag };
            assert_eq!(found, expected, "{leaf:#x}.{subleaf} {word:?}[{bit}]");
        }
    }

    #[test]
    fn a_cores_threads_are_seen_by_either_leaf() {
        let said = |leaf, ebx| {
            Speculation::from_cpuid(&FakeCpu::complete(b"AuthenticAMD").with(leaf, 0, 1, ebx))
        };
        assert_eq!(said(0xB, 2), Speculation::SMT);
        assert_eq!(said(0xB, 1), Speculation::empty());
        // In Zen 1, the low byte has the core's number, and the byte above it the number of threads
        // less one.
        assert_eq!(said(0x8000_001E, 0x0103), Speculation::SMT);
        assert_eq!(said(0x8000_001E, 0x0003), Speculation::empty());
    }
}
