//! Attacks on the prover by how code is left: for the host, for a hook, for a guest or for
//! interrupted code, by a path or where a wrong prediction leads. Each must be refused, for the
//! reason given; beside each stands what is right.

mod attack;
mod gas;

use attack::arms::{INTEL, NEVER, TO_SMOD, at};
use attack::mitigated::{EXIT, LAST_RET, Parts, RSB, mitigated};
use attack::{proved, refuted, target};
use switcher_prove::{Clauses, DataAt, HostData, Target};

/// The last instructions of the exit.
const END: &str = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n\tud2\n";
/// What a host may find in RFLAGS.
const FLAGS: &str = "\tpushq\t$2\n\tpopfq\n";
const CLEAR: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
const ENTER: &str = "\nroutine switcher_enter_guest\n";
/// What a guest may know, in RAX, RCX, RDX and as GS base, right before it is entered.
const TO_GUEST: &str = "\txorl\t%eax, %eax\n\txorl\t%ecx, %ecx\n\txorl\t%edx, %edx\n\tswapgs\n";

/// Where a path never goes, in an exit.
fn arm(code: &str) -> Target {
    let code = format!("{}\tjmp\t8f\n9:{code}8:\n{EXIT}", NEVER[0]);
    target(INTEL, &[(EXIT, &code)])
}

#[track_caller]
fn right(what: &str, code: &str) {
    proved(what, &arm(code));
}

#[track_caller]
fn wrong(code: &str, obligation: &str) {
    refuted(code, &arm(code), obligation);
}

/// A RET of the host's comes next, whatever has led to the host.
#[test]
fn an_exit_by_a_jump_needs_what_a_ret_needs() {
    let jump = "\taddq\t$8, %rsp\n\tjmp\t*-8(%rsp)\n\tint3\n";
    let end = END.replace("\tret\n\tud2\n", jump);
    proved("without mitigations", &target(INTEL, &[(END, &end)]));
    for variant in ["intel-4level+rsb", "intel-4level+rsblite", "amd-4level+rsb"] {
        refuted(variant, &target(variant, &[(END, &end)]), "rsb-filled");
    }
    proved("filled", &mitigated(RSB, &[(LAST_RET, jump)]));
    let other = Parts { rsb: false, ..RSB };
    let never = format!(
        "{}\tjmp\t8f\n9:{CLEAR}{FLAGS}\tpop_all\trbx, rbp, r12, r13, r14, r15\n{jump}8:\n",
        NEVER[0]
    );
    let skips = format!("{never}{EXIT}");
    proved("with nothing to fill", &mitigated(other, &[(EXIT, &skips)]));
    refuted("on an arm", &target("intel-4level+rsb", &[(EXIT, &skips)]), "rsb-filled");
}

/// What a far return reads is an address and two selectors, on an arm as well (row 61).
#[test]
fn a_far_return_on_an_arm_reads_what_a_secret_says() {
    let secret = "\tmovq\t%gs:HOST_CR3, %rcx\n\tshrq\t$12, %rcx\n\tandl\t$0xFFF8, %ecx\n";
    let cs = format!("{secret}\tpushq\t%rcx\n\tpushq\t$0\n{TO_GUEST}\tlretq\n\tud2\n");
    let found = format!("\tpushq\t(%r15)\n\tpushq\t$0\n{TO_GUEST}\tlretq\n\tud2\n");
    let frame = format!("\tmovq\t%r15, %rsp\n{TO_GUEST}\tlretq\n\tud2\n");
    for code in [&cs, &found, &frame] {
        wrong(code, "untaken-memory");
        wrong(&code.replace("lretq", "iretq"), "untaken-memory");
        right("fenced", &format!("\tlfence\n{}", code.replace("lretq", "ud2")));
    }
    // SS, which only IRETQ has.
    let ss = format!(
        "{secret}\tpushq\t%rcx\n\tpushq\t$0\n\tpushq\t$2\n\tpushq\t$0x33\n\tpushq\t$0\n{TO_GUEST}\tiretq\n\tud2\n"
    );
    wrong(&ss, "untaken-memory");
    refuted("a direct switch", &at(TO_SMOD, &cs), "untaken-memory");
    let own = format!("\tpushq\t$0x10\n\tpushq\t$0\n{TO_GUEST}\tlretq\n\tud2\n");
    right("numbers", &own);
    right("the guest's own", &format!("\tpushq\t%r14\n\tpushq\t%r15\n{TO_GUEST}\tlretq\n\tud2\n"));
}

/// The host goes on with RSP, DF and its memory, as with registers.
#[test]
fn the_host_gets_something_of_a_guests_from_an_arm() {
    let zero = "\txorl\t%ebx, %ebx\n\txorl\t%ebp, %ebp\n\txorl\t%r12d, %r12d\n\txorl\t%r13d, %r13d\n\
                \txorl\t%r14d, %r14d\n\txorl\t%r15d, %r15d\n";
    let with_rsp = |load: &str| {
        format!("{CLEAR}{FLAGS}\tmovq\t48(%rsp), %rsi\n{load}{zero}\tjmp\t*%rsi\n\tint3\n")
    };
    right("its own", &with_rsp("\taddq\t$56, %rsp\n"));
    for load in ["\tmovq\t%r15, %rsp\n", "\tmovq\t(%r15), %rsp\n", "\taddq\t$64, %rsp\n"] {
        wrong(&with_rsp(load), "untaken-memory");
    }
    let leaves = |code: &str| {
        format!("{code}{CLEAR}\tmovq\t%rcx, %gs:HOST_RSP\n\tpushq\t$2\n\tpopfq\n{END}")
    };
    right("nothing", &leaves(""));
    right("a number", &leaves("\tmovq\t$0, 120(%rsp)\n"));
    right("below RSP", &leaves("\tmovq\t%r15, -64(%rsp)\n"));
    for store in [
        "\tmovq\t%r15, 120(%rsp)\n",
        "\tmovq\t(%r15), %rax\n\tmovq\t%rax, 120(%rsp)\n",
        "\tmovq\t%r15, %gs:HOST_CR3\n",
        "\tmovq\t%r15, %gs:0x24\n",
    ] {
        wrong(&leaves(store), "untaken-memory");
        right("fenced", &format!("\tlfence\n{store}\tud2\n"));
    }
    // The return address may be what was stored.
    wrong(&leaves("\tmovq\t%r15, (%r14)\n"), "untaken-target");
    let down = format!("{CLEAR}\tmovq\t%rcx, %gs:HOST_RSP\n\tpushq\t%r15\n\tpopfq\n{END}");
    wrong(&down, "untaken-memory");
    // A pointer to what the guest writes is no better than what lies there.
    let pvcs = format!(
        "{CLEAR}{FLAGS}\tmovq\t48(%rsp), %rsi\n\taddq\t$56, %rsp\n{zero}\tmovq\t%gs:PVCS, %rbx\n\
         \tjmp\t*%rsi\n\tint3\n"
    );
    wrong(&pvcs, "exit-scratch");
    right("a number", &pvcs.replace("%gs:PVCS", "$0"));
    // Nor what is made of it, or joined with something else on another arm.
    let load = "\tmovq\t%gs:PVCS, %rbx\n";
    for more in [
        "\tandq\t$-4096, %rbx\n",
        "\tmovb\t$0x40, %bl\n",
        "\tmovl\t$0, %ebx\n\tcmpq\t$0, %gs:HOST_CR3\n\tcmovnzq\t%gs:PVCS, %rbx\n",
    ] {
        wrong(&pvcs.replace(load, &format!("{load}{more}")), "exit-scratch");
    }
    let leave = format!("\tpopq\t%rbx\n{CLEAR}{FLAGS}\taddq\t$48, %rsp\n\tret\n\tud2\n");
    let arms = |one: &str, other: &str| {
        let never = NEVER[0];
        let other_never = never.replace("9f", "6f");
        let code = format!(
            "{never}{other_never}\tjmp\t8f\n9:\tpushq\t{one}\n\tjmp\t7f\n6:\tpushq\t{other}\n\
             7:{leave}8:\n{EXIT}"
        );
        target(INTEL, &[(EXIT, &code)])
    };
    for [one, other] in [["%gs:PVCS", "$0"], ["$0", "%gs:PVCS"]] {
        refuted(one, &arms(one, other), "exit-scratch");
    }
    // What an earlier exit has left below the caller's RSP may be a guest's.
    let left = |from: &str| {
        let never =
            format!("\tcmpq\t%rsp, %rsp\n\tjz\t8f\n\tmovq\t{from}, %rbx\n\tret\n\tud2\n8:\n");
        let enter = format!("{ENTER}{never}");
        target(INTEL, &[(ENTER, &enter)])
    };
    refuted("left over", &left("-0x40(%rsp)"), "exit-scratch");
    proved("the caller's", &left("(%rsp)"));
}

/// A hook takes RDI for a pointer, RSP for its stack, and what lies there for where it returns to.
#[test]
fn a_hook_gets_something_of_a_guests_from_an_arm() {
    let all = "eax ebx ecx edx esi ebp r8d r9d r10d r11d r12d r13d r14d r15d".split(' ');
    let zero: String = all.map(|register| format!("\tmovl\t$0, %{register}\n")).collect();
    let with = |code: &str, call: &str| format!("{FLAGS}{code}{zero}{call}");
    for hook in ["switcher_host_nmi", "switcher_host_fatal"] {
        let call = format!("\tcall\t{hook}\n\tud2\n");
        right("its own", &with("\tmovq\t%rsp, %rdi\n", &call));
        right("nothing", &with("\tmovl\t$0, %edi\n", &call));
        wrong(&with("\tmovq\t%r15, %rdi\n", &call), "hook-registers");
        wrong(&with("\tmovq\t(%r15), %rdi\n", &call), "hook-registers");
        wrong(&with("\tmovq\t%rsp, %rdi\n\tmovq\t%r15, %gs:HOST_CR3\n", &call), "hook-registers");
        let jump = format!("\tjmp\t{hook}\n");
        wrong(&with("\tmovl\t$0, %edi\n\tmovq\t%r15, %rsp\n", &jump), "hook-registers");
        wrong(&with("\tmovl\t$0, %edi\n\tpushq\t%r15\n", &jump), "untaken-target");
        wrong(&with("\tmovl\t$0, %edi\n\tpushq\t%gs:HOST_CR3\n", &jump), "untaken-target");
        // Behind the call, by the hook's own RET: with what it has left.
        let behind = |code: &str| with("\tmovl\t$0, %edi\n", &format!("\tcall\t{hook}\n{code}"));
        wrong(&behind("\tjmp\t*%rax\n\tint3\n"), "untaken-target");
        wrong(&behind("\tmovq\t(%rcx), %rcx\n\tint3\n"), "untaken-memory");
        wrong(&behind("\tmovq\t-64(%rsp), %rbx\n\tmovq\t(%rbx), %rbx\n\tint3\n"), "untaken-memory");
        wrong(&behind("\t.byte\t0x06\n"), "untaken-code");
        let down = format!("\tmovl\t$0, %edi\n\tpushq\t%r15\n\tpopfq\n{zero}{call}");
        wrong(&down, "hook-registers");
        wrong(&with("\tmovq\t%gs:PVCS, %rdi\n", &call), "hook-registers");
        let moved = "\tmovq\t%gs:PVCS, %rdi\n\tandq\t$-4096, %rdi\n";
        wrong(&with(moved, &call), "hook-registers");
        // Nor what is made of the address of a stack, and does not lead into one.
        for from in ["%rsp", "%gs:TSS_SP0"] {
            let moved = format!("\tmovq\t{from}, %rdi\n\tandq\t$-4096, %rdi\n");
            wrong(&with(&moved, &call), "hook-registers");
        }
        // Nor another stack than the hook's, nor what lies below its own, nor what may name one.
        for other in [
            "\tmovq\t%gs:TSS_SP0, %rdi\n\tsubq\t$0x70, %rdi\n",
            "\tmovq\t%gs:HOST_RSP, %rdi\n\tsubq\t$0x80, %rdi\n",
            "\tmovq\t%gs:TSS_SP1, %rdi\n",
            "\tleaq\t-0x80(%rsp), %rdi\n",
        ] {
            wrong(&with(other, &call), "hook-registers");
        }
        right("what it has not changed", &behind("\tmovq\t(%rsp), %rbx\n\tint3\n"));
    }
}

/// Its code loads what was stored, and runs on the root that is loaded.
#[test]
fn a_guest_gets_something_of_the_hosts_from_an_arm() {
    let guest = |code: &str| {
        format!("{code}{TO_GUEST}\tmovl\t$0x202, %r11d\n\tmovq\t%r14, %rsp\n\tsysretq\n\tud2\n")
    };
    let switch = |code: &str| at(TO_SMOD, &guest(code));
    proved("nothing", &switch(""));
    proved("the guest's own", &switch("\tmovq\t%r15, PVCS_R11(%rdx)\n\tmovq\t%r15, (%r14)\n"));
    for store in [
        "\tmovq\t%gs:HOST_CR3, %rax\n\tmovq\t%rax, PVCS_R11(%rdx)\n",
        "\tmovq\t%gs:HOST_CR3, %rax\n\tmovq\t%rax, (%r14)\n",
        "\tmovq\t(%r15), %rax\n\tmovq\t%rax, (%r14)\n",
        "\tmovq\t%gs:HOST_CR3, %rax\n\tmovq\t%rax, 0x800(%rdx)\n",
    ] {
        refuted(store, &switch(store), "no-host-value");
        proved(store, &switch(&format!("\tlfence\n{store}")));
    }
    // In an exit, the host's root is loaded.
    wrong(&guest(""), "root");
    // Where another arm comes with another root, which one it is must not be forgotten.
    let never = NEVER[0];
    let both = format!(
        "{never}\tmovq\t%gs:HOST_CR3, %rax\n\tmovq\t%rax, %cr3\n{never}\tjmp\t8f\n9:{}8:\n",
        guest("")
    );
    refuted("joined", &target(INTEL, &[(TO_SMOD, &format!("{both}{TO_SMOD}"))]), "root");
    // RSP may be a stack of the host's that is still there, and nothing else of it.
    let rsp = guest("").replace("movq\t%r14, %rsp", "movq\t%gs:HOST_CR3, %rsp");
    refuted("RSP", &at(TO_SMOD, &rsp.replace("\tswapgs\n", "")), "no-host-value");
}

/// The host's untraining uses what its GS base points to.
#[test]
fn the_hosts_untraining_is_called_with_a_guests_gs() {
    let variant = "amd-4level+untrain";
    let never = |code: &str| format!("{}\tjmp\t8f\n9:{code}8:\n", NEVER[0]);
    let untrain = "\tcall\tswitcher_host_untrain_returns\n";
    let exit = |code: &str| {
        let end = END.replace("\tret\n\tud2\n", "\tjmp\tswitcher_host_return_thunk\n");
        let before = format!("\tmovq\t%rax, %rbp\n{untrain}{code}\tmovq\t%rbp, %rax\n{EXIT}");
        let mut target = target(variant, &[(EXIT, &before), (END, &end)]);
        target.setting.contract.clauses = Clauses::ANY_SS;
        target
    };
    proved("without an arm", &exit(""));
    proved("once more", &exit(&never(&format!("{untrain}\tud2\n"))));
    let other = never(&format!("\tswapgs\n{untrain}\tud2\n"));
    refuted("the guest's GS", &exit(&other), "untrained");
}

/// Where a SYSCALL's exit begins.
const LEAVES: &str = "\tjmp\tswitcher_return_from_guest\nend_routine entry_SYSCALL_64_switcher\n";

/// A SYSCALL's exit of its own: with `code` where no path goes, on the host's root and stack, after
/// `before`.
fn own_exit(before: &str, code: &str) -> Target {
    let exit = format!(
        "\tmovq\t%rsp, %rax\n\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, %cr3\n\
         \tmovq\t%gs:HOST_RSP, %rsp\n{before}{}\tjmp\t8f\n9:{code}8:\n{CLEAR}\
         \tmovq\t%rcx, %gs:HOST_RSP\n\tpushq\t$FLAGS_HOST\n\tpopfq\n{END}\
         end_routine entry_SYSCALL_64_switcher\n",
        NEVER[0]
    );
    target(INTEL, &[(LEAVES, &exit)])
}

/// The host goes by the frame of an exit: by its reason it chooses what to do.
#[test]
fn the_frame_of_an_exit_says_on_an_arm_nothing_that_a_guest_has_chosen() {
    fn wrong(before: &str, code: &str) {
        refuted(code, &own_exit(before, code), "untaken-memory");
    }
    proved("nothing", &own_exit("", ""));
    proved("a number", &own_exit("", "\tmovl\t$7, 0x7C(%rax)\n"));
    proved("the guest's own", &own_exit("", "\tmovq\t%r15, 0x98(%rax)\n"));
    // Error code, reason, CS, SS.
    for place in [0x78, 0x7C] {
        wrong("", &format!("\tmovl\t%r15d, {place:#x}(%rax)\n"));
        wrong("", &format!("\tmovb\t%r15b, {place:#x}(%rax)\n"));
    }
    for place in [0x78, 0x88, 0xA0] {
        wrong("", &format!("\tmovq\t%r15, {place:#x}(%rax)\n"));
        wrong("", &format!("\tmovq\t(%r15), %rdx\n\tmovq\t%rdx, {place:#x}(%rax)\n"));
    }
    // Left by a path, for an arm that skips what is right.
    let late = "\tmovl\t%r15d, 0x7C(%rax)\n\tcmpq\t%rsp, %rsp\n\tjne\t7f\n\
                \tmovl\t$REASON_SYSCALL, 0x7C(%rax)\n7:\n";
    wrong(late, "");
    // Another frame.
    wrong("", "\taddq\t$8, %rax\n");
    wrong("", "\tmovq\t%gs:TSS_SP0, %rax\n");
    // Another region: the guest's RSP would be its reason.
    for place in ["-0x40", "0"] {
        wrong("", &format!("\trdgsbase\t%rax\n\tleaq\t{place}(%rax), %rax\n"));
    }
    wrong("", "\tleaq\t16(%rsp), %rax\n");
    // A part of the frame's address, or one that is made of it: a register of the guest's would be
    // its reason.
    for code in [
        "andq\t$-256, %rax",
        "orq\t$0x80, %rax",
        "xorq\t$0x20, %rax",
        "movb\t$0, %al",
        "addb\t$0x20, %al",
        "movw\t$0, %ax",
        "addl\t$0x20, %eax",
        "btsq\t$5, %rax",
        "negq\t%rax",
        "leaq\t(%rax,%rdx), %rax",
        "shrq\t$12, %rax\n\tshlq\t$12, %rax",
        "xorl\t%edx, %edx\n\ttestb\t$1, %dl\n\tcmovzq\t%rsp, %rax",
        "rdgsbase\t%rax\n\torq\t$0x80, %rax",
    ] {
        wrong("", &format!("\t{code}\n"));
    }
    proved("nowhere", &own_exit("", "\txorl\t%eax, %eax\n"));
}

/// Where an arm returns before there is a frame, too.
#[test]
fn an_arm_of_the_entry_names_no_memory_of_the_switchers() {
    let arm = |code: &str| {
        let code = format!("{ENTER}{}\tjmp\t8f\n9:\t{code}\n\tret\n\tint3\n8:\n", NEVER[0]);
        target(INTEL, &[(ENTER, &code)])
    };
    proved("the caller's", &arm("nop"));
    proved("a number", &arm("movl\t$7, %eax"));
    for code in [
        "rdgsbase\t%rax\n\taddq\t$0x7C, %rax",
        "movq\t%gs:TSS_SP0, %rax",
        "movq\t%gs:TSS_SP0, %rax\n\tsubq\t$PT_REGS_SIZE, %rax",
        "movq\t%gs:TSS_SP0, %rax\n\tandq\t$-256, %rax",
    ] {
        refuted(code, &arm(code), "untaken-memory");
    }
}

/// A register that the host pops, or a field that it trusts, would point to a guest's registers.
#[test]
fn an_arm_leaves_no_address_of_the_guests_registers_to_the_host() {
    for (place, obligation) in [
        // What is popped, and what lies above it.
        ("8(%rsp)", "exit-scratch"),
        ("0x28(%rsp)", "exit-scratch"),
        ("0x38(%rsp)", "untaken-memory"),
        ("%gs:HOST_RSP", "untaken-memory"),
        ("%gs:PVCS", "untaken-memory"),
    ] {
        for value in ["", "\taddq\t$8, %rcx\n", "\tandq\t$-256, %rcx\n"] {
            let code = format!("\tmovq\t%rax, %rcx\n{value}\tmovq\t%rcx, {place}\n");
            refuted(&code, &own_exit("", &code), obligation);
        }
    }
}

/// Nor of anything else that a guest's values lie in; and where two arms come together, what either
/// has made of such an address is not forgotten.
#[test]
fn an_arm_leaves_no_address_of_memory_with_a_guests_values_to_the_host() {
    let slot = |from: &str| format!("\tmovq\t{from}, %rcx\n\tmovq\t%rcx, 8(%rsp)\n");
    proved("the host's root", &own_exit("", &slot("%gs:HOST_CR3")));
    // Frames lie on each stack of the IST.
    for ist in 0..7 {
        let place = 0x24 + 8 * ist;
        refuted("IST", &own_exit("", &slot(&format!("%gs:{place:#x}"))), "exit-scratch");
        let code = format!("\tmovq\t%gs:{place:#x}, %rax\n");
        refuted("IST", &own_exit("", &code), "untaken-memory");
    }
    // The guest's RSP lies in TSS.sp2, and as smod_rsp.
    let at = |place: &str| format!("\trdgsbase\t%rcx\n\taddq\t${place}, %rcx\n");
    for place in ["0x14", "SMOD_RSP"] {
        let code = format!("{}\tmovq\t%rcx, 8(%rsp)\n", at(place));
        refuted(&code, &own_exit("", &code), "exit-scratch");
    }
    // A word of the kernel's own may be GS base, as Linux's `this_cpu_off` is.
    let word = HostData::new("this_cpu_off", DataAt::PerCpu(0x1000), 8).unwrap();
    let of_word = |code: &str| own_exit("", code).with_data(vec![word.clone()]).unwrap();
    let code = slot("%gs:0x1000");
    refuted(&code, &of_word(&code), "exit-scratch");
    let code = "\tmovq\t%gs:0x1000, %rcx\n\taddq\t$0x14, %rcx\n\tmovq\t%rcx, %rax\n";
    refuted(code, &of_word(code), "untaken-memory");
    // And so may a word of the TSS that belongs to nobody.
    for nobodys in ["%gs:0x1c", "%gs:TSS_SP1"] {
        let code = slot(nobodys);
        refuted(&code, &own_exit("", &code), "exit-scratch");
    }
    proved("read", &of_word("\tmovq\t%gs:0x1000, %rcx\n\txorl\t%ecx, %ecx\n"));
    // Either arm may come first, and what is done to both may undo what was done to one.
    let joined = |one: &str, other: &str, after: &str| {
        let split = "\tcmpq\t%rsp, %rsp\n";
        own_exit("", &format!("{split}\tjne\t6f\n{one}\tjmp\t7f\n6:{other}\tjmp\t7f\n7:{after}"))
    };
    let own = "\tmovq\t0x28(%rsp), %rcx\n";
    let store = "\tmovq\t%rcx, 8(%rsp)\n";
    for (address, undo) in [
        ("\tmovq\t%gs:TSS_SP0, %rcx\n\tnegq\t%rcx\n", "\tnegq\t%rcx\n"),
        ("\tmovq\t%gs:0x24, %rcx\n\tnotq\t%rcx\n", "\tnotq\t%rcx\n"),
        ("\trdgsbase\t%rcx\n\tnegq\t%rcx\n", "\tnegq\t%rcx\n"),
        ("\tmovq\t%gs:TSS_SP0, %rcx\n\taddq\t$0x10000, %rcx\n", "\tsubq\t$0x10000, %rcx\n"),
    ] {
        for [one, other] in [[address, own], [own, address]] {
            let registers = joined(one, other, &format!("{undo}{store}"));
            refuted(address, &registers, "exit-scratch");
            // By way of memory, below RSP.
            let [one, other] =
                [one, other].map(|code| format!("{code}\tmovq\t%rcx, -0x40(%rsp)\n"));
            let load = format!("\tmovq\t-0x40(%rsp), %rcx\n{undo}{store}");
            refuted(address, &joined(&one, &other, &load), "exit-scratch");
            let rax = format!("{undo}\tmovq\t%rcx, %rax\n");
            refuted(address, &joined(&one, &other, &rax), "untaken-memory");
        }
        proved("the caller's", &joined(own, own, &format!("{undo}{undo}{store}")));
    }
}

/// Below RSP, the host's own stack may hold what a guest has chosen: left by this arm, or by an
/// earlier exit.
#[test]
fn an_arm_leaves_no_address_below_rsp_to_the_host() {
    let below = "\tmovq\t(%rax), %rcx\n\tmovq\t%rcx, -8(%rsp)\n";
    let address = "\tleaq\t-8(%rsp), %rcx\n";
    let slot = "\tmovq\t%rcx, 8(%rsp)\n";
    proved("a value that nothing leads to", &own_exit("", below));
    for code in [
        format!("{below}{address}{slot}"),
        format!("{address}{slot}"),
        format!("\tpushq\t(%rax)\n\tmovq\t%rsp, %rcx\n\taddq\t$8, %rsp\n{slot}"),
    ] {
        refuted(&code, &own_exit("", &code), "exit-scratch");
    }
    let above = format!("{below}{address}\tmovq\t%rcx, 0x38(%rsp)\n");
    refuted(&above, &own_exit("", &above), "untaken-memory");
    let code =
        format!("{ENTER}{}\tjmp\t8f\n9:\tleaq\t-8(%rsp), %rbx\n\tret\n\tint3\n8:\n", NEVER[0]);
    refuted("in the entry", &target(INTEL, &[(ENTER, &code)]), "exit-scratch");
}

/// Of the per-CPU block, a guest has chosen nothing but its RSP.
#[test]
fn the_block_holds_on_an_arm_nothing_that_a_guest_has_chosen() {
    for field in ["HOST_RSP", "SWITCH_FLAGS"] {
        for code in ["\tmovq\t%r15, %gs:", "\tmovb\t%r15b, %gs:", "\txorb\t%r15b, %gs:"] {
            let code = format!("{code}{field}\n");
            refuted(&code, &own_exit("", &code), "untaken-memory");
        }
    }
    proved("smod_rsp", &own_exit("", "\tmovq\t%r15, %gs:SMOD_RSP\n"));
}

/// Where a prediction leads to the host, it is on its own root.
#[test]
fn the_host_is_on_its_own_root_on_an_arm() {
    let clear = "\tclear_all eax, ebx, ecx, edx, esi, ebp, r8d, r9d, r10d, r11d\n\
                 \tclear_all r12d, r13d, r14d, r15d\n\tmovq\t%rsp, %rdi\n";
    for hook in ["nmi", "machine_check", "fatal"] {
        let arm = format!(
            "{}\tjmp\t8f\n9:{clear}{FLAGS}\tcall\tswitcher_host_{hook}\n\tud2\n8:\n{LEAVES}",
            NEVER[0]
        );
        refuted(hook, &target(INTEL, &[(LEAVES, &arm)]), "hook-root");
    }
    let guests = "\tmovq\t48(%rsp), %rsi\n\tmovq\t%gs:ENTER_CR3, %rcx\n\tmovq\t%rcx, %cr3\n";
    let back = "\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, %cr3\n";
    let leaves =
        format!("{FLAGS}{CLEAR}\tpop_all\trbx, rbp, r12, r13, r14, r15\n\taddq\t$8, %rsp\n")
            .replace("edx, esi, ", "edx, ");
    let exit =
        format!("{guests}{}{back}\tjmp\t8f\n9:{leaves}\tjmp\t*%rsi\n\tint3\n8:\n{EXIT}", NEVER[0]);
    let found = target(INTEL, &[(EXIT, &exit)]);
    refuted("the caller", &found, "exit-root");
}
