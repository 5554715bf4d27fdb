//! Direct switches between the modes, both ways, with random state.

use super::{MANY, SOME};
use crate::case_host::{Failure, Setup, place};
use crate::expect::Expected;
use crate::program::{PROBE, SYSCALL, SYSCALL_PROBE, SYSCALLS};
use crate::run::{Case, CaseRun};
use switcher_gen::Hazard;
use switcher_gen::arch::RFlags;
use switcher_gen::layout::SwitchFlags;
use switcher_gen::program;
use switcher_runtime::Mode;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "umod_syscall_enters_smod_with_every_register_as_specified",
        rows: &[Hazard::StaleGsBase, Hazard::SwapgsParity, Hazard::Registers],
        body: umod_syscall,
    },
    Case {
        name: "eretu_enters_umod_with_every_register_from_the_pvcs",
        rows: &[
            Hazard::RcxOnIret,
            Hazard::WrgsbaseFault,
            Hazard::SwapgsParity,
            Hazard::PrivilegedFlags,
            Hazard::Registers,
        ],
        body: eretu,
    },
    Case {
        name: "eretu_by_sysret_enters_umod_exactly_as_by_iret",
        rows: &[Hazard::RcxOnIret, Hazard::SwapgsParity, Hazard::Registers],
        body: eretu_by_sysret,
    },
    Case {
        name: "a_system_call_and_its_return_change_only_rcx_and_r11",
        rows: &[Hazard::StaleGsBase, Hazard::ModeConfusion, Hazard::Registers],
        body: round_trip,
    },
    Case {
        name: "ten_thousand_round_trips_in_one_entry_keep_every_register",
        rows: &[Hazard::ModeConfusion, Hazard::Registers],
        body: long_round_trips,
    },
    Case {
        name: "umod_syscall_at_the_eretu_address_is_a_plain_syscall",
        rows: &[Hazard::ModeConfusion],
        body: umod_syscall_at_eretu,
    },
    Case {
        name: "no_path_depends_on_where_the_guests_rsp_points",
        rows: &[Hazard::Registers],
        body: rsp_anywhere,
    },
    Case {
        name: "what_umod_writes_to_its_pkru_is_umods_alone",
        rows: &[Hazard::Registers],
        body: pkru,
    },
    Case {
        name: "smod_rsp_is_saved_by_eretu_and_loaded_by_the_next_syscall",
        rows: &[Hazard::Registers],
        body: smod_rsp,
    },
];

fn umod_syscall(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY {
        let setup = run.syscall_to(PROBE);
        let expected = Expected::to_smod(&setup, &run.platform, place::UMOD_CODE);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn eretu(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY {
        let setup = run.eretu_to(PROBE);
        let expected = Expected::to_umod(&setup, &run.platform);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn eretu_by_sysret(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY {
        let mut setup = run.eretu_to(PROBE);
        let wanted = RFlags::from_bits_retain(setup.pvcs.eflags.into());
        let flags = wanted.sanitised() - RFlags::NOT_BY_SYSRET;
        setup.pvcs.eflags = flags.bits() as u32;
        setup.pvcs.r11 = flags.bits();
        setup.pvcs.rcx = setup.pvcs.rip;
        let expected = Expected::to_umod(&setup, &run.platform);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn round_trip(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY {
        // smod's first instruction is ERETU.
        let setup = run.round_trip(SYSCALL_PROBE);
        let there = Expected::to_smod(&setup, &run.platform, place::UMOD_CODE);
        let mut back = Expected::unchanged(&setup, Expected::UD);
        back.regs.rip = place::UMOD_CODE + 2;
        back.regs.rcx = back.regs.rip;
        back.regs.r11 = back.regs.eflags;
        back.pvcs = there.pvcs;
        run.check(&setup, &back)?;
    }
    Ok(())
}

fn long_round_trips(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    const ROUNDS: u64 = 10_000;

    let mut setup = run.round_trip(SYSCALLS);
    setup.regs.rbx = ROUNDS;
    let outcome = run.enter(&setup)?;

    // The flags are those of the last DEC (ZF, PF; CF untouched), R11 and the PVCS have those of
    // the SYSCALL before it: of the DEC to 1, unless there was only one round.
    let arithmetic = RFlags::PF | RFlags::AF | RFlags::ZF | RFlags::SF | RFlags::OF;
    let before = RFlags::from_bits_retain(setup.regs.eflags) - arithmetic;
    let after = before | RFlags::ZF | RFlags::PF;
    let mut expected = Expected::to_smod(&setup, &run.platform, place::UMOD_CODE);
    expected.pvcs.eflags = before.bits() as u32;
    expected.pvcs.r11 = before.bits();
    expected.mode = Mode::Umod;
    expected.gs_base = setup.gs_base;
    // smod returns at once to what umod had.
    expected.pkru = setup.pkru;
    expected.regs = setup.regs;
    expected.regs.rbx = 0;
    expected.regs.rip = place::UMOD_CODE + (SYSCALLS.len() - PROBE.len()) as u64;
    expected.regs.rcx = place::UMOD_CODE + 2;
    expected.regs.r11 = before.bits();
    expected.regs.eflags = after.bits();
    expected.compare(&setup, &outcome)
}

fn umod_syscall_at_eretu(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..SOME {
        let mut setup = run.setup(Mode::Umod).with(Mode::Umod, place::ERETU, SYSCALL).with(
            Mode::Smod,
            place::SMOD_ENTRY,
            PROBE,
        );
        setup.regs.rip = place::ERETU;
        let expected = Expected::to_smod(&setup, &run.platform, place::ERETU);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

/// Where there are no protection keys, the switcher leaves PVCS.pkru alone: all other cases say so.
fn pkru(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    const WRITE: &[u8] = program!(; xor ecx, ecx ; xor edx, edx ; wrpkru ; syscall);

    for _ in 0..SOME {
        // From any PKRU, or from smod's, so that only what umod writes differs.
        for is_smods in [false, true] {
            let code = if run.platform.pku { WRITE } else { SYSCALL };
            let mut setup = run.setup(Mode::Umod).with(Mode::Umod, place::UMOD_CODE, code);
            setup = setup.with(Mode::Smod, place::SMOD_ENTRY, PROBE);
            if is_smods {
                setup.pkru = setup.smod_pkru;
            }
            let written = run.rng.u32(..) & Setup::PKRU;
            let mut before = setup.clone();
            if run.platform.pku {
                setup.regs.rax = written.into();
                before.regs.rax = written.into();
                (before.regs.rcx, before.regs.rdx) = (0, 0);
                before.pkru = written;
                // What XOR leaves.
                let arithmetic = RFlags::CF | RFlags::AF | RFlags::SF | RFlags::OF;
                let flags = RFlags::from_bits_retain(setup.regs.eflags) - arithmetic;
                before.regs.eflags = (flags | RFlags::ZF | RFlags::PF).bits();
            }
            let at = place::UMOD_CODE + code.len() as u64 - SYSCALL.len() as u64;
            let expected = Expected::to_smod(&before, &run.platform, at);
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn smod_rsp(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..SOME {
        // smod: ERETU. umod: SYSCALL. smod again: the probe, on the stack ERETU was executed on.
        let mut setup = run.eretu_to(SYSCALL).with(Mode::Smod, place::SMOD_ENTRY, PROBE);
        setup.pvcs.eflags &= !(RFlags::NOT_BY_SYSRET.bits() as u32);
        let umod = Expected::to_umod(&setup, &run.platform);
        let mut in_umod = setup.clone();
        in_umod.regs = umod.regs;
        in_umod.gs_base = umod.gs_base;
        in_umod.pkru = umod.pkru;
        in_umod.smod_rsp = umod.smod_rsp;
        let expected = Expected::to_smod(&in_umod, &run.platform, place::UMOD_CODE);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn rsp_anywhere(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    // Null, both sides of both canonical holes, unaligned, the host's image and the switcher's own
    // pages as the bare-metal engines have them, the guest's code.
    let hostile = [
        0,
        1,
        0x10_0000,
        (1 << 47) - 8,
        1 << 47,
        (1 << 56) - 8,
        1 << 56,
        0xFFFF_8000_0000_0000,
        0xFFFF_FE80_0000_0000,
        0xFFFF_FE80_0000_0100,
        u64::MAX,
        place::TEXT,
    ];
    for rsp in hostile {
        let mut setup = run.syscall_to(PROBE);
        setup.regs.rsp = rsp;
        setup.smod_rsp = rsp.wrapping_add(8);
        let expected = Expected::to_smod(&setup, &run.platform, place::UMOD_CODE);
        run.check(&setup, &expected)?;

        let mut setup = run.eretu_to(PROBE);
        setup.regs.rsp = rsp;
        setup.pvcs.rsp = rsp.wrapping_sub(8);
        let expected = Expected::to_umod(&setup, &run.platform);
        run.check(&setup, &expected)?;

        setup.inhibitors = SwitchFlags::IRQ_WIN;
        let expected = Expected::syscall_exit(&setup, place::ERETU);
        run.check(&setup, &expected)?;
    }
    Ok(())
}
