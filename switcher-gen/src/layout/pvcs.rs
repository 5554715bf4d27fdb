//! The page shared with the guest (spec/abi.md, "PVCS"), in its two revisions.
//!
//! The guest may write it at any moment and from any of its CPUs, **between any two instructions**:
//! each field is read at most once, and nothing read from it is trusted (spec/hazards.md, row 24).

use bitflags::bitflags;

use super::{AsmLayout, Offset};

/// The revision of the PVCS's layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    /// 2024, [`Pvcs`]: smod has a stack of its own, and umod's RSP is kept in the PVCS.
    #[default]
    Rfc,
    /// 2026, [`PvcsCurrent`]: RSP passes through every direct switch.
    Current,
}

bitflags! {
    /// Bits of [`Pvcs::event_flags`] that mean something.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct EventFlags: u64 {
        /// An event is pending that the guest's interrupt flag holds back.
        const IP = 1 << 8;
        /// The guest's virtual interrupt flag.
        const IF = 1 << 9;
    }
}

/// Where umod's registers go on the way to smod and come from on the way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 128, align = 8)]
pub struct Pvcs {
    /// Virtual interrupt flag and pending flag: see [`EventFlags`].
    #[asm(at = 0x00)]
    pub event_flags: u64,
    /// Error code of the event being delivered.
    #[asm(at = 0x08)]
    pub event_errcode: u32,
    /// Vector of the event being delivered.
    #[asm(at = 0x0C)]
    pub event_vector: u32,
    /// Faulting address of a #PF.
    #[asm(at = 0x10)]
    pub cr2: u64,
    _reserved0: [u64; 5],
    /// CS of umod.
    #[asm(at = 0x40)]
    pub user_cs: u16,
    /// SS of umod.
    #[asm(at = 0x42)]
    pub user_ss: u16,
    _reserved1: [u32; 3],
    /// GS base of umod.
    #[asm(at = 0x50)]
    pub user_gsbase: u64,
    /// RFLAGS of umod, low half.
    #[asm(at = 0x58)]
    pub eflags: u32,
    /// Protection keys of umod.
    #[asm(at = 0x5C)]
    pub pkru: u32,
    /// RIP of umod.
    #[asm(at = 0x60)]
    pub rip: u64,
    /// RSP of umod.
    #[asm(at = 0x68)]
    pub rsp: u64,
    /// RCX of umod.
    #[asm(at = 0x70)]
    pub rcx: u64,
    /// R11 of umod.
    #[asm(at = 0x78)]
    pub r11: u64,
}

/// The same, revision of 2026: RSP passes through every direct switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 128, align = 8)]
pub struct PvcsCurrent {
    /// Virtual interrupt flag and pending flag: see [`EventFlags`].
    #[asm(at = 0x00)]
    pub event_flags: u64,
    /// Faulting address of a #PF.
    #[asm(at = 0x08)]
    pub cr2: u64,
    _reserved0: [u64; 6],
    /// CS of umod.
    #[asm(at = 0x40)]
    pub user_cs: u16,
    /// SS of umod.
    #[asm(at = 0x42)]
    pub user_ss: u16,
    /// Error code of the event being delivered.
    #[asm(at = 0x44)]
    pub event_errcode: u16,
    /// Vector of the event being delivered.
    #[asm(at = 0x46)]
    pub event_vector: u16,
    /// GS base of umod.
    #[asm(at = 0x48)]
    pub user_gsbase: u64,
    /// RFLAGS of umod, low half.
    #[asm(at = 0x50)]
    pub eflags: u32,
    /// Protection keys of umod.
    #[asm(at = 0x54)]
    pub pkru: u32,
    /// RIP of umod.
    #[asm(at = 0x58)]
    pub rip: u64,
    /// RCX of umod.
    #[asm(at = 0x60)]
    pub rcx: u64,
    /// R11 of umod.
    #[asm(at = 0x68)]
    pub r11: u64,
    _reserved1: [u64; 2],
}

/// What a switcher uses of the PVCS, where one revision has it: emitters are one text for both.
#[expect(missing_docs, reason = "the fields of Pvcs and PvcsCurrent")]
pub trait PvcsLayout: AsmLayout {
    const USER_CS: Offset<Self, u16>;
    const USER_SS: Offset<Self, u16>;
    const USER_GSBASE: Offset<Self, u64>;
    const EFLAGS: Offset<Self, u32>;
    const RIP: Offset<Self, u64>;
    /// Where RSP passes through, there is none.
    const RSP: Option<Offset<Self, u64>>;
    const RCX: Offset<Self, u64>;
    const R11: Offset<Self, u64>;
}

impl PvcsLayout for Pvcs {
    const USER_CS: Offset<Self, u16> = Self::user_cs;
    const USER_SS: Offset<Self, u16> = Self::user_ss;
    const USER_GSBASE: Offset<Self, u64> = Self::user_gsbase;
    const EFLAGS: Offset<Self, u32> = Self::eflags;
    const RIP: Offset<Self, u64> = Self::rip;
    const RSP: Option<Offset<Self, u64>> = Some(Self::rsp);
    const RCX: Offset<Self, u64> = Self::rcx;
    const R11: Offset<Self, u64> = Self::r11;
}

impl PvcsLayout for PvcsCurrent {
    const USER_CS: Offset<Self, u16> = Self::user_cs;
    const USER_SS: Offset<Self, u16> = Self::user_ss;
    const USER_GSBASE: Offset<Self, u64> = Self::user_gsbase;
    const EFLAGS: Offset<Self, u32> = Self::eflags;
    const RIP: Offset<Self, u64> = Self::rip;
    const RSP: Option<Offset<Self, u64>> = None;
    const RCX: Offset<Self, u64> = Self::rcx;
    const R11: Offset<Self, u64> = Self::r11;
}
