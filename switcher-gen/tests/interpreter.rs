//! The machine engine: the same scenarios as on this CPU, with the same outcomes in full.
//!
//! Row numbers are those of spec/hazards.md.

mod scenarios;

use switcher_gen::arch::RFlags;
use switcher_gen::layout::SwitchFlags;
use switcher_gen::machine::Interpreter;
use switcher_gen::native::{self, Machine};
use switcher_gen::scenario::{Emulated, Failure, Mode, Outcome, Setup};
use switcher_gen::{Image, Variant};

use scenarios::{Random, random_setup, random_smod, random_umod};

/// Random states per variant and program.
const STATES: usize = 150;

const SYSCALL: [u8; 2] = [0x0F, 0x05];
const UD2: [u8; 2] = [0x0F, 0x0B];
const NOP: [u8; 1] = [0x90];
const CLI: [u8; 1] = [0xFA];
const INT3: [u8; 1] = [0xCC];

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
    fn run(&mut self, setup: &Setup) -> Option<Outcome> {
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
fn comparable(outcome: &Outcome) -> Outcome {
    let emulated = Emulated { iretq: 0, ..outcome.emulated };
    let mut outcome = Outcome { emulated, traps: 0, ..outcome.clone() };
    if outcome.frame.orig_ax.reason == PF {
        outcome.frame.orig_ax.error_code &= !PRESENT;
    }
    outcome
}

fn for_all(smod: &[u8], umod: &[u8], mut check: impl FnMut(&mut Both, &mut Random)) {
    for (seed, variant) in Variant::all().enumerate() {
        println!("{variant}");
        check(&mut Both::new(&variant, smod, umod), &mut Random(seed as u64));
    }
}

#[test]
fn random_guests_come_to_the_same_end_as_on_this_cpu() {
    let programs: [(&[u8], &[u8]); 4] = [
        (&UD2, &SYSCALL),
        (&SYSCALL, &UD2),
        (&SYSCALL, &[SYSCALL, UD2].concat()),
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
    for_all(&CLI, &CLI, |both, random| {
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
    for_all(&SYSCALL, &UD2, |both, random| {
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
        &INT3,
        &NOP,
        &[0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0], // mov rax, [0]
        &[0x48, 0x89, 0x04, 0x25, 0, 0, 0, 0], // mov [0], rax
        &[0x48, 0x01, 0x04, 0x25, 0, 0, 0, 0], // add [0], rax
        &[0x48, 0x89, 0x05, 0, 0, 0, 0],       // mov [rip], rax
        &[0x48, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x8B, 0x00], // mov rax, 1 << 63; mov eax, [rax]
        &[0x48, 0xBD, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x8B, 0x45, 0], // the same by RBP
        &[0xCD, 17],                           // int 17
        &[0xEC],                               // in al, dx
    ];
    for_all(&UD2, &UD2, |both, random| {
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
