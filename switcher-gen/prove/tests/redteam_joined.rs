//! Attacks on the prover by arms that come together: what is forgotten where two states are joined
//! must not take away what one of them is refused for (hazards.md, row 28 and rows 41 to 47). Each
//! must be refused, for the reason given; beside each stands what is right.

mod attack;
mod gas;

use attack::arms::{TO_SMOD, at, on_an_arm};
use attack::{proved, refuted};
use switcher_prove::{BadCode, Prover, Verdict};

/// Two ways to `code`, one of which has done this before and the other one that.
fn joined([one, other]: [&str; 2], code: &str) -> String {
    format!("{one}\ttestb\t$1, %r15b\n\tjz\t52f\n51:{code}\tud2\n52:{other}\tjmp\t51b\n")
}

/// The same with one of two numbers in RDX.
fn numbers(all: [i64; 2], code: &str) -> String {
    let all = all.map(|number| format!("\tmovq\t${number}, %rdx\n"));
    joined([&all[0], &all[1]], code)
}

// Words that a comparison is excused for.

#[test]
fn a_comparison_asks_whether_a_secret_wraps() {
    let far = [-0x1000_0000, -0x2000_0000];
    let ask = "\taddq\t%rcx, %rdx\n\tcmpq\t%rcx, %rdx\n\tjae\t7f\n\tmovq\t(%r14), %rcx\n7:\n";
    for secret in [
        "\tmovq\t%gs:HOST_CR3, %rcx\n",
        "\tmovq\t(%r15), %rcx\n",
        "\tleaq\tswitcher_enter_guest(%rip), %rcx\n",
        "\trdgsbase %rcx\n",
        // A stack, but far beyond its ends.
        "\tmovq\t%rsp, %rcx\n",
    ] {
        let code = format!("{secret}{}", numbers(far, ask));
        refuted(secret, &on_an_arm("", &code), "untaken-memory");
        let near = format!("{secret}{}", numbers([-8, -16], ask));
        match secret.contains("rsp") || secret.contains("gs") && !secret.contains("HOST") {
            true => proved("within a region", &on_an_arm("", &near)),
            false => refuted(secret, &on_an_arm("", &near), "untaken-memory"),
        }
    }
    // Of two regions, which is above the other is not told.
    let code = "\trdgsbase %rcx\n\tleaq\t-8(%rsp), %rdx\n\tcmpq\t%rcx, %rdx\n\tjae\t7f\n\
                \tmovq\t(%r14), %rcx\n7:\n";
    refuted("two regions", &on_an_arm("", code), "untaken-memory");
    let code = "\tleaq\t-64(%rsp), %rcx\n\tcmpq\t%rsp, %rcx\n\tjae\t7f\n\tmovq\t(%r14), %rcx\n7:\n";
    proved("two places of a stack", &on_an_arm("", code));
    // One operand may be in a stack by what a secret says.
    let code = "\tmovq\t%gs:HOST_CR3, %rcx\n\tandl\t$8, %ecx\n\taddq\t%rsp, %rcx\n\tcmpq\t%rsp, %rcx\n\
                \tja\t7f\n\tmovq\t(%r14), %rcx\n7:\n";
    refuted("a place by a secret", &on_an_arm("", code), "untaken-memory");
}

// GS.

#[test]
fn the_guests_gs_base_is_joined_with_another_address() {
    let base = "\tswapgs\n\trdgsbase %rcx\n\tswapgs\n";
    let load = "\tmovq\t8(%rcx), %rdx\n";
    for other in ["\tmovq\t%r15, %rcx\n", "\txorl\t%ecx, %ecx\n", "\tmovq\t%rsp, %rcx\n"] {
        for pair in [[base, other], [other, base]] {
            refuted(other, &on_an_arm("", &joined(pair, load)), "swapgs-fenced");
            proved(other, &on_an_arm("", &joined(pair, &format!("\tlfence\n{load}"))));
        }
        let by_fs = "\twrfsbase %rcx\n\tmovq\t%fs:8, %rdx\n";
        refuted("by FS", &on_an_arm("", &joined([other, base], by_fs)), "swapgs-fenced");
    }
    // By a condition that is no jump's.
    let moved = format!("{base}\ttestb\t$1, %r15b\n\tcmovzq\t%r15, %rcx\n{load}");
    refuted("CMOV", &on_an_arm("", &moved), "swapgs-fenced");
    // It was on a stack meanwhile, whole or not.
    for slot in ["-16(%rsp)", "-20(%rsp)"] {
        let pair = [base, "\tmovq\t%r15, %rcx\n"]
            .map(|of| format!("{of}\tmovq\t%rcx, {slot}\n\txorl\t%ecx, %ecx\n"));
        let again = format!("\tmovq\t{slot}, %rcx\n{load}");
        let code = joined([&pair[0], &pair[1]], &again);
        refuted(slot, &on_an_arm("", &code), "untaken-memory");
    }
    let guests = ["\tmovq\t%r15, -16(%rsp)\n", "\tmovq\t%r14, -16(%rsp)\n"];
    let code = joined(guests, &format!("\tmovq\t-16(%rsp), %rcx\n{load}"));
    proved("two addresses of the guest's", &on_an_arm("", &code));
    // What a loop has stored somewhere in a stack.
    let looped = format!(
        "{base}\tsubq\t$64, %rsp\n\txorl\t%edx, %edx\n3:\tmovq\t%rcx, (%rsp,%rdx,8)\n\tincl\t%edx\n\
         \tcmpl\t$8, %edx\n\tjne\t3b\n\tmovq\t(%rsp), %rcx\n{load}\tud2\n"
    );
    refuted("in a loop", &on_an_arm("", &looped), "untaken-memory");
}

// Numbers.

#[test]
fn a_number_that_leads_far_is_joined_with_another() {
    let far = [0x10_0000, 0x20_0000];
    let ret = "\tcall\t3f\n\tint3\n3:\tret\n\tint3\n";
    let by_gs = format!("\tmovq\t%r15, %gs:(%rdx)\n{ret}");
    refuted("a store by GS", &on_an_arm("", &numbers(far, &by_gs)), "swapgs-fenced");
    let load = "\tmovq\t%gs:(%rdx), %rcx\n";
    refuted("a load by GS", &on_an_arm("", &numbers(far, load)), "swapgs-fenced");
    for code in [
        "\tmovq\t%r15, (%rsp,%rdx)\n",
        "\tmovq\t(%rsp,%rdx), %rcx\n",
        "\tnegq\t%rdx\n\tmovq\t%r15, (%rsp,%rdx)\n",
        "\tshrq\t$8, %rdx\n\tmovq\t%r15, (%rsp,%rdx,8)\n",
        // A number that leads into the stack, and another one that is added.
        "\tshrq\t$17, %rdx\n\tmovq\t%r15, 0x100000(%rsp,%rdx)\n",
        // It was on a stack meanwhile.
        "\tmovq\t%rdx, -16(%rsp)\n\tmovq\t-16(%rsp), %rcx\n\tmovq\t%r15, (%rsp,%rcx)\n",
    ] {
        refuted(code, &on_an_arm("", &numbers(far, code)), "untaken-memory");
    }
    // Each is joined on a stack.
    let slots = far.map(|number| format!("\tmovq\t${number}, -16(%rsp)\n"));
    let code =
        joined([&slots[0], &slots[1]], "\tmovq\t-16(%rsp), %rcx\n\tmovq\t%r15, (%rsp,%rcx)\n");
    refuted("a slot", &on_an_arm("", &code), "untaken-memory");
    for near in [[8, 16], [-8, 64], [-0x100, 0]] {
        proved("near", &on_an_arm("", &numbers(near, "\tmovq\t(%rsp,%rdx), %rcx\n")));
    }
    // Three ways, the last of which leads far.
    let three = format!(
        "\tmovl\t$8, %edx\n\ttestb\t$2, %r15b\n\tjz\t51f\n{}",
        numbers([16, 0x10_0000], "\tmovq\t%r15, (%rsp,%rdx)\n")
    );
    refuted("three", &on_an_arm("", &three), "untaken-memory");
}

/// A loop may go round once more, and not by leaps and bounds.
#[test]
fn a_loop_leaves_its_region() {
    let by = |step: &str, start: &str| {
        let code = format!(
            "{start}1:\tmovq\t%r14, (%rsp,%rdx)\n{step}\ttestq\t%r15, %r15\n\tjnz\t1b\n\tud2\n"
        );
        on_an_arm("", &code)
    };
    let zero = "\txorl\t%edx, %edx\n";
    for step in
        ["\taddq\t$0x1000, %rdx\n", "\tsubq\t$0x800, %rdx\n", "\tleaq\t512(%rdx,%rdx), %rdx\n"]
    {
        refuted(step, &by(step, zero), "untaken-memory");
    }
    refuted("doubled", &by("\tshlq\t$1, %rdx\n", "\tmovl\t$8, %edx\n"), "untaken-memory");
    refuted("tripled", &by("\tleaq\t1(%rdx,%rdx,2), %rdx\n", zero), "untaken-memory");
    for step in ["\taddq\t$8, %rdx\n", "\tsubq\t$16, %rdx\n", "\taddl\t$8, %edx\n"] {
        proved(step, &by(step, zero));
    }
    // Below zero, 32 bits are a large number.
    let down = "\tdecl\t%edx\n";
    refuted(down, &by(down, zero), "untaken-memory");
    proved(down, &by(down, "\tmovl\t$64, %edx\n"));
    // A pointer likewise.
    let pointer = |step: i64| {
        let code = format!(
            "\tmovq\t%rsp, %rdx\n1:\tmovq\t%r14, (%rdx)\n\taddq\t${step}, %rdx\n\ttestq\t%r15, %r15\n\
             \tjnz\t1b\n\tud2\n"
        );
        on_an_arm("", &code)
    };
    refuted("far", &pointer(0x1000), "untaken-memory");
    proved("near", &pointer(-8));
}

/// A number is a place where code is linked for one address.
#[test]
fn a_number_is_where_code_lies() {
    let gadget = "8:\tpopq\t%rcx\n\tjmp\t4f\n.Lgadget:\tmovq\t%gs:HOST_CR3, %rcx\n\
                  \tmovq\t(%r15,%rcx), %rcx\n\tud2\n4:\tpushq\t%rcx\n";
    let never = "\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tjmp\t8f\n9:";
    let with = |arm: &str| {
        attack::arms::exits(&format!("\tpushq\t%rcx\n{never}{arm}{gadget}\tpopq\t%rcx\n"))
    };
    let looped = |number: &str| {
        format!(
            "\tmovabsq\t$.Lgadget, %rdi\n\tcall\t3f\n\tint3\n3:\tsubq\t$64, %rsp\n\txorl\t%ecx, %ecx\n\
             1:\tmovq\t{number}, (%rsp,%rcx,8)\n\tincl\t%ecx\n\tcmpl\t$8, %ecx\n\tjne\t1b\n\
             \taddq\t$64, %rsp\n\tret\n\tint3\n"
        )
    };
    refuted("a place", &with(&looped("%rdi")), "untaken-target");
    proved("no place", &with(&looped("$0x1234")));
    let one = "\tmovabsq\t$.Lgadget, %rdx\n";
    // Or one of two.
    let either = joined([one, "\txorl\t%edx, %edx\n"], &looped("%rdx"));
    refuted("one of two", &with(&either), "untaken-target");
    for jump in
        ["\tjmp\t*%rdx\n\tint3\n", "\tpushq\t%rdx\n\tret\n\tint3\n", "\tcall\t*%rdx\n\tint3\n"]
    {
        let code = joined([one, "\txorl\t%edx, %edx\n"], jump);
        match Prover::default().prove(&with(&code)) {
            Verdict::Refuted(_) => {}
            other => panic!("{jump}: {other:?}"),
        }
    }
}

// Size.

/// Registers that each may point to a stack or not make a kind of states of each choice.
#[test]
fn choices_do_not_add_up() {
    let registers = "rcx rdx rsi rdi r8 r9 r10 r11 rbx rbp r12 r13 r14".split(' ');
    let all: String = registers
        .enumerate()
        .map(|(bit, register)| {
            let (test, label) = (1 << bit, 60 + bit);
            format!(
                "\ttestl\t${test}, %r15d\n\tjz\t{label}f\n\tleaq\t-64(%rsp), %{register}\n{label}:\n"
            )
        })
        .collect();
    proved("pointers", &on_an_arm("", &format!("{all}\tud2\n")));
    let index = "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%r15,%rcx), %rcx\n\tud2\n";
    refuted("behind them", &on_an_arm("", &format!("{all}{index}")), "untaken-memory");
    // Nor do calls that nobody returns from: what they leave to RETs differs.
    let calls: String = (0..13)
        .map(|bit| {
            let (test, label) = (1 << bit, 60 + 2 * bit);
            let after = label + 1;
            format!(
                "\ttestl\t${test}, %r15d\n\tjz\t{label}f\n\tcall\t{after}f\n\tlfence\n{after}:\tpopq\t%rcx\n\
                 {label}:\n"
            )
        })
        .collect();
    match Prover::default().prove(&at(TO_SMOD, &format!("{calls}\tud2\n"))) {
        Verdict::Unsupported(BadCode::States { .. }) => {}
        other => panic!("{other:?}"),
    }
}
