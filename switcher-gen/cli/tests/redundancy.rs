//! Nothing in the switcher is redundant, and what is would be found.

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use switcher_gen::{Image, Variant};
use switcher_prove::elf;
use switcher_prove::mutate;
use switcher_prove::mutate::Operator;
use switcher_prove::redundancy::{Purpose, Search, Unneeded};
use switcher_prove::{Setting, SharingProver, Target, Verdict};

fn ours(variant: &str) -> Target {
    Target::image(&Image::new(&variant.parse().unwrap()).unwrap())
}

/// What no theorem needs among the instructions that `text` is the text of.
#[track_caller]
fn unneeded(target: &Target, text: impl Fn(&str) -> bool) -> Vec<Unneeded> {
    let (search, prover) = (Search::new(target), SharingProver::new(&Arc::default()));
    assert!(matches!(prover.prove(target), Verdict::Proved(_)));
    let chosen = search.addresses().enumerate();
    let chosen: Vec<_> =
        chosen.filter(|(_, at)| text(&target.program.text(*at).unwrap())).collect();
    assert!(!chosen.is_empty(), "no such instruction");
    chosen.iter().filter_map(|(number, _)| search.unneeded(&prover, *number)).collect()
}

/// All of the reference and of per-CPU code. The command tries all there is.
#[test]
fn nothing_is_redundant() {
    for variant in ["intel-4level", "intel-4level-percpu"] {
        is_for_speed(unneeded(&ours(variant), |_| true));
    }
}

/// What others have that the reference has not.
#[test]
fn nothing_that_an_option_adds_is_redundant() {
    let texts = |target: &Target| -> BTreeSet<String> {
        Search::new(target).addresses().filter_map(|at| target.program.text(at)).collect()
    };
    let known = texts(&ours("intel-4level"));
    assert!(known.len() > 50);
    for variant in ["intel-la57-ibt", "amd-4level", "intel-4level+ibrs+verw", "amd-4level+ibpb"] {
        let is_new = |text: &str| !text.starts_with('j') && !known.contains(text);
        is_for_speed(unneeded(&ours(variant), is_new));
    }
}

fn is_for_speed(found: Vec<Unneeded>) {
    for found in found {
        assert!(matches!(found.purpose, Purpose::Speed { .. }), "{found:?}");
    }
}

/// Of a move that is there twice, either can go; of one that is not, none.
#[test]
fn a_doubled_move_is_found() {
    let original = ours("intel-4level");
    let is_move = |text: &str| text.starts_with("mov r8,[");
    assert_eq!(unneeded(&original, is_move), []);
    let mutants = mutate::mutants(&original);
    let doubled = mutants
        .iter()
        .find(|mutant| mutant.operator == Operator::Duplicate && is_move(&mutant.original));
    let doubled = doubled.and_then(mutate::Mutant::target).unwrap();
    let found = unneeded(&doubled, is_move);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|found| found.purpose == Purpose::None), "{found:?}");
}

fn by_hand(entry: &str) -> Target {
    let label = "\nroutine entry_SYSCALL_64_switcher\n";
    let source = gas::replaced(gas::SWITCHER, &[(label, &format!("{label}{entry}"))]);
    let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
    Target::foreign(&foreign, Setting::from(&Variant::REFERENCE)).unwrap()
}

/// Events are tried, too.
#[test]
fn a_doubled_fence_of_an_event_is_found() {
    let original = ours("intel-4level");
    let is_fence = |text: &str| text == "lfence";
    assert_eq!(unneeded(&original, is_fence), []);
    let doubled = mutate::mutants(&original)
        .into_iter()
        .filter(|mutant| mutant.operator == Operator::Duplicate && is_fence(&mutant.original));
    let doubled: Vec<_> = doubled.filter_map(|mutant| mutant.target()).collect();
    // On the sp0 stack, on one of the IST, before the far RET to ring 0, and before each jump or
    // call to code of the host.
    assert_eq!(doubled.len(), 6);
    for doubled in doubled {
        let found = unneeded(&doubled, is_fence);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|found| found.purpose == Purpose::None), "{found:?}");
    }
}

#[test]
fn a_nop_is_found_and_a_fence_and_a_test_of_nothing() {
    let target = by_hand("\tnop\n\tlfence\n\ttestq\t%r15, %r15\n");
    for text in ["nop", "lfence", "test r15,r15"] {
        let found = unneeded(&target, |instruction| instruction == text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].purpose, Purpose::None, "{text}");
    }
}

#[test]
fn what_makes_a_path_shorter_is_not_redundant() {
    // The flags are the guest's as they are, most often: two instructions are skipped then.
    let found = unneeded(&ours("intel-4level"), |text| text.starts_with("je "));
    let speeds = found.iter().filter_map(|found| match &found.purpose {
        Purpose::Speed { with, without, .. } => Some(without - with),
        _ => None,
    });
    assert_eq!(speeds.collect::<Vec<_>>(), [2], "{found:?}");
}

/// What it skips is padding, and costs nothing.
#[test]
fn a_jump_over_nops_is_redundant() {
    let target = by_hand("\tjmp\t1f\n\tnop\n\tnop\n1:\n\tjmp\t1f\n1:\n");
    let found = unneeded(&target, |text| text.starts_with("jmp short"));
    let is_none = |found: &&Unneeded| found.purpose == Purpose::None;
    assert_eq!(found.iter().filter(is_none).count(), 2, "{found:?}");
}

/// `switcher redundancy` with these arguments.
#[track_caller]
fn command(code: i32, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switcher"));
    let output = command.arg("redundancy").args(args).output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    stdout + &stderr
}

#[test]
fn the_command_ends_with_1_if_there_is_any() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, replacements: &[(&str, &str)]| {
        let path = dir.path().join(name);
        let source = gas::replaced(gas::SWITCHER, replacements);
        std::fs::write(&path, gas::assemble(&source, &[])).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let compat = "\tmovl\t$-ENOSYS, %eax\n";
    let wordy = file("wordy.o", &[(compat, &format!("{compat}\tnop\n"))]);
    let report = command(1, &["--elf", &wordy, "--variant", "intel-4level", "--format", "json"]);
    let report: Value = serde_json::from_str(report.split("error: ").next().unwrap()).unwrap();
    let target = &report["targets"][0];
    assert!(target["instructions"].as_u64().unwrap() > 100, "{report}");
    let found = target["unneeded"].as_array().unwrap();
    let nop = found.iter().find(|found| found["text"] == "nop").unwrap();
    assert_eq!((&nop["purpose"], &nop["source"]), (&"none".into(), &Value::Null));

    // What is wrong as it is gives no measure.
    let wrong = file("wrong.o", &[("\tja\tentry_IRETQ_switcher\n", "")]);
    let wrong = command(1, &["--elf", &wrong, "--variant", "intel-4level"]);
    assert!(wrong.contains("itself is not proved"), "{wrong}");
    let unmodelled = file("unmodelled.o", &[("\tsysretl\n", "\tcpuid\n\tsysretl\n")]);
    let unmodelled = command(2, &["--elf", &unmodelled, "--variant", "intel-4level"]);
    assert!(unmodelled.contains("`cpuid` is not modelled"), "{unmodelled}");
}

#[test]
fn the_command_ends_with_0_if_there_is_none() {
    let report = command(0, &["--variant", "amd-la57-pcid", "--jobs", "2"]);
    let first = report.lines().next().unwrap();
    assert!(first.starts_with("amd-la57-pcid: ") && first.ends_with(", 0 redundant"), "{report}");
    for speed in report.lines().filter(|line| line.starts_with("    ")) {
        assert!(speed.starts_with("    for speed: "), "{report}");
    }
}
