//! Linux's tables also change what is in front of the places that they name.

use super::{
    Choice, KERNEL, ReadError, alternative, at_exit, elf, gas, linked, said, verdicts, verdicts_of,
};

const VARIANT: &str = "intel-4level";
/// What comes after the exit.
const AFTER_EXIT: &str = "\t.size\tswitcher_enter_guest, . - switcher_enter_guest\n";

/// The kernel with another function after the exit, `padding` in between, and a table that names
/// it.
fn before(padding: &str, table: &str) -> Vec<u8> {
    // What comes after it is too far for what a table changes from there on.
    let other = format!(
        "{AFTER_EXIT}{padding}\nother_function:\tendbr64\n\tret\n\t.skip 80, 0xCC\n{table}\n"
    );
    gas::assemble(&gas::replaced(KERNEL, &[(AFTER_EXIT, &other)]), &[])
}

fn table(name: &str, entry: &str) -> String {
    format!("\t.pushsection {name}, \"a\"\n\t{entry}\n\t.popsection")
}

#[track_caller]
fn refused(file: &[u8], choices: &[(Choice, bool)], name: &str) -> String {
    match elf::images(file, said(VARIANT, choices)) {
        Err(error @ ReadError::Before { .. }) if error.to_string().contains(name) => {
            error.to_string()
        }
        other => panic!("{name}: {other:?}"),
    }
}

#[track_caller]
fn proved(file: &[u8], choices: &[(Choice, bool)]) -> String {
    match &verdicts_of(file, VARIANT, choices)[..] {
        [(choices, None)] => choices.clone(),
        other => panic!("{other:?}"),
    }
}

/// A hash is there in a kernel with FineIBT, and here it is an exit of the switcher.
#[test]
fn code_in_front_of_what_a_table_names_may_be_changed() {
    let off = [(Choice::FineIbt, false)];
    for (name, entry, is_fine_ibt) in [
        (".ibt_endbr_seal", ".long other_function - .", true),
        (".retpoline_sites", ".long other_function - .", true),
        (".cfi_sites", ".long other_function - .", false),
        ("__mcount_loc", ".quad other_function", false),
        ("__patchable_function_entries", ".quad other_function", false),
    ] {
        let own = table(name, entry);
        let (close, far) = (before("", &own), before(".skip 20, 0xCC", &own));
        // Of addresses so close to the code, some of the bytes are distances to it.
        let files = |object: &[u8]| match entry.starts_with(".long") {
            true => vec![object.to_vec(), linked(object)],
            false => vec![object.to_vec()],
        };
        for file in &files(&close) {
            let message = refused(file, &[], name);
            for part in ["text+0x", "is reached", "INT3", "out of the table"] {
                assert!(message.contains(part), "{part}: {message}");
            }
            // Whoever has no such kernel says so, and the verdict does, too.
            assert_eq!(message.contains("--boot fineibt=off"), is_fine_ibt, "{message}");
            if is_fine_ibt {
                assert_eq!(proved(file, &off), "fineibt=off", "{name}");
            } else {
                refused(file, &off, name);
            }
        }
        // Where it is far enough, nothing needs to be said, and nothing is.
        for file in &files(&far) {
            assert_eq!(proved(file, &[]), "", "{name}");
        }
    }
}

/// What ends in front of the last 16 bytes is out of reach, to the byte, and so are bytes that
/// nothing reaches.
#[test]
fn what_is_out_of_reach_is_left_alone() {
    let seal = table(".ibt_endbr_seal", ".long other_function - .");
    // A trap comes after the return of the exit, and belongs to it.
    assert_eq!(proved(&before(".skip 16, 0xCC", &seal), &[]), "");
    refused(&before(".skip 15, 0xCC", &seal), &[], ".ibt_endbr_seal");
    assert_eq!(proved(&before(".skip 16, 0x90", &seal), &[]), "");
}

/// Where functions are aligned to 64 bytes, their hash is as far in front.
#[test]
fn a_hash_may_be_farther_in_front() {
    let exit = "\txor\t%edi, %edi\n\t.endif\n\tpop\t%r15\n\tpop\t%r14\n\tpop\t%r13\n\tpop\t%r12\n\tpop\t%rbx\n";
    let source = |operation: &str, by: u64| {
        let other = format!(
            "{AFTER_EXIT}\t.skip {by} - (. - hash), 0xCC\nother_function:\tendbr64\n\tret\n\tint3\n{}\n",
            table(".ibt_endbr_seal", ".long other_function - .")
        );
        let hash = format!("hash:\t{operation}\n{exit}");
        gas::replaced(KERNEL, &[(AFTER_EXIT, &other), (exit, &hash)])
    };
    for by in [32, 64] {
        let object = gas::assemble(&source("mov\t$1, %edi", by), &[]);
        refused(&object, &[], ".ibt_endbr_seal");
        assert_eq!(proved(&object, &[(Choice::FineIbt, false)]), "fineibt=off");
    }
    // No hash begins like that, and none is there.
    assert_eq!(proved(&gas::assemble(&source("or\t$1, %edi", 64), &[]), &[]), "");
    assert_eq!(proved(&gas::assemble(&source("mov\t$1, %edi", 48), &[]), &[]), "");
}

/// A whole kernel without FineIBT has nothing of it.
#[test]
fn a_linked_kernel_shows_that_it_has_no_fine_ibt() {
    let seal = |more: &str| {
        let own = table(
            ".ibt_endbr_seal",
            "\t.globl __ibt_endbr_seal\n__ibt_endbr_seal:\t.long other_function - .",
        );
        before("", &format!("{own}\n{more}"))
    };
    // An object does not show what it is linked with.
    refused(&seal(""), &[], ".ibt_endbr_seal");
    let all = verdicts(&linked(&seal("")), VARIANT);
    assert_eq!(all, [(String::new(), None)]);
    // A hash of a function, and a table that only such a kernel has.
    let function = "\t.pushsection .text\n__cfi_some:\tnop\n\t.popsection";
    refused(&linked(&seal(function)), &[], ".ibt_endbr_seal");
    let sites = table(".cfi_sites", ".long 0x7FFFFFFF");
    let message = refused(&linked(&seal(&sites)), &[(Choice::FineIbt, false)], ".ibt_endbr_seal");
    assert!(!message.contains("--boot"), "{message}");
}

/// What is put somewhere may be changed before, where it lies, if a table names it there.
#[test]
fn what_is_put_somewhere_may_be_changed_where_it_lies() {
    let own = alternative("", "cld; cld; 999:\tcld", "9 * 32 + 20", 0);
    let other = "\t.pushsection .altinstr_replacement, \"ax\"\n\t.skip 80, 0xCC\n998:\tret\n\t.popsection\n";
    for (name, entry) in [
        (".call_sites", ".long 999b - ."),
        (".static_call_sites", ".long 999b - ., 0"),
        (".smp_locks", ".long 999b - ."),
        ("__mcount_loc", ".quad 999b"),
        (".parainstructions", ".quad 999b\n\t.byte 1, 1"),
    ] {
        let own = |entry: &str| at_exit(&format!("{own}{other}{}\n", table(name, entry)));
        let object = own(entry);
        let files = match entry.starts_with(".long") {
            true => vec![linked(&object), object],
            false => vec![object],
        };
        for file in files {
            let found = elf::images(&file, said(VARIANT, &[]));
            let is_refused =
                matches!(&found, Err(ReadError::Patched { section, .. }) if section == name);
            assert!(is_refused, "{name}: {found:?}");
        }
        // What is beside it is put nowhere.
        let beside = own(&entry.replace("999b", "998b"));
        let all = verdicts(&beside, VARIANT);
        assert!(all.len() == 2 && all.iter().all(|(_, broken)| broken.is_none()), "{all:?}");
    }
}
