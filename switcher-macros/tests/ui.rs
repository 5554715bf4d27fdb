//! What the macros reject, and with which words.
//!
//! `TRYBUILD=overwrite cargo test -p switcher-macros --test ui` accepts changed messages.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

#[test]
fn rejected_input_is_told_why() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/ui/accepted/*.rs");
    cases.compile_fail("tests/ui/*.rs");
}

/// trybuild looks at the inputs only: the message of an input that is gone would stay for good.
#[test]
fn no_message_is_without_its_input() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some(OsStr::new("stderr")) {
            assert!(path.with_extension("rs").exists(), "{} has no input", path.display());
        }
    }
}
