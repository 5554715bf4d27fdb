//! What a CPU must have, or have switched on, for an instruction to exist and for a value to be
//! allowed. It is **one table**, and the model asks nothing else (hazards.md, row 48).
//!
//! Sources: Intel SDM vol. 2 (each instruction's exceptions in 64-bit mode), vol. 3, 2.5 (CR3, CR4)
//! and vol. 4, table 2-2 (MSRs); AMD APM vol. 2, 3.1 (CR3, CR4, EFER), vol. 3 and PPR (PRED_CMD).

use core::fmt;
use core::str::FromStr;

use bitflags::bitflags;

use super::operation::Operation;
use switcher_gen::Variant;

bitflags! {
    /// Features that some CPUs lack although a switcher could run on them, as far as an instruction
    /// or a value depends on them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub struct Features: u32 {
        /// CLAC and STAC.
        const SMAP = 1 << 0;
        /// MSR SPEC_CTRL, and its bit 0.
        const IBRS = 1 << 1;
        /// Its bit 1.
        const STIBP = 1 << 2;
        /// Its bit 2.
        const SSBD = 1 << 3;
        /// Its bits 3 and 4: IPRED_DIS_U and IPRED_DIS_S.
        const IPRED_CTRL = 1 << 4;
        /// Its bits 5 and 6: RRSBA_DIS_U and RRSBA_DIS_S.
        const RRSBA_CTRL = 1 << 5;
        /// Its bit 7.
        const PSFD = 1 << 6;
        /// Its bit 8: DDPD_U.
        const DDPD_U = 1 << 7;
        /// Its bit 10: BHI_DIS_S.
        const BHI_CTRL = 1 << 8;
        /// MSR PRED_CMD, and its bit 0.
        const IBPB = 1 << 9;
        /// Its bit 7.
        const SBPB = 1 << 10;
        /// CR4.PCIDE is set, which is part of a variant's configuration.
        const PCID = 1 << 11;
        /// CR4.PKE is set, which is part of a variant's configuration, too.
        const PKU = 1 << 12;
    }
}

/// A name that no optional feature has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown feature `{name}`; known are: {}", Features::names().join(", "))]
pub struct UnknownFeature {
    name: String,
}

impl Features {
    /// What a variant implies: without it, its host could not be set up as it is, or its code would
    /// be another.
    #[must_use]
    pub const fn of(variant: &Variant) -> Self {
        let config = variant.config();
        let implied = [
            (config.mitigations.ibrs, Self::IBRS),
            (config.mitigations.ibpb, Self::IBPB),
            (config.pcid, Self::PCID),
            (config.pku, Self::PKU),
        ];
        let (mut all, mut index) = (Self::empty(), 0);
        while index < implied.len() {
            if implied[index].0 {
                all = all.union(implied[index].1);
            }
            index += 1;
        }
        all
    }

    /// The names of those that a CPU may have besides what a variant implies.
    #[must_use]
    pub fn names() -> Vec<String> {
        // A variant's configuration says whether these are on.
        let named = Self::all().difference(Self::PCID | Self::PKU);
        named.iter_names().map(|(name, _)| name.to_lowercase().replace('_', "-")).collect()
    }
}

/// One of [`names`](Features::names).
impl FromStr for Features {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        let known = Self::names().iter().any(|known| known == name);
        let found = Self::from_name(&name.to_uppercase().replace('-', "_"));
        found.filter(|_| known).ok_or_else(|| UnknownFeature { name: name.into() })
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter_names().map(|(name, _)| name.to_lowercase().replace('_', "-"));
        f.write_str(&names.collect::<Vec<_>>().join(", "))
    }
}

/// What an instruction, or a value, needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The CPU has this.
    Cpu(Features),
    /// This bit of CR4 is set.
    Cr4 {
        /// The number of the bit.
        bit: u32,
        /// The name of the bit.
        name: &'static str,
    },
    /// This bit of EFER is set.
    Efer {
        /// The number of the bit.
        bit: u32,
        /// The name of the bit.
        name: &'static str,
    },
    /// No other bits are set in a value.
    Bits {
        /// What is written.
        of: &'static str,
        /// The bits that it may have.
        allowed: u64,
        /// Those that depend on a feature.
        by: Features,
    },
    /// The value is a canonical address.
    Canonical(Address),
    /// The register's lower half is zero.
    Zero {
        /// The name of the register.
        of: &'static str,
    },
    /// It can be read.
    Readable {
        /// Which MSR.
        of: &'static str,
    },
}

/// Registers whose addresses the CPU checks as they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// RIP, by a far RET.
    Rip,
    /// FS base.
    FsBase,
    /// GS base.
    GsBase,
    /// The MSR that SWAPGS swaps in.
    KernelGsBase,
    /// Where SYSCALL leads.
    Lstar,
    /// Where SYSCALL leads from 32-bit code.
    Cstar,
}

impl Address {
    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rip => "RIP",
            Self::FsBase => "FS base",
            Self::GsBase => "GS base",
            Self::KernelGsBase => "KERNEL_GS_BASE",
            Self::Lstar => "LSTAR",
            Self::Cstar => "CSTAR",
        }
    }
}

impl Condition {
    /// The features that the answer depends on and that differ between variants.
    #[must_use]
    pub const fn asks(self) -> Features {
        match self {
            Self::Cpu(features) => features,
            Self::Cr4 { bit: PKE, .. } => Features::PKU,
            Self::Cr4 { bit: PCIDE, .. } => Features::PCID,
            Self::Bits { by, .. } => by,
            _ => Features::empty(),
        }
    }

    /// The part of the state that it is about.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Cpu(_) => "CPUID",
            Self::Cr4 { .. } => "CR4",
            Self::Efer { .. } => "EFER",
            Self::Canonical(of) => of.name(),
            Self::Bits { of, .. } | Self::Zero { of } | Self::Readable { of } => of,
        }
    }
}

/// The condition as the end of a sentence that begins with "... needs".
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(features) => {
                write!(f, "a CPU with {features}, which the variant does not imply")
            }
            Self::Cr4 { name, .. } => write!(f, "CR4.{name}, which may be clear"),
            Self::Efer { name, .. } => write!(f, "EFER.{name}, which may be clear"),
            Self::Bits { of, allowed, by } if by.is_empty() => {
                write!(f, "no bits in {of} but {allowed:#x}: the others are reserved")
            }
            Self::Bits { of, allowed, by } => write!(
                f,
                "no bits in {of} but {allowed:#x}: the others are reserved without one of {by}"
            ),
            Self::Canonical(of) => write!(f, "a canonical address in {}", of.name()),
            Self::Zero { of } => write!(f, "zero in {of}"),
            Self::Readable { of } => write!(f, "an MSR that can be read, and {of} cannot"),
        }
    }
}

const FSGSBASE: u32 = 16;
pub(super) const PCIDE: u32 = 17;
const PKE: u32 = 22;

const CR4_FSGSBASE: Condition = Condition::Cr4 { bit: FSGSBASE, name: "FSGSBASE" };
pub(super) const CR4_PCIDE: Condition = Condition::Cr4 { bit: PCIDE, name: "PCIDE" };
const CR4_PKE: Condition = Condition::Cr4 { bit: PKE, name: "PKE" };
const EFER_SCE: Condition = Condition::Efer { bit: 0, name: "SCE" };

/// The conditions without which an instruction is #UD, at any privilege level. An instruction
/// without conditions is on every CPU in 64-bit mode: LFENCE, CMOVcc, SWAPGS, VERW; ENDBR64 is a
/// NOP where there is no CET.
pub(super) const fn of_instruction(kind: Operation) -> &'static [Condition] {
    match kind {
        Operation::ClearAc | Operation::SetAc => &[Condition::Cpu(Features::SMAP)],
        Operation::ReadGsBase
        | Operation::WriteGsBase
        | Operation::ReadFsBase
        | Operation::WriteFsBase => &[CR4_FSGSBASE],
        Operation::ReadPkru | Operation::WritePkru => &[CR4_PKE],
        Operation::Syscall | Operation::Sysretq | Operation::Sysretl => &[EFER_SCE],
        Operation::Mov
        | Operation::MovZeroExtended
        | Operation::MovSignExtended
        | Operation::Lea
        | Operation::Xchg
        | Operation::ExchangeAdd
        | Operation::CompareExchange
        | Operation::StoreString { .. }
        | Operation::CopyString { .. }
        | Operation::Add
        | Operation::Sub
        | Operation::Cmp
        | Operation::And
        | Operation::Or
        | Operation::Xor
        | Operation::Test
        | Operation::Not
        | Operation::Neg
        | Operation::Inc
        | Operation::Dec
        | Operation::Shl
        | Operation::Shr
        | Operation::Sar
        | Operation::Bt
        | Operation::Bts
        | Operation::Btr
        | Operation::Set(_)
        | Operation::MovIf(_)
        | Operation::Push
        | Operation::Pop
        | Operation::PushFlags
        | Operation::PopFlags
        | Operation::Jump
        | Operation::JumpIf(_)
        | Operation::Loop(_)
        | Operation::JumpIfZero
        | Operation::Call
        | Operation::Return(_)
        | Operation::ReturnFar(_)
        | Operation::SwapGs
        | Operation::ReadCr3
        | Operation::ReadCr4
        | Operation::WriteCr3
        | Operation::ReadMsr
        | Operation::WriteMsr
        | Operation::WriteSs
        | Operation::ReadSegment(_)
        | Operation::Iretq
        | Operation::ClearDirection
        | Operation::SetDirection
        | Operation::ClearInterrupt
        | Operation::SetInterrupt
        | Operation::Nothing
        | Operation::Fence(_)
        | Operation::Verw
        | Operation::Ud2
        | Operation::Int3
        | Operation::Int(_)
        | Operation::Sysenter
        | Operation::In
        | Operation::Halt => &[],
    }
}

/// RDPKRU and WRPKRU need a zero in ECX (#GP).
pub(super) const PKRU_ECX: Condition = Condition::Zero { of: "ECX" };
/// WRPKRU needs a zero in EDX, too.
pub(super) const PKRU_EDX: Condition = Condition::Zero { of: "EDX" };

/// The bits of CR3 below the width of a physical address, of which no CPU has more than 52; bit 63,
/// NOFLUSH, is one of them only under CR4.PCIDE. The bits of linear address masking are reserved:
/// no variant has it.
pub(super) const CR3: Condition =
    Condition::Bits { of: "CR3", allowed: (1 << 52) - 1, by: Features::PCID };
/// NOFLUSH.
pub(super) const CR3_NOFLUSH: u32 = 63;

/// An MSR of the model's.
#[derive(Clone, Copy, Debug)]
pub(super) struct MsrRule {
    /// What it is called.
    pub(super) name: &'static str,
    /// The condition without which it does not exist (#GP).
    pub(super) exists: Option<Condition>,
    /// Whether RDMSR can read it without a #GP.
    pub(super) is_readable: bool,
    /// What WRMSR of it may write.
    pub(super) value: Value,
}

/// What an MSR can hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// Anything.
    Any,
    /// Addresses.
    Canonical(Address),
    /// These bits; each of them with one of these features, or always.
    Bits(&'static [(u64, Features)]),
}

const SPEC_CTRL_BITS: &[(u64, Features)] = &[
    (1, Features::IBRS),
    (1 << 1, Features::STIBP),
    (1 << 2, Features::SSBD),
    (1 << 3 | 1 << 4, Features::IPRED_CTRL),
    (1 << 5 | 1 << 6, Features::RRSBA_CTRL),
    (1 << 7, Features::PSFD),
    (1 << 8, Features::DDPD_U),
    (1 << 10, Features::BHI_CTRL),
];
const PRED_CMD_BITS: &[(u64, Features)] = &[(1, Features::IBPB), (1 << 7, Features::SBPB)];
/// RFLAGS has 32 bits that mean something. AMD's manual calls the others reserved, too.
const SFMASK_BITS: &[(u64, Features)] = &[(0xFFFF_FFFF, Features::empty())];

const fn rule(name: &'static str, value: Value) -> MsrRule {
    MsrRule { name, exists: None, is_readable: true, value }
}

const fn pointer(of: Address) -> MsrRule {
    rule(of.name(), Value::Canonical(of))
}

/// The numbers by which RDMSR and WRMSR name the model's MSRs, as the patterns of a `match`.
pub(super) mod msr_number {
    use switcher_gen::arch::Msr;

    pub(crate) const SPEC_CTRL: u64 = Msr::SpecCtrl as u64;
    pub(crate) const PRED_CMD: u64 = Msr::PredCmd as u64;
    pub(crate) const EFER: u64 = Msr::Efer as u64;
    pub(crate) const STAR: u64 = Msr::Star as u64;
    pub(crate) const LSTAR: u64 = Msr::Lstar as u64;
    pub(crate) const CSTAR: u64 = Msr::Cstar as u64;
    pub(crate) const SFMASK: u64 = Msr::Sfmask as u64;
    pub(crate) const FS_BASE: u64 = Msr::FsBase as u64;
    pub(crate) const GS_BASE: u64 = Msr::GsBase as u64;
    pub(crate) const KERNEL_GS_BASE: u64 = Msr::KernelGsBase as u64;
}

/// The rule for the MSR of that number; `None` if it has no effect in the model.
pub(super) const fn msr(number: u64) -> Option<MsrRule> {
    Some(match number {
        msr_number::SPEC_CTRL => MsrRule {
            name: "SPEC_CTRL",
            exists: Some(Condition::Cpu(
                Features::IBRS.union(Features::STIBP).union(Features::SSBD),
            )),
            is_readable: true,
            value: Value::Bits(SPEC_CTRL_BITS),
        },
        msr_number::PRED_CMD => MsrRule {
            name: "PRED_CMD",
            exists: Some(Condition::Cpu(Features::IBPB.union(Features::SBPB))),
            is_readable: false,
            value: Value::Bits(PRED_CMD_BITS),
        },
        msr_number::EFER => rule("EFER", Value::Any),
        msr_number::STAR => rule("STAR", Value::Any),
        msr_number::LSTAR => pointer(Address::Lstar),
        msr_number::CSTAR => pointer(Address::Cstar),
        msr_number::SFMASK => rule("SFMASK", Value::Bits(SFMASK_BITS)),
        msr_number::FS_BASE => pointer(Address::FsBase),
        msr_number::GS_BASE => pointer(Address::GsBase),
        msr_number::KERNEL_GS_BASE => pointer(Address::KernelGsBase),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_by_name_and_others_are_answered_with_the_names() {
        for name in Features::names() {
            let feature: Features = name.parse().unwrap();
            assert_eq!(feature.to_string(), name);
        }
        for unknown in ["pcid", "SMAP", "magic", ""] {
            let refused = unknown.parse::<Features>().unwrap_err().to_string();
            let start = format!("unknown feature `{unknown}`; known are: smap, ibrs, ");
            assert!(refused.starts_with(&start), "{refused}");
        }
    }

    #[test]
    fn a_variant_implies_what_it_uses() {
        let of = |name: &str| Features::of(&name.parse().unwrap());
        assert_eq!(of("intel-4level"), Features::empty());
        assert_eq!(of("amd-4level-pcid-pku+ibrs+ibpb"), {
            Features::IBRS | Features::IBPB | Features::PCID | Features::PKU
        });
    }
}
