//! COVERAGE.md is what the cases and the engines say. `BLESS=1` writes it anew.

use std::env;
use std::fs;

use hw_tests::{coverage, workspace};

#[test]
fn the_coverage_matrix_is_what_cases_and_engines_say() {
    let path = workspace::root().join("hw-tests/COVERAGE.md");
    let is = coverage::document().unwrap();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &is).unwrap();
    }
    let said = fs::read_to_string(&path).unwrap();
    let differing = said.lines().zip(is.lines()).find(|(said, is)| said != is);
    assert!(
        said == is,
        "hw-tests/COVERAGE.md is out of date; `BLESS=1 cargo test -p hw-tests --test coverage` \
         writes it anew. The first difference: {differing:#?}"
    );
}
