//! Lines of sources, from the DWARF of files: of right ones, and of damaged ones.

mod gas;

use std::fs::File;
use std::io::Write as _;

use switcher_prove::elf;
use switcher_prove::{Lines, NoLines};

/// What is known of these bytes as a file.
fn lines(bytes: &[u8]) -> (elf::Foreign, Result<Lines, NoLines>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let file: File = file;
    let foreign = elf::read_file(&file).unwrap();
    let lines = Lines::read(&file, &foreign);
    (foreign, lines)
}

/// The number of the first line of the source with this text after its label.
fn line_after(label: &str, text: &str) -> u64 {
    let mut lines = (1..).zip(gas::SWITCHER.lines()).skip_while(|(_, line)| !line.ends_with(label));
    lines.find(|(_, line)| line.trim_start().starts_with(text)).unwrap().0
}

#[test]
fn each_symbol_has_the_line_of_its_first_instruction() {
    let first = [
        ("routine entry_SYSCALL_64_switcher", "entry_SYSCALL_64_switcher", "swapgs"),
        ("routine switcher_return_from_guest", "switcher_return_from_guest", "movq"),
        ("routine entry_SYSCALL_compat_switcher", "entry_SYSCALL_compat_switcher", "movl"),
        ("entry_IRETQ_switcher:", "entry_IRETQ_switcher", "iretq"),
    ];
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let object = gas::assemble_with(gas::SWITCHER, &[], &[version]);
        let options = ["-Ttext=0x400000", "-e", "switcher_enter_guest"];
        for bytes in [gas::process("ld", &options, &object), object] {
            let (foreign, lines) = lines(&bytes);
            let lines = lines.unwrap();
            for (label, symbol, text) in first {
                let found = lines.at(foreign.symbol(symbol).unwrap()).unwrap();
                assert_eq!(
                    (&*found.file, found.line),
                    (gas::SOURCE, line_after(label, text)),
                    "{version}"
                );
            }
            // Neither before the code nor behind it.
            let (start, piece) = &foreign.pieces[0];
            assert_eq!(lines.at(start - 1), None);
            assert_eq!(lines.at(start + piece.len() as u64 + 0x1000), None);
        }
    }
}

#[test]
fn why_there_are_none_is_said() {
    let object = gas::assemble_with(gas::SWITCHER, &[], &["-g"]);
    assert_eq!(lines(&gas::process("strip", &["-g"], &object)).1.err(), Some(NoLines::None));
    let compressed =
        gas::assemble_with(gas::SWITCHER, &[], &["-g", "--compress-debug-sections=zlib"]);
    let why = lines(&compressed).1.unwrap_err();
    assert!(matches!(why, NoLines::Compressed(_)), "{why}");
    assert!(why.to_string().contains("objcopy --decompress-debug-sections"), "{why}");
}

/// Whatever is in there, it is no panic, and what is found is a line of a file.
#[test]
fn damaged_dwarf_is_a_reason_and_no_more() {
    use object::{Object as _, ObjectSection as _};
    let options = ["-Ttext=0x400000", "-e", "switcher_enter_guest"];
    let right = gas::process("ld", &options, &gas::assemble_with(gas::SWITCHER, &[], &["-g"]));
    let file = object::File::parse(&*right).unwrap();
    let (mut damaged, mut count) = (0, 0);
    for section in file.sections() {
        if !section.name().unwrap().starts_with(".debug") {
            continue;
        }
        let (start, size) = section.file_range().unwrap();
        for at in (start..start + size).step_by(5) {
            for value in [0x00, 0x7F, 0xFF] {
                let mut wrong = right.clone();
                wrong[at as usize] = value;
                let (foreign, lines) = lines(&wrong);
                count += 1;
                match lines {
                    Ok(lines) => drop(lines.at(foreign.pieces[0].0)),
                    Err(why) => {
                        damaged += 1;
                        assert!(!why.to_string().is_empty());
                    }
                }
            }
        }
    }
    assert!(damaged > 10 && count > damaged, "{damaged} of {count}");
}
