//! The return to a guest where SYSRETQ would be wrong: RIPs that are not canonical, RF and TF,
//! forbidden flags, other selectors.

use super::{MANY, SOME};
use crate::case_host::{Failure, Setup, place};
use crate::expect::Expected;
use crate::program::{NOP_PROBE, PROBE, SYSCALL};
use crate::run::{Case, CaseRun};
use alloc::vec::Vec;
use switcher_gen::Hazard;
use switcher_gen::arch::RFlags;
use switcher_gen::program;
use switcher_runtime::Mode;

pub(super) const CASES: &[Case] = &[
    Case {
        name: "eretu_to_a_rip_with_any_high_bit_faults_in_the_guest",
        rows: &[
            Hazard::SysretNonCanonical,
            Hazard::AddressWidth,
            Hazard::RcxOnIret,
            Hazard::SwapgsParity,
        ],
        body: eretu_to_high_bits,
    },
    Case {
        name: "entering_at_a_rip_with_any_high_bit_faults_in_the_guest",
        rows: &[
            Hazard::SysretNonCanonical,
            Hazard::AddressWidth,
            Hazard::RcxOnIret,
            Hazard::SwapgsParity,
        ],
        body: enter_at_high_bits,
    },
    Case {
        name: "syscall_as_the_last_canonical_instruction_returns_behind_it",
        rows: &[Hazard::SyscallAtCanonicalEnd, Hazard::AddressWidth],
        body: last_instruction,
    },
    Case {
        name: "a_trap_flag_from_the_pvcs_traps_after_exactly_one_instruction",
        rows: &[Hazard::TrapAndResumeFlags],
        body: trap_flag,
    },
    Case {
        name: "a_resume_flag_from_the_pvcs_passes_the_breakpoint",
        rows: &[Hazard::TrapAndResumeFlags],
        body: resume_flag,
    },
    Case {
        name: "forbidden_flags_in_the_pvcs_reach_no_guest",
        rows: &[Hazard::PrivilegedFlags],
        body: forbidden_flags,
    },
    Case {
        name: "a_guest_is_entered_with_its_own_flags_whatever_the_frame_says",
        rows: &[Hazard::PrivilegedFlags],
        body: flags_of_the_frame,
    },
    Case {
        name: "each_condition_of_sysret_alone_gives_the_same_registers",
        rows: &[Hazard::RcxOnIret, Hazard::TrapAndResumeFlags, Hazard::Registers],
        body: conditions_of_sysret,
    },
    Case {
        name: "nt_and_tf_survive_a_system_call_of_umod",
        rows: &[Hazard::TrapAndResumeFlags, Hazard::NestedTask],
        body: nt_and_tf,
    },
    Case {
        name: "entering_with_32_bit_selectors_does_not_take_sysret",
        rows: &[Hazard::AssumedSelectors],
        body: user32_selectors,
    },
    Case {
        name: "selectors_of_the_guests_own_are_entered_with_and_end_with_an_eretu",
        rows: &[Hazard::AssumedSelectors],
        body: own_selectors,
    },
    Case {
        name: "entering_with_bad_selectors_is_a_fault_of_the_guest",
        rows: &[Hazard::SwapgsParity, Hazard::AssumedSelectors],
        body: bad_selectors,
    },
    Case {
        name: "entering_gives_the_guest_every_register_of_the_frame",
        rows: &[Hazard::Registers],
        body: enter_random,
    },
];

/// RIPs with exactly one of the bits 47 to 63 as the lowest that is set, the boundaries of both
/// widths from both sides, and some addresses of the upper half at which nothing is mapped.
fn high_rips() -> Vec<u64> {
    let mut rips: Vec<u64> = (47..64).map(|bit| 1 << bit).collect();
    rips.extend((47..64).map(|bit| u64::MAX << bit));
    for half in [1_u64 << 47, 1 << 56] {
        rips.push(half.wrapping_neg());
        rips.push(half.wrapping_neg() - 1);
        rips.push(half | 1);
    }
    rips.sort_unstable();
    rips.dedup();
    rips
}

/// Makes the PVCS one that SYSRETQ suits but for RIP.
fn suit_sysret(setup: &mut Setup) {
    let flags = RFlags::from_bits_retain(setup.pvcs.eflags.into()).sanitised();
    let flags = flags - RFlags::NOT_BY_SYSRET;
    setup.pvcs.eflags = flags.bits() as u32;
    setup.pvcs.r11 = flags.bits();
    setup.pvcs.rcx = setup.pvcs.rip;
}

fn eretu_to_high_bits(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for rip in high_rips() {
        // As SYSRETQ would take it; with another RCX; with TF, so that IRETQ is forced.
        for attempt in 0..3 {
            let mut setup = run.setup(Mode::Smod).with(Mode::Smod, place::ERETU, SYSCALL);
            setup.pvcs.rip = rip;
            suit_sysret(&mut setup);
            match attempt {
                0 => {}
                1 => setup.pvcs.rcx = run.rng.u64(..),
                _ => {
                    setup.pvcs.eflags |= RFlags::TF.bits() as u32;
                    setup.pvcs.r11 |= RFlags::TF.bits();
                }
            }
            let mut expected = Expected::to_umod(&setup, &run.platform);
            expected.exit = Expected::fetch_fault(&run.platform, rip);
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn enter_at_high_bits(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for rip in high_rips() {
        for mode in [Mode::Smod, Mode::Umod] {
            for sysret in [true, false] {
                let mut setup = run.setup(mode);
                setup.regs.rip = rip;
                if sysret {
                    setup.regs.rcx = rip;
                    setup.regs.r11 = setup.regs.eflags;
                }
                let exit = Expected::fetch_fault(&run.platform, rip);
                let expected = Expected::unchanged(&setup, exit);
                run.check(&setup, &expected)?;
            }
        }
    }
    Ok(())
}

fn last_instruction(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    let behind = place::first_non_canonical(run.platform.paging);
    let at = behind - 2;
    for _ in 0..SOME {
        // umod makes a SYSCALL and is returned to; the instruction after the SYSCALL faults.
        let mut setup = run.setup(Mode::Umod).with(Mode::Umod, at, SYSCALL).with(
            Mode::Smod,
            place::ERETU,
            SYSCALL,
        );
        setup.regs.rip = at;
        setup.smod_entry = place::ERETU;
        let there = Expected::to_smod(&setup, &run.platform, at);
        let fault = Expected::fetch_fault(&run.platform, behind);
        let mut expected = Expected::unchanged(&setup, fault);
        expected.regs.rip = behind;
        expected.regs.rcx = behind;
        expected.regs.r11 = expected.regs.eflags;
        expected.pvcs = there.pvcs;
        run.check(&setup, &expected)?;

        // smod: a hypercall, and the host lets it go on after the SYSCALL.
        let mut setup = run.setup(Mode::Smod).with(Mode::Smod, at, SYSCALL);
        setup.regs.rip = at;
        let hypercall = Expected::syscall_exit(&setup, at);
        run.check(&setup, &hypercall)?;
        setup.regs = hypercall.regs;
        let expected = Expected::unchanged(&setup, fault);
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn trap_flag(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..SOME {
        let mut setup = run.eretu_to(NOP_PROBE);
        suit_sysret(&mut setup);
        setup.pvcs.eflags |= RFlags::TF.bits() as u32;
        setup.pvcs.r11 |= RFlags::TF.bits();
        let mut expected = Expected::to_umod(&setup, &run.platform);
        expected.exit = Expected::SINGLE_STEP;
        expected.regs.rip += 1;
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn resume_flag(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    /// DR6: the breakpoint in DR0.
    const BREAKPOINT_0: u64 = 1;

    for _ in 0..SOME {
        let mut setup = run.eretu_to(NOP_PROBE);
        suit_sysret(&mut setup);
        setup.breakpoint = Some(place::UMOD_CODE);
        // Without RF the breakpoint hits: it works on this engine.
        let mut expected = Expected::to_umod(&setup, &run.platform);
        expected.exit = Expected::debug(BREAKPOINT_0);
        run.check(&setup, &expected)?;
        // With RF the instruction is executed.
        setup.pvcs.eflags |= RFlags::RF.bits() as u32;
        setup.pvcs.r11 |= RFlags::RF.bits();
        let mut expected = Expected::to_umod(&setup, &run.platform);
        expected.regs.rip += 1;
        run.check(&setup, &expected)?;
    }
    Ok(())
}

fn forbidden_flags(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    const SHOW_AND_CLI: &[u8] = program!(; pushfq ; pop rax ; cli);
    let forbidden = RFlags::IOPL | RFlags::VM | RFlags::VIF | RFlags::VIP;
    for bits in [forbidden, RFlags::IOPL, RFlags::VM, RFlags::VIF, RFlags::VIP] {
        for sysret in [true, false] {
            let mut setup = run.eretu_to(SHOW_AND_CLI);
            setup.pvcs.eflags &= !(RFlags::TF | RFlags::RF | RFlags::AC).bits() as u32;
            suit_sysret(&mut setup);
            // Where RSP passes through, it is smod's.
            setup.regs.rsp = place::STACK_TOP;
            setup.pvcs.rsp = place::STACK_TOP;
            setup.pvcs.eflags |= bits.bits() as u32;
            if !sysret {
                setup.pvcs.r11 = setup.pvcs.eflags.into();
            }
            let mut expected = Expected::to_umod(&setup, &run.platform);
            expected.exit = Expected::general_protection(0);
            expected.regs.rip += 2;
            expected.regs.rax = expected.regs.eflags;
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn flags_of_the_frame(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY / 4 {
        for sysret in [true, false] {
            // Any flags: forbidden ones, IF and bit 1 clear, what SYSRETQ cannot restore.
            let mut setup = run.about_to(Mode::Umod, PROBE);
            setup.regs.eflags = run.rng.u32(..).into();
            if sysret {
                setup.regs.rcx = setup.regs.rip;
                setup.regs.r11 = RFlags::from_bits_retain(setup.regs.eflags).sanitised().bits();
            }
            let expected = Expected::unchanged(&setup, Expected::UD);
            run.check(&setup, &expected)?;

            // The same in 32-bit mode, where only IRETQ leads.
            in_32_bit_mode(run, &mut setup)?;
        }
    }
    Ok(())
}

fn conditions_of_sysret(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY / 4 {
        let harmless = run.setup(Mode::Umod).regs.eflags;
        let other = run.setup(Mode::Umod).regs.eflags;
        // RCX is RIP or not; R11 is the flags, other flags that SYSRETQ could load, or anything.
        for (same_rcx, r11) in
            [(true, other), (true, run.rng.u64(..)), (false, harmless), (false, other)]
        {
            let mut setup = run.eretu_to(PROBE);
            setup.pvcs.eflags = harmless as u32;
            setup.pvcs.r11 = r11;
            if same_rcx {
                setup.pvcs.rcx = setup.pvcs.rip;
            }
            let expected = Expected::to_umod(&setup, &run.platform);
            run.check(&setup, &expected)?;

            let mut setup = run.about_to(Mode::Umod, PROBE);
            setup.regs.eflags = harmless;
            setup.regs.r11 = r11;
            if same_rcx {
                setup.regs.rcx = setup.regs.rip;
            }
            let expected = Expected::unchanged(&setup, Expected::UD);
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn nt_and_tf(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for flags in [RFlags::NT, RFlags::NT | RFlags::TF, RFlags::TF] {
        for _ in 0..SOME {
            // umod's SYSCALL has the flags, smod returns at once: NOP traps if TF is set.
            let mut setup = run.round_trip(&[SYSCALL, NOP_PROBE].concat());
            setup.regs.eflags &= !RFlags::NT.bits();
            setup.regs.eflags |= flags.bits();
            let there = Expected::to_smod(&setup, &run.platform, place::UMOD_CODE);
            let traps = flags.contains(RFlags::TF);
            let exit = if traps { Expected::SINGLE_STEP } else { Expected::UD };
            let mut expected = Expected::unchanged(&setup, exit);
            expected.regs.rip += 3;
            expected.regs.rcx = place::UMOD_CODE + 2;
            expected.regs.r11 = expected.regs.eflags;
            expected.pvcs = there.pvcs;
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn user32_selectors(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..SOME {
        let mut setup = run.about_to(Mode::Umod, PROBE);
        setup.regs.r11 = setup.regs.eflags;
        in_32_bit_mode(run, &mut setup)?;
    }
    Ok(())
}

/// Enters a guest with the selector of 32-bit code and RCX = RIP. SYSRETQ would go on in 64-bit
/// mode; IRETQ leads to 32-bit mode, where nothing is mapped for the guest.
fn in_32_bit_mode(run: &mut CaseRun<'_>, setup: &mut Setup) -> Result<(), Failure> {
    setup.regs.cs = run.platform.selectors.user32_cs().into();
    setup.regs.rip = UNMAPPED_32;
    setup.regs.rcx = UNMAPPED_32;
    // In 32-bit mode, RSP is 32 bits wide too, and what an event saves of it is not defined beyond
    // them.
    setup.regs.rsp &= u64::from(u32::MAX);
    let exit = Expected::fetch_fault(&run.platform, UNMAPPED_32);
    let expected = Expected::unchanged(setup, exit);
    run.check(setup, &expected)
}

/// Beyond what the engines' hosts map for themselves, within 32 bits.
const UNMAPPED_32: u64 = 0xF000_0000;

fn own_selectors(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    let (cs, ss) = (run.platform.selectors.user_cs(), run.platform.selectors.user_ds());
    let (other_cs, other_ss) = run.platform.aliases;
    for (cs, ss) in [(other_cs, ss), (cs, other_ss), (other_cs, other_ss)] {
        for _ in 0..SOME {
            let mut setup = run.about_to(Mode::Smod, PROBE);
            setup.regs.rcx = setup.regs.rip;
            setup.regs.r11 = setup.regs.eflags;
            (setup.regs.cs, setup.regs.ss) = (cs.into(), ss.into());
            run.check(&setup, &Expected::unchanged(&setup, Expected::UD))?;

            // The frame that smod was entered with is the last one below sp0. By IRETQ or SYSRETQ,
            // umod has selectors of its own.
            let mut setup = run.eretu_to(PROBE);
            (setup.regs.cs, setup.regs.ss) = (cs.into(), ss.into());
            if run.rng.bool() {
                setup.pvcs.rcx = setup.pvcs.rip;
                setup.pvcs.r11 =
                    RFlags::from_bits_retain(setup.pvcs.eflags.into()).sanitised().bits();
            }
            run.check(&setup, &Expected::to_umod(&setup, &run.platform))?;
        }
    }
    Ok(())
}

fn bad_selectors(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    let selectors = run.platform.selectors;
    let (cs, ss) = (selectors.user_cs(), selectors.user_ds());
    let kernel_cs = selectors.kernel_cs();
    // The selector named by the error code has RPL masked off.
    // With an RPL other than 3 nothing is entered: a host case's business.
    let bad = [
        (cs, 3, 0),
        (cs, selectors.kernel_ds() | 3, selectors.kernel_ds()),
        (kernel_cs | 3, ss, kernel_cs),
        (ss, ss, ss & !3),
        (3, ss, 0),
        (cs, 0xFFFB, 0xFFF8),
    ];
    for (cs, ss, error) in bad {
        for sysret in [true, false] {
            let mut setup = run.about_to(Mode::Umod, PROBE);
            setup.regs.cs = cs.into();
            setup.regs.ss = ss.into();
            if sysret {
                setup.regs.rcx = setup.regs.rip;
                setup.regs.r11 = setup.regs.eflags;
            }
            let exit = Expected::general_protection(error.into());
            let expected = Expected::unchanged(&setup, exit);
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}

fn enter_random(run: &mut CaseRun<'_>) -> Result<(), Failure> {
    for _ in 0..MANY {
        for mode in [Mode::Smod, Mode::Umod] {
            let mut setup = run.about_to(mode, PROBE);
            if run.rng.bool() {
                setup.regs.rcx = setup.regs.rip;
                setup.regs.r11 = setup.regs.eflags;
            }
            let expected = Expected::unchanged(&setup, Expected::UD);
            run.check(&setup, &expected)?;
        }
    }
    Ok(())
}
