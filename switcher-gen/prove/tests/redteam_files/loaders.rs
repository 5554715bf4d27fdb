//! What a program header may tell a loader to do to the code.

use super::{SWITCHER, error, linked, proved};
use switcher_prove::elf::ReadError;

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
}

fn headers(file: &[u8]) -> Vec<usize> {
    let (start, count) = (u64_at(file, 0x20) as usize, u16::from_le_bytes([file[56], file[57]]));
    (0..count as usize).map(|number| start + 56 * number).collect()
}

/// A linked file with a header that asks for nothing, and where that and the code's are.
fn sample() -> (Vec<u8>, usize, usize) {
    let source = format!("{SWITCHER}\n\t.section .note.GNU-stack, \"\", @progbits\n");
    let file = linked(&source, &[]);
    let all = headers(&file);
    let is = |at: &&usize, kind: u32| file[**at..**at + 4] == kind.to_le_bytes();
    let stack = *all.iter().find(|at| is(at, 0x6474_E551)).unwrap();
    let code = *all.iter().find(|at| is(at, 1) && file[**at + 4] & 1 == 1).unwrap();
    (file, stack, code)
}

#[test]
fn a_header_of_an_unknown_type_is_not_over_the_code() {
    let (right, stack, code) = sample();
    proved(&right);
    let with = |kind: u32, by: i64, size: u64| {
        let mut changed = right.clone();
        changed.copy_within(code..code + 56, stack);
        changed[stack..stack + 4].copy_from_slice(&kind.to_le_bytes());
        let at = u64_at(&right, code + 16).wrapping_add_signed(by);
        changed[stack + 16..stack + 24].copy_from_slice(&at.to_le_bytes());
        for field in [32, 40] {
            changed[stack + field..stack + field + 8].copy_from_slice(&size.to_le_bytes());
        }
        changed
    };
    // Those that OpenBSD fills with random bytes or makes writable, Solaris's, and others.
    for kind in [0x65A3_DBE6, 0x65A3_DBE5, 0x6FFF_FFFC, 5, 0x7000_0000, 0x6474_E5FF] {
        // Over the code, and in its page.
        for (by, size) in [(0, 0x100), (-16, 24), (0xF00, 8)] {
            match error(&with(kind, by, size)) {
                ReadError::ProgramHeader { kind: found, .. } => assert_eq!(found, kind),
                other => panic!("{kind:#x}: {other}"),
            }
        }
        // Elsewhere, or of nothing.
        for (by, size) in [(-0x10_0000, 0x100), (0x10_0000, 0x100), (0, 0)] {
            proved(&with(kind, by, size));
        }
    }
    // The harmless ones may be anywhere.
    for kind in [0, 4, 7, 0x6474_E550, 0x6474_E553, 0x6474_E554] {
        proved(&with(kind, 0, 0x100));
    }
    let message = error(&with(0x65A3_DBE6, 0, 8)).to_string();
    for part in ["0x65a3dbe6", "`.text`", "link the file without it"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn a_segment_has_memory_for_its_bytes() {
    let (right, _, code) = sample();
    for size in [0_u64, 16, u64_at(&right, code + 32) - 1] {
        let mut changed = right.clone();
        changed[code + 40..code + 48].copy_from_slice(&size.to_le_bytes());
        let found = error(&changed);
        assert!(matches!(found, ReadError::LessMemory { .. }), "{size}: {found}");
    }
}
