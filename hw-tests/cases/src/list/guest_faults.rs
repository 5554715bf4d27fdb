//! Events of a guest: none of its flags reach the host, and the doors beside SYSCALL are shut.

use super::SOME;
use super::code::PROBE;
use crate::expect::{Expected, Failure};
use crate::run::{Case, Run};
use crate::world::place;
use switcher_gen::arch::{RFlags, Vendor};
use switcher_runtime::Mode;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ac_and_df_of_a_faulting_guest_do_not_reach_the_host",
        rows: &[16],
        body: ac_and_df,
    },
    Case { name: "sysenter_is_shut", rows: &[17], body: sysenter },
    Case { name: "the_host_survives_thousands_of_entries_untouched", rows: &[27], body: thousands },
];

fn ac_and_df(run: &mut Run<'_>) -> Result<(), Failure> {
    for flags in [RFlags::AC, RFlags::DF, RFlags::AC | RFlags::DF, RFlags::all()] {
        for mode in [Mode::Smod, Mode::Umod] {
            for _ in 0..SOME {
                let mut setup = run.setup(mode).with(mode, place::UMOD_CODE, PROBE);
                setup.regs.rip = place::UMOD_CODE;
                setup.regs.eflags |= (flags - RFlags::TF - RFlags::RF).bits();
                // Every run also looks at the host's flags.
                let expected = Expected::unchanged(&setup, Expected::UD);
                run.check(&setup, &expected)?;
            }
        }
    }
    Ok(())
}

fn sysenter(run: &mut Run<'_>) -> Result<(), Failure> {
    /// SYSENTER.
    const SYSENTER: &[u8] = &[0x0F, 0x34];
    // Intel: SYSENTER_CS is 0. AMD: there is no SYSENTER in long mode; an emulator that has it all
    // the same (Bochs 2.7) must find SYSENTER_CS 0.
    let exits: &[_] = match run.platform.vendor {
        Vendor::Intel => &[Expected::general_protection(0)],
        Vendor::Amd => &[Expected::UD, Expected::general_protection(0)],
    };
    for mode in [Mode::Smod, Mode::Umod] {
        for _ in 0..SOME {
            let mut setup = run.setup(mode).with(mode, place::UMOD_CODE, SYSENTER);
            setup.regs.rip = place::UMOD_CODE;
            let outcome = run.enter(&setup);
            let exit = exits.iter().find(|exit| **exit == outcome.exit).unwrap_or(&exits[0]);
            Expected::unchanged(&setup, *exit).compare(&setup, &outcome)?;
        }
    }
    Ok(())
}

fn thousands(run: &mut Run<'_>) -> Result<(), Failure> {
    for _ in 0..5000 {
        let mode = if run.rng.bool() { Mode::Smod } else { Mode::Umod };
        let mut setup = run.setup(mode).with(mode, place::UMOD_CODE, PROBE);
        setup.regs.rip = place::UMOD_CODE;
        let expected = Expected::unchanged(&setup, Expected::UD);
        run.check(&setup, &expected)?;
    }
    Ok(())
}
