//! Attacks on the theorems about events: entries that treat one vector unlike the others, or end
//! the blocking of NMIs too early. Each must be refused, for the reason given.
//!
//! Row numbers are those of spec/hazards.md.

mod ours;
mod text;

use iced_x86::{Code, Instruction, MemoryOperand, Register};
use ours::{Ours, proved, refused, stack};
use switcher_gen::Variant;
use switcher_gen::arch::vector;
use switcher_gen::asm::Label;
use switcher_gen::layout::{OrigAx, PerCpu, PtRegs, Pvcs, TssExtra};
use switcher_model::Program;
use switcher_prove::mutate;
use switcher_prove::mutate::Operator;
use switcher_prove::{Findings, Prover, Target, Verdict};
use text::text;

/// A comparison of the vector, which is at the top of the stack.
fn compare(vector: u8) -> Instruction {
    Instruction::with2(Code::Cmp_rm8_imm8, stack(0), i32::from(vector)).unwrap()
}

fn release(bytes: i32) -> Instruction {
    Instruction::with2(Code::Add_rm64_imm8, Register::RSP, bytes).unwrap()
}

fn iretq() -> Instruction {
    Instruction::with(Code::Iretq)
}

const VARIANTS: [&str; 2] = ["intel-4level", "amd-la57-percpu"];

#[test]
fn right_code_with_more_in_it_is_proved() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        // Every vector is compared with something, and nothing depends on it.
        let harmless = [compare(0x21), ours.on(Code::Je_rel8_64)];
        proved(&ours.with(Label::EventFromGuest, &harmless));
    }
}

#[test]
fn interrupts_from_some_vector_on_are_swallowed() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for vector in [0xC0, 0x20, 0xFF] {
            let swallow = [compare(vector), ours.on(Code::Jb_rel8_64), release(16), iretq()];
            refused(&ours.with(Label::EventFromGuest, &swallow), 25, "iretq-ring-0");
        }
    }
}

#[test]
fn one_exception_is_never_reported() {
    let ours = Ours::new("intel-4level");
    for number in [vector::UD, vector::PF, 7, 16, 19, 20, 21, 28, 29, 30, 31] {
        let skip = Instruction::with2(Code::Add_rm64_imm8, stack(16), 2).unwrap();
        let swallow = [compare(number), ours.on(Code::Jne_rel8_64), skip, release(16), iretq()];
        refused(&ours.with(Label::EventFromGuest, &swallow), 25, "iretq-ring-0");
    }
}

#[test]
fn one_vector_writes_to_the_hosts_memory() {
    let ours = Ours::new("intel-4level");
    let at = (PerCpu::tss_extra.bytes() + TssExtra::host_cr3.bytes()) as i64;
    let slot = MemoryOperand::new(Register::None, Register::None, 1, at, 8, false, Register::GS);
    // #AC, whose error code is zero, and an interrupt.
    for number in [17, 0xEC] {
        let store = Instruction::with2(Code::Mov_rm64_r64, slot, Register::RAX).unwrap();
        let poison = [compare(number), ours.on(Code::Jne_rel8_64), store];
        refused(&ours.with(Label::EventOnSp0, &poison), 36, "kept");
    }
}

#[test]
fn one_vector_loses_a_register() {
    let ours = Ours::new("amd-la57-percpu");
    for number in [0x21, 0x80, 0xFE, 3, 13] {
        let clear = Instruction::with2(Code::Xor_r32_rm32, Register::R15D, Register::R15D).unwrap();
        let spoilt = [compare(number), ours.on(Code::Jne_rel8_64), clear];
        refused(&ours.with(Label::EventOnSp0, &spoilt), 38, "exit-frame");
    }
}

#[test]
fn a_bit_of_the_vector_is_cut() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        let mov = ours.find(Label::EventOnSp0, &text!(; mov QWORD [BYTE rsp + PtRegs::rdi], rdi));
        for bit in 0..8 {
            let mask = !(1 << bit);
            let and = Instruction::with2(Code::And_rm32_imm32, Register::EAX, mask & 0xFF).unwrap();
            let cut = mutate::inserted(&ours.target, mov, &[and]).unwrap();
            refused(&cut, 38, "exit-frame");
        }
        // Its sign is not cut.
        let movzx = ours
            .find(Label::EventOnSp0, &text!(; movzx eax, BYTE [BYTE rsp + PtRegs::rdi.low_byte()]));
        refused(&ours.patched(movzx + 1, &[0xBE]), 38, "exit-frame");
    }
}

#[test]
fn a_stub_pushes_another_vector() {
    for (variant, push) in [("intel-4level", 1), ("intel-4level-ibt", 5)] {
        let ours = Ours::new(variant);
        for vector in [0, 3, 10, 14, 17, 32, 0x7F, 0x80, 0xC1, 255] {
            let other = ours.patched(ours.stub(vector) + push, &[vector ^ 0x40]);
            refused(&other, 38, "exit-frame");
        }
    }
}

/// Where indirect branches are tracked, they are tracked in ring 0 whatever has led there.
#[test]
fn an_event_jumps_to_anything_under_ibt() {
    for (variant, is_tracked) in [("intel-4level", false), ("intel-4level-ibt", true)] {
        let ours = Ours::new(variant);
        // RAX is saved there, and loaded next.
        let at = ours
            .find(Label::EventOnSp0, &text!(; movzx eax, BYTE [BYTE rsp + PtRegs::rdi.low_byte()]));
        let behind = MemoryOperand::with_base_displ(
            Register::RIP,
            mutate::behind(&ours.target).cast_signed(),
        );
        let jump = [
            Instruction::with2(Code::Lea_r64_m, Register::RAX, behind).unwrap(),
            Instruction::with1(Code::Jmp_rm64, Register::RAX).unwrap(),
            Instruction::with(Code::Int3),
        ];
        let changed = mutate::inserted(&ours.target, at, &jump).unwrap();
        let found = Prover::default().findings(&changed).unwrap();
        let names: Vec<_> = found.refuted.iter().map(|found| found.obligation.name).collect();
        assert_eq!(names.contains(&"endbr"), is_tracked, "{variant}: {names:?}");
    }
}

#[test]
fn stubs_are_swapped() {
    let ours = Ours::new("intel-4level");
    // The second pair takes one with an error code for one without.
    for [a, b] in [[32, 33], [0x90, 0x91]] {
        let mut target = ours.target.clone();
        let gates = target.gates.as_mut().unwrap();
        (gates[a].address, gates[b].address) = (gates[b].address, gates[a].address);
        refused(&target, 38, "exit-frame");
    }
    let mut target = ours.target.clone();
    let gates = target.gates.as_mut().unwrap();
    (gates[13].address, gates[33].address) = (gates[33].address, gates[13].address);
    let found = Prover::default().prove(&target);
    assert!(matches!(found, Verdict::Refuted(_)), "{found:?}");
}

#[test]
fn a_stub_does_more_than_others() {
    let ours = Ours::new("intel-4level");
    for vector in [0x21, 0xC0, 13] {
        let more = mutate::inserted(
            &ours.target,
            ours.stub(vector),
            &[Instruction::with2(Code::Xor_r32_rm32, Register::EDX, Register::EDX).unwrap()],
        );
        refused(&more.unwrap(), 38, "exit-frame");
        // What does no harm is proved, too.
        let same = [Instruction::with(Code::Nopd)];
        proved(&mutate::inserted(&ours.target, ours.stub(vector), &same).unwrap());
    }
}

#[test]
fn one_gate_has_another_stack_or_is_missing() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for vector in [0x21, 14, 0xFF] {
            let mut target = ours.target.clone();
            target.gates.as_mut().unwrap()[ours.gate(vector)].ist = 2;
            refused(&target, 38, "gate-ist");
            let mut target = ours.target.clone();
            target.gates.as_mut().unwrap().remove(ours.gate(vector));
            refused(&target, 38, "gate-ist");
        }
    }
}

#[test]
fn faults_of_the_iretq_are_told_apart() {
    let ours = Ours::new("intel-4level");
    let compared = ours.find(Label::EventRing0, "cmp eax,2");
    // #SS is the host's.
    let unexpected = ours.at(Label::EventUnexpected);
    for fault in [0, 1, 2] {
        let other = [
            Instruction::with2(Code::Cmp_rm32_imm8, Register::EAX, fault).unwrap(),
            Instruction::with_branch(Code::Je_rel32_64, unexpected).unwrap(),
        ];
        let target = mutate::inserted(&ours.target, compared, &other).unwrap();
        refused(&target, 38, "iretq-label");
    }
    // #PF is the guest's; or an interrupt with that number and more, if its high bits are not seen.
    refused(&ours.patched(compared + 1, &[3]), 7, "memory");
    let and = Instruction::with2(Code::And_rm32_imm8, Register::EAX, 0x1F).unwrap();
    let target = mutate::inserted(&ours.target, compared, &[and]).unwrap();
    let found = Prover::default().prove(&target);
    assert!(matches!(found, Verdict::Refuted(_)), "{found:?}");
}

// NMIs.

/// The mutant with an IRETQ in front of what is at `label`.
fn with_iretq(ours: &Ours, at: u64) -> Target {
    let mutants = mutate::mutants(&ours.target);
    let here = mutants.iter().find(|m| m.operator == Operator::Unblock && m.at == at);
    here.unwrap().target().unwrap()
}

#[test]
fn an_iretq_ends_the_blocking_within_an_nmi() {
    for variant in ["intel-4level", "amd-la57-pcid", "intel-4level+ibrs+rsb+bhb"] {
        let ours = Ours::new(variant);
        for label in
            [Label::Interruption, Label::InterruptionHook, Label::McHook, Label::InterruptionOver]
        {
            refused(&with_iretq(&ours, ours.at(label)), 39, "nmi-blocked");
        }
        let near_the_end = ours.find(Label::InterruptionOver, "pop r15");
        refused(&with_iretq(&ours, near_the_end), 39, "nmi-blocked");
        // The frame is still on the NMIs' stack.
        refused(&with_iretq(&ours, ours.at(Label::EventIstFromGuest)), 11, "nmi-stack");
        // What a #MC or a #DB has interrupted may be an NMI.
        for label in [Label::EventDbRing0, Label::ResumeRing0, Label::ResumeOnStack] {
            refused(&with_iretq(&ours, ours.at(label)), 39, "nmi-blocked");
        }
    }
}

/// What this project's own entries did.
#[test]
fn a_machine_check_returns_by_iretq_wherever_it_came() {
    let ours = Ours::new("intel-4level");
    let mut always = ours.target.clone();
    let mut at = ours.at(Label::ResumeRing0);
    while at < ours.at(Label::ResumeOnStack) {
        let jump = always.program.instruction(at);
        if jump.is_jcc_short() {
            always.program.patch(at, &[0x90, 0x90]);
        }
        at = jump.next_ip();
    }
    let found = match Prover::default().prove(&always) {
        Verdict::Refuted(found) => found,
        other => panic!("{other:?}"),
    };
    assert!(["resumed", "nmi-blocked"].contains(&found.obligation.name), "{found}");
    let without = |nth: usize| {
        let jumps = mutate::mutants(&ours.target).into_iter();
        let range = ours.at(Label::ResumeRing0)..ours.at(Label::ResumeOnStack);
        let mut jumps = jumps.filter(|m| {
            m.operator == Operator::Delete && range.contains(&m.at) && m.original.starts_with('j')
        });
        jumps.nth(nth).unwrap().target().unwrap()
    };
    for nth in [0, 1] {
        let found = Prover::default().prove(&without(nth));
        assert!(matches!(found, Verdict::Refuted(_)), "{nth}: {found:?}");
    }
}

#[test]
fn the_code_and_its_target_disagree_about_where_nmis_are_blocked() {
    let ours = Ours::new("intel-4level");
    let routines = ours.target.routines.clone().unwrap();
    let with = |routines| {
        let mut target = ours.target.clone();
        target.routines = routines;
        target
    };
    // No such range: then no IRETQ.
    refused(&with(None), 39, "stack-room");
    // One that has an NMI's entry in it, or only the stubs.
    let wide = routines.start..ours.at(Label::EventStubs);
    refused(&with(Some(wide)), 39, "nmi-open");
    // One that lacks code in which RSP is a guest's.
    let narrow = routines.start..ours.at(Label::Syscall64);
    refused(&with(Some(narrow)), 39, "stack-room");
    // The same of the code alone: a return by IRETQ from the stubs of NMIs.
    let lea = ours.at(Label::ResumeRing0);
    let mut at = lea;
    let mut seen = 0;
    while seen < 2 {
        at = ours.target.program.instruction(at).next_ip();
        seen += u32::from(ours.target.program.instruction(at).is_ip_rel_memory_operand());
    }
    let next = ours.target.program.instruction(at).next_ip();
    let far = (ours.at(Label::EventStubs) - next) as u32;
    let found = Prover::default().prove(&ours.patched(at + 3, &far.to_le_bytes()));
    let Verdict::Refuted(found) = found else { panic!("{found:?}") };
    assert!(["resumed", "nmi-blocked"].contains(&found.obligation.name), "{found}");
}

#[test]
fn the_other_way_back_is_taken_where_it_must_not_be() {
    let ours = Ours::new("intel-4level");
    // Always: on the guest's RSP.
    let push = ours.at(Label::ResumeRing0);
    let on_stack = ours.at(Label::ResumeOnStack);
    let lea = ours.target.program.instruction(push + 1).next_ip();
    let over = u8::try_from(on_stack - (lea + 2)).unwrap();
    refused(&ours.patched(lea, &[0xEB, over]), 39, "resumed-stack");
    // By an NMI: NMIs are blocked for ever.
    let je = ours.find(
        Label::InterruptionOver,
        &text!(; cmp BYTE [BYTE rsp + OrigAx::reason.low_byte().below_end()], vector::MC.cast_signed()),
    );
    let je = ours.target.program.instruction(je).next_ip();
    let jump = ours.target.program.instruction(je);
    assert_eq!(jump.code(), Code::Je_rel32_64);
    let rel = (jump.near_branch_target().wrapping_sub(je + 6) as u32).to_le_bytes();
    let bytes = [&[0x90, 0xE9][..], &rel].concat();
    let found = Prover::default().prove(&ours.patched(je, &bytes));
    let Verdict::Refuted(found) = found else { panic!("{found:?}") };
    assert!(
        ["resumed-stack", "memory", "nmi-unblocked"].contains(&found.obligation.name),
        "{found}"
    );
}

#[test]
fn what_is_interrupted_loses_what_lies_below_its_stack() {
    let ours = Ours::new("intel-4level");
    let sub = ours.code(Label::ResumeOnStack, Code::Sub_RAX_imm32);
    let ret = ours.code(Label::ResumeOnStack, Code::Retfq_imm16);
    // 8 bytes of the red zone.
    let mut near = ours.patched(sub + 2, &[0x90]);
    near.program.patch(ret + 2, &[0x78]);
    refused(&near, 22, "unchanged");
    // RSP is another.
    refused(&ours.patched(ret + 2, &[0x78]), 27, "resumed-registers");
    // More than there is room for.
    let mut deep = ours.patched(sub + 2, &[0x98, 1]);
    deep.program.patch(ret + 2, &[0x80, 1]);
    refused(&deep, 22, "memory");
}

/// Row 40: the fault of such an IRETQ would be reported with the registers that lie 40 bytes
/// higher.
#[test]
fn an_iretq_to_the_guest_from_a_copy_of_its_frame() {
    let ours = Ours::new("intel-4level");
    for copies in [1, 2, 3] {
        let push = Instruction::with1(Code::Push_rm64, stack(32)).unwrap();
        let more = vec![push; 5 * copies];
        let mut target = ours.with(Label::Iretq, &more[..]);
        // The label is the IRETQ's still.
        target.iretq = target.iretq.map(|at| at + 20 * copies as u64);
        refused(&target, 40, "iretq-frame");
    }
}

/// All that other variants have of their own.
#[test]
fn all_variants_keep_nmis_blocked() {
    // Where VERW comes last, that is broken first.
    let variants = Variant::representative().filter(|v| !v.mitigations().verw);
    for variant in variants {
        let ours = Ours::new(&variant.to_string());
        refused(&with_iretq(&ours, ours.at(Label::InterruptionHook)), 39, "nmi-blocked");
    }
}

// What comes between two instructions.

fn switch_flags() -> MemoryOperand {
    let at = (PerCpu::tss_extra.bytes() + TssExtra::switch_flags.bytes()) as i64;
    MemoryOperand::new(Register::None, Register::None, 1, at, 8, false, Register::GS)
}

/// Row 37: the bit that a hook sets is found by the second look.
#[test]
fn a_hook_sets_a_bit_between_two_looks() {
    let ours = Ours::new("intel-4level");
    let to_smod = ours.find(Label::Syscall64, &text!(; mov QWORD [BYTE rdi + Pvcs::rip], rcx));
    let trap = Instruction::with(Code::Ud2);
    let again = [
        Instruction::with2(Code::Cmp_rm64_imm8, switch_flags(), 2).unwrap(),
        ours.on(Code::Je_rel8_64),
        trap,
    ];
    refused(&mutate::inserted(&ours.target, to_smod, &again).unwrap(), 30, "no-trap");
    let twice = [
        Instruction::with2(Code::Mov_r64_rm64, Register::RCX, switch_flags()).unwrap(),
        Instruction::with2(Code::Cmp_r64_rm64, Register::RCX, switch_flags()).unwrap(),
        ours.on(Code::Je_rel8_64),
        trap,
    ];
    refused(&ours.with(Label::ReturnFromGuest, &twice), 30, "no-trap");
    // Over a hook and after it.
    refused(&ours.with(Label::InterruptionOver, &twice), 30, "no-trap");
    // Once is enough for nothing.
    proved(&ours.with(Label::InterruptionOver, &twice[..1]));
}

/// Row 36.
#[test]
fn a_guest_is_in_no_mode_for_an_instruction() {
    let ours = Ours::new("intel-4level");
    let to_smod = ours.find(Label::Syscall64, &text!(; mov QWORD [BYTE rdi + Pvcs::rip], rcx));
    let toggle = Instruction::with2(Code::Xor_rm8_imm8, switch_flags(), 2).unwrap();
    let target = mutate::inserted(&ours.target, to_smod, &[toggle, toggle]).unwrap();
    refused(&target, 36, "one-mode");
}

/// A register is kept at RSP and this over an instruction.
fn keep(register: Register, at: i64) -> [Instruction; 3] {
    [
        Instruction::with2(Code::Mov_rm64_r64, stack(at), register).unwrap(),
        Instruction::with2(Code::Mov_r64_imm64, register, 0_u64).unwrap(),
        Instruction::with2(Code::Mov_r64_rm64, register, stack(at)).unwrap(),
    ]
}

/// Rows 8, 27 and 39: a #MC or a #DB puts its far frame there.
#[test]
fn what_lies_deep_below_rsp_is_overwritten() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for (label, row, obligation) in [
            (Label::EventNmi, 38, "exit-frame"),
            (Label::EventMc, 38, "exit-frame"),
            (Label::EventDb, 38, "exit-frame"),
            (Label::EventIstFromGuest, 38, "exit-frame"),
            (Label::Interruption, 27, "hook-frame"),
            (Label::EventDbRing0, 27, "resumed-registers"),
        ] {
            for at in [-0x84, -0x88, -0x90, -0x98, -0xA0] {
                refused(&ours.with(label, &keep(Register::R15, at)), row, obligation);
            }
            // That much is left alone.
            proved(&ours.with(label, &keep(Register::R15, -0x80)));
        }
        let switch = ours.find(Label::EventIstFromGuest, "mov rsp,rdi");
        let kept = keep(Register::RSI, -0x98);
        refused(&mutate::inserted(&ours.target, switch, &kept).unwrap(), 38, "exit-frame");
        // RSP is raised over what is pushed, and over what the CPU has pushed.
        let pop = ours.find(Label::InterruptionOver, "pop r15");
        let raised = |by: i32| {
            let add = Instruction::with2(Code::Add_rm64_imm32, Register::RSP, by).unwrap();
            let sub = Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, by).unwrap();
            mutate::inserted(&ours.target, pop, &[add, Instruction::with(Code::Nopd), sub]).unwrap()
        };
        for by in [0x88, 0x98, 0xA0] {
            refused(&raised(by), 27, "resumed-registers");
        }
        proved(&raised(0x80));
        // Two looks at what nobody has put there.
        let looks = [
            Instruction::with2(Code::Mov_r64_rm64, Register::RAX, stack(-0xA0)).unwrap(),
            Instruction::with2(Code::Cmp_r64_rm64, Register::RAX, stack(-0xA0)).unwrap(),
            ours.on(Code::Je_rel8_64),
            Instruction::with(Code::Ud2),
        ];
        refused(&ours.with(Label::InterruptionOver, &looks), 30, "no-trap");
    }
}

/// Row 39: once RSP is elsewhere, the next event begins at the top of that stack.
#[test]
fn an_event_reads_its_stack_when_rsp_has_left_it() {
    let ours = Ours::new("intel-4level");
    let pop = ours.find(Label::ResumeOnStack, "pop rcx");
    let at_rcx = |at| MemoryOperand::with_base_displ(Register::RCX, at);
    let late = [
        Instruction::with2(Code::Mov_r64_rm64, Register::RCX, Register::RSP).unwrap(),
        Instruction::with2(Code::Mov_r64_rm64, Register::RSP, stack(40)).unwrap(),
        Instruction::with2(Code::Mov_r64_rm64, Register::RAX, at_rcx(8)).unwrap(),
        Instruction::with2(Code::Mov_r64_rm64, Register::RCX, at_rcx(0)).unwrap(),
        Instruction::with(Code::Popfq),
        Instruction::with1(Code::Retfq_imm16, 128).unwrap(),
        Instruction::with(Code::Ud2),
    ];
    refused(&mutate::inserted(&ours.target, pop, &late).unwrap(), 27, "resumed-registers");
    // The last look is the one by which RSP leaves.
    let in_time = [
        Instruction::with2(Code::Mov_r64_rm64, Register::RCX, stack(0)).unwrap(),
        Instruction::with2(Code::Mov_r64_rm64, Register::RAX, stack(8)).unwrap(),
        Instruction::with2(Code::Mov_r64_rm64, Register::RSP, stack(40)).unwrap(),
        Instruction::with(Code::Popfq),
        Instruction::with1(Code::Retfq_imm16, 128).unwrap(),
        Instruction::with(Code::Ud2),
    ];
    proved(&mutate::inserted(&ours.target, pop, &in_time).unwrap());
}

/// Rows 14 and 40: the theorem about a fault of that IRETQ is not about such flags.
#[test]
fn ring_0_has_other_flags_at_the_iretq_to_a_guest() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for (flags, is_right) in [(0x3002, false), (0x1002, false), (0x0003, true)] {
            let code = [
                Instruction::with1(Code::Pushq_imm32, flags).unwrap(),
                Instruction::with(Code::Popfq),
            ];
            let target = ours.with(Label::ReturnToGuest, &code);
            if is_right {
                proved(&target);
            } else {
                refused(&target, 40, "iretq-flags");
            }
        }
    }
}

/// Others' files may have the stubs in another piece than the routines.
#[test]
fn code_lies_in_several_pieces() {
    let ours = Ours::new("intel-4level");
    let bytes = ours.target.program.first_piece();
    let stubs = ours.image.offset(Label::EventStubs) as usize;
    // A trap is left where one may be wanted.
    let end = bytes[..stubs].iter().rposition(|byte| *byte != 0xCC).unwrap() + 2;
    assert!(end < stubs, "there is filler in front of the stubs");
    let pieces = [(0, &bytes[..end]), (stubs, &bytes[stubs..])];
    let pieces = pieces.map(|(at, bytes)| (Target::BASE + at as u64, bytes.to_vec()));
    let mut target = ours.target.clone();
    target.program = Program::of_pieces(Target::BASE, pieces);
    proved(&target);
}

/// Which of them the CPU takes, nobody can say.
#[test]
fn a_vector_has_two_gates() {
    let ours = Ours::new("intel-4level");
    for (vector, other) in [(0x21, 0x80), (14, 13), (2, 2)] {
        let mut target = ours.target.clone();
        let gates = target.gates.as_mut().unwrap();
        let mut more = gates[vector];
        more.address = gates[other].address;
        gates.push(more);
        refused(&target, 38, "gate-once");
    }
}

/// Rows 10 and 39: a #DB that MOV SS has left pending comes at a stub's first instruction, and a
/// #MC at its return.
#[test]
fn a_stub_leaves_no_room_below_it() {
    let ours = Ours::new("intel-4level");
    for vector in [3, 13] {
        let deep = |by: i32| {
            let sub = Instruction::with2(Code::Sub_rm64_imm32, Register::RSP, by).unwrap();
            let add = Instruction::with2(Code::Add_rm64_imm32, Register::RSP, by).unwrap();
            mutate::inserted(&ours.target, ours.stub(vector), &[sub, add]).unwrap()
        };
        for by in [136, 200, 336] {
            refused(&deep(by), 39, "stack-room");
        }
        // The fault of the IRETQ to a guest comes 40 bytes further down.
        proved(&deep(64));
    }
}

// What the host's own code has raised.

#[test]
fn what_is_handed_on_is_as_the_cpu_has_delivered_it() {
    let ours = Ours::new("intel-4level");
    // RAX lies there, below the vector.
    let in_frame = |offset: i64| stack(8 + offset);
    let with =
        |operation: Result<Instruction, _>| ours.with(Label::EventInHost, &[operation.unwrap()]);
    // A multiple of 16 is what RSP need not be.
    let rsp = with(Instruction::with2(Code::And_rm64_imm8, in_frame(16 + 24), -16));
    refused(&rsp, 10, "handed-on");
    for offset in [0, 8, 16, 16 + 8, 16 + 16, 16 + 24, 16 + 32] {
        let word = Instruction::with2(Code::Xor_rm8_imm8, in_frame(offset), 1);
        refused(&with(word), 38, "handed-on");
    }
    for register in [Register::RAX, Register::RCX, Register::R15] {
        let code = Code::Xor_rm64_imm8;
        let clobbered = match register {
            // It is popped.
            Register::RAX => Instruction::with2(code, stack(0), 1),
            _ => Instruction::with2(code, register, 1),
        };
        refused(&with(clobbered), 38, "handed-on");
    }
    refused(&with(Ok(Instruction::with(Code::Std))), 38, "handed-on");
    refused(&with(Ok(Instruction::with(Code::Swapgs))), 7, "handed-on");
}

#[test]
fn what_has_interrupted_the_image_is_not_handed_on() {
    let ours = Ours::new("amd-la57-percpu-current");
    let below = ours.code(Label::EventUnexpected, Code::Jb_rel8_64);
    let above = ours.code(Label::EventUnexpected, Code::Jae_rel8_64);
    let with = |at: u64, opcode: u8| {
        let distance = ours.target.program.instruction(at);
        let by = distance.near_branch_target().wrapping_sub(distance.next_ip());
        ours.patched(at, &[opcode, by as u8])
    };
    // JBE: the first byte of the image. JA: the first byte behind it is the host's.
    refused(&with(below, 0x76), 10, "handed-on");
    refused(&with(above, 0x77), 38, "hook");
    // A signed comparison, and none at all.
    refused(&with(below, 0x7C), 38, "hook");
    refused(&with(above, 0xEB), 10, "handed-on");
    // To the other hook.
    let mut other = ours.target.clone();
    other.hooks.swap(2, 3);
    refused(&other, 38, "hook");
}

/// What others' event entries tell from the host's code has to be all that is executed: an
/// exception of the rest would come to the host with a guest's RSP.
#[test]
fn what_is_executed_lies_where_the_event_entries_say() {
    let ours = Ours::new("intel-4level");
    let mut others = ours.target.clone();
    others.extent = None;
    proved(&others);
    // Only a RET leads there, and nothing that is known to be executed lies behind it.
    let rax = Register::RAX;
    let lea = MemoryOperand::with_base_displ(Register::RIP, ours.at(Label::EventOnSp0) as i64);
    let more = [
        Ok(Instruction::with1(Code::Push_r64, rax).unwrap()),
        Instruction::with2(Code::Lea_r64_m, rax, lea),
        Instruction::with2(Code::Xchg_rm64_r64, stack(0), rax),
        Ok(Instruction::with(Code::Retnq)),
        Ok(Instruction::with(Code::Int3)),
    ];
    let mut others =
        mutate::inserted(&others, ours.at(Label::EventOnSp0), &more.map(Result::unwrap)).unwrap();
    let end = others.routines.as_ref().unwrap().end;
    let after = |start: u64, code| {
        let mut ahead = (0..200).scan(start, |at, _| {
            let instruction = others.program.instruction(*at);
            *at = instruction.next_ip();
            Some(instruction)
        });
        ahead.find(|instruction| instruction.code() == code).unwrap()
    };
    let lea = after(end, Code::Lea_r64_m).next_ip();
    let back = after(after(lea, Code::Retnq).next_ip(), Code::Int3).next_ip();
    let filler = ours.at(Label::End) - 16;
    let distance = |to: u64, next: u64| (to.wrapping_sub(next) as i32).to_le_bytes();
    others.program.patch(lea - 4, &distance(filler, lea));
    others.program.patch(filler, &[&[0xE9][..], &distance(back, filler + 5)].concat());
    for window in others.windows.values_mut() {
        window.push(filler..filler + 5);
    }
    refused(&others, 38, "handed-on");
    // Where all memory that the entries take for the code's is known, it is part of that.
    others.extent = ours.target.extent.clone();
    proved(&others);
}

/// A guest's event may be predicted to be one of ring 0.
#[test]
fn nothing_is_handed_on_before_it_is_certain_whose_it_is() {
    let ours = Ours::new("intel-4level");
    let fence = ours.code(Label::EventInHost, Code::Lfence);
    assert_eq!(fence, ours.at(Label::EventInHost));
    refused(&ours.patched(fence, &[0x0F, 0x1F, 0x00]), 41, "untaken-code");
    // Nor is a hook called before it is certain that the root is the host's.
    for (label, obligation) in [(Label::InterruptionHook, 8), (Label::FatalHook, 8)] {
        let fence = ours.code(label, Code::Lfence);
        assert_eq!(fence, ours.at(label));
        refused(&ours.patched(fence, &[0x0F, 0x1F, 0x00]), obligation, "hook-root");
    }
}

/// Where the per-CPU block lies beside the code, its addresses are counted as the code's are: an
/// arm of the exit would have the host pop one.
#[test]
fn an_arm_leaves_no_address_of_a_block_beside_the_code() {
    let ours = Ours::new("intel-4level-percpu");
    let pop = ours.code(Label::ReturnFromGuest, Code::Pop_r64);
    let with = |address: u64| {
        let named = MemoryOperand::with_base_displ(Register::RIP, address.cast_signed());
        let more = [
            Ok(Instruction::with2(Code::Cmp_r64_rm64, Register::RSP, Register::RSP).unwrap()),
            Ok(ours.on(Code::Je_rel32_64)),
            Instruction::with2(Code::Lea_r64_m, Register::RCX, named),
            Instruction::with2(Code::Mov_rm64_r64, stack(8), Register::RCX),
            Ok(Instruction::with2(Code::Xor_r32_rm32, Register::ECX, Register::ECX).unwrap()),
        ];
        let more: Vec<_> = more.into_iter().map(Result::unwrap).collect();
        mutate::inserted(&ours.target, pop, &more).unwrap()
    };
    proved(&with(pop));
    let block = Target::BASE - PerCpu::BEFORE_CODE;
    let extra = PerCpu::tss_extra.bytes() as u64;
    let smod_rsp = block + extra + TssExtra::smod_rsp.bytes() as u64;
    let Findings { refuted, .. } = Prover::default().findings(&with(smod_rsp)).unwrap();
    assert!(refuted.iter().any(|found| found.obligation.name == "exit-scratch"), "{refuted:?}");
}
