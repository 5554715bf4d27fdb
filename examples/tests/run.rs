//! Every example runs, and prints what it is meant to show.

use std::process::Command;

/// Runs an example and returns what it prints.
fn run(example: &str) -> String {
    let output = Command::new(example).output().expect("cargo has built the example");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {}\n{text}{errors}", output.status);
    text
}

#[track_caller]
fn shows(text: &str, wanted: &str) {
    assert!(text.contains(wanted), "`{wanted}` is not in:\n{text}");
}

#[test]
fn struct_to_offset() {
    let text = run(env!("CARGO_BIN_EXE_ex1-struct-to-offset"));
    shows(&text, "exit_reason of vcpu 7 lies 12 bytes in");
    shows(&text, "gs:[tss_extra.pvcs] is gs:[0xd8]");
    shows(&text, "0x10 rsp          u64  The stack pointer.");
}

#[test]
fn offset_to_code() {
    let text = run(env!("CARGO_BIN_EXE_ex2-offset-to-code"));
    shows(&text, "count true: [48, ff, 47, 00, 8b, 47, 08, c3, cc]");
    shows(&text, "count false: [8b, 47, 08, c3, cc]");
}

#[test]
fn host_to_variant() {
    let text = run(env!("CARGO_BIN_EXE_ex3-host-to-variant"));
    shows(&text, "intel-la57-ibt-pcid");
    shows(&text, "refused: AMD CPUs have no indirect branch tracking");
}

#[test]
fn code_to_listing() {
    let text = run(env!("CARGO_BIN_EXE_ex4-code-to-listing"));
    shows(&text, "[pvcs.user_cs:user_ss]");
    shows(&text, "emit/to_umod.rs:");
    // Each field of the PVCS is read at most once: a guest may change it between two reads.
    for field in ["rip", "rsp", "rcx", "r11", "eflags", "user_gsbase"] {
        let operand = format!("[pvcs.{field}]");
        let read = |line: &&str| line.contains(&operand) && line.contains("emit/to_umod.rs");
        assert_eq!(text.lines().filter(read).count(), 1, "{operand}");
    }
}

#[test]
fn code_to_address() {
    let text = run(env!("CARGO_BIN_EXE_ex5-code-to-address"));
    shows(&text, "LSTAR = 0xfffffe8000000");
    shows(&text, "refused: the switcher cannot be mapped there: 0x800000000000 is not canonical");
    shows(&text, "is out of reach of a rel32");
}

#[test]
fn prove_and_break() {
    let text = run(env!("CARGO_BIN_EXE_ex6-prove-and-break"));
    shows(&text, "syscall_64 (Racing guest): ");
    shows(&text, "`sysretq-rf-tf` does not hold");
    shows(&text, "Replayed on the concrete machine");
    shows(&text, "The same state in the right switcher: broken = false");
}

#[test]
fn run_it_here() {
    let text = run(env!("CARGO_BIN_EXE_ex7-run-it-here"));
    shows(&text, "vector 6");
    shows(&text, "41 + 1 = 42");
}
