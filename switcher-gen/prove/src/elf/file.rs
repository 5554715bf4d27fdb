//! The tables of an ELF file: sections, symbols, relocations and segments.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::ops::Range;

use object::Endianness;
use object::elf::{
    ET_DYN, ET_EXEC, ET_REL, FileHeader64, FileType, PT_LOAD, ProgramHeader64, SHF_ALLOC,
    SHF_EXECINSTR, SHN_ABS, SHN_COMMON, SHN_UNDEF, SHT_CREL, SHT_DYNAMIC, SHT_DYNSYM,
    SHT_GNU_VERDEF, SHT_GNU_VERNEED, SHT_GROUP, SHT_NOBITS, SHT_REL, SHT_RELA, SHT_SYMTAB,
    STB_LOCAL, STB_WEAK, STT_SECTION, SectionHeader64, Sym64, SymbolBind, SymbolType,
};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym, SymbolTable};
use object::read::{SectionIndex, SymbolIndex};

use super::contents::{Contents, E};
use super::error::ReadError;
use super::places::LIMIT;
use super::relocation::Relocation;
use super::relocation_table::relocations;
use super::request::Request;

type Symbols<'data, R> = SymbolTable<'data, FileHeader64<Endianness>, R>;

/// A file's tables.
pub(super) struct File<'data, R: Contents<'data>> {
    pub(super) data: R,
    pub(super) kind: FileType,
    pub(super) sections: Vec<Section<'data>>,
    pub(super) segments: &'data [ProgramHeader64<Endianness>],
    symbols: Symbols<'data, R>,
    strings: &'data [u8],
    /// The other tables of symbols. In a linked file, the loader looks at one of them.
    others: Vec<(Symbols<'data, R>, &'data [u8])>,
    /// The sections that relocate a section; in an object, at most one each.
    relocated_by: HashMap<usize, Vec<usize>>,
    /// The sections that a group lists, whatever their own flags say.
    grouped: HashSet<usize>,
    /// Where the dynamic symbols are.
    dynamic_symbols: Option<u64>,
    /// Bytes of the file's header and the program headers, if they follow each other as usual.
    pub(super) headers: u64,
    /// The sections that something takes names from.
    named_from: HashSet<usize>,
    /// How many more bytes of names may be read. Each name may be a part of the longest one, so the
    /// size of the file is no limit.
    names: Cell<u64>,
    /// What its symbols are called that are not called as ours.
    pub(super) request: Request,
}

/// How often the headers of a file may claim its bytes. The headers of a normal file share almost
/// nothing.
const TIMES: u64 = 4;
/// The largest number of segments. A normal file has a few.
const SEGMENTS: usize = 4096;

/// A section, by its number in the file.
pub(super) struct Section<'data> {
    pub(super) header: &'data SectionHeader64<Endianness>,
    name: &'data [u8],
    /// In a linked file, the address of the section. For an object, [`FileCode`] chooses it.
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
    /// Something that only a certain operating system understands.
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

/// A name as text, for messages.
pub(super) fn text(name: &[u8]) -> String {
    shown(&String::from_utf8_lossy(name))
}

/// A name as it can be shown: what would move a terminal's cursor, or turn the direction of text
/// around, is escaped, so that no name makes a message say something else.
pub(super) fn shown(name: &str) -> String {
    let is_plain = |c: &char| !c.is_control() && (c.is_ascii() || c.is_alphanumeric());
    let mut shown = String::with_capacity(name.len());
    for c in name.chars() {
        match is_plain(&c) {
            true => shown.push(c),
            false => shown.extend(c.escape_unicode()),
        }
    }
    shown
}

/// The string at `offset`, without its end; none if it is longer than what is `left`.
fn string<'a>(strings: &'a [u8], offset: u32, left: &Cell<u64>) -> Option<&'a [u8]> {
    let rest = strings.get(offset as usize..).unwrap_or_default();
    let most = rest.len().min(usize::try_from(left.get()).unwrap_or(usize::MAX));
    let end = CStr::from_bytes_until_nul(&rest[..most]).ok().map(CStr::count_bytes);
    let end = end.or_else(|| (most == rest.len()).then_some(most))?;
    left.set(left.get() - end as u64);
    Some(&rest[..end])
}

/// Refuses headers that lead to the same bytes again and again.
fn claims(
    sizes: impl Iterator<Item = u64>,
    length: u64,
    what: &'static str,
) -> Result<(), ReadError> {
    // A header that reaches beyond the file is reported elsewhere, if it matters.
    let sum = sizes.fold(0_u64, |sum, size| sum.saturating_add(size.min(length)));
    if sum > TIMES.saturating_mul(length) { Err(ReadError::Claims { what }) } else { Ok(()) }
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

    /// What it is aligned to. An unusual alignment does not count: it is reported of a section that
    /// is reached.
    pub(super) fn usual_alignment(&self) -> u64 {
        let alignment = self.header.sh_addralign(E).max(1);
        if alignment.is_power_of_two() && alignment <= LIMIT { alignment } else { 1 }
    }

    pub(super) fn has_bytes(&self) -> bool {
        self.header.sh_type(E) != SHT_NOBITS
    }

    pub(super) fn offset(&self) -> u64 {
        self.header.sh_offset(E)
    }

    /// The sections that a group lists.
    fn members<'data, R: Contents<'data>>(&self, data: R) -> Result<Vec<usize>, ReadError> {
        let truncated = || ReadError::Truncated { section: self.text() };
        if self.size > data.len().unwrap_or_default() {
            return Err(truncated());
        }
        let mut bytes = vec![0; self.size as usize];
        data.copy(self.offset(), &mut bytes).map_err(|()| truncated())?;
        let words = bytes.as_chunks::<4>().0.iter();
        // In front of them are the group's flags.
        Ok(words.skip(1).map(|word| u32::from_le_bytes(*word) as usize).collect())
    }

    /// The addresses it covers, as far as there are addresses.
    pub(super) fn range(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.size)
    }
}

impl<'data, R: Contents<'data>> File<'data, R> {
    pub(super) fn parse(data: R, request: Request) -> Result<Self, ReadError> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        let kind = header.e_type(E);
        let table = header.sections(E, data)?;
        let names = match header.section_strings_index(E, data) {
            Ok(index) => table.section(index).and_then(|strings| strings.data(E, data)),
            Err(error) => Err(error),
        };
        let names = if table.is_empty() { &[][..] } else { names? };
        let length = data.len().unwrap_or_default();
        let left = Cell::new(TIMES.saturating_mul(length).saturating_add(LIMIT));
        let mut sections = Vec::new();
        for header in table.iter() {
            let name = string(names, header.sh_name(E), &left);
            let name = name.ok_or(ReadError::TooLarge { what: "the names of sections" })?;
            let (address, size) = (header.sh_addr(E), header.sh_size(E));
            sections.push(Section { header, name, address, size });
        }
        let in_file = sections.iter().filter(|section| section.has_bytes());
        claims(in_file.map(|section| section.size), length, "the sections' headers")?;
        let segments = header.program_headers(E, data).unwrap_or_default();
        let loaded = segments.iter().filter(|segment| segment.p_type(E) == PT_LOAD);
        claims(loaded.clone().map(|segment| segment.p_filesz(E)), length, "the program headers")?;
        if loaded.count() > SEGMENTS {
            return Err(ReadError::Claims { what: "the program headers" });
        }
        let mut symbols = table.symbols(E, data, SHT_SYMTAB)?;
        // A stripped library still has the table of what it exports.
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
                let all = relocated_by.entry(of).or_default();
                all.push(number);
                if kind == ET_REL && all.len() > 1 {
                    let section = sections.get(of).map(Section::text).unwrap_or_default();
                    return Err(ReadError::RelocatedBySeveral { section });
                }
            }
        }
        let headers = match header.e_phoff(E) {
            at @ 64 => at.saturating_add(size_of_val(segments) as u64),
            _ => 64,
        };
        let (mut grouped, mut named_from) = (HashSet::new(), HashSet::new());
        named_from.extend(header.section_strings_index(E, data).map(|index| index.0));
        for section in &sections {
            match section.header.sh_type(E) {
                SHT_GROUP if kind == ET_REL => grouped.extend(section.members(data)?),
                SHT_SYMTAB | SHT_DYNSYM | SHT_DYNAMIC | SHT_GNU_VERDEF | SHT_GNU_VERNEED => {
                    named_from.insert(section.header.sh_link(E) as usize);
                }
                _ => {}
            }
        }
        let mut all = sections.iter();
        let dynamic_symbols = all.find(|section| section.header.sh_type(E) == SHT_DYNSYM);
        let dynamic_symbols = dynamic_symbols.map(Section::offset);
        match kind {
            ET_REL | ET_EXEC | ET_DYN if symbols.section().0 == 0 => Err(ReadError::Stripped),
            ET_REL | ET_EXEC | ET_DYN => {
                header.program_headers(E, data)?;
                Ok(Self {
                    data,
                    kind,
                    sections,
                    segments,
                    symbols,
                    strings,
                    others,
                    relocated_by,
                    grouped,
                    dynamic_symbols,
                    headers,
                    named_from,
                    names: left,
                    request,
                })
            }
            other => Err(ReadError::FileType(other.0)),
        }
    }

    pub(super) fn is_object(&self) -> bool {
        self.kind == ET_REL
    }

    /// Whether a loader may put it anywhere, so that it holds no address that is not relocated.
    pub(super) fn is_movable(&self) -> bool {
        self.kind == ET_DYN
    }

    /// A word of a dynamic symbol: its value at 8, its size at 16.
    pub(super) fn dynamic_symbol(&self, number: u64, at: u64) -> Option<u64> {
        let mut word = [0; 8];
        let by = number.checked_mul(24)?.checked_add(at)?;
        self.data.copy(self.dynamic_symbols?.checked_add(by)?, &mut word).ok()?;
        Some(u64::from_le_bytes(word))
    }

    fn symbol(&self, index: usize, raw: &Sym64<Endianness>) -> Result<Symbol<'data>, ReadError> {
        self.symbol_of((&self.symbols, self.strings), index, raw)
    }

    /// From here on, as many bytes of names may be read as from the beginning on.
    pub(super) fn refill(&self) {
        let length = self.data.len().unwrap_or_default();
        self.names.set(TIMES.saturating_mul(length).saturating_add(LIMIT));
    }

    fn symbol_of(
        &self,
        (table, strings): (&Symbols<'data, R>, &'data [u8]),
        index: usize,
        raw: &Sym64<Endianness>,
    ) -> Result<Symbol<'data>, ReadError> {
        let name = string(strings, raw.st_name(E), &self.names);
        let name = name.ok_or(ReadError::TooLarge { what: "the names of symbols" })?;
        Ok(Symbol {
            name: self.request.ours(name).map_or(name, str::as_bytes),
            bind: raw.st_bind(),
            kind: raw.st_type(),
            value: raw.st_value(E),
            of: of(table, SymbolIndex(index), raw)?,
        })
    }

    pub(super) fn symbols(&self) -> impl Iterator<Item = Result<Symbol<'data>, ReadError>> {
        let all = self.symbols.symbols().iter().enumerate();
        all.map(|(index, raw)| self.symbol(index, raw))
    }

    /// The symbols with one of these names, or with what the request says of theirs, whatever
    /// version follows. Most of a kernel's symbols are told from them by a few bytes.
    pub(super) fn called(
        &self,
        names: &[&[u8]],
    ) -> impl Iterator<Item = Result<Symbol<'data>, ReadError>> {
        let theirs = names.iter().flat_map(|name| self.request.every_name(name));
        let wanted: Vec<Vec<u8>> = names.iter().map(|name| name.to_vec()).chain(theirs).collect();
        let is_called = move |raw: &Sym64<Endianness>| {
            let rest = self.strings.get(raw.st_name(E) as usize..).unwrap_or_default();
            let mut wanted = wanted.iter();
            wanted.any(|name| {
                let end = rest.strip_prefix(&name[..]).map(|rest| rest.first());
                matches!(end, Some(None | Some(0 | b'@')))
            })
        };
        let all = self.symbols.symbols().iter().enumerate();
        all.filter(move |(_, raw)| is_called(raw)).map(|(index, raw)| self.symbol(index, raw))
    }

    /// The symbols of all other tables.
    pub(super) fn other_symbols(&self) -> impl Iterator<Item = Result<Symbol<'data>, ReadError>> {
        self.others.iter().flat_map(move |(table, strings)| {
            let all = table.symbols().iter().enumerate();
            all.map(move |(index, raw)| self.symbol_of((table, strings), index, raw))
        })
    }

    /// Whether a linker may leave out a section, or what relocates it, since a group lists it.
    pub(super) fn is_in_group(&self, section: usize) -> bool {
        let by = self.relocated_by.get(&section).into_iter().flatten();
        self.grouped.contains(&section) || by.into_iter().any(|by| self.grouped.contains(by))
    }

    /// Whether something relocates a section.
    pub(super) fn is_relocated(&self, section: usize) -> bool {
        self.relocated_by.contains_key(&section)
    }

    /// Whether names are taken from a section.
    pub(super) fn has_names(&self, section: usize) -> bool {
        self.named_from.contains(&section)
    }

    /// How many bytes headers may claim.
    pub(super) fn claims(&self, sizes: impl Iterator<Item = u64>) -> Result<(), ReadError> {
        claims(sizes, self.data.len().unwrap_or_default(), "pairs of `__start_` and `__stop_`")
    }

    pub(super) fn symbol_by_index(&self, index: usize) -> Result<Symbol<'data>, ReadError> {
        self.symbol(index, self.symbols.symbol(SymbolIndex(index))?)
    }

    /// Whether the definition of a symbol may be another file's.
    pub(super) fn is_weak(&self, index: usize) -> Result<bool, ReadError> {
        Ok(self.symbols.symbol(SymbolIndex(index))?.st_bind() == STB_WEAK)
    }

    /// What relocates a section of an object, in the file's order.
    pub(super) fn relocations(
        &self,
        section: usize,
    ) -> Result<impl Iterator<Item = Result<Relocation, ReadError>> + use<'data, R>, ReadError>
    {
        let by = self.relocated_by.get(&section).into_iter().flatten();
        let tables = by.map(|by| {
            let table = &self.sections[*by];
            let is_of_symbols = table.header.sh_link(E) as usize == self.symbols.section().0;
            let entries =
                is_of_symbols.then(|| relocations(self.data, table.header, table.text())).flatten();
            entries.ok_or_else(|| ReadError::RelocationTable { section: table.text() })
        });
        Ok(tables.collect::<Result<Vec<_>, _>>()?.into_iter().flatten())
    }

    /// What lies at a relocation's symbol: the section, and the offset in it without the addend.
    pub(super) fn refers_to(
        &self,
        relocation: &Relocation,
    ) -> Result<Option<(usize, u64, bool)>, ReadError> {
        if relocation.symbol == 0 {
            return Ok(None);
        }
        let index = SymbolIndex(relocation.symbol);
        let raw = self.symbols.symbol(index)?;
        Ok(match of(&self.symbols, index, raw)? {
            Of::Section(section) => Some((section, raw.st_value(E), raw.st_type() == STT_SECTION)),
            _ => None,
        })
    }
}

fn of<'data, R: Contents<'data>>(
    table: &Symbols<'data, R>,
    index: SymbolIndex,
    raw: &Sym64<Endianness>,
) -> Result<Of, ReadError> {
    Ok(match raw.st_shndx(E) {
        SHN_UNDEF => Of::Undefined,
        SHN_ABS => Of::Absolute,
        SHN_COMMON => Of::Common,
        _ => match table.symbol_section(E, raw, index)? {
            Some(section) => Of::Section(section.0),
            None => Of::Other,
        },
    })
}
