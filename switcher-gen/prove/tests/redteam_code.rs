//! Where code goes on and lies, how much of it is executed, and how its instructions are written:
//! attacks that are refused for their reason, and right code beside each. Needs binutils.

mod attack;
mod gas;

use attack::{prove, target};
use switcher_gen::Variant;
use switcher_model::ProgramError;
use switcher_prove::elf;
use switcher_prove::{BadCode, BlockOffsets, Setting, Target, Verdict};

const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
const LEAVE: &str = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n";

/// What is added to an exit, with a register to spare.
fn exit(code: &str) -> String {
    format!("\tpushq\t%rax\n{code}\tpopq\t%rax\n{EXIT}")
}

fn with(code: &str) -> Target {
    target("intel-4level", &[(EXIT, &exit(code))])
}

#[track_caller]
fn exit_proved(code: &str) {
    attack::proved(code, &with(code));
}

// Where a jump leads.

#[test]
fn a_jump_to_one_of_two_addresses_goes_both_ways() {
    let choose = |jump: &str, one: &str, other: &str| {
        format!(
            "\tleaq\t1f(%rip), %rcx\n\tleaq\t2f(%rip), %rdx\n\ttestq\t%r15, %r15\n\
             \tcmovzq\t%rdx, %rcx\n{jump}\tint3\n1:{one}\n2:{other}\n"
        )
    };
    let jumps = [
        "\tjmp\t*%rcx\n",
        "\tpushq\t%rcx\n\tret\n",
        "\tpushq\t%rcx\n\taddq\t$8, %rsp\n\tjmp\t*-8(%rsp)\n",
        "\tmovl\t%cs, %edx\n\tpushq\t%rdx\n\tpushq\t%rcx\n\tlretq\n",
        "\tsubq\t$16, %rcx\n\taddq\t$16, %rcx\n\tjmp\t*%rcx\n",
    ];
    for jump in jumps {
        exit_proved(&choose(jump, "\tnop", ""));
        // Either way may be the wrong one.
        for (one, other) in [("\tud2", ""), ("\tjmp\t3f", "\tud2\n3:")] {
            attack::refuted(jump, &with(&choose(jump, one, other)), "no-trap");
        }
    }
    // Of three, by two choices.
    let three = "\tleaq\t1f(%rip), %rcx\n\tleaq\t2f(%rip), %rdx\n\tleaq\t3f(%rip), %rsi\n\
                 \ttestq\t%r15, %r15\n\tcmovzq\t%rdx, %rcx\n\tcmovsq\t%rsi, %rcx\n\
                 \tjmp\t*%rcx\n\tint3\n1:\tnop\n2:\tnop\n3:\n";
    exit_proved(three);
    attack::refuted(
        "three",
        &with(&three.replace("\n3:\n", "\n\tjmp\t4f\n3:\tud2\n4:\n")),
        "no-trap",
    );
    // Over the end of the exit: the caller's address, or one of the code's.
    let leave = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tpopq\t%rcx\n\tleaq\t1f(%rip), %rdx\n\
                 \ttestq\t%r15, %r15\n\tcmovzq\t%rdx, %rcx\n\tjmp\t*%rcx\n\tint3\n1:\tud2\n\tret\n";
    attack::refuted("leave", &target("intel-4level", &[(LEAVE, leave)]), "no-trap");
}

#[test]
fn a_jump_to_what_is_not_known_is_refused_by_name() {
    for code in [
        "\tleaq\t1f(%rip), %rcx\n\tmovl\t%r15d, %edx\n\tandl\t$1, %edx\n\taddq\t%rdx, %rcx\n\
         \tjmp\t*%rcx\n\tint3\n1:\tnop\n\tnop\n",
        "\tleaq\t1f(%rip), %rcx\n\tandq\t$-16, %rcx\n\tjmp\t*%rcx\n\tint3\n\t.p2align 4\n1:\tnop\n",
        "\tleaq\t1f(%rip), %rcx\n\txorq\t%r15, %rcx\n\tjmp\t*%rcx\n\tint3\n1:\tnop\n",
    ] {
        let verdict = prove(&with(code));
        assert!(
            matches!(verdict, Verdict::Unsupported(BadCode::Several { .. })),
            "{code}: {verdict:?}"
        );
    }
}

#[test]
fn a_state_that_is_reported_has_its_regions_apart() {
    let code = "\tmovq\t%gs:PVCS, %rcx\n\tcmpq\t%rsp, %rcx\n\tjne\t1f\n\tud2\n1:\n";
    // Nobody can tell of the PVCS's address and a stack's that they are different: that they are
    // apart is assumed of memory, and no number shows the contrary.
    match prove(&with(code)) {
        Verdict::Proved(_) | Verdict::Unknown(_) => {}
        other => panic!("{other:?}"),
    }
}

// Where the code lies.

#[test]
fn code_that_holds_its_address_lies_there() {
    let here = |behind: &str| {
        format!("\tmovabsq\t$.Lhere, %rcx\n.Lhere:\n\tleaq\t.Lhere(%rip), %rdx\n{behind}")
    };
    exit_proved(&here("\tcmpq\t%rcx, %rdx\n\tje\t1f\n\tud2\n1:\n"));
    exit_proved("\tmovabsq\t$.Lthere, %rcx\n\tjmp\t*%rcx\n\tint3\n.Lthere:\n");
    exit_proved("\tmovabsq\t$.Lthere, %rcx\n\tpushq\t%rcx\n\tret\n\tint3\n.Lthere:\n");
    let wrong = with(&here("\tcmpq\t%rcx, %rdx\n\tjne\t1f\n\tud2\n1:\n"));
    assert!(wrong.assumed.iter().any(|text| text.contains("linked so that")));
    attack::refuted("the address is the same", &wrong, "no-trap");
    // What does not hold it may lie anywhere.
    let bit = "\tleaq\t0(%rip), %rcx\n\tbtq\t$20, %rcx\n\tjnc\t1f\n\tud2\n1:\n";
    attack::refuted("a bit of the address", &with(bit), "no-trap");
    // Nothing of such a proof is another's.
    let shared = std::sync::Arc::default();
    let tests_slide =
        "\tleaq\t.Lhere(%rip), %rdx\n.Lhere:\n\tbtq\t$20, %rdx\n\tjnc\t1f\n\tud2\n1:\n";
    let fixed = with(&format!("\tmovabsq\t$.Lhere, %rcx\n{tests_slide}"));
    let prover = switcher_prove::SharingProver::new(&shared);
    assert!(matches!(prover.prove(&fixed), Verdict::Proved(_)));
    let Verdict::Refuted(found) = prover.prove(&with(tests_slide)) else { panic!("not refuted") };
    assert_eq!(found.obligation.name, "no-trap");
}

#[test]
fn an_exit_by_a_far_return_is_one() {
    let far = |rip: &str| {
        format!(
            "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tpopq\t%rcx\n{rip}\tmovl\t%cs, %edx\n\
             \tmovq\t%rdx, -16(%rsp)\n\tmovq\t%rcx, -24(%rsp)\n\tsubq\t$24, %rsp\n\tmovl\t$0, %ecx\n\
             \tmovl\t$0, %edx\n\tlretq\t$8\n\tint3\n\tret\n"
        )
    };
    attack::proved("far", &target("intel-4level", &[(LEAVE, &far(""))]));
    let wrong = target("intel-4level", &[(LEAVE, &far("\tbtcq\t$50, %rcx\n"))]);
    assert!(!matches!(prove(&wrong), Verdict::Proved(_)));
    let wrong = target("intel-4level", &[(LEAVE, &far("\tmovq\t%r15, %rcx\n"))]);
    assert!(!matches!(prove(&wrong), Verdict::Proved(_)));
}

// How much there is.

#[test]
fn work_on_all_paths_together_has_a_bound() {
    let branches = |n: u32| -> String {
        (0..n).map(|i| format!("\tbtq\t${i}, %r15\n\tjc\t1f\n\tnop\n1:\n")).collect()
    };
    let turns = |n: u32| {
        format!("\tmovl\t${n}, %ecx\n1:\tpushq\t%rcx\n\tpopq\t%rdx\n\tdecl\t%ecx\n\tjnz\t1b\n")
    };
    exit_proved(&format!("{}{}", branches(3), turns(50)));
    for (jumps, rounds) in [(6, 1000), (7, 500), (9, 200)] {
        let code = format!("{}{}", branches(jumps), turns(rounds));
        let verdict = prove(&with(&code));
        assert!(
            matches!(verdict, Verdict::Unsupported(BadCode::Work { .. })),
            "{jumps}, {rounds}: {verdict:?}"
        );
    }
}

// Locked accesses.

#[test]
fn what_is_locked_lies_in_one_cache_line() {
    let at = |offsets: BlockOffsets, source: &str| {
        let defined = [("GS_TSS", offsets.tss), ("GS_TSS_EXTRA", offsets.tss_extra)];
        let foreign = elf::read(&gas::assemble(source, &defined)).unwrap();
        let variant: Variant = "intel-4level".parse().unwrap();
        Target::foreign(&foreign, Setting::from(&variant).with_block(offsets)).unwrap()
    };
    let crossing = BlockOffsets { tss: 0x2000, tss_extra: 0xFFE - 0x40 };
    let aligned = BlockOffsets { tss: 0x2000, tss_extra: 0x1000 - 0x40 };
    let toggle = "\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n";
    let locked = gas::SWITCHER.replace(toggle, &format!("\tlock {}", toggle.trim_start()));
    assert_ne!(locked, gas::SWITCHER);
    attack::refuted("crossing", &at(crossing, &locked), "split-lock");
    attack::proved("aligned", &at(aligned, &locked));
    attack::proved("not locked", &at(crossing, gas::SWITCHER));
    // On a stack, too, and what is not locked may lie anywhere.
    exit_proved("\tlock orq\t$0, (%rsp)\n");
    attack::refuted("a stack", &with("\tlock orl\t$0, 2(%rsp)\n"), "split-lock");
    attack::refuted("xchg", &with("\tmovq\t4(%rsp), %rcx\n\txchgq\t%rcx, 4(%rsp)\n"), "split-lock");
    exit_proved("\torl\t$0, 2(%rsp)\n\tlock orb\t$0, 3(%rsp)\n");
}

// How instructions are written.

#[test]
fn an_odd_encoding_is_said_to_be_one() {
    for (bytes, usual) in [
        ("0x0F, 0xAE, 0xEF", "0f ae e8"),
        ("0x0F, 0xAE, 0xF7", "0f ae f0"),
        ("0xF3, 0xC3", "c3"),
        ("0xF2, 0xC3", "c3"),
        ("0x66, 0x48, 0xCF", "48 cf"),
        ("0x66, 0x48, 0x0F, 0x07", "48 0f 07"),
        ("0xF2, 0xFF, 0xE1", "ff e1"),
    ] {
        match prove(&with(&format!("\t.byte\t{bytes}\n"))) {
            Verdict::Unsupported(BadCode::Program(error @ ProgramError::Encoding { .. })) => {
                assert!(error.to_string().contains(&format!("({usual})")), "{bytes}: {error}");
            }
            // Another reason may come first.
            Verdict::Unsupported(BadCode::Program(ProgramError::Prefix { .. })) => {}
            other => panic!("{bytes}: {other:?}"),
        }
    }
    let verdict = prove(&with("\tcpuid\n"));
    assert!(matches!(
        verdict,
        Verdict::Unsupported(BadCode::Program(ProgramError::NotModelled { .. }))
    ));
}
