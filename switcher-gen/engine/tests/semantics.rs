//! Every instruction that the model knows and that user mode can try, on this CPU and in the model:
//! registers, memory, GS base, faults and all flags that the manuals define must be the same.
//!
//! The instructions and the random states are those of `hw-tests/vectors`; both engines run them as
//! a guest. What ring 0 does with them, and with those that are its own, is compared under
//! emulators: `cargo xtask test`. Not here: SYSENTER, INT 0x80 and SYSCALL, which are Linux's
//! (`tests/interpreter.rs` has the guest's), and RDPKRU and WRPKRU, which need CR4.PKE.

use std::sync::atomic::{AtomicU64, Ordering};

use hw_vectors::forms::{self, Form};
use hw_vectors::random::operands;
use switcher_engine::Interpreter;
use switcher_engine::fuzz::scenario::Random;
use switcher_engine::interpreter::PageKind;
use switcher_engine::native::Machine;
use switcher_engine::scenario::{Mode, ScenarioEnd};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::PtRegs;
use switcher_gen::{Image, Variant};

/// Random states per instruction.
const STATES: usize = 48;
/// Where the first test's guest has its page of data. Tests run at the same time.
static DATA: AtomicU64 = AtomicU64::new(0x1234_5678_0000);
const PF: u32 = 14;

/// Both engines, with code and data at the same addresses.
struct Both {
    native: Machine,
    interpreter: Interpreter,
    data: u64,
}

impl Both {
    fn new() -> Self {
        let mut native = Machine::new(&Variant::REFERENCE).unwrap();
        let data = DATA.fetch_add(1 << 20, Ordering::Relaxed);
        native.map_data(data).unwrap();
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let mut interpreter = Interpreter::with_image(image, native.places()).unwrap();
        interpreter.map(Mode::Umod, data, 4096, PageKind::Data);
        Self { native, interpreter, data }
    }

    fn check(&mut self, instructions: &[Form]) {
        for (seed, instruction) in instructions.iter().enumerate() {
            self.check_one(instruction, &mut Random(seed as u64));
        }
        println!("{} instructions", instructions.len());
    }

    fn check_one(&mut self, instruction: &Form, random: &mut Random) {
        let name = &instruction.name;
        let start = self.native.code(Mode::Umod).start;
        let program = instruction.assemble(start).unwrap_or_else(|why| panic!("{name}: {why}"));
        self.native.load(Mode::Umod, 0, &program).unwrap();
        self.interpreter.load(Mode::Umod, 0, &program).unwrap();
        for _ in 0..STATES {
            let mut setup = self.native.setup(Mode::Umod);
            setup.frame = PtRegs { rip: start, ..operands(random, self.data) };
            // TF has tests of its own, and what is not aligned is not to be #AC.
            setup.frame.eflags = random.flags() & !RFlags::AC.bits();
            setup.gs_base = self.data;
            let native = self.native.run(&setup).unwrap_or_else(|why| panic!("{name}: {why}"));
            let modelled =
                self.interpreter.run(&setup).unwrap_or_else(|why| panic!("{name}: {why}"));
            let [native, modelled] = [&native, &modelled]
                .map(|outcome| format!("{:#x?}", comparable(outcome, instruction.undefined)));
            if native != modelled {
                let different = native.lines().zip(modelled.lines()).filter(|(n, m)| n != m);
                let lines: Vec<_> = different.map(|(n, m)| format!("{n} != {m}")).collect();
                let frame = setup.frame;
                panic!("{name}: native != modelled\n{}\n{frame:#x?}", lines.join("\n"));
            }
        }
    }
}

/// What can be the same.
fn comparable(outcome: &ScenarioEnd, undefined: u64) -> (PtRegs, Option<u64>, u64) {
    let mut frame = outcome.frame;
    frame.eflags &= !undefined;
    if frame.orig_ax.reason == PF {
        // Linux shows its own half of the addresses as present.
        frame.orig_ax.error_code &= !1;
    }
    (frame, outcome.cr2, outcome.gs_base)
}

#[test]
fn moves_are_as_on_this_cpu() {
    Both::new().check(&forms::moves());
}

#[test]
fn exchanges_are_as_on_this_cpu() {
    Both::new().check(&forms::exchanges());
}

#[test]
fn strings_and_loops_are_as_on_this_cpu() {
    Both::new().check(&forms::strings_and_loops());
    Both::new().check(&forms::strings_to_the_end());
}

#[test]
fn arithmetic_is_as_on_this_cpu() {
    Both::new().check(&forms::arithmetic());
}

#[test]
fn shifts_and_bit_tests_are_as_on_this_cpu() {
    Both::new().check(&forms::shifts_and_bit_tests());
}

#[test]
fn conditions_are_as_on_this_cpu() {
    Both::new().check(&forms::conditions());
}

#[test]
fn the_stack_and_its_jumps_are_as_on_this_cpu() {
    Both::new().check(&forms::stack_and_jumps());
}

#[test]
fn iretq_within_cpl_3_is_as_on_this_cpu() {
    Both::new().check(&forms::iretq_within_cpl_3());
}

#[test]
fn segments_and_their_bases_are_as_on_this_cpu() {
    Both::new().check(&forms::segments());
}

#[test]
fn what_does_nothing_is_as_on_this_cpu() {
    Both::new().check(&forms::no_effect());
}

#[test]
fn what_ring_3_may_not_is_as_on_this_cpu() {
    Both::new().check(&forms::refused_at_cpl_3());
}
