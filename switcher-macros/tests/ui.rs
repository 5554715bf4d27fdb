//! What the macros reject, and with which words.
//!
//! `TRYBUILD=overwrite cargo test -p switcher-macros --test ui` accepts changed messages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn rejected_input_is_told_why() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/accepted/*.rs");
    cases.compile_fail("tests/ui/*.rs");
    // The cases run when this is dropped.
    drop(cases);

    // trybuild starts from the inputs, so a message whose input is gone would stay for good.
    assert_eq!(stems("rs"), stems("stderr"), "inputs on the left, messages on the right");
}

/// The files in `tests/ui` with this extension, by name without extension.
fn stems(extension: &str) -> BTreeSet<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.with_extension(""))
        .collect()
}
