//! SYSCALL of 32-bit code, which not every CPU has.

use crate::case_host::{Platform, Setup, place};
use crate::expect::Expected;
use crate::program::{PROBE, SYSCALL};
use switcher_runtime::Mode;

/// A guest's SYSCALL of 32-bit code, and the two things that may come of it.
pub struct CompatSyscall {
    /// umod, in front of the SYSCALL.
    pub setup: Setup,
    /// The exit if the CPU has no such SYSCALL, as on Intel's CPUs.
    pub shut: Expected,
    /// The exit if the SYSCALL leads to the stub in CSTAR, which answers. QEMU's interpreter has
    /// the SYSCALL for every vendor.
    pub answered: Expected,
}

impl CompatSyscall {
    /// A SYSCALL of a guest with the registers of `setup`.
    #[must_use]
    pub fn new(setup: Setup, platform: &Platform) -> Self {
        /// What the stub answers: -ENOSYS as 32 bits.
        const ENOSYS: u64 = -38_i32 as u32 as u64;

        let mut setup = setup.with(Mode::Umod, place::TEXT32, &[SYSCALL, PROBE].concat());
        let regs = &mut setup.regs;
        regs.cs = platform.selectors.user32_cs().into();
        regs.rip = place::TEXT32;
        // What lies beyond 32 bits of these registers is not defined in 32-bit mode.
        for register in [
            &mut regs.rax,
            &mut regs.rbx,
            &mut regs.rcx,
            &mut regs.rdx,
            &mut regs.rsi,
            &mut regs.rdi,
            &mut regs.rbp,
            &mut regs.rsp,
        ] {
            *register &= u64::from(u32::MAX);
        }
        let shut = Expected::unchanged(&setup, Expected::UD);
        let mut answered = shut.clone();
        answered.regs.rax = ENOSYS;
        answered.regs.rip += SYSCALL.len() as u64;
        answered.regs.rcx = answered.regs.rip;
        answered.regs.r11 = answered.regs.eflags;
        Self { setup, shut, answered }
    }
}
