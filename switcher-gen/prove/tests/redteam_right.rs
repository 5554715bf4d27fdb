//! Right code that kernels have in their entries, and the same code wrong by one. The first must be
//! proved, the other refused for its reason.

mod attack;
mod gas;

use attack::mitigated::{FENCE, FILL, RSB, mitigated};
use attack::{Change, PLACES, Place, inserted, prove, target};
use switcher_gen::Variant;
use switcher_prove::elf;
use switcher_prove::{BadCode, Setting, Target, Verdict};

/// What became of it: "proved", the obligation that refutes it, or what kind of code it is.
fn outcome(target: &Target) -> String {
    match prove(target) {
        Verdict::Proved(_) => "proved".into(),
        Verdict::Refuted(found) => found.obligation.name.into(),
        Verdict::Unknown(why) => format!("unknown: {why}"),
        Verdict::Unsupported(BadCode::Count { .. }) => "count".into(),
        Verdict::Unsupported(BadCode::Open { .. }) => "open".into(),
        Verdict::Unsupported(BadCode::Loop { .. }) => "loop".into(),
        Verdict::Unsupported(code) => code.to_string(),
        Verdict::Interrupted(theorem) => format!("{theorem}: interrupted"),
    }
}

/// All of these must come to this.
#[track_caller]
fn come_to<'a>(cases: impl IntoIterator<Item = (&'a str, Target, &'a str)>) {
    let mut others = Vec::new();
    for (what, target, expected) in cases {
        let found = outcome(&target);
        println!("{what}: {found}");
        if found != expected {
            others.push(format!("{what}: {found}, and not {expected}"));
        }
    }
    assert!(others.is_empty(), "{others:#?}");
}

/// Right code that is refused all the same. A CMPXCHG leaves one of two values, and on the arm that
/// the path does not take it is not known which. To ask that value again what inhibits is another
/// question than the one that the specification asks. Whoever follows both values apart has this
/// test fail, and may then write "proved".
const TOO_MUCH: &str = "untaken-memory";

const ENTERING: &Place = &PLACES[0];
const TO_SMOD: &Place = &PLACES[1];
const IN_THE_HOST: &Place = &PLACES[4];

fn at(place: &Place, code: &str) -> Target {
    inserted("intel-4level", place, code)
}

fn changed(changes: &[Change<'_>]) -> Target {
    target("intel-4level", changes)
}

/// The word that lies as many words below what is saved is set to zero. Behind a round that is one
/// too many, the CPU is not to go on.
fn by_loop(count: usize) -> String {
    format!(
        "\tleaq\t64(%rsp), %rdi\n\tmovl\t${count}, %ecx\n\
         1:\tleaq\t-8(%rdi), %rdi\n\tloop\t1b\n\tlfence\n\tmovq\t%rcx, (%rdi)\n"
    )
}

#[test]
fn a_loop_that_rcx_counts() {
    come_to([
        ("LOOP", at(ENTERING, &by_loop(9)), "proved"),
        ("LOOP, once less", at(ENTERING, &by_loop(8)), "exit-caller"),
        ("LOOP of the caller's RCX", at(ENTERING, "1:\tloop\t1b\n"), "open"),
        (
            "LOOPE",
            at(IN_THE_HOST, "\tmovl\t$4, %ecx\n\txorl\t%edx, %edx\n1:\tloope\t1b\n"),
            "proved",
        ),
        (
            "LOOPNE leaves at once",
            at(IN_THE_HOST, "\tmovl\t$4, %ecx\n\txorl\t%edx, %edx\n1:\tloopne\t1b\n"),
            "exit-scratch",
        ),
        (
            "LOOPNE",
            at(IN_THE_HOST, "\tmovl\t$4, %ecx\n\ttestl\t%ecx, %ecx\n1:\tloopne\t1b\n"),
            "proved",
        ),
        ("JRCXZ", at(IN_THE_HOST, "\tjrcxz\t1f\n\tud2\n1:\n"), "proved"),
        ("JRCXZ of 1", at(IN_THE_HOST, "\tmovl\t$1, %ecx\n\tjrcxz\t1f\n\tud2\n1:\n"), "no-trap"),
    ]);
}

/// As many words from RSP - 64 on are set to zero, and RDI, RCX and RAX are anything.
fn by_stos(count: &str, repeat: &str) -> String {
    format!("\tleaq\t-64(%rsp), %rdi\n\tmovl\t{count}, %ecx\n\txorl\t%eax, %eax\n\t{repeat}\n")
}

#[test]
fn a_string_is_stored_as_often_as_a_constant_says() {
    let down = "\tstd\n\tleaq\t-8(%rsp), %rdi\n\tmovl\t$8, %ecx\n\trep stosq\n\tcld\n";
    let copy = |from: &str, count: usize| {
        format!(
            "\tleaq\t{from}, %rsi\n\tleaq\t-64(%rsp), %rdi\n\tmovl\t${count}, %ecx\n\trep movsq\n"
        )
    };
    let to_pvcs = "\tpushq\t%rdi\n\tpushq\t%rsi\n\tpushq\t%rcx\n\trdgsbase\t%rsi\n\
                   \taddq\t$HOST_CR3, %rsi\n\tleaq\tPVCS_R11(%rdx), %rdi\n\tmovl\t$1, %ecx\n\
                   \trep movsq\n\tpopq\t%rcx\n\tpopq\t%rsi\n\tpopq\t%rdi\n\
                   \tmovq\t%r11, PVCS_R11(%rdx)\n";
    let to_stacks = "\trdgsbase\t%rdi\n\taddq\t$TSS_IST1, %rdi\n\tmovq\t%rdi, %rsi\n\tmovl\t$2, %ecx\n\
                     \trep movsq\n";
    come_to([
        ("STOS", at(ENTERING, &by_stos("$8", "rep stosq")), "proved"),
        ("STOS, once more", at(ENTERING, &by_stos("$9", "rep stosq")), "exit-caller"),
        ("STOS of bytes", at(ENTERING, &by_stos("$64", "rep stosb")), "proved"),
        ("STOS of bytes, once more", at(ENTERING, &by_stos("$65", "rep stosb")), "exit-caller"),
        ("STOS once", at(ENTERING, &by_stos("$0", "stosq")), "proved"),
        ("STOS never", at(ENTERING, &by_stos("$0", "rep stosq")), "proved"),
        ("STOS downwards", at(ENTERING, down), "proved"),
        (
            "STOS as often as the host says",
            at(ENTERING, &by_stos("%gs:HOST_SPEC_CTRL", "rep stosq")),
            "count",
        ),
        ("MOVS", at(ENTERING, &copy("(%rsp)", 6)), "proved"),
        ("MOVS over what is saved", at(ENTERING, &copy("-128(%rsp)", 9)), "exit-caller"),
        ("MOVS to the PVCS", at(TO_SMOD, to_pvcs), "no-host-value"),
        ("MOVS of what is there", at(ENTERING, to_stacks), "kept"),
    ]);
    // DF may be the guest's in what an event has interrupted; here SFMASK clears it.
    let there = "\tpushq\t%rdi\n\tpushq\t%rcx\n\tleaq\t-64(%rsp), %rdi\n\tmovl\t$4, %ecx\n\
                 \trep stosq\n\tpopq\t%rcx\n\tpopq\t%rdi\n";
    come_to([("STOS behind SYSCALL", at(TO_SMOD, there), "proved")]);
}

const XOR_TO_SMOD: &str = "\txorl\t$MODE_BOTH, %gs:SWITCH_FLAGS\n\tmovq\t%rax, %cr3\n";

#[test]
fn the_mode_is_changed_by_xadd() {
    let by = |number: i32, how: &str| {
        let code = format!(
            "\tmovq\t${number}, %rcx\n\t{how}\t%rcx, %gs:SWITCH_FLAGS\n\tmovq\t%rax, %cr3\n"
        );
        changed(&[(XOR_TO_SMOD, &code)])
    };
    come_to([
        ("LOCK XADD", by(-1, "lock xaddq"), "proved"),
        // A hook comes between two instructions of this CPU, and no other CPU stores there.
        ("XADD", by(-1, "xaddq"), "proved"),
        ("by one more", by(-2, "lock xaddq"), "one-mode"),
        ("by one less", by(0, "lock xaddq"), "root-of-mode"),
        ("on a stack", at(ENTERING, "\tlock xaddq\t%rax, -16(%rsp)\n"), "proved"),
        ("over two lines", at(ENTERING, "\tlock xaddq\t%rax, -12(%rsp)\n"), "split-lock"),
        ("over two lines without LOCK", at(ENTERING, "\txaddq\t%rax, -12(%rsp)\n"), "proved"),
        ("CMPXCHG over two lines", at(ENTERING, "\tlock cmpxchgl\t%ecx, -6(%rsp)\n"), "split-lock"),
        (
            "of a root",
            at(ENTERING, "\txorl\t%eax, %eax\n\tlock xaddq\t%rax, %gs:HOST_CR3\n"),
            "kept",
        ),
    ]);
}

/// The whole question by one CMPXCHG: nothing is set but UMOD, and then SMOD is.
fn by_cmpxchg(restore: &str, failed: &str) -> Target {
    let question =
        "\ttestq\t$NO_DS_TO_SMOD, %gs:SWITCH_FLAGS\n\tjnz\t.Lnot_to_smod\n\n\t/* umod -> smod. ";
    let code = format!(
        "\tpushq\t%rax\n\tpushq\t%rdx\n\tmovl\t$MODE_UMOD, %eax\n\tmovl\t$MODE_SMOD, %edx\n\
         \tlock cmpxchgq\t%rdx, %gs:SWITCH_FLAGS\n\tpopq\t%rdx\n\t{restore}\n{failed}\
         \n\t/* umod -> smod. "
    );
    changed(&[(question, &code), (XOR_TO_SMOD, "\tmovq\t%rax, %cr3\n")])
}

#[test]
fn the_mode_is_changed_by_cmpxchg() {
    come_to([
        // It is right: see [`TOO_MUCH`].
        ("CMPXCHG", by_cmpxchg("popq\t%rax", "\tjne\t.Lnot_to_smod\n"), TOO_MUCH),
        (
            "what it fails with is lost",
            by_cmpxchg("leaq\t8(%rsp), %rsp", "\tjne\t.Lnot_to_smod\n"),
            "exit-frame",
        ),
        ("it fails unseen", by_cmpxchg("popq\t%rax", ""), "cr3-prepared"),
        (
            "it fails where it does not",
            by_cmpxchg("popq\t%rax", "\tje\t.Lnot_to_smod\n"),
            "one-update",
        ),
    ]);
}

/// As Linux has it until 5.19, and the fence that came then.
const FILL_AS_LINUX: &str = "\tmovl\t$16, %ecx\n771:\tcall\t772f\n773:\tpause\n\tlfence\n\tjmp\t773b\n\
                             772:\tcall\t774f\n775:\tpause\n\tlfence\n\tjmp\t775b\n774:\tdecl\t%ecx\n\
                             \tjnz\t771b\n\taddq\t$(8 * 32), %rsp\n";

#[test]
fn the_return_stack_buffer_is_filled_with_loops() {
    let fill = |from: &str, to: &str| {
        assert!(FILL_AS_LINUX.contains(from), "{from}");
        mitigated(RSB, &[(FILL, &FILL_AS_LINUX.replace(from, to))])
    };
    come_to([
        ("as Linux has it", fill("$16", "$16"), "proved"),
        ("without PAUSE", fill("\tpause\n", ""), "proved"),
        (
            "two less",
            mitigated(RSB, &[(FILL, &FILL_AS_LINUX.replace("$16", "$15").replace("32)", "30)"))]),
            "rsb-filled",
        ),
        ("the stack by one too little", fill("(8 * 32)", "(8 * 31)"), "exit-caller"),
        ("without LFENCE in the loops", fill("\tlfence\n", ""), "rsb-filled"),
        ("a loop that leads on", fill("775b", "774f"), "rsb-filled"),
        ("a loop that leads behind its fence", fill("jmp\t773b", "jmp\t775f"), "rsb-filled"),
        ("more behind a loop", fill("772:\tcall", "\tnop\n772:\tcall"), "rsb-filled"),
        ("nothing is certain", mitigated(RSB, &[(FENCE, ""), (FILL, FILL_AS_LINUX)]), "rsb-filled"),
    ]);
}

#[test]
fn a_root_is_read_left_and_loaded_again() {
    let code = |other: &str, back: &str| {
        format!(
            "\tmovq\t%cr3, %rax\n\tmovq\t%gs:{other}, %rcx\n\tmovq\t%rcx, %cr3\n\tnop\n\
             \tmovq\t{back}, %cr3\n"
        )
    };
    come_to([
        ("entering", at(ENTERING, &code("HOST_CR3", "%rax")), "proved"),
        ("entering, by way of a guest's", at(ENTERING, &code("ENTER_CR3", "%rax")), "proved"),
        (
            "it stays away",
            at(ENTERING, &(code("ENTER_CR3", "%rcx") + "\tpushq\t%rax\n\tpopq\t%rax\n")),
            "mapped",
        ),
        (
            "one bit of it",
            at(
                ENTERING,
                &format!(
                    "{}\tnop\n",
                    code("ENTER_CR3", "%rax").replace("\tnop\n", "\txorq\t$8, %rax\n")
                ),
            ),
            "cr3-operand",
        ),
        (
            "between the modes",
            at(
                TO_SMOD,
                "\tpushq\t%rcx\n\tmovq\t%cr3, %rax\n\tmovq\t%gs:HOST_CR3, %rcx\n\tmovq\t%rcx, %cr3\n\
                         \tmovq\t%rax, %cr3\n\tpopq\t%rcx\n",
            ),
            "proved",
        ),
    ]);
}

const QUESTION: &str = "\ttestq\t$NO_DS_TO_SMOD, %gs:SWITCH_FLAGS\n\tjnz\t.Lnot_to_smod\n\n";

#[test]
fn what_inhibits_is_asked_in_two_questions() {
    let asked = |code: &str| changed(&[(QUESTION, code)]);
    let low = "\ttestl\t$NO_DS_TO_SMOD, %gs:SWITCH_FLAGS\n\tjnz\t.Lnot_to_smod\n";
    let high = "\tcmpl\t$0, %gs:SWITCH_FLAGS + 4\n\tjne\t.Lnot_to_smod\n";
    let less = "\ttestl\t$NO_DS_TO_SMOD & ~0x80, %gs:SWITCH_FLAGS\n\tjnz\t.Lnot_to_smod\n";
    let bit = "\tbtl\t$7, %gs:SWITCH_FLAGS\n\tjc\t.Lnot_to_smod\n";
    // What is stored in between tells the one answer without the other.
    let between = "\tpushq\t%rdx\n\tmovq\t%gs:PVCS, %rdx\n\tmovl\t$USER_CS_SS, PVCS_USER_CS_SS(%rdx)\n\
                   \tpopq\t%rdx\n";
    come_to([
        ("halves", asked(&format!("{low}{high}")), "proved"),
        ("the other way round", asked(&format!("{high}{low}")), "proved"),
        ("three parts", asked(&format!("{high}{less}{bit}")), "proved"),
        (
            "asked again behind a store",
            at(TO_SMOD, "\tbtl\t$9, %gs:SWITCH_FLAGS\n\tjc\t1f\n1:\n"),
            "no-host-value",
        ),
        ("one half", asked(low), "no-host-value"),
        ("all but a bit", asked(&format!("{high}{less}")), "no-host-value"),
        ("a store in between", asked(&format!("{low}{between}{high}")), "no-host-value"),
        (
            "a store before the last bit",
            asked(&format!("{high}{less}{between}{bit}")),
            "no-host-value",
        ),
    ]);
}

#[test]
fn a_loop_of_many_rounds() {
    let rounds = |limit: usize| {
        let target = at(ENTERING, "\tmovl\t$20000, %ecx\n1:\tloop\t1b\n");
        target.with_limit(limit)
    };
    come_to([
        ("as a rule", rounds(Target::LIMIT), "loop"),
        ("where it may", rounds(50_000), "proved"),
        ("one round less than it takes", rounds(20_000), "loop"),
    ]);
}

/// What a linker makes of it is what runs: a call of the function itself, or of a stub that jumps
/// to what the loader has found.
#[test]
fn a_function_is_called_by_way_of_the_plt() {
    let call = format!("\tcall\tof_my_own@PLT\n{}", ENTERING.before);
    let own = "\n\t.globl\tof_my_own\n\t.type\tof_my_own, @function\nof_my_own:\n\tret\n\tud2\n\
               routine entry_SYSCALL_64_switcher\n";
    let source = gas::replaced(
        gas::SWITCHER,
        &[(ENTERING.before, &call), ("\nroutine entry_SYSCALL_64_switcher\n", own)],
    );
    let object = gas::assemble(&source, &[]);
    let judged = |file: &[u8]| match elf::read(file) {
        Ok(foreign) => {
            let setting = Setting::from(&"intel-4level".parse::<Variant>().unwrap());
            Target::foreign(&foreign, setting).map_or_else(|why| why.to_string(), |t| outcome(&t))
        }
        Err(why) => why.to_string(),
    };
    let linked = |args: &[&str]| judged(&gas::process("ld", args, &object));
    let found = [
        ("an object", judged(&object)),
        ("a program", linked(&["--entry=0"])),
        ("a program anywhere", linked(&["--entry=0", "-pie"])),
        ("a library of its own", linked(&["-shared", "-Bsymbolic"])),
    ];
    let stub = linked(&["-shared"]);
    println!("{found:#?}\n{stub}");
    assert!(found.iter().all(|(_, found)| found == "proved"), "{found:#?}");
    assert!(stub.contains("PLT") && stub.contains("-Bsymbolic"), "{stub}");
}

/// What a comparison is of says nothing of DF and AC, also where two states are joined.
#[test]
fn branches_on_a_guests_register_leave_df_and_ac_alone() {
    const END: &str = "\tpop_all\trbx, rbp, r12, r13, r14, r15\n\tret\n\tud2\n";
    let branches = |count: usize, last: &str| {
        let one = |bit| format!("\ttestl\t${}, %r15d\n\tje\t9f\n\tincq\t%rcx\n9:\n", 1 << bit);
        let all: String = (0..count).map(one).collect();
        changed(&[(END, &format!("{all}\txorl\t%ecx, %ecx\n{last}{END}"))])
    };
    come_to([
        ("two", branches(2, ""), "proved"),
        ("six", branches(6, ""), "proved"),
        ("the guest's", branches(2, "\tpushq\t%r15\n\tpopfq\n"), "ring-0-flags"),
    ]);
}
