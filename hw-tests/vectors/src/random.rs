//! Random states, the same on every run.

use switcher_gen::arch::{PagingMode, RFlags, Selectors};
use switcher_gen::layout::{PtRegs, Pvcs};

/// The selectors of a guest.
pub const USER: Selectors = Selectors::DEFAULT;

/// splitmix64: short, and the same states on every run.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// Any number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below another.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Flags a guest may have, without those that trap.
    pub fn flags(&mut self) -> u64 {
        let wanted = RFlags::from_bits_retain(self.next());
        wanted.sanitised().difference(RFlags::NOT_BY_SYSRET).bits()
    }

    /// An RSP: anything at all, or what a host would least like.
    pub fn rsp(&mut self) -> u64 {
        let local = 0_u64;
        let own_stack = std::ptr::from_ref(&local) as u64;
        let nasty = [0, 1, 8, u64::MAX, 1 << 47, (1 << 47) - 8, own_stack, !own_stack];
        match self.below(2 * nasty.len() as u64) {
            n if n < nasty.len() as u64 => nasty[n as usize],
            _ => self.next(),
        }
    }

    /// Registers of a guest, anything at all.
    pub fn registers(&mut self) -> PtRegs {
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

    /// Either.
    pub fn coin(&mut self) -> bool {
        self.next() & 1 != 0
    }

    /// An address every CPU takes for a GS base.
    pub fn canonical(&mut self) -> u64 {
        PagingMode::FourLevel.canonicalize(self.next())
    }

    /// What another guest, or another CPU of this one, might have left.
    pub fn pvcs(&mut self) -> Pvcs {
        let mut pvcs = Pvcs::default();
        pvcs.event_flags = self.next();
        pvcs.event_errcode = self.next() as u32;
        pvcs.event_vector = self.next() as u32;
        pvcs.cr2 = self.next();
        pvcs.user_cs = self.next() as u16;
        pvcs.user_ss = self.next() as u16;
        pvcs.user_gsbase = self.next();
        pvcs.eflags = self.next() as u32;
        pvcs.pkru = self.next() as u32;
        pvcs.rip = self.next();
        pvcs.rsp = self.next();
        pvcs.rcx = self.next();
        pvcs.r11 = self.next();
        pvcs
    }

    /// A PVCS from which ERETU goes to `rip`.
    pub fn pvcs_to(&mut self, rip: u64, paging: PagingMode) -> Pvcs {
        let mut pvcs = self.pvcs();
        pvcs.user_cs = USER.user_cs();
        pvcs.user_ss = USER.user_ds();
        pvcs.rip = rip;
        pvcs.rsp = self.rsp();
        // Canonical for this CPU in the bits that count, anything in those that do not.
        let ignored = !0 << paging.address_bits();
        pvcs.user_gsbase = self.canonical() & !ignored | self.next() & ignored;
        // Each condition of SYSRETQ alone and with the others.
        pvcs.eflags = if self.coin() { self.flags() as u32 } else { self.next() as u32 };
        if self.coin() {
            pvcs.rcx = rip;
        }
        if self.coin() {
            let wanted = RFlags::from_bits_retain(pvcs.eflags.into());
            pvcs.r11 = wanted.sanitised().bits();
        }
        pvcs
    }
}

/// Interesting numbers more often than others.
pub fn operand(random: &mut Random) -> u64 {
    const NASTY: [u64; 16] = [
        0,
        1,
        2,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        1 << 32,
        u64::MAX >> 1,
        1 << 63,
        u64::MAX,
    ];
    match random.below(3) {
        0 => NASTY[random.below(16) as usize],
        1 => NASTY[random.below(16) as usize].wrapping_add(random.below(5)).wrapping_sub(2),
        _ => random.next(),
    }
}

/// Operands in all registers, with what forms take for pointers and an index into a page at `data`.
#[must_use]
pub fn operands(random: &mut Random, data: u64) -> PtRegs {
    let mut any = || operand(random);
    PtRegs {
        rax: any(),
        rcx: any(),
        rdx: any(),
        rbx: any(),
        rbp: any(),
        r8: any(),
        r9: any(),
        r10: any(),
        r11: any(),
        r12: any(),
        r13: any(),
        r14: any(),
        r15: any(),
        // A pointer, an index, a stack.
        rdi: data + 0x100,
        rsi: random.below(16) * 8,
        rsp: data + 0x800,
        ..random.registers()
    }
}
