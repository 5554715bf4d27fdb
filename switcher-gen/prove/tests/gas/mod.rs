//! Assembly by hand, for tests: assembled and linked with binutils. A test whose assembly is wrong
//! panics with what the tool says.

#![allow(dead_code, reason = "each test uses some of it")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// A whole switcher, not of our emitters. Takes `GS_TSS` and `GS_TSS_EXTRA` as `--defsym`.
pub(crate) const SWITCHER: &str = include_str!("switcher.S");

/// What sources are called while they are assembled.
pub(crate) const SOURCE: &str = "in.S";

/// The object that `as` makes of `source`, with `symbols` set by `--defsym`.
#[track_caller]
pub(crate) fn assemble(source: &str, symbols: &[(&str, i64)]) -> Vec<u8> {
    assemble_with(source, symbols, &[])
}

/// The same, with other arguments of `as`. In debug information, the source is called [`SOURCE`].
#[track_caller]
pub(crate) fn assemble_with(source: &str, symbols: &[(&str, i64)], args: &[&str]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    for (name, value) in symbols {
        args.extend(["--defsym".to_owned(), format!("{name}={value}")]);
    }
    args.extend(["--fatal-warnings", "-o", "out.o", SOURCE].map(str::to_owned));
    // `as` warns of a last line without an end.
    std::fs::write(dir.path().join(SOURCE), format!("{source}\n")).unwrap();
    run("as", &args, dir.path(), source);
    std::fs::read(dir.path().join("out.o")).unwrap()
}

/// What `ld`, or another tool of binutils that takes `-o`, makes of `object`.
#[track_caller]
pub(crate) fn process(tool: &str, args: &[&str], object: &[u8]) -> Vec<u8> {
    process_all(tool, args, &[object])
}

/// What `ld` makes of several objects.
#[track_caller]
pub(crate) fn process_all(tool: &str, args: &[&str], objects: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut args: Vec<_> = args.iter().chain(&["-o", "out"]).map(|arg| (*arg).to_owned()).collect();
    for (number, object) in objects.iter().enumerate() {
        let name = format!("in{number}.o");
        std::fs::write(dir.path().join(&name), object).unwrap();
        args.push(name);
    }
    run(tool, &args, dir.path(), "");
    std::fs::read(dir.path().join("out")).unwrap()
}

/// `source` with each first text replaced by its second, to break it on purpose. Each must be there
/// exactly once, so that the right place is broken.
#[track_caller]
pub(crate) fn replaced(source: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(source.to_owned(), |source, (from, to)| {
        let found = source.matches(from).count();
        assert_eq!(found, 1, "to be replaced, and there {found} times: {from:?}");
        source.replace(from, to)
    })
}

/// Runs a tool that must succeed; `source` is shown with line numbers if it does not.
#[track_caller]
fn run(tool: &str, args: &[String], dir: &Path, source: &str) {
    let output = Command::new(tool)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {tool} (Debian package binutils): {error}"));
    if !output.status.success() {
        let mut lines = String::new();
        for (number, line) in (1..).zip(source.lines()) {
            writeln!(lines, "{number:4} {line}").unwrap();
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        panic!("{tool} {}: {}\n{stderr}{lines}", args.join(" "), output.status);
    }
}
