//! Files that are small, and of which a reader could take very long to read everything.

use std::time::{Duration, Instant};

use super::{SWITCHER, Setting, Target, Variant, assemble, error, linked};
use switcher_prove::elf::{ReadError, read};

/// What a file of a mebibyte may take, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_long_name_is_read_once_for_all_relocations() {
    let other = "\t.text\n\t.p2align 12\nother:\tret\n";
    let name = "a".repeat(1 << 20);
    let table =
        format!("\t.section jump_table{name}, \"a\"\n\t.rept 60000\n\t.quad other\n\t.endr\n");
    let object = assemble(&format!("{SWITCHER}\n{other}{table}"), &[]);
    let start = Instant::now();
    read(&object).unwrap();
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

/// The file with more segments and sections that have no name: their addresses and sizes.
fn with_more(file: &[u8], segments: &[(u64, u64)], sections: &[(u64, u64)]) -> Vec<u8> {
    let word = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
    let table = |at: usize, count: usize, size: usize| {
        let start = u64_at(file, at) as usize;
        file[start..start + usize::from(word(count)) * size].to_vec()
    };
    let (mut headers, mut all) = (table(0x20, 56, 56), table(0x28, 60, 64));
    for (address, size) in segments {
        let words = [1 | 4 << 32, 0, *address, *address, *size, *size, 4096];
        headers.extend(words.iter().flat_map(|word: &u64| word.to_le_bytes()));
    }
    for (address, size) in sections {
        let words = [1 << 32, 2, *address, 0, *size, 0, 1, 0];
        all.extend(words.iter().flat_map(|word: &u64| word.to_le_bytes()));
    }
    let mut changed = file.to_vec();
    changed.resize(file.len().next_multiple_of(8), 0);
    for (at, count, size, table) in [(0x20, 56, 56, headers), (0x28, 60, 64, all)] {
        let start = changed.len() as u64;
        changed[at..at + 8].copy_from_slice(&start.to_le_bytes());
        changed[count..count + 2].copy_from_slice(&((table.len() / size) as u16).to_le_bytes());
        changed.extend(table);
    }
    changed
}

#[test]
fn segments_over_each_other_are_refused() {
    let right = linked(SWITCHER, &[]);
    let far = 0x1000_0000;
    for (one, other) in [((far, 0x100), (far, 0x100)), ((far, 0x100), (far + 0xFF, 1))] {
        let found = error(&with_more(&right, &[other, one], &[]));
        assert_eq!(found, ReadError::SegmentsOverlap { at: other.0 });
    }
    // Beside each other they may be. The program headers are no longer where they were, and what is
    // there now names the code.
    let mut apart = read(&with_more(&right, &[(far, 0x100), (far + 0x100, 0x100)], &[])).unwrap();
    apart.assume_unpatched();
    assert!(Target::foreign(&apart, Setting::from(&Variant::REFERENCE)).is_ok());
    // Very many segments, with gaps between sections.
    let segments: Vec<_> = (0..4000).map(|number| (far + 4 * number, 4)).collect();
    let sections: Vec<_> =
        (0..32000).map(|number| (far + number, u64::from(number % 2 == 0))).collect();
    let many = with_more(&right, &segments, &sections);
    let start = Instant::now();
    let _ = read(&many);
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}
