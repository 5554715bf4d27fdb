//! Linux's tables of what is patched at boot, as they are in a file: of each entry the places that
//! it names, with the linker's work done.
//!
//! Fields that name places are distances of 32 bits from themselves. In an object each has a
//! relocation, and in a linked file its value.

use object::elf::{R_X86_64_PC32, R_X86_64_PC64, SHF_LINK_ORDER};

use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::super::file::{Of, Section};
use super::super::places::PlaceInFile;

/// A table of entries of one size: all sections of its name, one after another, as a linker puts
/// them.
pub(super) struct Table {
    /// The numbers of its sections.
    pub(super) sections: Vec<usize>,
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    /// The addresses that relocated fields name, by offset.
    places: Vec<(usize, u64)>,
    /// What relocated fields of 64 bits name, by offset, and the lowest two bits of it.
    named: Vec<(usize, (Named, u64))>,
    /// The offsets of all fields that something relocates, in ascending order.
    relocated: Vec<u32>,
    /// The address of the first byte, of a linked file.
    address: Option<u64>,
}

/// What a field of 64 bits names, wherever that is: two fields that name the same are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Named {
    /// So many bytes from the start of a section, by its number.
    Section(usize, u64),
    /// So many bytes from a symbol that the object does not have.
    Undefined(String, u64),
    /// An address.
    Address(u64),
}

/// More than all tables of a kernel have.
const MOST: u64 = 16 << 20;

/// Whether a section of an object comes right after the one of the same name before it. Of those of
/// a group, a linker may take another file's, and it sorts those that go with other sections. In
/// what is linked, it has left them apart, and which of them Linux reads is not known.
fn is_joined<'data, R: Contents<'data>>(code: &FileCode<'_, 'data, R>, number: usize) -> bool {
    let is_sorted = code.file.sections[number].has(SHF_LINK_ORDER);
    code.file.is_object() && !is_sorted && !code.file.is_in_group(number)
}

impl Table {
    /// The table of this name, if there is one of which all fields can be read.
    pub(super) fn read<'data, R: Contents<'data>>(
        code: &FileCode<'_, 'data, R>,
        name: &str,
    ) -> Result<Option<Self>, ReadError> {
        let own = code.file.sections.iter().enumerate();
        let own = own.filter(|(_, section)| section.text() == name && section.size > 0);
        let sections: Vec<usize> = own.map(|(number, _)| number).collect();
        let Some(first) = sections.first() else { return Ok(None) };
        let is_object = code.file.is_object();
        let address = (!is_object).then(|| code.file.sections[*first].address);
        if sections.len() > 1 && !sections.iter().all(|number| is_joined(code, *number)) {
            return Ok(None);
        }
        // Linux takes one of the sections of a module for the table (arch/x86/kernel/module.c).
        let is_module = |section: &Section<'_>| section.text() == ".gnu.linkonce.this_module";
        if sections.len() > 1 && code.file.sections.iter().any(is_module) {
            return Ok(None);
        }
        let (bytes, places, named, relocated) = Default::default();
        let (sections, name) = (sections, name.to_owned());
        let mut table = Self { sections, name, bytes, places, named, relocated, address };
        for number in table.sections.clone() {
            if !table.append(code, number)? {
                return Ok(None);
            }
        }
        table.relocated.sort_unstable();
        table.places.sort_unstable();
        table.named.sort_by_key(|(at, _)| *at);
        Ok(Some(table))
    }

    /// Adds a section at the end; `false` if its fields cannot be read.
    fn append<'data, R: Contents<'data>>(
        &mut self,
        code: &FileCode<'_, 'data, R>,
        number: usize,
    ) -> Result<bool, ReadError> {
        let section = &code.file.sections[number];
        let before = self.bytes.len();
        // A linker aligns each, and what is between them is no entry.
        let is_gapless = (before as u64).is_multiple_of(section.usual_alignment());
        if !section.has_bytes() || section.size > MOST - (before as u64).min(MOST) || !is_gapless {
            return Ok(false);
        }
        self.bytes.resize(before + section.size as usize, 0);
        let truncated = |()| ReadError::Truncated { section: section.text() };
        code.file.data.copy(section.offset(), &mut self.bytes[before..]).map_err(truncated)?;
        if !code.file.is_object() {
            return Ok(true);
        }
        for relocation in code.file.relocations(number)? {
            let relocation = relocation?;
            // What changes something else than this section is no part of a table.
            if relocation.offset >= section.size {
                return Ok(false);
            }
            // What it adds is in the section, and nobody looks there.
            if relocation.addend.is_none() {
                let at = PlaceInFile { section: section.text(), offset: relocation.offset };
                return Err(ReadError::ImplicitAddend { at });
            }
            let at = before + relocation.offset as usize;
            let Ok(offset) = u32::try_from(at) else { return Ok(false) };
            self.relocated.push(offset);
            if relocation.kind == R_X86_64_PC64 && relocation.symbol != 0 {
                let symbol = code.file.symbol_by_index(relocation.symbol)?;
                let by = symbol.value.wrapping_add_signed(relocation.addend.unwrap_or_default());
                let (start, bits) = (by & !3, by & 3);
                let of = match symbol.of {
                    _ if symbol.is_weak() => None,
                    Of::Section(section) => Some(Named::Section(section, start)),
                    Of::Undefined => Some(Named::Undefined(symbol.text(), start)),
                    Of::Absolute | Of::Common | Of::Other => None,
                };
                self.named.extend(of.map(|of| (at, (of, bits))));
            }
            // A field that anything else relocates names no place that is known.
            if relocation.kind != R_X86_64_PC32 {
                continue;
            }
            let Some((of, value, _)) = code.file.refers_to(&relocation)? else { continue };
            // Another file may have another one.
            if code.file.is_weak(relocation.symbol)? {
                return Ok(false);
            }
            let Some(start) = code.address_in(of, 0) else { continue };
            let by = relocation.addend.unwrap_or_default();
            let place = start.wrapping_add(value).wrapping_add_signed(by);
            self.places.push((at, place));
        }
        Ok(true)
    }

    /// The address that the field at an offset names; `None` if it names none that is known.
    pub(super) fn place(&self, offset: usize) -> Option<u64> {
        match self.address {
            Some(address) => {
                let by = i32::from_le_bytes(*self.bytes.get(offset..)?.first_chunk()?);
                Some(address.wrapping_add(offset as u64).wrapping_add_signed(by.into()))
            }
            None => {
                let at = self.places.binary_search_by_key(&offset, |(at, _)| *at).ok()?;
                Some(self.places[at].1)
            }
        }
    }

    /// What the field of 64 bits at an offset names, but for its lowest two bits, and those; `None`
    /// if it names nothing that is known.
    pub(super) fn named(&self, offset: usize) -> Option<(Named, u64)> {
        match self.address {
            Some(address) => {
                let by = u64::from_le_bytes(*self.bytes.get(offset..)?.first_chunk()?);
                let start = address.wrapping_add(offset as u64).wrapping_add(by & !3);
                Some((Named::Address(start), by & 3))
            }
            None => {
                let at = self.named.binary_search_by_key(&offset, |(at, _)| *at).ok()?;
                Some(self.named[at].1.clone())
            }
        }
    }

    /// A number of two bytes.
    pub(super) fn word(&self, offset: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*self.bytes.get(offset..)?.first_chunk()?))
    }

    pub(super) fn byte(&self, offset: usize) -> Option<u8> {
        self.bytes.get(offset).copied()
    }

    /// The offsets of all entries of `size` bytes, if there is no rest, and if what is relocated in
    /// each is the fields at these offsets, once each, and maybe `others`.
    pub(super) fn entries(
        &self,
        size: usize,
        fields: &[usize],
        others: &[usize],
    ) -> Option<impl Iterator<Item = usize> + use<>> {
        let length = self.bytes.len();
        let is_once = self.relocated.windows(2).all(|two| two[0] != two[1]);
        let is_field = |at: &u32| {
            let field = *at as usize % size;
            fields.contains(&field) || others.contains(&field)
        };
        let is_table =
            length.is_multiple_of(size) && is_once && self.relocated.iter().all(is_field);
        is_table.then(|| (0..length).step_by(size))
    }
}
