//! What a CPU must have, or have switched on, for an instruction to exist and for a value to be
//! allowed: **one table**, and the machine asks nothing else (hazards.md, row 48).
//!
//! Sources: Intel SDM vol. 2 (each instruction's exceptions in 64-bit mode), vol. 3, 2.5 (CR3, CR4)
//! and vol. 4, table 2-2 (MSRs); AMD APM vol. 2, 3.1 (CR3, CR4, EFER), vol. 3 and PPR (PRED_CMD).

use core::fmt;
use core::str::FromStr;

use bitflags::bitflags;

use super::operation::Kind;
use switcher_gen::Variant;
use switcher_gen::arch::Msr;

bitflags! {
    /// What not every CPU has that a switcher could run on, as far as an instruction or a value
    /// depends on it.
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
        /// CR4.PCIDE is set: an axis of variants.
        const PCID = 1 << 11;
        /// CR4.PKE is set: likewise.
        const PKU = 1 << 12;
    }
}

/// No feature that could be added has this name.
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
        // The config say whether these are on.
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
        /// Which.
        bit: u32,
        /// What it is called.
        name: &'static str,
    },
    /// This bit of EFER is set.
    Efer {
        /// Which.
        bit: u32,
        /// What it is called.
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
        /// Which.
        of: &'static str,
    },
    /// It can be read.
    Readable {
        /// Which MSR.
        of: &'static str,
    },
}

/// What holds an address that the CPU looks at as it is written.
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
    /// Where it leads from 32-bit code.
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
    /// What the answer depends on that not all variants have alike.
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

    /// What of the state it is about.
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

/// As the end of "... needs".
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

/// Without which an instruction is #UD, at any privilege level. What is not written here of an
/// instruction is on every CPU in 64-bit mode: LFENCE, CMOVcc, SWAPGS, VERW; ENDBR64 is a NOP where
/// there is no CET.
pub(super) const fn of_instruction(kind: Kind) -> &'static [Condition] {
    match kind {
        Kind::ClearAc | Kind::SetAc => &[Condition::Cpu(Features::SMAP)],
        Kind::ReadGsBase | Kind::WriteGsBase | Kind::ReadFsBase | Kind::WriteFsBase => {
            &[CR4_FSGSBASE]
        }
        Kind::ReadPkru | Kind::WritePkru => &[CR4_PKE],
        Kind::Syscall | Kind::Sysretq | Kind::Sysretl => &[EFER_SCE],
        Kind::Mov
        | Kind::MovZeroExtended
        | Kind::MovSignExtended
        | Kind::Lea
        | Kind::Xchg
        | Kind::ExchangeAdd
        | Kind::CompareExchange
        | Kind::StoreString { .. }
        | Kind::CopyString { .. }
        | Kind::Add
        | Kind::Sub
        | Kind::Cmp
        | Kind::And
        | Kind::Or
        | Kind::Xor
        | Kind::Test
        | Kind::Not
        | Kind::Neg
        | Kind::Inc
        | Kind::Dec
        | Kind::Shl
        | Kind::Shr
        | Kind::Sar
        | Kind::Bt
        | Kind::Bts
        | Kind::Btr
        | Kind::Set(_)
        | Kind::MovIf(_)
        | Kind::Push
        | Kind::Pop
        | Kind::PushFlags
        | Kind::PopFlags
        | Kind::Jump
        | Kind::JumpIf(_)
        | Kind::Loop(_)
        | Kind::JumpIfZero
        | Kind::Call
        | Kind::Return(_)
        | Kind::ReturnFar(_)
        | Kind::SwapGs
        | Kind::ReadCr3
        | Kind::ReadCr4
        | Kind::WriteCr3
        | Kind::ReadMsr
        | Kind::WriteMsr
        | Kind::WriteSs
        | Kind::ReadSegment(_)
        | Kind::Iretq
        | Kind::ClearDirection
        | Kind::SetDirection
        | Kind::ClearInterrupt
        | Kind::SetInterrupt
        | Kind::Nothing
        | Kind::Fence(_)
        | Kind::Verw
        | Kind::Ud2
        | Kind::Int3
        | Kind::Int(_)
        | Kind::Sysenter
        | Kind::In
        | Kind::Halt => &[],
    }
}

/// What RDPKRU asks for, and WRPKRU of both (#GP).
pub(super) const PKRU_ECX: Condition = Condition::Zero { of: "ECX" };
/// The upper half of PKRU.
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
    /// Without which it does not exist (#GP).
    pub(super) exists: Option<Condition>,
    /// Whether RDMSR of it is no #GP.
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

/// The rule for the MSR of that number; `None` if it has no effect in the model.
pub(super) const fn msr(number: u64) -> Option<MsrRule> {
    const SPEC_CTRL: u64 = Msr::SpecCtrl as u64;
    const PRED_CMD: u64 = Msr::PredCmd as u64;
    Some(match number {
        SPEC_CTRL => MsrRule {
            name: "SPEC_CTRL",
            exists: Some(Condition::Cpu(
                Features::IBRS.union(Features::STIBP).union(Features::SSBD),
            )),
            is_readable: true,
            value: Value::Bits(SPEC_CTRL_BITS),
        },
        PRED_CMD => MsrRule {
            name: "PRED_CMD",
            exists: Some(Condition::Cpu(Features::IBPB.union(Features::SBPB))),
            is_readable: false,
            value: Value::Bits(PRED_CMD_BITS),
        },
        0xC000_0080 => rule("EFER", Value::Any),
        0xC000_0081 => rule("STAR", Value::Any),
        0xC000_0082 => pointer(Address::Lstar),
        0xC000_0083 => pointer(Address::Cstar),
        0xC000_0084 => rule("SFMASK", Value::Bits(SFMASK_BITS)),
        0xC000_0100 => pointer(Address::FsBase),
        0xC000_0101 => pointer(Address::GsBase),
        0xC000_0102 => pointer(Address::KernelGsBase),
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
