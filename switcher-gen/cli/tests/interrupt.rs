//! Ctrl-C: what was found until then is printed, as a part of the result and as nothing else.
#![cfg(unix)]

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// What the command says if it gets SIGINT once it is at work.
#[track_caller]
fn interrupted(args: &[&str]) -> Output {
    // On a machine that is busy, it may take a while until it listens; before that, it is killed.
    for seconds in [1, 3, 9, 27] {
        let child = Command::new(env!("CARGO_BIN_EXE_switcher"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        sleep(Duration::from_secs(seconds));
        let pid = libc::pid_t::try_from(child.id()).unwrap();
        // SAFETY: kill only sends a signal, and the process is our own child, which nobody has
        // waited for yet: the number is no other's.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
        let output = child.wait_with_output().unwrap();
        if output.status.code().is_some() {
            return output;
        }
    }
    panic!("{args:?}: it does not listen to SIGINT")
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stdout));
    })
}

#[track_caller]
fn is_a_part(report: &serde_json::Value) -> u64 {
    let part = &report["interrupted"];
    let (after, of) = (part["after"].as_u64().unwrap(), part["of"].as_u64().unwrap());
    assert!(after < of, "{part}");
    after
}

#[test]
fn a_search_that_is_interrupted_reports_what_it_has_found() {
    let output = interrupted(&["prove", "--all", "--jobs", "1", "--format", "json"]);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let report = json(&output);
    assert_eq!(is_a_part(&report), report["targets"].as_array().unwrap().len() as u64);

    let output = interrupted(&["prove", "--all", "--jobs", "1"]);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("interrupted after "), "{text}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("interrupted after "));

    let variant = ["--variant", "intel-4level"];
    let output = interrupted(&[&["mutate", "--json"][..], &variant].concat());
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    if let Some(survey) = json(&output)["variants"].get(0) {
        let after = is_a_part(survey);
        assert!(survey["mutants"].as_u64().unwrap() <= after);
    }

    let output = interrupted(&[&["redundancy", "--format", "json"][..], &variant].concat());
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    if let Some(survey) = json(&output)["targets"].get(0) {
        is_a_part(survey);
    }

    let cases = ["--cases", "1_000_000_000_000", "--format", "json"];
    let output = interrupted(&[&["fuzz"][..], &variant, &cases].concat());
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let report = json(&output);
    is_a_part(&report);
    assert_eq!(report["verdict"], "interrupted");
}

/// One finding comes at once, and then questions that take the solver long.
#[test]
fn a_proof_that_is_interrupted_reports_what_it_has_found() {
    let enter = "\tmovq\t%gs:TSS_SP0, %rsp\n\tsubq\t$PT_REGS_SIZE, %rsp\n";
    let forbidden = format!("\tmovq\t%rax, %gs:TSS_SP1\n{enter}");
    // Rounds of a cipher whose key is the guest's: for which of them is the end this number?
    let stack = "\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n";
    let round = "\tmovq\t%rax, %rsi\n\tshrq\t$8, %rax\n\tshlq\t$56, %rsi\n\torq\t%rsi, %rax\n\
                 \taddq\t%rdx, %rax\n\txorq\t%rdi, %rax\n\tmovq\t%rdx, %rsi\n\tshlq\t$3, %rdx\n\
                 \tshrq\t$61, %rsi\n\torq\t%rsi, %rdx\n\txorq\t%rax, %rdx\n";
    let hard = format!(
        "{stack}\tpushq\t%rax\n\tpushq\t%rdx\n\tpushq\t%rsi\n\tmovq\t%rdi, %rax\n\tmovq\t%rsi, %rdx\n\
         {}\tcmpq\t$0x1234567, %rax\n\tjne\t1f\n1:\tpopq\t%rsi\n\tpopq\t%rdx\n\tpopq\t%rax\n",
        round.repeat(24)
    );
    let source = gas::replaced(gas::SWITCHER, &[(enter, &forbidden), (stack, &hard)]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hard.o");
    std::fs::write(&file, gas::assemble(&source, &[])).unwrap();
    let elf = ["prove", "--elf", file.to_str().unwrap(), "--variant", "intel-4level"];
    let output = interrupted(&[&elf[..], &["--format", "json"]].concat());
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let report = json(&output);
    assert_eq!(is_a_part(&report), 0);
    assert_eq!(report["targets"][0]["findings"]["refuted"][0]["obligation"]["name"], "kept");
}
