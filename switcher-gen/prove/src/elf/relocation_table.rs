//! The relocations of a section of an object, in pieces: a kernel has millions of them.

use std::ops::Range;

use object::elf::{Rel64, Rela64, SHT_REL, SHT_RELA, SectionHeader64};
use object::pod::{self, Pod};
use object::read::elf::{Rel, Rela, SectionHeader};
use object::{Endianness, I64, U64};

use super::contents::{Contents, E};
use super::error::ReadError;
use super::relocation::Relocation;

/// How many relocations are in memory at a time.
const PIECE: u64 = 2048;

/// The relocations that a table of this name holds, in the file's order; `None` if it has another
/// form, or is no table.
pub(super) fn relocations<'data, R: Contents<'data>>(
    data: R,
    header: &SectionHeader64<Endianness>,
    name: String,
) -> Option<Box<dyn Iterator<Item = Result<Relocation, ReadError>> + 'data>> {
    let number = || U64::new(E, 0);
    match header.sh_type(E) {
        SHT_RELA => {
            let blank = Rela64 { r_offset: number(), r_info: number(), r_addend: I64::new(E, 0) };
            let of = |raw: &Rela64<Endianness>| Relocation {
                offset: raw.r_offset(E),
                kind: raw.r_type(E, false),
                symbol: raw.r_sym(E, false) as usize,
                addend: Some(raw.r_addend(E)),
            };
            Some(Box::new(pieces((data, header), name, blank, of)?))
        }
        SHT_REL => {
            let blank = Rel64 { r_offset: number(), r_info: number() };
            let of = |raw: &Rel64<Endianness>| Relocation {
                offset: raw.r_offset(E),
                kind: raw.r_type(E),
                symbol: raw.r_sym(E) as usize,
                addend: None,
            };
            Some(Box::new(pieces((data, header), name, blank, of)?))
        }
        _ => None,
    }
}

/// All entries of a table; `None` if it does not end with one.
fn pieces<'data, R: Contents<'data>, T: Pod>(
    (data, header): (R, &SectionHeader64<Endianness>),
    name: String,
    blank: T,
    of: fn(&T) -> Relocation,
) -> Option<impl Iterator<Item = Result<Relocation, ReadError>> + use<'data, R, T>> {
    let size = size_of::<T>() as u64;
    let (start, length) = (header.sh_offset(E), header.sh_size(E));
    let Range { start, end } = start..start.checked_add(length)?;
    let piece = move |from: u64| {
        let mut raw = vec![blank; ((end - from) / size).min(PIECE) as usize];
        match data.copy(from, pod::bytes_of_slice_mut(&mut raw)) {
            Ok(()) => raw.iter().map(|raw| Ok(of(raw))).collect(),
            Err(()) => vec![Err(ReadError::Truncated { section: name.clone() })],
        }
    };
    let all = (start..end).step_by((size * PIECE) as usize).flat_map(piece);
    length.is_multiple_of(size).then_some(all)
}
