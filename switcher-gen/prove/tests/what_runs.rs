//! What is proved is what runs: files whose bytes are those of a right switcher, and in which
//! something says that other bytes will run, or elsewhere. Each is refused by the name of that.
//! Needs binutils.

mod gas;
#[path = "what_runs/loaders.rs"]
mod loaders;
#[path = "what_runs/symbols.rs"]
mod symbols;
#[path = "what_runs/tables.rs"]
mod tables;

use gas::{SWITCHER, assemble, process, replaced};
use switcher_gen::layout::Placement;
use switcher_gen::{Image, Policy, Variant};
use switcher_listing::object_file;
use switcher_prove::elf::{
    Choice, Foreign, Linkage, ReadError, Request, TableError, read, read_as,
};
use switcher_prove::{BadCode, BlockOffsets, Prover, Setting, Target, TargetError, Verdict};

/// A place in the code that has a name: after SWAPGS of the SYSCALL entry.
const INSIDE: (&str, &str) = (
    "\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n",
    "inside:\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n",
);

/// The switcher with a label inside, and more after it.
fn with(more: &str) -> String {
    format!("{}\n{more}\n", replaced(SWITCHER, &[INSIDE]))
}

fn linked(source: &str, args: &[&str]) -> Vec<u8> {
    let args = [&["-e", "switcher_enter_guest", "-Ttext=0x400000"], args].concat();
    process("ld", &args, &assemble(source, &[]))
}

fn target(foreign: &Foreign) -> Result<Target, TargetError> {
    Target::foreign(foreign, Setting::from(&Variant::REFERENCE))
}

#[track_caller]
fn error(data: &[u8]) -> ReadError {
    match read(data).map(|foreign| target(&foreign)) {
        Err(error) | Ok(Err(TargetError::Read(error))) => error,
        Ok(other) => panic!("{other:?}"),
    }
}

#[track_caller]
fn proved(data: &[u8]) -> Target {
    let foreign = read(data).unwrap_or_else(|error| panic!("{error}"));
    let target = target(&foreign).unwrap_or_else(|error| panic!("{error}"));
    match Prover::default().prove(&target) {
        Verdict::Proved(_) => target,
        other => panic!("{other:?}"),
    }
}

/// Changes `width` bytes of a file at `at`.
fn patch(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

/// Where in the file the header of the section of that name is.
fn section_header(file: &[u8], name: &str) -> usize {
    use object::{Object, ObjectSection};
    let parsed = object::File::parse(file).unwrap();
    let index = parsed.section_by_name(name).unwrap().index().0;
    u64_at(file, 0x28) as usize + 64 * index
}

/// Where in the file the program header of the segment is that is executable.
fn code_segment(file: &[u8]) -> usize {
    let (start, count) = (u64_at(file, 0x20) as usize, u16::from_le_bytes([file[56], file[57]]));
    let mut headers = (0..count as usize).map(|number| start + 56 * number);
    headers.find(|at| file[*at] == 1 && file[at + 4] & 1 == 1).unwrap()
}

// Patch tables.

/// Tables of Linux's that change code, as its headers make them: the name, and an entry.
const TABLES: [(&str, &str); 10] = [
    (".altinstructions", ".long inside - .\n.long 1f - .\n.long 0\n.byte 9, 0\n1:"),
    ("__jump_table", ".long inside - .\n.long 1f - .\n.quad 0\n1:"),
    (".retpoline_sites", ".long inside - ."),
    (".call_sites", ".long inside - ."),
    (".static_call_sites", ".long inside - ., 0"),
    ("__mcount_loc", ".quad inside"),
    ("__patchable_function_entries", ".quad inside"),
    (".smp_locks", ".long inside - ."),
    (".parainstructions", ".quad inside\n.byte 1, 2"),
    ("runtime_ptr_mask", ".long inside - ."),
];

#[test]
fn a_patch_table_that_names_reached_code_is_refused_by_its_name() {
    for (name, entry) in TABLES {
        // Marked as loaded or not: the linker puts it together with others.
        for flags in ["a", ""] {
            let source = with(&format!(".section {name}, \"{flags}\", @progbits\n{entry}"));
            match error(&assemble(&source, &[])) {
                ReadError::Patched { section, at, .. } => {
                    assert_eq!((section.as_str(), at.section.as_str()), (name, ".text"));
                }
                other => panic!("{name}: {other}"),
            }
        }
        let source = with(&format!(".section {name}, \"a\", @progbits\n{entry}"));
        match error(&linked(&source, &[])) {
            ReadError::Patched { section, .. } => assert_eq!(section, name),
            // What it does can be read there, and depends on the CPU.
            ReadError::Open { .. } => assert_eq!(name, ".altinstructions"),
            other => panic!("{name}, linked: {other}"),
        }
    }
    // The words of it: what, where, why, and the way out.
    let source = with(".section .call_sites, \"a\", @progbits\n.long inside - .");
    let message = error(&assemble(&source, &[])).to_string();
    for part in ["`.call_sites`", ".text+0x", "other bytes run", "without it"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

/// Linux leaves what is no jump to the thunk of returns, and no landing pad.
#[test]
fn what_linux_leaves_is_left() {
    let request = || Request::default().with_choice(Choice::FineIbt, false);
    let table = |name: &str| with(&format!(".section {name}, \"a\", @progbits\n.long inside - ."));
    let object = |source: &str| assemble(source, &[]);
    let file = |source: &str| linked(source, &[]);
    let makes: [fn(&str) -> Vec<u8>; 2] = [object, file];
    for make in makes {
        let plain = read_as(&linked(&with(""), &[]), request()).unwrap();
        let left = read_as(&make(&table(".return_sites")), request()).unwrap();
        let bytes = |foreign: &Foreign| -> Vec<_> {
            foreign.pieces.iter().map(|(_, bytes)| bytes.clone()).collect()
        };
        assert_eq!(bytes(&left), bytes(&plain));
        // Versions differ in what they take for a landing pad, so that nothing else may be sealed.
        let sealed = read_as(&make(&table(".ibt_endbr_seal")), request());
        assert!(
            matches!(sealed, Err(ReadError::Open { .. } | ReadError::Patched { .. })),
            "{sealed:?}"
        );
    }
}

#[test]
fn an_entry_reaches_as_far_as_it_says() {
    // What it names is in front of the code, and nine bytes of it are changed.
    let before = "\nroutine entry_SYSCALL_64_switcher\n";
    let near = format!("\n\t.p2align 4\n\t.skip 12, 0xC3\nnear:\t.skip 4, 0xC3{before}");
    for (length, is_refused) in [(4, false), (9, true)] {
        let table = format!(
            ".section .altinstructions, \"a\"\n.long near - .\n.long 0\n.long 0\n.byte {length}, 0"
        );
        let source = format!("{}\n{table}\n", replaced(SWITCHER, &[(before, &near)]));
        for data in [assemble(&source, &[]), linked(&source, &[])] {
            let found = read(&data);
            let is_patched =
                matches!(found, Err(ReadError::Patched { .. } | ReadError::Open { .. }));
            assert_eq!(is_patched, is_refused, "{length}: {found:?}");
        }
    }
}

#[test]
fn a_table_that_names_other_code_is_nobodys_concern() {
    let elsewhere = "\t.text\n\t.p2align 12\nother:\tret\n";
    for (name, entry) in TABLES {
        let entry = entry.replace("inside", "other");
        let source = with(&format!("{elsewhere}.section {name}, \"a\", @progbits\n{entry}"));
        read(&assemble(&source, &[])).unwrap_or_else(|error| panic!("{name}: {error}"));
        read(&linked(&source, &[])).unwrap_or_else(|error| panic!("{name}, linked: {error}"));
    }
    let source =
        with(&format!("{elsewhere}.section __jump_table, \"a\"\n.long other - ., 0, 0, 0"));
    proved(&assemble(&source, &[]));
    proved(&linked(&source, &[]));
}

#[test]
fn a_table_that_linkers_have_put_among_constants_is_found_by_its_bounds() {
    let table = "\t.section .rodata, \"a\"\n\t.globl __start___jump_table, __stop___jump_table\n\
                 __start___jump_table:\n\t.long inside - ., 0, 0, 0\n__stop___jump_table:\n";
    let source = with(table);
    match error(&linked(&source, &[])) {
        ReadError::Patched { section, .. } => assert_eq!(section, "__jump_table"),
        other => panic!("{other}"),
    }
}

#[test]
fn tables_that_change_nothing_are_named_with_the_verdict() {
    for name in ["__bug_table", "_kprobe_blacklist", "__ex_table"] {
        let source = with(&format!(".section {name}, \"a\"\n.long inside - .\n.long 0"));
        for data in [assemble(&source, &[]), linked(&source, &[])] {
            let target = proved(&data);
            let [harmless] = target.harmless.as_slice() else { panic!("{:?}", target.harmless) };
            assert!(harmless.contains(name), "{harmless}");
        }
    }
    assert!(proved(&assemble(SWITCHER, &[])).harmless.is_empty());
}

#[test]
fn what_nobody_knows_is_refused_or_assumed_and_then_said() {
    let source = with(".section my_sites, \"a\"\n.quad 0\n.long inside - .");
    for data in [assemble(&source, &[]), linked(&source, &[])] {
        match error(&data) {
            ReadError::MaybePatched { section, .. } => assert_eq!(section, "my_sites"),
            other => panic!("{other}"),
        }
        let mut foreign = read(&data).unwrap();
        foreign.assume_unpatched();
        let target = target(&foreign).unwrap();
        assert!(
            target.assumed.iter().any(|text| text.contains("my_sites")),
            "{:?}",
            target.assumed
        );
        assert!(matches!(Prover::default().prove(&target), Verdict::Proved(_)));
    }
    // That is not to be had for what is known to change it.
    let mut foreign = read(&assemble(SWITCHER, &[])).unwrap();
    foreign.assume_unpatched();
    assert!(foreign.assumed().is_empty());
    // By the distance from the table's start, and in data that has no names for it.
    for more in [
        ".section my_sites, \"a\"\nstart:\n.long 0\n.long inside - start",
        ".data\n.quad 0, inside + 1",
        ".section .rodata\n.quad inside + 3",
        // A label inside of a routine is no function, whoever sees it.
        ".data\n.quad inside",
        "\t.globl inside\n\t.section .data.patches, \"aw\"\n.quad inside",
        // Of data, functions' addresses are pointers, and distances are not.
        ".section .rodata.sites, \"a\"\n.long inside - .",
        // Whatever its flags and its type.
        ".section my_sites, \"\", @progbits\n.long inside - .",
        ".section my_sites, \"a\", @note\n.long inside - ., 0",
        ".section .note.sites, \"a\", @note\n.long inside - ., 0",
        ".section my_sites, \"aw\", @init_array\n.quad inside",
        ".section my_sites, \"ax\", @progbits\n.long inside - .",
        ".section my_sites, \"awx\", @progbits\n.quad 0, inside",
        ".section .text.sites, \"ax\", @progbits\n.long inside - .",
        // Code takes the address of what is no function.
        ".section .text.other, \"ax\", @progbits\nleaq inside(%rip), %rax\nret",
    ] {
        let found = error(&assemble(&with(more), &[]));
        assert!(matches!(found, ReadError::MaybePatched { .. }), "{more}: {found}");
    }
}

#[test]
fn pointers_to_routines_are_pointers() {
    for more in [
        ".data\n.quad switcher_enter_guest, entry_IRETQ_switcher",
        ".section .data.mine, \"aw\"\n.type inside, @function\n.quad inside",
        ".section .rodata.mine, \"a\"\n.long switcher_enter_guest - .",
        ".section .text.other, \"ax\"\ncall switcher_enter_guest\n\
         leaq switcher_return_from_guest(%rip), %rax\nmovq $7, %rcx\nret",
        ".text\n.p2align 4\nother: call switcher_enter_guest\njne inside\nmovl $1, %eax\n\
         leaq switcher_return_from_guest(%rip), %rax\nleaq inside(%rip), %rax\nret",
        ".section .debug_mine, \"\", @progbits\n.quad inside",
        ".section .discard.mine, \"\", @progbits\n.long inside - .",
        ".section .rodata\n.quad entry_SYSCALL_64_switcher",
        ".section my_operations, \"aw\"\n.quad switcher_enter_guest, switcher_return_from_guest",
        ".section .eh_frame, \"a\"\n.long inside - ., 0",
    ] {
        proved(&assemble(&with(more), &[]));
        proved(&linked(&with(more), &[]));
    }
}

#[test]
fn a_patch_table_is_one_whatever_its_flags() {
    for (name, entry) in TABLES {
        let source = with(&format!(".section {name}, \"aw\", @progbits\n{entry}"));
        match error(&assemble(&source, &[])) {
            ReadError::Patched { section, .. } => assert_eq!(section, name),
            other => panic!("{name}: {other}"),
        }
        for flags in ["ax", "awx"] {
            let source = with(&format!(".section {name}, \"{flags}\", @progbits\n{entry}"));
            for file in [assemble(&source, &[]), linked(&source, &[])] {
                match error(&file) {
                    ReadError::Table(TableError::Executable { section, .. }) => {
                        assert_eq!(section, name);
                    }
                    other => panic!("{name}, {flags}: {other}"),
                }
            }
        }
    }
}

#[test]
fn a_table_among_code_is_found_without_relocations() {
    for more in [
        "\t.text\n\t.skip 4096, 0xC3\n\t.long inside - .",
        "\t.text\n\tret\n\t.long inside - .",
        "\t.text\n\t.subsection 1\n\t.skip 64, 0x90\n\t.p2align 2\n\t.long 9, inside - .",
        "\t.text\n\tcall switcher_enter_guest\n\tret\n\t.long inside - .",
    ] {
        for data in [assemble(&with(more), &[]), linked(&with(more), &[])] {
            let found = error(&data);
            assert!(matches!(found, ReadError::MaybePatched { .. }), "{more}: {found}");
        }
    }
    // In front of the code, and an address in what is linked.
    let before = "\t.text\n\t.long inside - .\n";
    let source = replaced(&with(""), &[("\t.text\n", before)]);
    assert!(matches!(error(&assemble(&source, &[])), ReadError::MaybePatched { .. }));
    let source = with("\t.text\n\tret\n\t.quad inside");
    assert!(matches!(error(&linked(&source, &[])), ReadError::MaybePatched { .. }));
    // Where there is more than can be told, that is said.
    let source = with("\t.text\n\t.skip 1 << 17, 0xC3\n\t.long inside - .");
    for data in [assemble(&source, &[]), linked(&source, &[])] {
        let target = proved(&data);
        assert!(target.assumed.iter().any(|text| text.contains("no table among the code")));
    }
}

#[test]
fn numbers_that_may_be_places_in_the_code_are_assumed_not_to_be() {
    for more in [
        ".section my_sites, \"a\"\n.quad switcher_enter_guest\n.long inside - switcher_enter_guest",
        ".section my_sites, \"a\"\n.long inside - .text",
        ".section my_sites, \"\", @progbits\n.long inside - .text",
    ] {
        let target = proved(&assemble(&with(&format!("{more}\n")), &[]));
        // That an entry point is named is said beside it.
        let said: Vec<_> =
            target.assumed.iter().filter(|text| !text.contains("the entry point")).collect();
        let [assumed] = said.as_slice() else { panic!("{more}: {:?}", target.assumed) };
        assert!(assumed.contains("numbers in `my_sites`"), "{assumed}");
    }
    let target = proved(&assemble(&with(".section my_sites, \"a\"\n.long 0, -1\n"), &[]));
    assert!(target.assumed.is_empty(), "{:?}", target.assumed);
}

#[test]
fn a_note_may_name_an_entry_point_and_nothing_else() {
    let note = |what: &str| with(&format!(".section .note.mine, \"a\", @note\n.quad {what}"));
    proved(&assemble(&note("switcher_enter_guest"), &[]));
    let found = error(&assemble(&note("inside"), &[]));
    assert!(matches!(found, ReadError::MaybePatched { .. }), "{found}");
}

// Symbols.

/// Where in the file the value of a dynamic symbol is.
fn dynamic_symbol(file: &[u8], name: &str) -> usize {
    use object::{Object, ObjectSymbol};
    let parsed = object::File::parse(file).unwrap();
    let symbol = parsed.dynamic_symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    let table = section_header(file, ".dynsym");
    u64_at(file, table + 24) as usize + 24 * symbol.index().0 + 8
}

#[test]
fn the_loaders_symbols_must_be_those_of_linkers() {
    let args = ["-shared", "-Bsymbolic"];
    let right = linked(SWITCHER, &args);
    proved(&right);
    for name in ["switcher_enter_guest", "entry_SYSCALL_64_switcher", "entry_IRETQ_switcher"] {
        let mut changed = right.clone();
        let other = u64_at(&right, dynamic_symbol(&right, "switcher_return_from_guest"));
        patch(&mut changed, dynamic_symbol(&right, name), &other.to_le_bytes());
        match error(&changed) {
            ReadError::Ambiguous { symbol, at } => {
                assert_eq!((symbol.as_str(), at.len()), (name, 2))
            }
            other => panic!("{name}: {other}"),
        }
    }
    for (section, field) in [(".dynsym", 24), (".dynsym", 32), (".dynstr", 24)] {
        // The section is elsewhere, or ends before the loader's table does.
        let mut changed = right.clone();
        let at = section_header(&right, section) + field;
        let value = u64_at(&right, at);
        let other = if field == 24 { value + 24 } else { value - 24 };
        patch(&mut changed, at, &other.to_le_bytes());
        let found = error(&changed);
        let is_found = matches!(found, ReadError::DynamicSymbols | ReadError::Malformed(_));
        assert!(is_found, "{section}, {field}: {found}");
    }
    // By the other table of names, too.
    for hash in ["--hash-style=sysv", "--hash-style=gnu", "--hash-style=both"] {
        proved(&linked(SWITCHER, &["-shared", "-Bsymbolic", hash]));
        let stripped =
            process("strip", &["--strip-all"], &linked(SWITCHER, &["-shared", hash, "-Bsymbolic"]));
        proved(&stripped);
    }
}

#[test]
fn an_entry_that_another_file_may_override_is_refused() {
    for name in ["switcher_enter_guest", "entry_SYSCALL_64_switcher", "entry_IRETQ_switcher"] {
        let weak = with(&format!("\t.weak {name}"));
        match error(&assemble(&weak, &[])) {
            ReadError::Weak { symbol } => assert_eq!(symbol, name),
            other => panic!("{name}: {other}"),
        }
        // Nobody overrides what is linked.
        proved(&linked(&weak, &[]));
    }
}

#[test]
fn a_jump_to_what_another_file_may_override_is_refused() {
    let (from, to) = ("\tjmp\tswitcher_return_from_guest\n", "\tjmp\tmiddle\n");
    let middle = "\t.weak middle\nmiddle:\tjmp switcher_return_from_guest";
    let source = format!("{}\n\t.text\n{middle}\n", replaced(SWITCHER, &[(from, to)]));
    assert_eq!(error(&assemble(&source, &[])), ReadError::Weak { symbol: "middle".into() });
    let source = replaced(
        SWITCHER,
        &[(from, "\t.weak nowhere\n\tcall nowhere\n\tjmp switcher_return_from_guest\n")],
    );
    let found = error(&assemble(&source, &[]));
    assert!(
        matches!(&found, ReadError::WeakUndefined { symbol, .. } if symbol == "nowhere"),
        "{found}"
    );
    // A hook that need not be there is called at address 0.
    let hook = "\t.weak switcher_host_fatal\n\tcall switcher_host_fatal\n";
    let source = replaced(SWITCHER, &[(from, hook)]);
    let found = error(&assemble(&source, &[]));
    assert!(matches!(found, ReadError::WeakUndefined { .. }), "{found}");
}

#[test]
fn an_indirect_function_is_refused_as_an_entry_and_as_a_target() {
    let entry = ".type entry_SYSCALL_compat_switcher, @gnu_indirect_function";
    let source = SWITCHER.replacen("\t.type\t\\name, @function\n", "", 1) + entry + "\n";
    let found = error(&assemble(&source, &[]));
    assert_eq!(found, ReadError::Indirect { symbol: "entry_SYSCALL_compat_switcher".into() });
    let from = "\tjmp\tswitcher_return_from_guest\n";
    let more = "\t.globl middle\n\t.type middle, @gnu_indirect_function\nmiddle:\tjmp switcher_return_from_guest";
    let source = format!("{}\n\t.text\n{more}\n", replaced(SWITCHER, &[(from, "\tjmp\tmiddle\n")]));
    assert_eq!(error(&assemble(&source, &[])), ReadError::Indirect { symbol: "middle".into() });
}

#[test]
fn an_entry_that_is_defined_twice_is_refused() {
    // Local ones of two files, as `ld -r` leaves them.
    let dir = tempfile::tempdir().unwrap();
    let local = SWITCHER.replacen("\t.globl\t\\name\n", "", 1);
    let first = assemble(&local, &[]);
    let path = dir.path().join("other.o");
    std::fs::write(&path, assemble("switcher_enter_guest: ret", &[])).unwrap();
    let both = process("ld", &["-r", path.to_str().unwrap()], &first);
    let found = error(&both);
    assert!(matches!(&found, ReadError::Ambiguous { at, .. } if at.len() == 2), "{found}");
    // A global one goes before them.
    let both = process("ld", &["-r", path.to_str().unwrap()], &assemble(SWITCHER, &[]));
    proved(&both);
    // The name that others see is that of a number.
    std::fs::write(
        &path,
        assemble(".globl entry_SYSCALL_64_switcher; entry_SYSCALL_64_switcher = 0x1234", &[]),
    )
    .unwrap();
    let both = process("ld", &["-r", path.to_str().unwrap()], &first);
    assert_eq!(error(&both), ReadError::NotCode { symbol: "entry_SYSCALL_64_switcher".into() });
}

#[test]
fn symbols_of_any_size_and_into_instructions_are_fine() {
    let unsized_ = SWITCHER.replacen("\t.size\t\\name, . - \\name\n", "", 1);
    proved(&assemble(&unsized_, &[]));
    proved(&assemble(&with("\t.globl middle\n\t.set middle, inside + 1"), &[]));
}

// Sections.

#[test]
fn code_in_two_sections_is_refused() {
    let from = "\nroutine switcher_return_from_guest\n";
    let to = "\n\t.section .text.exit, \"ax\"\nroutine switcher_return_from_guest\n";
    let source = replaced(SWITCHER, &[(from, to)]);
    match error(&assemble(&source, &[])) {
        ReadError::SecondSection { section, first, .. } => {
            assert_eq!((section.as_str(), first.as_str()), (".text.exit", ".text"));
        }
        other => panic!("{other}"),
    }
    // Only a jump leads there.
    let from = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    let away = "\tjmp away\nback:\n";
    let more = format!("\t.section .far, \"ax\"\naway:\n{from}\tjmp back\n");
    let source = format!("{}\n{more}", replaced(SWITCHER, &[(from, away)]));
    let found = error(&assemble(&source, &[]));
    assert!(matches!(&found, ReadError::SecondSection { from: Some(_), .. }), "{found}");
    let args = ["--section-start=.far=0x4000000"];
    let found = error(&linked(&source, &args));
    assert!(matches!(&found, ReadError::SecondSection { .. }), "{found}");
    // Linked into one, it is one.
    let script = "SECTIONS { .text 0x400000 : { *(.text) *(.far) } }";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.ld");
    std::fs::write(&path, script).unwrap();
    let one =
        process("ld", &["-T", path.to_str().unwrap(), "-e", "0x400000"], &assemble(&source, &[]));
    proved(&one);
}

#[test]
fn a_section_that_is_not_what_is_in_memory_is_refused() {
    for (flags, part) in [
        ("axM\", @progbits, 1", "SHF_MERGE"),
        ("axe\", @progbits", "SHF_EXCLUDE"),
        ("axG\", @progbits, group, comdat", "group"),
    ] {
        let section = format!("\t.section .switcher, \"{flags}\n");
        let source = replaced(SWITCHER, &[("\t.text\n", &section)]);
        let found = error(&assemble(&source, &[]));
        assert!(matches!(found, ReadError::Section { .. }), "{flags}: {found}");
        assert!(found.to_string().contains(part), "{flags}: {found}");
    }
    let in_section = |name: &str| {
        let section = format!("\t.section {name}, \"ax\", @progbits\n");
        assemble(&replaced(SWITCHER, &[("\t.text\n", &section)]), &[])
    };
    for name in [
        ".init.text",
        "init.text",
        ".exit.text",
        ".static_call.text",
        ".altinstr_replacement",
        ".text.startup",
        ".text.startup.mine",
        ".text.exit",
        ".exitcall.exit",
        ".memexit.text",
        ".cpuexit.text",
        ".modinfo",
        ".export_symbol",
        ".discard.text",
        ".init",
        ".fini",
        ".init.mine",
        ".exit.mine",
    ] {
        let found = error(&in_section(name));
        assert!(matches!(found, ReadError::Section { .. }), "{name}: {found}");
    }
    // What goes by its name among data, descriptions or what is freed need not be executable there,
    // linked or not.
    for name in [
        ".rodata",
        ".rodata.cst16",
        ".data..percpu",
        ".bss.mine",
        ".ldata",
        ".tbss",
        ".comment",
        ".note.mine",
        ".gnu.mine",
        ".con_initcall.init",
        ".x86_cpu_dev.init",
        ".initial",
        ".exiting",
        ".apicdrivers",
        ".x86_trampoline",
    ] {
        // GNU as gives sections of some of these names other flags, so the name comes afterwards.
        let other = format!(".{}", "z".repeat(name.len() - 1));
        let mut object = in_section(&other);
        let found = object.windows(name.len()).rposition(|bytes| bytes == other.as_bytes());
        patch(&mut object, found.unwrap(), name.as_bytes());
        for file in [process("ld", &["-e", "switcher_enter_guest"], &object), object] {
            let found = error(&file);
            assert!(matches!(found, ReadError::Section { .. }), "{name}: {found}");
            assert!(found.to_string().contains("another name"), "{name}: {found}");
        }
    }
    // What is read as a table is no code, whatever else is in its name.
    for name in [
        ".call_sites",
        "__mcount_loc",
        ".altinstructions",
        ".init.altinstructions",
        "__ex_table",
        "__bug_table",
    ] {
        for file in
            [in_section(name), process("ld", &["-e", "switcher_enter_guest"], &in_section(name))]
        {
            let found = error(&file);
            assert!(matches!(found, ReadError::Table(_)), "{name}: {found}");
            assert!(found.to_string().contains("another name"), "{name}: {found}");
        }
    }
    // What is freed once it has run is not there later, linked or not.
    let freed = process("ld", &["-e", "switcher_enter_guest"], &in_section(".init.text"));
    assert!(matches!(error(&freed), ReadError::Section { .. }));
    for name in [".text", ".text.unlikely", ".entry.text", ".noinstr.text"] {
        assert!(proved(&in_section(name)).assumed.is_empty(), "{name}");
    }
    // Of other names, who links it knows.
    for name in ["mine", ".rest", ".textual", ".far.text"] {
        let target = proved(&in_section(name));
        let [assumed] = target.assumed.as_slice() else { panic!("{name}: {:?}", target.assumed) };
        assert!(assumed.contains(&format!("the code in `{name}`")), "{assumed}");
        let linked = process("ld", &["-e", "switcher_enter_guest"], &in_section(name));
        assert_eq!(proved(&linked).assumed.len(), 1, "{name}");
    }
    // Compressed: SHF_COMPRESSED is set by hand, since no tool compresses code.
    let mut object = assemble(SWITCHER, &[]);
    let at = section_header(&object, ".text") + 8;
    let flags = u64_at(&object, at) | 1 << 11;
    patch(&mut object, at, &flags.to_le_bytes());
    assert!(error(&object).to_string().contains("compressed"));
}

#[test]
fn code_that_can_be_written_to_is_refused() {
    let source = replaced(SWITCHER, &[("\t.text\n", "\t.section .switcher, \"awx\"\n")]);
    assert_eq!(error(&assemble(&source, &[])), ReadError::Writable { section: ".switcher".into() });
    // `ld -N` makes the segment writable, and not the section.
    assert_eq!(error(&linked(SWITCHER, &["-N"])), ReadError::Writable { section: ".text".into() });
}

#[test]
fn a_trampoline_of_a_static_call_is_refused() {
    let from = "\tjmp\tswitcher_return_from_guest\n";
    let more = "\t.text\n\t.globl __SCT__leave\n__SCT__leave:\tjmp switcher_return_from_guest";
    let source = format!("{}\n{more}\n", replaced(SWITCHER, &[(from, "\tjmp\t__SCT__leave\n")]));
    for data in [assemble(&source, &[]), linked(&source, &[])] {
        let found = error(&data).to_string();
        assert!(found.contains("__SCT__leave"), "{found}");
    }
}

// Segments.

#[test]
fn sections_and_segments_must_say_the_same() {
    let right = linked(SWITCHER, &[]);
    proved(&right);
    let header = code_segment(&right);
    let change = |at: usize, value: u64| {
        let mut changed = right.clone();
        patch(&mut changed, header + at, &value.to_le_bytes());
        error(&changed)
    };
    let offset = u64_at(&right, header + 8);
    let found = change(8, offset + 16);
    assert!(matches!(found, ReadError::OtherBytes { .. }), "{found}");
    for (at, value) in [(16, 0x50_0000), (32, 0x40)] {
        let found = change(at, value);
        assert!(matches!(found, ReadError::NotMapped { .. }), "{at}: {found}");
    }
    let mut changed = right.clone();
    patch(&mut changed, header + 4, &4_u32.to_le_bytes());
    let found = error(&changed);
    assert!(matches!(found, ReadError::NotExecutable { .. }), "{found}");
    patch(&mut changed, header + 4, &7_u32.to_le_bytes());
    assert!(matches!(error(&changed), ReadError::Writable { .. }));
    // No program headers at all.
    let mut changed = right.clone();
    patch(&mut changed, 56, &[0, 0]);
    assert!(matches!(error(&changed), ReadError::NotMapped { .. }));
    // The section says that it is elsewhere in the file.
    let mut changed = right.clone();
    let at = section_header(&changed, ".text") + 24;
    let offset = u64_at(&changed, at);
    patch(&mut changed, at, &(offset - 16).to_le_bytes());
    let found = error(&changed);
    assert!(matches!(found, ReadError::OtherBytes { .. }), "{found}");
}

#[test]
fn what_the_loader_makes_read_only_is_not_executed() {
    let source = with("\t.section .data.rel.ro, \"aw\"\n\t.quad 1\n");
    let right = linked(&source, &["-pie", "-z", "relro"]);
    proved(&right);
    let (start, count) = (u64_at(&right, 0x20) as usize, right[56] as usize);
    let mut headers = (0..count).map(|number| start + 56 * number);
    let relro = headers.find(|at| right[*at..*at + 4] == 0x6474_E552_u32.to_le_bytes()).unwrap();
    let code = code_segment(&right);
    // Over the code, in front of it in its page, and with the page after it.
    for (address, size) in [(u64_at(&right, code + 16), 0x1000), (0x3F_F000, 0x1001)] {
        let mut changed = right.clone();
        patch(&mut changed, relro + 16, &address.to_le_bytes());
        patch(&mut changed, relro + 32, &[0; 8]);
        patch(&mut changed, relro + 40, &(size as u64).to_le_bytes());
        let found = error(&changed);
        assert!(matches!(found, ReadError::Relro { .. }), "{found}");
    }
}

#[test]
fn what_lies_over_the_code_is_refused() {
    let source = with("\t.data\n\t.quad 1, 2, 3, 4\n");
    let right = linked(&source, &["-Tdata=0x600000"]);
    proved(&right);
    // The section alone, and the segment.
    let mut changed = right.clone();
    let at = section_header(&changed, ".data") + 16;
    patch(&mut changed, at, &0x40_0010_u64.to_le_bytes());
    let found = error(&changed);
    assert!(matches!(&found, ReadError::Overlap { section, .. } if section == ".data"), "{found}");
    let mut changed = right.clone();
    let (start, count) = (u64_at(&right, 0x20) as usize, right[56] as usize);
    let mut headers = (0..count).map(|number| start + 56 * number);
    let data = headers.find(|at| u64_at(&right, at + 16) == 0x60_0000).unwrap();
    patch(&mut changed, data + 16, &0x40_0010_u64.to_le_bytes());
    let found = error(&changed);
    assert!(matches!(found, ReadError::Segments { .. }), "{found}");
    // In the same page, so that the page is this segment's.
    patch(&mut changed, data + 16, &0x40_0FF0_u64.to_le_bytes());
    let found = error(&changed);
    assert!(matches!(found, ReadError::Segments { .. }), "{found}");
}

#[test]
fn relocations_at_load_time_are_found_whatever_the_sections_say() {
    let source = with("\t.text\nholder:\tmovabs $holder, %rax\n\tret\n");
    let from = "\tjmp\tswitcher_return_from_guest\n";
    let used = source.replacen(from, "\tcall holder\n\tjmp\tswitcher_return_from_guest\n", 1);
    let args = ["-pie", "-z", "notext", "-Bsymbolic"];
    let mut file = linked(&used, &args);
    let found = error(&file);
    assert!(matches!(found, ReadError::LoadTime { .. }), "{found}");
    // The sections of relocations are gone; the dynamic section still leads there.
    let at = section_header(&file, ".rela.dyn") + 4;
    patch(&mut file, at, &1_u32.to_le_bytes());
    let found = error(&file);
    assert!(matches!(found, ReadError::LoadTime { .. }), "{found}");
    // Elsewhere in the text, of which it is not known where at load time.
    let found = error(&linked(&source, &args));
    assert!(matches!(found, ReadError::TextRelocations), "{found}");
}

#[test]
fn relocations_over_each_other_are_refused_and_unknown_ones_where_they_are_reached() {
    let from = "\tmovq\t%rsp, %gs:TSS_SP2\n\tmovq\t%gs:TSS_SP0, %rsp\n";
    let twice = format!(
        "\t.reloc . + 5, R_X86_64_32S, 0x14\n\t.reloc . + 6, R_X86_64_PC8, inside\ninside:{from}"
    );
    let found = error(&assemble(&replaced(SWITCHER, &[(from, &twice)]), &[]));
    assert!(matches!(found, ReadError::RelocatedTwice { .. }), "{found}");
    let unknown = format!("\t.reloc . + 5, R_X86_64_GOTPCREL, switcher_enter_guest\n{from}");
    let found = error(&assemble(&replaced(SWITCHER, &[(from, &unknown)]), &[]));
    assert!(matches!(found, ReadError::Relocation { kind: 9, .. }), "{found}");
    // What nobody reaches may be wrong in every way.
    let more = "\t.text\n\t.p2align 8\n\tcall nowhere\n\tmov x@GOTPCREL(%rip), %rax\n\tmov data(%rip), %eax\n\
                \t.data\ndata:\t.long 0\n";
    proved(&assemble(&with(more), &[]));
}

// Addresses.

#[test]
fn a_verdict_says_for_which_address_it_holds() {
    let object = read(&assemble(SWITCHER, &[])).unwrap();
    assert_eq!((object.linkage, object.assumed()), (Linkage::Object, Vec::new()));
    let target = proved(&linked(SWITCHER, &[]));
    assert!(target.assumed[0].contains("0x400000"), "{:?}", target.assumed);
    let target = proved(&linked(SWITCHER, &["-pie"]));
    assert!(target.assumed[0].contains("loaded"), "{:?}", target.assumed);
    // An object that has its own address in it.
    let from = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    let to = format!("\tmovabs $switcher_enter_guest, %rdx\n{from}");
    let target = proved(&assemble(&replaced(SWITCHER, &[(from, &to)]), &[]));
    let [assumed] = target.assumed.as_slice() else { panic!("{:?}", target.assumed) };
    assert!(assumed.contains(".text+0x"), "{assumed}");
}

#[test]
fn code_where_no_cpu_executes_it_is_refused() {
    let far = process(
        "ld",
        &["-e", "switcher_enter_guest", "-Ttext=0x800000000000"],
        &assemble(SWITCHER, &[]),
    );
    let found = target(&read(&far).unwrap()).unwrap_err();
    assert_eq!(found, TargetError::NotCanonical { address: 0x8000_0000_0000 });
}

/// Code that asks in which half of the addresses it lies is right in one of them, wherever the file
/// has it.
#[test]
fn code_that_depends_on_its_half_is_refuted() {
    const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    for question in ["btq\t$63, %rcx\n\tjc", "btq\t$63, %rcx\n\tjnc", "testq\t%rcx, %rcx\n\tjs"] {
        let asks = format!("\tleaq\t7f(%rip), %rcx\n7:\t{question}\t8f\n\tud2\n8:\n{EXIT}");
        let source = replaced(SWITCHER, &[(EXIT, &asks)]);
        for place in ["-Ttext=0x500000", "-Ttext=0xffffffff81000000"] {
            let file =
                process("ld", &["-e", "switcher_enter_guest", place], &assemble(&source, &[]));
            let target = target(&read(&file).unwrap()).unwrap();
            match Prover::default().prove(&target) {
                Verdict::Refuted(found) => assert_eq!(found.obligation.name, "no-trap"),
                other => panic!("{place}, {question}: {other:?}"),
            }
        }
    }
}

#[test]
fn code_at_the_address_that_is_taken_for_a_hook_is_no_hook() {
    let at = Target::place_of_host("switcher_host_fatal").unwrap();
    let base = format!("-Ttext={:#x}", at & !0xFFF);
    let args = ["-e", "switcher_enter_guest", base.as_str()];
    let foreign = read(&process("ld", &args, &assemble(SWITCHER, &[]))).unwrap();
    let target = target(&foreign).unwrap();
    assert_eq!(target.hooks, [0; 4]);
}

// Data over code.

#[test]
fn data_over_code_and_data_over_data_are_refused() {
    let image = Image::new(&Variant::REFERENCE).unwrap();
    let object = object_file(&image).unwrap();
    let per_cpu = Policy { placement: Placement::PerCpu, ..Policy::DEFAULT };
    let variant = Variant::REFERENCE.with_policy(per_cpu);
    let of_data = BlockOffsets::default();
    let cases = [
        // With `percpu`, the code lies a page after the block.
        (variant, BlockOffsets { tss: 0x1000, ..of_data }),
        (variant, BlockOffsets { tss: 0x1000 - 8, ..of_data }),
        (variant, BlockOffsets { tss_extra: 0x1100, ..of_data }),
        (Variant::REFERENCE, BlockOffsets { tss: 0, tss_extra: 0x60 }),
        (Variant::REFERENCE, BlockOffsets { tss: 0x80, tss_extra: 0x80 }),
        (Variant::REFERENCE, BlockOffsets { tss: -8, tss_extra: -0x10 }),
    ];
    for (variant, block) in cases {
        let setting = Setting::from(&variant).with_block(block);
        let found = Target::foreign(&read(&object).unwrap(), setting).unwrap_err();
        assert!(matches!(found, TargetError::Overlap(_)), "{block:?}: {found}");
        // And whoever puts the target together by hand is told by the prover.
        let target = Target::image(&image).with_setting(setting);
        let Verdict::Unsupported(found) = Prover::default().prove(&target) else { panic!() };
        assert!(matches!(found, BadCode::Overlap(_)), "{block:?}: {found}");
    }
    // A routine of the host's that is the code's own would not be looked at.
    let mut target = Target::image(&image);
    target.hooks[0] = target.syscall_64;
    assert!(matches!(Prover::default().prove(&target), Verdict::Unsupported(BadCode::Overlap(_))));
}

// Size.

#[test]
fn only_what_is_reached_is_kept() {
    let padding = "\t.text\n\t.skip 15 << 20, 0x90\n";
    let before = replaced(SWITCHER, &[("\t.text\n", padding)]);
    let behind = format!("{SWITCHER}\n{padding}");
    let between = replaced(
        SWITCHER,
        &[(
            "\nroutine switcher_return_from_guest\n",
            "\n\t.skip 15 << 20, 0x90\nroutine switcher_return_from_guest\n",
        )],
    );
    for source in [before, behind, between] {
        for data in [assemble(&source, &[]), linked(&source, &[])] {
            let foreign = read(&data).unwrap();
            let kept: usize = foreign.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(kept < 4096, "{kept}");
            proved(&data);
        }
    }
}

// Robustness.

/// A few thousand files with some bytes changed where it hurts: in headers, symbols and
/// relocations.
#[test]
fn a_broken_file_has_a_verdict_or_an_error_and_soon() {
    let source = with(
        "\t.section __ex_table, \"a\"\n\t.long inside - ., 0\n\t.data\n\t.quad switcher_enter_guest\n\
         \t.section .two, \"ax\"\n\tjmp inside\n",
    );
    let object = assemble(&source, &[]);
    let samples =
        [object, linked(&source, &[]), linked(&source, &["-pie"]), linked(&source, &["-shared"])];
    let mut random = fastrand::Rng::with_seed(10);
    let mut seconds = 0.0_f64;
    let mut outcomes = [0; 3];
    for sample in &samples {
        let code = section_header(sample, ".text");
        let (at, size) = (u64_at(sample, code + 24) as usize, u64_at(sample, code + 32) as usize);
        for _ in 0..1000 {
            let mut changed = sample.clone();
            for _ in 0..random.usize(1..4) {
                // Not in the code: that is what the other tests do.
                let mut place = random.usize(0..changed.len());
                if (at..at + size).contains(&place) {
                    place = random.usize(0..64);
                }
                match random.u8(0..4) {
                    0 => changed[place] ^= 1 << random.u8(0..8),
                    1 => changed[place] = random.u8(..),
                    2 => changed[place] = 0xFF,
                    _ => {
                        let end = (place + 8).min(changed.len());
                        changed[place..end].fill_with(|| random.u8(..));
                    }
                }
            }
            let start = std::time::Instant::now();
            let found = read(&changed);
            seconds = seconds.max(start.elapsed().as_secs_f64());
            match found.map(|foreign| target(&foreign)) {
                Err(_) | Ok(Err(_)) => outcomes[0] += 1,
                Ok(Ok(target)) => {
                    outcomes[1] += 1;
                    // Some of them, or it takes long.
                    if outcomes[1] % 128 == 0 {
                        let _ = Prover::default().prove(&target);
                        outcomes[2] += 1;
                    }
                }
            }
        }
    }
    assert!(outcomes[0] > 100 && outcomes[1] > 100 && outcomes[2] > 0, "{outcomes:?}");
    // The slowest, on a machine that may be busy.
    assert!(seconds < 10.0, "{seconds}");
}

/// What says "so many" in a few bytes must not be believed.
#[test]
fn a_size_that_is_too_large_is_no_size() {
    let right = linked(SWITCHER, &[]);
    for at in [0x20, 0x28, 0x38, 0x3C] {
        for value in [u64::MAX, 1 << 40, 1 << 62] {
            let mut changed = right.clone();
            let width = if at < 0x38 { 8 } else { 2 };
            patch(&mut changed, at, &value.to_le_bytes()[..width]);
            let _ = read(&changed);
        }
    }
    for field in [16, 24, 32, 40, 48, 56] {
        for value in [u64::MAX, 1 << 40, u64::MAX - 0xFFF] {
            for name in [".text", ".symtab", ".strtab"] {
                let mut changed = right.clone();
                let at = section_header(&changed, name) + field;
                patch(&mut changed, at, &value.to_le_bytes());
                let _ = read(&changed);
            }
        }
    }
}
