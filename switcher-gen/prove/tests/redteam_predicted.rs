//! Attacks on the prover by where RETs and jumps through registers may be predicted to lead, and by
//! where an arm leaves the code (hazards.md, rows 35 and 41 to 47). Each must be refused, for the
//! reason given; beside each stands what is right.

mod attack;
mod gas;

use attack::arms::{INTEL, TO_SMOD, at, exits, on_an_arm};
use attack::mitigated::{EXIT, FILL, RSB, mitigated};
use attack::{prove, proved, refuted, target};
use switcher_gen::asm::HostSymbol;
use switcher_prove::Verdict;

/// Reads what a guest says.
const GADGET: &str = "\tmovq\t(%rdi), %rcx\n\tmovq\t(%r15,%rcx), %rcx\n\tud2\n";

// The return stack buffer.

/// A call that nobody returns from, with this after it, and one more.
fn left(after: &str) -> String {
    format!("\tcall\t1f\n{after}1:\tcall\t2f\n\tint3\n2:\taddq\t$16, %rsp\n")
}

/// A RET of the host's is predicted by a call of the code's that nobody has returned from.
#[test]
fn a_call_is_left_to_the_host() {
    for (after, obligation) in [
        (GADGET, "untaken-memory"),
        ("\t.byte\t6\n", "untaken-code"),
        ("\tmovq\t(%rsp), %rcx\n\tud2\n", "untaken-memory"),
        ("\tjz\t3f\n3:\tud2\n", "untaken-memory"),
        ("\tmovq\t%gs:PVCS, %rcx\n\tmovq\t(%rcx), %rcx\n\tud2\n", "untaken-memory"),
        ("\tpushq\t$0\n\tret\n\tint3\n", "untaken-memory"),
    ] {
        refuted(after, &exits(&left(after)), obligation);
        // On an arm that leaves for the host, likewise.
        let arm = format!("{}\tpopq\t%rax\n{EXIT_OF_ARM}", left(after));
        refuted(after, &on_an_arm("", &arm), obligation);
        // And before a guest is entered: the host is come to later.
        let call = format!("\tcall\t1f\n{after}1:\taddq\t$8, %rsp\n{TO_SMOD}");
        refuted(after, &target(INTEL, &[(TO_SMOD, &call)]), obligation);
        // Unless so many come on top that no buffer has it any more.
        let call = format!("\tcall\t1f\n{after}1:\taddq\t$8, %rsp\n");
        let filled = mitigated(RSB, &[(FILL, &format!("{call}{FILL}"))]);
        proved(after, &filled);
        let less = FILL.replace("$16, %ecx", "$15, %ecx");
        let less = mitigated(RSB, &[(FILL, &format!("{call}{less}"))]);
        refuted(after, &less, "rsb-filled");
    }
    for after in ["\tint3\n", "\tlfence\n\tud2\n", "\tnop\n\tjmp\t3f\n3:\tud2\n"] {
        proved(after, &exits(&left(after)));
        let arm = format!("{}\tpopq\t%rax\n{EXIT_OF_ARM}", left(after));
        proved(after, &on_an_arm("", &arm));
    }
}

/// The rest of an exit, for an arm.
const EXIT_OF_ARM: &str = "\txorl\t%ecx, %ecx\n\txorl\t%edx, %edx\n\txorl\t%esi, %esi\n\
                           \txorl\t%edi, %edi\n\txorl\t%r8d, %r8d\n\txorl\t%r9d, %r9d\n\
                           \txorl\t%r10d, %r10d\n\txorl\t%r11d, %r11d\n\
                           \tmovq\t%rcx, %gs:HOST_RSP\n\tpushq\t$2\n\tpopfq\n\
                           \tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n\tud2\n";

#[test]
fn a_return_thunk_is_jumped_to_by_a_condition() {
    let [untrain, thunk] = HostSymbol::RETURNS.map(|symbol| symbol.0);
    let ss = "\tmovl\t$0x18, %ecx\n\tmovl\t%ecx, %ss\n";
    let untrains = format!("\tpushq\t%rax\n\tcall\t{untrain}\n\tpopq\t%rax\n{ss}{EXIT}");
    let with = |exit: &str, leave: &str| {
        target("amd-4level+untrain", &[(EXIT, exit), ("\tret\n\tud2\n", leave)])
    };
    let jump = format!("\tjmp\t{thunk}\n\tud2\n");
    for both in [
        format!("\ttestb\t$1, %r15b\n\tje\t{thunk}\n{jump}"),
        format!("\ttestb\t$1, %r15b\n\tje\t{thunk}\n\tjne\t{thunk}\n\tud2\n"),
        format!("\tcmpq\t%rsp, %rsp\n\tje\t{thunk}\n\tud2\n"),
    ] {
        proved(&both, &with(&untrains, &both));
    }
    // Before returns are untrained.
    let early = format!(
        "\tpushq\t%rax\n\tcmpq\t%rsp, %rsp\n\tjne\t{thunk}\n\tcall\t{untrain}\n\tpopq\t%rax\n{ss}{EXIT}"
    );
    refuted("before", &with(&early, &jump), "untrained");
    // After a call that the thunk's RET is predicted to return from.
    let called = format!(
        "\tpushq\t%rax\n\tcall\t{untrain}\n\tcall\t1f\n{GADGET}1:\taddq\t$8, %rsp\n\tpopq\t%rax\n{ss}{EXIT}"
    );
    let both = format!("\ttestb\t$1, %r15b\n\tje\t{thunk}\n{jump}");
    refuted("a call", &with(&called, &both), "untaken-memory");
}

// Where an arm leads.

#[test]
fn an_arm_leads_to_a_number() {
    let cleared: String = "ecx edx esi edi r8d r9d r10d r11d ebx ebp r12d r13d r14d r15d"
        .split(' ')
        .map(|register| format!("\txorl\t%{register}, %{register}\n"))
        .collect();
    for jump in [
        "\tmovl\t$0x1234, %ecx\n\tjmp\t*%rcx\n\tint3\n",
        "\tmovl\t$0x1234, %ecx\n\tcall\t*%rcx\n\tint3\n",
        "\tpushq\t$0x1234\n\tret\n\tint3\n",
        "\tpushq\t$-0x1234\n\tret\n\tint3\n",
        // Where the code lies, but not in there.
        "\tleaq\tswitcher_enter_guest-0x100000(%rip), %rcx\n\tpushq\t%rcx\n\tret\n\tint3\n",
    ] {
        let code = format!("{cleared}{jump}");
        refuted(jump, &on_an_arm("", &code), "untaken-target");
    }
    let either = format!(
        "\tmovl\t$0x1234, %ecx\n\ttestb\t$1, %r15b\n\tjz\t1f\n\tmovl\t$0x4321, %ecx\n1:\tpushq\t%rcx\n\
         {cleared}\tret\n\tint3\n"
    );
    refuted("one of two", &on_an_arm("", &either), "untaken-target");
    proved("the caller", &on_an_arm("", &format!("\tpopq\t%rax\n{EXIT_OF_ARM}")));
}

#[test]
fn what_a_guest_is_left_by_an_arm() {
    let load = "\txorl\t%eax, %eax\n\txorl\t%edx, %edx\n\tmovq\t%gs:HOST_CR3, %rbx\n";
    let end = "\tswapgs\n\tsysretq\n\tud2\n";
    for code in [
        end.to_owned(),
        format!("\tmovq\t%rbx, %rsp\n\txorl\t%ebx, %ebx\n{end}"),
        "\tswapgs\n\twrgsbase %rbx\n\txorl\t%ebx, %ebx\n\tsysretq\n\tud2\n".to_owned(),
        format!("\twrfsbase %rbx\n\txorl\t%ebx, %ebx\n{end}"),
        // GS base is the host's.
        "\txorl\t%ebx, %ebx\n\tsysretq\n\tud2\n".to_owned(),
        "\txorl\t%ebx, %ebx\n\tswapgs\n\tswapgs\n\tsysretq\n\tud2\n".to_owned(),
        // Where a stack lies, and what lies there.
        "\txorl\t%ebx, %ebx\n\tmovq\t%rsp, %rdx\n\tswapgs\n\tsysretq\n\tud2\n".to_owned(),
        "\txorl\t%ebx, %ebx\n\tmovq\t-0x100(%rsp), %rsp\n\tswapgs\n\tsysretq\n\tud2\n".to_owned(),
    ] {
        let code = format!("{load}{code}");
        refuted(&code, &at(TO_SMOD, &code), "no-host-value");
    }
    proved("nothing", &at(TO_SMOD, &format!("{load}\txorl\t%ebx, %ebx\n{end}")));
    let loaded = format!("{load}\txorl\t%ebx, %ebx\n\tmovq\t%gs:TSS_SP2, %rsp\n{end}");
    refuted(
        "what lies in the TSS",
        &at(TO_SMOD, &loaded.replace("TSS_SP2", "TSS_SP1")),
        "no-host-value",
    );
}

// Jumps through registers.

/// All places that the code names are predicted, wherever the code is come to by which it does, and
/// whether it is come to before or after the jump.
#[test]
fn a_place_is_named_elsewhere() {
    let end = "end_routine switcher_return_from_guest\n";
    let place = ".Lplace:\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%r15,%rcx), %rcx\n\tud2\n";
    let harmless = ".Lplace:\tud2\n";
    let back = "\tleaq\t.Lback(%rip), %rsi\n\tjmp\t*%rsi\n\tint3\n";
    let name = "\tleaq\t.Lplace(%rip), %rdx\n";
    let on_arm = format!("\tcmpq\t%rsp, %rsp\n\tjne\t9f\n\tjmp\t.Lback\n9:{name}{back}");
    let on_path = format!("{name}{back}");
    let later =
        format!("\tleaq\t.Llater(%rip), %rsi\n\tjmp\t*%rsi\n\tint3\n.Llater:{name}\tjmp\t.Lback\n");
    let direct = "\tjmp\t.Lcode\n";
    let indirect = "\tleaq\t.Lcode(%rip), %rcx\n\tjmp\t*%rcx\n\tint3\n";
    let counted = "\tleaq\t.Lcode-1(%rip), %rcx\n\tincq\t%rcx\n\tjmp\t*%rcx\n\tint3\n";
    let ret =
        "\tcall\t77f\n\tint3\n77:\tleaq\t.Lcode(%rip), %rcx\n\tmovq\t%rcx, (%rsp)\n\tret\n\tint3\n";
    for enter in [direct, indirect, counted, ret] {
        for code in [&on_arm, &on_path, &later] {
            let with = |place: &str| {
                let enter = format!("\tpushq\t%rax\n{enter}.Lback:\n\tpopq\t%rax\n{EXIT}");
                let code = format!("\tnop\n.Lcode:\n{code}{place}{end}");
                target(INTEL, &[(EXIT, &enter), (end, &code)])
            };
            refuted(&format!("{enter}{code}"), &with(place), "untaken-memory");
            proved(&format!("{enter}{code}"), &with(harmless));
        }
    }
}

// Words.

/// A refutation names what a wrong prediction leads to, wherever the path comes as well; it says no
/// more of the concrete machine than that it goes the same path.
#[test]
fn a_refutation_names_what_is_predicted() {
    let arm = "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t(%r15,%rcx), %rcx\n";
    for (what, target) in [("an arm", on_an_arm("", arm)), ("a call", exits(&left(GADGET)))] {
        let Verdict::Refuted(found) = prove(&target) else { panic!("{what}") };
        let (at, text) = found.predicted.clone().unwrap_or_else(|| panic!("{what}: {found}"));
        assert_eq!(found.at, Some(at), "{what}: {found}");
        assert!(text.starts_with("mov rcx,["), "{what}: {found}");
        let shown = found.to_string();
        assert!(shown.contains(&format!("{at:x}  {text}  <--")), "{what}: {found}");
        assert_eq!(shown.matches("<--").count(), 1, "{what}: {found}");
        assert!(shown.contains("it goes the same path"), "{what}: {found}");
        assert!(found.replay(&target), "{what}: {found}");
    }
    // What the path itself breaks is nobody's prediction.
    let Verdict::Refuted(found) = prove(&exits("\tud2\n")) else { panic!("UD2") };
    assert_eq!(found.predicted, None, "{found}");
}
