//! Every way through the switcher, from the host's call to its return.

use alloc::vec::Vec;

use hw_cases::{CaseHost, CompatSyscall, Expected, Setup, place};
use switcher_runtime::Mode;
use switcher_runtime::switcher_gen::arch::{RFlags, Vendor};
use switcher_runtime::switcher_gen::asm::Label;

use crate::case_host::BareMetal;
use crate::programs::{IRETQ, PROBE, SYSCALL, SYSRETQ};
use crate::setup::setup;

/// A way through the switcher, from the host's call to its return.
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) setup: Setup,
    /// The two outcomes that are right.
    pub(crate) expected: [Expected; 2],
    /// The labels that the path passes, each with the least number of times.
    pub(crate) by: &'static [(Label, u64)],
    /// An instruction that the path executes, and the least number of times: each variant has its
    /// own SYSRETQs.
    pub(crate) executes: (&'static [u8], u64),
    /// The least number of instructions in the path.
    pub(crate) least: u64,
    /// The addresses of the path's instructions, once they have been found. Later runs set
    /// breakpoints only there.
    pub(crate) met: Vec<u64>,
}

/// An entry and an exit together have at least this many instructions.
const LEAST: u64 = 80;

impl Path {
    fn new(
        name: &'static str,
        setup: Setup,
        expected: Expected,
        by: &'static [(Label, u64)],
        sysretqs: u64,
    ) -> Self {
        let executes = (SYSRETQ, sysretqs);
        let expected = [expected.clone(), expected];
        Self { name, setup, expected, by, executes, least: LEAST, met: Vec::new() }
    }

    /// This path with another RSP in both modes.
    pub(crate) fn with_rsp(&self, rsp: u64) -> Self {
        let mut path = self.clone();
        let Setup { regs, pvcs, smod_rsp, .. } = &mut path.setup;
        (regs.rsp, pvcs.rsp, *smod_rsp) = (rsp, rsp, rsp);
        for Expected { regs, pvcs, smod_rsp, .. } in &mut path.expected {
            (regs.rsp, pvcs.rsp, *smod_rsp) = (rsp, rsp, rsp);
        }
        path
    }

    /// A short path that ends an event in ring 0 by IRETQ.
    pub(crate) fn of_event(
        name: &'static str,
        setup: Setup,
        expected: Expected,
        by: &'static [(Label, u64)],
    ) -> Self {
        /// The handling of an event has at least this many instructions.
        const LEAST: u64 = 25;
        let executes = (IRETQ, 1);
        Self { executes, least: LEAST, ..Self::new(name, setup, expected, by, 0) }
    }
}

/// Every path without a fault of the switcher's.
pub(crate) fn paths(host: &BareMetal<'_>) -> [Path; 7] {
    let platform = host.platform();
    let mut rng = fastrand::Rng::with_seed(8);
    let fixed = RFlags::GUEST_FIXED.bits();

    let to_smod =
        setup(host, &mut rng, Mode::Umod, SYSCALL).with(Mode::Smod, place::SMOD_ENTRY, PROBE);
    let in_smod = Expected::to_smod(&to_smod, &platform, place::UMOD_CODE);

    let mut eretu = || {
        let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
            .with(Mode::Smod, place::ERETU, SYSCALL)
            .with(Mode::Umod, place::UMOD_CODE, PROBE);
        setup.pvcs.eflags = fixed as u32;
        setup
    };
    let by_iretq = eretu();
    let mut by_sysretq = eretu();
    (by_sysretq.pvcs.rcx, by_sysretq.pvcs.r11) = (by_sysretq.pvcs.rip, fixed);
    let umod_by_iretq = Expected::to_umod(&by_iretq, &platform);
    let umod_by_sysretq = Expected::to_umod(&by_sysretq, &platform);

    let hypercall = setup(host, &mut rng, Mode::Smod, SYSCALL);
    let to_host = Expected::syscall_exit(&hypercall, place::UMOD_CODE);

    let mut entered = setup(host, &mut rng, Mode::Umod, PROBE);
    entered.regs.eflags = fixed;
    (entered.regs.rcx, entered.regs.r11) = (entered.regs.rip, fixed);
    let probed = Expected::unchanged(&entered, Expected::UD);

    let mut refused = setup(host, &mut rng, Mode::Umod, PROBE);
    refused.regs.rip = 1 << 63;
    let faulted = Expected::unchanged(&refused, Expected::general_protection(0));

    let compat = Setup::random(&mut rng, &platform, Mode::Umod);
    let CompatSyscall { setup: compat, shut, answered } = CompatSyscall::new(compat, &platform);
    // Intel has no SYSCALL in 32-bit mode; QEMU's interpreter has it under either name.
    let shut = if platform.vendor == Vendor::Intel { shut } else { answered.clone() };

    use Label::{EnterGuest, ExitSyscall, Iretq, ReturnFromGuest, Syscall64};
    [
        Path::new(
            "umod's SYSCALL",
            to_smod,
            in_smod,
            &[(EnterGuest, 1), (Syscall64, 1), (ReturnFromGuest, 1)],
            1,
        ),
        Path::new("ERETU by IRETQ", by_iretq, umod_by_iretq, &[(Syscall64, 1), (Iretq, 2)], 0),
        Path::new("ERETU by SYSRETQ", by_sysretq, umod_by_sysretq, &[(Syscall64, 1)], 1),
        Path::new("a hypercall", hypercall, to_host, &[(Syscall64, 1), (ExitSyscall, 1)], 0),
        Path::new("an entry by SYSRETQ", entered, probed, &[(ReturnFromGuest, 1)], 1),
        Path::new("an entry that IRETQ refuses", refused, faulted, &[(Iretq, 1)], 0),
        Path {
            name: "a 32-bit SYSCALL",
            setup: compat,
            expected: [shut, answered],
            by: &[(EnterGuest, 1), (ReturnFromGuest, 1)],
            executes: (SYSRETQ, 0),
            least: LEAST,
            met: Vec::new(),
        },
    ]
}
