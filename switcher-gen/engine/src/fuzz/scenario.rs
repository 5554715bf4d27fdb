//! Random guests, for engines that run whole scenarios: registers, flags, a PVCS, where the guest
//! is and where it goes. Equal seeds give equal guests, except for addresses of this process.

use std::ops::Range;

use crate::Interpreter;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use crate::native::Machine;
use crate::scenario::{Mode, Places, Setup};
use switcher_gen::arch::{PagingMode, RFlags, Selectors};
use switcher_gen::layout::{PtRegs, Pvcs};

/// Selectors of a guest.
pub const USER: Selectors = Selectors::DEFAULT;

/// splitmix64: short, and the same states on every run.
pub struct Random(pub u64);

impl Random {
    /// The random numbers of one case.
    #[must_use]
    pub fn of_case(seed: u64, case: u64) -> Self {
        // The two are mixed and not added: otherwise neighbouring cases would have the same
        // numbers, shifted.
        Self(Self(seed).next() ^ Self(!case).next())
    }

    /// A random word.
    #[expect(clippy::should_implement_trait, reason = "there is no end, so no need of an Option")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Flags a guest may have, without those that trap.
    pub fn flags(&mut self) -> u64 {
        let wanted = RFlags::from_bits_retain(self.next());
        wanted.sanitised().difference(RFlags::NOT_BY_SYSRET).bits()
    }

    /// An RSP: a random word, or one of those that harm a careless host most.
    pub fn rsp(&mut self) -> u64 {
        let local = 0_u64;
        let own_stack = std::ptr::from_ref(&local) as u64;
        let nasty = [0, 1, 8, u64::MAX, 1 << 47, (1 << 47) - 8, own_stack, !own_stack];
        match self.below(2 * nasty.len() as u64) {
            n if n < nasty.len() as u64 => nasty[n as usize],
            _ => self.next(),
        }
    }

    /// Registers at random, and the selectors of 64-bit code; RIP and the flags are zero.
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
}

/// What generators ask of an engine.
pub trait FuzzEngine {
    /// Everything in order: see [`Setup::new`].
    fn setup(&self, mode: Mode) -> Setup;
    /// Where `mode` has its code.
    fn code(&self, mode: Mode) -> Range<u64>;
    /// The paging mode of the image, which says which addresses are canonical.
    fn paging(&self) -> PagingMode;
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
impl FuzzEngine for Machine {
    fn setup(&self, mode: Mode) -> Setup {
        self.setup(mode)
    }
    fn code(&self, mode: Mode) -> Range<u64> {
        self.code(mode)
    }
    fn paging(&self) -> PagingMode {
        self.image().variant().paging()
    }
}

impl FuzzEngine for Interpreter {
    fn setup(&self, mode: Mode) -> Setup {
        self.setup(mode)
    }
    fn code(&self, mode: Mode) -> Range<u64> {
        self.code(mode)
    }
    fn paging(&self) -> PagingMode {
        self.model().paging
    }
}

impl Random {
    /// A random bit.
    pub fn coin(&mut self) -> bool {
        self.next() & 1 != 0
    }

    /// An address that every CPU accepts as a GS base.
    pub fn canonical(&mut self) -> u64 {
        PagingMode::FourLevel.canonicalize(self.next())
    }

    /// An address in the code of `mode`, a multiple of 4.
    pub fn place(&mut self, machine: &impl FuzzEngine, mode: Mode) -> u64 {
        machine.code(mode).start + 4 * self.below(Places::CODE_LEN as u64 / 4)
    }

    /// A random PVCS, as another guest, or another CPU of this guest, might have left it.
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

/// A setup that enters `mode` with random registers, at `rip`.
pub fn random_setup(random: &mut Random, machine: &impl FuzzEngine, mode: Mode, rip: u64) -> Setup {
    let mut setup = machine.setup(mode);
    setup.frame = random.registers();
    setup.frame.rip = rip;
    setup.frame.eflags = random.flags();
    if random.coin() {
        setup.frame.rcx = rip;
        setup.frame.r11 = setup.frame.eflags;
    }
    setup.gs_base = random.canonical();
    setup.extra.smod_gsbase = random.canonical();
    setup.extra.smod_rsp = random.rsp();
    setup.extra.smod_entry = random.place(machine, Mode::Smod);
    setup.count = random.below(8) == 0;
    setup
}

/// Enters umod at a SYSCALL.
pub fn random_umod(random: &mut Random, machine: &impl FuzzEngine) -> Setup {
    let rip = random.place(machine, Mode::Umod);
    let mut setup = random_setup(random, machine, Mode::Umod, rip);
    setup.pvcs = random.pvcs();
    setup
}

/// Enters smod at an ERETU that goes somewhere in umod.
pub fn random_smod(random: &mut Random, machine: &impl FuzzEngine) -> Setup {
    let eretu = random.place(machine, Mode::Smod);
    let mut setup = random_setup(random, machine, Mode::Smod, eretu);
    setup.extra.retu_rip = eretu + 2;
    let rip = random.place(machine, Mode::Umod);
    setup.pvcs = random.pvcs_to(rip, machine.paging());
    setup
}
