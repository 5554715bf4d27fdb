//! What fuzzing begins with, made by the emitter: objects and linked files for the reader, and each
//! stretch of a switcher's code for the model.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions};
use switcher_gen::{Image, Variant};

use crate::step::{DATA, Input};

/// Files by the name of their target and their own.
pub type Corpus = BTreeMap<(&'static str, String), Vec<u8>>;

/// All files of `corpus/`.
///
/// # Panics
/// If the emitter is wrong: its own tests say so.
#[must_use]
pub fn corpus() -> Corpus {
    let mut corpus = Corpus::new();
    for name in ["intel-4level", "amd-la57-percpu-current+untrain"] {
        let variant: Variant = name.parse().expect("a variant's name");
        let image = Image::new(&variant).expect("a variant that assembles");
        let object = switcher_listing::object_file(&image).expect("an object");
        corpus.insert(("reader", format!("{name}.o")), object.clone());
        corpus.insert(("reader", format!("{name}.exe")), linked(&image, object));
    }
    let image = |name: &str| {
        Image::new(&name.parse().expect("a variant's name")).expect("a variant that assembles")
    };
    // All kinds of instructions that the emitters use.
    let variants =
        ["intel-la57-ibt-pku+ibrs+rsb+bhb+verw", "amd-4level-percpu-current+ibpb+untrain"];
    for (index, code) in variants.iter().flat_map(|name| stretches(image(name).bytes())).enumerate()
    {
        corpus.insert(("step", format!("{index:03}")), input(code).write());
    }
    corpus
}

/// Whole instructions, as many as are executed, that no other stretch begins with.
fn stretches(code: &[u8]) -> Vec<Vec<u8>> {
    /// So many bytes are a stretch.
    const LEAST: usize = 24;
    let mut seen = std::collections::BTreeSet::new();
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let (mut all, mut start, mut is_new) = (Vec::new(), 0, false);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        is_new |= seen.insert(instruction.code());
        let end = decoder.position();
        if end - start >= LEAST {
            // Of stretches all of whose instructions there were before, none teaches anything.
            if is_new {
                all.push(code[start..end].to_vec());
            }
            (start, is_new) = (end, false);
        }
    }
    all
}

/// A state in which most operands lead to memory.
fn input(code: Vec<u8>) -> Input {
    let mut gpr = [DATA + 0x40; 16];
    // Numbers beside the pointers, and a stack that has room on both sides.
    (gpr[0], gpr[1], gpr[2], gpr[4], gpr[11]) = (0x1234, 8, 0, DATA + 0x80, 0x246);
    let memory = std::array::from_fn(|index| index as u8);
    Input { platform: 0, rflags: 0x202, features: u32::MAX, gpr, memory, code }
}

/// The object as a linker would leave it: at an address, with a segment, and nothing to be
/// relocated.
fn linked(image: &Image, mut file: Vec<u8>) -> Vec<u8> {
    const BASE: u64 = 0xFFFF_FE80_0000_0000;
    const PAGE: u64 = 4096;
    const HEADER: usize = 64;
    let word = |file: &[u8], at: usize| {
        u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"))
    };
    let half = |file: &[u8], at: usize| usize::from(u16::from_le_bytes([file[at], file[at + 1]]));
    let set = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    // The section of code is the first one.
    let mut address = BASE;
    let (sections, count) = (word(&file, 40) as usize, half(&file, 60));
    for section in (0..count).map(|index| sections + index * HEADER) {
        let kind = file[section + 4];
        let (offset, size) = (word(&file, section + 24), word(&file, section + 32));
        match kind {
            // PROGBITS with the image's size: where a loader puts it.
            1 if size == image.bytes().len() as u64 => {
                address = BASE + offset % PAGE;
                let linked = image.link_without_hooks(address).expect("an aligned address");
                set(&mut file, section + 16, &address.to_le_bytes());
                set(&mut file, offset as usize, linked.bytes());
                // One segment: PT_LOAD, readable and executable, from the page on.
                let start = offset - offset % PAGE;
                let mut segment = Vec::new();
                segment.extend([1_u32, 5].map(u32::to_le_bytes).concat());
                let length = offset % PAGE + size;
                let fields =
                    [start, address - offset % PAGE, address - offset % PAGE, length, length];
                segment.extend(fields.map(u64::to_le_bytes).concat());
                segment.extend(PAGE.to_le_bytes());
                let at = file.len() as u64;
                set(&mut file, 32, &at.to_le_bytes());
                set(&mut file, 54, &56_u16.to_le_bytes());
                set(&mut file, 56, &1_u16.to_le_bytes());
                file.extend(segment);
            }
            // RELA: there is nothing left to be relocated.
            4 => set(&mut file, section + 4, &0_u32.to_le_bytes()),
            // SYMTAB: values are addresses.
            2 => {
                for symbol in (offset as usize..(offset + size) as usize).step_by(24) {
                    let is_defined = half(&file, symbol + 6) != 0;
                    if is_defined {
                        let value = word(&file, symbol + 8);
                        set(&mut file, symbol + 8, &(address + value).to_le_bytes());
                    }
                }
            }
            _ => {}
        }
    }
    // ET_EXEC.
    set(&mut file, 16, &2_u16.to_le_bytes());
    file
}
