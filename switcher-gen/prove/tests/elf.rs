//! The ELF object is what it says it is to those who will read it: a parser, the linker, the
//! disassembler. Needs binutils.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use object::elf::SHT_PROGBITS;
use object::read::{Object, ObjectSection, ObjectSymbol, RelocationTarget};
use object::{SectionFlags, SectionIndex, SymbolKind};
use switcher_gen::asm::{HostSymbol, Label};
use switcher_gen::{Image, Variant};
use switcher_listing::object_file;

/// A tool's standard output, if it succeeds and has nothing to complain of.
fn run(tool: &str, args: &[&OsStr]) -> String {
    let output = Command::new(tool)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {tool} (Debian package binutils): {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{tool} {args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn write_object(dir: &Path, image: &Image) -> std::path::PathBuf {
    let path = dir.join("switcher.o");
    std::fs::write(&path, object_file(image).unwrap()).unwrap();
    path
}

/// What a host defines, for a linker.
fn hooks() -> [String; HostSymbol::HOOKS.len()] {
    HostSymbol::HOOKS.map(|hook| format!("--defsym={}=0x201000", hook.0))
}

#[test]
fn symbols_and_sections_read_back() {
    for variant in Variant::representative() {
        let image = Image::new(&variant).unwrap();
        let bytes = object_file(&image).unwrap();
        let file = object::File::parse(&*bytes).unwrap();

        let text = file.section_by_name(".text").unwrap();
        assert_eq!(text.data().unwrap(), image.bytes(), "{variant}");
        assert_eq!(text.align(), Image::ALIGNMENT);
        let of_host = |symbol| file.symbol_by_index(symbol).unwrap().name().unwrap();
        let referred: BTreeSet<_> = text
            .relocations()
            .map(|(_, relocation)| match relocation.target() {
                RelocationTarget::Symbol(symbol) => of_host(symbol),
                other => panic!("{other:?}"),
            })
            .collect();
        let returns = HostSymbol::RETURNS.iter().filter(|_| variant.mitigations().untrain);
        let expected = HostSymbol::HOOKS.iter().chain(returns).map(|symbol| symbol.0);
        assert_eq!(referred, expected.collect(), "{variant}");
        let stack = file.section_by_name(".note.GNU-stack").unwrap();
        let SectionFlags::Elf { sh_type, sh_flags } = stack.flags() else { panic!("not ELF") };
        assert_eq!((stack.size(), sh_type, sh_flags.0), (0, SHT_PROGBITS, 0));

        let symbols: BTreeMap<_, _> = file
            .symbols()
            .filter(|symbol| symbol.is_global() && symbol.is_definition())
            .map(|symbol| (symbol.name().unwrap().to_owned(), symbol))
            .collect();
        assert_eq!(symbols.len(), image.symbols().len(), "{variant}");
        for (label, offset) in image.symbols() {
            let symbol = &symbols[label.name()];
            assert_eq!(symbol.address(), u64::from(offset), "{}", label.name());
            assert_eq!(symbol.section_index(), Some(text.index()));
        }
        // The functions cover the image without gap or overlap.
        let mut functions: Vec<_> =
            symbols.values().filter(|symbol| symbol.kind() == SymbolKind::Text).collect();
        functions.sort_by_key(|symbol| symbol.address());
        let mut end = 0;
        for function in functions {
            assert_eq!(function.address(), end, "{:?}", function.name());
            end += function.size();
        }
        assert_eq!(end, image.bytes().len() as u64);
    }
}

#[test]
fn a_linked_host_still_says_which_switcher_it_has() {
    let variant: Variant = "intel-la57-ibt".parse().unwrap();
    let image = Image::new(&variant).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let object = write_object(dir.path(), &image);
    let host = dir.path().join("host");
    let entry = format!("--entry={}", Label::EnterGuest.name());
    let [a, b, c, e] = hooks();
    let hooks = [a.as_ref(), b.as_ref(), c.as_ref(), e.as_ref()];
    let text = "-Ttext=0x200000".as_ref();
    let args = ["-o".as_ref(), host.as_ref(), entry.as_ref(), text, object.as_ref()];
    run("ld", &[&hooks[..], &args].concat());

    let notes = run("readelf", &["--notes".as_ref(), "--wide".as_ref(), host.as_ref()]);
    let data = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    assert!(notes.contains(&data(variant.to_string().as_bytes())), "{notes}");
    assert!(notes.contains(&data(image.fingerprint().as_bytes())), "{notes}");
}

#[test]
fn the_linker_and_the_disassembler_accept_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new(&Variant::REFERENCE).unwrap();
    let switcher = write_object(dir.path(), &image);

    let relinked = dir.path().join("relinked.o");
    run("ld", &["-r".as_ref(), "-o".as_ref(), relinked.as_ref(), switcher.as_ref()]);
    let disassembly = run("objdump", &["-d".as_ref(), relinked.as_ref()]);
    // Behind the end there is nothing.
    // One of two names of a place is shown, and none of the end.
    let unseen = [Label::EventStubsEnd, Label::Routines, Label::RoutinesEnd];
    for (label, _) in image.symbols().into_iter().filter(|(l, _)| !unseen.contains(l)) {
        assert!(disassembly.contains(&format!("<{}>:", label.name())), "{}", label.name());
    }
    assert!(disassembly.contains("sysretq"), "{disassembly}");
    assert!(!disassembly.contains("(bad)"), "{disassembly}");
}

#[test]
fn linked_into_a_host_the_window_table_leads_to_the_windows() {
    const BASE: u64 = 0x20_0000;
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new(&Variant::REFERENCE).unwrap();
    let switcher = write_object(dir.path(), &image);
    let linked = dir.path().join("linked");
    let [a, b, c, e] = hooks();
    run(
        "ld",
        &[
            a.as_ref(),
            b.as_ref(),
            c.as_ref(),
            e.as_ref(),
            "-Ttext=0x200000".as_ref(),
            "--entry=switcher_enter_guest".as_ref(),
            "-o".as_ref(),
            linked.as_ref(),
            switcher.as_ref(),
        ],
    );

    let bytes = std::fs::read(linked).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    assert_eq!(file.entry(), BASE + u64::from(image.offset(Label::EnterGuest)));
    let section = file.section_by_name("switcher_windows").unwrap();
    assert_ne!(section.index(), SectionIndex(0));
    let dword = |i: usize| {
        let bytes = section.data().unwrap()[i * 4..][..4].try_into().unwrap();
        i32::from_le_bytes(bytes)
    };
    let target = |i: usize| (section.address() + i as u64 * 4).wrapping_add_signed(dword(i).into());
    assert_eq!(section.size() as usize, image.windows().len() * 12);
    for (entry, range) in image.windows().iter().enumerate() {
        let i = entry * 3;
        assert_eq!(target(i), BASE + u64::from(range.start));
        assert_eq!(target(i + 1), BASE + u64::from(range.end));
        assert_eq!(dword(i + 2), range.window as i32);
    }
}
