//! Where the units are, and how each is read by itself.

use std::collections::HashMap;

use super::unit::Unit;
use crate::OffsetsError;
use crate::elf::{Elf, Section};
use crate::input::Input;
use crate::relocate::Relocations;

/// All units of a file.
pub(super) struct Index<'i> {
    sections: Vec<InfoSection<'i>>,
    abbreviations: Vec<u8>,
    pub(super) units: Vec<UnitPlace>,
    /// The types that have units of their own, by their signatures: the unit, and the offset in it.
    signed: HashMap<u64, (usize, u64)>,
}

struct InfoSection<'i> {
    section: Section<'i>,
    is_types: bool,
    relocations: Option<Relocations<'i>>,
}

/// Where a unit is.
#[derive(Clone, Copy)]
pub(super) struct UnitPlace {
    section: usize,
    start: u64,
    /// With the field that says so.
    size: u64,
}

/// For each section, how many relocations were applied to the units so far.
pub(super) type Relocated = Vec<u64>;

impl<'i> Index<'i> {
    pub(super) fn new(elf: &Elf<'i>) -> Result<Self, OffsetsError> {
        let mut sections = Vec::new();
        for name in [".debug_info", ".debug_types"] {
            for section in elf.sections(name)? {
                let relocations = Relocations::new(elf, &section)?;
                let is_types = name == ".debug_types";
                sections.push(InfoSection { section, is_types, relocations });
            }
        }
        let abbreviations = match elf.first(".debug_abbrev")? {
            Some(section) => section.bytes(0, section.size())?,
            None => Vec::new(),
        };
        let mut index = Self { sections, abbreviations, units: Vec::new(), signed: HashMap::new() };
        for number in 0..index.sections.len() {
            index.find_units(number)?;
        }
        Ok(index)
    }

    /// Finds the units of a section by nothing but their first bytes.
    fn find_units(&mut self, number: usize) -> Result<(), OffsetsError> {
        /// The longest header of a unit.
        const HEADER: u64 = 40;
        let InfoSection { section, is_types, .. } = &self.sections[number];
        let mut start = 0;
        while start < section.size() {
            let head = section.bytes(start, HEADER.min(section.size() - start))?;
            let damaged = |what: &str| OffsetsError::DamagedDwarf {
                unit: format!("the unit at {start:#x} of {}", section.name),
                what: what.into(),
            };
            let number_at = |at: usize, width: usize| {
                let mut bytes = [0; 8];
                let there = head.get(at..at + width).ok_or_else(|| damaged("it is cut off"))?;
                bytes[..width].copy_from_slice(there);
                Ok::<u64, OffsetsError>(u64::from_le_bytes(bytes))
            };
            let (length, word) = match number_at(0, 4)? {
                0xFFFF_FFFF => (number_at(4, 8)?, 8),
                0xFFFF_FFF0.. => return Err(damaged("its length is of an unknown kind")),
                length => (length, 4),
            };
            let after_length = if word == 8 { 12 } else { 4 };
            let size = length.saturating_add(after_length as u64);
            let end = start.checked_add(size).filter(|end| *end <= section.size());
            let end = end.ok_or_else(|| damaged("it is longer than its section"))?;
            // A linker fills a gap with units of no length.
            if length == 0 {
                start = end;
                continue;
            }
            let version = number_at(after_length, 2)?;
            if !(2..=5).contains(&version) {
                return Err(damaged(&format!("version {version} of DWARF is not known")));
            }
            let signature = match (version, is_types) {
                (5, _) if number_at(after_length + 2, 1)? == u64::from(gimli::DW_UT_type.0) => {
                    Some(after_length + 4 + word)
                }
                (4, true) => Some(after_length + 2 + word + 1),
                _ => None,
            };
            if let Some(at) = signature {
                let (signature, of) = (number_at(at, 8)?, number_at(at + 8, word)?);
                self.signed.entry(signature).or_insert((self.units.len(), of));
            }
            self.units.push(UnitPlace { section: number, start, size });
            start = end;
        }
        Ok(())
    }

    pub(super) fn relocated(&self) -> Relocated {
        vec![0; self.sections.len()]
    }

    /// Reads a unit. Where units are read in order, `relocated` sees that no relocation is left
    /// out.
    pub(super) fn load(
        &self,
        number: usize,
        relocated: Option<&mut Relocated>,
    ) -> Result<Unit, OffsetsError> {
        let place = *self.units.get(number).ok_or(OffsetsError::Truncated { at: 0 })?;
        let InfoSection { section, is_types, relocations } = &self.sections[place.section];
        let mut bytes = section.bytes(place.start, place.size)?;
        if let Some(relocations) = relocations {
            let first = relocations.first_from(place.start)?;
            let next = relocations.apply(place.start, &mut bytes, first)?;
            if let Some(relocated) = relocated {
                let so_far = &mut relocated[place.section];
                if *so_far != first {
                    return Err(self.unordered(place.section));
                }
                *so_far = next;
            }
        }
        Unit::new(number, bytes, *is_types, place.start, &self.abbreviations)
    }

    /// Says whether all relocations were for some unit.
    pub(super) fn check_all_relocated(&self, relocated: &Relocated) -> Result<(), OffsetsError> {
        for (number, section) in self.sections.iter().enumerate() {
            let all = section.relocations.as_ref().map_or(0, Relocations::count);
            if relocated[number] != all {
                return Err(self.unordered(number));
            }
        }
        Ok(())
    }

    fn unordered(&self, section: usize) -> OffsetsError {
        OffsetsError::Relocations {
            section: self.sections[section].section.name.clone(),
            why: "are not in order".into(),
        }
    }

    /// The unit that lies around an offset into the section of unit `of`, and the offset in it.
    pub(super) fn around(&self, of: usize, offset: u64) -> Option<(usize, u64)> {
        let section = self.units.get(of)?.section;
        let after = self.units.partition_point(|it| (it.section, it.start) <= (section, offset));
        let number = after.checked_sub(1)?;
        let place = self.units[number];
        let within = offset.checked_sub(place.start)?;
        (place.section == section && within < place.size).then_some((number, within))
    }

    /// The unit of a type with a signature, and the offset in it.
    pub(super) fn signed(&self, signature: u64) -> Option<(usize, u64)> {
        self.signed.get(&signature).copied()
    }
}
