//! Sections of one name are one table, as a linker makes it of them.

use super::{Choice, KERNEL, ReadError, at_exit, elf, gas, said, verdicts, verdicts_of};

const VARIANT: &str = "intel-4level";
/// The load of the host's root.
const ROOT: &str = "\tv\tmov, HOST_CR3, %rax\n\tmov\t%rax, %cr3\n1:";

/// A section of this name, beside others.
fn section(name: &str, number: u32, flags: &str, entry: &str) -> String {
    format!(
        "\t.pushsection {name}, \"{flags}\", @progbits, unique, {number}\n{entry}\t.popsection\n"
    )
}

/// An entry about three bytes, and one about six, of which the last three load the root.
fn about_root(sections: [u32; 2], entries: [&str; 2]) -> Vec<u8> {
    let [one, two] = [0, 1].map(|at| section(".altinstructions", sections[at], "a", entries[at]));
    let code = format!(
        "\tv\tmov, HOST_CR3, %rax\n881:\tnopl\t(%rax)\n\tmov\t%rax, %cr3\n1:\n{one}{two}\
         \t.pushsection .altinstr_replacement, \"ax\"\n883:\tnopl\t(%rax)\n\
         893:\tnopl\t(%rax)\n\tmov\t%rax, %cr3\n\t.popsection\n"
    );
    gas::assemble(&gas::replaced(KERNEL, &[(ROOT, &code)]), &[])
}

const SHORT: &str = "\t.long 881b - ., 883f - .\n\t.short 7 * 32 + 12, 0\n\t.byte 3, 3\n";
const LONG: &str = "\t.long 881b - ., 893f - .\n\t.short 7 * 32 + 11, 0\n\t.byte 6, 6\n";

/// Alone, each says the same as the code. Together, the longer one says how much there is, and NOPs
/// come after the shorter one, over the load of the root.
#[test]
fn entries_of_two_sections_are_about_one_place() {
    let later = [(Choice::Since6_10, true)];
    for sections in [[1, 2], [1, 1]] {
        let object = about_root(sections, [SHORT, LONG]);
        let all = verdicts_of(&object, VARIANT, &later);
        let broken: Vec<_> = all.iter().filter(|(_, broken)| broken.is_some()).collect();
        assert_eq!((all.len(), broken.len()), (2, 1), "{sections:?}: {all:?}");
        let error = elf::images(&object, said(VARIANT, &[])).unwrap_err();
        assert!(error.to_string().contains("several lengths"), "{error}");
    }
    // Of one length, they are right, and it makes no difference which is chosen.
    let equal = [SHORT, &SHORT.replace("7 * 32 + 12", "7 * 32 + 11")];
    assert_eq!(verdicts(&about_root([1, 2], equal), VARIANT), [(String::new(), None)]);
}

#[test]
fn entries_of_two_sizes_are_no_table() {
    let old = LONG.replace("7 * 32 + 11, 0", "7 * 32 + 11");
    let error = elf::images(&about_root([1, 2], [SHORT, &old]), said(VARIANT, &[])).unwrap_err();
    assert!(matches!(&error, ReadError::Patched { section, .. } if section == ".altinstructions"));
}

/// What a linker puts between two sections is no entry, and what it may leave out is not known.
#[test]
fn sections_that_need_not_follow_each_other_are_no_table() {
    let equal = SHORT.replace("7 * 32 + 12", "7 * 32 + 11");
    let aligned = format!("\t.balign 8\n{equal}");
    let error = elf::images(&about_root([1, 2], [SHORT, &aligned]), said(VARIANT, &[]));
    assert!(matches!(error, Err(ReadError::Patched { .. })), "{error:?}");
    let code = format!(
        "881:\tnopl\t(%rax)\n{}\t.pushsection .altinstructions, \"aG\", @progbits, some, comdat\n\
         {equal}\t.popsection\n\t.pushsection .altinstr_replacement, \"ax\"\n\
         883:\tnopl\t(%rax)\n\t.popsection\n",
        section(".altinstructions", 1, "a", SHORT)
    );
    let error = elf::images(&at_exit(&code), said(VARIANT, &[]));
    assert!(matches!(error, Err(ReadError::Patched { .. })), "{error:?}");
}

/// Static branches of one key go together if it stays, wherever their entries are.
#[test]
fn a_key_is_one_in_all_sections() {
    let branch = |number: u32, key: &str, skipped: &str| {
        let (site, end) = (990 + 2 * number, 991 + 2 * number);
        let entry = format!("\t.long {site}b - ., {end}f - .\n\t.quad {key} - .\n");
        let table = section("__jump_table", number + 1, "aw", &entry);
        format!("{site}:\t.byte 0x0F, 0x1F, 0x44, 0x00, 0x00\n{table}\t{skipped}\n{end}:\n")
    };
    let judged = |second: &str| {
        let keys =
            "\t.pushsection .data\n\t.balign 8\none:\t.quad 0\nother:\t.quad 0\n\t.popsection\n";
        let up = branch(0, "one", "addq\t$8, %rsp");
        let down = branch(1, second, "subq\t$8, %rsp");
        let stays = [(Choice::Key("one".into()), true)];
        let all = verdicts_of(&at_exit(&(keys.to_owned() + &up + &down)), VARIANT, &stays);
        (all.len(), all.iter().filter(|(_, broken)| broken.is_some()).count())
    };
    assert_eq!(judged("one"), (1, 0));
    assert_eq!(judged("other"), (2, 1));
}

/// The same for returns and landing pads, each entry of which stands for itself.
#[test]
fn returns_of_two_sections_are_all_read() {
    let first = "\t.pushsection .return_sites, \"a\"\n\t.long\t771b - .\n\t.popsection\n";
    let other = "\t.pushsection .return_sites, \"a\", @progbits, unique, 7\n\t.long\t771b - .\n\t.popsection\n";
    let more = "\t.pushsection .text, \"ax\"\n771:\tjmp\t__x86_return_thunk\n\t.pushsection .return_sites, \"a\"\n\
                \t.long 771b - .\n\t.popsection\n\t.popsection\n";
    let source = gas::replaced(KERNEL, &[(first, other)]) + more;
    let all = verdicts(&gas::assemble(&source, &[("THUNKS", 1)]), VARIANT);
    assert_eq!(all, [("return-thunk=off".to_owned(), None)]);
}
