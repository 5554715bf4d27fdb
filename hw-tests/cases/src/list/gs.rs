//! GS bases: hostile ones in the PVCS, and those a guest changes itself.

use super::{MANY, SOME};
use crate::case_host::{Failure, place};
use crate::expect::Expected;
use crate::program::{PROBE, SYSCALL};
use crate::run::{Case, CaseRun};
use switcher_gen::{Hazard, program};
use switcher_runtime::Mode;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a_user_gsbase_that_is_no_address_is_made_one",
        rows: &[Hazard::WrgsbaseFault],
        body: hostile_gsbase,
    },
    Case {
        name: "wrgsbase_in_umod_shows_in_the_pvcs_after_syscall",
        rows: &[Hazard::StaleGsBase],
        body: wrgsbase_then_syscall,
    },
    Case {
        name: "wrgsbase_in_either_mode_shows_after_an_event",
        rows: &[Hazard::StaleGsBase, Hazard::SwapgsParity],
        body: wrgsbase_then_event,
    },
    Case {
        name: "each_mode_reads_its_own_gs_base",
        rows: &[Hazard::StaleGsBase, Hazard::SwapgsParity],
        body: rdgsbase,
    },
];

const WRGSBASE: &[u8] = program!(; wrgsbase rax);
const RDGSBASE: &[u8] = program!(; rdgsbase rax);

fn hostile_gsbase(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for bit in 0..64 {
        for base in [1 << bit, u64::MAX << bit, u64::MAX >> bit, !(1 << bit)] {
            let mut setup = run.eretu_to(PROBE);
            setup.pvcs.user_gsbase = base;
            let expected = Expected::to_umod(&setup, &run.platform);
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn wrgsbase_then_syscall(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY / 4 {
        let mut setup = run.about_to(Mode::Umod, &[WRGSBASE, SYSCALL].concat()).with(
            Mode::Smod,
            place::SMOD_ENTRY,
            PROBE,
        );
        setup.regs.rax = run.platform.paging.canonicalize(setup.regs.rax);
        let at = place::UMOD_CODE + WRGSBASE.len() as u64;
        let mut expected = Expected::to_smod(&setup, &run.platform, at);
        expected.pvcs.user_gsbase = setup.regs.rax;
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn wrgsbase_then_event(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for mode in [Mode::Smod, Mode::Umod] {
        for _ in 0..SOME {
            let code = [WRGSBASE, PROBE].concat();
            let mut setup = run.about_to(mode, &code);
            setup.regs.rax = run.platform.paging.canonicalize(setup.regs.rax);
            let mut expected = Expected::unchanged(&setup, Expected::UD);
            expected.regs.rip += WRGSBASE.len() as u64;
            expected.gs_base = setup.regs.rax;
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn rdgsbase(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    let code = [RDGSBASE, PROBE].concat();
    for _ in 0..SOME {
        let setup = run.syscall_to(&code);
        let mut expected = Expected::to_smod(&setup, &run.platform, place::UMOD_CODE);
        expected.regs.rip += RDGSBASE.len() as u64;
        expected.regs.rax = setup.smod_gsbase;
        run.check(&setup, &expected)?;

        let mut setup = run.eretu_to(&code);
        setup.pvcs.eflags &= !0x1_0100;
        let mut expected = Expected::to_umod(&setup, &run.platform);
        expected.regs.rip += RDGSBASE.len() as u64;
        expected.regs.rax = expected.gs_base;
        run.check(&setup, &expected)?;
    }
    Ok(())
}
