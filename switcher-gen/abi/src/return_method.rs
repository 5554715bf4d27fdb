//! By which instruction a guest is returned to, and why: one table, which the specification, the
//! proofs, the interpreter and hosts go by (spec/switcher.md, "Return to the guest").

use crate::arch::{PagingMode, RFlags, Selectors};
use crate::layout::PtRegs;

/// How a guest comes to run again, with all registers that it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReturnMethod {
    /// By SYSRETQ, which is faster.
    SysRet,
    /// By IRETQ, since SYSRETQ would not give it what it should have: this is the first reason, in
    /// the order of [`Why::ALL`].
    IRet(Why),
}

/// What SYSRETQ cannot give a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// SYSRETQ loads USER_CS, whatever the guest's CS is.
    Cs,
    /// SYSRETQ loads USER_DS, whatever the guest's SS is.
    Ss,
    /// SYSRETQ does not set RF, and traps too late for TF (Intel SDM vol. 2, SYSRET).
    ResumeOrTrap,
    /// SYSRETQ takes RFLAGS from R11, which has another value.
    Flags,
    /// SYSRETQ takes RIP from RCX, which has another value.
    Rip,
    /// SYSRETQ faults in ring 0 where RCX is not canonical for the active paging mode.
    NonCanonical,
}

/// Something of a guest's, or something that SYSRETQ gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// USER_CS.
    UserCs,
    /// USER_DS.
    UserDs,
    /// Nothing: 0.
    Zero,
    /// CS in the guest's frame.
    Cs,
    /// SS in the guest's frame.
    Ss,
    /// RFLAGS in the guest's frame.
    Flags,
    /// RF and TF of those.
    ResumeAndTrap,
    /// RIP in the guest's frame.
    Rip,
    /// The same address, with its upper bits as the paging mode wants them.
    CanonicalRip,
    /// The guest's RCX.
    Rcx,
    /// The guest's R11.
    R11,
}

impl Operand {
    /// RF and TF.
    pub const RESUME_AND_TRAP: u64 = RFlags::RF.union(RFlags::TF).bits();

    /// Its value for a guest with this frame.
    const fn value(self, regs: &PtRegs, selectors: Selectors, paging: PagingMode) -> u64 {
        match self {
            Self::UserCs => selectors.user_cs() as u64,
            Self::UserDs => selectors.user_ds() as u64,
            Self::Zero => 0,
            Self::Cs => regs.cs,
            Self::Ss => regs.ss,
            Self::Flags => regs.eflags,
            Self::ResumeAndTrap => regs.eflags & Self::RESUME_AND_TRAP,
            Self::Rip => regs.rip,
            Self::CanonicalRip => {
                let by = paging.sign_bits();
                (((regs.rip << by) as i64) >> by) as u64
            }
            Self::Rcx => regs.rcx,
            Self::R11 => regs.r11,
        }
    }
}

impl Why {
    /// All, in the order in which they are looked for.
    pub const ALL: [Self; 6] =
        [Self::Cs, Self::Ss, Self::ResumeOrTrap, Self::Flags, Self::Rip, Self::NonCanonical];

    /// What of the guest it is about.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cs => "CS",
            Self::Ss => "SS",
            Self::ResumeOrTrap => "RF and TF",
            Self::Flags => "RFLAGS",
            Self::Rip => "RIP",
            Self::NonCanonical => "canonical RIP",
        }
    }

    /// What SYSRETQ gives the guest, and what it should have: if the two differ, this is a reason.
    #[must_use]
    pub const fn given_and_own(self) -> [Operand; 2] {
        match self {
            Self::Cs => [Operand::UserCs, Operand::Cs],
            Self::Ss => [Operand::UserDs, Operand::Ss],
            Self::ResumeOrTrap => [Operand::Zero, Operand::ResumeAndTrap],
            Self::Flags => [Operand::R11, Operand::Flags],
            Self::Rip => [Operand::Rcx, Operand::Rip],
            Self::NonCanonical => [Operand::CanonicalRip, Operand::Rip],
        }
    }
}

impl ReturnMethod {
    /// How a switcher enters a guest with these registers, whose RFLAGS it has sanitised.
    ///
    /// ```
    /// use switcher_abi::arch::{PagingMode, Selectors};
    /// use switcher_abi::layout::PtRegs;
    /// use switcher_abi::{ReturnMethod, Why};
    ///
    /// let selectors = Selectors::DEFAULT;
    /// let mut regs = PtRegs::default();
    /// (regs.cs, regs.ss) = (selectors.user_cs().into(), selectors.user_ds().into());
    /// (regs.rip, regs.rcx) = (0x40_0000, 0x40_0000);
    /// (regs.eflags, regs.r11) = (0x202, 0x202);
    /// let of = |regs: &PtRegs| ReturnMethod::of(regs, selectors, PagingMode::FourLevel);
    /// assert_eq!(of(&regs), ReturnMethod::SysRet);
    /// regs.rcx = 0;
    /// assert_eq!(of(&regs), ReturnMethod::IRet(Why::Rip));
    /// ```
    #[must_use]
    pub const fn of(regs: &PtRegs, selectors: Selectors, paging: PagingMode) -> Self {
        let mut index = 0;
        while index < Why::ALL.len() {
            let why = Why::ALL[index];
            let [given, own] = why.given_and_own();
            if given.value(regs, selectors, paging) != own.value(regs, selectors, paging) {
                return Self::IRet(why);
            }
            index += 1;
        }
        Self::SysRet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_sysret() -> PtRegs {
        let selectors = Selectors::DEFAULT;
        let mut regs = PtRegs::default();
        (regs.cs, regs.ss) = (selectors.user_cs().into(), selectors.user_ds().into());
        (regs.rip, regs.rcx) = (0x40_0000, 0x40_0000);
        (regs.eflags, regs.r11) = (0x202, 0x202);
        regs
    }

    #[test]
    fn each_reason_alone_is_told() {
        type Change = fn(&mut PtRegs);
        let of = |change: Change, paging| {
            let mut regs = by_sysret();
            change(&mut regs);
            ReturnMethod::of(&regs, Selectors::DEFAULT, paging)
        };
        let changes: [(Change, Why); 8] = [
            (|regs| regs.cs = 0x23, Why::Cs),
            (|regs| regs.ss = 0, Why::Ss),
            (|regs| (regs.eflags, regs.r11) = (0x302, 0x302), Why::ResumeOrTrap),
            (|regs| (regs.eflags, regs.r11) = (0x1_0202, 0x1_0202), Why::ResumeOrTrap),
            (|regs| regs.r11 = 0x203, Why::Flags),
            (|regs| regs.rcx = 0, Why::Rip),
            (|regs| (regs.rip, regs.rcx) = (1 << 47, 1 << 47), Why::NonCanonical),
            (|regs| (regs.rip, regs.rcx) = (1 << 63, 1 << 63), Why::NonCanonical),
        ];
        for (change, why) in changes {
            assert_eq!(of(change, PagingMode::FourLevel), ReturnMethod::IRet(why));
        }
        assert_eq!(of(|_| (), PagingMode::FourLevel), ReturnMethod::SysRet);
        // With five levels, more addresses are canonical.
        let high: Change = |regs| (regs.rip, regs.rcx) = (1 << 47, 1 << 47);
        assert_eq!(of(high, PagingMode::FiveLevel), ReturnMethod::SysRet);
    }

    #[test]
    fn the_first_reason_goes_before_the_others() {
        let regs = PtRegs { cs: 0, ss: 0, r11: 7, ..by_sysret() };
        let of = ReturnMethod::of(&regs, Selectors::DEFAULT, PagingMode::FourLevel);
        assert_eq!(of, ReturnMethod::IRet(Why::Cs));
        assert!(Why::ALL.is_sorted_by_key(|why| *why as u8));
    }
}
