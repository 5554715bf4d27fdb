//! Whatever is done to a file, reading it ends, and without a panic.

use switcher_offsets::{OffsetsError, read};

mod tools;
use tools::{Folder, kernel_header};

/// Files of each kind, by name.
fn files() -> Vec<(String, Vec<u8>)> {
    let folder = Folder::new();
    let mut files = Vec::new();
    for (name, options) in [
        ("dwarf-4", &["-gdwarf-4"][..]),
        ("dwarf-5", &["-gdwarf-5"]),
        ("units-of-types", &["-gdwarf-5", "-fdebug-types-section"]),
        ("btf", &["-gbtf"]),
    ] {
        files.push((name.to_owned(), folder.kernel(name, options)));
    }
    folder.run("objcopy", &["--compress-debug-sections", "dwarf-5", "packed"]);
    folder.run("gcc", &["-shared", "-o", "linked", "dwarf-4"]);
    folder.raw_btf("btf", "raw");
    for name in ["packed", "linked", "raw"] {
        files.push((name.to_owned(), folder.read(name)));
    }
    files.push(("header".into(), kernel_header(&folder).into_bytes()));
    let toml = "[tss_extra]\nat = 104\nsize = 128\n[tss_extra.fields]\nhost_cr3 = 0\n\
                b = { at = 8, size = 8 }\n[pvcs.fields]\nrip = 96\n";
    let json = "{\"tss_extra\": {\"at\": 104, \"fields\": {\"a\": {\"at\": 8, \"size\": 8}}}}";
    files.push(("toml".into(), toml.into()));
    files.push(("json".into(), json.into()));
    files
}

#[test]
fn what_is_cut_off_is_refused_or_read() {
    let mut refused = 0;
    for (name, file) in files() {
        assert!(read(&file).is_ok(), "{name}");
        let step = (file.len() / 400).max(1);
        for end in (0..file.len()).step_by(step) {
            refused += usize::from(read(&file[..end]).is_err());
        }
    }
    assert!(refused > 2000, "{refused}");
}

#[test]
fn what_is_damaged_is_refused_or_read() {
    const ROUNDS: usize = 1500;
    let mut random = fastrand::Rng::with_seed(0x0FF5_E750);
    let (mut refused, mut same, mut kinds) = (0, 0, std::collections::BTreeSet::new());
    for (_, file) in files() {
        let whole = read(&file).unwrap();
        for _ in 0..ROUNDS {
            let mut damaged = file.clone();
            for _ in 0..random.usize(1..8) {
                let at = random.usize(..damaged.len());
                match random.u8(..4) {
                    0 => damaged[at] = random.u8(..),
                    1 => damaged[at] ^= 1 << random.u8(..8),
                    // Sizes and offsets are most wrong at their ends.
                    2 => {
                        let end = damaged.len().min(at + random.usize(1..9));
                        damaged[at..end].fill(*random.choice(&[0, 0x7F, 0x80, 0xFF]).unwrap());
                    }
                    _ => {
                        let (from, size) = (random.usize(..damaged.len()), random.usize(1..32));
                        let size = size.min(damaged.len() - from.max(at));
                        damaged.copy_within(from..from + size, at);
                    }
                }
            }
            match read(&damaged) {
                Ok(found) => same += usize::from(found == whole),
                Err(error) => {
                    refused += 1;
                    kinds.insert(
                        format!("{error:?}").split([' ', '(', '{']).next().unwrap().to_owned(),
                    );
                }
            }
        }
    }
    // Most of a file is not about the structs.
    assert!(refused > 1000 && same > 1000, "{refused} {same}");
    assert!(kinds.len() >= 10, "{kinds:?}");
}

#[test]
fn sizes_that_are_lies_ask_for_no_memory() {
    let folder = Folder::new();
    folder.kernel("kernel.o", &["-gdwarf-5"]);
    folder.run("objcopy", &["--compress-debug-sections", "kernel.o", "packed.o"]);
    let packed = folder.read("packed.o");
    let is_header = |it: &[u8]| it[..8] == [1, 0, 0, 0, 0, 0, 0, 0] && it[24] == 0x78;
    let start = packed.windows(25).position(is_header).unwrap();
    let size = u64::from_le_bytes(packed[start + 8..start + 16].try_into().unwrap());
    for size in [u64::MAX, 1 << 40, 1 << 31, 0, 1, size - 1, size + 1] {
        let mut lie = packed.clone();
        lie[start + 8..start + 16].copy_from_slice(&size.to_le_bytes());
        let error = read(&lie).unwrap_err();
        assert!(matches!(error, OffsetsError::Compressed { .. }), "{size:#x}: {error}");
    }
}

#[test]
fn relocations_that_are_not_in_order_are_refused() {
    let folder = Folder::new();
    let object = folder.kernel("kernel.o", &["-gdwarf-5"]);
    // A relocation of four bytes, relative to any symbol: where it is, and then what kind it has.
    let is_one = |it: &[u8]| it[2..8] == [0; 6] && it[8..12] == [10, 0, 0, 0];
    let places: Vec<_> =
        (0..object.len() - 48).step_by(8).filter(|at| is_one(&object[*at..])).collect();
    let mut refused = 0;
    for at in places {
        let mut swapped = object.clone();
        let (first, second) = swapped[at..at + 48].split_at_mut(24);
        first.swap_with_slice(second);
        refused += usize::from(matches!(read(&swapped), Err(OffsetsError::Relocations { .. })));
        // One that belongs to no unit would be left out.
        let mut away = object.clone();
        away[at + 4] = 1;
        refused += usize::from(matches!(read(&away), Err(OffsetsError::Relocations { .. })));
    }
    assert!(refused > 100, "{refused}");
}
