//! Tables that hide what they name: by how they are packed, by their type, or by what they count
//! from.

use gas::{assemble, process};
use switcher_prove::elf::{ReadError, read};

use super::{error, gas, linked, proved, target, with};

/// Linked to where kernels run, so that addresses fit into 32 bits.
fn high(source: &str) -> Vec<u8> {
    let args = ["-e", "switcher_enter_guest", "-Ttext=0xffffffff81000000"];
    process("ld", &args, &assemble(source, &[]))
}

#[track_caller]
fn unknown(data: &[u8], name: &str) {
    match error(data) {
        ReadError::MaybePatched { section, .. } => assert_eq!(section, name),
        other => panic!("{name}: {other}"),
    }
}

#[test]
fn tables_of_other_kernels_are_known_by_name() {
    for (name, entry) in [
        (".rodata.hotpatch", ".byte 1, 3\n.quad inside"),
        (".codepatch", ".reloc ., R_X86_64_32S, inside\n.long 0\n.short 3, 7"),
    ] {
        let source = with(&format!(".section {name}, \"a\"\n{entry}"));
        match error(&assemble(&source, &[])) {
            ReadError::Patched { section, .. } => assert_eq!(section, name),
            other => panic!("{name}: {other}"),
        }
        // A linker puts the one among other constants.
        let found = error(&high(&source));
        let is_refused =
            matches!(found, ReadError::Patched { .. } | ReadError::MaybePatched { .. });
        assert!(is_refused, "{name}: {found}");
    }
}

#[test]
fn addresses_that_only_the_loader_stores_are_found() {
    for (name, flags) in [("my_sites", "aw"), (".data", "aw"), ("my_sites", "awx")] {
        let source = with(&format!(".section {name}, \"{flags}\"\n.p2align 3\n.quad 0, inside"));
        for kind in ["-pie", "-shared"] {
            unknown(&linked(&source, &[kind, "-Bsymbolic"]), name);
        }
    }
    let source = with(".section __jump_table, \"aw\"\n.p2align 3\n.quad inside");
    let found = error(&linked(&source, &["-pie"]));
    assert!(matches!(found, ReadError::Patched { .. }), "{found}");
    let source = with(".data\n.quad switcher_enter_guest\n.quad entry_SYSCALL_64_switcher");
    proved(&linked(&source, &["-pie"]));
    proved(&linked(&source, &["-shared", "-Bsymbolic"]));
}

#[test]
fn a_packed_table_is_read_at_every_byte() {
    for entry in [
        ".byte 1, 3\n.quad inside",
        ".byte 1\n.quad inside\n.byte 1\n.quad inside",
        ".reloc ., R_X86_64_32S, inside\n.long 0\n.short 3, 7",
        ".byte 1\n.reloc ., R_X86_64_32S, inside\n.long 0",
    ] {
        for name in [".hotfix", ".data.mine", ".rodata.mine"] {
            let source = with(&format!(".section {name}, \"a\"\n.p2align 4\n{entry}"));
            unknown(&assemble(&source, &[]), name);
            let linked = high(&source);
            let found = error(&linked);
            assert!(matches!(found, ReadError::MaybePatched { .. }), "{name}, {entry}: {found}");
        }
    }
}

#[test]
fn among_very_many_words_one_that_is_an_address_is_said_to_be_chance() {
    // An odd place in the last of a mebibyte.
    let source = with(
        ".section .hotfix, \"a\"\n.p2align 4\n.skip 1 << 20, 0xFF\n.byte 1\n\
         .reloc ., R_X86_64_32S, inside\n.long 0",
    );
    let target = proved(&high(&source));
    let said = |part: &str| target.assumed.iter().any(|text| text.contains(part));
    assert!(said("by chance") && said("`.hotfix`"), "{:?}", target.assumed);
    // A small number where nothing is aligned.
    let source = with(".section .hotfix, \"a\"\n.p2align 4\n.byte 1, 2, 3\n.long inside - .");
    unknown(&assemble(&source, &[]), ".hotfix");
    let target = proved(&high(&source));
    let said = |part: &str| target.assumed.iter().any(|text| text.contains(part));
    assert!(said("by chance") && said("`.hotfix`"), "{:?}", target.assumed);
}

#[test]
fn a_linkers_table_is_one_by_what_leads_to_it() {
    // The types of strings, symbols, relocations, hashes, a dynamic section and a group.
    for kind in [2, 3, 4, 5, 6, 9, 11] {
        for flags in ["a", ""] {
            let source = with(&format!(".section .hotfix, \"{flags}\", @{kind:#x}\n.quad inside"));
            // As it would be with type PROGBITS, or not at all what it says.
            let found = error(&assemble(&source, &[]));
            let is_refused =
                matches!(found, ReadError::MaybePatched { .. } | ReadError::Malformed(_));
            assert!(is_refused, "{kind}: {found}");
        }
    }
    let strings = with(".section .hotfix, \"a\", @0x3\n.quad inside");
    unknown(&assemble(&strings, &[]), ".hotfix");
    unknown(&linked(&strings, &[]), ".hotfix");
    let strings = with(".section .hotfix, \"aw\", @0x3\n.quad inside");
    unknown(&linked(&strings, &["-shared", "-Bsymbolic"]), ".hotfix");
}

#[test]
fn a_place_that_somebody_counts_from_is_named_with_any_addend() {
    for (symbol, name) in [
        ("switcher_enter_guest + 0x10000020", ".hotfix"),
        (".text + 0x70000f43", ".hotfix"),
        ("inside - 0x100000", ".hotfix"),
        ("switcher_enter_guest + 0x10000020", ".data.mine"),
    ] {
        let source =
            with(&format!(".section {name}, \"aw\"\n.reloc ., R_X86_64_32, {symbol}\n.long 0, 7"));
        unknown(&assemble(&source, &[]), name);
    }
    let source =
        with(".section .codepatch, \"a\"\n.reloc ., R_X86_64_32, .text + 0x70000f43\n.long 0, 7");
    let found = error(&assemble(&source, &[]));
    assert!(matches!(found, ReadError::Patched { .. }), "{found}");
    // What is beside the switcher's code may be other code; that it is, is said.
    let other = "\t.text\n\t.p2align 12\nother:\tret\n\t.skip 64, 0xC3\n";
    let source = with(&format!("{other}\t.section my_operations, \"aw\"\n\t.quad other"));
    let target = proved(&assemble(&source, &[]));
    let [assumed] = target.assumed.as_slice() else { panic!("{:?}", target.assumed) };
    assert!(assumed.contains("`my_operations`") && assumed.contains("beside"), "{assumed}");
}

#[test]
fn an_entry_point_that_an_unknown_section_names_is_said() {
    for entry in [
        ".quad entry_SYSCALL_64_switcher, switcher_enter_guest",
        // Counted from the section's start, the second is a place in the code that nothing names.
        ".long entry_SYSCALL_64_switcher - ., switcher_return_from_guest - .",
    ] {
        let source = with(&format!(".section .fentry_hooks, \"a\"\n.p2align 3\n{entry}"));
        for data in [assemble(&source, &[]), linked(&source, &[])] {
            let address = read(&data).unwrap().symbols["entry_SYSCALL_64_switcher"];
            let base = read(&data).unwrap().base;
            let place = format!(".text+{:#x}", address - base);
            let target = proved(&data);
            let said = |text: &String| text.contains("`.fentry_hooks`") && text.contains(&place);
            assert!(target.assumed.iter().any(said), "{place}: {:?}", target.assumed);
        }
    }
}

#[test]
fn what_is_not_shown_is_counted() {
    let of = |name: &str, entry: &str| -> String {
        let section = |number| format!(".section {name}{number:02}, \"a\"\n{entry}\n");
        (0..20).map(section).collect()
    };
    let mut foreign = read(&assemble(&with(&of(".hot", ".quad inside")), &[])).unwrap();
    assert_eq!(foreign.unknown.len(), 20);
    foreign.assume_unpatched();
    let target = target(&foreign).unwrap();
    assert!(target.assumed.contains(&"and 4 more of the same".to_owned()), "{:?}", target.assumed);
    let calls = proved(&assemble(&with(&of(".hot", ".quad switcher_enter_guest")), &[]));
    assert!(calls.assumed.contains(&"and 4 more of the same".to_owned()), "{:?}", calls.assumed);
    let harmless = with(&of("__bug_table.", ".long inside - ., 0"));
    let harmless = proved(&assemble(&harmless, &[])).harmless;
    assert_eq!((harmless.len(), harmless[16].as_str()), (17, "and 4 more of the same"));
}

#[test]
fn numbers_of_two_bytes_and_in_data_are_said_too() {
    for more in [
        ".section .hotoffs, \"a\"\n.word inside - .text, 0x1234",
        ".section .hotoffs, \"a\"\n.byte 7\n.word inside - .text",
        ".section .hotoffs, \"a\"\n.byte 7\n.long inside - .text",
        ".section .rodata.hotoffs, \"a\"\n.word inside - .text",
    ] {
        let target = proved(&assemble(&with(more), &[]));
        let [assumed] = target.assumed.as_slice() else { panic!("{more}: {:?}", target.assumed) };
        assert!(assumed.contains("numbers in `") && assumed.contains("hotoffs`"), "{assumed}");
    }
}
