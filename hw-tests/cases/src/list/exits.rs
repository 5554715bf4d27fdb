//! SYSCALLs that must exit to the host: hypercalls, inhibitors, roots that are not prepared, ERETU
//! to other selectors.

use super::{MANY, SOME};
use crate::case_host::{Failure, Setup};
use crate::expect::Expected;
use crate::program::SYSCALL;
use crate::run::{Case, CaseRun};
use switcher_gen::Hazard;
use switcher_gen::layout::SwitchFlags;
use switcher_runtime::Mode;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a_syscall_of_smod_elsewhere_is_a_hypercall_with_all_registers",
        rows: &[Hazard::ModeConfusion, Hazard::Registers],
        body: hypercall,
    },
    Case {
        name: "every_inhibitor_bit_sends_both_direct_switches_to_the_host",
        rows: &[Hazard::ModeConfusion],
        body: inhibitors,
    },
    Case {
        name: "without_a_pvcs_no_direct_switch_is_made",
        rows: &[Hazard::ModeConfusion],
        body: no_pvcs,
    },
    Case {
        name: "without_the_other_modes_root_no_direct_switch_is_made",
        rows: &[Hazard::BadCr3],
        body: no_root,
    },
    Case {
        name: "eretu_to_other_selectors_is_left_to_the_host",
        rows: &[Hazard::AssumedSelectors],
        body: other_selectors,
    },
    Case {
        name: "a_syscall_next_to_the_eretu_address_is_a_hypercall",
        rows: &[Hazard::ModeConfusion],
        body: near_eretu,
    },
];

/// A guest about to execute the SYSCALL that would be a direct switch out of `mode`.
fn about_to_switch(run: &mut CaseRun<'_>, mode: Mode) -> Setup {
    let setup = run.setup(mode);
    let at = setup.regs.rip;
    setup.with(mode, at, SYSCALL)
}

/// The SYSCALL exits, with nothing changed.
fn exits(run: &mut CaseRun<'_>, setup: &Setup) -> Result<(), Failure> {
    let expected = Expected::syscall_exit(setup, setup.regs.rip);
    run.check(setup, &expected)
}

fn hypercall(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY {
        let setup = run.about_to(Mode::Smod, SYSCALL);
        exits(run, &setup)?;
    }
    Ok(())
}

fn inhibitors(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for mode in [Mode::Umod, Mode::Smod] {
        // Bits 0 and 1 are the mode, 2 and 11 follow from roots and PVCS and have their own cases.
        for bit in (3..64).filter(|bit| *bit != 11) {
            let mut setup = about_to_switch(run, mode);
            setup.inhibitors = SwitchFlags::from_bits_retain(1 << bit);
            exits(run, &setup)?;
        }
    }
    Ok(())
}

fn no_pvcs(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    never_switches(run, |setup| setup.pvcs_registered = false)
}

fn no_root(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    never_switches(run, |setup| setup.other_root = false)
}

/// With `change`, both direct switches exit.
fn never_switches(run: &mut CaseRun<'_>, change: fn(&mut Setup)) -> Result<(), Failure> {
    for mode in [Mode::Umod, Mode::Smod] {
        for _ in 0..SOME {
            let mut setup = about_to_switch(run, mode);
            change(&mut setup);
            exits(run, &setup)?;
        }
    }
    Ok(())
}

fn other_selectors(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    let selectors = run.platform.selectors;
    let (cs, ss) = (selectors.user_cs(), selectors.user_ds());
    let others = [
        (selectors.user32_cs(), ss),
        (cs, 0),
        (0, ss),
        (0, 0),
        (ss, cs),
        (cs & !3, ss & !3),
        (selectors.kernel_cs(), selectors.kernel_ds()),
        (cs | 0x100, ss),
        (cs, ss | 0x8000),
    ];
    for (cs, ss) in others {
        let mut setup = about_to_switch(run, Mode::Smod);
        setup.pvcs.user_cs = cs;
        setup.pvcs.user_ss = ss;
        exits(run, &setup)?;
    }
    Ok(())
}

fn near_eretu(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for bit in 0..64 {
        let mut setup = about_to_switch(run, Mode::Smod);
        setup.retu_rip ^= 1 << bit;
        exits(run, &setup)?;
    }
    Ok(())
}
