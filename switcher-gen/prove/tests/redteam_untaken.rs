//! Attacks on the prover by jumps that go one way only, or by which way they go: CPUs predict the
//! other one all the same (hazards.md, rows 28, 29 and 41 to 45). Each must be refused, for the
//! reason given; beside each stands what is right.

mod attack;
mod gas;

use attack::arms::{INTEL, NEVER, TO_SMOD, at, exits, on_an_arm};
use attack::mitigated::{
    ALL, BHB, CLEAR_BUFFERS, DONE, EXIT, FENCE, FILL, HISTORY, IBRS, LAST_RET, NOT_DONE, Parts,
    RSB, VERW, mitigated,
};
use attack::{Change, proved, refuted, target};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use switcher_gen::Image;
use switcher_gen::asm::{HostSymbol, Label};
use switcher_gen::layout::{PerCpu, TssExtra};
use switcher_prove::mutate;
use switcher_prove::{BadCode, Prover, SharingProver, Target, Verdict};

/// The entry up to the host's stack.
const ENTRY: &str = "\nroutine entry_SYSCALL_64_switcher\n\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n\
                     \tmovq\t%gs:TSS_SP0, %rsp\n";
const LATE: &str = "\t/* smod -> umod: ERETU. No way back from here, so RCX and R11 are free. */\n";

#[track_caller]
fn skipped(parts: Parts, (from, to): (&str, &str), never: &str, obligation: &str) {
    let (begin, end) = (format!("{from}{never}"), format!("9:{to}"));
    refuted(never, &mitigated(parts, &[(from, &begin), (to, &end)]), obligation);
}

// GS.

#[test]
fn a_swapgs_is_skipped_together_with_its_fence() {
    let pair = |each: &str, then: &str| {
        format!(
            "{LATE}\ttestq\t%r15, %r15\n\tjz\t1f\n{each}1:\ttestq\t%r15, %r15\n\tjz\t2f\n{each}2:\n{then}"
        )
    };
    let at = |what: &str, code: &str, is_right| {
        let target = target(INTEL, &[(LATE, code)]);
        match is_right {
            true => proved(what, &target),
            false => refuted(what, &target, "swapgs-fenced"),
        }
    };
    at("each with a fence of its own", &pair("\tswapgs\n\tlfence\n", ""), false);
    at("and one where both meet", &pair("\tswapgs\n\tlfence\n", "\tlfence\n"), true);
    at("either way, fenced", &pair("\tswapgs\n", "\tlfence\n"), true);
    let entry = |code: &str| {
        format!(
            "\nroutine entry_SYSCALL_64_switcher\n{code}\tmovq\t%rsp, %gs:TSS_SP2\n\
             \tmovq\t%gs:TSS_SP0, %rsp\n"
        )
    };
    for skip in ["\tcmpq\t%rcx, %rcx\n\tjne\t1f\n", "\tcmpq\t%rsi, %rsi\n\tja\t1f\n"] {
        let early = entry(&format!("{skip}\tswapgs\n\tlfence\n1:"));
        refuted("at the entry", &target(INTEL, &[(ENTRY, &early)]), "swapgs-fenced");
        let right = entry(&format!("{skip}\tswapgs\n1:\tlfence\n"));
        proved("the fence behind both", &target(INTEL, &[(ENTRY, &right)]));
        // Once more than right, where nothing is skipped.
        let doubled = entry(&format!("\tswapgs\n{skip}\tjmp\t2f\n1:\tswapgs\n2:"));
        refuted("doubled", &target(INTEL, &[(ENTRY, &doubled)]), "swapgs-fenced");
        let skips = entry(&format!("\tswapgs\n{skip}\tlfence\n1:"));
        proved("a fence that nobody needs", &target(INTEL, &[(ENTRY, &skips)]));
    }
    // Row 28's own fence is what is skipped.
    let fence = entry(
        "\ttestq\t%rcx, %rcx\n\tjz\t1f\n\tswapgs\n\tjmp\t2f\n1:\tswapgs\n2:\tcmpq\t%rcx, %rcx\n\
         \tjne\t3f\n\tlfence\n3:",
    );
    proved("either way the same", &target(INTEL, &[(ENTRY, &fence)]));
}

#[test]
fn the_guests_gs_base_by_another_register() {
    let from = format!(
        "{LATE}\tmovq\t%gs:TSS_SP2, %rcx\n\tmovq\t%rcx, %gs:SMOD_RSP\n\tmovq\t%gs:UMOD_CR3, %rcx\n\
         \txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tmovq\t%rcx, %cr3\n"
    );
    let to = |fence: &str, read: &str| {
        format!(
            "{LATE}\ttestq\t%r15, %r15\n\tjz\t1f\n\tswapgs\n1:\ttestq\t%r15, %r15\n\tjz\t2f\n\tswapgs\n\
             2:\n{fence}{read}\tmovq\tTSS_SP2(%r11), %rcx\n\tmovq\t%rcx, SMOD_RSP(%r11)\n\
             \tmovq\tUMOD_CR3(%r11), %rcx\n\txorl\t$MODE_BOTH, SWITCH_FLAGS(%r11)\n\
             \tmovq\t%rcx, %cr3\n"
        )
    };
    let msr = "\tmovl\t$0xC0000101, %ecx\n\tpushq\t%rax\n\tpushq\t%rdx\n\trdmsr\n\tshlq\t$32, %rdx\n\
               \torq\t%rdx, %rax\n\tmovq\t%rax, %r11\n\tpopq\t%rdx\n\tpopq\t%rax\n";
    for read in ["\trdgsbase %r11\n", msr] {
        let wrong = target(INTEL, &[(&from, &to("", read))]);
        refuted(read, &wrong, "swapgs-fenced");
        let right = target(INTEL, &[(&from, &to("\tlfence\n", read))]);
        proved(read, &right);
    }
    // By FS, whose base it becomes.
    let fs = |fence: &str| {
        let code = format!(
            "\trdfsbase %rdx\n\ttestq\t%r15, %r15\n\tjz\t1f\n\tswapgs\n1:\ttestq\t%r15, %r15\n\tjz\t2f\n\
             \tswapgs\n2:\n{fence}\trdgsbase %rcx\n\twrfsbase %rcx\n\tmovq\t%fs:UMOD_CR3, %rcx\n\
             \twrfsbase %rdx\n"
        );
        exits(&code)
    };
    refuted("fs", &fs(""), "swapgs-fenced");
    proved("fs", &fs("\tlfence\n"));
}

// Mitigations.

#[test]
fn mitigations_are_skipped_by_a_jump_that_nobody_takes() {
    for never in NEVER {
        // What of all of them is missed first.
        skipped(ALL, (NOT_DONE, DONE), never, "ibrs-first");
        skipped(IBRS, (NOT_DONE, DONE), never, "ibrs-first");
        skipped(RSB, (NOT_DONE, DONE), never, "rsb-filled");
        skipped(BHB, (NOT_DONE, DONE), never, "bhb-cleared");
        // The fence alone.
        let fence = format!("{never}{FENCE}9:\n");
        refuted(never, &mitigated(BHB, &[(FENCE, &fence)]), "bhb-cleared");
        refuted(never, &mitigated(RSB, &[(FENCE, &fence)]), "rsb-filled");
        // Part of a sequence, with its fence after it: nothing returns before that.
        let fill = format!("{never}{FILL}9:\n");
        proved(never, &mitigated(RSB, &[(FILL, &fill)]));
        let history = format!("{never}{HISTORY}9:\n");
        proved(never, &mitigated(BHB, &[(HISTORY, &history)]));
    }
    let verw = |never: &str| format!("{never}{CLEAR_BUFFERS}9:\n");
    refuted("verw", &mitigated(VERW, &[(CLEAR_BUFFERS, &verw(NEVER[0]))]), "verw-last");
    let twice = format!("{}{CLEAR_BUFFERS}", verw(NEVER[0]));
    proved("verw", &mitigated(VERW, &[(CLEAR_BUFFERS, &twice)]));
}

#[test]
fn ibpb_and_the_untraining_are_skipped() {
    let ss = "\tmovl\t$0x18, %ecx\n\tmovl\t%ecx, %ss\n";
    let ibpb = "\tmovl\t$0x49, %ecx\n\tmovl\t$1, %eax\n\txorl\t%edx, %edx\n\twrmsr\n";
    let [untrain, thunk] = HostSymbol::RETURNS.map(|symbol| symbol.0);
    let exits = |code: &str| format!("\tpushq\t%rax\n{code}9:\tpopq\t%rax\n{ss}{EXIT}");
    let thunk = format!("\tjmp\t{thunk}\n\tud2\n");
    for never in &NEVER[..3] {
        let code = |skip: &str| exits(&format!("{skip}{ibpb}"));
        proved("ibpb", &target("amd-4level+ibpb", &[(EXIT, &code(""))]));
        refuted("ibpb", &target("amd-4level+ibpb", &[(EXIT, &code(never))]), "ibpb-first");
        // Nothing is emptied by what is written then.
        let other = exits(&format!(
            "\txorl\t%eax, %eax\n{never}\tmovl\t$1, %eax\n9:\tmovl\t$0x49, %ecx\n\
             \txorl\t%edx, %edx\n\twrmsr\n"
        ));
        let other = other.replace("9:\tpopq", "\tpopq");
        refuted("ibpb", &target("amd-4level+ibpb", &[(EXIT, &other)]), "ibpb-first");
        let code = |skip: &str| exits(&format!("{skip}\tcall\t{untrain}\n"));
        let with =
            |code: &str| target("amd-4level+untrain", &[(EXIT, code), ("\tret\n\tud2\n", &thunk)]);
        proved("untrain", &with(&code("")));
        refuted("untrain", &with(&code(never)), "untrained");
    }
}

#[test]
fn a_second_exit_that_nobody_takes() {
    let second = |ret: &str| -> [(String, String); 2] {
        let jump = format!("{NOT_DONE}\tmovl\t$1, %ecx\n\ttestl\t%ecx, %ecx\n\tjz\t9f\n");
        let back =
            format!("\tmovq\t%rbp, %rax\n\tjmp\t98f\n9:\tmovq\t%rbp, %rax\n{ret}98:\n\tclear_all");
        [(NOT_DONE.into(), jump), (DONE.into(), back)]
    };
    let with = |parts, ret: &str| {
        let changes = second(ret);
        let changes: Vec<Change<'_>> = changes.iter().map(|(a, b)| (&**a, &**b)).collect();
        mitigated(parts, &changes)
    };
    refuted("untrapped", &with(RSB, "\tret\n"), "trapped");
    refuted("trapped", &with(RSB, "\tret\n\tint3\n"), "rsb-filled");
    refuted("a jump", &with(IBRS, "\tpopq\t%rcx\n\tjmp\t*%rcx\n\tint3\n"), "indirect-first");
    proved("a trap", &with(ALL, "\tud2\n"));
    proved("a fence, then nothing", &with(ALL, "\tlfence\n\tret\n"));
    refuted("the last RET", &with(IBRS, LAST_RET), "trapped");
}

// Whatever else must not be executed, be it without effect.

#[test]
fn branches_in_the_shadow_of_a_jump() {
    for never in NEVER {
        let arm = |code: &str| exits(&format!("{never}\tjmp\t8f\n9:{code}8:\n"));
        refuted(never, &arm("\tjmp\t*%r15\n"), "trapped");
        refuted(never, &arm("\tjmp\t*%r15\n\tint3\n"), "untaken-target");
        refuted(never, &arm("\tcall\t*%r15\n\tint3\n"), "untaken-target");
        refuted(never, &arm("\tpushq\t%r15\n\tret\n\tint3\n"), "untaken-target");
        // Through what a guest's pointer leads to, and where a store by one may have been.
        refuted(never, &arm("\tjmp\t*(%r15)\n\tint3\n"), "untaken-memory");
        let forged = "\tmovq\t%r14, (%r15)\n\tcall\t6f\n\tjmp\t8f\n6:\tret\n\tint3\n";
        refuted(never, &arm(forged), "untaken-target");
        refuted(never, &arm("\t.byte\t0x06, 0x07\n"), "untaken-code");
        refuted(never, &arm("\t.byte\t0xF3, 0x41, 0x90\n"), "untaken-code");
        refuted(never, &arm("\tcpuid\n"), "untaken-code");
        refuted(never, &arm("\tsyscall\n"), "untaken-code");
        // HLT stops nothing, and no path goes on after it, so that nobody has read what is there.
        refuted(never, &arm("\thlt\n\tjmp\t*%r15\n\tint3\n"), "untaken-code");
        for stop in ["int3\n", "ud2\n", "lfence\n\tjmp\t*%r15\n\tint3\n"] {
            proved(never, &arm(&format!("\t{stop}")));
        }
        proved(never, &arm("\tcall\t6f\n\tjmp\t8f\n6:\tret\n\tint3\n"));
        for no_stop in ["mfence", "sfence", "pause"] {
            refuted(never, &arm(&format!("\t{no_stop}\n\tjmp\t*%r15\n\tint3\n")), "untaken-target");
        }
    }
}

#[test]
fn accesses_in_the_shadow_of_a_jump() {
    for never in NEVER {
        let arm = |code: &str| exits(&format!("{never}\tjmp\t8f\n9:{code}8:\n"));
        for code in [
            // What is found becomes an address, an index, a decision.
            "\tmovq\t(%r15), %rcx\n\tmovq\t(%rcx), %rcx\n",
            "\tmovzbl\t(%r15), %ecx\n\tshll\t$12, %ecx\n\tmovq\t(%r14,%rcx), %rcx\n",
            "\tmovzbl\t(%r15), %ecx\n\tandl\t$8, %ecx\n\tmovq\t(%rsp,%rcx), %rcx\n",
            "\taddq\t(%r15), %rcx\n\tmovq\t%rcx, (%r14,%rcx)\n",
            "\tcmpb\t$1, (%r15)\n\tjz\t8f\n\tnop\n",
            "\ttestq\t(%r15), %r14\n\tjz\t8f\n\tnop\n",
            "\tmovq\t%rsp, %rdx\n\tmovq\t%r15, %rsp\n\tpopq\t%rcx\n\tmovq\t%rdx, %rsp\n\tmovq\t(%rcx), %rcx\n",
            // What the host has is one.
            "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%r15,%rcx), %rcx\n",
            "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%rcx), %rcx\n",
            "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rax, (%r15,%rcx)\n",
        ] {
            refuted(code, &arm(code), "untaken-memory");
            let stopped = format!("\tlfence\n{code}");
            proved(code, &arm(&stopped));
        }
        // It stays in a register; it is the guest's; it is the host's own.
        for code in [
            "\tmovq\t(%r15), %rcx\n",
            "\tmovq\t%gs:TSS_SP0, %rcx\n\tmovq\t-8(%rcx), %rcx\n",
            "\tmovq\t%rcx, -8(%rsp)\n",
        ] {
            proved(code, &arm(code));
        }
    }
}

/// Nor is a proof taken for that of code which differs where no path goes.
#[test]
fn a_proof_is_not_shared_with_another_arm() {
    let arm = |code: &str| exits(&format!("{}\tjmp\t8f\n9:{code}8:\n", NEVER[0]));
    let shared = std::sync::Arc::default();
    let right = SharingProver::new(&shared).prove(&arm("\tint3\n\tint3\n\tint3\n\tint3\n"));
    assert!(matches!(right, Verdict::Proved(_)), "{right:?}");
    match SharingProver::new(&shared).prove(&arm("\tjmp\t*%r15\n\tint3\n")) {
        Verdict::Refuted(found) => assert_eq!(found.obligation.name, "untaken-target"),
        other => panic!("{other:?}"),
    }
}

// What one arm has left, another may find (views of an arm).

#[test]
fn a_harmless_arm_comes_first() {
    let never = NEVER[0];
    let access = "\tjmp\t8f\n9:\tmovq\t(%r15,%rcx), %rcx\n8:\n";
    let code = format!("\txorl\t%ecx, %ecx\n{never}\tmovq\t%gs:HOST_CR3, %rcx\n{never}{access}");
    refuted("a register", &exits(&code), "untaken-memory");
    let found = format!(
        "\txorl\t%ecx, %ecx\n{never}\tcmpq\t%rsp, %rsp\n\tjne\t7f\n\tjmp\t8f\n\
         7:\tmovzbl\t(%r14), %ecx\n\tshll\t$12, %ecx\n\tjmp\t9f\n9:\tmovq\t(%r15,%rcx), %rcx\n8:\n"
    );
    refuted("what is found", &exits(&found), "untaken-memory");
    let jump = "\tjmp\t8f\n9:\tmovq\t-8(%rsp), %rcx\n\tjmp\t*%rcx\n\tint3\n8:\n";
    let slot = format!(
        "\tleaq\t8f(%rip), %rcx\n\tmovq\t%rcx, -8(%rsp)\n{never}\tmovq\t%r15, -8(%rsp)\n{never}{jump}"
    );
    refuted("a stack slot", &exits(&slot), "untaken-target");
    // One is a number where they are the same, and a guest's where they are not.
    let difference = format!(
        "\tmovq\t%r14, %rcx\n\tmovq\t%r14, %rdx\n{never}\tmovq\t%r15, %rdx\n{never}\tjmp\t8f\n\
         9:\tsubq\t%rdx, %rcx\n\tmovq\t-8(%rsp,%rcx), %rcx\n\tmovq\t(%rcx), %rcx\n8:\n"
    );
    refuted("a difference", &exits(&difference), "untaken-memory");
    // What is found where a jump leads is found where code comes to it without one, too.
    let fallen = format!(
        "\txorl\t%ecx, %ecx\n{never}\tmovq\t%gs:HOST_CR3, %rcx\n\tcmpq\t%rsp, %rsp\n\tjne\t7f\n\
         \tjmp\t8f\n7:\tnop\n9:\tmovq\t(%r15,%rcx), %rcx\n8:\n"
    );
    refuted("fallen into", &exits(&fallen), "untaken-memory");
}

/// The return stack buffer has the latest call on top, wherever the RET leads.
#[test]
fn a_ret_is_predicted_to_another_call() {
    let left = |code: &str| exits(&format!("\tcall\t1f\n{code}1:\taddq\t$8, %rsp\n"));
    refuted("a jump", &left("\tmovq\t%r15, %rcx\n\tjmp\t*%rcx\n\tint3\n"), "untaken-target");
    refuted(
        "a load",
        &left("\tmovq\t(%rax), %rcx\n\tmovq\t(%rcx), %rcx\n\tmovq\t(%rcx), %rcx\n\tint3\n"),
        "untaken-memory",
    );
    refuted("no code", &left("\t.byte\t0x06\n"), "untaken-code");
    // The stack is one word higher there, and the trap says that this is no place to return to.
    proved("a trap", &left("\tint3\n"));
    let elsewhere = "\tcall\t1f\n\tjmp\t*%r15\n\tint3\n1:\tleaq\t2f(%rip), %rcx\n\
                     \tmovq\t%rcx, (%rsp)\n\tret\n\tint3\n2:\n";
    refuted("its own", &exits(elsewhere), "untaken-target");
}

#[test]
fn a_jump_is_predicted_to_its_other_target() {
    let before = "\tmovq\t%r14, %rdx\n\tleaq\t1f(%rip), %rcx\n\tleaq\t3f(%rip), %rsi\n\
                  \tleaq\t2f(%rip), %rdi\n\ttestq\t%r15, %r15\n\tcmovzq\t%rsi, %rdx\n";
    let then = "\tjmp\t*%rcx\n\tint3\n1:\tjmp\t*%rdx\n\tint3\n2:\n3:\n";
    for choice in ["\tcmovnzq\t%rdi, %rcx\n", "\tjz\t4f\n\tmovq\t%rdi, %rcx\n4:\n"] {
        let code = format!("{before}{choice}{then}");
        refuted(choice, &exits(&code), "untaken-target");
    }
}

#[test]
fn an_arm_leaves_for_the_host() {
    let skip = format!("{}{EXIT}9:\n", NEVER[0]);
    refuted("the guest's registers", &target(INTEL, &[(EXIT, &skip)]), "exit-scratch");
    let gs = format!(
        "\tswapgs\n{}\tswapgs\n\tlfence\n\tjmp\t8f\n9:\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, \
         r11d\n\tpushq $2\n\tpopfq\n\tpop_all rbx, rbp, r12, r13, r14, r15\n\tret\n\tud2\n8:\n{EXIT}",
        NEVER[0]
    );
    refuted("the guest's GS", &target(INTEL, &[(EXIT, &gs)]), "swapgs-fenced");
}

/// An image of ours, and where it is attacked.
fn ours(label: Label, text: &str) -> (Target, u64) {
    let image = Image::new(&INTEL.parse().unwrap()).unwrap();
    let target = Target::image(&image);
    let mut at = Target::BASE + u64::from(image.offset(label));
    while !target.program.text(at).unwrap().starts_with(text) {
        at = target.program.instruction(at).next_ip();
    }
    (target, at)
}

fn never_taken(code: Code, to: u64) -> [Instruction; 2] {
    let (rsp, cmp) = (Register::RSP, Code::Cmp_rm64_r64);
    [Instruction::with2(cmp, rsp, rsp).unwrap(), Instruction::with_branch(code, to).unwrap()]
}

#[test]
fn an_arm_calls_a_hook() {
    let (target, cleared) = ours(Label::InterruptionHook, "push");
    let (_, hook) = ours(Label::InterruptionHook, "");
    let skip = never_taken(Code::Jne_rel32_64, cleared);
    let skipped = mutate::inserted(&target, hook, &skip).unwrap();
    refuted("the interrupted registers", &skipped, "hook-registers");
    let (_, gs) = ours(Label::Interruption, "wrgsbase");
    let fenced = target.program.instruction(hook).next_ip();
    let skipped = |to| mutate::inserted(&target, gs, &never_taken(Code::Jne_rel32_64, to)).unwrap();
    refuted("the interrupted GS and root", &skipped(fenced), "hook-root");
    proved("up to the fence", &skipped(hook));
}

/// What ring 0 had in its registers is the host's as well as anybody's.
#[test]
fn an_interrupted_register_is_an_index() {
    let (target, at) = ours(Label::Interruption, "mov rdi,rsp");
    let index = MemoryOperand::with_base_index(Register::R15, Register::RCX);
    let mut code = never_taken(Code::Je_rel32_64, mutate::behind(&target)).to_vec();
    code.push(Instruction::with2(Code::Movzx_r32_rm8, Register::ECX, Register::CL).unwrap());
    code.push(Instruction::with2(Code::Mov_r64_rm64, Register::RCX, index).unwrap());
    code.push(Instruction::with(Code::Ud2));
    let wrong = mutate::inserted(&target, at, &code).unwrap();
    refuted("an index", &wrong, "untaken-memory");
}

#[test]
fn something_is_read_behind_verw() {
    let end = "\n\t/* SYSRETQ can load";
    let behind = |code: &str| {
        let never = NEVER[0];
        let to = format!("{CLEAR_BUFFERS}{never}\tjmp\t8f\n9:{code}8:\n{end}");
        mitigated(VERW, &[(&format!("{CLEAR_BUFFERS}{end}"), &to)])
    };
    for code in [
        "\tcmpq\t$0, -0x180(%rsp)\n\tud2\n",
        "\tcmpq\t$0, 0x800(%rsp)\n",
        "\tcmpq\t$0, (%r15)\n\tud2\n",
    ] {
        refuted(code, &behind(code), "verw-last");
    }
    // What was found where a guest's pointer leads, and lies in the frame by then.
    let found = "\tmovq\t(%r9), %rdx\n\tpushq\t%rdx\n\tverw\t8 + IRET_SS(%rsp)\n\tpopq\t%rdx\n\
                 \txorl\t%edx, %edx\n\tsysretq\n\tud2\n";
    refuted(found, &behind(found), "verw-last");
    let own = found.replace("(%r9)", "%r9");
    proved("the guest's own", &behind(&own));
    proved("the frame", &behind("\tcmpq\t$0, IRET_SS(%rsp)\n\tud2\n"));
    // What is read is overwritten again.
    proved("once more", &behind(&format!("\tcmpq\t$0, (%r15)\n\tud2\n8:{CLEAR_BUFFERS}")));
}

/// Code in more pieces than regions are told apart: what was stored astray may be in any of them.
#[test]
fn code_in_many_pieces() {
    use std::fmt::Write as _;
    let mut chain = String::new();
    for piece in 0..24 {
        let _ = write!(chain, "\tjmp\t.Lp{piece}\n\tint3\n\t.fill 100, 1, 0x06\n.Lp{piece}:\n");
    }
    let arm = |code: &str| exits(&format!("{chain}{}\tjmp\t8f\n9:{code}8:\n", NEVER[0]));
    proved("nothing", &arm("\tud2\n"));
    proved("a store, and a load", &arm("\tmovq\t%r14, (%r15)\n\tmovq\t(%r15), %rcx\n\tud2\n"));
    let forged = "\tmovq\t%r14, (%r15)\n\tcall\t6f\n\tjmp\t8f\n6:\tret\n\tint3\n";
    refuted("a return address", &arm(forged), "untaken-target");
    let secret = "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, (%r15)\n\tmovq\t-8(%rsp), %rdx\n\
                  \tmovq\t(%r14,%rdx), %rdx\n\tud2\n";
    refuted("a secret stored astray", &arm(secret), "untaken-memory");
}

/// Which line of the GDT is read, a cache tells (row 61): by VERW in each of its forms, and by MOV
/// to SS.
#[test]
fn an_arm_reads_a_descriptor_that_a_secret_chooses() {
    let arm = |code: &str| exits(&format!("{}\tjmp\t8f\n9:{code}8:\n", NEVER[0]));
    let secret = "\tmovq\t%gs:HOST_CR3, %rcx\n";
    for read in [
        "\tverw\t%cx\n",
        // Its forms of 32 and 64 bits.
        "\t.byte\t0x0F, 0x00, 0xE9\n",
        "\t.byte\t0x48, 0x0F, 0x00, 0xE9\n",
        "\tshrq\t$20, %rcx\n\tandl\t$0xFFF8, %ecx\n\tverw\t%cx\n",
        "\tandl\t$8, %ecx\n\taddl\t$0x10, %ecx\n\tmovl\t%ecx, %ss\n",
        "\tmovl\t%ecx, %ss\n",
        "\tpushq\t%rcx\n\tverw\t(%rsp)\n\tpopq\t%rcx\n",
    ] {
        let code = format!("{secret}{read}");
        refuted(&code, &arm(&code), "untaken-memory");
        proved(&code, &arm(&format!("\tlfence\n{secret}\tud2\n")));
    }
    for found in [
        "\tverw\t%gs:HOST_CR3\n",
        "\tverw\t%gs:HOST_CR3 + 4\n",
        "\tverw\t(%r15)\n",
        "\tmovq\t(%r15), %rdx\n\tverw\t%dx\n",
        "\tmovw\t(%r15), %ss\n",
        // Where a guest's pointer may have stored it.
        "\tpushq\t$0\n\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, (%r15)\n\tverw\t(%rsp)\n\tpopq\t%rcx\n",
    ] {
        refuted(found, &arm(found), "untaken-memory");
    }
    // The guest's own, the code's own, and what a frame has.
    for own in [
        "\tmovl\t%r15d, %ecx\n\tverw\t%cx\n",
        "\tmovl\t$0x18, %ecx\n\tverw\t%cx\n\tmovl\t%ecx, %ss\n",
    ] {
        proved(own, &arm(own));
    }
    // By the wrong entry of the return stack buffer.
    let left = |code: &str| exits(&format!("\tcall\t1f\n{code}\tint3\n1:\taddq\t$8, %rsp\n"));
    for code in ["\tverw\t%gs:HOST_CR3\n", "\tmovw\t%gs:HOST_CR3, %ss\n"] {
        refuted(code, &left(code), "untaken-memory");
    }
    let switch = format!("{}\tjmp\t8f\n9:\tverw\t%gs:HOST_CR3\n8:\n{TO_SMOD}", NEVER[0]);
    refuted("a direct switch", &target(INTEL, &[(TO_SMOD, &switch)]), "untaken-memory");
}

#[test]
fn an_arm_tells_by_its_jumps() {
    let arm = |code: &str| exits(&format!("{}\tjmp\t8f\n9:{code}8:\n", NEVER[0]));
    for code in [
        "\tmovq\t%gs:HOST_CR3, %rcx\n\tbtq\t$20, %rcx\n\tjc\t8f\n\tmovq\t(%r15), %rcx\n",
        "\tmovq\t0x800(%rsp), %rcx\n\ttestb\t$1, %cl\n\tjz\t8f\n\tmovq\t(%r15), %rcx\n",
    ] {
        refuted(code, &arm(code), "untaken-memory");
    }
    for code in [
        "\tmovq\t%gs:HOST_CR3, %rcx\n\tjmp\t*%rcx\n\tint3\n",
        "\tpushq\t%gs:HOST_CR3\n\tret\n\tint3\n",
    ] {
        refuted(code, &arm(code), "untaken-target");
    }
    // What was stored to where a guest says may be what is loaded.
    let store = "\tmovq\t%r14, (%r15)\n\tmovq\t%gs:PVCS, %rcx\n\tmovq\t(%rcx), %rdx\n\
                 \tmovq\t(%r13,%rdx), %rdx\n\tud2\n";
    refuted(store, &arm(store), "untaken-memory");
}

/// Only another CPU of the guest's leads a path there.
#[test]
fn a_race_leads_to_an_arm() {
    let compare = "\tcmpl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\tjne\t.Lexit_restore_rdx\n";
    let twice = format!(
        "\tpushq\t%rax\n\tmovl\tPVCS_USER_CS_SS(%rdx), %eax\n\tcmpl\tPVCS_USER_CS_SS(%rdx), %eax\n\
         \tpopq\t%rax\n\tjne\t.Lrace\n{compare}"
    );
    let label = ".Lexit_restore_rdx:\n";
    let race = format!(
        ".Lrace:\n\tlfence\n\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tjmp\t.Lexit_restore_rdx\n\
         9:\tjmp\t*%r15\n\tint3\n{label}"
    );
    let raced = target(INTEL, &[(compare, &twice), (label, &race)]);
    refuted("raced", &raced, "untaken-target");
}

/// What an arm has asked of the CPU decides whose proof it is.
#[test]
fn an_arm_asks_for_a_feature() {
    let ss = "\tmovl\t$0x18, %ecx\n\tmovl\t%ecx, %ss\n";
    let ibpb = "\tmovl\t$0x49, %ecx\n\tmovl\t$1, %eax\n\txorl\t%edx, %edx\n\twrmsr\n";
    let exit = format!("\tpushq\t%rax\n{ibpb}\tpopq\t%rax\n{ss}{EXIT}");
    let place = attack::PLACES[0].before;
    let leak = format!(
        "\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tjmp\t8f\n9:{ibpb}\tmovq\t%gs:HOST_CR3, %rcx\n\
         \tmovq\t(%r15,%rcx), %rcx\n8:\n{place}"
    );
    let of = |variant| target(variant, &[(EXIT, &exit), (place, &leak)]);
    let shared = std::sync::Arc::default();
    let _without = SharingProver::new(&shared).prove(&of("amd-4level"));
    match SharingProver::new(&shared).prove(&of("amd-4level+ibpb")) {
        Verdict::Refuted(found) => assert_eq!(found.obligation.name, "untaken-memory"),
        other => panic!("{other:?}"),
    }
}

/// Limits are called so, and are come to soon.
#[test]
fn arms_have_an_end() {
    let bits: String = (0..3)
        .map(|bit| {
            format!("\ttestb\t${}, %r15b\n\tjz\t{}f\n\tnop\n{}:\n", 1 << bit, 60 + bit, 60 + bit)
        })
        .collect();
    let many = "\tmovq\t(%r15), %rcx\n".repeat(45_000);
    let code = format!("{bits}{}\tjmp\t8f\n9:{many}\tud2\n8:\n", NEVER[0]);
    match Prover::default().prove(&exits(&code)) {
        Verdict::Unsupported(BadCode::Arms { .. }) => {}
        other => panic!("{other:?}"),
    }
    // Each arm falls into the next one.
    let count = 100..700;
    let jumps: String =
        count.clone().map(|n| format!("\tcmpq\t%rsp, %rsp\n\tjne\t{n}f\n")).collect();
    let arms: String = count.map(|n| format!("{n}:\tnop\n")).collect();
    let code = format!("{jumps}\tjmp\t8f\n{arms}\tud2\n8:\n");
    match Prover::default().prove(&exits(&code)) {
        // More jumps than a path has, maybe; but not more instructions on arms.
        Verdict::Unsupported(BadCode::Arms { .. }) => panic!("arms are followed again and again"),
        other => drop(other),
    }
}

// What memory and flags hold on an arm is what a CPU would make of it, and not less.

/// In front of the host's own flags: registers are cleared by then.
const IN_HOST: &str = "\t/* DF and AC may be the guest's. */\n";
#[test]
fn what_is_found_is_a_word_and_no_bit() {
    let decides = "\tmovq\t(%r14), %rcx\n7:\n";
    let index = "\tshll\t$12, %edx\n\tmovq\t(%r14,%rdx), %rcx\n";
    for code in [
        format!("\tmovzbl\t(%r15), %ecx\n\tcmpb\t$0x41, %cl\n\tje\t7f\n{decides}"),
        format!("\tmovq\t(%r15), %rcx\n\tandl\t$3, %ecx\n\tcmpl\t$1, %ecx\n\tje\t7f\n{decides}"),
        format!("\tcmpb\t$3, (%r15)\n\tjl\t7f\n{decides}"),
        format!("\tbtq\t$3, (%r15)\n\tjc\t7f\n{decides}"),
        format!("\txorl\t%edx, %edx\n\tcmpb\t$3, (%r15)\n\tsetl\t%dl\n{index}"),
        format!(
            "\tcmpb\t$3, (%r15)\n\tsetb\t%cl\n\tsets\t%dl\n\txorb\t%cl, %dl\n\tmovzbl\t%dl, %edx\n{index}"
        ),
        format!(
            "\tmovl\t$1, %edx\n\txorl\t%ecx, %ecx\n\tcmpb\t$3, (%r15)\n\tcmovgl\t%ecx, %edx\n{index}"
        ),
        // Of two loads, or of two bytes of one, neither is the other.
        format!("\tmovq\t(%r15), %rdx\n\txorq\t8(%r15), %rdx\n{index}"),
        format!(
            "\tmovzwl\t(%r15), %edx\n\tmovl\t%edx, %ecx\n\tshrl\t$8, %ecx\n\txorb\t%cl, %dl\n{index}"
        ),
        format!(
            "\tmovsbq\t(%r15), %rdx\n\tmovq\t%rdx, %rcx\n\tshrq\t$8, %rcx\n\txorq\t%rcx, %rdx\n{index}"
        ),
    ] {
        refuted(&code, &on_an_arm("", &code), "untaken-memory");
        proved(&code, &on_an_arm("", &format!("\tlfence\n{code}")));
    }
    // It may be compared, as long as nobody learns how it ends.
    proved("kept", &on_an_arm("", "\tcmpb\t$3, (%r15)\n\tsetl\t%cl\n\tmovq\t%rcx, -8(%rsp)\n"));
}

#[test]
fn what_is_pushed_is_stored() {
    let before = "\tpushq\t$0\n\tpopq\t%rcx\n";
    let index = "\tpopq\t%rcx\n\tmovq\t(%r14,%rcx), %rcx\n";
    for push in ["\tpushq\t(%r15)\n", "\tpushq\t-0x800(%rsp)\n", "\tpushq\t%gs:HOST_CR3\n"] {
        let code = format!("{push}{index}");
        refuted(push, &on_an_arm(before, &code), "untaken-memory");
        let code = format!("{push}\tpopfq\n\tjc\t8f\n\tmovq\t(%r14), %rcx\n");
        refuted(push, &on_an_arm(before, &code), "untaken-memory");
    }
    let jump = "\tleaq\t8f(%rip), %rcx\n\tpushq\t%rcx\n\tpopq\t%rcx\n";
    refuted("RET", &on_an_arm(jump, "\tpushq\t(%r15)\n\tret\n\tint3\n"), "untaken-target");
    let arm = "\tpushq\t(%r15)\n\tpopq\t%rax\n\tmovq\t(%r14,%rax), %rax\n";
    let before_switch = before.replace("rcx", "rax");
    let code = format!("{before_switch}{}\tjmp\t8f\n9:{arm}8:\n{TO_SMOD}", NEVER[0]);
    refuted("a direct switch", &target(INTEL, &[(TO_SMOD, &code)]), "untaken-memory");
    proved("a number", &on_an_arm(before, &format!("\tpushq\t$8\n{index}")));
}

#[test]
fn what_reads_and_writes_is_a_store() {
    let ret = "\tcall\t6f\n\tint3\n6:\tret\n\tint3\n";
    for store in [
        "movq\t%rcx, (%r15)",
        "xchgq\t%rcx, (%r15)",
        "addq\t%rcx, (%r15)",
        "andq\t$0, (%r15)",
        "incq\t(%r15)",
        "notq\t(%r15)",
        "negq\t(%r15)",
        "btsq\t$3, (%r15)",
        "shlq\t$3, (%r15)",
        "lock orq\t%rcx, (%r15)",
        "popq\t(%r15)",
        "setc\t(%r15)",
    ] {
        refuted(store, &on_an_arm("", &format!("\t{store}\n{ret}")), "untaken-target");
        let load = format!("\t{store}\n\tpopq\t%rcx\n\tmovq\t(%rcx), %rcx\n");
        refuted(store, &on_an_arm("", &load), "untaken-memory");
    }
    for none in ["cmpq\t%rcx, (%r15)", "testq\t%rcx, (%r15)", "btq\t$3, (%r15)"] {
        proved(none, &on_an_arm("", &format!("\t{none}\n{ret}")));
    }
}

/// What a register has kept of what it held before.
#[test]
fn a_part_of_a_register_is_loaded() {
    let end = "\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\tswapgs\n\tsysretq\n\tud2\n";
    let secret = "\tmovq\t%gs:HOST_CR3, %rbx\n";
    for part in [
        "",
        "\tmovb\t(%r15), %bl\n",
        "\tmovw\t(%r15), %bx\n",
        "\torq\t(%r15), %rbx\n",
        "\ttestq\t%rbx, %rbx\n\tcmovzq\t(%r15), %rbx\n",
        "\txchgb\t%bl, (%r15)\n",
    ] {
        refuted(part, &at(TO_SMOD, &format!("{secret}{part}{end}")), "no-host-value");
    }
    proved("all of it", &at(TO_SMOD, &format!("{secret}\tmovl\t$1, %ebx\n{end}")));
}

#[test]
fn what_is_found_is_the_guests_choice_and_no_guests_to_learn() {
    let rest = "\txorl\t%ecx, %ecx\n\txorl\t%edx, %edx\n\txorl\t%esi, %esi\n\txorl\t%edi, %edi\n\
                \txorl\t%r9d, %r9d\n\txorl\t%r10d, %r10d\n\txorl\t%r11d, %r11d\n";
    let leave = "\tmovq\t%rcx, %gs:HOST_RSP\n\tpushq\t$2\n\tpopfq\n\
                 \tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n\tud2\n";
    let exit = |code: &str| at(EXIT, &format!("{code}{rest}{leave}"));
    for code in ["", "\tmovq\t(%r15), %r8\n", "\tandq\t(%r15), %r8\n", "\tmovl\t0x1000, %r8d\n"] {
        refuted(code, &exit(code), "exit-scratch");
    }
    proved("nothing", &exit("\tmovq\t(%r15), %r8\n\txorl\t%r8d, %r8d\n"));
    let end = "\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\tswapgs\n\tsysretq\n\tud2\n";
    let found = format!("\tmovq\t(%r15), %rbx\n{end}");
    refuted("to a guest", &at(TO_SMOD, &found), "no-host-value");
}

#[test]
fn what_lies_beside_a_region() {
    for index in [
        "\tmovq\t-0x800(%rsp), %rcx\n",
        "\tmovq\t-0x800(%rsp), %rcx\n\txorq\t-0x808(%rsp), %rcx\n",
        "\tmovq\t-0x800(%rsp), %rcx\n\txorq\t-0x800(%rsp), %rcx\n",
        "\tmovq\t-0x800(%rsp), %rcx\n\txorq\t%gs:HOST_CR3, %rcx\n",
    ] {
        let code = format!("{index}\tmovq\t(%r14,%rcx), %rcx\n");
        refuted(index, &on_an_arm("", &code), "untaken-memory");
    }
    // What the path decides by is another value.
    let decided = "\ttestb\t$1, %gs:HOST_CR3\n\tjz\t1f\n\tlfence\n1:\tlfence\n";
    let jump = "\ttestb\t$1, 0x800(%rsp)\n\tje\t8f\n\tmovq\t(%r14), %rcx\n";
    refuted("a jump", &on_an_arm(decided, jump), "untaken-memory");
    for code in [
        // Below and above stacks, and around the PVCS.
        "\tmovq\t%gs:TSS_SP0, %rcx\n\tmovq\t-0x1100(%rcx), %rcx\n",
        "\tmovq\t%gs:TSS_SP0, %rcx\n\tmovq\t-0x400(%rcx), %rcx\n",
        "\tmovq\t%gs:TSS_SP0, %rcx\n\tmovq\t0x100(%rcx), %rcx\n",
        "\tmovq\t%gs:PVCS, %rcx\n\tmovq\t0x200(%rcx), %rcx\n",
        "\tmovq\t%gs:PVCS, %rcx\n\tmovl\t-4(%rcx), %ecx\n",
        // What has been stored there.
        "\tmovq\t%r15, -0x800(%rsp)\n\tmovq\t-0x800(%rsp), %rcx\n",
        "\tsubq\t$0x800, %rsp\n\tpushq\t%r15\n\tpopq\t%rcx\n\taddq\t$0x800, %rsp\n",
        "\tmovq\t%r15, %rcx\n\txchgq\t%rcx, -0x800(%rsp)\n\txchgq\t%rcx, -0x800(%rsp)\n",
    ] {
        refuted(code, &at(IN_HOST, code), "exit-scratch");
        proved(code, &at(IN_HOST, &format!("{code}\txorl\t%ecx, %ecx\n")));
    }
}

#[test]
fn a_secret_chooses_between_addresses_of_the_code() {
    let places = "\tleaq\t6f(%rip), %rcx\n\tleaq\t7f(%rip), %rdx\n";
    let end = "6:\tmovq\t(%r14), %rcx\n\tud2\n7:\tud2\n";
    for jump in
        ["\tjmp\t*%rcx\n\tint3\n", "\tcall\t*%rcx\n\tint3\n", "\tpushq\t%rcx\n\tret\n\tint3\n"]
    {
        for secret in ["%gs:HOST_CR3", "(%r15)", "-0x800(%rsp)"] {
            let code =
                format!("{places}\ttestq\t$0x1000, {secret}\n\tcmovnzq\t%rdx, %rcx\n{jump}{end}");
            refuted(&code, &on_an_arm("", &code), "untaken-memory");
        }
        // As a jump by a bit of the guest's may.
        let code = format!("{places}\ttestq\t$0x1000, %r13\n\tcmovnzq\t%rdx, %rcx\n{jump}{end}");
        proved(&code, &on_an_arm("", &code));
    }
}

#[test]
fn what_is_told_is_not_what_an_arm_has_stored() {
    let end = "\tje\t8f\n\tmovq\t(%r14), %rcx\n";
    let secret = "\tmovq\t%gs:HOST_CR3, %rcx\n";
    for forged in [
        "\tandl\t$0x1000, %ecx\n\tmovq\t%rcx, %gs:HOST_RSP\n\tcmpq\t$0, %gs:HOST_RSP\n",
        "\tandl\t$0x1000, %ecx\n\txchgq\t%rcx, %gs:HOST_RSP\n\tcmpq\t$0, %gs:HOST_RSP\n",
        "\tshrq\t$12, %rcx\n\tmovq\t%rcx, %gs:SWITCH_FLAGS\n\ttestq\t$MODE_SMOD, %gs:SWITCH_FLAGS\n",
        "\txorq\t%rcx, %gs:SWITCH_FLAGS\n\ttestq\t$MODE_SMOD, %gs:SWITCH_FLAGS\n",
    ] {
        let code = format!("{secret}{forged}{end}");
        refuted(&code, &on_an_arm("", &code), "untaken-memory");
        let code = code.replace("rcx", "rax").replace("ecx", "eax");
        refuted(&code, &at(TO_SMOD, &code), "untaken-memory");
    }
    for own in [
        "\tcmpq\t$0, %gs:HOST_RSP\n",
        "\ttestq\t$MODE_SMOD, %gs:SWITCH_FLAGS\n",
        "\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\ttestq\t$MODE_SMOD, %gs:SWITCH_FLAGS\n",
    ] {
        proved(own, &at(TO_SMOD, &format!("{own}\tje\t8f\n\tmovq\t(%r14), %rax\n")));
    }
}

/// Two arms come together, and one has done this before.
#[test]
fn arms_come_together_before_they_ask() {
    let asked = |one: &str| {
        format!(
            "\ttestb\t$1, %bl\n\tjz\t7f\n{one}7:\ttestq\t$MODE_SMOD, %gs:SWITCH_FLAGS\n\
             \tje\t8f\n\tmovq\t(%r14), %rax\n"
        )
    };
    // A hook may have come in between, and what lies there are the flags all the same.
    for own in ["", "\ttestl\t$4, %gs:SWITCH_FLAGS\n", "\tmovq\t%gs:SWITCH_FLAGS, %rax\n"] {
        proved(own, &at(TO_SMOD, &asked(own)));
    }
    let secret = "\tmovq\t%gs:HOST_CR3, %rax\n\tshrq\t$12, %rax\n";
    for forged in [
        "\tmovq\t%rax, %gs:SWITCH_FLAGS\n",
        "\tmovb\t%al, %gs:SWITCH_FLAGS\n",
        "\txorq\t%rax, %gs:SWITCH_FLAGS\n",
        "\txchgq\t%rax, %gs:SWITCH_FLAGS\n",
        "\ttestl\t$4, %gs:SWITCH_FLAGS\n\torq\t%rax, %gs:SWITCH_FLAGS\n",
    ] {
        let code = asked(&format!("{secret}{forged}"));
        refuted(&code, &at(TO_SMOD, &code), "untaken-memory");
    }
}

#[test]
fn where_code_lies_decides_a_jump() {
    let place = "\tleaq\t8f(%rip), %rcx\n";
    for code in [
        "\ttestl\t$0x200000, %ecx\n\tjz\t8f\n\tmovq\t(%r14), %rcx\n",
        "\tcmpq\t%r15, %rcx\n\tjb\t8f\n\tmovq\t(%r14), %rcx\n",
        "\tcmpq\t(%r15), %rcx\n\tjb\t8f\n\tmovq\t(%r14), %rcx\n",
    ] {
        let code = format!("{place}{code}");
        refuted(&code, &on_an_arm("", &code), "untaken-memory");
    }
}

/// In an NMI's entry, where no path goes, with the interrupted registers still there.
fn interrupted_arm(code: &[Instruction]) -> Target {
    let (target, at) = ours(Label::Interruption, "mov rdi,rsp");
    let mut all = never_taken(Code::Je_rel32_64, mutate::behind(&target)).to_vec();
    all.extend_from_slice(code);
    all.push(Instruction::with(Code::Ud2));
    mutate::inserted(&target, at, &all).unwrap()
}

#[test]
fn an_interrupted_value_decides_a_jump() {
    let (target, trap) = ours(Label::NoHook, "ud2");
    let here = MemoryOperand::with_base_displ(Register::RIP, target.iretq.unwrap().cast_signed());
    let lea = Instruction::with2(Code::Lea_r64_m, Register::RAX, here).unwrap();
    let with = |code, a, b| Instruction::with2(code, a, b).unwrap();
    let add = with(Code::Add_rm64_r64, Register::RCX, Register::RAX);
    let test = Instruction::with2(Code::Test_rm8_imm8, Register::CL, 1).unwrap();
    let jump = Instruction::with_branch(Code::Je_rel32_64, trap).unwrap();
    refuted("a bit", &interrupted_arm(&[test, jump]), "untaken-memory");
    refuted("and an address", &interrupted_arm(&[lea, add, test, jump]), "untaken-memory");
    let place = with(Code::Test_rm64_r64, Register::RAX, Register::RAX);
    refuted("an address", &interrupted_arm(&[lea, place, jump]), "untaken-memory");
    // Where in the code something was interrupted is what an entry asks; another register is not
    // that.
    let frame = MemoryOperand::with_base_displ(Register::RSP, 0x80);
    let rip = Instruction::with2(Code::Cmp_rm64_r64, frame, Register::RAX).unwrap();
    proved("the interrupted address", &interrupted_arm(&[lea, rip, jump]));
    let other = with(Code::Cmp_rm64_r64, Register::RCX, Register::RAX);
    refuted("another", &interrupted_arm(&[lea, other, jump]), "untaken-memory");
}

#[test]
fn an_events_arm_goes_on_in_a_guest() {
    let cr3 = i64::try_from((PerCpu::tss_extra + TssExtra::host_cr3).bytes()).unwrap();
    let none = Register::None;
    let cr3 = MemoryOperand::new(none, none, 1, cr3, 8, false, Register::GS);
    let (target, at) = ours(Label::InterruptionHook, "push");
    let never = never_taken(Code::Je_rel32_64, mutate::behind(&target));
    let load = Instruction::with2(Code::Mov_r64_rm64, Register::RBX, cr3).unwrap();
    let [swap, leave] = [Code::Swapgs, Code::Sysretq].map(Instruction::with);
    let trap = Instruction::with(Code::Ud2);
    let code = [never[0], never[1], load, swap, leave, trap];
    refuted("a root", &mutate::inserted(&target, at, &code).unwrap(), "no-host-value");
    // And a hook finds nothing that was found.
    let absolute = MemoryOperand::with_displ(0x1000, 8);
    let load = Instruction::with2(Code::Mov_r64_rm64, Register::RBX, absolute).unwrap();
    let code = [never[0], never[1], load];
    refuted("a hook", &mutate::inserted(&target, at, &code).unwrap(), "hook-registers");
}

/// An arm does not end where the CPU lacks something, nor with an instruction that faults.
#[test]
fn what_faults_on_an_arm_ends_nothing() {
    let leak = "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%r15,%rcx), %rcx\n";
    for fault in [
        "clac",
        "movl\t$0x48, %ecx\n\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\twrmsr",
        "movl\t$0x49, %ecx\n\tmovl\t$1, %eax\n\txorl\t%edx, %edx\n\twrmsr",
        "movl\t$0x10, %ecx\n\tmovl\t%ecx, %ss",
        "movl\t$1, %edx\n\txorl\t%ecx, %ecx\n\txorl\t%eax, %eax\n\twrpkru",
        "movabsq\t$0x8000000000000000, %rcx\n\twrgsbase %rcx\n\tswapgs\n\tlfence\n\tnop",
    ] {
        let code = format!("\t{fault}\n{leak}");
        match fault.contains("lfence") {
            true => proved(fault, &on_an_arm("", &code)),
            false => refuted(fault, &on_an_arm("", &code), "untaken-memory"),
        }
    }
    let base = format!("\tmovabsq\t$0x8000000000000000, %rcx\n\twrgsbase %rcx\n{leak}");
    refuted("a base", &on_an_arm("", &base), "swapgs-fenced");
    refuted("no MSR", &on_an_arm("", "\tmovl\t$0x49, %ecx\n\trdmsr\n"), "untaken-code");
}

/// Calls from one place within each other: what is stored among their return addresses is found
/// there.
#[test]
fn deep_calls_are_no_place_to_hide() {
    let deep = |offset: usize, stored: &str, end: &str| {
        let code = format!(
            "\tmovq\t%gs:HOST_CR3, %rdx\n\tpushq\t$0\n\tleaq\t-{offset}(%rsp), %rax\n4:\ttestq\t%r13, %r13\n\
             \tjz\t6f\n\tcall\t5f\n\tint3\n5:{stored}\tjmp\t4b\n6:{end}"
        );
        on_an_arm("", &code)
    };
    let index = "\tpopq\t%rcx\n\tmovq\t(%r15,%rcx), %rcx\n\tud2\n";
    for offset in [8, 16, 24, 32, 40] {
        let stored = "\tmovq\t$0, (%rsp)\n\tmovq\t%rdx, (%rax)\n";
        refuted("an index", &deep(offset, stored, index), "untaken-memory");
        // Where nothing is stored until they are over.
        let end = format!("\tmovq\t%rdx, (%rax)\n{index}");
        refuted("stored later", &deep(offset, "", &end), "untaken-memory");
    }
    proved("nothing else", &deep(8, "", "\tud2\n"));
}

/// A loop may go round once more: its index is the code's own, and leads into its array, or beside
/// it.
#[test]
fn a_loop_over_an_array() {
    let room =
        |code: &str| format!("\tsubq\t$64, %rsp\n\txorl\t%ecx, %ecx\n1:{code}\taddq\t$64, %rsp\n");
    // The frame's address is kept where no store of the loop's may be.
    let exits = |code: &str| {
        target(INTEL, &[(EXIT, &format!("\tmovq\t%rax, %rbp\n{code}\tmovq\t%rbp, %rax\n{EXIT}"))])
    };
    let next = "\tincl\t%ecx\n\tcmpl\t$8, %ecx\n\tjne\t1b\n";
    for code in ["\tmovq\t$0, (%rsp,%rcx,8)\n", "\tmovq\t(%rsp,%rcx,8), %rdx\n"] {
        proved(code, &exits(&room(&format!("{code}{next}"))));
    }
    let zeros = format!("\tmovq\t$0, (%rsp,%rcx,8)\n{next}");
    refuted("over what lies above", &attack::arms::exits(&room(&zeros)), "untaken-memory");
    let masked = format!("\tandl\t$7, %ecx\n\tmovq\t$0, (%rsp,%rcx,8)\n{next}");
    proved("masked", &exits(&room(&masked)));
    let pointer = "\tleaq\t-64(%rsp), %rcx\n1:\tmovq\t$0, (%rcx)\n\taddq\t$8, %rcx\n\tcmpq\t%rsp, %rcx\n\
                   \tjne\t1b\n";
    proved("a pointer", &exits(pointer));
    // What a guest has stored over the return address is where that leads; what lies there is a
    // secret.
    let guests = format!("\tmovq\t%r15, (%rsp,%rcx,8)\n{next}");
    refuted("the guest's", &exits(&room(&guests)), "untaken-target");
    let told = format!(
        "\tmovq\t$0, (%rsp,%rcx,8)\n{next}\txorl\t%ecx, %ecx\n2:\tmovq\t(%rsp,%rcx,8), %rdx\n\
         \tandl\t$8, %edx\n\tmovq\t(%rsp,%rdx), %rdx\n\tincl\t%ecx\n\tcmpl\t$8, %ecx\n\tjne\t2b\n"
    );
    refuted("what lies beside is an index", &exits(&room(&told)), "untaken-memory");
    // A guest's number is no index.
    let steered = "\tmovl\t%r15d, %edx\n\tandl\t$0x38, %edx\n\tmovq\t(%rsp,%rdx), %rdx\n";
    refuted("a guest's", &on_an_arm("\tnop\n", steered), "untaken-memory");
}
