//! Switchers in the shape of a kernel's build, judged as they are: the right one is proved under
//! the contract of its profile, and each fault that was found in a public one is refuted for its
//! reason.

mod gas;

use switcher_gen::Variant;
use switcher_prove::cost;
use switcher_prove::elf::{self, Foreign};
use switcher_prove::{Area, Clauses, Findings, Profile, Prover, Target, Verdict};

const KERNEL: &str = include_str!("gas/kernel.S");

fn profile() -> &'static Profile {
    Profile::named("linux-pvm-2024").unwrap()
}

fn read(file: &[u8], profile: &Profile) -> Foreign {
    elf::read_as(file, profile.request()).unwrap()
}

fn target_of(foreign: &Foreign, variant: &Variant, profile: &Profile) -> Target {
    let block = profile.block(foreign).unwrap();
    let setting = profile.setting(variant).unwrap().with_block(block);
    profile.with_windows(Target::foreign(foreign, setting).unwrap(), foreign)
}

fn target(file: &[u8]) -> Target {
    target_of(&read(file, profile()), &Variant::REFERENCE, profile())
}

fn broken(number: i64) -> Vec<u8> {
    gas::assemble(KERNEL, &[("BROKEN", number)])
}

/// The theorems and obligations of all findings, each once.
fn findings(target: &Target) -> Vec<(&'static str, &'static str)> {
    let Findings { refuted, unknown, .. } = Prover::default().findings(target).unwrap();
    assert!(unknown.is_empty(), "{unknown:?}");
    let found = refuted.iter().map(|found| {
        assert!(found.to_string().contains("Replayed"), "{found}");
        (found.theorem.name(), found.obligation.name)
    });
    let mut found: Vec<_> = found.collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn a_kernels_switcher_is_proved_as_its_build_has_made_it() {
    let target = target(&broken(0));
    let verdict = Prover::default().prove(&target);
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
    // What the verdict rests on is said.
    for clause in ["frame-selectors", "entry-flags", "any-rdi", "native_irq_return_iret"] {
        assert!(target.assumed.iter().any(|text| text.contains(clause)), "{clause}");
    }
    assert!(!target.not_judged().iter().any(|it| it.area == Area::Windows));
}

#[test]
fn each_fault_of_a_public_switcher_is_found_for_its_reason() {
    let found = |number| findings(&target(&broken(number)));
    // SYSRETQ is chosen without a look at the frame's selectors.
    assert_eq!(found(2), [("enter_guest", "iretq-return")]);
    // user_cs and user_ss are not stored.
    assert_eq!(found(3), [("syscall_64", "pvcs")]);
    // The exit goes on with the guest's root.
    let exits = found(4);
    for (theorem, obligation) in [
        ("syscall_64", "mapped"),
        ("return_from_guest", "exit-root"),
        ("return_from_guest (IST)", "exit-root"),
    ] {
        assert!(exits.contains(&(theorem, obligation)), "{theorem}, {obligation}: {exits:?}");
    }
    // The GS base of umod is not made canonical.
    assert_eq!(found(5), [("syscall_64", "wrgsbase-canonical")]);
    // A read above the top of the entry stack.
    let above = found(6);
    assert!(above.iter().all(|(_, obligation)| *obligation == "memory"), "{above:?}");
    assert!(above.contains(&("return_from_guest", "memory")), "{above:?}");
}

/// Each clause of the contract, taken away, leaves what it is for.
#[test]
fn without_a_clause_what_it_is_for_is_found() {
    let without = |clause: Clauses, number: i64, variant: &Variant| {
        let mut profile = *profile();
        profile.contract.clauses -= clause;
        let foreign = read(&broken(number), &profile);
        findings(&target_of(&foreign, variant, &profile))
    };
    let reference = &Variant::REFERENCE;
    // RDI of the guest reaches code of the host: the clause says that it does no harm.
    assert_eq!(findings(&target(&broken(1))), []);
    let scratch = without(Clauses::ANY_RDI, 1, reference);
    assert!(scratch.contains(&("return_from_guest", "exit-scratch")), "{scratch:?}");
    assert_eq!(without(Clauses::ANY_RDI, 0, reference), []);
    let registers = without(Clauses::ENTRY_REGISTERS, 0, reference);
    assert!(registers.contains(&("return_from_guest", "exit-scratch")), "{registers:?}");
    let flags = without(Clauses::ENTRY_FLAGS, 0, reference);
    assert!(flags.contains(&("return_from_guest", "exit-flags")), "{flags:?}");
    let frame = without(Clauses::FRAME_FLAGS, 0, reference);
    assert!(frame.contains(&("enter_guest", "guest-flags")), "{frame:?}");
    // The code looks at the selectors itself.
    assert_eq!(without(Clauses::FRAME_SELECTORS, 0, reference), []);
}

/// With the promise that no 32-bit code is run, SYSRETQ needs no look at the selectors.
#[test]
fn a_clause_can_be_added() {
    let mut profile = *profile();
    profile.contract.clauses |= Clauses::FRAME_64_BIT;
    let foreign = read(&broken(2), &profile);
    assert_eq!(findings(&target_of(&foreign, &Variant::REFERENCE, &profile)), []);
}

/// On AMD, an event from CPL 3 leaves a null SS, and nothing here loads it.
#[test]
fn on_amd_the_null_ss_is_found_unless_the_host_is_content_with_it() {
    let amd = "amd-4level".parse::<Variant>().unwrap();
    let foreign = read(&broken(0), profile());
    let found = findings(&target_of(&foreign, &amd, profile()));
    let of_ss = [("return_from_guest", "exit-ss"), ("return_from_guest (IST)", "exit-ss")];
    assert_eq!(found, of_ss);
    let mut content = *profile();
    content.contract.clauses |= Clauses::ANY_SS;
    assert_eq!(findings(&target_of(&foreign, &amd, &content)), []);
}

/// The module's handlers do not know of its answer to a 32-bit SYSCALL, where RSP is the guest's.
#[test]
fn what_lies_outside_of_the_windows_is_found() {
    let module = Profile::named("linux-pvm-module-2026").unwrap();
    let of_module = Profile { extra: &[], symbols: profile().symbols, ..*module };
    let foreign = read(&broken(0), &of_module);
    let found = findings(&target_of(&foreign, &Variant::REFERENCE, &of_module));
    assert_eq!(found, [("syscall_compat", "window-unsafe-stack")]);
}

#[test]
fn a_missing_label_of_the_iretq_is_not_judged() {
    let own = KERNEL.replace("native_irq_return_iret", ".Liretq");
    let own = format!("{own}\n\t.section .entry.text, \"ax\"\n.Liretq:\n\tiretq\n\tint3\n");
    let target = target(&gas::assemble(&own, &[]));
    assert!(matches!(Prover::default().prove(&target), Verdict::Proved(_)));
    let not_judged: Vec<_> = target.not_judged().iter().map(ToString::to_string).collect();
    assert!(not_judged.iter().any(|text| text.contains("entry_IRETQ_switcher")), "{not_judged:?}");
}

/// NOPs are padding for alternatives, and are no cost.
/// A kernel has places that are changed at boot all over, and megabytes for debuggers.
#[test]
fn a_whole_kernel_around_it_changes_nothing() {
    use std::fmt::Write as _;
    let mut around = String::from("\t.text\n");
    for number in 0..20_000 {
        let feature = number % 600;
        write!(
            around,
            "1:\tjmp\t__x86_return_thunk\n2:\tnop\n\tnop\n\tnop\n3:\n\
             \t.pushsection .return_sites, \"a\"\n\t.long 1b - .\n\t.popsection\n\
             \t.pushsection .altinstr_replacement, \"ax\"\n4:\tlfence\n5:\n\t.popsection\n\
             \t.pushsection .altinstructions, \"a\"\n\t.long 2b - ., 4b - .\n\
             \t.long {feature}\n\t.byte 3b - 2b, 5b - 4b\n\t.popsection\n"
        )
        .unwrap();
    }
    let around = format!("{KERNEL}\n{around}\t.section .debug_all, \"\"\n\t.fill 1 << 24, 1, 1\n");
    let images = |file: &[u8]| {
        let images = elf::images(file, profile().request()).unwrap();
        let told = images.into_iter().map(|image| {
            let sizes = image.pieces.iter().map(|(_, bytes)| bytes.len());
            (elf::choices(&image.choices), sizes.collect::<Vec<_>>())
        });
        told.collect::<Vec<_>>()
    };
    let [alone, around] =
        [KERNEL, &around].map(|source| images(&gas::assemble(source, &[("ALTERNATIVES", 1)])));
    assert_eq!(alone.len(), 2, "{alone:?}");
    assert_eq!(around, alone);
}

#[test]
fn a_round_trip_costs_what_it_executes_without_padding() {
    let cost = |source: &str| {
        let foreign = read(&gas::assemble(source, &[]), profile());
        let paths = cost::paths(&target_of(&foreign, &Variant::REFERENCE, profile())).unwrap();
        let of =
            |kind: &str| paths.iter().find(|path| path.kind == kind).map(|path| path.instructions);
        [of("SYSCALL in umod -> smod"), of("ERETU -> umod by SYSRETQ")]
    };
    assert_eq!(cost(KERNEL), [Some(37), Some(52)]);
    let padded = gas::replaced(
        KERNEL,
        &[("\tv\tmov, SMOD_CR3, %rcx\n", "\tnop\n\tnopl\t8(%rax)\n\tv\tmov, SMOD_CR3, %rcx\n")],
    );
    assert_eq!(cost(&padded), [Some(37), Some(52)]);
}

/// The window of the answer to a 32-bit SYSCALL ends with its first jump, wherever that leads.
#[test]
fn a_window_does_not_reach_where_code_does() {
    let early = gas::replaced(
        KERNEL,
        &[
            ("entry_SYSCALL_64_switcher_safe_stack:\n", ""),
            (
                "\tto_v\tmov, %rsp, SP2\n",
                "entry_SYSCALL_64_switcher_safe_stack:\n\tto_v\tmov, %rsp, SP2\n",
            ),
            (
                "\tmov\t$-38, %eax\n",
                "\tmov\t$-38, %eax\n\ttest\t%eax, %eax\n\tjz\tentry_SYSCALL_64_switcher_safe_stack\n",
            ),
        ],
    );
    let found = findings(&target(&gas::assemble(&early, &[])));
    assert!(found.contains(&("syscall_64", "window-unsafe-stack")), "{found:?}");
}
