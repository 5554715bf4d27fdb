//! How much of the code an entry of a table changes, what a note says, and which sections say
//! nothing of it at all.

use super::{SWITCHER, assemble, error, linked, proved, replaced};
use switcher_prove::elf::{ReadError, read};

/// The switcher, with `by` bytes of other code in front of it, and a table that may name them.
fn front(by: usize, label: &str, table: &str) -> String {
    let skip = 0x2000 - by;
    let other =
        format!("\t.text\n\t.p2align 12\n\t.skip {skip}, 0x90\n{label}\t.skip {by}, 0x90\n");
    let (head, rest) = SWITCHER.split_once("\t.text\n").unwrap();
    format!("{head}{other}{rest}\n{table}\n")
}

fn is_patched(found: &ReadError, name: &str) -> bool {
    matches!(found, ReadError::Patched { section, .. } if section == name)
}

#[test]
fn entries_change_as_much_as_they_can_say() {
    for (name, bytes, entry) in [
        // Xen's, of which two lengths count together.
        (".altinstructions", 24, ".long before - ., 0\n\t.short 1\n\t.byte 12, 12, 12, 0"),
        (".altinstructions", 510, ".long before - ., 0\n\t.short 1\n\t.byte 255, 0, 255, 0"),
        // OpenBSD's, in both widths of the address, whose length has two bytes.
        (".codepatch", 0x105, ".quad before\n\t.short 0x105, 1\n\t.long 0"),
        (".codepatch", 0x105, ".reloc ., R_X86_64_32S, before\n\t.long 0\n\t.short 0x105, 1"),
        // By two names, of which the longer one counts.
        (".static_call_sites", 6, ".long before - ., 0"),
    ] {
        let source = |by| front(by, "before:", &format!("\t.section {name}, \"a\"\n\t{entry}"));
        let found = error(&assemble(&source(bytes - 1), &[]));
        assert!(is_patched(&found, name), "{name}, {bytes}: {found}");
        proved(&assemble(&source(bytes), &[]));
        // The address in 32 bits does not fit where programs are linked to, for one of them.
        if !entry.contains(".reloc") {
            let found = error(&linked(&source(bytes - 1), &[]));
            assert!(is_patched(&found, name), "{name}, {bytes}, linked: {found}");
            proved(&linked(&source(bytes), &[]));
        }
    }
}

#[test]
fn a_trampoline_has_eight_bytes() {
    for (by, is_refused) in [(3, true), (7, true), (8, false)] {
        let source = front(by, "\t.globl __SCT__foo\n__SCT__foo:", "");
        for data in [assemble(&source, &[]), linked(&source, &[])] {
            match read(&data) {
                Err(found) => {
                    assert!(
                        is_refused && found.to_string().contains("`__SCT__foo`"),
                        "{by}: {found}"
                    );
                }
                Ok(_) => {
                    assert!(!is_refused, "{by}");
                    proved(&data);
                }
            }
        }
    }
}

fn note(section: &str, owner: &str, kind: u32, text: &str) -> String {
    format!(
        "\t.section {section}, \"a\", @note\n\t.p2align 2\n\t.long 2f - 1f, 4f - 3f, {kind}\n\
         1:\t.asciz \"{owner}\"\n2:\t.p2align 2\n3:\t{text}\n4:\t.p2align 2\n"
    )
}

#[test]
fn a_page_of_hypercalls_lies_over_the_code() {
    // Whatever section the note is in, and whatever other notes are there.
    for section in [".note.Xen", ".notes", ".note.mine"] {
        for others in [String::new(), note(section, "Xen", 6, ".asciz \"linux\"")] {
            let table = format!("{others}{}", note(section, "Xen", 2, ".quad before"));
            for by in [20, 0xFFF] {
                for data in [
                    assemble(&front(by, "before:", &table), &[]),
                    linked(&front(by, "before:", &table), &[]),
                ] {
                    let found = error(&data);
                    assert!(is_patched(&found, section), "{section}, {by}: {found}");
                }
            }
            proved(&assemble(&front(0x1000, "before:", &table), &[]));
            proved(&linked(&front(0x1000, "before:", &table), &[]));
        }
    }
    // A note of another type names code, and nobody knows what for.
    let table = note(".note.Xen", "Xen", 7, ".quad before + 24");
    let found = error(&assemble(&front(20, "before:", &table), &[]));
    assert!(matches!(found, ReadError::MaybePatched { .. }), "{found}");
}

#[test]
fn notes_of_known_form_say_nothing_of_the_code() {
    // Numbers that would be places in the code, by chance.
    let id = ".long 0x11, 0x22, 0x33, 0x44, 0x123";
    for (section, owner, kind, text) in [
        (".note.gnu.build-id", "GNU", 3, id),
        (".note.ABI-tag", "GNU", 1, ".long 0, 3, 2, 0"),
        (".note.gnu.property", "GNU", 5, ".long 0xc0000002, 4, 0x11, 0"),
    ] {
        let source = format!("{SWITCHER}\n{}", note(section, owner, kind, text));
        assert!(proved(&assemble(&source, &[])).assumed.is_empty(), "{section}");
        assert_eq!(proved(&linked(&source, &[])).assumed.len(), 1, "{section}");
        // Of another form, or another owner's, they may say anything.
        for (owner, kind) in [("GNU", 17), ("ABC", kind)] {
            let source = format!(
                "{SWITCHER}\n{}",
                note(section, owner, kind, &format!(".long 0x26\n\t{text}"))
            );
            let target = proved(&assemble(&source, &[]));
            assert_eq!(target.assumed.len(), 1, "{section}, {owner}: {:?}", target.assumed);
        }
    }
    // What is relocated is no build ID.
    let inside = "\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n";
    let source = replaced(SWITCHER, &[(inside, &format!("inside:{inside}"))]);
    let table = note(".note.gnu.build-id", "GNU", 3, ".long inside - .");
    let found = error(&assemble(&format!("{source}\n{table}"), &[]));
    assert!(matches!(found, ReadError::MaybePatched { .. }), "{found}");
}

#[test]
fn what_lies_beside_the_code_is_named_linked_or_not() {
    for name in [".its_sites", ".kpatch.sites", "mine"] {
        let source = front(3, "before:", &format!("\t.section {name}, \"a\"\n\t.long before - ."));
        for data in [
            assemble(&source, &[]),
            linked(&source, &[]),
            linked(&source, &["-pie"]),
            linked(&source, &["-shared", "-Bsymbolic"]),
        ] {
            let target = proved(&data);
            let is_said = |text: &String| text.contains(name) && text.contains("beside");
            assert!(target.assumed.iter().any(is_said), "{name}: {:?}", target.assumed);
        }
        // What the loader stores, too.
        let source = format!("\t.section {name}, \"aw\"\n\t.p2align 3\n\t.quad before");
        let target = proved(&linked(&front(3, "before:", &source), &["-pie"]));
        let is_said = |text: &String| text.contains(name) && text.contains("beside");
        assert!(target.assumed.iter().any(is_said), "{name}: {:?}", target.assumed);
    }
    // Other code is nobody's concern.
    let other =
        "\t.section .text.other, \"ax\"\nother:\tret\n\t.section mine, \"a\"\n\t.long other - .";
    let target = proved(&assemble(&format!("{SWITCHER}\n{other}\n"), &[]));
    assert!(target.assumed.is_empty(), "{:?}", target.assumed);
}

#[test]
fn tables_of_compilers_and_of_xen_change_nothing() {
    let inside = "\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n";
    let source = replaced(SWITCHER, &[(inside, &format!("inside:{inside}"))]);
    for name in [
        ".pseudo_probe",
        ".callgraph",
        ".bug_frames.0",
        ".bug_frames.3",
        ".ex_table",
        "__llvm_faultmaps",
    ] {
        let source = format!("{source}\n\t.section {name}, \"a\"\n\t.long inside - ., 0\n");
        for data in [assemble(&source, &[]), linked(&source, &[])] {
            let target = proved(&data);
            assert!(target.harmless.iter().any(|text| text.contains(name)), "{name}");
        }
    }
}

#[test]
fn numbers_in_what_may_lie_anywhere_are_no_addresses() {
    // Other code, at the address that an immediate of the switcher's has as a number.
    let exit = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    let source = replaced(SWITCHER, &[(exit, &format!("\tmovl\t$0x10100, %ecx\n{exit}"))]);
    let other = "\t.text\n\t.org 0x10100 - 0x1000\n\tcall *%rax\n\tmovl other, %eax\n\t.data\nother:\t.long 1\n";
    let source = format!("{source}\n{}", other.replace("other, %eax", "other(%rip), %eax"));
    let linked = super::process(
        "ld",
        &["-pie", "-e", "0", "-Ttext=0x1000", "--no-dynamic-linker"],
        &assemble(&source, &[]),
    );
    let kept: u64 = read(&linked).unwrap().pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(kept < 0x1000, "{kept:#x}");
    proved(&linked);
    // In other code, what does nothing is no address, linked low.
    let nop =
        "\t.section mine, \"ax\"\n\t.p2align 4\n\tret\n\t.skip 3, 0x90\n\tnopl\t0(%rax)\n\tret\n";
    let far = SWITCHER.replacen("\t.text\n", "\t.text\n\t.skip 0x1e00, 0x90\n", 1);
    let args = ["-e", "switcher_enter_guest", "-Ttext=0x400000"];
    proved(&super::process("ld", &args, &assemble(&format!("{far}\n{nop}"), &[])));
}
