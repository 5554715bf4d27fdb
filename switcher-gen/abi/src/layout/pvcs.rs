//! The page shared with the guest (spec/abi.md, "PVCS"), in its two revisions.
//!
//! The guest may write it at any moment and from any of its CPUs, **between any two instructions**:
//! each field is read at most once, and nothing read from it is trusted (spec/hazards.md, row 24).

use bitflags::bitflags;

use super::{AsmLayout, Layout, Offset};

/// The revision of the PVCS's layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Revision {
    /// The layout of 2024, [`Pvcs`]: smod has a stack of its own, and umod's RSP is kept in the
    /// PVCS.
    #[default]
    V2024,
    /// The layout of 2026, [`PvcsV2026`]: RSP passes through every direct switch.
    V2026,
}

impl Revision {
    /// The struct of this revision.
    #[must_use]
    pub const fn layout(self) -> &'static Layout {
        match self {
            Self::V2024 => Pvcs::LAYOUT,
            Self::V2026 => PvcsV2026::LAYOUT,
        }
    }
}

bitflags! {
    /// The bits of [`Pvcs::event_flags`] that mean something.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct EventFlags: u64 {
        /// An event is pending that the guest's interrupt flag holds back.
        const IP = 1 << 8;
        /// The guest's virtual interrupt flag.
        const IF = 1 << 9;
    }
}

/// The PVCS of 2024, in which umod's registers are stored on the way to smod, and from which they
/// are loaded on the way back.
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
    /// PKRU of umod.
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

/// The PVCS of 2026: RSP passes through every direct switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 128, align = 8)]
pub struct PvcsV2026 {
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
    /// PKRU of umod.
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

/// The fields of the PVCS that a switcher uses, at their places in each revision, so that emitters
/// are one text for both.
#[expect(missing_docs, reason = "the fields of Pvcs and PvcsV2026")]
pub trait PvcsLayout: AsmLayout {
    const USER_CS: Offset<Self, u16>;
    const USER_SS: Offset<Self, u16>;
    const USER_GSBASE: Offset<Self, u64>;
    const EFLAGS: Offset<Self, u32>;
    const PKRU: Offset<Self, u32>;
    const RIP: Offset<Self, u64>;
    /// RSP of umod, or `None` in a revision in which RSP passes through.
    const RSP: Option<Offset<Self, u64>>;
    const RCX: Offset<Self, u64>;
    const R11: Offset<Self, u64>;
}

impl PvcsLayout for Pvcs {
    const USER_CS: Offset<Self, u16> = Self::user_cs;
    const USER_SS: Offset<Self, u16> = Self::user_ss;
    const USER_GSBASE: Offset<Self, u64> = Self::user_gsbase;
    const EFLAGS: Offset<Self, u32> = Self::eflags;
    const PKRU: Offset<Self, u32> = Self::pkru;
    const RIP: Offset<Self, u64> = Self::rip;
    const RSP: Option<Offset<Self, u64>> = Some(Self::rsp);
    const RCX: Offset<Self, u64> = Self::rcx;
    const R11: Offset<Self, u64> = Self::r11;
}

impl PvcsLayout for PvcsV2026 {
    const USER_CS: Offset<Self, u16> = Self::user_cs;
    const USER_SS: Offset<Self, u16> = Self::user_ss;
    const USER_GSBASE: Offset<Self, u64> = Self::user_gsbase;
    const EFLAGS: Offset<Self, u32> = Self::eflags;
    const PKRU: Offset<Self, u32> = Self::pkru;
    const RIP: Offset<Self, u64> = Self::rip;
    const RSP: Option<Offset<Self, u64>> = None;
    const RCX: Offset<Self, u64> = Self::rcx;
    const R11: Offset<Self, u64> = Self::r11;
}

impl PvcsV2026 {
    /// Takes over the fields that both revisions have. Error code and vector lose their upper
    /// halves.
    #[must_use]
    pub const fn from_v2024(pvcs: &Pvcs) -> Self {
        Self {
            event_flags: pvcs.event_flags,
            cr2: pvcs.cr2,
            _reserved0: [0; 6],
            user_cs: pvcs.user_cs,
            user_ss: pvcs.user_ss,
            event_errcode: pvcs.event_errcode as u16,
            event_vector: pvcs.event_vector as u16,
            user_gsbase: pvcs.user_gsbase,
            eflags: pvcs.eflags,
            pkru: pvcs.pkru,
            rip: pvcs.rip,
            rcx: pvcs.rcx,
            r11: pvcs.r11,
            _reserved1: [0; 2],
        }
    }

    /// Converts the fields back. Those that are not in this revision are taken from `rest`.
    #[must_use]
    pub const fn to_v2024(&self, rest: &Pvcs) -> Pvcs {
        const UPPER: u32 = 0xFFFF_0000;
        Pvcs {
            event_flags: self.event_flags,
            event_errcode: rest.event_errcode & UPPER | self.event_errcode as u32,
            event_vector: rest.event_vector & UPPER | self.event_vector as u32,
            cr2: self.cr2,
            _reserved0: rest._reserved0,
            user_cs: self.user_cs,
            user_ss: self.user_ss,
            _reserved1: rest._reserved1,
            user_gsbase: self.user_gsbase,
            eflags: self.eflags,
            pkru: self.pkru,
            rip: self.rip,
            rsp: rest.rsp,
            rcx: self.rcx,
            r11: self.r11,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_revision_keeps_all_but_rsp_and_upper_halves() {
        let rfc = Pvcs {
            event_flags: 1,
            event_errcode: 0x2_0003,
            event_vector: 0x4_0005,
            cr2: 6,
            user_cs: 7,
            user_ss: 8,
            user_gsbase: 9,
            eflags: 10,
            pkru: 11,
            rip: 12,
            rsp: 13,
            rcx: 14,
            r11: 15,
            ..Pvcs::default()
        };
        let current = PvcsV2026::from_v2024(&rfc);
        assert_eq!(current.to_v2024(&rfc), rfc);
        let lost = Pvcs { event_errcode: 3, event_vector: 5, rsp: 0, ..rfc };
        assert_eq!(current.to_v2024(&Pvcs::default()), lost);
    }
}
