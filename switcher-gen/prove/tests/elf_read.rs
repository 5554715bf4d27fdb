//! The reader of other people's code, on what our emitters, `as` and `ld` make, and on files that
//! are broken in every way. Needs binutils.

mod gas;

use gas::{assemble, process};
use switcher_gen::asm::HostSymbol;
use switcher_gen::{Image, Variant};
use switcher_listing::object_file;
use switcher_prove::elf::{CodeSection, Foreign, PlaceInFile, ReadError, read};

const BASE: u64 = Foreign::BASE;
const ROUTINES: [&str; 5] = [
    "switcher_enter_guest",
    "switcher_return_from_guest",
    "entry_SYSCALL_64_switcher",
    "entry_SYSCALL_compat_switcher",
    "entry_IRETQ_switcher",
];

#[track_caller]
fn foreign(data: &[u8]) -> Foreign {
    read(data).unwrap_or_else(|error| panic!("{error}"))
}

/// All routines without which there is nothing to be judged, at one place.
const ROUTINE: &str = "
    .globl switcher_enter_guest, switcher_return_from_guest, entry_SYSCALL_64_switcher
    switcher_enter_guest: switcher_return_from_guest: entry_SYSCALL_64_switcher:
";

/// The error for an object made of `source`, which begins with a routine.
#[track_caller]
fn refused(source: &str) -> ReadError {
    read(&assemble(&format!("{ROUTINE}{source}"), &[])).unwrap_err()
}

fn at(section: &str, offset: u64) -> PlaceInFile {
    PlaceInFile { section: section.into(), offset }
}

/// The rel32 that ends at `end`, resolved.
fn rel32(code: &Foreign, end: u64) -> u64 {
    let offset = (end - code.base) as usize;
    let field = code.bytes()[offset - 4..offset].try_into().unwrap();
    end.wrapping_add_signed(i32::from_le_bytes(field).into())
}

/// The code with the references to the host's hooks as they are before they are resolved.
fn unresolved(image: &Image, code: &Foreign) -> Vec<u8> {
    let mut bytes = code.bytes();
    for relocation in image.relocations() {
        let at = relocation.at as usize;
        bytes[at..at + 4].copy_from_slice(&image.bytes()[at..at + 4]);
    }
    bytes
}

/// The image, with INT3 where nothing leads: after a jump to a thunk of the host's.
#[track_caller]
fn reached(image: &Image, code: &Foreign) -> Vec<u8> {
    let mut bytes = vec![0xCC; image.bytes().len()];
    for (start, piece) in &code.pieces {
        let start = (start - code.base) as usize;
        let range = start..start + piece.len();
        bytes[range.clone()].copy_from_slice(&image.bytes()[range]);
    }
    let left_out = bytes.iter().zip(image.bytes()).filter(|(a, b)| a != b).count();
    assert!(left_out <= 1, "{left_out} bytes");
    bytes
}

#[test]
fn an_image_reads_back() {
    for variant in Variant::representative() {
        let image = Image::new(&variant).unwrap();
        let code = foreign(&object_file(&image).unwrap());
        assert_eq!(
            (code.base, unresolved(&image, &code)),
            (BASE, reached(&image, &code)),
            "{variant}"
        );
        let end = BASE + image.bytes().len() as u64;
        let [CodeSection { name, range, .. }] = &code.sections[..] else { panic!("one section") };
        assert_eq!((name.as_str(), range), (".text", &(BASE..end)));
        assert_eq!(code.symbols.len(), image.symbols().len());
        for (label, offset) in image.symbols() {
            assert_eq!(code.symbol(label.name()), Ok(BASE + u64::from(offset)), "{variant}");
        }
    }
}

#[test]
fn a_linked_image_reads_back_where_it_was_linked_to() {
    let image = Image::new(&Variant::REFERENCE).unwrap();
    let object = object_file(&image).unwrap();
    let entry = "--entry=switcher_enter_guest";
    for (base, args) in [
        (0x20_0000, ["-Ttext=0x200000", "-static"]),
        (0xFFFF_FFFF_8100_0000, ["-Ttext=0xffffffff81000000", "-static"]),
        (0x4_0000, ["-Ttext=0x40000", "-pie"]),
        (0x4_0000, ["-Ttext=0x40000", "-shared"]),
    ] {
        let hooks =
            HostSymbol::HOOKS.map(|hook| format!("--defsym={}=switcher_enter_guest-16", hook.0));
        let hooks = hooks.each_ref().map(String::as_str);
        // Nobody takes the place of its symbols, or there would be a PLT in front of the code.
        let args = [entry, args[0], args[1], "-Bsymbolic"];
        let linked = process("ld", &[&args[..], &hooks].concat(), &object);
        let code = foreign(&linked);
        assert_eq!(code.base, base, "{args:?}");
        assert_eq!(unresolved(&image, &code), reached(&image, &code), "{args:?}");
        for relocation in image.relocations() {
            let end = base + u64::from(relocation.at) + 4;
            assert_eq!(rel32(&code, end), base - 16, "{args:?}");
        }
        for (label, offset) in image.symbols() {
            assert_eq!(code.symbol(label.name()), Ok(base + u64::from(offset)), "{args:?}");
        }
    }
}

#[test]
fn a_stripped_library_has_its_exports_and_a_stripped_program_has_nothing() {
    let object = assemble(gas::SWITCHER, &[]);
    let library = process("ld", &["-shared", "-s"], &object);
    let library = foreign(&library);
    assert_eq!(library.symbols.len(), ROUTINES.len());
    let program = process("ld", &["--entry=0", "-s"], &object);
    assert_eq!(read(&program), Err(ReadError::Stripped));
    let object = process("strip", &["--strip-all"], &object);
    assert_eq!(read(&object), Err(ReadError::Stripped));
}

#[test]
fn the_switcher_by_hand_is_readable_and_its_data_can_be_elsewhere() {
    let code = foreign(&assemble(gas::SWITCHER, &[]));
    for name in ROUTINES {
        let offset = (code.symbol(name).unwrap() - BASE) as usize;
        assert!(offset < code.bytes().len(), "{name}");
    }
    // Constants are no code.
    assert_eq!(code.symbols.len(), ROUTINES.len(), "{:?}", code.symbols);
    let iretq = (code.symbols["entry_IRETQ_switcher"] - BASE) as usize;
    assert_eq!(code.bytes()[iretq..iretq + 2], [0x48, 0xCF]);

    let elsewhere = assemble(gas::SWITCHER, &[("GS_TSS", -0x2000), ("GS_TSS_EXTRA", 0x1040)]);
    let elsewhere = foreign(&elsewhere);
    assert_eq!(elsewhere.symbols, code.symbols);
    // mov gs:[TSS.sp2], rsp after SWAPGS.
    let entry = (code.symbols["entry_SYSCALL_64_switcher"] - BASE) as usize;
    assert_eq!(code.bytes()[entry + 8..][..4], 0x14_i32.to_le_bytes());
    assert_eq!(elsewhere.bytes()[entry + 8..][..4], (-0x2000 + 0x14_i32).to_le_bytes());

    let broken = gas::replaced(gas::SWITCHER, &[("popq\t%rsp\n", "")]);
    let broken = foreign(&assemble(&broken, &[]));
    assert_ne!(broken.bytes(), code.bytes());
}

#[test]
fn sections_follow_each_other_and_reach_each_other() {
    let code = foreign(&assemble(
        r#"
        .text
        first: jmp second
        .section .two, "ax", @progbits
        .p2align 6
        second: call third
        jmp first
        .data
        .quad first
        .section .empty, "ax", @progbits
        nothing:
        .section .three, "ax", @progbits
        .p2align 4
        third: ret
        behind:
        "#,
        &[],
    ));
    let [first, second, third] =
        ["first", "second", "third"].map(|name| code.symbol(name).unwrap());
    assert_eq!([first, second, third], [BASE, BASE + 0x40, BASE + 0x50]);
    assert_eq!(rel32(&code, first + 5), second);
    assert_eq!(rel32(&code, second + 5), third);
    assert_eq!(rel32(&code, second + 10), first);
    assert!(code.bytes()[5..0x40].iter().all(|byte| *byte == 0xCC));
    assert!(code.bytes()[0x4A..0x50].iter().all(|byte| *byte == 0xCC));
    assert_eq!(code.symbol("behind"), Ok(third + 1));
    assert!(code.symbol("nothing").is_ok());
    let sections: Vec<_> = code.sections.iter().map(|section| section.name.as_str()).collect();
    assert_eq!(sections, [".text", ".two", ".three"]);
    assert_eq!(code.bytes().len(), 0x51);
}

#[test]
fn linked_sections_are_read_with_the_gap_between_them() {
    let object = assemble(
        ".globl a; a: call b\n.section .far, \"ax\", @progbits\n.globl b; b: jmp a\n",
        &[],
    );
    let args = ["--entry=a", "-Ttext=0x400000", "--section-start=.far=0x410000"];
    let code = foreign(&process("ld", &args, &object));
    assert_eq!((code.base, code.bytes().len()), (0x40_0000, 0x1_0005));
    assert_eq!(rel32(&code, 0x40_0005), 0x41_0000);
    assert_eq!(rel32(&code, 0x41_0005), 0x40_0000);
    assert!(code.bytes()[5..0x1_0000].iter().all(|byte| *byte == 0xCC));

    let args = ["--entry=a", "-Ttext=0x400000", "--section-start=.far=0x4000000"];
    let too_large = read(&process("ld", &args, &object)).unwrap_err();
    // No routine is in it, and that is what is said of it.
    assert!(matches!(too_large, ReadError::NoSymbol { .. }), "{too_large}");
}

#[test]
fn every_direct_relocation_is_applied() {
    let code = foreign(&assemble(
        r#"
        .globl there
        .section .a, "ax", @progbits
        start:
        .reloc ., R_X86_64_NONE, there
        .quad there
        .quad there + 8 - .
        .long there - .
        .word there - .
        .byte there - .
        call there
        call there@PLT
        movl $small, %eax
        movq $top, %rax
        .globl small, top
        .set small, 0xFFFFFFFF
        .set top, -0x80000000
        .section .b, "ax", @progbits
        there: ret
        "#,
        &[],
    ));
    let start = code.symbol("start").unwrap();
    let there = code.symbol("there").unwrap();
    let bytes = &code.bytes()[(start - BASE) as usize..];
    assert_eq!(bytes[..8], there.to_le_bytes());
    assert_eq!(bytes[8..16], (there - start).to_le_bytes());
    assert_eq!(bytes[16..20], ((there - start - 16) as u32).to_le_bytes());
    assert_eq!(bytes[20..22], ((there - start - 20) as u16).to_le_bytes());
    assert_eq!(bytes[22], (there - start - 22) as u8);
    assert_eq!(rel32(&code, start + 28), there);
    assert_eq!(rel32(&code, start + 33), there);
    assert_eq!(bytes[34..38], [0xFF; 4]);
    assert_eq!(bytes[41..45], [0, 0, 0, 0x80]);
}

#[test]
fn a_global_name_goes_before_local_ones_and_of_those_the_first() {
    // gas does not define a name twice; the linker keeps local ones of two files apart.
    let dir = tempfile::tempdir().unwrap();
    let objects = [
        "nop; name: nop; both: ret",
        "nop; nop; name: ret; .globl both; both: ret",
        "name: ret; both: ret",
    ];
    for (number, source) in objects.iter().enumerate() {
        let path = dir.path().join(format!("{number}.o"));
        std::fs::write(path, assemble(source, &[])).unwrap();
    }
    let paths = [0, 1, 2].map(|number| format!("{}/{number}.o", dir.path().display()));
    let first = std::fs::read(&paths[0]).unwrap();
    let code = foreign(&process("ld", &["-r", &paths[1], &paths[2]], &first));
    // In the linker's order: 1, 2, 0. No file is padded.
    assert_eq!(code.symbol("name"), Ok(BASE + 2));
    assert_eq!(code.symbol("both"), Ok(BASE + 3));
}

#[test]
fn references_to_what_is_not_there_name_it() {
    assert_eq!(
        refused("nop; call host_nmi"),
        ReadError::Undefined { at: at(".text", 2), symbol: "host_nmi".into() }
    );
    assert_eq!(
        refused(".data; value: .quad 0; .text; mov value(%rip), %rax"),
        ReadError::Data { at: at(".text", 3), section: ".data".into() }
    );
    assert_eq!(
        refused(".comm shared, 8; .text; mov shared(%rip), %rax"),
        ReadError::Data { at: at(".text", 3), section: "COMMON".into() }
    );
    assert_eq!(
        refused("mov there@GOTPCREL(%rip), %rax; .globl there; there: ret"),
        ReadError::Relocation { at: at(".text", 3), kind: 42 }
    );
    let message = refused("call host_nmi").to_string();
    assert_eq!(
        message,
        ".text+0x1 refers to `host_nmi`, which the file does not define: link it with what does, or \
         say which symbol of ours it is (`--symbol OURS=host_nmi`), or which data it is (`--per-cpu`, \
         `--read-only host_nmi:BYTES`)"
    );
}

#[test]
fn a_value_that_does_not_fit_is_an_error() {
    // Negative as a 64-bit address, and so no unsigned dword.
    for (source, kind, bits) in [
        ("movl $there, %eax; there: ret", 10, 32),
        ("jmp far; .set far, 0x123456789000; .globl far", 4, 32),
        ("movw $there - ., %ax; ret; .section .b, \"ax\"; .skip 40000; there: ret", 13, 16),
        ("movb $there - ., %al; ret; .section .b, \"ax\"; .skip 200; there: ret", 15, 8),
    ] {
        match refused(source) {
            ReadError::Overflow { kind: found, bits: width, .. } => {
                assert_eq!((found, width), (kind, bits), "{source}");
            }
            other => panic!("{source}: {other}"),
        }
    }
    // With a sign it fits, as in all code of the kernel's 2 GiB.
    let object = assemble(".globl _start; _start: movq $there, %rax; there: ret", &[]);
    assert_eq!(foreign(&object).bytes()[3..7], (BASE as u32 + 7).to_le_bytes());
    let linked = foreign(&process("ld", &["-Ttext=0xffffffff81000000"], &object));
    assert_eq!(linked.bytes()[3..7], 0x8100_0007_u32.to_le_bytes());
}

#[test]
fn code_that_the_loader_would_change_is_refused() {
    let source = format!("{ROUTINE}.globl _start; _start: movabs $_start, %rax; ret");
    let args = ["-pie", "-z", "notext", "-Ttext=0x40000"];
    let linked = process("ld", &args, &assemble(&source, &[]));
    assert_eq!(read(&linked), Err(ReadError::LoadTime { at: 0x4_0002 }));
}

#[test]
fn files_of_another_kind_are_named() {
    assert_eq!(read(b""), Err(ReadError::NotElf));
    assert_eq!(read(b"int main() {}"), Err(ReadError::NotElf));
    let object = assemble("nop", &[]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = object.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        read(&changed).unwrap_err()
    };
    let found = |found: &str| ReadError::NotX86_64 { found: found.into() };
    assert_eq!(changed(4, &[1]), found("32-bit little-endian code for x86-64"));
    assert_eq!(changed(18, &[183, 0]), found("64-bit little-endian code for AArch64"));
    assert_eq!(changed(18, &[0x39, 5]), found("64-bit little-endian code for machine 1337"));
    let big = [&[2_u8][..], &object[6..18], &[0, 22]].concat();
    assert_eq!(changed(5, &big), found("64-bit big-endian code for s390"));
    assert_eq!(changed(16, &[4, 0]), ReadError::FileType(4));

    assert_eq!(refused(".data; value: .quad 0"), ReadError::NoCode);
    assert_eq!(
        refused(".section .x, \"awx\", @nobits; x: .skip 0x7FFFFFFF"),
        ReadError::NoContents { section: ".x".into() }
    );
    let no_routine = read(&assemble("x: nop; .skip 0x1000000", &[])).unwrap_err();
    assert!(matches!(no_routine, ReadError::NoSymbol { .. }), "{no_routine}");
    let misaligned = refused("x: nop; .p2align 25");
    assert!(matches!(misaligned, ReadError::Alignment { .. }), "{misaligned}");
}

#[test]
fn a_missing_symbol_is_answered_with_those_there_are() {
    let code = foreign(&assemble(gas::SWITCHER, &[]));
    assert_eq!(
        code.symbol("switcher_enter_geust").unwrap_err().to_string(),
        "no code is called `switcher_enter_geust`; there is `entry_IRETQ_switcher`, \
         `entry_SYSCALL_64_switcher`, `entry_SYSCALL_compat_switcher`, `switcher_enter_guest`, \
         `switcher_return_from_guest`"
    );
    // Of many, the most similar.
    let many: String = (0..100).map(|n| format!("label_{n}: nop\n")).collect();
    let code = foreign(&assemble(&format!("{many} the_one: ret"), &[]));
    let ReadError::NoSymbol { known, .. } = code.symbol("teh_one").unwrap_err() else { panic!() };
    assert_eq!((known[0].as_str(), known.len()), ("the_one", 12));
    let none =
        foreign(&assemble("ret; .data; value: .quad 0", &[])).symbol("x").unwrap_err().to_string();
    assert_eq!(none, "no code is called `x`; the file names no code at all");
}

/// Valid files of all kinds, small, so that each byte's turn comes.
fn samples() -> Vec<Vec<u8>> {
    let source = r#"
        .globl _start
        .text
        _start: jmp second
        .section .two, "ax", @progbits
        .p2align 4
        second: call _start
        .quad second
        .data
        .quad _start
    "#;
    let object = assemble(source, &[]);
    let library = assemble(&source.replace("        .quad second\n", ""), &[]);
    // In one page, code and data could not be apart.
    let small = ["-z", "max-page-size=4096", "-z", "noseparate-code", "-Ttext=0x10000"];
    let linked = process("ld", &small, &object);
    let library = process("ld", &[&["-shared", "-Bsymbolic"], &small[..]].concat(), &library);
    let samples = vec![object, linked, library];
    for sample in &samples {
        assert!(sample.len() < 0x8000);
        read(sample).unwrap_or_else(|error| panic!("{error}"));
    }
    samples
}

#[test]
fn a_truncated_file_is_an_error_or_complete_without_the_rest() {
    for sample in samples() {
        for len in 0..sample.len() {
            // What is cut off may be padding, so Ok is no mistake; a panic is.
            if let Ok(code) = read(&sample[..len]) {
                assert!(code.bytes().len() <= sample.len() + 0x10000);
            }
        }
        assert!(read(&sample[..sample.len() / 2]).is_err());
    }
}

#[test]
fn no_changed_byte_makes_it_panic_or_take_much_memory() {
    for sample in samples() {
        let mut changed = sample.clone();
        for at in 0..sample.len() {
            for value in [!sample[at], sample[at] ^ 1, sample[at] ^ 0x80, 0xFF] {
                changed[at] = value;
                if let Ok(code) = read(&changed) {
                    assert!(code.bytes().len() <= 16 << 20);
                }
            }
            changed[at] = sample[at];
        }
        // At no address at all must it need aligned memory.
        let shifted = [&[0][..], &sample].concat();
        assert_eq!(read(&shifted[1..]), read(&sample));
    }
}

// Size: what many headers say of the same bytes.

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

/// The same file with `bytes` at its end, and `count` more section headers, of which `header` is
/// told where those are and gives the words.
fn with_headers(
    object: &[u8],
    bytes: &[u8],
    count: usize,
    header: impl Fn(u64) -> [u64; 8],
) -> Vec<u8> {
    let mut file = object.to_vec();
    file.resize(file.len().next_multiple_of(64), 0);
    let start = file.len() as u64;
    file.extend(bytes);
    file.resize(file.len().next_multiple_of(64), 0);
    let table = file.len() as u64;
    let at = u64_at(object, 0x28) as usize;
    let before = usize::from(u16::from_le_bytes([object[60], object[61]]));
    file.extend(&object[at..at + 64 * before]);
    for _ in 0..count {
        file.extend(header(start).iter().flat_map(|word| word.to_le_bytes()));
    }
    file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    file[60..62].copy_from_slice(&((before + count) as u16).to_le_bytes());
    file
}

#[test]
fn headers_that_share_their_bytes_are_refused_before_anything_is_read() {
    let object = object_file(&Image::new(&Variant::REFERENCE).unwrap()).unwrap();
    let size = 1 << 20;
    let bytes = vec![0x11; size];
    // Type and flags are PROGBITS and loaded: of unknown purpose, since they have no name.
    let unknown = |at| [1 << 32, 2, 0, at, size as u64, 0, 1, 0];
    let found = read(&with_headers(&object, &bytes, 2000, unknown)).unwrap_err();
    assert!(matches!(found, ReadError::Claims { .. }), "{found}");
    // A few are as good as any.
    foreign(&with_headers(&object, &bytes, 3, unknown));
    // Relocations of the code, again and again.
    let relocations = |at| [4 << 32, 0, 0, at, 24, 1 | 1 << 32, 8, 24];
    let found = read(&with_headers(&object, &[0; 24], 2000, relocations)).unwrap_err();
    assert!(matches!(found, ReadError::RelocatedBySeveral { .. }), "{found}");
}

#[test]
fn program_headers_that_share_their_bytes_are_refused() {
    let object = assemble(".globl _start; _start: ret", &[]);
    let linked = process("ld", &["-z", "max-page-size=4096"], &object);
    let table = u64_at(&linked, 0x20) as usize;
    let mut file = linked.clone();
    let at = file.len() as u64;
    for _ in 0..6 {
        let mut header = linked[table..table + 56].to_vec();
        header[..4].copy_from_slice(&1_u32.to_le_bytes());
        header[32..40].copy_from_slice(&(linked.len() as u64).to_le_bytes());
        file.extend(header);
    }
    file[0x20..0x28].copy_from_slice(&at.to_le_bytes());
    file[56..58].copy_from_slice(&6_u16.to_le_bytes());
    let found = read(&file).unwrap_err();
    assert!(matches!(found, ReadError::Claims { .. }), "{found}");
}

#[test]
fn names_that_share_their_bytes_are_no_more_than_the_file() {
    // One name of a mebibyte, which is that of many sections, or of many symbols.
    let name = "n".repeat(1 << 20);
    let object = assemble(&format!(".section {name}, \"a\"; .quad 1; .text; nop"), &[]);
    let at = u64_at(&object, 0x28) as usize;
    let headers = object[at..].chunks_exact(64);
    let index = headers.clone().position(|header| {
        let offset = u64_at(header, 24) as usize;
        u64_at(header, 32) == 8 && object[offset] == 1
    });
    let header = &object[at + 64 * index.unwrap()..];
    let word = u64_at(header, 0);
    let many = with_headers(&object, &[], 1000, |_| [word, 2, 0, 64, 0, 0, 1, 0]);
    let found = read(&many).unwrap_err();
    assert!(matches!(found, ReadError::TooLarge { .. }), "{found}");

    let object = assemble(&format!(".globl {name}; {name}: nop"), &[]);
    let at = u64_at(&object, 0x28) as usize;
    let headers = object[at..].chunks_exact(64);
    let table = headers.clone().position(|header| header[4] == 2).unwrap();
    let header = &object[at + 64 * table..][..64];
    let (from, size) = (u64_at(header, 24) as usize, u64_at(header, 32) as usize);
    let symbols = &object[from..from + size];
    let last = &symbols[size - 24..];
    let many: Vec<u8> =
        symbols.iter().chain(last.iter().cycle().take(24 * 1000)).copied().collect();
    let mut file = with_headers(&object, &many, 0, |_| [0; 8]);
    let start_of_table = object.len().next_multiple_of(64) as u64;
    let at = u64_at(&file, 0x28) as usize + 64 * table;
    file[at + 24..at + 32].copy_from_slice(&start_of_table.to_le_bytes());
    file[at + 32..at + 40].copy_from_slice(&(many.len() as u64).to_le_bytes());
    let found = read(&file).unwrap_err();
    assert!(matches!(found, ReadError::TooLarge { .. }), "{found}");
}
