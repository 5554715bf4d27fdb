//! `switcher prove`, `mutate` and `fuzz`, as users and scripts see them.

mod by_hand;

use std::process::{Command, Stdio};

use by_hand::{Elf, REFERENCE, UNCHECKED, ends, json};
use serde_json::{Value, json};
use switcher_gen::{Hazard, Image, Variant};
use switcher_prove::{Obligation, Theorem};

/// What nobody can reason about, at the entry of SYSCALL.
const UNMODELLED: (&str, &str) = ("\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n", "\tcpuid\n");

#[test]
fn prove_says_what_was_proved_by_theorem_and_by_obligation() {
    let args = [&["prove"], &REFERENCE[..]].concat();
    let (text, stderr) = ends(0, &args);
    assert_eq!(stderr, "");
    let fingerprint = Image::new(&Variant::REFERENCE).unwrap().fingerprint().to_string();
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("intel-4level: proved: 79 paths, "), "{first}");
    assert!(first.contains(&format!("fingerprint {}, ", &fingerprint[..16])), "{first}");
    assert!(first.ends_with("certificate on record: yes"), "{first}");
    for theorem in Theorem::ALL {
        for guest_memory in ["stable", "racing"] {
            let line = format!("{:<24} {guest_memory} ", theorem.name());
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
    for obligation in Obligation::ALL {
        let start = format!("{:<20} ", obligation.name);
        let severity = format!("  {:<8}  {}", obligation.severity.name(), obligation.statement);
        let mut lines = text.lines().skip_while(|line| !line.starts_with(&start));
        let line = lines.next().unwrap_or_else(|| panic!("{}: {text}", obligation.name));
        assert!(line.ends_with(&severity), "{line}");
        // Below it are its hazards, with their titles.
        let below: Vec<_> = lines.take(obligation.rows.len()).map(str::trim).collect();
        let rows: Vec<_> = obligation.rows.iter().map(ToString::to_string).collect();
        assert_eq!(below, rows, "{}", obligation.name);
    }
    assert_eq!(text, ends(0, &args).0);
}

#[test]
fn prove_writes_json() {
    let (text, _) = ends(0, &[&["prove", "--format", "json"], &REFERENCE[..]].concat());
    let target = &json(&text)["targets"][0];
    assert_eq!(target["name"], "intel-4level");
    assert_eq!(target["verdict"], "proved");
    assert_eq!(target["certificate"], true);
    let fingerprint = Image::new(&Variant::REFERENCE).unwrap().fingerprint().to_string();
    assert_eq!(target["fingerprint"], fingerprint);
    let theorems = target["theorems"].as_array().unwrap();
    assert_eq!(theorems.len(), 2 * Theorem::ALL.len() + Theorem::EVENTS.len());
    for theorem in theorems {
        let goals: u64 = theorem["obligations"]
            .as_object()
            .unwrap()
            .values()
            .map(|count| count.as_u64().unwrap())
            .sum();
        assert_eq!(theorem["goals"], goals);
    }
    assert!(target["counterexample"].is_null() && target["why"].is_null());
    assert!(target["severity"].is_null());
}

#[test]
fn prove_all_proves_every_variant() {
    let (text, _) = ends(0, &["prove", "--all", "--jobs", "2"]);
    let (proved, last) = text.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(proved.lines().count(), Variant::all().count());
    for (variant, line) in Variant::all().zip(proved.lines()) {
        assert!(line.starts_with(&format!("{variant}: proved: ")), "{line}");
        // The table of certificates has it: see switcher-gen/prove/tests/proofs.rs.
        assert!(line.ends_with("certificate on record: yes"), "{line}");
    }
    let count = (Theorem::ALL.len() + Theorem::EVENTS.len()) * Variant::all().count();
    assert!(last.starts_with(&format!("{count} theorems: ")), "{last}");
}

#[test]
fn prove_proves_what_others_have_assembled() {
    let elf = Elf::new(&[]);
    let (text, _) = ends(0, &elf.args(&["prove"]));
    let first = text.lines().next().unwrap();
    assert!(first.contains("theirs.o: proved: "), "{first}");
    assert!(!first.contains("fingerprint") && !first.contains("certificate"), "{first}");
}

#[test]
fn prove_shows_a_counterexample_and_ends_with_1() {
    let elf = Elf::new(&[UNCHECKED]);
    let (text, stderr) = ends(1, &elf.args(&["prove"]));
    let hazard = format!("spec/hazards.md, {}\n", Hazard::SysretNonCanonical);
    let expected = [": refuted", "`sysretq-canonical`", "frame.rcx", "sysretq  <--", "Replayed"];
    for expected in expected.into_iter().chain([&*hazard]) {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(stderr.starts_with("error: refuted: "), "{stderr}");
    let (text, _) = ends(1, &elf.args(&["prove", "--format", "json"]));
    let target = &json(&text)["targets"][0];
    assert_eq!(target["verdict"], "refuted");
    assert_eq!(target["fingerprint"], Value::Null);
    let obligation = &target["counterexample"]["obligation"];
    assert_eq!(obligation["name"], "sysretq-canonical");
    let first = json!({ "row": 1, "title": Hazard::SysretNonCanonical.title() });
    assert_eq!(obligation["rows"][0], first);
    assert_eq!(target["counterexample"]["theorem"], "enter_guest");
}

#[test]
fn what_is_no_code_is_refused_with_its_instruction() {
    let elf = Elf::new(&[UNMODELLED]);
    for command in ["prove", "fuzz"] {
        let (text, stderr) = ends(2, &elf.args(&[command]));
        assert_eq!(text, "", "{command}");
        assert!(stderr.contains("`cpuid` is not modelled"), "{stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.ends_with("  cpuid"), "{stderr}");
    }
    let garbage = Elf::of(b"not an object");
    for command in ["prove", "fuzz"] {
        let (_, stderr) = ends(2, &garbage.args(&[command]));
        assert!(stderr.contains("theirs.o"), "{stderr}");
        let nowhere = [&[command], &REFERENCE[..], &["--elf", "/nonexistent.o"]].concat();
        ends(2, &nowhere);
    }
}

/// Code with more ways through it than are gone: thirteen decisions, each of which may go either
/// way.
#[test]
fn what_is_not_known_is_no_success() {
    // More paths than are gone; short ones, and fences, so that no other limit comes first.
    let mut decisions = String::from("\nroutine entry_SYSCALL_compat_switcher\n");
    for jump in ["jc", "jp", "jz", "js", "jo"] {
        decisions += &format!("\t{jump}\t1f\n1:\n");
    }
    for bit in 0..8 {
        let fence = if bit % 4 == 0 { "\tlfence\n" } else { "" };
        decisions += &format!("{fence}\tbtq\t${bit}, %rdi\n\tjc\t1f\n1:\n");
    }
    decisions += "\tlfence\n";
    let elf = Elf::new(&[("\nroutine entry_SYSCALL_compat_switcher\n", &decisions)]);
    let (text, stderr) = ends(3, &elf.args(&["prove", "--format", "json"]));
    let target = &json(&text)["targets"][0];
    assert_eq!(target["verdict"], "unknown");
    assert!(target["why"].as_str().unwrap().contains("more than 4096 paths"), "{text}");
    assert!(stderr.starts_with("error: neither proved nor refuted: "), "{stderr}");
}

#[test]
fn mutate_counts_what_became_of_a_sample_whatever_the_jobs() {
    let args = [&["mutate", "--every", "397"], &REFERENCE[..]].concat();
    let [one, two] = ["1", "2"].map(|jobs| {
        let (text, stderr) = ends(0, &[&args[..], &["--jobs", jobs]].concat());
        assert!(stderr.contains("per second"), "{stderr}");
        text
    });
    assert_eq!(one, two);
    assert!(one.contains("(a sample: 1 of 397 of "), "{one}");
    assert!(one.contains("\n  holes           0  "), "{one}");
    assert!(one.contains("killed by"), "{one}");

    let (text, _) = ends(0, &[&args[..], &["--json"]].concat());
    assert_eq!(text, ends(0, &[&args[..], &["--format", "json"]].concat()).0);
    let report = json(&text);
    assert_eq!(report["every"], 397);
    let variant = &report["variants"][0];
    assert_eq!(variant["name"], "intel-4level");
    let killed = variant["killed"].as_array().unwrap();
    let counts: Vec<_> = killed.iter().map(|by| by["mutants"].as_u64().unwrap()).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    let equivalent = variant["equivalent"].as_array().unwrap();
    for change in equivalent {
        assert!(change["source"].as_str().unwrap().starts_with("emit/"), "{change}");
    }
    let refused = variant["refused"].as_u64().unwrap();
    let sum = counts.iter().sum::<u64>() + equivalent.len() as u64 + refused;
    assert_eq!(variant["mutants"], sum);
    assert_eq!(variant["holes"], Value::Array(Vec::new()));
}

#[test]
fn mutate_all_surveys_every_variant() {
    let (text, _) = ends(0, &["mutate", "--all", "--every", "2000", "--json"]);
    let report = json(&text);
    let variants = report["variants"].as_array().unwrap();
    for (variant, survey) in Variant::unmitigated().zip(variants) {
        assert_eq!(survey["name"], variant.to_string());
    }
    assert_eq!(variants.len(), Variant::unmitigated().count());
}

#[test]
fn fuzz_covers_every_path_whatever_the_jobs() {
    let args = [&["fuzz", "--cases", "8_000", "--seed", "0x5EED"], &REFERENCE[..]].concat();
    let [one, two] = ["1", "2"].map(|jobs| {
        let (text, stderr) = ends(0, &[&args[..], &["--jobs", jobs]].concat());
        assert!(stderr.contains("cases per second"), "{stderr}");
        text
    });
    assert_eq!(one, two);
    assert!(one.starts_with("intel-4level: 8000 cases of seed 24301: "), "{one}");
    let (text, _) = ends(0, &[&args[..], &["--engine", "machine", "--format", "json"]].concat());
    let report = json(&text);
    assert_eq!(report["engine"], "machine");
    assert_eq!(report["target"], "intel-4level");
    assert_eq!(report["verdict"], "agree");
    let theorems = report["theorems"].as_array().unwrap();
    assert_eq!(theorems.len(), Theorem::ALL.len());
    for theorem in theorems {
        assert_eq!(theorem["paths"], theorem["paths_proved"], "{theorem}");
        assert!(theorem["classes"].as_u64() >= theorem["paths"].as_u64(), "{theorem}");
    }
    let cases: u64 = theorems.iter().map(|theorem| theorem["cases"].as_u64().unwrap()).sum();
    assert_eq!(cases, 8000);
}

#[test]
fn fuzz_finds_the_first_difference_whatever_the_jobs() {
    let elf = Elf::new(&[UNCHECKED]);
    let args = elf.args(&["fuzz", "--cases", "20_000"]);
    let [one, two] = ["1", "3"].map(|jobs| ends(1, &[&args[..], &["--jobs", jobs]].concat()).0);
    assert_eq!(one, two);
    assert!(one.contains("code and specification differ"), "{one}");
    assert!(one.contains("`sysretq-canonical` does not hold"), "{one}");
    let (text, stderr) = ends(1, &[&args[..], &["--format", "json"]].concat());
    assert!(stderr.starts_with("error: "), "{stderr}");
    let report = json(&text);
    assert_eq!(report["verdict"], "differ");
    assert_eq!(report["difference"]["obligation"], "sysretq-canonical");
    // The code as it was agrees.
    ends(0, &Elf::new(&[]).args(&["fuzz", "--cases", "2000"]));
}

#[test]
fn bad_arguments_are_refused() {
    for args in [
        &["prove", "--variant", "via-4level"][..],
        &["prove", "--all", "--variant", "intel-4level"],
        &["prove", "--elf", "theirs.o"],
        &["prove", "--format", "yaml"],
        &["mutate", "--all", "--variant", "intel-4level"],
        &["mutate", "--every", "0"],
        &["mutate", "--jobs", "0"],
        &["mutate", "--jobs", "many"],
        &["mutate", "--json", "--format", "text"],
        &["fuzz", "--cases", "0"],
        &["fuzz", "--cases", "-1"],
        &["fuzz", "--seed", "lucky"],
        &["fuzz", "--engine", "native-soon"],
        &["fuzz", "--all"],
    ] {
        let (text, stderr) = ends(2, args);
        assert_eq!(text, "", "{args:?}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    }
}

#[test]
fn help_has_examples_schema_and_exit_codes() {
    for command in ["prove", "mutate", "fuzz"] {
        let (text, _) = ends(0, &[command, "--help"]);
        for expected in ["Usage: switcher", "Examples:", "JSON is one object: ", "Exit codes:"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
    assert!(ends(0, &["--help"]).0.contains("  3  neither proved nor refuted"));
}

/// Whoever closes the pipe has seen enough, and yet is told the verdict.
#[test]
fn a_closed_pipe_is_no_error_and_hides_none() {
    let run = |args: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_switcher"))
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap().status.code()
    };
    let right = [&REFERENCE[..], &["--format", "json"]].concat();
    assert_eq!(run(&[&["prove"], &right[..]].concat()), Some(0));
    assert_eq!(run(&[&["fuzz", "--cases", "1000"], &right[..]].concat()), Some(0));
    let elf = Elf::new(&[UNCHECKED]);
    assert_eq!(run(&elf.args(&["prove"])), Some(1));
    assert_eq!(run(&elf.args(&["fuzz", "--cases", "20000"])), Some(1));
}

/// CLAC is there if the user says that the CPUs have it, and an unknown feature is answered with
/// the known ones.
#[test]
fn a_feature_of_the_cpu_is_said_by_name() {
    let exit = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    let elf = Elf::new(&[(exit, &format!("\tclac\n{exit}"))]);
    let (stdout, stderr) = ends(1, &elf.args(&["prove"]));
    let text = stdout + &stderr;
    assert!(text.contains("`exists` does not hold") && text.contains("a CPU with smap"), "{text}");
    ends(0, &elf.args(&["prove", "--feature", "smap"]));
    let (_, stderr) = ends(2, &elf.args(&["prove", "--feature", "magic"]));
    assert!(stderr.contains("unknown feature `magic`; known are: smap, ibrs, "), "{stderr}");
}
