//! Random guests, for the engines that run whole scenarios.

use std::ops::Range;

use switcher_gen::arch::{PagingMode, RFlags};
use switcher_gen::layout::Pvcs;
use switcher_gen::machine::Interpreter;
use switcher_gen::native::Machine;
use switcher_gen::scenario::{Mode, Places, Setup};

use crate::random::{Random, USER};

/// What generators ask of an engine.
pub(crate) trait Engine {
    fn setup(&self, mode: Mode) -> Setup;
    fn code(&self, mode: Mode) -> Range<u64>;
    fn paging(&self) -> PagingMode;
}

impl Engine for Machine {
    fn setup(&self, mode: Mode) -> Setup {
        self.setup(mode)
    }
    fn code(&self, mode: Mode) -> Range<u64> {
        self.code(mode)
    }
    fn paging(&self) -> PagingMode {
        self.image().variant().axes().paging
    }
}

impl Engine for Interpreter {
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
    pub(crate) fn coin(&mut self) -> bool {
        self.next() & 1 != 0
    }

    /// An address every CPU takes for a GS base.
    pub(crate) fn canonical(&mut self) -> u64 {
        PagingMode::FourLevel.canonicalize(self.next())
    }

    /// An address in the code of `mode`, a multiple of 4.
    pub(crate) fn place(&mut self, machine: &impl Engine, mode: Mode) -> u64 {
        machine.code(mode).start + 4 * self.below(Places::CODE_LEN as u64 / 4)
    }

    /// What another guest, or another CPU of this one, might have left.
    pub(crate) fn pvcs(&mut self) -> Pvcs {
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
    pub(crate) fn pvcs_to(&mut self, rip: u64, paging: PagingMode) -> Pvcs {
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
pub(crate) fn random_setup(
    random: &mut Random,
    machine: &impl Engine,
    mode: Mode,
    rip: u64,
) -> Setup {
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
pub(crate) fn random_umod(random: &mut Random, machine: &impl Engine) -> Setup {
    let rip = random.place(machine, Mode::Umod);
    let mut setup = random_setup(random, machine, Mode::Umod, rip);
    setup.pvcs = random.pvcs();
    setup
}

/// Enters smod at an ERETU that goes somewhere in umod.
pub(crate) fn random_smod(random: &mut Random, machine: &impl Engine) -> Setup {
    let eretu = random.place(machine, Mode::Smod);
    let mut setup = random_setup(random, machine, Mode::Smod, eretu);
    setup.extra.retu_rip = eretu + 2;
    let rip = random.place(machine, Mode::Umod);
    setup.pvcs = random.pvcs_to(rip, machine.paging());
    setup
}
