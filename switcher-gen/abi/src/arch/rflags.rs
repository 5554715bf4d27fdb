//! RFLAGS (Intel SDM vol. 1, 3.4.3; AMD APM vol. 2, 3.1.6) and what a guest may have of it.

use bitflags::bitflags;

use super::imm32;

bitflags! {
    /// The RFLAGS register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct RFlags: u64 {
        /// Carry.
        const CF = 1 << 0;
        /// Bit 1 reads as one on every x86.
        const FIXED = 1 << 1;
        /// Parity.
        const PF = 1 << 2;
        /// Auxiliary carry.
        const AF = 1 << 4;
        /// Zero.
        const ZF = 1 << 6;
        /// Sign.
        const SF = 1 << 7;
        /// Trap after each instruction.
        const TF = 1 << 8;
        /// Maskable interrupts enabled.
        const IF = 1 << 9;
        /// String instructions go downwards.
        const DF = 1 << 10;
        /// Overflow.
        const OF = 1 << 11;
        /// I/O privilege level, both bits.
        const IOPL = 0b11 << 12;
        /// Nested task: IRET would return to the back link.
        const NT = 1 << 14;
        /// Suppresses instruction breakpoints for one instruction.
        const RF = 1 << 16;
        /// Virtual-8086 mode.
        const VM = 1 << 17;
        /// Alignment checks at CPL 3; lets CPL 0 touch user pages under SMAP.
        const AC = 1 << 18;
        /// Virtual interrupt flag.
        const VIF = 1 << 19;
        /// A virtual interrupt is pending.
        const VIP = 1 << 20;
        /// CPUID exists.
        const ID = 1 << 21;

        /// The bits that a guest may choose itself, together with the bits that are forced
        /// (spec/abi.md, "RFLAGS": `0x254FD7`).
        const GUEST_ALLOWED = Self::CF.bits() | Self::FIXED.bits() | Self::PF.bits()
            | Self::AF.bits() | Self::ZF.bits() | Self::SF.bits() | Self::TF.bits()
            | Self::IF.bits() | Self::DF.bits() | Self::OF.bits() | Self::NT.bits()
            | Self::RF.bits() | Self::AC.bits() | Self::ID.bits();
        /// Set in every guest: interrupts belong to the host, so a guest cannot mask them.
        const GUEST_FIXED = Self::IF.bits() | Self::FIXED.bits();
        /// What smod starts with after a SYSCALL of umod, in RFLAGS and in R11.
        const SMOD_ENTRY = Self::GUEST_FIXED.bits();
        /// The flags that SYSRETQ may not restore: with TF the trap would come one instruction
        /// late, and RF would be lost (spec/hazards.md, row 13).
        const NOT_BY_SYSRET = Self::RF.bits() | Self::TF.bits();
        /// The flags that SYSCALL clears (MSR SFMASK), so that entry code and IRETQ run with all of
        /// them clear.
        const SYSCALL_CLEARS = Self::IF.bits() | Self::TF.bits() | Self::DF.bits()
            | Self::NT.bits() | Self::AC.bits() | Self::IOPL.bits() | Self::RF.bits();
        /// The flags with which host code runs when a guest has exited: interrupts are off, and
        /// nothing is the guest's.
        const HOST_EXIT = Self::FIXED.bits();
    }
}

const _: () =
    assert!(RFlags::GUEST_ALLOWED.bits() == 0x25_4FD7 && RFlags::GUEST_FIXED.bits() == 0x202);

impl RFlags {
    /// All flags but TF: ring 0 goes on with these after a #DB that it has not caused.
    pub const NOT_TRACED: Self = Self::from_bits_retain(!Self::TF.bits());

    /// These bits as an instruction's immediate.
    #[must_use]
    pub const fn imm32(self) -> i32 {
        imm32(self.bits())
    }

    /// These bits as an instruction's 8-bit immediate.
    #[must_use]
    pub const fn imm8(self) -> i8 {
        assert!(self.bits() <= i8::MAX as u64, "these flags are not in the low byte");
        self.bits() as i8
    }

    /// The flags with which a guest runs that wants `self`: forbidden bits are dropped, forced bits
    /// are set (spec/abi.md, "RFLAGS").
    #[must_use]
    pub const fn sanitised(self) -> Self {
        Self::from_bits_retain(self.bits() & Self::GUEST_ALLOWED.bits() | Self::GUEST_FIXED.bits())
    }

    /// Every RFLAGS value but those that SYSRETQ can give a guest: testing R11 against it finds
    /// RF, TF and all bits a guest may not have, reserved ones included.
    #[must_use]
    pub const fn sysret_obstacles() -> Self {
        Self::from_bits_retain(!(Self::GUEST_ALLOWED.bits() & !Self::NOT_BY_SYSRET.bits()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_flags_never_pass() {
        let wanted = RFlags::IOPL | RFlags::VM | RFlags::VIF | RFlags::VIP | RFlags::CF;
        assert_eq!(wanted.sanitised(), RFlags::GUEST_FIXED | RFlags::CF);
    }

    #[test]
    fn every_bit_is_passed_forced_or_dropped_as_the_abi_says() {
        for bit in 0..64 {
            let got = RFlags::from_bits_retain(1 << bit).sanitised().bits();
            assert_eq!(got, (1 << bit) & 0x25_4FD7 | 0x202, "bit {bit}");
        }
    }

    #[test]
    fn the_obstacles_to_sysret_are_all_bits_a_guest_may_not_have_and_rf_and_tf() {
        let obstacles = RFlags::sysret_obstacles().bits();
        for bit in 0..64 {
            let flag = 1_u64 << bit;
            let may_pass = flag & 0x25_4FD7 != 0 && flag != 1 << 8 && flag != 1 << 16;
            assert_eq!(obstacles & flag == 0, may_pass, "bit {bit}");
        }
    }
}
