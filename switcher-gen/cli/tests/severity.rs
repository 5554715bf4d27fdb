//! What is at stake, as users and scripts see it: exit codes, order, and what makes a failure of a
//! report.

mod by_hand;

use by_hand::{Elf, UNCHECKED, UNCLEARED, UNHURRIED, UNSELECTED, ends, gas, json};
use serde_json::{Value, json};

/// One broken switcher of each severity: what is wrong, the exit code, and what is said of it.
#[test]
fn each_severity_has_an_exit_code_of_its_own() {
    let cases = [
        (UNCHECKED, 1, "host", "sysretq-canonical", "here RCX is 0x"),
        (
            UNSELECTED,
            4,
            "guest",
            "iretq-return",
            "by SYSRETQ, CS would be 0x33 (USER_CS), and must be 0x",
        ),
        (UNCLEARED, 5, "contract", "exit-scratch", "here rdi must be 0x0, and is 0x"),
        (UNHURRIED, 6, "speed", "sysretq-return", "the return must be by SYSRETQ"),
    ];
    for (broken, code, severity, obligation, required) in cases {
        let elf = Elf::new(&[broken]);
        let (text, stderr) = ends(code, &elf.args(&["prove"]));
        assert!(stderr.starts_with("error: refuted: "), "{stderr}");
        assert!(text.contains(&format!("\nSeverity {severity}. ")), "{severity}: {text}");
        assert!(text.contains(&format!("  severity: {severity}\n")), "{severity}: {text}");
        for other in ["host", "guest", "contract", "speed"].iter().filter(|it| **it != severity) {
            assert!(!text.contains(&format!("\nSeverity {other}. ")), "{other}: {text}");
        }
        let (text, _) = ends(code, &elf.args(&["prove", "--format", "json"]));
        let target = &json(&text)["targets"][0];
        assert_eq!(target["severity"], severity);
        for found in target["findings"]["refuted"].as_array().unwrap() {
            assert_eq!(found["severity"], severity, "{found}");
            assert_eq!(found["obligation"]["severity"], severity, "{found}");
            assert_eq!(found["obligation"]["name"], obligation, "{found}");
            assert!(found["required"].as_str().unwrap().contains(required), "{found}");
        }
    }
    ends(0, &Elf::new(&[]).args(&["prove"]));
}

#[test]
fn all_findings_are_listed_the_gravest_first() {
    let elf = Elf::new(&[UNCLEARED, UNSELECTED, UNCHECKED]);
    for keep_going in [&["prove"][..], &["prove", "--keep-going"]] {
        let (text, _) = ends(1, &elf.args(keep_going));
        let first = text.lines().next().unwrap();
        assert!(
            first.ends_with("theirs.o: refuted: 6 findings (2 host, 1 guest, 3 contract)"),
            "{first}"
        );
        let places = ["\nSeverity host. ", "\nSeverity guest. ", "\nSeverity contract. "]
            .map(|heading| text.find(heading).unwrap());
        assert!(places.is_sorted(), "{places:?}");
        for number in 1..=6 {
            assert!(text.contains(&format!("\nFinding {number} of 6 (")), "{text}");
        }
        // Before any finding: what is not judged.
        let (before, _) = text.split_once("\nFinding 1 ").unwrap();
        assert!(before.contains("  not judged: events: "), "{before}");
    }
    let (text, _) = ends(1, &elf.args(&["prove", "--format", "json"]));
    let target = &json(&text)["targets"][0];
    let refuted = target["findings"]["refuted"].as_array().unwrap();
    let severities: Vec<_> = refuted.iter().map(|it| it["severity"].as_str().unwrap()).collect();
    assert_eq!(severities, ["host", "host", "guest", "contract", "contract", "contract"]);
    let symbols: Vec<_> = refuted.iter().map(|it| it["symbol"].as_str().unwrap()).collect();
    assert!(symbols[0].starts_with("switcher_enter_guest+0x"), "{symbols:?}");
    assert!(symbols[5].starts_with("switcher_return_from_guest+0x"), "{symbols:?}");
    assert!(refuted.iter().all(|found| found["source"].is_null()));

    let (text, _) = ends(1, &elf.args(&["prove", "--first"]));
    assert!(text.contains(": refuted: 1 first finding (1 "), "{text}");
    let (_, stderr) = ends(2, &elf.args(&["prove", "--first", "--keep-going"]));
    assert!(stderr.contains("--first") && stderr.contains("--keep-going"), "{stderr}");
}

#[test]
fn what_is_less_grave_than_asked_for_is_shown_and_does_not_fail() {
    let contract = Elf::new(&[UNCLEARED]);
    for (fail_on, code) in [("host", 0), ("guest", 0), ("contract", 5), ("speed", 5)] {
        let (text, stderr) = ends(code, &contract.args(&["prove", "--fail-on", fail_on]));
        assert!(text.contains("`exit-scratch` does not hold"), "{text}");
        let passes = format!("  does not fail: 3 findings, below `--fail-on {fail_on}`\n");
        assert_eq!(text.contains(&passes), code == 0, "{text}");
        assert_eq!(stderr.is_empty(), code == 0, "{stderr}");
    }
    // Others count as they did.
    let both = Elf::new(&[UNCLEARED, UNSELECTED]);
    let (text, _) = ends(4, &both.args(&["prove", "--fail-on", "guest"]));
    assert!(text.contains("  does not fail: 3 findings, below `--fail-on guest`\n"), "{text}");
    let (_, stderr) = ends(2, &both.args(&["prove", "--fail-on", "grave"]));
    assert!(stderr.contains("host, guest, contract, speed"), "{stderr}");
}

/// What is not known is no success, whatever passes.
#[test]
fn a_theorem_that_cannot_be_told_fails_although_the_findings_pass() {
    let unmodelled = ("\tmovl\t$-ENOSYS, %eax\n", "\tcpuid\n");
    let elf = Elf::new(&[UNCLEARED, unmodelled]);
    let (text, stderr) = ends(3, &elf.args(&["prove", "--fail-on", "guest"]));
    assert!(text.contains("not judged: syscall_compat: "), "{text}");
    assert!(stderr.starts_with("error: neither proved nor refuted: "), "{stderr}");
    ends(5, &elf.args(&["prove"]));
}

#[test]
fn an_area_that_is_required_and_not_judged_fails_and_says_how_to_give_it() {
    let elf = Elf::new(&[]);
    for (require, missing) in [
        ("events", "`switcher_event_stubs` and `switcher_event_stubs_end` around 256 entries"),
        ("iretq-frame", "give the code its event entries"),
        ("windows", "--window unsafe-stack="),
        ("routines,compat,events", "`switcher_event_stubs`"),
    ] {
        let (text, stderr) = ends(3, &elf.args(&["prove", "--require", require]));
        let area = require.rsplit(',').next().unwrap();
        let start = format!("theirs.o: `{area}` is required and not judged: ");
        assert!(stderr.contains(&start) && stderr.contains(missing), "{stderr}");
        assert!(text.contains(": proved: "), "{text}");
        assert!(text.contains(&format!("  missing: `{area}` is required")), "{text}");
    }
    ends(0, &elf.args(&["prove", "--require", "routines,compat"]));
    // Ours have all of it.
    let all = "routines,compat,windows,root-window,events,iretq-frame,iretq-fault";
    ends(0, &["prove", "--variant", "intel-4level", "--require", all]);
    let (_, stderr) = ends(2, &elf.args(&["prove", "--require", "nmis"]));
    assert!(
        stderr.contains("routines, compat, windows, root-window, events, iretq-frame, iretq-fault"),
        "{stderr}"
    );
}

#[test]
fn a_missing_symbol_is_an_area_of_the_json() {
    // The stub is there, and nobody says where.
    let elf = Elf::new(&[
        ("\nroutine entry_SYSCALL_compat_switcher\n", "\nroutine somebodys_stub\n"),
        ("end_routine entry_SYSCALL_compat_switcher\n", "end_routine somebodys_stub\n"),
    ]);
    let args = elf.args(&["prove", "--require", "compat", "--format", "json"]);
    let (text, stderr) = ends(3, &args);
    assert!(
        stderr.contains("give the code the symbol `entry_SYSCALL_compat_switcher`"),
        "{stderr}"
    );
    let report = json(&text);
    let not_judged = report["targets"][0]["not_judged"].as_array().unwrap();
    let areas: Vec<_> = not_judged.iter().map(|it| it["area"].as_str().unwrap()).collect();
    assert_eq!(areas, ["windows", "root-window", "compat", "events", "iretq-frame"]);
    let compat = &not_judged[2];
    assert_eq!(compat["rows"][0]["row"], 17);
    assert!(compat["how"].as_str().unwrap().contains("CSTAR"), "{compat}");
    assert_eq!(report["missing"].as_array().unwrap().len(), 1);
    // What is refuted weighs more, and both are said.
    let broken = Elf::new(&[UNSELECTED]);
    let (_, stderr) = ends(4, &broken.args(&["prove", "--require", "events"]));
    assert!(
        stderr.starts_with("error: refuted: ") && stderr.contains("`events` is required"),
        "{stderr}"
    );
    let (_, stderr) = ends(3, &broken.args(&["prove", "--require", "events", "--fail-on", "host"]));
    assert!(!stderr.contains("refuted"), "{stderr}");
}

/// An area of which one theorem cannot be told is not judged either.
#[test]
fn an_area_is_not_judged_if_there_is_no_telling_what_it_does() {
    let elf = Elf::new(&[UNCLEARED, ("\tmovl\t$-ENOSYS, %eax\n", "\tcpuid\n")]);
    let args = elf.args(&["prove", "--require", "compat", "--fail-on", "host"]);
    let (_, stderr) = ends(3, &args);
    let expected = "`compat` is required and not all of it is judged: syscall_compat: ";
    assert!(stderr.contains(expected), "{stderr}");
}

/// With DWARF, each finding has the line of the source that it is at.
#[test]
fn a_file_with_dwarf_has_lines() {
    let source = gas::replaced(gas::SWITCHER, &[UNCHECKED]);
    let line = 1 + source.lines().position(|line| line == "\tsysretq").unwrap();
    let object = gas::assemble_with(&source, &[], &["-g"]);
    let linked = gas::process("ld", &["-Ttext=0x400000", "-e", "switcher_enter_guest"], &object);
    for elf in [Elf::of(&object), Elf::of(&linked)] {
        let (text, _) = ends(1, &elf.args(&["prove"]));
        let at = text.lines().find(|line| line.starts_with("Finding 1 of ")).unwrap();
        assert!(at.ends_with(&format!(", {}:{line}", gas::SOURCE)), "{at}");
        assert!(text.contains(&format!("  {}:{line}  <--\n", gas::SOURCE)), "{text}");
        let (text, _) = ends(1, &elf.args(&["prove", "--format", "json"]));
        let found = &json(&text)["targets"][0]["findings"]["refuted"][0];
        assert_eq!(found["source"], json!({ "file": gas::SOURCE, "line": line }));
    }
    // Without, the report says why there are none.
    let options =
        ["-Ttext=0x400000", "-e", "switcher_enter_guest", "--compress-debug-sections=zlib"];
    let compressed = gas::process("ld", &options, &object);
    for (bytes, why) in [
        (gas::process("strip", &["-g"], &linked), "the file has no DWARF"),
        (compressed, "`objcopy --decompress-debug-sections`"),
    ] {
        let (text, _) = ends(1, &Elf::of(&bytes).args(&["prove", "--first"]));
        let said = text.lines().find(|line| line.starts_with("  no lines of sources: ")).unwrap();
        assert!(said.contains(why), "{said}");
        assert!(text.contains(", at switcher_enter_guest+0x"), "{text}");
    }
}

/// `explain` and `mutate` ask for obligations and not for severities.
#[test]
fn commands_that_break_code_on_purpose_end_as_they_did() {
    let (text, _) =
        ends(0, &["explain", "sysretq", "--variant", "intel-4level", "--format", "json"]);
    assert!(json(&text).as_array().is_some_and(|all| all.iter().any(Value::is_object)), "{text}");
    let elf = Elf::new(&[UNCLEARED]);
    let (_, stderr) = ends(1, &elf.args(&["fuzz", "--cases", "2000"]));
    assert!(
        stderr.contains("does not do what is specified") || stderr.contains("differs"),
        "{stderr}"
    );
}
