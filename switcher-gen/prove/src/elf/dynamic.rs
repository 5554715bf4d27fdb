//! The tables that the dynamic section leads to. A loader finds the section, and everything that
//! the section names, by address. It does not use offsets in the file, so this module does not use
//! them either.

use object::elf::{PT_DYNAMIC, RelocationType, SHT_REL, SHT_RELA, SHT_RELR};
use object::read::elf::{ProgramHeader, SectionHeader};

use super::contents::{Contents, E};
use super::error::ReadError;
use super::exports;
use super::file::{File, Section};
use super::relocation::{Form, span};
use super::segments::{self, Segment, place};

const PLTRELSZ: u64 = 2;
const HASH: u64 = 4;
const STRTAB: u64 = 5;
const SYMTAB: u64 = 6;
const RELA: u64 = 7;
const RELASZ: u64 = 8;
const REL: u64 = 17;
const RELSZ: u64 = 18;
const PLTREL: u64 = 20;
const TEXTREL: u64 = 22;
const JMPREL: u64 = 23;
const FLAGS: u64 = 30;
const RELRSZ: u64 = 35;
const RELR: u64 = 36;
const GNU_HASH: u64 = 0x6FFF_FEF5;
const VERSYM: u64 = 0x6FFF_FFF0;
const VERDEF: u64 = 0x6FFF_FFFC;
const VERNEED: u64 = 0x6FFF_FFFE;
const DF_TEXTREL: u64 = 4;
/// The tags that matter. Each may occur once only, because of two values some loaders take the
/// first and some the last.
const KNOWN: [u64; 18] = [
    PLTRELSZ, HASH, STRTAB, SYMTAB, RELA, RELASZ, REL, RELSZ, PLTREL, TEXTREL, JMPREL, FLAGS,
    RELRSZ, RELR, GNU_HASH, VERSYM, VERDEF, VERNEED,
];

/// What the dynamic section says to the loader.
#[derive(Default)]
pub(super) struct Dynamic {
    /// The values of the tags, in the order of [`KNOWN`].
    values: [Option<u64>; KNOWN.len()],
    /// The addresses it covers itself.
    at: Option<u64>,
    /// Relocations.
    pub(super) tables: Vec<RelocationTable>,
}

/// A table of relocations, by its place in the file.
#[derive(Clone, Copy)]
pub(super) struct RelocationTable {
    address: u64,
    pub(super) offset: u64,
    pub(super) size: u64,
    /// 24 bytes with an addend, 16 without, 8 for the compact form of addresses alone.
    pub(super) entry: u64,
}

impl RelocationTable {
    /// The relocations of a section, if it holds any.
    pub(super) fn of(section: &Section<'_>) -> Option<Self> {
        let entry = match section.header.sh_type(E) {
            SHT_RELA => 24,
            SHT_REL => 16,
            SHT_RELR => 8,
            _ => return None,
        };
        let (address, offset, size) = (section.address, section.offset(), section.size);
        Some(Self { address, offset, size, entry })
    }
}

/// A relocation that a loader applies.
pub(super) struct Applied {
    pub(super) at: u64,
    pub(super) kind: RelocationType,
    pub(super) symbol: u64,
    pub(super) addend: u64,
}

impl Applied {
    /// How many bytes it stores.
    pub(super) fn width(&self) -> u64 {
        span(self.kind).1
    }

    /// Whether what it stores is a distance.
    pub(super) fn is_relative(&self) -> bool {
        Form::of(self.kind).is_some_and(|form| form.relative)
    }
}

impl RelocationTable {
    /// Calls `each` for the relocations of the table. A relocation without an addend has it in the
    /// bytes already, which are examined as they are; only its symbol is left. The compact form has
    /// addresses alone.
    pub(super) fn each<'data, R: Contents<'data>>(
        &self,
        file: &File<'data, R>,
        look: &mut dyn FnMut(Applied) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let truncated = || ReadError::RelocationTable { section: "dynamic relocations".into() };
        let mut buffer = [0; 24 * 512];
        let mut done = 0;
        while self.entry >= 16 && done + self.entry <= self.size {
            let size = (self.size - done).min(buffer.len() as u64);
            let part = &mut buffer[..(size - size % self.entry) as usize];
            let offset = self.offset.checked_add(done).ok_or_else(truncated)?;
            file.data.copy(offset, part).map_err(|()| truncated())?;
            done += part.len() as u64;
            for entry in part.chunks_exact(self.entry as usize) {
                let (at, info) = (word(entry), word(&entry[8..]));
                let kind = RelocationType(info as u32);
                let addend = entry.get(16..).map_or(0, word);
                look(Applied { at, kind, symbol: info >> 32, addend })?;
            }
        }
        Ok(())
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}

fn damaged(why: &'static str) -> ReadError {
    ReadError::Dynamic { why }
}

impl Dynamic {
    /// Reads the dynamic section where a loader does.
    pub(super) fn new<'data, R: Contents<'data>>(
        file: &File<'data, R>,
        segments: &[Segment],
    ) -> Result<Self, ReadError> {
        /// More bytes than all tags together could need.
        const MOST: u64 = 4096 * 16;
        let mut dynamic = Self::default();
        let mut headers = file.segments.iter().filter(|s| s.p_type(E) == PT_DYNAMIC);
        let header = match (headers.next(), headers.next()) {
            (None, _) => return Ok(dynamic),
            (Some(header), None) => Segment::new(header),
            (Some(_), Some(_)) => return Err(damaged("is there more than once (PT_DYNAMIC)")),
        };
        let size = header.in_file.min(header.in_memory);
        let size = (size - size % 16).min(MOST);
        let at = place(segments, header.address, size);
        let elsewhere = || damaged("is not what is loaded at its address (PT_DYNAMIC)");
        let offset = at.filter(|at| *at == header.offset).ok_or_else(elsewhere)?;
        let mut bytes = vec![0; size as usize];
        file.data.copy(offset, &mut bytes).map_err(|()| elsewhere())?;
        let mut entries = bytes.chunks_exact(16).map(|entry| (word(entry), word(&entry[8..])));
        loop {
            let (tag, value) = entries.next().ok_or_else(|| damaged("has no end (DT_NULL)"))?;
            if tag == 0 {
                break;
            }
            let Some(number) = KNOWN.iter().position(|known| *known == tag) else { continue };
            if dynamic.values[number].replace(value).is_some_and(|before| before != value) {
                return Err(damaged("says two things of one tag"));
            }
        }
        dynamic.at = Some(header.address);
        dynamic.find_tables(segments)?;
        Ok(dynamic)
    }

    fn value(&self, tag: u64) -> Option<u64> {
        let number = KNOWN.iter().position(|known| *known == tag)?;
        self.values[number]
    }

    fn find_tables(&mut self, segments: &[Segment]) -> Result<(), ReadError> {
        let plt = if self.value(PLTREL) == Some(REL) { 16 } else { 24 };
        for (at, size, entry) in
            [(RELA, RELASZ, 24), (REL, RELSZ, 16), (JMPREL, PLTRELSZ, plt), (RELR, RELRSZ, 8)]
        {
            let (address, size) = (self.value(at), self.value(size).unwrap_or_default());
            if size == 0 {
                continue;
            }
            let address = address.unwrap_or_default();
            let offset = place(segments, address, size)
                .ok_or_else(|| damaged("leads to relocations that no segment has as they are"))?;
            self.tables.push(RelocationTable { address, offset, size, entry });
        }
        Ok(())
    }

    /// Whether it says that what is not writable is relocated.
    pub(super) fn has_text_relocations(&self) -> bool {
        // The presence of the tag matters, not its value.
        let flags = self.value(FLAGS).unwrap_or_default();
        self.value(TEXTREL).is_some() || flags & DF_TEXTREL != 0
    }

    /// Where the loader's symbols are in the file.
    pub(super) fn symbols(&self, segments: &[Segment]) -> exports::Tables {
        let place = |tag| {
            let at = self.value(tag).filter(|at| *at != 0)?;
            Some(place(segments, at, 1).unwrap_or(u64::MAX))
        };
        exports::Tables {
            symbols: place(SYMTAB),
            strings: place(STRTAB),
            hash: place(HASH),
            gnu_hash: place(GNU_HASH),
        }
    }

    /// Whether the loader has a use for a section by what the dynamic section says, which is the
    /// one reason why a linker's tables are loaded.
    pub(super) fn leads_to(&self, section: &Section<'_>) -> bool {
        let address = section.address;
        let tags = [HASH, STRTAB, SYMTAB, GNU_HASH, VERSYM, VERDEF, VERNEED];
        let is_table = |table: &RelocationTable| {
            let distance = address.checked_sub(table.address);
            distance
                .and_then(|by| by.checked_add(section.size))
                .is_some_and(|end| end <= table.size)
        };
        self.at == Some(address)
            || tags.iter().any(|tag| self.value(*tag) == Some(address))
            || self.tables.iter().any(is_table)
    }
}

/// The segments of a linked file, and what its dynamic section says.
pub(super) struct Loaded {
    pub(super) segments: Vec<Segment>,
    pub(super) dynamic: Dynamic,
}

impl Loaded {
    pub(super) fn new<'data, R: Contents<'data>>(file: &File<'data, R>) -> Result<Self, ReadError> {
        let segments = segments::loaded(file);
        let dynamic = Dynamic::new(file, &segments)?;
        Ok(Self { segments, dynamic })
    }
}
