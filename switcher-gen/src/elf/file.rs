//! The tables of an ELF file: sections, symbols, relocations and segments.

use std::collections::HashMap;
use std::ops::Range;

use object::Endianness;
use object::elf::{
    ET_DYN, ET_EXEC, ET_REL, FileHeader64, FileType, ProgramHeader64, SHF_ALLOC, SHF_EXECINSTR,
    SHN_ABS, SHN_COMMON, SHN_UNDEF, SHT_CREL, SHT_DYNSYM, SHT_NOBITS, SHT_REL, SHT_RELA,
    SHT_SYMTAB, STB_LOCAL, STB_WEAK, STT_SECTION, SectionHeader64, Sym64, SymbolBind, SymbolType,
};
use object::read::elf::{FileHeader, Rel, Rela, SectionHeader, Sym, SymbolTable};
use object::read::{ReadCache, ReadRef, SectionIndex, SymbolIndex};

use super::error::ReadError;
use super::relocation::Relocation;

/// What [`read`](super::read()) has checked.
pub(super) const E: Endianness = Endianness::Little;

/// Where a file's bytes come from.
pub(super) trait Contents<'data>: ReadRef<'data> {
    /// Copies bytes, and keeps none.
    fn copy(self, offset: u64, to: &mut [u8]) -> Result<(), ()>;
}

impl<'data> Contents<'data> for &'data [u8] {
    fn copy(self, offset: u64, to: &mut [u8]) -> Result<(), ()> {
        to.copy_from_slice(self.read_bytes_at(offset, to.len() as u64)?);
        Ok(())
    }
}

/// A file of which only those parts are in memory that were read.
#[derive(Clone, Copy)]
pub(super) struct OnDisk<'data> {
    pub(super) cache: &'data ReadCache<&'data std::fs::File>,
    pub(super) file: &'data std::fs::File,
}

impl<'data> ReadRef<'data> for OnDisk<'data> {
    fn len(self) -> Result<u64, ()> {
        ReadRef::len(self.cache)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        self.cache.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        self.cache.read_bytes_at_until(range, delimiter)
    }
}

impl<'data> Contents<'data> for OnDisk<'data> {
    fn copy(self, offset: u64, to: &mut [u8]) -> Result<(), ()> {
        use std::os::unix::fs::FileExt;
        self.file.read_exact_at(to, offset).map_err(drop)
    }
}

type Symbols<'data, R> = SymbolTable<'data, FileHeader64<Endianness>, R>;

/// A file's tables.
pub(super) struct File<'data, R: Contents<'data>> {
    pub(super) data: R,
    pub(super) kind: FileType,
    pub(super) sections: Vec<Section<'data>>,
    pub(super) segments: &'data [ProgramHeader64<Endianness>],
    symbols: Symbols<'data, R>,
    strings: &'data [u8],
    /// What else names symbols: in what is linked, what the loader looks at.
    others: Vec<(Symbols<'data, R>, &'data [u8])>,
    /// The sections that relocate a section.
    relocated_by: HashMap<usize, Vec<usize>>,
}

/// A section, by its number in the file.
pub(super) struct Section<'data> {
    pub(super) header: &'data SectionHeader64<Endianness>,
    name: &'data [u8],
    /// In a linked file, where it lies; of an object, [`Code`] decides.
    pub(super) address: u64,
    pub(super) size: u64,
}

/// A symbol.
pub(super) struct Symbol<'data> {
    pub(super) name: &'data [u8],
    pub(super) bind: SymbolBind,
    pub(super) kind: SymbolType,
    pub(super) value: u64,
    pub(super) of: Of,
}

/// What a symbol is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Undefined,
    Absolute,
    Common,
    Section(usize),
    /// What only a certain operating system understands.
    Other,
}

impl Symbol<'_> {
    pub(super) fn text(&self) -> String {
        text(self.name)
    }

    pub(super) fn is_local(&self) -> bool {
        self.bind == STB_LOCAL
    }

    pub(super) fn is_weak(&self) -> bool {
        self.bind == STB_WEAK
    }
}

/// A name, for people.
pub(super) fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// The string at `offset`, without its end.
fn string(strings: &[u8], offset: u32) -> &[u8] {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    rest.split(|byte| *byte == 0).next().unwrap_or_default()
}

impl Section<'_> {
    pub(super) fn text(&self) -> String {
        text(self.name)
    }

    pub(super) fn has(&self, flag: object::elf::SectionFlags) -> bool {
        self.header.sh_flags(E).0 & flag.0 != 0
    }

    pub(super) fn is_code(&self) -> bool {
        self.has(SHF_ALLOC) && self.has(SHF_EXECINSTR)
    }

    pub(super) fn has_bytes(&self) -> bool {
        self.header.sh_type(E) != SHT_NOBITS
    }

    pub(super) fn offset(&self) -> u64 {
        self.header.sh_offset(E)
    }

    /// The addresses it covers, as far as there are addresses.
    pub(super) fn range(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.size)
    }
}

impl<'data, R: Contents<'data>> File<'data, R> {
    pub(super) fn parse(data: R) -> Result<Self, ReadError> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        let kind = header.e_type(E);
        let table = header.sections(E, data)?;
        let names = match header.section_strings_index(E, data) {
            Ok(index) => table.section(index).and_then(|strings| strings.data(E, data)),
            Err(error) => Err(error),
        };
        let names = if table.is_empty() { &[][..] } else { names? };
        let sections: Vec<_> = table
            .iter()
            .map(|header| Section {
                header,
                name: string(names, header.sh_name(E)),
                address: header.sh_addr(E),
                size: header.sh_size(E),
            })
            .collect();
        let mut symbols = table.symbols(E, data, SHT_SYMTAB)?;
        // Of a stripped library, what it exports is left.
        if symbols.section().0 == 0 {
            symbols = table.symbols(E, data, SHT_DYNSYM)?;
        }
        let strings = |of: &Symbols<'data, R>| match of.string_section().0 {
            0 => Ok(&[][..]),
            index => sections.get(index).map_or(Ok(&[][..]), |s| s.header.data(E, data)),
        };
        let mut others = Vec::new();
        for (number, section) in sections.iter().enumerate() {
            let is_table = matches!(section.header.sh_type(E), SHT_SYMTAB | SHT_DYNSYM);
            if is_table && number != symbols.section().0 {
                let other =
                    SymbolTable::parse(E, data, &table, SectionIndex(number), section.header)?;
                let strings = strings(&other)?;
                others.push((other, strings));
            }
        }
        let strings = strings(&symbols)?;
        let mut relocated_by = HashMap::<usize, Vec<usize>>::new();
        for (number, section) in sections.iter().enumerate() {
            if matches!(section.header.sh_type(E), SHT_REL | SHT_RELA | SHT_CREL) {
                let of = section.header.sh_info(E) as usize;
                relocated_by.entry(of).or_default().push(number);
            }
        }
        match kind {
            ET_REL | ET_EXEC | ET_DYN if symbols.section().0 == 0 => Err(ReadError::Stripped),
            ET_REL | ET_EXEC | ET_DYN => {
                let segments = header.program_headers(E, data)?;
                Ok(Self { data, kind, sections, segments, symbols, strings, others, relocated_by })
            }
            other => Err(ReadError::FileType(other.0)),
        }
    }

    pub(super) fn is_object(&self) -> bool {
        self.kind == ET_REL
    }

    fn symbol(&self, index: usize, raw: &Sym64<Endianness>) -> Result<Symbol<'data>, ReadError> {
        symbol(&self.symbols, self.strings, index, raw)
    }

    pub(super) fn symbols(&self) -> impl Iterator<Item = Result<Symbol<'data>, ReadError>> {
        let all = self.symbols.symbols().iter().enumerate();
        all.map(|(index, raw)| self.symbol(index, raw))
    }

    /// Those of all other tables.
    pub(super) fn other_symbols(&self) -> impl Iterator<Item = Result<Symbol<'data>, ReadError>> {
        self.others.iter().flat_map(|(table, strings)| {
            let all = table.symbols().iter().enumerate();
            all.map(move |(index, raw)| symbol(table, strings, index, raw))
        })
    }

    pub(super) fn symbol_by_index(&self, index: usize) -> Result<Symbol<'data>, ReadError> {
        self.symbol(index, self.symbols.symbol(SymbolIndex(index))?)
    }

    /// What relocates a section of an object, in the file's order.
    pub(super) fn relocations(&self, section: usize) -> Result<Vec<Relocation>, ReadError> {
        let mut found = Vec::new();
        for &by in self.relocated_by.get(&section).into_iter().flatten() {
            let header = self.sections[by].header;
            if header.sh_link(E) as usize != self.symbols.section().0 {
                return Err(ReadError::RelocationTable { section: self.sections[by].text() });
            }
            if let Some((all, _)) = header.rela(E, self.data)? {
                found.extend(all.iter().map(|rela| Relocation {
                    offset: rela.r_offset(E),
                    kind: rela.r_type(E, false),
                    symbol: rela.r_sym(E, false) as usize,
                    addend: Some(rela.r_addend(E)),
                }));
            } else if let Some((all, _)) = header.rel(E, self.data)? {
                found.extend(all.iter().map(|rel| Relocation {
                    offset: rel.r_offset(E),
                    kind: rel.r_type(E),
                    symbol: rel.r_sym(E) as usize,
                    addend: None,
                }));
            } else {
                return Err(ReadError::RelocationTable { section: self.sections[by].text() });
            }
        }
        Ok(found)
    }

    /// What lies at a relocation's symbol: the section, and the offset in it without the addend.
    pub(super) fn refers_to(
        &self,
        relocation: &Relocation,
    ) -> Result<Option<(usize, u64, bool)>, ReadError> {
        if relocation.symbol == 0 {
            return Ok(None);
        }
        let symbol = self.symbol_by_index(relocation.symbol)?;
        Ok(match symbol.of {
            Of::Section(section) => Some((section, symbol.value, symbol.kind == STT_SECTION)),
            _ => None,
        })
    }
}

fn symbol<'data, R: Contents<'data>>(
    table: &Symbols<'data, R>,
    strings: &'data [u8],
    index: usize,
    raw: &Sym64<Endianness>,
) -> Result<Symbol<'data>, ReadError> {
    let of = match raw.st_shndx(E) {
        SHN_UNDEF => Of::Undefined,
        SHN_ABS => Of::Absolute,
        SHN_COMMON => Of::Common,
        _ => match table.symbol_section(E, raw, SymbolIndex(index))? {
            Some(section) => Of::Section(section.0),
            None => Of::Other,
        },
    };
    Ok(Symbol {
        name: string(strings, raw.st_name(E)),
        bind: raw.st_bind(),
        kind: raw.st_type(),
        value: raw.st_value(E),
        of,
    })
}
