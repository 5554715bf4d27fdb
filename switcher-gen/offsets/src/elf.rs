//! The sections of an ELF file.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use object::Endianness;
use object::elf::{
    ELFCOMPRESS_ZLIB, ELFDATA2LSB, EM_X86_64, ET_REL, FileHeader64, SHF_COMPRESSED, SHT_NOBITS,
    SHT_RELA, SectionHeader64,
};
use object::read::elf::{FileHeader, SectionHeader};
use object::read::{ReadCache, ReadRef};

use crate::OffsetsError;
use crate::input::{Input, Positioned};

const E: Endianness = Endianness::Little;

/// A file's table of sections.
pub(crate) struct Elf<'i> {
    pub(crate) input: &'i dyn Input,
    /// Whether it is an object, whose sections are still to be relocated.
    pub(crate) is_object: bool,
    headers: Vec<Header>,
}

/// What counts of a section's header.
pub(crate) struct Header {
    pub(crate) name: String,
    header: SectionHeader64<Endianness>,
}

/// The bytes of a section.
pub(crate) struct Section<'i> {
    pub(crate) name: String,
    /// Its number in the file.
    pub(crate) index: usize,
    contents: Contents<'i>,
}

enum Contents<'i> {
    InFile { input: &'i dyn Input, at: u64, size: u64 },
    Unpacked(Vec<u8>),
}

impl Input for Section<'_> {
    fn size(&self) -> u64 {
        match &self.contents {
            Contents::InFile { size, .. } => *size,
            Contents::Unpacked(bytes) => bytes.len() as u64,
        }
    }

    fn read_at(&self, at: u64, to: &mut [u8]) -> Result<(), OffsetsError> {
        match &self.contents {
            Contents::Unpacked(bytes) => Input::read_at(&bytes.as_slice(), at, to),
            Contents::InFile { input, at: start, size } => {
                let end = at.checked_add(to.len() as u64).filter(|end| end <= size);
                let from = end.and_then(|_| start.checked_add(at));
                input.read_at(from.ok_or(OffsetsError::Truncated { at })?, to)
            }
        }
    }
}

fn damaged(what: impl ToString) -> OffsetsError {
    OffsetsError::DamagedElf { what: what.to_string() }
}

impl<'i> Elf<'i> {
    pub(crate) fn new(input: &'i dyn Input) -> Result<Self, OffsetsError> {
        let mut ident = [0; 6];
        input.read_at(0, &mut ident)?;
        if ident[4] != 2 || ident[5] != ELFDATA2LSB.0 {
            return Err(OffsetsError::NotX86);
        }
        let cache = ReadCache::new(Positioned { input, at: 0 });
        let header = FileHeader64::<Endianness>::parse(&cache).map_err(damaged)?;
        if header.e_machine(E) != EM_X86_64 {
            return Err(OffsetsError::NotX86);
        }
        // The cache keeps what is read through it: tables and names, but no contents.
        let within = |at: u64, size: u64| {
            let end = at.checked_add(size).filter(|end| *end <= input.size());
            end.map(drop).ok_or(OffsetsError::Truncated { at })
        };
        let count = header.shnum(E, &cache).map_err(damaged)?;
        within(header.e_shoff(E), count as u64 * size_of::<SectionHeader64<Endianness>>() as u64)?;
        let table = header.section_headers(E, &cache).map_err(damaged)?;
        let mut headers = Vec::with_capacity(table.len());
        if !table.is_empty() {
            let names = header.shstrndx(E, &cache).map_err(damaged)?;
            let names = table.get(names as usize).ok_or_else(|| damaged("names of sections"))?;
            within(names.sh_offset(E), names.sh_size(E))?;
            let names = (&cache).read_bytes_at(names.sh_offset(E), names.sh_size(E));
            let names = names.map_err(|()| damaged("names of sections"))?;
            for header in table {
                let rest = names.get(header.sh_name(E) as usize..).unwrap_or_default();
                // The names that count are short, and all may be parts of a long one.
                let rest = &rest[..rest.len().min(64)];
                let name = rest.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = String::from_utf8_lossy(name).into_owned();
                headers.push(Header { name, header: *header });
            }
        }
        Ok(Self { input, is_object: header.e_type(E) == ET_REL, headers })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|it| it.name == name && it.header.sh_type(E) != SHT_NOBITS)
    }

    /// All sections of this name.
    pub(crate) fn sections(&self, name: &str) -> Result<Vec<Section<'i>>, OffsetsError> {
        let named = self.headers.iter().enumerate().filter(|(_, header)| header.name == name);
        named.map(|(index, _)| self.section(index)).collect()
    }

    /// The first section of this name.
    pub(crate) fn first(&self, name: &str) -> Result<Option<Section<'i>>, OffsetsError> {
        let index = self.headers.iter().position(|header| header.name == name);
        index.map(|index| self.section(index)).transpose()
    }

    /// The section of a number, which is unpacked if it is compressed.
    pub(crate) fn section(&self, index: usize) -> Result<Section<'i>, OffsetsError> {
        let header = self.headers.get(index).ok_or_else(|| damaged("numbers of sections"))?;
        let Header { name, header } = header;
        let (at, size) = match header.sh_type(E) {
            SHT_NOBITS => (0, 0),
            _ => (header.sh_offset(E), header.sh_size(E)),
        };
        if at.checked_add(size).is_none_or(|end| end > self.input.size()) {
            return Err(OffsetsError::Truncated { at });
        }
        let in_file = Contents::InFile { input: self.input, at, size };
        let mut section = Section { name: name.clone(), index, contents: in_file };
        if header.sh_flags(E).contains(SHF_COMPRESSED) {
            section.contents = Contents::Unpacked(unpack(&section)?);
        }
        Ok(section)
    }

    /// The relocations of a section, if it has any.
    pub(crate) fn relocations_of(&self, index: usize) -> Option<(usize, usize)> {
        let is_its = |header: &Header| {
            header.header.sh_type(E) == SHT_RELA && header.header.sh_info(E) as usize == index
        };
        let table = self.headers.iter().position(is_its)?;
        Some((table, self.headers[table].header.sh_link(E) as usize))
    }
}

/// The bytes that a compressed section stands for.
fn unpack(section: &Section<'_>) -> Result<Vec<u8>, OffsetsError> {
    /// The largest section that is unpacked. It is in memory as a whole.
    const MOST: u64 = 2 << 30;
    /// No more than so many bytes come of one with this kind of compression.
    const RATIO: u64 = 1032;
    const HEADER: usize = 24;
    /// How much is read at once.
    const SOME: u64 = 1 << 20;
    let refuse = |why| OffsetsError::Compressed { section: section.name.clone(), why };
    let mut header = [0; HEADER];
    section.read_at(0, &mut header).map_err(|_| refuse("is cut off"))?;
    let number = |at: usize| {
        header[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default()
    };
    if number(0) as u32 != ELFCOMPRESS_ZLIB.0 {
        return Err(refuse("is compressed by another method than zlib"));
    }
    let size = number(8);
    let packed_size = section.size() - HEADER as u64;
    if size > MOST || size > packed_size.saturating_mul(RATIO) {
        return Err(refuse("is too large to be unpacked here, or its size is wrong"));
    }
    let mut unpacked = vec![0; size as usize];
    let mut inflation = Box::<DecompressorOxide>::default();
    let (mut at, mut filled) = (HEADER as u64, 0);
    loop {
        let some = section.bytes(at, SOME.min(section.size() - at))?;
        let is_last = at + some.len() as u64 == section.size();
        let more = if is_last { 0 } else { inflate_flags::TINFL_FLAG_HAS_MORE_INPUT };
        let flags = more
            | inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
            | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, read, written) =
            decompress(&mut inflation, &some, &mut unpacked, filled, flags);
        at += read as u64;
        filled += written;
        match status {
            TINFLStatus::Done if filled == unpacked.len() => return Ok(unpacked),
            TINFLStatus::Done | TINFLStatus::HasMoreOutput => {
                return Err(refuse("is compressed, and its size is wrong"));
            }
            TINFLStatus::NeedsMoreInput if !is_last && read > 0 => {}
            _ => return Err(refuse("is compressed, and damaged")),
        }
    }
}
