//! Random guests, for the engines that run whole scenarios.

use std::ops::Range;

use switcher_gen::arch::PagingMode;
use switcher_gen::machine::Interpreter;
use switcher_gen::native::Machine;
use switcher_gen::scenario::{Mode, Places, Setup};

use hw_vectors::random::Random;

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

/// An address in the code of `mode`, a multiple of 4.
pub(crate) fn place(random: &mut Random, machine: &impl Engine, mode: Mode) -> u64 {
    machine.code(mode).start + 4 * random.below(Places::CODE_LEN as u64 / 4)
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
    setup.extra.smod_entry = place(random, machine, Mode::Smod);
    setup.count = random.below(8) == 0;
    setup
}

/// Enters umod at a SYSCALL.
pub(crate) fn random_umod(random: &mut Random, machine: &impl Engine) -> Setup {
    let rip = place(random, machine, Mode::Umod);
    let mut setup = random_setup(random, machine, Mode::Umod, rip);
    setup.pvcs = random.pvcs();
    setup
}

/// Enters smod at an ERETU that goes somewhere in umod.
pub(crate) fn random_smod(random: &mut Random, machine: &impl Engine) -> Setup {
    let eretu = place(random, machine, Mode::Smod);
    let mut setup = random_setup(random, machine, Mode::Smod, eretu);
    setup.extra.retu_rip = eretu + 2;
    let rip = place(random, machine, Mode::Umod);
    setup.pvcs = random.pvcs_to(rip, machine.paging());
    setup
}
