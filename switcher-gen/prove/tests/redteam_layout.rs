//! What a linker decides, nothing may depend on: objects that are right only if their parts lie
//! where a prover takes them to, and objects like them that are right wherever they lie. Needs
//! binutils.

mod gas;

use gas::{SWITCHER, assemble, process, process_all, replaced};
use object::{Object, ObjectSection, ObjectSymbol};
use switcher_gen::{Image, Variant};
use switcher_listing::object_file;
use switcher_prove::elf::{Foreign, LinkerError, ReadError, read};
use switcher_prove::{Prover, Setting, Target, Verdict};

/// The way back to the caller, which an attack may lead elsewhere.
const JUMP: &str = "\tjmp\tswitcher_return_from_guest\n";
/// A place where the host's own registers are all free.
const EXIT: &str = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
/// A second section of code.
const TWO: &str = "\n\t.section .two, \"ax\"\n\t.p2align 0\nx:\tret\n\tint3\n\t.text\n";

#[track_caller]
fn refused(source: &str) -> ReadError {
    read(&assemble(source, &[])).expect_err(source)
}

fn verdict(data: &[u8]) -> Verdict {
    let foreign = read(data).unwrap_or_else(|error| panic!("{error}"));
    let target = Target::foreign(&foreign, Setting::from(&Variant::REFERENCE));
    Prover::default().prove(&target.unwrap_or_else(|error| panic!("{error}")))
}

#[track_caller]
fn proved(data: &[u8]) {
    let found = verdict(data);
    assert!(matches!(found, Verdict::Proved(_)), "{found:?}");
}

fn is_apart(found: &ReadError, other: &str) -> bool {
    matches!(found, ReadError::Linker(LinkerError::Apart { section, .. }) if section == other)
}

fn is_hook(found: &ReadError, name: &str) -> bool {
    matches!(found, ReadError::Linker(LinkerError::HookAddress { symbol, .. }) if symbol == name)
}

/// Where a name is in its section, and how large that is.
fn place(data: &[u8], name: &str) -> (i64, i64) {
    let file = object::File::parse(data).unwrap();
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
    let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
    (symbol.address() as i64, section.size() as i64)
}

/// Where a hook of the host's was once taken to lie, of objects as of our own images.
fn once(hook: &str) -> u64 {
    let from_base = Target::place_of_host(hook).unwrap().wrapping_sub(Target::BASE);
    Foreign::BASE.wrapping_add(from_base)
}

#[test]
fn a_jump_to_another_section_leads_to_what_its_symbol_names() {
    // As far in front of the other section as the routine would be, if they lay end to end.
    let jump = |by: i64| {
        let to = format!("\t.byte 0xe9\n\t.long x + ({by}) - 4 - .\n");
        format!("{}{TWO}", replaced(SWITCHER, &[(JUMP, &to)]))
    };
    let (at, size) = place(&assemble(&jump(0), &[]), "switcher_return_from_guest");
    for by in [at - size, -1, 2, 0x1000] {
        let found = refused(&jump(by));
        assert!(is_apart(&found, ".two"), "{by}: {found}");
    }
    // To the section itself, it is code of another section; which is refused for that.
    let found = refused(&jump(0));
    assert!(
        matches!(&found, ReadError::SecondSection { section, .. } if section == ".two"),
        "{found}"
    );
    let message = refused(&jump(-1)).to_string();
    for part in [".text+0x", "`.two`", "put the code into one section", "link the file"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // Whoever links it knows what is there.
    let linked = process("ld", &["-e", "switcher_enter_guest"], &assemble(&jump(at - size), &[]));
    let _ = read(&linked);
}

#[test]
fn code_may_call_a_hook_and_nothing_near_it() {
    let hook = "switcher_host_fatal";
    let right = assemble(SWITCHER, &[]);
    let from = read(&right).unwrap().symbols["switcher_return_from_guest"];
    let jump = |by: i64| {
        let to = format!("\t.byte 0xe9\n\t.long {hook} + ({by}) - 4 - .\n");
        replaced(SWITCHER, &[(JUMP, &to)])
    };
    // The distances between the places that were once assumed, and those that are.
    let old = once(hook);
    let now = read(&assemble(&jump(0), &[])).unwrap().hosts[hook];
    for by in [from.wrapping_sub(old), from.wrapping_sub(now), 0x100, 1, 0x100_u64.wrapping_neg()] {
        let by = by.cast_signed();
        let Some(by) = i32::try_from(by).ok().map(i64::from) else { continue };
        let found = refused(&jump(by));
        assert!(is_hook(&found, hook), "{by:#x}: {found}");
    }
    let message = refused(&jump(1)).to_string();
    assert!(message.contains("call switcher_host_fatal"), "{message}");
    // To the hook itself it leads, which is no way back to the caller.
    let found = verdict(&assemble(&jump(0), &[]));
    assert!(!matches!(found, Verdict::Proved(_)), "{found:?}");
}

#[test]
fn a_call_of_one_hook_is_none_of_another() {
    let object = object_file(&Image::new(&Variant::REFERENCE).unwrap()).unwrap();
    proved(&object);
    let section = object::File::parse(&*object).unwrap();
    let table = section.section_by_name(".rela.text").unwrap().file_range().unwrap().0 as usize;
    let symbols: Vec<_> = section
        .symbols()
        .filter(|symbol| symbol.is_undefined())
        .filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.index().0 as u64)))
        .collect();
    let number = |name: &str| symbols.iter().find(|(known, _)| known == name).unwrap().1;
    let [nmi, check] = ["switcher_host_nmi", "switcher_host_machine_check"].map(number);
    let word = |at: usize| u64::from_le_bytes(object[at..at + 8].try_into().unwrap());
    let entry =
        (0..3).map(|entry| table + 24 * entry).find(|at| word(at + 8) >> 32 == check).unwrap();
    for by in [0x100_u64, 0x200, 1, 4, 0x400_0000] {
        for symbol in [nmi, check] {
            let mut changed = object.clone();
            let info = word(entry + 8) & 0xFFFF_FFFF | symbol << 32;
            changed[entry + 8..entry + 16].copy_from_slice(&info.to_le_bytes());
            let addend = word(entry + 16).wrapping_add(by);
            changed[entry + 16..entry + 24].copy_from_slice(&addend.to_le_bytes());
            let found = read(&changed).unwrap_err();
            assert!(
                matches!(found, ReadError::Linker(LinkerError::HookAddress { .. })),
                "{by}: {found}"
            );
        }
    }
}

#[test]
fn a_routine_is_not_the_end_of_its_section() {
    // Its code is the next section's, if the two lay end to end.
    let head = "\t.text\n\t.skip 64, 0x90\n\t.globl switcher_enter_guest\nswitcher_enter_guest:\n\
                \t.section .switch.text, \"ax\"\n\t.p2align 4\n";
    let moved = SWITCHER.replacen("\t.text\n", head, 1);
    let moved = moved.replacen("routine switcher_enter_guest\n", "", 1);
    let moved = moved.replacen("end_routine switcher_enter_guest\n", "", 1);
    for source in [
        moved.clone(),
        // In a section of nothing.
        moved.replacen("\t.skip 64, 0x90\n", "", 1),
    ] {
        match refused(&source) {
            ReadError::Linker(LinkerError::AtEnd { symbol, section }) => {
                assert_eq!((symbol.as_str(), section.as_str()), ("switcher_enter_guest", ".text"));
            }
            other => panic!("{other}"),
        }
    }
    // A hook that is one's own, too.
    let source = format!(
        "{SWITCHER}\n\t.section .hooks, \"ax\"\n\tret\n\t.globl switcher_host_fatal\nswitcher_host_fatal:\n"
    );
    let found = refused(&source);
    assert!(
        matches!(&found, ReadError::Linker(LinkerError::AtEnd { symbol, .. }) if symbol == "switcher_host_fatal"),
        "{found}"
    );
}

#[test]
fn two_bounds_are_of_one_section() {
    let object = object_file(&Image::new(&Variant::REFERENCE).unwrap()).unwrap();
    for (start, end) in [
        ("switcher_event_stubs", "switcher_event_stubs_end"),
        ("switcher_routines", "switcher_routines_end"),
    ] {
        for name in [start, end] {
            let without = format!("--strip-symbol={name}");
            let stripped = process("strip", &[&without], &object);
            let two = format!("\t.section .two, \"ax\"\n\t.globl {name}\n{name}:\n\tret\n");
            let both = process_all("ld", &["-r"], &[stripped, assemble(&two, &[])]);
            let found = read(&both).unwrap_err();
            assert_eq!(found, ReadError::Linker(LinkerError::Bounds { start, end }), "{name}");
        }
    }
    proved(&process("ld", &["-r"], &object));
}

/// The switcher, with instructions where registers are free that go on at 8.
fn asking(question: &str, more: &str) -> String {
    let question = format!("{question}\tje\t8f\n\tud2\n8:\n{EXIT}");
    format!("{}\n{more}", replaced(SWITCHER, &[(EXIT, &question)]))
}

#[test]
fn code_does_not_reckon_with_where_a_linker_puts_things() {
    let between = "\tsubq\t%rcx, %rdx\n\tcmpq\t$0x200, %rdx\n";
    let hooks = "\tleaq\tswitcher_host_nmi(%rip), %rcx\n\tleaq\tswitcher_host_fatal(%rip), %rdx\n";
    let found = refused(&asking(&format!("{hooks}{between}"), ""));
    assert!(is_hook(&found, "switcher_host_nmi"), "{found}");
    for (read, more) in [
        (
            "\tleaq\tx(%rip), %rcx\n\tleaq\tlbl(%rip), %rdx\nlbl:\tsubq\t%rdx, %rcx\n\tcmpq\t$0x300, %rcx\n",
            TWO,
        ),
        ("\tmovl\tx(%rip), %ecx\n\tcmpl\t$0xCCC3, %ecx\n", TWO),
        ("\tmovl\tx-4(%rip), %ecx\n\tcmpl\t$0x1234567, %ecx\n", TWO),
        ("\tmovabsq\t$x, %rcx\n\tcmpq\t$0x1234567, %rcx\n", TWO),
        ("\tmovl\t8f(%rip), %ecx\n\tcmpl\t$x - ., %ecx\n", TWO),
    ] {
        let found = refused(&asking(read, more));
        assert!(is_apart(&found, ".two"), "{read}: {found}");
    }
    for read in [
        "\tmovabsq\t$switcher_host_nmi, %rcx\n\tcmpq\t$0, %rcx\n",
        "\tmovq\tswitcher_host_nmi(%rip), %rcx\n\tcmpq\t$0, %rcx\n",
        // The distance of a call, read as a number.
        "\tmovl\t9f+1(%rip), %ecx\n\tcmpl\t$0x12345, %ecx\n\tje 8f\n9:\tcall switcher_host_nmi\n",
        // A table of distances.
        "\tmovl\t9f(%rip), %ecx\n\tcmpl\t$0x12345, %ecx\n\tje 8f\n\tjmp 8f\n9:\t.long switcher_host_nmi - .\n",
    ] {
        let found = refused(&asking(read, ""));
        assert!(is_hook(&found, "switcher_host_nmi"), "{read}: {found}");
    }
}

#[test]
fn no_number_leads_out_of_a_section() {
    // A call and a jump without a relocation, to the place that was assumed for a hook.
    let hook = once("switcher_host_fatal");
    for jump in ["0xe8", "0xe9"] {
        let with = |by: i64| {
            replaced(SWITCHER, &[(JUMP, &format!("away:\t.byte {jump}\n\t.long {by}\n"))])
        };
        let at = read(&assemble(&with(0), &[])).unwrap().symbols["away"];
        for by in [hook.wrapping_sub(at + 5).cast_signed(), 0x10_0000, -0x10_0000] {
            let found = refused(&with(by));
            assert!(
                matches!(&found, ReadError::Linker(LinkerError::Leaves { section, .. }) if section == ".text"),
                "{found}"
            );
        }
    }
    // An address of its own plus a number is one of nothing.
    let found = refused(&asking(
        "\tmovabsq\t$switcher_enter_guest + 0x100000, %rcx\n\tcmpq\t$1, %rcx\n",
        "",
    ));
    assert!(matches!(found, ReadError::Linker(LinkerError::Leaves { .. })), "{found}");
}

#[test]
fn distances_follow_from_the_file() {
    let source = format!(
        "{SWITCHER}\n\t.section .hooks, \"ax\"\n\t.globl switcher_host_fatal\nswitcher_host_fatal:\n\tret\n"
    );
    let of = |more: &str| {
        let foreign = read(&assemble(&format!("{source}{more}"), &[])).unwrap();
        (foreign.hosts.clone(), foreign.symbols["switcher_host_fatal"])
    };
    let (one, other) = (of(""), of("\t.section .comment\n\t.byte 1\n"));
    assert_eq!(one, of(""));
    for (name, address) in &one.0 {
        assert_ne!(*address, other.0[name], "{name}");
        assert!(Foreign::BASE - address < 1 << 31, "{name}");
        // None is beside another, and none where an image has it.
        assert_ne!(*address, once(name));
    }
    assert_ne!(one.1, other.1);
    // Sections are where they may be.
    let aligned = format!(
        "{SWITCHER}\n\t.section .two, \"ax\"\n\t.p2align 12\n\t.globl switcher_host_fatal\nswitcher_host_fatal:\n\tret\n"
    );
    let at = read(&assemble(&aligned, &[])).unwrap().symbols["switcher_host_fatal"];
    assert!(at.is_multiple_of(4096), "{at:#x}");
}

#[test]
fn what_is_right_wherever_it_lies_is_accepted() {
    let other = "\n\t.section .hooks, \"ax\"\n\t.skip 16, 0x90\n";
    let hook = "\t.globl switcher_host_fatal\nswitcher_host_fatal:\n\tret\n";
    for more in [
        // Hooks that the file has itself, in another section or in this one.
        format!("{other}{hook}"),
        format!("\n\t.text\n\t.p2align 8\n{hook}"),
        // Other code, which may do as it likes.
        format!(
            "{other}\tleaq switcher_host_nmi(%rip), %rax\n\tmovq x-4(%rip), %rcx\n\tret\n{TWO}"
        ),
    ] {
        proved(&assemble(&format!("{SWITCHER}{more}"), &[]));
    }
    // An address of the code's own, and a table of it.
    proved(&assemble(&asking("\tleaq\t9f(%rip), %rcx\n9:\tcmpq\t%rcx, %rcx\n", ""), &[]));
    proved(&assemble(
        &asking(
            "\tmovl\t9f(%rip), %ecx\n\tcmpl\t$7, %ecx\n\tje 8f\n\tud2\n9:\t.long 7\n\tcmpl\t%eax, %eax\n",
            "",
        ),
        &[],
    ));
    // Emitted objects are, of every kind.
    for variant in Variant::representative() {
        let object = object_file(&Image::new(&variant).unwrap()).unwrap();
        read(&object).unwrap_or_else(|error| panic!("{variant}: {error}"));
        read(&process("ld", &["-r"], &object)).unwrap_or_else(|error| panic!("{variant}: {error}"));
    }
}
