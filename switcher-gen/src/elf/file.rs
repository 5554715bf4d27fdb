//! The tables of an ELF file, and its code as it lies in memory, byte by byte and only where somebody
//! looks.

use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::ops::Range;

use object::Endianness;
use object::elf::{
    ET_DYN, ET_EXEC, ET_REL, FileHeader64, FileType, ProgramHeader64, R_X86_64_32, R_X86_64_32S,
    R_X86_64_64, R_X86_64_NONE, R_X86_64_PC8, R_X86_64_PC16, R_X86_64_PC32, R_X86_64_PC64,
    R_X86_64_PLT32, RelocationType, SHF_ALLOC, SHF_EXECINSTR, SHN_ABS, SHN_COMMON, SHN_UNDEF,
    SHT_CREL, SHT_DYNSYM, SHT_NOBITS, SHT_REL, SHT_RELA, SHT_SYMTAB, STB_LOCAL, STB_WEAK,
    STT_GNU_IFUNC, STT_SECTION, SectionHeader64, Sym64, SymbolBind, SymbolType,
};
use object::read::elf::{FileHeader, ProgramHeader, Rel, Rela, SectionHeader, Sym, SymbolTable};
use object::read::{ReadCache, ReadRef, SectionIndex, SymbolIndex};

use super::read::{Foreign, LIMIT, Place, ReadError};

/// What [`read`](super::read()) has checked.
pub(super) const E: Endianness = Endianness::Little;
/// An object's code reaches all of itself, as far as a displacement of 32 bits can.
const REACH: u64 = 1 << 30;

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

    fn symbol_by_index(&self, index: usize) -> Result<Symbol<'data>, ReadError> {
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

/// A relocation of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocation {
    /// Bytes from the start of the section.
    pub(super) offset: u64,
    pub(super) kind: RelocationType,
    /// Number of the symbol, or 0.
    pub(super) symbol: usize,
    /// Unless it is in the code.
    pub(super) addend: Option<i64>,
}

impl Relocation {
    /// Whether what it stores is a distance.
    pub(super) fn is_relative(&self) -> bool {
        Form::of(self.kind).is_some_and(|form| form.relative)
    }

    /// As many bytes as it changes; of a kind that is not known, as many as any can.
    fn width(&self) -> u64 {
        Form::of(self.kind).map_or(8, |form| form.width as u64)
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.width())
    }
}

/// The code of a file, by address.
pub(super) struct Code<'f, 'data, R: Contents<'data>> {
    pub(super) file: &'f File<'data, R>,
    /// By address; none is empty.
    pub(super) areas: Vec<Area>,
    /// What each section covers, empty ones too: they can have symbols.
    ranges: HashMap<usize, Range<u64>>,
    /// The first absolute address of the code's own that was stored into it.
    pub(super) absolute: Cell<Option<(usize, u64)>>,
}

/// A section of code.
pub(super) struct Area {
    /// Its number in the file.
    pub(super) section: usize,
    pub(super) range: Range<u64>,
    /// Where its bytes are in the file.
    offset: u64,
    /// By offset.
    relocations: OnceCell<Vec<Relocation>>,
}

/// Bytes in memory, with what could not be resolved in them.
pub(super) struct Glance {
    pub(super) bytes: [u8; 15],
    pub(super) len: usize,
    /// By address.
    pub(super) wrong: Vec<(Range<u64>, ReadError)>,
}

impl<'f, 'data, R: Contents<'data>> Code<'f, 'data, R> {
    /// Of an object, sections lie one behind the other from [`Foreign::BASE`] on, in the file's order
    /// and aligned as they ask; of a linked file, where it says.
    pub(super) fn new(file: &'f File<'data, R>) -> Result<Self, ReadError> {
        let (mut areas, mut ranges) = (Vec::new(), HashMap::new());
        let mut next = Foreign::BASE;
        for (number, section) in file.sections.iter().enumerate().filter(|(_, s)| s.is_code()) {
            let address = if file.is_object() {
                // What is wrong with an alignment is said of a section that is reached.
                let alignment = section.header.sh_addralign(E).max(1);
                let is_usual = alignment.is_power_of_two() && alignment <= LIMIT;
                next.next_multiple_of(if is_usual { alignment } else { 1 })
            } else {
                section.address
            };
            let end = address.checked_add(section.size);
            let Some(end) = end.filter(|end| !file.is_object() || end - Foreign::BASE <= REACH)
            else {
                if !section.has_bytes() {
                    return Err(ReadError::NoContents { section: section.text() });
                }
                return Err(if file.is_object() {
                    ReadError::TooLarge { what: "the sections of code" }
                } else {
                    ReadError::WrapsAround { section: section.text() }
                });
            };
            next = end;
            ranges.insert(number, address..end);
            if section.size > 0 {
                areas.push(Area {
                    section: number,
                    range: address..end,
                    offset: section.offset(),
                    relocations: OnceCell::new(),
                });
            }
        }
        if areas.is_empty() {
            return Err(ReadError::NoCode);
        }
        areas.sort_by_key(|area| area.range.start);
        Ok(Self { file, areas, ranges, absolute: Cell::new(None) })
    }

    pub(super) fn section(&self, area: &Area) -> &'f Section<'data> {
        &self.file.sections[area.section]
    }

    pub(super) fn place(&self, area: &Area, address: u64) -> Place {
        let offset = address.wrapping_sub(area.range.start);
        Place { section: self.section(area).text(), offset }
    }

    /// What lies at an address.
    pub(super) fn area(&self, address: u64) -> Option<&Area> {
        let behind = self.areas.partition_point(|area| area.range.start <= address);
        self.areas[..behind].last().filter(|area| area.range.contains(&address))
    }

    /// Where `symbol` is, if it is in code. The end of a section counts, for labels behind the last
    /// instruction.
    pub(super) fn address(&self, symbol: &Symbol<'_>) -> Option<u64> {
        let Of::Section(section) = symbol.of else { return None };
        self.address_in(section, symbol.value)
    }

    /// The address of an offset in a section, if that is code; in a linked file it is one already.
    pub(super) fn address_in(&self, section: usize, value: u64) -> Option<u64> {
        let range = self.ranges.get(&section)?;
        let start = if self.file.is_object() { range.start } else { 0 };
        let address = start.checked_add(value)?;
        (range.start..=range.end).contains(&address).then_some(address)
    }

    /// Where the relocations of a section lie: of an object's code, at an address.
    fn relocations<'a>(&self, area: &'a Area) -> Result<&'a [Relocation], ReadError> {
        if let Some(known) = area.relocations.get() {
            return Ok(known);
        }
        let mut all =
            if self.file.is_object() { self.file.relocations(area.section)? } else { Vec::new() };
        all.retain(|relocation| relocation.kind != R_X86_64_NONE);
        all.sort_by_key(|relocation| relocation.offset);
        let size = area.range.end - area.range.start;
        if let Some(outside) = all.last().filter(|last| last.offset >= size) {
            let at = Place { section: self.section(area).text(), offset: outside.offset };
            return Err(ReadError::OutsideSection { at });
        }
        Ok(area.relocations.get_or_init(|| all))
    }

    /// The relocations that change something in `range`, which lies in `area`.
    pub(super) fn touching<'a>(
        &self,
        area: &'a Area,
        range: &Range<u64>,
    ) -> Result<&'a [Relocation], ReadError> {
        let all = self.relocations(area)?;
        let start = range.start - area.range.start;
        let end = range.end - area.range.start;
        let first = all.partition_point(|relocation| relocation.offset.saturating_add(8) <= start);
        let mut touching = &all[first..all.partition_point(|relocation| relocation.offset < end)];
        while let Some((before, rest)) = touching.split_first()
            && before.end() <= start
        {
            touching = rest;
        }
        Ok(touching)
    }

    /// What the CPU finds from `address` on, which lies in `area`: as much as an instruction can be.
    pub(super) fn glance(&self, area: &Area, address: u64) -> Result<Glance, ReadError> {
        let len = (area.range.end - address).min(15) as usize;
        let mut glance = Glance { bytes: [0; 15], len, wrong: Vec::new() };
        self.copy(area, address, &mut glance.bytes[..len])?;
        let range = address..address + len as u64;
        for relocation in self.touching(area, &range)? {
            let at = area.range.start + relocation.offset;
            match self.resolve(area, relocation) {
                Ok((field, width)) => put(&mut glance.bytes[..len], address, at, &field[..width]),
                Err(error) => {
                    let end = area.range.start.saturating_add(relocation.end());
                    glance.wrong.push((at..end, error));
                }
            }
        }
        Ok(glance)
    }

    /// The bytes at `range`, which lies in `area`, with all that is relocated in them.
    pub(super) fn bytes(&self, area: &Area, range: &Range<u64>) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.copy(area, range.start, &mut bytes)?;
        let touching = self.touching(area, range)?;
        for (number, relocation) in touching.iter().enumerate() {
            let next = touching.get(number + 1);
            if let Some(next) = next.filter(|next| next.offset < relocation.end()) {
                let at = Place { section: self.section(area).text(), offset: next.offset };
                return Err(ReadError::RelocatedTwice { at });
            }
            let at = area.range.start + relocation.offset;
            let (field, width) = self.resolve(area, relocation)?;
            put(&mut bytes, range.start, at, &field[..width]);
            if self.is_absolute(relocation)? && self.absolute.get().is_none() {
                self.absolute.set(Some((area.section, relocation.offset)));
            }
        }
        Ok(bytes)
    }

    /// The bytes at `address` as they are in the file.
    pub(super) fn copy(&self, area: &Area, address: u64, to: &mut [u8]) -> Result<(), ReadError> {
        let damaged = || ReadError::NoContents { section: self.section(area).text() };
        if !self.section(area).has_bytes() {
            return Err(damaged());
        }
        let offset = area.offset.checked_add(address - area.range.start).ok_or_else(damaged)?;
        self.file
            .data
            .copy(offset, to)
            .map_err(|()| ReadError::Truncated { section: self.section(area).text() })
    }

    /// Whether what is stored depends on where the code lies: an address of its own, or the distance
    /// to one that is a number.
    fn is_absolute(&self, relocation: &Relocation) -> Result<bool, ReadError> {
        let is_relative = Form::of(relocation.kind).is_some_and(|form| form.relative);
        if relocation.symbol == 0 {
            return Ok(is_relative);
        }
        Ok(match self.file.symbol_by_index(relocation.symbol)?.of {
            Of::Absolute => is_relative,
            _ => !is_relative,
        })
    }

    /// What a relocation stores, and how many bytes of it.
    fn resolve(&self, area: &Area, relocation: &Relocation) -> Result<([u8; 8], usize), ReadError> {
        let at = || Place { section: self.section(area).text(), offset: relocation.offset };
        let kind = relocation.kind.0;
        let Some(form) = Form::of(relocation.kind) else {
            return Err(ReadError::Relocation { at: at(), kind });
        };
        let addend = relocation.addend.ok_or_else(|| ReadError::ImplicitAddend { at: at() })?;
        let target = self.target(relocation, &at)?;
        if relocation.end() > area.range.end - area.range.start {
            return Err(ReadError::OutsideSection { at: at() });
        }
        let address = area.range.start + relocation.offset;
        let value = target.wrapping_add_signed(addend);
        let value = if form.relative { value.wrapping_sub(address) } else { value };
        if !form.holds(value) {
            return Err(ReadError::Overflow { at: at(), kind, value, bits: form.bits() });
        }
        Ok((value.to_le_bytes(), form.width))
    }

    /// The address a relocation refers to, without its addend.
    fn target(&self, relocation: &Relocation, at: &dyn Fn() -> Place) -> Result<u64, ReadError> {
        // Symbol 0: the addend is all there is.
        if relocation.symbol == 0 {
            return Ok(0);
        }
        let symbol = self.file.symbol_by_index(relocation.symbol)?;
        if symbol.kind == STT_GNU_IFUNC {
            return Err(ReadError::Indirect { symbol: symbol.text() });
        }
        match symbol.of {
            Of::Undefined if symbol.is_weak() => {
                Err(ReadError::WeakUndefined { at: at(), symbol: symbol.text() })
            }
            Of::Undefined | Of::Other => {
                let symbol = symbol.text();
                Foreign::of_host(&symbol).ok_or_else(|| ReadError::Undefined { at: at(), symbol })
            }
            _ if symbol.is_weak() => Err(ReadError::Weak { symbol: symbol.text() }),
            Of::Absolute => Ok(symbol.value),
            Of::Section(index) => match self.ranges.get(&index) {
                Some(range) => Ok(range.start.wrapping_add(symbol.value)),
                None => {
                    let section =
                        self.file.sections.get(index).map_or_else(String::new, Section::text);
                    Err(ReadError::Data { at: at(), section })
                }
            },
            Of::Common => Err(ReadError::Data { at: at(), section: "COMMON".into() }),
        }
    }
}

/// Puts `field`, which lies at `at`, into `bytes`, which lie at `start`: what of it is among them.
fn put(bytes: &mut [u8], start: u64, at: u64, field: &[u8]) {
    for (address, byte) in (at..).zip(field) {
        let place = address.checked_sub(start).and_then(|place| bytes.get_mut(place as usize));
        if let Some(place) = place {
            *place = *byte;
        }
    }
}

/// What a relocation stores: the System V psABI's table, as far as it is about direct references.
struct Form {
    /// Bytes of the field.
    width: usize,
    /// Minus the address of the field.
    relative: bool,
    /// Whether the CPU extends the field by its sign.
    signed: bool,
}

impl Form {
    fn of(kind: RelocationType) -> Option<Self> {
        let (width, relative, signed) = match kind {
            R_X86_64_64 => (8, false, false),
            R_X86_64_32 => (4, false, false),
            R_X86_64_32S => (4, false, true),
            R_X86_64_PC64 => (8, true, true),
            // A call through the PLT of a function that is here goes to the function.
            R_X86_64_PC32 | R_X86_64_PLT32 => (4, true, true),
            R_X86_64_PC16 => (2, true, true),
            R_X86_64_PC8 => (1, true, true),
            _ => return None,
        };
        Some(Self { width, relative, signed })
    }

    const fn bits(&self) -> usize {
        self.width * 8
    }

    /// Whether the CPU gets `value` back from the field.
    const fn holds(&self, value: u64) -> bool {
        let unused = u64::BITS as usize - self.bits();
        let shifted = value << unused;
        let read =
            if self.signed { (shifted.cast_signed() >> unused) as u64 } else { shifted >> unused };
        read == value
    }
}

/// A segment that is loaded.
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) offset: u64,
    pub(super) in_file: u64,
    pub(super) in_memory: u64,
    pub(super) flags: u32,
}

impl Segment {
    pub(super) fn new(header: &ProgramHeader64<Endianness>) -> Self {
        Self {
            address: header.p_vaddr(E),
            offset: header.p_offset(E),
            in_file: header.p_filesz(E),
            in_memory: header.p_memsz(E),
            flags: header.p_flags(E).0,
        }
    }
}
