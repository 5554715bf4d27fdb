//! Random registers of a guest.

use switcher_gen::arch::{RFlags, Selectors};
use switcher_gen::layout::PtRegs;

pub(crate) const USER: Selectors = Selectors::DEFAULT;

/// splitmix64: short, and the same states on every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Flags a guest may have, without those that trap.
    pub(crate) fn flags(&mut self) -> u64 {
        let wanted = RFlags::from_bits_retain(self.next());
        wanted.sanitised().difference(RFlags::NOT_BY_SYSRET).bits()
    }

    /// An RSP: anything at all, or what a host would least like.
    pub(crate) fn rsp(&mut self) -> u64 {
        let local = 0_u64;
        let own_stack = std::ptr::from_ref(&local) as u64;
        let nasty = [0, 1, 8, u64::MAX, 1 << 47, (1 << 47) - 8, own_stack, !own_stack];
        match self.below(2 * nasty.len() as u64) {
            n if n < nasty.len() as u64 => nasty[n as usize],
            _ => self.next(),
        }
    }

    pub(crate) fn registers(&mut self) -> PtRegs {
        PtRegs {
            r15: self.next(),
            r14: self.next(),
            r13: self.next(),
            r12: self.next(),
            rbp: self.next(),
            rbx: self.next(),
            r11: self.next(),
            r10: self.next(),
            r9: self.next(),
            r8: self.next(),
            rax: self.next(),
            rcx: self.next(),
            rdx: self.next(),
            rsi: self.next(),
            rdi: self.next(),
            rsp: self.rsp(),
            cs: USER.user_cs().into(),
            ss: USER.user_ds().into(),
            ..PtRegs::default()
        }
    }
}
