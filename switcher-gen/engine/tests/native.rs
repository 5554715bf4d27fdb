//! The emitted bytes on this CPU, over many states: what comes out must be what spec/switcher.md
//! says, register by register. A machine that cannot run them fails these tests; it does not skip
//! them. Every run also passes the checks of `native::Failure`.
//!
//! Row numbers are those of spec/hazards.md.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use switcher_engine::fuzz::scenario::{
    FuzzEngine, Random, USER, random_setup, random_smod, random_umod,
};
use switcher_engine::native;
use switcher_engine::native::{
    Crossing, Error, Failure, Interception, Machine, Mode, ScenarioEnd, Setup, WayIn, WayOut,
};
use switcher_gen::arch::{Cr3, PagingMode, RFlags, Selectors};
use switcher_gen::layout::{ExitReason, OrigAx, PtRegs, Pvcs, Revision, SwitchFlags};
use switcher_gen::{Image, Mitigations, Variant, program};

/// Random states per variant and test.
const STATES: usize = 300;

const SYSCALL: &[u8] = program!(; syscall);
const UD2: &[u8] = program!(; ud2);
const NOP: &[u8] = program!(; nop);
const CLI: &[u8] = program!(; cli);
const INT3: &[u8] = program!(; int3);

const DB: u32 = 1;
const BP: u32 = 3;
const UD: u32 = 6;
const GP: u32 = 13;
const PF: u32 = 14;
/// In an exit frame, where a vector has no error code.
const NO_ERROR_CODE: u32 = !0;

const START: u64 = RFlags::SMOD_ENTRY.bits();
/// What a fault pushes besides the flags as they were.
const RF: u64 = RFlags::RF.bits();

fn machine(variant: &Variant) -> Machine {
    Machine::new(variant).unwrap_or_else(|error| {
        panic!("emitted bytes of {variant} cannot be run on this machine: {error}")
    })
}

/// A machine in which all of smod's code is `smod` again and again, and umod's is `umod`.
fn filled(variant: &Variant, smod: &[u8], umod: &[u8]) -> Machine {
    let mut machine = machine(variant);
    machine.load(Mode::Smod, 0, &smod.repeat(Machine::CODE_LEN / smod.len())).unwrap();
    machine.load(Mode::Umod, 0, &umod.repeat(Machine::CODE_LEN / umod.len())).unwrap();
    machine
}

/// Those that run in user mode.
fn without_pku(variants: impl Iterator<Item = Variant>) -> impl Iterator<Item = Variant> {
    variants.filter(|variant| !variant.pku())
}

/// `check` for each variant, on a machine of its own and with its own random numbers.
fn for_all(smod: &[u8], umod: &[u8], mut check: impl FnMut(&mut Machine, &mut Random)) {
    for (seed, variant) in without_pku(Variant::representative()).enumerate() {
        println!("{variant}");
        check(&mut filled(&variant, smod, umod), &mut Random(seed as u64));
    }
}

#[track_caller]
fn run(machine: &mut Machine, setup: &Setup) -> ScenarioEnd {
    match machine.run(setup) {
        Ok(outcome) => {
            check_counts(&outcome, setup, machine.image().variant());
            outcome
        }
        Err(error) => panic!("{}: {error}\n{setup:#x?}", machine.image().variant()),
    }
}

/// Where instructions were counted, there are no more than the kernel's switcher of 2024 executes.
/// Its number for the entry holds for a host that asks for allowed flags, and all of them without
/// mitigations.
#[track_caller]
fn check_counts(outcome: &ScenarioEnd, setup: &Setup, variant: &Variant) {
    if variant.mitigations() != Mitigations::NONE {
        return;
    }
    let allowed = setup.frame.eflags & !RFlags::GUEST_ALLOWED.bits() == 0;
    // Whoever gets past the comparison of RCX and RIP executes at least the four instructions more
    // that find out whether RIP is an address.
    let further = if setup.pvcs.rcx == setup.pvcs.rip { 4 } else { 0 };
    for crossing in &outcome.crossings {
        let limit = match (crossing.way_in, crossing.way_out) {
            (WayIn::Enter, WayOut::Sysretq) if allowed => 44,
            (FROM_UMOD, WayOut::Sysretq) => 37,
            (FROM_SMOD, WayOut::Sysretq) => 52,
            // The kernel's number is of its first reason, RCX is not RIP; the tour holds that path
            // to it.
            (FROM_SMOD, WayOut::Iretq) => 47 + further,
            (WayIn::Syscall(_), WayOut::Host) => 60,
            _ => continue,
        };
        assert!(crossing.executed <= limit, "{variant}: {crossing:?}, not {limit}");
    }
}

fn vector(vector: u32) -> OrigAx {
    OrigAx { error_code: NO_ERROR_CODE, reason: vector }
}

/// The registers after a SYSCALL of 2 bytes at `before.rip`.
fn after_syscall(before: &PtRegs) -> PtRegs {
    let rip = before.rip + 2;
    PtRegs { rip, rcx: rip, r11: before.eflags, ..*before }
}

/// The exit frame of a SYSCALL at `before.rip` that was left to the host.
fn syscall_exit(before: &PtRegs) -> PtRegs {
    let orig_ax = OrigAx { error_code: 0, reason: ExitReason::Syscall as u32 };
    PtRegs { orig_ax, ..after_syscall(before) }
}

fn revision(machine: &Machine) -> Revision {
    machine.image().variant().revision()
}

/// What a SYSCALL of umod with the registers `umod` must leave in the PVCS.
fn saved(machine: &Machine, before: &Pvcs, umod: &PtRegs, gs_base: u64) -> Pvcs {
    let mut pvcs = *before;
    let after = after_syscall(umod);
    pvcs.user_cs = USER.user_cs();
    pvcs.user_ss = USER.user_ds();
    pvcs.user_gsbase = gs_base;
    pvcs.eflags = umod.eflags as u32;
    pvcs.rip = after.rip;
    if revision(machine) == Revision::V2024 {
        pvcs.rsp = after.rsp;
    }
    pvcs.rcx = after.rcx;
    pvcs.r11 = after.r11;
    pvcs
}

/// umod as ERETU must start it: `smod`'s registers but for those in the PVCS.
fn restored(machine: &Machine, smod: &PtRegs, pvcs: &Pvcs) -> PtRegs {
    let rsp = match revision(machine) {
        Revision::V2024 => pvcs.rsp,
        Revision::V2026 => smod.rsp,
    };
    let wanted = RFlags::from_bits_retain(pvcs.eflags.into());
    PtRegs {
        rip: pvcs.rip,
        rsp,
        rcx: pvcs.rcx,
        r11: pvcs.r11,
        eflags: wanted.sanitised().bits(),
        ..*smod
    }
}

/// How a guest with these registers must be returned to.
fn return_of(regs: &PtRegs, paging: PagingMode) -> WayOut {
    let by_sysretq = regs.rcx == regs.rip
        && regs.r11 == regs.eflags
        && !RFlags::from_bits_retain(regs.eflags).intersects(RFlags::NOT_BY_SYSRET)
        && paging.is_canonical(regs.rip);
    if by_sysretq { WayOut::Sysretq } else { WayOut::Iretq }
}

fn crossings(outcome: &ScenarioEnd) -> Vec<(WayIn, WayOut)> {
    outcome.crossings.iter().map(|Crossing { way_in, way_out, .. }| (*way_in, *way_out)).collect()
}

const FROM_UMOD: WayIn = WayIn::Syscall(SwitchFlags::UMOD);
const FROM_SMOD: WayIn = WayIn::Syscall(SwitchFlags::SMOD);

#[test]
fn this_machine_can_run_emitted_bytes() {
    match native::supported() {
        Ok(interception) => println!("guest SYSCALLs are intercepted by {interception:?}"),
        Err(unsupported) => panic!("this machine cannot run emitted bytes: {unsupported}"),
    }
}

#[test]
fn no_path_executes_more_instructions_than_the_kernels_switcher_of_2024() {
    // Its numbers are those without mitigations.
    for variant in without_pku(Variant::unmitigated()) {
        let report = native::tour(&variant).unwrap_or_else(|error| panic!("{variant}: {error}"));
        assert_eq!(report.round_trips, 10_000);
        assert_eq!(report.paths.len(), 6);
        for path in &report.paths {
            println!("{variant}: {} of {}, {}", path.executed, path.kernel_2024, path.name);
            assert!(0 < path.executed && path.executed <= path.kernel_2024, "{variant}: {path:?}");
        }
    }
}

/// Rows 6, 7, 15, 16, 26, 27.
#[test]
fn a_syscall_of_umod_saves_umod_and_starts_smod() {
    for_all(UD2, SYSCALL, |machine, random| {
        for _ in 0..STATES {
            let setup = random_umod(random, machine);
            let outcome = run(machine, &setup);
            let extra = &setup.extra;
            let expected = PtRegs {
                rip: extra.smod_entry,
                rcx: extra.smod_entry,
                rsp: match revision(machine) {
                    Revision::V2024 => extra.smod_rsp,
                    Revision::V2026 => setup.frame.rsp,
                },
                r11: START,
                eflags: START | RF,
                orig_ax: vector(UD),
                ..setup.frame
            };
            assert_eq!(outcome.frame, expected);
            assert_eq!(outcome.gs_base, extra.smod_gsbase);
            assert_eq!(outcome.pvcs, saved(machine, &setup.pvcs, &setup.frame, setup.gs_base));
            assert_eq!(outcome.extra.switch_flags, SwitchFlags::SMOD);
            assert_eq!(outcome.extra.smod_rsp, extra.smod_rsp);
            let roots = [extra.enter_cr3, extra.smod_cr3, extra.host_cr3].map(Cr3::bits);
            assert_eq!(outcome.cr3_loads, roots);
            let entry = return_of(&setup.frame, machine.paging());
            assert_eq!(
                crossings(&outcome),
                [(WayIn::Enter, entry), (FROM_UMOD, WayOut::Sysretq), (WayIn::Event, WayOut::Host)]
            );
        }
    });
}

/// Rows 4, 5, 7, 13, 14, 26, 27.
#[test]
fn eretu_restores_umod_from_the_pvcs() {
    for_all(SYSCALL, UD2, |machine, random| {
        let mut by_sysretq = 0;
        for _ in 0..STATES {
            let setup = random_smod(random, machine);
            let outcome = run(machine, &setup);
            let umod = restored(machine, &setup.frame, &setup.pvcs);
            let expected = PtRegs { eflags: umod.eflags | RF, orig_ax: vector(UD), ..umod };
            assert_eq!(outcome.frame, expected);
            assert_eq!(outcome.gs_base, machine.paging().canonicalize(setup.pvcs.user_gsbase));
            assert_eq!(outcome.pvcs, setup.pvcs);
            assert_eq!(outcome.extra.switch_flags, SwitchFlags::UMOD);
            let smod_rsp = match revision(machine) {
                Revision::V2024 => setup.frame.rsp,
                Revision::V2026 => setup.extra.smod_rsp,
            };
            assert_eq!(outcome.extra.smod_rsp, smod_rsp);
            let extra = &setup.extra;
            let roots = [extra.enter_cr3, extra.umod_cr3, extra.host_cr3].map(Cr3::bits);
            assert_eq!(outcome.cr3_loads, roots);
            let way_out = return_of(&umod, machine.paging());
            assert_eq!(outcome.crossings[1].way_in, FROM_SMOD);
            assert_eq!(outcome.crossings[1].way_out, way_out);
            by_sysretq += usize::from(way_out == WayOut::Sysretq);
        }
        assert!(0 < by_sysretq && by_sysretq < STATES, "{by_sysretq} of {STATES} by SYSRETQ");
    });
}

/// Row 27: from umod through smod and back, then out.
#[test]
fn a_round_trip_preserves_every_register() {
    for_all(SYSCALL, &[SYSCALL, UD2].concat(), |machine, random| {
        for _ in 0..STATES {
            let mut setup = random_umod(random, machine);
            setup.extra.retu_rip = setup.extra.smod_entry + 2;
            let outcome = run(machine, &setup);
            let after = after_syscall(&setup.frame);
            let expected = PtRegs { eflags: after.eflags | RF, orig_ax: vector(UD), ..after };
            assert_eq!(outcome.frame, expected);
            assert_eq!(outcome.gs_base, setup.gs_base);
            assert_eq!(outcome.extra.switch_flags, SwitchFlags::UMOD);
            assert_eq!(outcome.extra.smod_rsp, setup.extra.smod_rsp);
            let extra = &setup.extra;
            let roots = [extra.enter_cr3, extra.smod_cr3, extra.umod_cr3, extra.host_cr3];
            assert_eq!(outcome.cr3_loads, roots.map(Cr3::bits));
        }
    });
}

/// Row 26: every bit but the two modes inhibits, in both directions, and the guest gets nowhere.
#[test]
fn each_inhibitor_makes_a_syscall_exit() {
    for_all(SYSCALL, SYSCALL, |machine, random| {
        for bit in 2..64 {
            for random_mode in [random_umod, random_smod] {
                let mut setup = random_mode(random, machine);
                setup.extra.switch_flags |= SwitchFlags::from_bits_retain(1 << bit);
                if bit == 2 {
                    // Row 19: the other mode's root is not there.
                    match setup.extra.switch_flags & SwitchFlags::MODE_TOGGLE {
                        SwitchFlags::UMOD => setup.extra.smod_cr3 = Cr3::NONE,
                        _ => setup.extra.umod_cr3 = Cr3::NONE,
                    }
                }
                exits(machine, &setup, &format!("inhibitor {bit}"));
            }
        }
    });
}

/// The first SYSCALL is the host's: registers exact, nothing switched, nothing written.
#[track_caller]
fn exits(machine: &mut Machine, setup: &Setup, why: &str) {
    let outcome = run(machine, setup);
    assert_eq!(outcome.frame, syscall_exit(&setup.frame), "{why}");
    assert_eq!(outcome.gs_base, setup.gs_base, "{why}");
    assert_eq!(outcome.pvcs, setup.pvcs, "{why}");
    assert_eq!(outcome.extra.switch_flags, setup.extra.switch_flags, "{why}");
    assert_eq!(outcome.extra.smod_rsp, setup.extra.smod_rsp, "{why}");
    let roots = [setup.extra.enter_cr3, setup.extra.host_cr3].map(Cr3::bits);
    assert_eq!(outcome.cr3_loads, roots, "{why}");
}

/// Row 25: the host, not SYSRETQ, is to load other selectors; RCX was overwritten on the way.
#[test]
fn eretu_to_other_selectors_exits_with_everything_as_it_was() {
    let (cs, ss) = (USER.user_cs(), USER.user_ds());
    let others =
        [(cs, 0), (0, ss), (0, 0), (USER.user32_cs(), ss), (cs, ss & !3), (cs & !3, ss), (ss, cs)];
    for_all(SYSCALL, UD2, |machine, random| {
        let flips = (0..32).map(|bit| {
            let pair = USER.user_pair() ^ 1 << bit;
            (pair as u16, (pair >> 16) as u16)
        });
        for (cs, ss) in others.into_iter().chain(flips) {
            let mut setup = random_smod(random, machine);
            setup.pvcs.user_cs = cs;
            setup.pvcs.user_ss = ss;
            exits(machine, &setup, &format!("user_cs {cs:#x}, user_ss {ss:#x}"));
        }
    });
}

/// Row 26.
#[test]
fn only_smod_has_an_eretu_and_only_at_its_address() {
    for_all(&[SYSCALL, UD2].concat(), SYSCALL, |machine, random| {
        for _ in 0..STATES / 10 {
            // In umod, at the agreed address: to smod, like any other.
            let mut setup = random_umod(random, machine);
            setup.extra.retu_rip = setup.frame.rip + 2;
            setup.extra.smod_entry += 2;
            let outcome = run(machine, &setup);
            assert_eq!(outcome.frame.rip, setup.extra.smod_entry);
            assert_eq!(outcome.frame.orig_ax, vector(UD));
            assert_eq!(outcome.pvcs, saved(machine, &setup.pvcs, &setup.frame, setup.gs_base));

            // In smod, anywhere else: a hypercall, however little the addresses differ.
            let mut setup = random_smod(random, machine);
            let bit = random.below(64);
            setup.extra.retu_rip ^= 1 << bit;
            exits(machine, &setup, &format!("retu_rip differs in bit {bit}"));
        }
    });
}

/// Row 6.
#[test]
fn the_gs_base_that_is_saved_is_the_one_umod_has_set() {
    let umod = program!(; wrgsbase rax ; syscall ; ud2);
    for_all(UD2, UD2, |machine, random| {
        machine.load(Mode::Umod, 0, umod).unwrap();
        for _ in 0..STATES / 10 {
            let mut setup = random_umod(random, machine);
            setup.frame.rip = machine.code(Mode::Umod).start;
            setup.frame.rax = random.canonical();
            let outcome = run(machine, &setup);
            assert_eq!(outcome.pvcs.user_gsbase, setup.frame.rax);
            assert_eq!(outcome.gs_base, setup.extra.smod_gsbase);
        }
    });
}

/// Row 5.
#[test]
fn a_user_gsbase_that_is_no_address_becomes_one() {
    for_all(SYSCALL, UD2, |machine, random| {
        let mode = machine.paging();
        for bit in mode.address_bits()..64 {
            let mut setup = random_smod(random, machine);
            setup.pvcs.user_gsbase = 1 << bit;
            assert_eq!(run(machine, &setup).gs_base, 0, "bit {bit}");
        }
        let mut setup = random_smod(random, machine);
        setup.pvcs.user_gsbase = 1 << (mode.address_bits() - 1);
        let lowest = !0 << (mode.address_bits() - 1);
        if machine.real_paging().is_canonical(lowest) {
            assert_eq!(run(machine, &setup).gs_base, lowest);
        } else {
            assert_not_on_this_cpu(machine.run(&setup), lowest);
        }
    });
}

#[track_caller]
fn assert_not_on_this_cpu(result: Result<ScenarioEnd, Error>, expected: u64) {
    match result {
        Err(Error::Failure(Failure::NotOnThisCpu { address })) if address == expected => {}
        other => panic!("{other:x?}"),
    }
}

/// Rows 1, 3, 4.
#[test]
fn a_return_to_any_address_is_the_guests_own_fault() {
    for_all(SYSCALL, UD2, |machine, random| {
        let mode = machine.paging();
        for bit in 47..64 {
            for rip in [1 << bit, !0 << bit, (1 << bit) | random.below(1 << 47)] {
                for rcx in [rip, random.next()] {
                    let mut setup = random_smod(random, machine);
                    setup.pvcs.rip = rip;
                    setup.pvcs.rcx = rcx;
                    if mode.is_canonical(rip) != machine.real_paging().is_canonical(rip) {
                        assert_not_on_this_cpu(machine.run(&setup), rip);
                        continue;
                    }
                    let outcome = run(machine, &setup);
                    let umod = restored(machine, &setup.frame, &setup.pvcs);
                    let reason = if mode.is_canonical(rip) { PF } else { GP };
                    assert_eq!(outcome.frame.orig_ax.reason, reason, "{rip:#x}");
                    let PtRegs { orig_ax, eflags, .. } = outcome.frame;
                    assert_eq!(eflags & !RF, umod.eflags & !RF, "{rip:#x}");
                    assert_eq!(outcome.frame, PtRegs { orig_ax, eflags, ..umod }, "{rip:#x}");
                    assert_eq!(outcome.crossings[1].way_out, return_of(&umod, mode), "{rip:#x}");
                }
            }
        }
    });
}

/// Row 7: a fault of the IRETQ is an event of the guest, with the guest's registers and GS.
#[test]
fn selectors_that_iretq_refuses_are_the_guests_fault() {
    for_all(SYSCALL, UD2, |machine, random| {
        for ss in [0, 0x18, 0xFFFB] {
            let rip = random.place(machine, Mode::Umod);
            let mut setup = random_setup(random, machine, Mode::Umod, rip);
            setup.frame.ss = ss;
            let outcome = run(machine, &setup);
            let orig_ax = OrigAx { error_code: ss as u32 & !3, reason: GP };
            assert_eq!(outcome.frame, PtRegs { orig_ax, ..setup.frame });
            assert_eq!(outcome.gs_base, setup.gs_base);
            let ways = [(WayIn::Enter, WayOut::Iretq), (WayIn::Event, WayOut::Host)];
            assert_eq!(crossings(&outcome), ways);
        }
    });
}

/// Row 14.
#[test]
fn privileged_flags_of_the_pvcs_do_not_reach_umod() {
    for_all(SYSCALL, CLI, |machine, random| {
        for bit in 0..32 {
            let mut setup = random_smod(random, machine);
            setup.pvcs.eflags = 1 << bit;
            // Also where R11 asks for the same, which SYSRETQ would restore.
            setup.pvcs.rcx = setup.pvcs.rip;
            for r11 in [1 << bit, 1 << bit | START, START] {
                setup.pvcs.r11 = r11;
                let outcome = run(machine, &setup);
                let expected = (1 << bit) & 0x25_4FD7 | 0x202 | RF;
                assert_eq!(outcome.frame.eflags, expected, "bit {bit}");
                assert_eq!(outcome.frame.rip, setup.pvcs.rip, "bit {bit}");
                // CLI, of a guest with IOPL 0.
                let orig_ax = OrigAx { error_code: 0, reason: GP };
                assert_eq!(outcome.frame.orig_ax, orig_ax, "bit {bit}");
            }
        }
    });
}

/// Row 14, at the entry: the host's frame is sanitised as well.
#[test]
fn privileged_flags_of_the_frame_do_not_reach_the_guest() {
    for_all(CLI, CLI, |machine, random| {
        for bit in 0..64 {
            for r11 in [1 << bit, START] {
                let rip = random.place(machine, Mode::Umod);
                let mut setup = random_setup(random, machine, Mode::Umod, rip);
                setup.frame.eflags = 1 << bit;
                setup.frame.r11 = r11;
                let outcome = run(machine, &setup);
                assert_eq!(outcome.frame.eflags, (1 << bit) & 0x25_4FD7 | 0x202 | RF, "bit {bit}");
            }
        }
    });
}

/// Row 13: one instruction, one trap; the SYSCALL itself does not trap, and smod is not traced.
#[test]
fn a_traced_umod_traps_once_per_instruction() {
    let tf = RFlags::TF.bits();
    for_all(SYSCALL, &[NOP, NOP, NOP, NOP].concat(), |machine, random| {
        for count in [false, true] {
            let mut setup = random_smod(random, machine);
            setup.count = count;
            setup.pvcs.eflags |= tf as u32;
            let outcome = run(machine, &setup);
            let umod = restored(machine, &setup.frame, &setup.pvcs);
            // RF was for the first instruction alone.
            let expected = PtRegs {
                rip: umod.rip + 1,
                eflags: umod.eflags & !RF,
                orig_ax: vector(DB),
                ..umod
            };
            assert_eq!(outcome.frame, expected);
            assert_eq!(outcome.crossings[1].way_out, WayOut::Iretq);
        }
    });
    for_all(&[SYSCALL, UD2].concat(), &[SYSCALL, NOP, NOP].concat(), |machine, random| {
        for count in [false, true] {
            // Into smod: TF and NT are saved (row 15), and smod has neither.
            let mut setup = random_umod(random, machine);
            setup.count = count;
            setup.frame.eflags |= tf | RFlags::NT.bits();
            setup.extra.smod_entry += 2;
            let outcome = run(machine, &setup);
            assert_eq!(outcome.frame.orig_ax, vector(UD));
            assert_eq!(outcome.frame.eflags, START | RF);
            assert_eq!(outcome.pvcs, saved(machine, &setup.pvcs, &setup.frame, setup.gs_base));

            // There and back: one trap, after the instruction after the SYSCALL.
            setup.extra.smod_entry -= 2;
            setup.extra.retu_rip = setup.extra.smod_entry + 2;
            let outcome = run(machine, &setup);
            let umod = after_syscall(&setup.frame);
            assert_eq!(outcome.frame, PtRegs { rip: umod.rip + 1, orig_ax: vector(DB), ..umod });
            assert_eq!(outcome.extra.switch_flags, SwitchFlags::UMOD);
        }
    });
}

/// Row 13: SYSRETQ would drop RF.
#[test]
fn rf_is_returned_by_iretq() {
    for_all(SYSCALL, UD2, |machine, random| {
        let mut setup = random_smod(random, machine);
        setup.pvcs.rcx = setup.pvcs.rip;
        setup.pvcs.eflags = (START | RF) as u32;
        setup.pvcs.r11 = START | RF;
        let outcome = run(machine, &setup);
        assert_eq!(outcome.crossings[1].way_out, WayOut::Iretq);
        assert_eq!(outcome.frame.r11, START | RF);
    });
}

/// Rows 15 and 16: the machine checks NT, AC and DF whenever the host is back.
#[test]
fn no_flag_of_a_guest_reaches_the_host() {
    let all = RFlags::NT | RFlags::AC | RFlags::DF | RFlags::TF | RFlags::ID | RFlags::CF;
    for_all(SYSCALL, &[SYSCALL, UD2].concat(), |machine, random| {
        for inhibitor in [SwitchFlags::empty(), SwitchFlags::IRQ_WIN] {
            let mut setup = random_umod(random, machine);
            setup.frame.eflags = all.sanitised().bits();
            setup.extra.switch_flags |= inhibitor;
            run(machine, &setup);
            setup.frame.eflags &= !RFlags::TF.bits();
            setup.frame.rip += 2;
            let outcome = run(machine, &setup);
            assert_eq!(outcome.frame.orig_ax, vector(UD));
            assert_eq!(outcome.frame.eflags, setup.frame.eflags | RF);
        }
    });
}

#[test]
fn events_of_the_guest_exit_with_vector_and_error_code() {
    let load_null = program!(; mov rax, QWORD [rax]);
    let int_17 = program!(; int 17);
    for_all(UD2, UD2, |machine, random| {
        let (not_present_read_by_user, int_17_error) = (4, 17 * 8 + 2);
        for (program, length, reason, error_code) in [
            (UD2, 0, UD, NO_ERROR_CODE),
            (INT3, 1, BP, NO_ERROR_CODE),
            (load_null, 0, PF, not_present_read_by_user),
            (int_17, 0, GP, int_17_error),
        ] {
            machine.load(Mode::Umod, 0, program).unwrap();
            let mut setup = random_umod(random, machine);
            setup.frame.rip = machine.code(Mode::Umod).start;
            setup.frame.rax = 0;
            let outcome = run(machine, &setup);
            let fault = if length == 0 { RF } else { 0 };
            let expected = PtRegs {
                rip: setup.frame.rip + length,
                eflags: setup.frame.eflags | fault,
                orig_ax: OrigAx { error_code, reason },
                ..setup.frame
            };
            assert_eq!(outcome.frame, expected);
            assert_eq!(outcome.gs_base, setup.gs_base);
        }
    });
}

/// The host's side: 20 000 entries, and the callee-saved registers, RSP, GS and flags checked by
/// the machine at each return.
#[test]
fn thousands_of_entries_leave_the_host_as_it_was() {
    for variant in [Variant::REFERENCE, "amd-4level".parse().unwrap()] {
        let mut machine = filled(&variant, SYSCALL, SYSCALL);
        let mut random = Random(1);
        for _ in 0..10_000 {
            let mut setup = random_umod(&mut random, &machine);
            setup.extra.switch_flags |= SwitchFlags::IRQ_WIN;
            setup.count = false;
            assert_eq!(run(&mut machine, &setup).extra.host_rsp, 0);
        }
    }
}

/// What must not depend on how a machine runs its guest.
fn observable(outcome: ScenarioEnd) -> impl PartialEq + std::fmt::Debug {
    let ways = crossings(&outcome);
    let ScenarioEnd { frame, gs_base, extra, pvcs, cr3_loads, .. } = outcome;
    (frame, gs_base, extra.switch_flags, extra.smod_rsp, pvcs, cr3_loads, ways)
}

/// Counting and the other way of intercepting SYSCALLs must not change what comes out.
#[test]
fn stepping_changes_no_outcome() {
    for_all(&[SYSCALL, UD2].concat(), &[SYSCALL, UD2].concat(), |machine, random| {
        let setups: Vec<_> = (0..STATES / 5)
            .map(|n| {
                let random_mode = if n % 2 == 0 { random_umod } else { random_smod };
                let mut setup = random_mode(random, machine);
                if n % 4 < 2 {
                    setup.extra.retu_rip = setup.extra.smod_entry + 2;
                }
                if n % 3 == 0 {
                    setup.frame.eflags |= RFlags::TF.bits();
                }
                setup
            })
            .collect();
        let at_full_speed = |setup: &Setup| Setup { count: false, ..setup.clone() };
        let expected: Vec<_> =
            setups.iter().map(|setup| observable(run(machine, &at_full_speed(setup)))).collect();
        let check_all = |interception: &str, machine: &mut Machine| {
            for count in [false, true] {
                for (setup, expected) in setups.iter().zip(&expected) {
                    let got = observable(run(machine, &Setup { count, ..setup.clone() }));
                    assert_eq!(&got, expected, "{interception}, count: {count}\n{setup:#x?}");
                }
            }
        };
        check_all("as it is", machine);
        machine.intercept_by_stepping();
        assert_eq!(machine.interception(), Interception::Stepping);
        check_all("by stepping", machine);
    });
}

/// To Linux, some numbers of a system call mean that it is to be restarted. Guests have others.
#[test]
fn no_rax_of_a_guests_syscall_means_anything_to_this_machines_kernel() {
    for_all(SYSCALL, SYSCALL, |machine, random| {
        for errno in (0..=520_i64).chain([4095, 4096]) {
            let mut setup = random_umod(random, machine);
            setup.extra.switch_flags |= SwitchFlags::IRQ_WIN;
            setup.count = false;
            for rax in [-errno, errno, -errno & 0xFFFF_FFFF] {
                setup.frame.rax = rax as u64;
                exits(machine, &setup, &format!("RAX {rax:#x}"));
            }
        }
    });
}

#[test]
fn machines_on_several_threads_do_not_disturb_each_other() {
    std::thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn(move || {
                let mut machine = filled(&Variant::REFERENCE, UD2, SYSCALL);
                let mut random = Random(seed);
                for _ in 0..STATES {
                    let setup = random_umod(&mut random, &machine);
                    let outcome = run(&mut machine, &setup);
                    let pvcs = saved(&machine, &setup.pvcs, &setup.frame, setup.gs_base);
                    assert_eq!(outcome.pvcs, pvcs);
                }
            });
        }
    });
}

#[test]
fn an_endless_guest_is_given_up() {
    let mut machine = filled(&Variant::REFERENCE, SYSCALL, SYSCALL);
    let mut setup = machine.setup(Mode::Umod);
    // smod returns to the SYSCALL for ever.
    machine.load(Mode::Umod, 0, program!(; again: ; syscall ; jmp BYTE <again)).unwrap();
    setup.traps = 1_000;
    match machine.run(&setup) {
        Err(Error::Failure(Failure::Endless { traps: 1_000 })) => {}
        other => panic!("{other:?}"),
    }
    // And the machine is as good as new.
    setup.extra.switch_flags |= SwitchFlags::IRQ_WIN;
    exits(&mut machine, &setup, "inhibited");
}

#[test]
fn int_0x80_of_a_guest_does_not_reach_linux() {
    // exit(rbx), if it did.
    let program = program!(; xor eax, eax ; inc eax ; int BYTE -0x80);
    let mut machine = filled(&Variant::REFERENCE, UD2, UD2);
    machine.load(Mode::Umod, 0, program).unwrap();
    let setup = machine.setup(Mode::Umod);
    for _ in 0..2 {
        match machine.run(&setup) {
            Err(Error::Failure(Failure::OtherSystemCall { rip })) => {
                assert_eq!(rip, setup.frame.rip + program.len() as u64);
            }
            other => panic!("{other:?}"),
        }
        machine.intercept_by_stepping();
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let selectors = Selectors::new(0x08, 0x1B).unwrap();
    let variant = Variant::new(Variant::REFERENCE.config(), selectors).unwrap();
    let image = Image::new(&variant).unwrap();
    assert!(matches!(Machine::with_image(image), Err(Error::Selectors { .. })));

    let mut machine = machine(&Variant::REFERENCE);
    assert!(matches!(
        machine.load(Mode::Smod, Machine::CODE_LEN - 1, UD2),
        Err(Error::ProgramTooLong)
    ));
    let setup = Setup { gs_base: 1 << 60, ..machine.setup(Mode::Smod) };
    assert_not_on_this_cpu(machine.run(&setup), 1 << 60);
}

/// Our handler must not swallow the faults of the rest of the process: seen in a second process,
/// which runs this same test and overflows its stack after a machine has run.
#[test]
fn a_fault_that_is_not_a_machines_still_ends_the_process() {
    const NAME: &str = "a_fault_that_is_not_a_machines_still_ends_the_process";
    const SECOND: &str = "SWITCHER_TEST_OVERFLOWS_ITS_STACK";
    if std::env::var_os(SECOND).is_some() {
        let mut machine = filled(&Variant::REFERENCE, UD2, UD2);
        let setup = machine.setup(Mode::Smod);
        run(&mut machine, &setup);
        println!("{}", endless_recursion(0));
        return;
    }
    let second = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(SECOND, "1")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&second.stderr);
    assert!(message.contains("has overflowed its stack"), "{message}");
    assert_eq!(second.status.signal(), Some(SIGABRT), "{message}");
}

/// What the standard library ends an overflow with.
const SIGABRT: i32 = 6;

fn endless_recursion(depth: u64) -> u64 {
    std::hint::black_box(depth) + if depth == u64::MAX { 0 } else { endless_recursion(depth + 1) }
}
