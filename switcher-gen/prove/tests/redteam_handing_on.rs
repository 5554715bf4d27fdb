//! Attacks on the theorems about what hands an event on to the host's own handler (spec/hazards.md,
//! row 60). Each must be refused, for the reason given.

mod ours;

use iced_x86::{Code, Instruction, MemoryOperand, Register};
use ours::{Ours, proved, refused, stack};
use switcher_gen::asm::Label;
use switcher_gen::layout::{PerCpu, Tss};

const VARIANTS: [&str; 2] = ["intel-4level", "amd-la57-percpu"];

fn with(code: Code, register: Register, value: i32) -> Instruction {
    Instruction::with2(code, register, value).unwrap()
}

fn unary(code: Code, register: Register) -> Instruction {
    Instruction::with1(code, register).unwrap()
}

fn store(to: MemoryOperand) -> Instruction {
    Instruction::with2(Code::Mov_rm64_r64, to, Register::RCX).unwrap()
}

#[test]
fn other_code_that_does_the_same_is_proved() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for label in [Label::HandOn, Label::HandOnStack, Label::HandedOn] {
            let more = [with(Code::Mov_r32_imm32, Register::R9D, 5)];
            proved(&ours.with(label, &more));
        }
    }
}

#[test]
fn what_is_done_before_the_handler_is_called_is_noticed() {
    let alone = Instruction::with;
    // IST 2 of the TSS, from which the CPU takes the stack of NMIs.
    let ist2 = (PerCpu::tss.bytes() + Tss::ist2.bytes()) as i64;
    let none = Register::None;
    let ist2 = MemoryOperand::new(none, none, 1, ist2, 8, false, Register::GS);
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for label in [Label::HandOn, Label::HandOnStack] {
            for (row, obligation, more) in [
                // Interrupts stay off behind the handler; or come before it.
                (60, "hand-on", vec![with(Code::And_rm64_imm32, Register::RDX, !0x200)]),
                (13, "ring-0-flags", vec![alone(Code::Sti)]),
                // The frame's flags are not the caller's.
                (60, "hand-on", vec![with(Code::Or_rm64_imm32, Register::RDX, 1 << 21)]),
                // The handler returns elsewhere on the stack.
                (60, "hand-on", vec![unary(Code::Push_r64, Register::R8)]),
                // It is another one, or none.
                (60, "hand-on", vec![with(Code::Add_rm64_imm8, Register::RDI, 1)]),
                (60, "hand-on", vec![alone(Code::Retnq), alone(Code::Int3)]),
                // A register of the caller's has another value.
                (60, "handed-back", vec![with(Code::Mov_r32_imm32, Register::EBX, 5)]),
                (60, "handed-back", vec![unary(Code::Inc_rm64, Register::R15)]),
            ] {
                refused(&ours.with(label, &more), row, obligation);
            }
        }
        if variant == "intel-4level" {
            refused(&ours.with(Label::HandOn, &[store(ist2)]), 36, "kept");
        }
    }
}

#[test]
fn what_is_done_behind_the_handler_is_noticed() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        for (obligation, more) in [
            ("handed-back", unary(Code::Inc_rm64, Register::RBP)),
            // It returns elsewhere.
            ("handed-back", unary(Code::Push_r64, Register::RCX)),
            ("handed-back", store(stack(0))),
            ("handed-back", Instruction::with(Code::Std)),
        ] {
            refused(&ours.with(Label::HandedOn, &[more]), 60, obligation);
        }
    }
}

/// The code itself, with a byte of it changed.
#[test]
fn each_part_of_the_frame_counts() {
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        let and = ours.code(Label::HandOnStack, Code::And_rm64_imm8);
        // The stack is not aligned, or aligned to more than hardware does.
        for (alignment, row, obligation) in
            [(-8_i8, 60, "hand-on"), (-1, 60, "hand-on"), (-32, 22, "memory")]
        {
            let patched = ours.patched(and + 3, &[alignment.cast_unsigned()]);
            refused(&patched, row, obligation);
        }
        // The stack is that of whoever calls.
        let load = ours.find(Label::HandOnStack, "mov rsp,rsi");
        refused(&ours.patched(load, &[0x90; 3]), 60, "hand-on");
        // SS and CS, RSP and RFLAGS have each other's places.
        let push = |text: &str| ours.find(Label::HandOnStack, text);
        let (rsp, flags) = (push("push rax"), push("push rdx"));
        let mut swapped = ours.patched(rsp, &[0x52]);
        swapped.program.patch(flags, &[0x50]);
        refused(&swapped, 60, "hand-on");
        let ss = push("mov ecx,ss");
        refused(&ours.patched(ss, &[0x8C, 0xC9]), 60, "hand-on");
        // Interrupts are on behind it.
        let cli = ours.code(Label::HandedOn, Code::Cli);
        refused(&ours.patched(cli, &[0x90]), 60, "handed-back");
        // What the handler returns to is another place of the code, behind the CLI.
        let lea = ours.code(Label::HandOnStack, Code::Lea_r64_m);
        let next = ours.target.program.instruction(lea).next_ip();
        let distance = (ours.at(Label::HandedOn) + 1).wrapping_sub(next) as i32;
        refused(&ours.patched(next - 4, &distance.to_le_bytes()), 60, "handed-back");
    }
}

/// What the handler finds changed, it would find changed although all is as it was afterwards.
#[test]
fn what_is_put_back_behind_the_handler_was_not_there_for_it() {
    use Register::{R10, R10D, R11, R11D};
    let alone = Instruction::with;
    let two = |code, to, from| Instruction::with2(code, to, from).unwrap();
    let changed = |ours: &Ours, before: &[Instruction], after: &[Instruction]| {
        // Both entries come by there.
        let with = ours.with(Label::HandOnStack, before);
        // The handler returns to the first CLI.
        let mut at = with.hand_on[1].unwrap();
        while with.program.instruction(at).code() != Code::Cli {
            at = with.program.instruction(at).next_ip();
        }
        switcher_prove::mutate::inserted(&with, at, after).unwrap()
    };
    for variant in VARIANTS {
        let ours = Ours::new(variant);
        let before = [
            unary(Code::Rdfsbase_r64, R10),
            two(Code::Xor_r32_rm32, R11D, R11D),
            unary(Code::Wrfsbase_r64, R11),
        ];
        let after = [unary(Code::Wrfsbase_r64, R10)];
        refused(&changed(&ours, &before, &after), 22, "unchanged");
    }
    // PKRU takes RAX, RCX and RDX.
    let ours = Ours::new("intel-4level-pku");
    let pkru = |value: Instruction| {
        [
            two(Code::Mov_r64_rm64, R11, Register::RDX),
            two(Code::Xor_r32_rm32, Register::ECX, Register::ECX),
            two(Code::Xor_r32_rm32, Register::EDX, Register::EDX),
            value,
            alone(Code::Wrpkru),
            two(Code::Mov_r64_rm64, Register::RDX, R11),
        ]
    };
    let read = [
        two(Code::Mov_r64_rm64, R11, Register::RDX),
        two(Code::Xor_r32_rm32, Register::ECX, Register::ECX),
        alone(Code::Rdpkru),
        two(Code::Mov_r32_rm32, R10D, Register::EAX),
        two(Code::Mov_r64_rm64, Register::RDX, R11),
    ];
    let before = [&read[..], &pkru(two(Code::Xor_r32_rm32, Register::EAX, Register::EAX))].concat();
    let after = pkru(two(Code::Mov_r32_rm32, Register::EAX, R10D));
    refused(&changed(&ours, &before, &after), 27, "pkru");
}

/// A branch that a predictor answers for leads to what a guest has trained it for, and an IRETQ
/// ends the blocking of NMIs.
#[test]
fn the_handler_is_called_by_a_far_return_alone() {
    for variant in ["intel-4level+ibrs+bhb", "amd-4level+ibpb"] {
        let ours = Ours::new(variant);
        let far = ours.code(Label::HandOnStack, Code::Retfq);
        // PUSH RCX, PUSH RDI and the far RET: a jump, and a RET.
        refused(&ours.patched(far - 2, &[0xFF, 0xE7, 0xCC, 0xCC]), 41, "indirect-first");
        let near = ours.patched(far - 2, &[0x57, 0xC3, 0xCC, 0xCC]);
        let by = if variant.contains("ibrs") { "ibrs-first" } else { "ibpb-first" };
        refused(&near, 29, by);
    }
    let ours = Ours::new("intel-4level");
    let iretq = [
        // The frame of the handler's lies above these five.
        unary(Code::Pop_r64, Register::RCX),
        Instruction::with2(Code::Mov_r64_rm64, Register::R9, Register::RSP).unwrap(),
        Instruction::with2(Code::Mov_r32m16_Sreg, Register::ECX, Register::SS).unwrap(),
        unary(Code::Push_r64, Register::RCX),
        unary(Code::Push_r64, Register::R9),
        Instruction::with(Code::Pushfq),
        Instruction::with2(Code::Mov_r32m16_Sreg, Register::ECX, Register::CS).unwrap(),
        unary(Code::Push_r64, Register::RCX),
        unary(Code::Push_r64, Register::RDI),
        Instruction::with(Code::Iretq),
    ];
    let far = ours.find(Label::HandOnStack, "push rdi");
    let target = switcher_prove::mutate::inserted(&ours.target, far, &iretq).unwrap();
    refused(&target, 39, "nmi-blocked");
}
