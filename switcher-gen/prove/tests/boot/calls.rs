//! Counting calls changes what is in front of the routines that named calls lead to.

use super::{Choice, ReadError, TableError, at_exit, elf, linked, said, verdicts_of};

const VARIANT: &str = "intel-4level";

/// Reached code with this in front of it, and a call that is not reached and that the table names.
fn called(front: &str) -> Vec<u8> {
    at_exit(&format!(
        "{front}\n997:\n\t.pushsection .text, \"ax\"\n996:\tcall 997b\n\tret\n\tint3\n\
         \t.skip 64, 0xCC\n\t.popsection\n\
         \t.pushsection .call_sites, \"a\"\n\t.long 996b - .\n\t.popsection\n"
    ))
}

#[track_caller]
fn proved(file: &[u8], choices: &[(Choice, bool)], expected: &str) {
    assert_eq!(verdicts_of(file, VARIANT, choices), [(expected.to_owned(), None)]);
}

#[test]
fn nops_in_front_of_what_a_named_call_leads_to_may_be_changed() {
    let off = [(Choice::CallDepth, false)];
    for front in ["\t.skip 10, 0x90", "\tnopl\t0(%rax, %rax)\n\tnopl\t0(%rax, %rax)"] {
        let object = called(front);
        for file in [&object, &linked(&object)] {
            let error = elf::images(file, said(VARIANT, &[])).unwrap_err();
            assert!(matches!(error, ReadError::Table(TableError::Padding { .. })), "{error}");
            for part in [".call_sites", "INT3", "--boot call-depth=off"] {
                assert!(error.to_string().contains(part), "{part}: {error}");
            }
            proved(file, &off, "call-depth=off");
        }
    }
    // What is no NOP is left as it is, and then nothing needs to be said.
    for front in ["\tcld", "\tjmp 997f\n\tint3"] {
        let object = called(front);
        for file in [&object, &linked(&object)] {
            proved(file, &[], "");
        }
    }
}

/// A call has five bytes, and no more are changed.
#[test]
fn what_comes_after_a_named_call_is_not_changed() {
    let behind = |bytes: usize| {
        at_exit(&format!(
            "\tjmp 996f\n995:\tcall 996f\n\t.skip {bytes}, 0xCC\n996:\n\
             \t.pushsection .call_sites, \"a\"\n\t.long 995b - .\n\t.popsection\n"
        ))
    };
    let object = behind(2);
    for file in [&object, &linked(&object)] {
        proved(file, &[], "");
    }
}

#[test]
fn a_table_of_calls_that_cannot_be_read_is_refused() {
    let table = "\t.pushsection .call_sites, \"a\"\n\t.byte 0, 0, 0\n\t.popsection\n";
    let error = elf::images(&at_exit(table), said(VARIANT, &[])).unwrap_err();
    assert!(matches!(error, ReadError::Table(TableError::Unreadable { .. })), "{error}");
}
