//! A table is no code: nothing is put elsewhere from there, and none of its words is an operand.

use super::{ReadError, alternative, at_exit, elf, linked, said, verdicts};

const VARIANT: &str = "intel-4level";
/// A place in the reached code that may hold a call.
const SITE: &str = "71:\tnopl\t0(%rax, %rax)\n";

/// The kernel with a table of this name that names its code, and somebody's claim that the table is
/// put elsewhere.
fn claimed(name: &str, flags: &str, entry: &str) -> String {
    format!(
        "{SITE}\t.pushsection {name}, \"{flags}\"\n772:\t{entry}\n773:\n\t.popsection\n\
         \t.pushsection .text, \"ax\"\n774:\t.skip 32, 0x90\n\tret\n\tint3\n\t.popsection\n\
         \t.pushsection .altinstructions, \"a\"\n\t.long 774b - ., 772b - .\n\
         \t.short 7 * 32 + 11, 0\n\t.byte 773b - 772b, 773b - 772b\n\t.popsection\n"
    )
}

/// The same with words that would be a call of another routine, and of the code.
fn called(name: &str, flags: &str) -> String {
    format!(
        "{SITE}\t.pushsection .text, \"ax\"\n774:\tret\n\tint3\n\t.popsection\n\
         \t.pushsection {name}, \"{flags}\"\n\t.reloc ., R_X86_64_PC32, 774b\n\
         \t.byte 0, 0, 0, 0xE8\n\t.reloc ., R_X86_64_PC32, 71b\n\t.byte 0, 0, 0, 0\n\
         \t.popsection\n"
    )
}

/// The object with relocations of a section that have no addends (SHT_REL), and nothing in their
/// place.
fn without_addends(object: &[u8], section: &str) -> Vec<u8> {
    const REL: u8 = 9;
    let mut object = object.to_vec();
    let number = |object: &[u8], at: usize, bytes: usize| {
        object[at..at + bytes].iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte))
    };
    let (headers, names) = (number(&object, 0x28, 8), number(&object, 0x3E, 2));
    let names = number(&object, headers + names * 64 + 0x18, 8);
    let name = format!(".rela{section}\0");
    let header = (0..number(&object, 0x3C, 2)).map(|of| headers + of * 64).find(|header| {
        let own = names + number(&object, *header, 4);
        object[own..].starts_with(name.as_bytes())
    });
    let header = header.unwrap();
    let (start, size) = (number(&object, header + 0x18, 8), number(&object, header + 0x20, 8));
    for (entry, raw) in (0..size / 24).map(|entry| (entry, start + entry * 24)) {
        object.copy_within(raw..raw + 16, start + entry * 16);
    }
    object[header + 4] = REL;
    object[header + 0x20..header + 0x28].copy_from_slice(&(size / 24 * 16).to_le_bytes());
    object[header + 0x38] = 16;
    object
}

#[track_caller]
fn refused(file: &[u8]) -> ReadError {
    match elf::images(file, said(VARIANT, &[])) {
        Err(error) => error,
        Ok(_) => panic!("taken"),
    }
}

#[test]
fn a_table_that_is_marked_as_code_is_none() {
    for (name, entry) in [
        (".call_sites", ".long 71b - ."),
        (".static_call_sites", ".long 71b - ., 0"),
        (".smp_locks", ".long 71b - ."),
        ("__mcount_loc", ".quad 71b"),
        ("__patchable_function_entries", ".quad 71b"),
        (".retpoline_sites", ".long 71b - ."),
        (".return_sites", ".long 71b - ."),
        (".cfi_sites", ".long 71b - ."),
        (".ibt_endbr_seal", ".long 71b - ."),
        ("__jump_table", ".long 71b - ., 71b - .\n\t.quad 0"),
        (".parainstructions", ".quad 71b\n\t.byte 1, 5\n\t.zero 6"),
        (".init.altinstructions", ".long 71b - ., 71b - .\n\t.short 1, 0\n\t.byte 5, 5"),
    ] {
        for code in [claimed(name, "ax", entry), called(name, "ax")] {
            let object = at_exit(&code);
            for file in [&object, &linked(&object)] {
                let error = refused(file);
                assert!(matches!(error, ReadError::Table(_)), "{name}: {error}");
                for part in [name, "marked executable", "as data"] {
                    assert!(error.to_string().contains(part), "{part}: {error}");
                }
            }
        }
        // As data, it says what it says, whoever claims it: of these, what is done is known.
        if [".return_sites", ".ibt_endbr_seal", "__jump_table"].contains(&name) {
            continue;
        }
        let error = refused(&at_exit(&claimed(name, "a", entry)));
        assert!(!matches!(error, ReadError::Table(_)), "{name}: {error}");
    }
    // What other code has there is put elsewhere.
    let right = at_exit(&alternative("", "clac", "9 * 32 + 20", 0));
    assert!(verdicts(&right, VARIANT).iter().all(|(_, broken)| broken.is_none()));
}

/// A relocation without an addend has it in the table.
#[test]
fn a_table_says_what_it_adds_where_it_is_looked_for() {
    let own = |section: &str, entry: &str| {
        at_exit(&format!("{SITE}\t.pushsection {section}, \"a\"\n\t{entry}\n\t.popsection\n"))
    };
    let alternatives = at_exit(&alternative("", "clac", "9 * 32 + 20", 0));
    for (name, object) in [
        (".altinstructions", alternatives),
        (".smp_locks", own(".smp_locks", ".long switcher_enter_guest - .")),
        ("mine", own("mine", ".long switcher_enter_guest - .")),
    ] {
        let error = refused(&without_addends(&object, name));
        let text = error.to_string();
        assert!(text.contains("RELA") && text.contains(name), "{name}: {error}");
    }
}
