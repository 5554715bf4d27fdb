//! What is said of a file that cannot be judged: the right thing first, with the way out, and
//! nothing that the file itself wants to be said.

use super::{SWITCHER, assemble, error, linked, proved, replaced};
use switcher_prove::elf::{ReadError, read};

/// A place in the code that has a name.
fn with_inside(more: &str) -> String {
    let inside = "\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n";
    format!("{}\n{more}\n", replaced(SWITCHER, &[(inside, &format!("inside:{inside}"))]))
}

#[test]
fn of_an_unrelated_file_it_is_said_that_no_routine_is_there() {
    let other = "\t.globl other\nother:\tcall *%rax\n\tret\n";
    let more = [
        // Each of these alone is a reason to refuse a switcher.
        "\t.section .altinstructions, \"a\"\n\t.long other - ., 0, 0\n\t.byte 9, 9, 0\n",
        "\t.section mine, \"a\"\n\t.long other - .\n",
        "\t.section .llvmbc, \"e\"\n\t.byte 1\n",
        "\t.section .init.text, \"ax\"\n\tret\n",
        "\t.section .big, \"ax\"\n\t.skip 17 << 20, 0x90\n",
    ];
    for more in more {
        let source = format!("{other}{more}");
        for data in [
            assemble(&source, &[]),
            super::process("ld", &["-e", "other"], &assemble(&source, &[])),
        ] {
            match error(&data) {
                ReadError::NoSymbol { name, known } => {
                    assert_eq!(name, "switcher_enter_guest", "{more}");
                    assert!(known.contains(&"other".to_owned()), "{more}: {known:?}");
                }
                found => panic!("{more}: {found}"),
            }
        }
    }
    // If one is missing, it is named, and the others are shown.
    let source = SWITCHER.replace("switcher_return_from_guest", "switcher_return_from_geust");
    let source = format!(
        "{source}\n\t.section .altinstructions, \"a\"\n\t.long switcher_enter_guest - ., 0, 0\n"
    );
    let message = error(&assemble(&source, &[])).to_string();
    assert!(message.starts_with("no code is called `switcher_return_from_guest`"), "{message}");
    assert!(message.contains("`switcher_return_from_geust`"), "{message}");
}

#[test]
fn no_name_in_a_file_says_anything_to_a_terminal() {
    let said = "\x1b[2K\r\u{202e}\u{9b}8m proved";
    let placeholder = "Q".repeat(said.len());
    let put = |data: &[u8]| {
        let mut data = data.to_vec();
        let mut at = 0;
        while let Some(by) =
            data[at..].windows(said.len()).position(|bytes| bytes == placeholder.as_bytes())
        {
            at += by;
            data[at..at + said.len()].copy_from_slice(said.as_bytes());
        }
        data
    };
    let is_plain = |text: &str| !text.chars().any(|c| c.is_control() || c == '\u{202e}');
    let section = format!("\t.section {placeholder}, \"a\"\n\t.long inside - .\n");
    let call = "\tjmp\tswitcher_return_from_guest\n";
    for source in [
        with_inside(&section),
        replaced(SWITCHER, &[(call, &format!("\tcall {placeholder}\n{call}"))]),
        // Where it is a name like a routine's.
        SWITCHER.replace("switcher_enter_guest", &placeholder),
        // Where it is what is assumed.
        format!("{SWITCHER}\n\t.section {placeholder}, \"a\"\n\t.quad switcher_enter_guest\n"),
    ] {
        let data = put(&assemble(&source, &[]));
        let texts = match read(&data) {
            Err(found) => vec![found.to_string()],
            Ok(foreign)
                if foreign.unknown.is_empty()
                    && foreign.symbols.contains_key("switcher_enter_guest") =>
            {
                proved(&data).assumed
            }
            Ok(_) => vec![error(&data).to_string()],
        };
        let all = texts.join("\n");
        assert!(is_plain(&all) && all.contains("\\u{1b}"), "{all:?}");
    }
}

#[test]
fn what_an_elf_file_may_be_in_is_known() {
    for (bytes, way) in [
        (&b"!<arch>\n/               "[..], "ar x"),
        (b"!<thin>\n/               ", "ar t"),
        (b"\x1F\x8B\x08\x00", "gunzip"),
        (b"\xFD7zXZ\x00", "unxz"),
        (b"\x28\xB5\x2F\xFD", "unzstd"),
        (b"BZh9", "bunzip2"),
        (b"MZ\x90\x00", "vmlinux"),
        (b"BC\xC0\xDE", "-fno-lto"),
    ] {
        let message = read(bytes).unwrap_err().to_string();
        assert!(message.contains(way) && message.contains("no ELF file"), "{way}: {message}");
    }
    assert_eq!(read(b"int main"), Err(ReadError::NotElf));
}

#[test]
fn of_debugging_information_alone_the_way_out_is_the_file() {
    for data in [assemble(SWITCHER, &[]), linked(SWITCHER, &[])] {
        let debug = super::process("strip", &["--only-keep-debug"], &data);
        let message = error(&debug).to_string();
        assert!(message.contains("--only-keep-debug"), "{message}");
    }
}

#[test]
fn code_does_not_go_on_into_a_routine_of_the_hosts() {
    // What is after the stubs of events is reached as they are.
    let stubs = "\n\t.text\n\t.globl switcher_event_stubs, switcher_event_stubs_end\n\
                 \t.p2align 4\nswitcher_event_stubs:\n\t.skip 1024, 0xCC\n\
                 \t.globl switcher_host_nmi\nswitcher_host_nmi:\n\t.skip 1024, 0xCC\n\
                 switcher_event_stubs_end:\n\tret\n";
    let source = format!("{SWITCHER}{stubs}");
    for data in [assemble(&source, &[]), linked(&source, &[])] {
        let found = error(&data);
        let is_found =
            matches!(&found, ReadError::HookWithin { symbol } if symbol == "switcher_host_nmi");
        assert!(is_found, "{found}");
        assert!(!found.to_string().contains("--gs-tss"), "{found}");
    }
    // A table of the code's may be in front of one.
    let exit = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    let source = replaced(SWITCHER, &[(exit, &format!("\tleaq\ttable(%rip), %rcx\n{exit}"))]);
    let hook = "\n\t.text\n\t.p2align 8\ntable:\t.long 1, 2\n\t.globl switcher_host_fatal\n\
                switcher_host_fatal:\n\tret\n";
    for data in [assemble(&format!("{source}{hook}"), &[]), linked(&format!("{source}{hook}"), &[])]
    {
        proved(&data);
    }
}
