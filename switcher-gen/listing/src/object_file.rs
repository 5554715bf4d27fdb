//! Images as ELF objects, for hosts that link the switcher instead of assembling it at load time,
//! and for every tool that reads objects.
//!
//! What the object of an image holds:
//!
//! | section | |
//! |---|---|
//! | `.text` | the image; it may be linked anywhere |
//! | `switcher_windows` | a table of the image's windows: see below |
//! | `.note.switcher` | what it is: owner `switcher`, type 1, the variant's name; type 2, the fingerprint's 32 bytes |
//! | `.note.GNU-stack` | empty: no executable stack is asked for |
//!
//! Entry points are global functions whose sizes reach to the next one, filler included. The other
//! exported labels are global symbols without a type. What the image calls of the host is an
//! undefined symbol.
//!
//! Each entry of `switcher_windows` is three little-endian dwords: start and end of the range (half
//! open), each relative to its own dword, and the kind, [`Window`](switcher_gen::asm::Window) as a
//! number. The section's name is a C identifier, so linkers define `__start_switcher_windows` and
//! `__stop_switcher_windows` around it:
//!
//! ```c
//! struct window { int32_t start, end; uint32_t kind; };
//! extern const struct window __start_switcher_windows[], __stop_switcher_windows[];
//! /* start of w, for instance: */ (uintptr_t)&w->start + w->start
//! ```

use std::collections::BTreeMap;

use object::elf::{R_X86_64_PC32, R_X86_64_PLT32};
use object::write::{Object, Relocation, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope,
};

use switcher_gen::Image;
use switcher_gen::asm::Label;

/// Labels that are called or jumped to from outside, and so start a function. The others are
/// places inside of one.
const FUNCTIONS: [Label; 8] = [
    Label::EnterGuest,
    Label::Syscall64,
    Label::ReturnFromGuest,
    Label::SyscallCompat,
    Label::HandOn,
    Label::HandOnStack,
    Label::Event,
    Label::EventStubs,
];

/// `image` as an ELF64 relocatable object.
///
/// # Errors
/// Only if the object writer refuses what is described here.
pub fn object_file(image: &Image) -> Result<Vec<u8>, object::write::Error> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let text = object.add_section(Vec::new(), b".text".to_vec(), SectionKind::Text);
    object.append_section_data(text, image.bytes(), Image::ALIGNMENT);

    for (label, offset) in image.symbols() {
        let is_function = FUNCTIONS.contains(&label);
        let size = if is_function { size_of_function(image, offset) } else { 0 };
        object.add_symbol(Symbol {
            name: label.name().into(),
            value: offset.into(),
            size: size.into(),
            kind: if is_function { SymbolKind::Text } else { SymbolKind::Label },
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(text),
            flags: SymbolFlags::None,
        });
    }

    let mut undefined = BTreeMap::new();
    for relocation in image.relocations() {
        let symbol = *undefined.entry(relocation.symbol).or_insert_with_key(|symbol| {
            object.add_symbol(Symbol {
                name: symbol.0.into(),
                value: 0,
                size: 0,
                kind: SymbolKind::Unknown,
                scope: SymbolScope::Unknown,
                weak: false,
                section: SymbolSection::Undefined,
                flags: SymbolFlags::None,
            })
        });
        let relocation = Relocation {
            offset: relocation.at.into(),
            symbol,
            addend: relocation.addend.into(),
            flags: RelocationFlags::Elf { r_type: R_X86_64_PLT32 },
        };
        object.add_relocation(text, relocation)?;
    }

    let windows =
        object.add_section(Vec::new(), b"switcher_windows".to_vec(), SectionKind::ReadOnlyData);
    let start_of_text = object.section_symbol(text);
    for range in image.windows() {
        let kind = (range.window as u32).to_le_bytes();
        let entry = [[0; 4], [0; 4], kind].concat();
        let at = object.append_section_data(windows, &entry, 4);
        for (offset, target) in [(at, range.start), (at + 4, range.end)] {
            let relocation = Relocation {
                offset,
                symbol: start_of_text,
                addend: target.into(),
                flags: RelocationFlags::Elf { r_type: R_X86_64_PC32 },
            };
            object.add_relocation(windows, relocation)?;
        }
    }

    let notes = object.add_section(Vec::new(), b".note.switcher".to_vec(), SectionKind::Note);
    let variant = image.variant().to_string();
    for (kind, description) in
        [(NOTE_VARIANT, variant.as_bytes()), (NOTE_FINGERPRINT, image.fingerprint().as_bytes())]
    {
        object.append_section_data(notes, &note(kind, description), NOTE_ALIGNMENT as u64);
    }

    object.add_section(Vec::new(), b".note.GNU-stack".to_vec(), SectionKind::Other);
    object.write()
}

/// Type of the note that names the variant.
const NOTE_VARIANT: u32 = 1;
/// Type of the note that holds the fingerprint.
const NOTE_FINGERPRINT: u32 = 2;
/// Notes, and their parts, are padded to dwords (System V gABI, "Note Section").
const NOTE_ALIGNMENT: usize = 4;

/// A note of ours: sizes and type, then owner and description, each padded.
fn note(kind: u32, description: &[u8]) -> Vec<u8> {
    const OWNER: &[u8] = b"switcher\0";
    let mut note = Vec::new();
    for word in [OWNER.len() as u32, description.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [OWNER, description] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(NOTE_ALIGNMENT), 0);
    }
    note
}

/// From `start` to the next function or the end of the image.
fn size_of_function(image: &Image, start: u32) -> u32 {
    let end = image.bytes().len() as u32;
    let starts = FUNCTIONS.into_iter().map(|label| image.offset(label));
    starts.filter(|other| *other > start).min().unwrap_or(end) - start
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::{Object as _, ObjectSymbol as _};

    use switcher_asm::Sink as _;
    use switcher_gen::Variant;
    use switcher_gen::asm::{CodeBuffer, HostSymbol};
    use switcher_gen::emit;

    #[test]
    fn what_the_host_defines_is_an_undefined_symbol_with_a_relocation() {
        let mut buffer = CodeBuffer::new();
        emit::switcher(&mut buffer, &Variant::REFERENCE);
        let call = u64::from(buffer.offset());
        switcher_gen::__private::dynasm!(buffer ; .arch x64 ; call extern HostSymbol("host_nmi"));
        buffer.align(16, 0xCC);
        let image = Image::from_code(Variant::REFERENCE, buffer).unwrap();

        let bytes = super::object_file(&image).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let symbol = file.symbols().find(|symbol| symbol.name() == Ok("host_nmi")).unwrap();
        assert!(symbol.is_undefined());
        let text = object::read::Object::section_by_name(&file, ".text").unwrap();
        let mut relocations = object::read::ObjectSection::relocations(&text);
        let (_, relocation) = relocations.find(|(at, _)| *at == call + 1).unwrap();
        assert_eq!(relocation.addend(), -4);
        assert_eq!(relocation.flags(), RelocationFlags::Elf { r_type: R_X86_64_PLT32 });
    }
}
