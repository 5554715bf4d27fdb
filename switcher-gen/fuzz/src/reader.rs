//! The ELF reader, which gets files of anybody's.

use std::fs::File;
use std::io::Write as _;

use switcher_gen::Variant;
use switcher_prove::elf::{self, Foreign, ReadError};
use switcher_prove::{Prover, Setting, Target, TargetError, Verdict};

/// Of so many inputs that are accepted, one is proved: a proof takes as long as thousands of files.
const PROVED: u64 = 512;

/// Reads `data` as an ELF file, and asserts what must be so of any file: see [`Read`].
///
/// # Panics
/// If it is not.
pub fn check(data: &[u8]) {
    let read = Read::of(data);
    if let Err(
        ReadError::Relocation { .. }
        | ReadError::RelocatedTwice { .. }
        | ReadError::OutsideSection { .. }
        | ReadError::Overflow { .. },
    ) = &read.foreign
    {
        crate::planted("a relocation that no assembler makes");
    }
    if let Ok(target) = &read.target
        && hash(data).is_multiple_of(PROVED)
    {
        check_verdict(target, &Read::of(data));
    }
}

/// What became of a file: the same from memory and from the disk, and the second time.
#[derive(Debug)]
pub struct Read {
    /// What the reader says.
    pub foreign: Result<Foreign, ReadError>,
    /// The code that can be judged.
    pub target: Result<Target, TargetError>,
}

impl Read {
    /// Reads a file.
    ///
    /// # Panics
    /// If the reader says different things of the same bytes, or something of bytes that the file
    /// does not have.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        let foreign = elf::read(data);
        assert_eq!(foreign, elf::read(data), "two readings of the same bytes");
        let from_disk = elf::read_file(&on_disk(data));
        match (&foreign, &from_disk) {
            // What cannot be read from the disk is told otherwise.
            (Err(ReadError::Malformed(_)), Err(ReadError::Malformed(_))) => {}
            (from_memory, from_disk) => assert_eq!(from_memory, from_disk, "memory and disk"),
        }
        if let Ok(foreign) = &foreign {
            let bytes: usize = foreign.pieces.iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(bytes <= LIMIT, "{bytes} bytes of code");
            let names: usize = foreign.symbols.keys().map(String::len).sum();
            assert!(names <= LIMIT, "{names} bytes of names");
            let apart = foreign.pieces.windows(2);
            for pair in apart {
                let end = pair[0].0 + pair[0].1.len() as u64;
                assert!(end <= pair[1].0, "pieces overlap at {end:#x}");
            }
        }
        let judge =
            |foreign: &Foreign| Target::foreign(foreign, Setting::from(&Variant::REFERENCE));
        let target = match &foreign {
            Ok(foreign) => judge(foreign),
            Err(error) => Err(TargetError::Read(error.clone())),
        };
        if let Ok(foreign) = &foreign {
            let again = judge(foreign).err();
            assert_eq!(target.as_ref().err(), again.as_ref(), "two judgements of the same code");
        }
        Self { foreign, target }
    }
}

/// Asserts that the code is proved, refuted or refused as that of another reading is.
///
/// # Panics
/// If it is not.
pub fn check_verdict(target: &Target, other: &Read) {
    let Ok(other) = &other.target else { panic!("accepted once and not the second time") };
    let verdict = |target: &Target| Prover::default().prove(target);
    let kind = |verdict: &Verdict| std::mem::discriminant(verdict);
    let (one, two) = (verdict(target), verdict(other));
    assert_eq!(kind(&one), kind(&two), "two proofs of the same code: {one:?}, {two:?}");
    if let (Verdict::Unsupported(one), Verdict::Unsupported(two)) = (&one, &two) {
        assert_eq!(one.to_string(), two.to_string());
    }
}

/// No file of the fuzzer's has more, and no reading may make more of it.
const LIMIT: usize = 64 << 20;

/// An open file with these bytes.
fn on_disk(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(data).expect("room for a temporary file");
    file
}

/// FNV-1a, so that the same inputs are proved on every run.
fn hash(data: &[u8]) -> u64 {
    data.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3)
    })
}
