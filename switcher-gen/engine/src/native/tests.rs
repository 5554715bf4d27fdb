//! Breaks emitted code on purpose, one instruction at a time. The machine must object, for the
//! right reason, and the interpreter must object for the same reason. Rows are those of
//! spec/hazards.md.

use std::ops::Range;

use iced_x86::Mnemonic;

use super::{Error, Failure, Machine, Mode, ScenarioEnd, Setup};
use crate::Interpreter;
use crate::find;
use crate::interpreter;
use crate::scenario::Places;
use switcher_gen::Image;
use switcher_gen::Variant;
use switcher_gen::arch::{Cr3, RFlags, Selectors};
use switcher_gen::asm::{Label, Window};
use switcher_gen::layout::{IretFrame, PerCpu, SwitchFlags, TssExtra};
use switcher_gen::program;

const SYSCALL: &[u8] = program!(; syscall);
const UD2: &[u8] = program!(; ud2);
const NOP: u8 = 0x90;

// The instructions that are searched for.
const AND_FRAME_FLAGS: &[u8] = program!(
    ; and QWORD [BYTE rsp + IretFrame::eflags.below_end()], RFlags::GUEST_ALLOWED.imm32()
);
const MOV_FRAME_CS: &[u8] = program!(
    ; mov QWORD [BYTE rsp + IretFrame::cs.below_end()], Selectors::DEFAULT.user_cs() as i32
);
const IRETQ: &[u8] = program!(; iretq);
const INT3: &[u8] = program!(; int3);
const JMP_RAX: &[u8] = program!(; jmp rax);
const MOV_CR3_RAX: &[u8] = program!(; mov cr3, rax);
const MOV_CR3_RCX: &[u8] = program!(; mov cr3, rcx);
const MOV_SS_CX: &[u8] = program!(; mov ss, cx);
const POP_R15_R14: &[u8] = program!(; pop r15 ; pop r14);
const POP_R14_R15: &[u8] = program!(; pop r14 ; pop r15);
const POP_RBP: &[u8] = program!(; pop rbp);
const PUSH_2_POPFQ: &[u8] = program!(; push 2 ; popfq);
const RDGSBASE_RCX: &[u8] = program!(; rdgsbase rcx);
const RDGSBASE_RSP_SWAPGS: &[u8] = program!(; rdgsbase rsp ; swapgs);
const SHL_SAR_R11_16: &[u8] = program!(; shl r11, 16 ; sar r11, 16);
const SHL_SAR_RCX_16: &[u8] = program!(; shl rcx, 16 ; sar rcx, 16);
const SWAPGS: &[u8] = program!(; swapgs);
const TEST_R11: &[u8] = program!(; test r11, RFlags::sysret_obstacles().imm32());
const XOR_MODE: &[u8] = program!(
    ; xor BYTE [rsp + PerCpu::tss_extra + TssExtra::switch_flags.low_byte()],
        SwitchFlags::MODE_TOGGLE.imm8()
);
const XOR_R11D: &[u8] = program!(; xor r11d, r11d);

/// What a search is for.
enum Wanted {
    /// Instructions that are encoded like this.
    Encoded(&'static [u8]),
    /// The first instruction with this mnemonic.
    Mnemonic(Mnemonic),
}

/// A change to a switcher.
struct Broken {
    variant: Variant,
    /// Where the search for the instructions to break begins.
    label: Label,
    /// The instructions that are searched for.
    good: Wanted,
    /// The bytes that are replaced, counted from the first of these instructions.
    range: Range<usize>,
    /// What they are replaced by. NOPs fill up the rest of the range.
    bad: &'static [u8],
}

impl Broken {
    fn replaced(label: Label, good: &'static [u8], bad: &'static [u8]) -> Self {
        let variant = Variant::REFERENCE;
        Self { variant, label, good: Wanted::Encoded(good), range: 0..good.len(), bad }
    }

    fn dropped(label: Label, good: &'static [u8]) -> Self {
        Self::replaced(label, good, &[])
    }

    /// How it fails from a setup that enters `mode` and differs from the usual in `change`. smod
    /// does ERETU; umod does SYSCALL, then UD2.
    #[track_caller]
    fn failure(&self, mode: Mode, change: impl Fn(&mut Setup)) -> Failure {
        let refused = |result| match result {
            Err(Error::Failure(failure)) => failure,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("not refused"),
        };
        // The interpreter looks at every instruction, as the machine does if it is stepped.
        let stepped = |setup: &mut Setup| {
            change(setup);
            setup.count = true;
        };
        let mut machine = self.machine().expect("this machine can run emitted bytes");
        let mut run = |change: &dyn Fn(&mut Setup)| {
            let mut setup = machine.setup(mode);
            change(&mut setup);
            refused(machine.run(&setup))
        };
        let (unstepped, stepped) = (run(&change), run(&stepped));
        match self.run_modelled(machine.places(), mode, &change) {
            Err(interpreter::Error::Failure(failure)) => assert_eq!(failure, stepped),
            other => panic!("{other:?}, and on this CPU: {stepped}"),
        }
        unstepped
    }

    /// What to write over the good code, and where.
    fn patch(&self, image: &Image) -> (usize, Vec<u8>) {
        let found = match self.good {
            Wanted::Encoded(good) => find::encoded(image, self.label, good),
            Wanted::Mnemonic(mnemonic) => find::instruction(image, self.label, |program, at| {
                program.instruction(at).mnemonic() == mnemonic
            }),
        };
        let mut bad = self.bad.to_vec();
        bad.resize(self.range.len(), NOP);
        (found + self.range.start, bad)
    }

    fn run_modelled(
        &self,
        places: Places,
        mode: Mode,
        change: impl Fn(&mut Setup),
    ) -> Result<ScenarioEnd, interpreter::Error> {
        let mut machine = Interpreter::with_image(Image::new(&self.variant)?, places)?;
        let (offset, bad) = self.patch(machine.image());
        machine.overwrite(offset, &bad);
        machine.load(Mode::Smod, 0, SYSCALL)?;
        machine.load(Mode::Umod, 0, &[SYSCALL, UD2].concat())?;
        let mut setup = machine.setup(mode);
        change(&mut setup);
        machine.run(&setup)
    }

    fn machine(&self) -> Result<Machine, Error> {
        let mut machine = Machine::new(&self.variant)?;
        let (offset, bad) = self.patch(machine.image());
        machine.overwrite(offset, &bad)?;
        machine.load(Mode::Smod, 0, SYSCALL)?;
        machine.load(Mode::Umod, 0, &[SYSCALL, UD2].concat())?;
        Ok(machine)
    }
}

fn unchanged(_: &mut Setup) {}

/// umod does UD2 at once.
fn at_ud2(setup: &mut Setup) {
    setup.frame.rip += SYSCALL.len() as u64;
}

#[test]
fn row_1_sysretq_to_what_is_no_address() {
    let failure =
        Broken::dropped(Label::ReturnToGuest, SHL_SAR_RCX_16).failure(Mode::Smod, |setup| {
            setup.pvcs.rip = 1 << 47;
            setup.pvcs.rcx = 1 << 47;
        });
    assert_eq!(failure, Failure::SysretNonCanonical { rcx: 1 << 47 });
}

#[test]
fn row_5_wrgsbase_of_what_is_no_address() {
    let failure = Broken::dropped(Label::NotToSmod, SHL_SAR_R11_16)
        .failure(Mode::Smod, |setup| setup.pvcs.user_gsbase = 1 << 60);
    assert!(matches!(failure, Failure::Fault { vector: 13, .. }), "{failure}");
}

#[test]
fn row_7_a_swapgs_dropped_on_the_way_in_or_out() {
    // The first access to the per-CPU block goes where the guest's GS base points.
    let failure = Broken::dropped(Label::Syscall64, SWAPGS).failure(Mode::Umod, unchanged);
    assert!(matches!(failure, Failure::Fault { vector: 14, .. }), "{failure}");
    let to_smod = Broken {
        range: RDGSBASE_RSP_SWAPGS.len() - SWAPGS.len()..RDGSBASE_RSP_SWAPGS.len(),
        ..Broken::dropped(Label::Syscall64, RDGSBASE_RSP_SWAPGS)
    };
    let others = [(Label::NotToSmod, Mode::Smod), (Label::EnterGuest, Mode::Umod)];
    let others = others.map(|(label, mode)| (Broken::dropped(label, SWAPGS), mode));
    for (broken, mode) in others.into_iter().chain([(to_smod, Mode::Umod)]) {
        let failure = broken.failure(mode, unchanged);
        assert!(matches!(failure, Failure::Swapgs { .. }), "{:?}: {failure}", broken.label);
    }
}

#[test]
fn row_9_an_exit_that_stays_on_the_guests_root() {
    let broken = Broken::dropped(Label::ReturnFromGuest, MOV_CR3_RAX);
    // Seen where it happens if the code is stepped, and at the return otherwise.
    let stepped = broken.failure(Mode::Umod, |setup| setup.count = true);
    let guest_root = Window::GuestRoot;
    assert!(matches!(stepped, Failure::Window { window, .. } if window == guest_root), "{stepped}");
    let unstepped = broken.failure(Mode::Umod, unchanged);
    assert!(matches!(unstepped, Failure::HostRegister { register: "CR3", .. }), "{unstepped}");
}

#[test]
fn row_13_sysretq_to_a_traced_guest() {
    let r11 = (RFlags::GUEST_FIXED | RFlags::TF).bits();
    // Not the test but the short jump after it.
    let jump = TEST_R11.len();
    let broken =
        Broken { range: jump..jump + 2, ..Broken::dropped(Label::ReturnToGuest, TEST_R11) };
    let failure = broken.failure(Mode::Smod, |setup| {
        setup.pvcs.eflags = r11 as u32;
        setup.pvcs.r11 = r11;
    });
    assert_eq!(failure, Failure::SysretFlags { r11 });
}

#[test]
fn row_14_privileged_flags_by_iretq() {
    let eflags = (RFlags::GUEST_FIXED | RFlags::IOPL).bits();
    // Each reason for an IRETQ has an AND of its own: R11, RCX, the selectors.
    let by_r11 = Broken::dropped(Label::ReturnToGuest, AND_FRAME_FLAGS)
        .failure(Mode::Smod, |setup| setup.pvcs.eflags |= RFlags::IOPL.bits() as u32);
    assert_eq!(by_r11, Failure::IretFrame { cs: 0x33, eflags });
    let by_rcx = Broken::dropped(Label::ReturnOtherRegisters, AND_FRAME_FLAGS).failure(
        Mode::Smod,
        |setup| {
            setup.pvcs.eflags |= RFlags::IOPL.bits() as u32;
            setup.pvcs.rcx = !setup.pvcs.rip;
        },
    );
    assert_eq!(by_rcx, Failure::IretFrame { cs: 0x33, eflags });
    let by_cs = Broken::dropped(Label::ReturnOtherSelectors, AND_FRAME_FLAGS).failure(
        Mode::Umod,
        |setup| {
            setup.frame.eflags |= RFlags::IOPL.bits();
            setup.frame.cs = 0x23;
        },
    );
    assert_eq!(by_cs, Failure::IretFrame { cs: 0x23, eflags });
}

/// An ERETU leaves the selectors to the code before the IRETQ. An earlier frame lies there.
#[test]
fn row_25_selectors_of_an_earlier_frame_by_iretq() {
    let failure = Broken::dropped(Label::ReturnByIretq, MOV_FRAME_CS)
        .failure(Mode::Smod, |setup| setup.pvcs.rcx = !setup.pvcs.rip);
    assert!(matches!(failure, Failure::IretFrame { cs: 0x10, .. }), "{failure}");
}

#[test]
fn row_16_flags_of_the_guest_in_the_host() {
    for flag in [RFlags::DF, RFlags::AC] {
        let failure =
            Broken::dropped(Label::ReturnFromGuest, PUSH_2_POPFQ).failure(Mode::Umod, |setup| {
                at_ud2(setup);
                setup.frame.eflags |= flag.bits();
            });
        let (register, value) = ("DF, AC, NT, IOPL", flag.bits());
        assert_eq!(failure, Failure::HostRegister { register, value, expected: 0 });
    }
}

#[test]
fn row_18_a_null_ss_kept_for_the_next_sysretq() {
    let variant = "amd-4level".parse().expect("this variant exists");
    let broken = Broken { variant, ..Broken::dropped(Label::ReturnFromGuest, MOV_SS_CX) };
    assert_eq!(broken.failure(Mode::Umod, at_ud2), Failure::NullSs);
}

#[test]
fn row_19_a_root_that_is_not_prepared() {
    // Its opcode has two bytes, its distance four.
    let broken = Broken {
        variant: Variant::REFERENCE,
        label: Label::Syscall64,
        good: Wanted::Mnemonic(Mnemonic::Jne),
        range: 0..6,
        bad: &[],
    };
    let failure = broken.failure(Mode::Umod, |setup| {
        setup.extra.switch_flags |= SwitchFlags::NO_DS_CR3;
        setup.extra.smod_cr3 = Cr3::NONE;
    });
    assert_eq!(failure, Failure::Cr3 { value: 0 });
}

#[test]
fn row_26_mode_without_root_and_root_without_mode() {
    for good in [XOR_MODE, MOV_CR3_RCX] {
        let failure = Broken::dropped(Label::Syscall64, good).failure(Mode::Umod, unchanged);
        assert!(matches!(failure, Failure::Root { .. }), "{failure}");
    }
}

#[test]
fn row_27_a_hosts_registers_swapped_or_a_guests_kept() {
    let failure = Broken::replaced(Label::ReturnFromGuest, POP_R15_R14, POP_R14_R15)
        .failure(Mode::Umod, unchanged);
    assert!(matches!(failure, Failure::HostRegister { register: "R14", .. }), "{failure}");

    let failure = Broken::dropped(Label::ReturnFromGuest, XOR_R11D)
        .failure(Mode::Umod, |setup| setup.frame.r11 = 0x5EC2E7);
    assert!(matches!(failure, Failure::HostRegister { register: "R11", .. }), "{failure}");
}

#[test]
fn row_30_a_trap_instruction_is_not_passed() {
    let broken = Broken::replaced(Label::Syscall64, RDGSBASE_RCX, INT3);
    let failure = broken.failure(Mode::Umod, unchanged);
    assert!(matches!(failure, Failure::Fault { vector: 3, .. }), "{failure}");
}

#[test]
fn control_that_leaves_the_switcher_otherwise_is_caught() {
    // RAX is the frame's address, and no code.
    // It takes the place of the last POP and of the RET after it.
    let pop_and_ret = 0..JMP_RAX.len();
    let broken =
        Broken { range: pop_and_ret, ..Broken::replaced(Label::ReturnFromGuest, POP_RBP, JMP_RAX) };
    let stepped = broken.failure(Mode::Umod, |setup| setup.count = true);
    assert!(matches!(stepped, Failure::Astray { .. }), "{stepped}");
    // Unstepped it passes for an IRETQ, but for one on the host's root.
    let unstepped = broken.failure(Mode::Umod, unchanged);
    assert!(matches!(unstepped, Failure::Root { .. }), "{unstepped}");
}

/// IRETQ in ring 0 would load the host's CS. The engine must refuse.
#[test]
fn a_host_that_asks_for_ring_0_is_told() {
    let broken = Broken::replaced(Label::Iretq, IRETQ, IRETQ);
    let failure = broken.failure(Mode::Smod, |setup| setup.frame.cs = 0x10);
    let eflags = RFlags::GUEST_FIXED.bits();
    assert_eq!(failure, Failure::IretFrame { cs: 0x10, eflags });
}
