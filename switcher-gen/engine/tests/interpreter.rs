//! The machine engine: the same scenarios as on this CPU, with the same outcomes in full.
//!
//! Row numbers are those of spec/hazards.md.

use switcher_engine::Interpreter;
use switcher_engine::fuzz::scenario::{Random, USER, random_setup, random_smod, random_umod};
use switcher_engine::interpreter::{Error, PageKind};
use switcher_engine::native;
use switcher_engine::native::Machine;
use switcher_engine::scenario::{
    Emulated, Failure, Mode, Places, ScenarioEnd, Setup, WayIn, WayOut,
};
use switcher_gen::arch::{PagingMode, RFlags, Vendor};
use switcher_gen::asm::Label;
use switcher_gen::layout::{OrigAx, PtRegs, Pvcs, SwitchFlags};
use switcher_gen::{Image, Variant, program};
use switcher_model::Program;

/// Random states per variant and program.
const STATES: usize = 150;

const SYSCALL: &[u8] = program!(; syscall);
const UD2: &[u8] = program!(; ud2);
const NOP: &[u8] = program!(; nop);
const CLI: &[u8] = program!(; cli);
const INT3: &[u8] = program!(; int3);

const PF: u32 = 14;
/// A page fault's error code: the page is there, and not for users.
const PRESENT: u32 = 1;

/// The same image on this CPU and in the model, everything at the same addresses.
struct Both {
    native: Machine,
    interpreter: Interpreter,
}

impl Both {
    fn new(variant: &Variant, smod: &[u8], umod: &[u8]) -> Self {
        let native = Machine::new(variant).unwrap();
        let image = Image::new(variant).unwrap();
        let interpreter = Interpreter::with_image(image, native.places()).unwrap();
        let mut both = Self { native, interpreter };
        for (mode, program) in [(Mode::Smod, smod), (Mode::Umod, umod)] {
            both.load(mode, &program.repeat(Machine::CODE_LEN / program.len()));
        }
        both
    }

    fn load(&mut self, mode: Mode, program: &[u8]) {
        self.native.load(mode, 0, program).unwrap();
        self.interpreter.load(mode, 0, program).unwrap();
    }

    /// Runs both and compares everything. `None` if this CPU's paging mode keeps it from running.
    #[track_caller]
    fn run(&mut self, setup: &Setup) -> Option<ScenarioEnd> {
        let native = match self.native.run(setup) {
            Err(native::Error::Failure(Failure::NotOnThisCpu { .. })) => None,
            native => Some(native.unwrap_or_else(|error| panic!("{error}\n{setup:#x?}"))),
        };
        let modelled =
            self.interpreter.run(setup).unwrap_or_else(|error| panic!("{error}\n{setup:#x?}"));
        if let Some(native) = &native {
            let [native, modelled] = [native, &modelled].map(|o| format!("{:#x?}", comparable(o)));
            if native != modelled {
                let different = native.lines().zip(modelled.lines()).filter(|(n, m)| n != m);
                let lines: Vec<_> = different.map(|(n, m)| format!("{n} != {m}")).collect();
                panic!("native != modelled\n{}\n{setup:#x?}", lines.join("\n"));
            }
        }
        native.map(|_| modelled)
    }
}

/// Without what cannot be the same: signals, the IRETQ that native runs do not emulate, and whether
/// an address is one of this machine's own kernel.
fn comparable(outcome: &ScenarioEnd) -> ScenarioEnd {
    let emulated = Emulated { iretq: 0, ..outcome.emulated };
    let mut outcome = ScenarioEnd { emulated, traps: 0, ..outcome.clone() };
    if outcome.frame.orig_ax.reason == PF {
        outcome.frame.orig_ax.error_code &= !PRESENT;
    }
    outcome
}

fn for_all(smod: &[u8], umod: &[u8], mut check: impl FnMut(&mut Both, &mut Random)) {
    let variants = Variant::representative().filter(|variant| !variant.pku());
    for (seed, variant) in variants.enumerate() {
        println!("{variant}");
        check(&mut Both::new(&variant, smod, umod), &mut Random(seed as u64));
    }
}

#[test]
fn random_guests_come_to_the_same_end_as_on_this_cpu() {
    let programs: [(&[u8], &[u8]); 4] = [
        (UD2, SYSCALL),
        (SYSCALL, UD2),
        (SYSCALL, &[SYSCALL, UD2].concat()),
        (&[SYSCALL, UD2].concat(), &[SYSCALL, UD2].concat()),
    ];
    for (smod, umod) in programs {
        for_all(smod, umod, |both, random| {
            let mut run = 0;
            for n in 0..STATES {
                let random_mode = if n % 2 == 0 { random_umod } else { random_smod };
                let mut setup = random_mode(random, &both.native);
                if n % 4 < 2 {
                    setup.extra.retu_rip = setup.extra.smod_entry + 2;
                }
                setup.count = n % 3 == 0;
                if n % 5 == 0 {
                    setup.frame.eflags |= (RFlags::TF | RFlags::NT).bits();
                }
                if n % 7 == 0 {
                    setup.extra.switch_flags |=
                        SwitchFlags::from_bits_retain(1 << random.below(62) << 2);
                }
                run += usize::from(both.run(&setup).is_some());
            }
            assert_eq!(run, STATES);
        });
    }
}

#[test]
fn flags_and_selectors_of_a_frame_come_to_the_same_end_as_on_this_cpu() {
    for_all(CLI, CLI, |both, random| {
        for bit in 0..64 {
            let rip = random.place(&both.native, Mode::Umod);
            let mut setup = random_setup(random, &both.native, Mode::Umod, rip);
            setup.frame.eflags = 1 << bit;
            setup.count = bit % 2 == 0;
            both.run(&setup);
        }
        for ss in [0, 0x18, 0xFFFB] {
            let rip = random.place(&both.native, Mode::Umod);
            let mut setup = random_setup(random, &both.native, Mode::Umod, rip);
            setup.frame.ss = ss;
            both.run(&setup);
        }
    });
}

/// Rows 1, 3, 4.
#[test]
fn returns_to_any_address_come_to_the_same_end_as_on_this_cpu() {
    for_all(SYSCALL, UD2, |both, random| {
        for bit in 46..64 {
            for rip in [1 << bit, !0 << bit, (1 << bit) | random.below(1 << 47)] {
                for rcx in [rip, random.next()] {
                    let mut setup = random_smod(random, &both.native);
                    setup.pvcs.rip = rip;
                    setup.pvcs.rcx = rcx;
                    setup.pvcs.eflags &= !RFlags::TF.bits() as u32;
                    both.run(&setup);
                }
            }
        }
    });
}

#[test]
fn events_come_to_the_same_end_as_on_this_cpu() {
    let programs: [&[u8]; 10] = [
        INT3,
        NOP,
        program!(; mov eax, 0 ; mov rax, QWORD [rax]),
        program!(; mov eax, 0 ; mov QWORD [rax], rax),
        program!(; mov eax, 0 ; add QWORD [rax], rax),
        // A store to what is executed: mov [rip], rax.
        program!(; .bytes &[0x48, 0x89, 0x05, 0, 0, 0, 0]),
        program!(; mov rax, QWORD i64::MIN ; mov eax, DWORD [rax]),
        program!(; mov rbp, QWORD i64::MIN ; mov eax, DWORD [rbp]),
        program!(; int 17),
        program!(; in al, dx),
    ];
    for_all(UD2, UD2, |both, random| {
        for program in programs {
            both.load(Mode::Umod, program);
            let mut setup = random_umod(random, &both.native);
            // What is unaligned is not to be #AC.
            setup.frame.eflags &= !RFlags::AC.bits();
            setup.frame.rip = both.native.code(Mode::Umod).start;
            assert!(both.run(&setup).is_some());
        }
    });
}

/// Row 13: RF is for one instruction, and INT3 is one.
#[test]
fn rf_is_spent_by_an_instruction_that_traps_as_on_this_cpu() {
    for_all(UD2, INT3, |both, random| {
        let mut setup = random_umod(random, &both.native);
        setup.frame.eflags |= RFlags::RF.bits();
        let outcome = both.run(&setup).unwrap();
        assert_eq!(outcome.frame.eflags & RFlags::RF.bits(), 0);
    });
}

// What this CPU cannot show.

const PAGE: usize = 4096;

fn event(vector: u32, error_code: u32) -> OrigAx {
    OrigAx { error_code, reason: vector }
}

const NO_ERROR_CODE: u32 = !0;

/// A machine whose modes have both their code at the same address.
fn same_address(variant: &Variant) -> Interpreter {
    let places = Places { umod: Interpreter::PLACES.smod, ..Interpreter::PLACES };
    Interpreter::with_image(Image::new(variant).unwrap(), places).unwrap()
}

#[test]
fn each_mode_has_its_own_code_behind_the_same_address() {
    for variant in Variant::representative() {
        let mut machine = same_address(&variant);
        machine.load(Mode::Umod, 0, &[SYSCALL, UD2].concat()).unwrap();
        machine.load(Mode::Smod, 0, &[UD2, UD2].concat()).unwrap();
        let setup = machine.setup(Mode::Umod);
        let outcome = machine.run(&setup).unwrap();
        assert_eq!(outcome.frame.rip, setup.extra.smod_entry, "smod has no SYSCALL there");
        assert_eq!(outcome.extra.switch_flags, SwitchFlags::SMOD);
        // And no page of the other's.
        machine.map(Mode::Umod, 0x5000_0000_0000, PAGE, PageKind::Code);
        let elsewhere = Setup {
            frame: PtRegs { rip: 0x5000_0000_0000, ..machine.setup(Mode::Smod).frame },
            ..machine.setup(Mode::Smod)
        };
        let outcome = machine.run(&elsewhere).unwrap();
        assert_eq!(outcome.frame.orig_ax, event(PF, 0x14));
        assert_eq!(outcome.cr2, Some(0x5000_0000_0000));
    }
}

#[test]
fn an_address_is_canonical_by_the_variants_paging_mode() {
    for variant in Variant::representative() {
        let mut machine = Interpreter::new(&variant).unwrap();
        machine.load(Mode::Smod, 0, SYSCALL).unwrap();
        for bit in [47, 56] {
            for forced_to_iret in [false, true] {
                let mut setup = machine.setup(Mode::Smod);
                setup.pvcs.rip = 1 << bit;
                setup.pvcs.rcx = if forced_to_iret { 0 } else { 1 << bit };
                let outcome = machine.run(&setup).unwrap();
                let canonical = bit == 47 && variant.paging() == PagingMode::FiveLevel;
                let expected = if canonical { event(PF, 0x14) } else { event(13, 0) };
                assert_eq!(outcome.frame.orig_ax, expected, "{variant}: {bit}");
                assert_eq!(outcome.frame.rcx, setup.pvcs.rcx);
            }
        }
    }
}

/// Row 2: whatever follows the last instruction of the canonical half.
#[test]
fn syscall_as_the_last_canonical_instruction_returns_behind_it() {
    for variant in Variant::representative() {
        let mut machine = Interpreter::new(&variant).unwrap();
        let behind = 1 << (variant.paging().address_bits() - 1);
        machine.map(Mode::Umod, behind - PAGE as u64, PAGE, PageKind::Code);
        machine.write_code(Mode::Umod, behind - 2, SYSCALL).unwrap();
        machine.load(Mode::Smod, 0, SYSCALL).unwrap();
        let mut setup = machine.setup(Mode::Umod);
        setup.frame.rip = behind - 2;
        setup.extra.retu_rip = setup.extra.smod_entry + 2;
        let outcome = machine.run(&setup).unwrap();
        assert_eq!(outcome.frame.orig_ax, event(13, 0), "{variant}");
        assert_eq!((outcome.frame.rip, outcome.frame.rcx), (behind, behind));
        let no_room = machine.write_code(Mode::Umod, behind - 1, SYSCALL);
        assert!(matches!(no_room, Err(Error::NoPage { mode: Mode::Umod, len: 2, .. })));
    }
}

/// Row 17.
#[test]
fn a_32_bit_syscall_is_answered_on_amd_and_undefined_on_intel() {
    for variant in Variant::representative() {
        let mut machine = Interpreter::new(&variant).unwrap();
        machine.map(Mode::Umod, 0xC000_0000, PAGE, PageKind::Code);
        machine.write_code(Mode::Umod, 0xC000_0000, &[SYSCALL, UD2].concat()).unwrap();
        let mut setup = machine.setup(Mode::Umod);
        setup.frame.cs = USER.user32_cs().into();
        setup.frame.rip = 0xC000_0000;
        let outcome = machine.run(&setup).unwrap();
        let amd = variant.vendor() == Vendor::Amd;
        assert_eq!(outcome.frame.orig_ax, event(6, NO_ERROR_CODE));
        assert_eq!(outcome.frame.cs, u64::from(USER.user32_cs()));
        assert_eq!(outcome.frame.rip, if amd { 0xC000_0002 } else { 0xC000_0000 });
        assert_eq!(outcome.frame.rax, if amd { -38_i32 as u32 as u64 } else { 0 });
        let crossing = outcome.crossings.iter().find(|crossing| {
            crossing.way_in == WayIn::SyscallCompat(SwitchFlags::UMOD)
                && crossing.way_out == WayOut::Sysretq
        });
        assert_eq!(crossing.is_some(), amd);
    }
}

/// Row 13.
#[test]
fn a_breakpoint_is_passed_with_rf_and_hit_without() {
    let mut machine = Interpreter::new(&Variant::REFERENCE).unwrap();
    machine.load(Mode::Smod, 0, SYSCALL).unwrap();
    machine.load(Mode::Umod, 0, &[NOP, UD2].concat()).unwrap();
    let umod = machine.code(Mode::Umod).start;
    machine.set_breakpoint(Some(umod));
    for (rf, vector, rip) in [(false, 1, umod), (true, 6, umod + 1)] {
        let mut setup = machine.setup(Mode::Smod);
        setup.pvcs.eflags |= if rf { RFlags::RF.bits() as u32 } else { 0 };
        let outcome = machine.run(&setup).unwrap();
        assert_eq!((outcome.frame.orig_ax, outcome.frame.rip), (event(vector, NO_ERROR_CODE), rip));
    }
    machine.set_breakpoint(None);
    let setup = machine.setup(Mode::Smod);
    assert_eq!(machine.run(&setup).unwrap().frame.orig_ax, event(6, NO_ERROR_CODE));
}

#[test]
fn selectors_with_the_same_content_are_loaded_by_iretq_alone() {
    for variant in Variant::representative() {
        let mut machine = Interpreter::new(&variant).unwrap();
        machine.load(Mode::Smod, 0, UD2).unwrap();
        let mut setup = machine.setup(Mode::Smod);
        (setup.frame.cs, setup.frame.ss) = (0x53, 0x5B);
        assert_eq!(machine.run(&setup).unwrap().frame.orig_ax, event(13, 0x50));
        machine.set_aliases((0x53, 0x5B));
        let outcome = machine.run(&setup).unwrap();
        assert_eq!(outcome.frame.orig_ax, event(6, NO_ERROR_CODE));
        assert_eq!((outcome.frame.cs, outcome.frame.ss), (0x53, 0x5B));
        assert_eq!(outcome.crossings[0].way_out, WayOut::Iretq);
    }
}

#[test]
fn a_guest_reads_and_writes_its_own_pages_and_nobody_elses() {
    let mut machine = Interpreter::new(&Variant::REFERENCE).unwrap();
    let stack = 0x6000_0000_0000;
    machine.map(Mode::Umod, stack, PAGE, PageKind::Data);
    let mut run = |program: &[u8], rdi: u64| {
        machine.load(Mode::Umod, 0, program).unwrap();
        let mut setup = machine.setup(Mode::Umod);
        setup.frame.rsp = stack + PAGE as u64 - 16;
        setup.frame.rdi = rdi;
        let outcome = machine.run(&setup).unwrap();
        let frame = outcome.frame;
        assert_eq!(frame.rsp, setup.frame.rsp, "nothing but the fault has happened");
        (frame.orig_ax.reason, frame.orig_ax.error_code, outcome.cr2, frame.rax)
    };
    assert_eq!(run(program!(; push rdi ; pop rax ; ud2), 7), (6, NO_ERROR_CODE, None, 7));
    // To data that is not there, to code, to what is the supervisor's.
    let pop = program!(; pop QWORD [rdi]);
    assert_eq!(run(pop, 0x1000), (PF, 6, Some(0x1000), 0));
    let code = Interpreter::PLACES.umod;
    assert_eq!(run(pop, code + 8), (PF, 7, Some(code + 8), 0));
    let supervisor = Interpreter::PLACES.per_cpu;
    assert_eq!(run(pop, supervisor), (PF, 7, Some(supervisor), 0));
    // Across the end of the page: the first byte that is not there.
    assert_eq!(run(pop, stack + 4092), (PF, 6, Some(stack + 4096), 0));
    // XCHG writes what it reads.
    assert_eq!(run(program!(; xchg QWORD [rdi], rax), 0x1000), (PF, 6, Some(0x1000), 0));
    // A load from what is no address, and from the switcher.
    let load = program!(; mov rax, QWORD [rdi]);
    assert_eq!(run(load, 1 << 63), (13, 0, None, 0));
    let switcher = Interpreter::PLACES.switcher;
    assert_eq!(run(load, switcher), (PF, 5, Some(switcher), 0));
    // A jump to the switcher, which is not executable for the guest.
    assert_eq!(run(program!(; jmp rdi), switcher), (PF, 0x15, Some(switcher), 0));
}

#[test]
fn what_is_not_modelled_is_refused_by_name() {
    let mut machine = Interpreter::new(&Variant::REFERENCE).unwrap();
    let mut error = |program: &[u8], change: fn(&mut Setup)| {
        machine.load(Mode::Umod, 0, program).unwrap();
        let mut setup = machine.setup(Mode::Umod);
        change(&mut setup);
        machine.run(&setup).unwrap_err().to_string()
    };
    let cpuid = error(program!(; cpuid), |_| {});
    assert!(cpuid.contains("`cpuid` is not modelled"), "{cpuid}");
    let branch = error(program!(; jmp rax), |setup| setup.frame.rax = 1 << 63);
    assert!(branch.contains("a branch to what is no address is not modelled"), "{branch}");
    // mov eax, [rip + 1]
    let unaligned =
        error(program!(; .bytes &[0x8B, 0x05, 1, 0, 0, 0]), |setup| setup.frame.eflags |= 1 << 18);
    assert!(unaligned.contains("#AC is not modelled"), "{unaligned}");
    let gs = error(UD2, |setup| setup.gs_base = 1 << 60);
    assert_eq!(gs, "the guest's GS base 0x1000000000000000 is not canonical");
}

#[test]
fn an_endless_guest_is_given_up_and_the_machine_is_as_good_as_new() {
    let mut machine = Interpreter::new(&Variant::REFERENCE).unwrap();
    machine.load(Mode::Smod, 0, SYSCALL).unwrap();
    machine.load(Mode::Umod, 0, program!(; again: ; syscall ; jmp BYTE <again)).unwrap();
    machine.set_limit(10_000);
    let setup = machine.setup(Mode::Umod);
    for _ in 0..3 {
        assert!(matches!(machine.run(&setup), Err(Error::Endless { instructions: 10_000 })));
    }
    machine.clear_code();
    let outcome = machine.run(&setup).unwrap();
    assert_eq!(outcome.frame.orig_ax, event(3, NO_ERROR_CODE));
    assert_eq!(outcome.frame.rip, setup.frame.rip + 1);
}

/// A store that no other check sees: the host's slots and what is reserved stay as they were.
#[test]
fn a_switcher_that_writes_to_the_hosts_memory_is_refused() {
    // On the way to smod, RSP goes to a reserved field instead.
    let store = program!(; mov QWORD [BYTE rdi + Pvcs::rsp], rsp);
    const RESERVED: usize = Pvcs::cr2.bytes() + size_of::<u64>();
    let mut machine = Interpreter::new(&Variant::REFERENCE).unwrap();
    machine.load(Mode::Umod, 0, SYSCALL).unwrap();
    machine.load(Mode::Smod, 0, UD2).unwrap();
    let program = Program::new(0, machine.image().bytes().to_vec());
    let mut at = u64::from(machine.image().offset(Label::Syscall64));
    while !program.from(at).starts_with(store) {
        at = program.instruction(at).next_ip();
    }
    // The displacement is the instruction's last byte.
    machine.overwrite(at as usize + store.len() - 1, &[RESERVED as u8]);
    let mut setup = machine.setup(Mode::Umod);
    setup.frame.rsp = 0x1234;
    match machine.run(&setup) {
        Err(Error::HostMemory { region: "pvcs", offset: RESERVED }) => {}
        other => panic!("{other:?}"),
    }
}
