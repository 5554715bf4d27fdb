//! What of an ELF file is read: its DWARF, or its BTF.

use crate::elf::Elf;
use crate::input::Input;
use crate::{Found, OffsetsError, Options, btf, dwarf};

/// What an ELF file says: its DWARF, or if that has none of the structs, its BTF.
pub(crate) fn read(input: &dyn Input, options: &Options) -> Result<Found, OffsetsError> {
    let elf = Elf::new(input)?;
    if elf.has(".zdebug_info") {
        return Err(OffsetsError::Compressed {
            section: ".zdebug_info".into(),
            why: "is compressed in an old way",
        });
    }
    let by_dwarf = match elf.has(".debug_info") || elf.has(".debug_types") {
        true => match dwarf::read(&elf, options) {
            Err(none @ OffsetsError::NotFound { .. }) => Some(none),
            done => return done,
        },
        false => None,
    };
    match (elf.first(".BTF")?, by_dwarf) {
        (Some(section), by_dwarf) => {
            let is_module = elf.has(".gnu.linkonce.this_module") || elf.has(".BTF.base");
            let bytes = section.bytes(0, section.size())?;
            match (btf::read(&bytes, is_module, options), by_dwarf) {
                (Err(_), Some(none)) => Err(none),
                (done, _) => done,
            }
        }
        (None, Some(none)) => Err(none),
        (None, None) => Err(OffsetsError::NoTypes),
    }
}
