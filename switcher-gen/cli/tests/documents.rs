//! The commands of the program `switcher` in documents and comments exist, and those of README do
//! what it says.
//!
//! Each is given to the program with `--help` after it: the program then reads all that stands
//! before, objects to what it does not know, and does nothing else. README's are run, in a folder
//! that has the file that they name, except for those in [`LONG`].

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;
#[path = "../../../hw-tests/tests/tree/mod.rs"]
mod tree;

use tree::{commands, files, has_extension, prose, read, root};

/// Words that stand for something of the reader's, and what is read in their place.
const PLACEHOLDERS: &[(&str, &str)] =
    &[("FILE", "switcher.o"), ("NAME", "intel-4level"), ("theirs.o", "theirs.o")];

/// README's commands that are not run here, and why.
const LONG: &[(&[&str], &str)] =
    &[(&[], "the tour runs in cli.rs, which also knows what it says where a host lacks something")];

fn switcher(arguments: &[String], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_switcher"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

/// What a kernel has of the structs, with names of its own for one of them.
const KERNEL: &str = "
struct tss_extra { long host_cr3, host_rsp; };
struct my_extra { long host_cr3, host_gs_base; };
struct tss_struct { char tss[104]; struct tss_extra tss_ex; struct my_extra mine; } cpu_tss_rw;
";

/// A folder with what somebody else has built: here, by the program itself and a compiler.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let emit = ["emit", "--variant", "intel-4level", "--format", "elf", "-o", "theirs.o"];
    let emitted = switcher(&emit.map(str::to_owned), folder.path());
    assert!(emitted.status.success(), "{}", String::from_utf8_lossy(&emitted.stderr));
    let path = |name| folder.path().join(name);
    let assembled = gas::assemble(include_str!("../../prove/tests/gas/kernel.S"), &[]);
    std::fs::write(path("entry_64_switcher.o"), assembled).unwrap();
    std::fs::write(path("kernel.c"), KERNEL).unwrap();
    std::fs::write(path("asm-offsets.h"), "#define TSS_EX_host_rsp 112\n").unwrap();
    let compile = ["-g", "-c", "-o", "vmlinux", "kernel.c"];
    let compiled = Command::new("gcc").args(compile).current_dir(folder.path()).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    folder
}

/// The arguments that a command gives to the program, if it runs it.
fn arguments(command: &str) -> Option<Vec<String>> {
    let rest = command.strip_prefix("switcher ").or_else(|| {
        let of_cargo = command.strip_prefix("cargo run")?.trim_start();
        let of_cargo = of_cargo.strip_prefix("--release").unwrap_or(of_cargo).trim_start();
        of_cargo.strip_prefix("-- ").or(of_cargo.is_empty().then_some(""))
    })?;
    let words = rest.split_whitespace().map(|word| {
        let known = PLACEHOLDERS.iter().find(|(placeholder, _)| *placeholder == word);
        known.map_or(word, |(_, stands)| stands).to_owned()
    });
    Some(words.collect())
}

/// Why the program does not know what it is told. An option at the end may be named without its
/// value.
fn objection(arguments: &[String]) -> Option<String> {
    let is_option = arguments.last().is_some_and(|last| last.starts_with("--"));
    let ask = |more: &[&str]| {
        let more: Vec<_> = more.iter().map(|word| (*word).to_owned()).collect();
        switcher(&[arguments, &more].concat(), root())
    };
    let mut output = ask(&["--help"]);
    if is_option && !output.status.success() {
        output = ask(&["switcher.o", "--help"]);
    }
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_command_of_documents_is_one_that_the_program_knows() {
    let mut all = BTreeSet::new();
    for file in files(root()) {
        let path = file.strip_prefix(root()).unwrap();
        // The past had other commands.
        if path != Path::new("CHANGELOG.md") && has_extension(path, &["md", "rs", "toml"]) {
            all.extend(commands(&prose(path, &read(&file))).iter().filter_map(|it| arguments(it)));
        }
    }
    assert!(all.len() > 5, "{all:?}");
    let wrong: Vec<_> =
        all.iter().filter_map(|it| Some(format!("{it:?}: {}", objection(it)?))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_command_that_the_program_does_not_know_is_objected_to() {
    let words = |command| arguments(command).unwrap();
    assert_eq!(objection(&words("cargo run --release -- emit --variant NAME")), None);
    for wrong in [
        "switcher emmit",
        "cargo run --release -- emit --variants intel-4level",
        "cargo run --release -- emit --variant intel-5level",
        "cargo run -- emit --format pdf",
    ] {
        assert!(objection(&words(wrong)).is_some(), "{wrong}");
    }
    assert_eq!(arguments("cargo run -p switcher-examples"), None);
    assert_eq!(arguments("cargo test"), None);
}

#[test]
fn the_commands_of_readme_succeed() {
    let folder = folder();
    let readme = commands(&read(&root().join("README.md")));
    let mut run = 0;
    for arguments in readme.iter().filter_map(|command| arguments(command)) {
        if LONG.iter().any(|(long, _)| *long == arguments) {
            continue;
        }
        let output = switcher(&arguments, folder.path());
        let why = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {why}");
        run += 1;
    }
    assert!(run >= 3, "{run}");
    assert!(folder.path().join("switcher.o").exists());
}

/// The examples in the help of these commands are run, but for those that take long.
#[test]
fn the_examples_of_the_help_succeed() {
    let folder = folder();
    for command in ["cost", "diff", "emit", "explain", "offsets", "variants"] {
        let help = switcher(&[command.to_owned(), "--help".to_owned()], folder.path());
        let help = String::from_utf8(help.stdout).unwrap();
        let (_, examples) = help.split_once("Examples:\n").unwrap();
        let examples = examples.lines().take_while(|line| line.starts_with("  switcher "));
        let mut run = 0;
        for example in examples {
            // What comes after two spaces or a pipe says what it is for.
            let example = example.trim_start().split("  ").next().unwrap();
            let example = example.split(['|', '>']).next().unwrap();
            let mut arguments = arguments(example).unwrap();
            if arguments.iter().any(|argument| argument == "theirs.o") {
                // Our own layout, not that of whoever is meant.
                arguments.retain(|argument| {
                    !argument.starts_with("--gs-tss") && !argument.starts_with("0x60")
                });
            }
            let output = switcher(&arguments, folder.path());
            let why = String::from_utf8_lossy(&output.stderr);
            // As of `diff`: there are differences.
            let differs = command == "diff" && output.status.code() == Some(1) && why.is_empty();
            assert!(output.status.success() || differs, "{example}: {why}");
            run += 1;
        }
        assert!(run > 1, "{command}");
    }
}
