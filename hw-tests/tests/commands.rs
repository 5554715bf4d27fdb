//! The commands in documents and comments exist. Here are those of cargo and of `cargo xtask`;
//! those of the program `switcher` are tried by the tests of its package
//! (switcher-gen/cli/tests/documents.rs), which have it built.
//!
//! A command of cargo's is compared with what packages, targets and features there are; one of
//! `cargo xtask` is parsed by the program itself, which then prints its help. What is neither is in
//! a list, with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use hw_tests::workspace;
use serde_json::Value;

mod tree;
use tree::{commands, files, has_extension, is_setting, prose, read, root};

/// Commands that are not looked at, and why.
const SKIPPED: &[(&str, &str)] = &[
    ("cargo install", "it needs a network"),
    (
        "cargo insta",
        "a tool of its own, which the document says how to install, and how to do without",
    ),
    ("cargo deny check", "a tool of its own; deny.toml is held to the tree by dependencies.rs"),
    ("cargo fuzz", "a tool of its own, which needs an unstable compiler"),
    ("cargo help", "it is about cargo itself"),
];

/// A package: its targets of tests, its binaries and its features.
#[derive(Debug, Default)]
struct Package {
    tests: BTreeSet<String>,
    binaries: BTreeSet<String>,
    features: BTreeSet<String>,
}

fn packages() -> BTreeMap<String, Package> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |package: &Value| {
        let named = |kind: &str| -> BTreeSet<String> {
            let targets = package["targets"].as_array().unwrap().iter();
            let of_kind = targets.filter(|target| target["kind"][0] == kind);
            of_kind.map(|target| target["name"].as_str().unwrap().to_owned()).collect()
        };
        let features = package["features"].as_object().unwrap().keys().cloned().collect();
        let package_of = Package { tests: named("test"), binaries: named("bin"), features };
        (package["name"].as_str().unwrap().to_owned(), package_of)
    };
    metadata["packages"].as_array().unwrap().iter().map(of).collect()
}

/// What a command of cargo's names that is not there.
fn objections(words: &[&str], packages: &BTreeMap<String, Package>) -> Vec<String> {
    const FLAGS: &[&str] = &[
        "--release",
        "--workspace",
        "--all-targets",
        "--offline",
        "--doc",
        "--benches",
        "--no-deps",
        "--lib",
        "--no-fail-fast",
        "--check",
        "--all",
        "--no-run",
    ];
    let mut objections = Vec::new();
    let mut named: Vec<&Package> = Vec::new();
    let mut words = words.iter().copied();
    let subcommand = words.next().unwrap_or_default();
    if !["test", "run", "build", "check", "clippy", "fmt", "doc", "bench", "metadata"]
        .contains(&subcommand)
    {
        return vec![format!("cargo {subcommand} is not known")];
    }
    while let Some(word) = words.next() {
        match word {
            "--" => break,
            "-p" | "--package" => match words.next() {
                // A name in capitals stands for any.
                Some("CRATE") => named.extend(packages.values()),
                Some(name) => match packages.get(name) {
                    Some(package) => named.push(package),
                    None => objections.push(format!("there is no package {name}")),
                },
                None => objections.push("a package is missing".into()),
            },
            "--test" | "--bin" | "--features" => {
                let name = words.next().unwrap_or_default();
                let has = |package: &&Package| match word {
                    "--test" => package.tests.contains(name),
                    "--bin" => package.binaries.contains(name),
                    _ => package.features.contains(name),
                };
                if !named.iter().any(has) {
                    objections
                        .push(format!("no package that is named has the {} {name}", &word[2..]));
                }
            }
            // What is tested is a filter; what else is run has no such argument.
            _ if FLAGS.contains(&word) || (subcommand == "test" && !word.starts_with('-')) => {}
            _ => objections.push(format!("cargo {subcommand} has no {word}")),
        }
    }
    objections
}

/// All commands of the tree, each with a file that has it.
fn all_commands() -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for file in files(root()) {
        let path = file.strip_prefix(root()).unwrap().display().to_string();
        // The past had other commands, and tests have wrong ones.
        let is_of_tests = path.ends_with("tests/commands.rs") || path.ends_with("tree/mod.rs");
        if path == "CHANGELOG.md" || is_of_tests || !has_extension(&file, &["md", "rs", "toml"]) {
            continue;
        }
        for command in commands(&prose(Path::new(&path), &read(&file))) {
            all.entry(command).or_insert_with(|| path.clone());
        }
    }
    all
}

#[test]
fn every_command_of_documents_exists() {
    let packages = packages();
    let (mut wrong, mut cargo, mut xtask) = (Vec::new(), 0, 0);
    let mut skipped = BTreeSet::new();
    for (command, file) in all_commands() {
        let words: Vec<_> =
            command.split_whitespace().skip_while(|word| is_setting(word)).collect();
        let skip = SKIPPED.iter().find(|(begins, _)| words.join(" ").starts_with(begins));
        if let Some((begins, _)) = skip {
            skipped.insert(*begins);
            continue;
        }
        match words[..] {
            // Those of the program, which is built for the tests of its package.
            ["switcher", ..] => {}
            ["cargo", "xtask", ref arguments @ ..] => {
                xtask += 1;
                let mut run = Command::new(env!("CARGO_BIN_EXE_xtask"));
                let output = run.args(arguments).arg("--help").output().unwrap();
                if !output.status.success() {
                    let why = String::from_utf8_lossy(&output.stderr).into_owned();
                    wrong.push(format!("{file}: {command}: {why}"));
                }
            }
            ["cargo", ref arguments @ ..] => {
                cargo += 1;
                let objections = objections(arguments, &packages);
                wrong.extend(objections.iter().map(|what| format!("{file}: {command}: {what}")));
            }
            _ => wrong.push(format!("{file}: {command} is no command")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cargo > 10 && xtask > 3, "{cargo} of cargo's, {xtask} of xtask's");
    let unused: Vec<_> = SKIPPED.iter().filter(|(begins, _)| !skipped.contains(begins)).collect();
    assert!(unused.is_empty(), "skipped, and nowhere said: {unused:?}");
}

#[test]
fn a_command_that_does_not_exist_is_objected_to() {
    let packages = packages();
    let object = |command: &str| {
        let words: Vec<_> = command.split(' ').collect();
        objections(&words, &packages)
    };
    for right in [
        "test -p hw-tests --test commands",
        "test -p switcher-prove --test proofs -- --nocapture",
        "run --release -- prove --all",
        "build --release -p minimal-host --features bare-metal",
        "test --workspace --benches",
    ] {
        assert_eq!(object(right), [""; 0], "{right}");
    }
    for wrong in [
        "test -p switcher",
        "test -p hw-tests --test nothing",
        "test --test proofs",
        "build -p minimal-host --features metal",
        "run --realease",
        "prove",
    ] {
        assert_eq!(object(wrong).len(), 1, "{wrong}");
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_xtask")).args(["tset", "--help"]).output().unwrap();
    assert!(!output.status.success());
}

#[test]
fn commands_are_found_where_documents_have_them() {
    let text = "Text with `BLESS=1 cargo test -p x` and `cargo\nrun`, `cargo`, `switcher prove`.\n\n\
        ```console\n$ cargo xtask test\nerror: `cargo no`\n```\n\n    cargo build    # why\n\n```text\n$ cargo no\n```\n";
    let found = commands(text);
    for command in [
        "BLESS=1 cargo test -p x",
        "cargo run",
        "switcher prove",
        "cargo xtask test",
        "cargo build",
    ] {
        assert!(found.iter().any(|it| it == command), "{command}: {found:?}");
    }
    assert!(!found.iter().any(|it| it == "$ cargo no" || it == "cargo"), "{found:?}");
}
