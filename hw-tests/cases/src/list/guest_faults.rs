//! Events of a guest: none of its flags reach the host, and SYSENTER and 32-bit SYSCALL are no way
//! into it.

use super::SOME;
use crate::case_host::{Entries, Failure};
use crate::compat::CompatSyscall;
use crate::expect::Expected;
use crate::program::PROBE;
use crate::run::{Case, CaseRun};
use alloc::format;
use switcher_gen::Hazard;
use switcher_gen::arch::{RFlags, Vendor};
use switcher_gen::program;
use switcher_runtime::Mode;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "ac_and_df_of_a_faulting_guest_do_not_reach_the_host",
        rows: &[Hazard::FlagsInHost],
        body: ac_and_df,
    },
    Case { name: "sysenter_is_shut", rows: &[Hazard::OpenEntries], body: sysenter },
    Case {
        name: "syscall_and_its_like_lead_where_the_abi_says",
        rows: &[Hazard::NestedTask, Hazard::FlagsInHost, Hazard::OpenEntries],
        body: entries,
    },
    Case {
        name: "a_32_bit_syscall_is_answered_or_shut",
        rows: &[Hazard::OpenEntries],
        body: compat_syscall,
    },
    Case { name: "io_ports_are_not_the_guests", rows: &[Hazard::PrivilegedFlags], body: io_ports },
    Case {
        name: "the_host_survives_thousands_of_entries_untouched",
        rows: &[Hazard::SysretSs, Hazard::Registers],
        body: thousands,
    },
];

fn ac_and_df(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for flags in [RFlags::AC, RFlags::DF, RFlags::AC | RFlags::DF, RFlags::all()] {
        for mode in [Mode::Smod, Mode::Umod] {
            for _ in 0..SOME {
                let mut setup = run.about_to(mode, PROBE);
                setup.regs.eflags |= (flags - RFlags::TF - RFlags::RF).bits();
                // Every run also looks at the host's flags.
                let expected = Expected::unchanged(&setup, Expected::UD);
                run.check(&setup, &expected)?;
            }
        }
    }
    Ok(())
}

fn sysenter(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    // dynasm has it in 32-bit mode only.
    const SYSENTER: &[u8] = program!(; .bytes &[0x0F, 0x34]);
    // Intel: SYSENTER_CS is 0. AMD: there is no SYSENTER in long mode; an emulator that has it all
    // the same (Bochs 2.7) must find SYSENTER_CS 0.
    let exits: &[_] = match run.platform.vendor {
        Vendor::Intel => &[Expected::general_protection(0)],
        Vendor::Amd => &[Expected::UD, Expected::general_protection(0)],
    };
    for mode in [Mode::Smod, Mode::Umod] {
        for _ in 0..SOME {
            let setup = run.about_to(mode, SYSENTER);
            let outcome = run.enter(&setup)?;
            let exit = exits.iter().find(|exit| **exit == outcome.exit).unwrap_or(&exits[0]);
            Expected::unchanged(&setup, *exit).compare(&setup, &outcome)?;
        }
    }
    Ok(())
}

fn thousands(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..5000 {
        let mode = if run.rng.bool() { Mode::Smod } else { Mode::Umod };
        let setup = run.about_to(mode, PROBE);
        let expected = Expected::unchanged(&setup, Expected::UD);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn entries(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    // spec/abi.md, in numbers: the code must not be compared with its own constants.
    const CLEARED: [(&str, u64); 7] = [
        ("TF", 1 << 8),
        ("IF", 1 << 9),
        ("DF", 1 << 10),
        ("IOPL", 3 << 12),
        ("NT", 1 << 14),
        ("RF", 1 << 16),
        ("AC", 1 << 18),
    ];
    const STAR: u64 = 0x0023_0010_0000_0000;

    let entries = run.entries()?;
    if let Some((flag, _)) = CLEARED.into_iter().find(|(_, bits)| entries.sfmask & bits != *bits) {
        return Err(Failure(format!("SYSCALL does not clear {flag}")));
    }
    let right = Entries {
        star: STAR,
        sfmask: entries.sfmask,
        sysenter_cs: 0,
        lstar_is_the_entry: true,
        cstar_is_the_stub: true,
        enabled: true,
    };
    if entries != right {
        return Err(Failure(format!("{entries:x?}, not {right:x?}")));
    }
    let setup = run.about_to(Mode::Umod, PROBE);
    let expected = Expected::unchanged(&setup, Expected::UD);
    run.check(&setup, &expected)
}

fn io_ports(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    const IN: &[u8] = program!(; in al, dx);
    for port in [0x20, 0x60, 0x64, 0x92, 0xCF8, 0x3F8, 0xFFFF] {
        for mode in [Mode::Smod, Mode::Umod] {
            let mut setup = run.about_to(mode, IN);
            setup.regs.rdx = port;
            let expected = Expected::unchanged(&setup, Expected::general_protection(0));
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn compat_syscall(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..SOME {
        let setup = run.setup(Mode::Umod);
        let CompatSyscall { setup, shut, answered } = CompatSyscall::new(setup, &run.platform);
        let outcome = run.enter(&setup)?;
        let intel = run.platform.vendor == Vendor::Intel;
        // An emulator that has it all the same must find the stub.
        let expected = if intel && outcome.regs.rip == setup.regs.rip { shut } else { answered };
        expected.compare(&setup, &outcome)?;
    }
    Ok(())
}
