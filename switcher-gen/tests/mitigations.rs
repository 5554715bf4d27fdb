//! The table of faults is what MITIGATIONS.md says it is. `BLESS=1` accepts what differs.

use std::path::Path;
use std::{env, fs};

use switcher_gen::mitigations::Fault;

#[test]
fn the_document_is_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("MITIGATIONS.md");
    let now = Fault::document();
    if env::var_os("BLESS").is_some() {
        fs::write(&path, &now).unwrap();
    }
    let held = fs::read_to_string(&path).unwrap_or_default();
    let differing = now.lines().zip(held.lines()).find(|(now, held)| now != held);
    assert!(
        held == now,
        "MITIGATIONS.md is not the table any more ({} lines, {} in the table), first at \
         {differing:?}; BLESS=1 cargo test -p switcher-gen --test mitigations accepts that",
        held.lines().count(),
        now.lines().count(),
    );
}
