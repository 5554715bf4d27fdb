//! Each file of `corpus/` is handled as any input has to be, and is what the emitter makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use switcher_fuzz::reader::Read;
use switcher_fuzz::step::Input;
use switcher_fuzz::{reader, seeds, step};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// With `BLESS=1` they are written.
#[test]
fn the_corpus_is_what_the_emitter_makes() {
    let made = seeds::corpus();
    if std::env::var_os("BLESS").is_some() {
        let _ = fs::remove_dir_all(folder());
        for ((target, name), bytes) in &made {
            fs::create_dir_all(folder().join(target)).unwrap();
            fs::write(folder().join(target).join(name), bytes).unwrap();
        }
    }
    let mut found = seeds::Corpus::new();
    for target in ["reader", "step"] {
        for file in fs::read_dir(folder().join(target)).unwrap() {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            found.insert((target, name), fs::read(path).unwrap());
        }
    }
    let names = |corpus: &seeds::Corpus| corpus.keys().cloned().collect::<Vec<_>>();
    let advice = "BLESS=1 cargo test -p switcher-fuzz";
    assert_eq!(names(&found), names(&made), "{advice}");
    for (name, bytes) in &made {
        assert!(found[name] == *bytes, "{name:?}: {advice}");
    }
    let size: usize = made.values().map(Vec::len).sum();
    assert!(size < 96 << 10, "{size} bytes are no small corpus");
}

#[test]
fn files_of_the_emitter_are_accepted_and_proved() {
    let files: BTreeMap<_, _> =
        seeds::corpus().into_iter().filter(|((target, _), _)| *target == "reader").collect();
    assert_eq!(files.len(), 4);
    for ((_, name), bytes) in files {
        reader::check(&bytes);
        let read = Read::of(&bytes);
        assert!(read.foreign.is_ok(), "{name}: {:?}", read.foreign.err());
        // Those of another variant than the reader's are not what it takes them for, and are judged
        // so.
        let target = read.target.as_ref().unwrap_or_else(|error| panic!("{name}: {error}"));
        reader::check_verdict(target, &Read::of(&bytes));
    }
}

#[test]
fn stretches_of_a_switcher_are_executed() {
    let inputs = seeds::corpus().into_iter().filter(|((target, _), _)| *target == "step");
    let mut count = 0;
    for ((_, name), bytes) in inputs {
        step::check(&bytes);
        let input = Input::read(&bytes).unwrap_or_else(|| panic!("{name} is too short"));
        assert_eq!(input.write(), bytes, "{name}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

/// Whatever is cut off or changed of an input, the targets come to an end.
#[test]
fn damaged_inputs_are_handled() {
    for ((target, _), bytes) in seeds::corpus() {
        let check = if target == "reader" { reader::check } else { step::check };
        for cut in (0..bytes.len()).step_by(bytes.len() / 16 + 1) {
            check(&bytes[..cut]);
            let mut changed = bytes.clone();
            changed[cut] ^= 0x41;
            check(&changed);
        }
    }
}
