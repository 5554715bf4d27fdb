//! What loaders do otherwise than sections, offsets and kinds seem to say.

use gas::{SWITCHER, process, replaced};
use switcher_gen::{Image, Variant};
use switcher_listing::object_file;
use switcher_prove::elf::{ReadError, read};

use super::{
    assemble, code_segment, error, gas, linked, patch, proved, section_header, u64_at, with,
};

/// Where in the file the program headers of a type are.
fn program_headers(file: &[u8], kind: u32) -> Vec<usize> {
    let (start, count) = (u64_at(file, 0x20) as usize, u16::from_le_bytes([file[56], file[57]]));
    let headers = (0..count as usize).map(|number| start + 56 * number);
    headers.filter(|at| file[*at..*at + 4] == kind.to_le_bytes()).collect()
}

#[track_caller]
fn dynamic(file: &[u8], part: &str) {
    match error(file) {
        ReadError::Dynamic { why } => assert!(why.contains(part), "{part}: {why}"),
        other => panic!("{part}: {other}"),
    }
}

#[test]
fn the_dynamic_section_is_read_where_the_loader_reads_it() {
    const PT_DYNAMIC: u32 = 2;
    const PT_GNU_STACK: u32 = 0x6474_E551;
    let source = with("\t.data\nholder:\t.quad holder\n");
    let right = linked(&source, &["-shared", "-Bsymbolic"]);
    proved(&right);
    let header = program_headers(&right, PT_DYNAMIC)[0];
    let changed = |at: usize, bytes: &[u8]| {
        let mut changed = right.clone();
        patch(&mut changed, at, bytes);
        changed
    };
    // Another one at the address than at the offset, or the reverse; and no end of it.
    for field in [8, 16] {
        let value = u64_at(&right, header + field) + 16;
        dynamic(&changed(header + field, &value.to_le_bytes()), "at its address");
    }
    dynamic(&changed(header + 32, &[0; 8]), "no end");
    dynamic(&changed(header + 32, &32_u64.to_le_bytes()), "no end");
    // Two of them.
    let stack = program_headers(&right, PT_GNU_STACK)[0];
    dynamic(&changed(stack, &PT_DYNAMIC.to_le_bytes()), "more than once");
    // One tag with two values: some loaders take the first, some the last.
    let start = u64_at(&right, header + 8) as usize;
    let end = (start..).step_by(16).find(|at| u64_at(&right, *at) == 0).unwrap();
    let tag = |tag: u64| (start..end).step_by(16).find(|at| u64_at(&right, *at) == tag).unwrap();
    let mut twice = changed(end, &7_u64.to_le_bytes());
    patch(&mut twice, end + 8, &0x1234_u64.to_le_bytes());
    dynamic(&twice, "two things");
    // More relocations than the segment holds.
    dynamic(&changed(tag(8) + 8, &0x10_0000_u64.to_le_bytes()), "relocations");
    dynamic(&changed(tag(7) + 8, &0x1234_5678_u64.to_le_bytes()), "relocations");
}

#[test]
fn nothing_else_is_mapped_to_a_page_of_the_code() {
    let script = |data: &str| {
        format!(
            "PHDRS {{ code PT_LOAD FLAGS(5); data PT_LOAD FLAGS(6); }}
             SECTIONS {{ . = 0x400000 + SIZEOF_HEADERS; . = ALIGN(64); .text : {{ *(.text) }} :code
             . = ALIGN({data}); .data : {{ *(.data) }} :data /DISCARD/ : {{ *(.note*) }} }}"
        )
    };
    let object = assemble(&with("\t.data\n\t.quad 1, 2, 3\n"), &[]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script.ld");
    let link = |data: &str| {
        std::fs::write(&path, script(data)).unwrap();
        let args = ["-T", path.to_str().unwrap(), "-z", "max-page-size=4096", "-e", "0"];
        process("ld", &args, &object)
    };
    proved(&link("4096"));
    let found = error(&link("64"));
    assert!(matches!(found, ReadError::Segments { .. }), "{found}");
}

#[test]
fn usual_ways_to_link_are_accepted() {
    let source = with(
        "\t.section .rodata\n\t.quad 7, -1\n\t.data\nholder:\t.quad holder\n\t.bss\n\t.skip 99\n",
    );
    for args in [
        &["-z", "separate-code"][..],
        &["-z", "noseparate-code"],
        &["-static", "--emit-relocs"],
        &["-z", "max-page-size=4096", "-z", "noseparate-code"],
        &["-pie", "-z", "relro", "-z", "now"],
        &["-pie", "--no-dynamic-linker", "-z", "noseparate-code"],
        &["-pie", "-z", "pack-relative-relocs"],
        &["-shared", "-Bsymbolic", "-soname", "mine", "--hash-style=both"],
    ] {
        proved(&linked(&source, args));
    }
    let gold = process("ld.gold", &["-e", "switcher_enter_guest"], &assemble(&source, &[]));
    proved(&gold);
}

#[test]
fn physical_addresses_of_the_code_are_its_own() {
    let source = with("\t.data\n\t.quad 1, 2, 3, 4\n");
    let right = linked(&source, &["-Tdata=0x600000"]);
    let loads = program_headers(&right, 1);
    let code = code_segment(&right);
    let data = loads.iter().find(|at| u64_at(&right, **at + 16) == 0x60_0000).unwrap();
    let mut changed = right.clone();
    let physical = u64_at(&right, code + 24);
    patch(&mut changed, data + 24, &(physical + 16).to_le_bytes());
    let found = error(&changed);
    assert!(matches!(found, ReadError::Physical { .. }), "{found}");
    assert!(found.to_string().contains("p_paddr"), "{found}");
    // All of them elsewhere, or none at all.
    for by in [0x1000_0000_u64, 0] {
        let mut changed = right.clone();
        for at in &loads {
            let physical = if by == 0 { 0 } else { u64_at(&right, at + 24) + by };
            patch(&mut changed, at + 24, &physical.to_le_bytes());
        }
        proved(&changed);
    }
}

#[test]
fn a_relocation_changes_as_much_as_its_kind_does() {
    let source = with("\t.data\nholder:\t.quad holder\n");
    let right = linked(&source, &["-shared", "-Bsymbolic"]);
    let table = u64_at(&right, section_header(&right, ".rela.dyn") + 24) as usize;
    let header = section_header(&right, ".text");
    let (start, size) = (u64_at(&right, header + 16), u64_at(&right, header + 32));
    let relocated = |at: u64, kind: u64| {
        let mut changed = right.clone();
        patch(&mut changed, table, &at.to_le_bytes());
        patch(&mut changed, table + 8, &kind.to_le_bytes());
        read(&changed).map(drop)
    };
    const RELATIVE: u64 = 8;
    const TLSDESC: u64 = 36;
    const COPY: u64 = 5;
    for (at, kind, is_right) in [
        (start - 12, RELATIVE, true),
        (start - 12, TLSDESC, false),
        (start - 16, TLSDESC, true),
        (start - 2, 12, true),
        (start - 1, 12, false),
        (start - 0x1000, COPY, false),
        (start + size, COPY, true),
        // A kind that nobody knows, close in front of the code and after it.
        (start - 40, 200, false),
        (start + size + 8, 200, false),
        (start - 4096, 200, true),
    ] {
        let expected = if is_right { Ok(()) } else { Err(ReadError::LoadTime { at }) };
        assert_eq!(relocated(at, kind), expected, "{at:#x}, {kind}");
    }
    // In an object, a linker rewrites what is around a place.
    let before = |kind: &str| {
        let more = format!(
            "\t.text\nfront:\n\t.rept 64\n\t.byte 0xC3\n\t.endr\n\t.reloc front + 56, {kind}, elsewhere\n"
        );
        read(&assemble(&replaced(SWITCHER, &[("\t.text\n", &more)]), &[])).map(drop)
    };
    assert_eq!(before("R_X86_64_GOTPCREL"), Ok(()));
    let found = before("R_X86_64_TLSGD");
    assert!(matches!(found, Err(ReadError::Relocation { kind: 19, .. })), "{found:?}");
}

/// An object with one more section, which has no name.
fn with_section(object: &[u8], mut header: [u64; 8], bytes: &[u8]) -> Vec<u8> {
    let mut file = object.to_vec();
    file.resize(file.len().next_multiple_of(8), 0);
    header[3] = file.len() as u64;
    header[4] = bytes.len() as u64;
    file.extend(bytes);
    file.resize(file.len().next_multiple_of(8), 0);
    let (at, count) = (u64_at(object, 0x28) as usize, u16::from_le_bytes([object[60], object[61]]));
    let table = file.len() as u64;
    file.extend(&object[at..at + 64 * count as usize]);
    file.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    patch(&mut file, 0x28, &table.to_le_bytes());
    patch(&mut file, 60, &(count + 1).to_le_bytes());
    file
}

#[test]
fn a_group_is_what_lists_its_members() {
    let object = object_file(&Image::new(&Variant::REFERENCE).unwrap()).unwrap();
    let headers = u64_at(&object, 0x28) as usize;
    let number = |name: &str| ((section_header(&object, name) - headers) / 64) as u32;
    for name in [".text", ".rela.text"] {
        let words = [1, number(name)].map(u32::to_le_bytes).concat();
        // Type, flags, address, place, size, link and info, alignment, size of an entry.
        let links = u64::from(number(".symtab")) | 1 << 32;
        let grouped = with_section(&object, [17 << 32, 0, 0, 0, 0, links, 4, 4], &words);
        let found = error(&grouped).to_string();
        assert!(found.contains("`.text` is in a group"), "{name}: {found}");
    }
}

#[test]
fn what_is_loaded_is_looked_through_and_not_what_sections_say() {
    let table = ".section my_sites, \"a\"\n.quad 0\n.quad inside\n.section .rodata\n.quad 0";
    let right = linked(&with(table), &[]);
    let header = section_header(&right, "my_sites");
    let is_found = |changed: &[u8], part: &str| match error(changed) {
        ReadError::MaybePatched { section, .. } => assert!(section.contains(part), "{section}"),
        other => panic!("{part}: {other}"),
    };
    is_found(&right, "my_sites");
    // Without bytes, by its type.
    let mut changed = right.clone();
    patch(&mut changed, header + 4, &8_u32.to_le_bytes());
    is_found(&changed, "my_sites");
    // In no section.
    let mut changed = right.clone();
    patch(&mut changed, header + 32, &[0; 8]);
    is_found(&changed, "no section has");
    // Elsewhere in the file.
    let mut changed = right.clone();
    patch(&mut changed, header + 24, &64_u64.to_le_bytes());
    let found = error(&changed);
    assert_eq!(found, ReadError::Elsewhere { section: "my_sites".into() });
}
