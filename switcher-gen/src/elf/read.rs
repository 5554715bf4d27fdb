//! The code of an ELF file: what a prover needs to look at assembly that others have written.
//!
//! Only code is taken. Where an object's code refers to anything else, that is an error and not a
//! guess: what is proved must be what will run.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;

use crate::asm::HostSymbol;
use object::elf::{
    ET_DYN, ET_EXEC, ET_REL, R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_NONE, R_X86_64_PC8,
    R_X86_64_PC16, R_X86_64_PC32, R_X86_64_PC64, R_X86_64_PLT32, RelocationType, SHF_ALLOC,
    SHF_EXECINSTR,
};
use object::read::elf::{ElfFile64, ElfSection64, FileHeader};
use object::read::{
    Object, ObjectSection, ObjectSymbol, Relocation, RelocationTarget, SectionIndex,
};
use object::{Endianness, RelocationFlags, SectionFlags, SymbolKind, SymbolSection, elf};

/// The code of an ELF file, as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where the first byte lies. For an object, which has no address yet, [`Foreign::BASE`].
    pub base: u64,
    /// All code, relocations applied. INT3 fills the gaps between sections.
    pub bytes: Vec<u8>,
    /// The addresses of the names in the code. A global symbol goes before local ones of the same
    /// name, and of those the first one counts.
    pub symbols: BTreeMap<String, u64>,
    /// What the bytes come from, by address.
    pub sections: Vec<CodeSection>,
}

/// A section of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSection {
    /// Its name.
    pub name: String,
    /// The addresses it covers; never empty.
    pub range: Range<u64>,
    /// What its address will be a multiple of: what an object's asks for. A linked file's is where it
    /// says that it is, or whole pages from there.
    pub alignment: u64,
}

/// A place in an object, in the way disassemblers show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The section's name.
    pub section: String,
    /// Bytes from its start.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.section, self.offset)
    }
}

/// Why a file's code cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The magic number is not there.
    #[error("not an ELF file: give an object (from `as` or `cc -c`) or a linked file")]
    NotElf,
    /// Code for another CPU, or for another mode of it.
    #[error("the file holds {found}; a switcher is 64-bit little-endian code for x86-64")]
    NotX86_64 {
        /// What it is for.
        found: String,
    },
    /// A core dump, for instance.
    #[error("an ELF file of type {0} is neither an object nor linked: give one of those")]
    FileType(u16),
    /// The file contradicts itself or ends early.
    #[error("the file is damaged or truncated: {0}; make it again")]
    Malformed(#[from] object::read::Error),
    /// There is nothing to look at.
    #[error("no section holds code: mark the code's section executable (`.section x, \"ax\"`)")]
    NoCode,
    /// Without names, nobody knows where the routines are.
    #[error(
        "the file has no symbol table: name its routines (`.globl`), or give it as it was before \
         it was stripped"
    )]
    Stripped,
    /// Code is spread over more memory than any switcher, or names are.
    #[error(
        "{what} take more than {} MiB, which is no switcher: give the file that holds it alone",
        LIMIT >> 20
    )]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
    /// Not a power of two, or more than a file could need.
    #[error(
        "section `{section}` wants to be aligned to {alignment:#x}: use a power of two, at most {LIMIT:#x}"
    )]
    Alignment {
        /// Its name.
        section: String,
        /// What it asks for.
        alignment: u64,
    },
    /// A variant's mitigations depend on where in its cache lines the code lies.
    #[error(
        "section `{section}` is aligned to {alignment}, and the variant's mitigations depend on where \
         code lies in its cache lines: align it to {line}", line = crate::asm::LINE
    )]
    Line {
        /// Its name.
        section: String,
        /// What it asks for.
        alignment: u64,
    },
    /// Two pieces of code claim an address.
    #[error("`{section}` at {address:#x} lies over other code: check the addresses given to `ld`")]
    Overlap {
        /// The second one.
        section: String,
        /// Where it starts.
        address: u64,
    },
    /// Memory without bytes in the file is executable.
    #[error("`{section}` is executable but the file does not hold its bytes: make it PROGBITS")]
    NoContents {
        /// Its name.
        section: String,
    },
    /// The address space ends before the code does.
    #[error("`{section}` reaches beyond the last address: check the addresses given to `ld`")]
    WrapsAround {
        /// Its name.
        section: String,
    },
    /// Code refers to what another file defines.
    #[error("{at} refers to `{symbol}`, which the file does not define: link it with what does")]
    Undefined {
        /// Where.
        at: Place,
        /// To what.
        symbol: String,
    },
    /// Code refers to memory that is not code.
    #[error(
        "{at} refers to section `{section}`: only code is modelled; reach data through GS, or \
         make it an immediate"
    )]
    Data {
        /// Where.
        at: Place,
        /// To what.
        section: String,
    },
    /// A reference that only a linker understands.
    #[error(
        "{at} has a relocation of kind {kind}, and only direct references are modelled (64, 32, \
         32S, PC64, PC32, PC16, PC8, PLT32): link the file first"
    )]
    Relocation {
        /// Where.
        at: Place,
        /// `ELF64_R_TYPE`.
        kind: u32,
    },
    /// A relocation reaches over the end of its section.
    #[error("the relocation at {at} is not inside its section: the file is damaged")]
    OutsideSection {
        /// Where.
        at: Place,
    },
    /// A relocation whose addend is in the code, which no x86-64 toolchain makes.
    #[error("the relocation at {at} has no addend: make the file with RELA relocations")]
    ImplicitAddend {
        /// Where.
        at: Place,
    },
    /// Too far away, or an absolute address that the field is too small for.
    #[error(
        "{at}: {value:#x} does not fit into {bits} bits (relocation of kind {kind}); objects are \
         read at {:#x}: link the file to where it will run",
        Foreign::BASE
    )]
    Overflow {
        /// Where.
        at: Place,
        /// `ELF64_R_TYPE`.
        kind: u32,
        /// What should be stored.
        value: u64,
        /// Size of the field.
        bits: usize,
    },
    /// The loader would change the code.
    #[error("the loader relocates the code at {at:#x}: link the file to a fixed address")]
    LoadTime {
        /// Where.
        at: u64,
    },
    /// Not among the names in the code.
    #[error("no code is called `{name}`; {}", list(.known))]
    NoSymbol {
        /// The name asked for.
        name: String,
        /// Names there are: all if they are few, else the most similar.
        known: Vec<String>,
    },
}

fn list(names: &[String]) -> String {
    match names {
        [] => "the file names no code at all".into(),
        names => format!("there is `{}`", names.join("`, `")),
    }
}

/// Code, and the names in it, may not take more memory than this, whatever a file says.
const LIMIT: u64 = 16 << 20;
/// INT3: what fills gaps, so that a jump into one stops at once.
const FILLER: u8 = 0xCC;

impl Foreign {
    /// Where the code of an object is put: an address such as kernels run at. Objects do not say
    /// where they will run; an address of theirs in 32 bits does not fit here, and is an error.
    pub const BASE: u64 = 0xFFFF_FE80_0000_0000;

    /// Where a symbol of the host's, by its name, is taken to lie if the file calls it and does not
    /// have it: out of the code's way and within its reach.
    #[must_use]
    pub fn of_host(name: &str) -> Option<u64> {
        let mut known = HostSymbol::HOOKS.iter().chain(&HostSymbol::RETURNS);
        let index = known.position(|symbol| symbol.0 == name)?;
        Some(Self::BASE + (1 << 24) + 0x100 * index as u64)
    }

    /// The address of `name`.
    ///
    /// # Errors
    /// If no code is called so; names what there is.
    pub fn symbol(&self, name: &str) -> Result<u64, ReadError> {
        /// How many names a message can hold.
        const FEW: usize = 12;
        self.symbols.get(name).copied().ok_or_else(|| {
            let mut known: Vec<_> = self.symbols.keys().collect();
            if known.len() > FEW {
                known.sort_by_key(|other| std::cmp::Reverse(likeness(name, other)));
                known.truncate(FEW);
            }
            let known = known.into_iter().cloned().collect();
            ReadError::NoSymbol { name: name.into(), known }
        })
    }
}

/// How many bytes two names have in common at both ends.
fn likeness(a: &str, b: &str) -> usize {
    let same = |(a, b): &(u8, u8)| a == b;
    a.bytes().zip(b.bytes()).take_while(same).count()
        + a.bytes().rev().zip(b.bytes().rev()).take_while(same).count()
}

type File<'data> = ElfFile64<'data, Endianness>;

/// The code of an x86-64 ELF file.
///
/// Of an **object**, all sections that are loaded and executable are laid out one behind the other
/// from [`Foreign::BASE`] on, in the file's order and aligned as they ask, and relocations among
/// them are applied as a linker would. Of a **linked** file, the same sections are taken where they
/// lie; what its code refers to elsewhere is not known any more.
///
/// A weak symbol is taken for what the file defines, although another file might override it.
///
/// # Errors
/// If the file is not such a file, or if its code is not complete without other code or data.
/// Never panics, and never needs much more memory than the file, whatever is in it.
pub fn read(data: &[u8]) -> Result<Foreign, ReadError> {
    check_header(data)?;
    let file = File::parse(data)?;
    let kind = file.elf_header().e_type(file.endian());
    let stripped = file.symbol_table().is_none() && file.dynamic_symbol_table().is_none();
    match kind {
        ET_REL | ET_EXEC | ET_DYN if stripped => Err(ReadError::Stripped),
        ET_REL => {
            let mut code = Code::new(relocatable_sections(&file)?)?;
            relocate(&file, &mut code)?;
            code.with_symbols(&file, true)
        }
        ET_EXEC | ET_DYN => {
            let code = Code::new(linked_sections(&file)?)?;
            code.refuse_load_time_relocations(&file)?;
            code.with_symbols(&file, false)
        }
        other => Err(ReadError::FileType(other.0)),
    }
}

/// Refuses other files with a name for what they are. What is too short for a header is left to
/// the parser.
fn check_header(data: &[u8]) -> Result<(), ReadError> {
    const BITS_32: u8 = 1;
    const BIG_ENDIAN: u8 = 2;
    const X86_64: u16 = elf::EM_X86_64.0;

    let Some(rest) = data.strip_prefix(b"\x7FELF") else { return Err(ReadError::NotElf) };
    let Some(&[class, encoding, .., a, b]) = rest.first_chunk::<16>() else { return Ok(()) };
    let (bits, order, machine) = (
        if class == BITS_32 { 32 } else { 64 },
        if encoding == BIG_ENDIAN { "big" } else { "little" },
        if encoding == BIG_ENDIAN {
            u16::from_be_bytes([a, b])
        } else {
            u16::from_le_bytes([a, b])
        },
    );
    if (bits, order, machine) == (64, "little", X86_64) {
        return Ok(());
    }
    let machine = match machine {
        2 | 18 | 43 => "SPARC",
        3 => "i386",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "s390",
        40 => "ARM",
        X86_64 => "x86-64",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => &format!("machine {other}"),
    };
    Err(ReadError::NotX86_64 { found: format!("{bits}-bit {order}-endian code for {machine}") })
}

/// A name, for people.
fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Linked files are moved by whole pages only.
const PAGE: u64 = 4096;

/// A section of code, still in the file.
struct Piece<'data> {
    index: SectionIndex,
    name: &'data [u8],
    address: u64,
    alignment: u64,
    bytes: &'data [u8],
}

impl<'data> Piece<'data> {
    fn of_section(section: &ElfSection64<'data, '_, Endianness>) -> Result<Self, ReadError> {
        let (name, bytes) = (section.name_bytes()?, section.data()?);
        if bytes.len() as u64 != section.size() {
            return Err(ReadError::NoContents { section: text(name) });
        }
        let (address, alignment) = (section.address(), PAGE);
        Ok(Self { index: section.index(), name, address, alignment, bytes })
    }
}

fn is_code(section: &ElfSection64<'_, '_, Endianness>) -> bool {
    let wanted = SHF_ALLOC.0 | SHF_EXECINSTR.0;
    matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags.0 & wanted == wanted)
}

/// An object's sections of code, at addresses of our choice.
fn relocatable_sections<'data>(file: &File<'data>) -> Result<Vec<Piece<'data>>, ReadError> {
    let mut next = Foreign::BASE;
    let mut pieces = Vec::new();
    for section in file.sections().filter(is_code) {
        let mut piece = Piece::of_section(&section)?;
        // 0 means the same as 1.
        let alignment = section.align().max(1);
        if !alignment.is_power_of_two() || alignment > LIMIT {
            return Err(ReadError::Alignment { section: text(piece.name), alignment });
        }
        (piece.address, piece.alignment) = (next.next_multiple_of(alignment), alignment);
        next = piece.address + piece.bytes.len() as u64;
        // Before the next one, so that the sum stays small.
        if next - Foreign::BASE > LIMIT {
            return Err(ReadError::TooLarge { what: "the sections of code" });
        }
        pieces.push(piece);
    }
    Ok(pieces)
}

/// A linked file's sections of code, by address. Its segments may hold headers and constants, too,
/// and without sections there would be no symbols.
fn linked_sections<'data>(file: &File<'data>) -> Result<Vec<Piece<'data>>, ReadError> {
    let mut pieces = Vec::new();
    for section in file.sections().filter(is_code) {
        pieces.push(Piece::of_section(&section)?);
    }
    pieces.retain(|piece| !piece.bytes.is_empty());
    pieces.sort_by_key(|piece| piece.address);
    Ok(pieces)
}

/// Code laid out in memory, its names still to be found.
struct Code {
    base: u64,
    bytes: Vec<u8>,
    sections: Vec<CodeSection>,
    /// Which addresses a section covers; empty sections too, for they can have symbols.
    ranges: HashMap<SectionIndex, Range<u64>>,
}

impl Code {
    /// From pieces in the order of their addresses.
    fn new(pieces: Vec<Piece<'_>>) -> Result<Self, ReadError> {
        let first = pieces.iter().find(|piece| !piece.bytes.is_empty());
        let base = first.ok_or(ReadError::NoCode)?.address;
        let mut code =
            Self { base, bytes: Vec::new(), sections: Vec::new(), ranges: HashMap::new() };
        // As with symbols, a file's size is no limit for the sum of its names' lengths.
        let mut names = 0;
        for Piece { index, name, address, alignment, bytes } in pieces {
            let Some(end) = address.checked_add(bytes.len() as u64) else {
                return Err(ReadError::WrapsAround { section: text(name) });
            };
            code.ranges.insert(index, address..end);
            if bytes.is_empty() {
                continue;
            }
            if end - base > LIMIT {
                return Err(ReadError::TooLarge { what: "the sections of code and their gaps" });
            }
            let offset = (address - base) as usize;
            if offset < code.bytes.len() {
                return Err(ReadError::Overlap { section: text(name), address });
            }
            code.bytes.resize(offset, FILLER);
            code.bytes.extend(bytes);
            names += name.len() as u64;
            if names > LIMIT {
                return Err(ReadError::TooLarge { what: "the names of sections" });
            }
            let (name, range) = (text(name), address..end);
            code.sections.push(CodeSection { name, range, alignment });
        }
        Ok(code)
    }

    /// The field of `width` bytes at `address`, which must be inside `section`.
    fn field(&mut self, section: &Range<u64>, address: u64, width: usize) -> Option<&mut [u8]> {
        let end = address.checked_add(width as u64)?;
        if address < section.start || section.end < end {
            return None;
        }
        let start = usize::try_from(address - self.base).ok()?;
        self.bytes.get_mut(start..start + width)
    }

    fn refuse_load_time_relocations(&self, file: &File<'_>) -> Result<(), ReadError> {
        let end = self.base + self.bytes.len() as u64;
        // A relocation starts at most 7 bytes before the last byte it changes.
        let touched = self.base.saturating_sub(7)..end;
        match file.dynamic_relocations().into_iter().flatten().find(|(at, _)| touched.contains(at))
        {
            Some((at, _)) => Err(ReadError::LoadTime { at }),
            None => Ok(()),
        }
    }

    /// Adds the names. In an object, symbols count from their section; in a linked file from 0.
    fn with_symbols(self, file: &File<'_>, relative: bool) -> Result<Foreign, ReadError> {
        let mut names = Names::default();
        // Of a stripped library, what it exports is left.
        let exported = file.dynamic_symbols().filter(|_| file.symbol_table().is_none());
        for symbol in file.symbols().chain(exported) {
            names.add(&self, symbol, relative)?;
        }
        let symbols = names.found.into_iter().map(|(name, (_, address))| (name, address)).collect();
        let Self { base, bytes, sections, .. } = self;
        Ok(Foreign { base, bytes, symbols, sections })
    }

    /// Where `symbol` is, if it is in code. The end of a section counts, for labels behind the
    /// last instruction.
    fn address<'data>(&self, symbol: &impl ObjectSymbol<'data>, relative: bool) -> Option<u64> {
        let range = match symbol.section() {
            SymbolSection::Section(index) => self.ranges.get(&index)?.clone(),
            _ => return None,
        };
        let start = if relative { range.start } else { 0 };
        let address = start.checked_add(symbol.address())?;
        (range.start..=range.end).contains(&address).then_some(address)
    }
}

/// The names in the code, each with whether it is global.
#[derive(Default)]
struct Names {
    found: BTreeMap<String, (bool, u64)>,
    /// Bytes of all names. Each may be a part of the longest: a file's size is no limit for the sum.
    length: u64,
}

impl Names {
    fn add<'data>(
        &mut self,
        code: &Code,
        symbol: impl ObjectSymbol<'data>,
        relative: bool,
    ) -> Result<(), ReadError> {
        if matches!(symbol.kind(), SymbolKind::Section | SymbolKind::File | SymbolKind::Tls) {
            return Ok(());
        }
        let Some(address) = code.address(&symbol, relative) else { return Ok(()) };
        let name = symbol.name()?;
        if name.is_empty() {
            return Ok(());
        }
        self.length += name.len() as u64;
        if self.length > LIMIT {
            return Err(ReadError::TooLarge { what: "the names of symbols" });
        }
        let global = symbol.is_global();
        match self.found.entry(name.into()) {
            Entry::Vacant(entry) => {
                entry.insert((global, address));
            }
            Entry::Occupied(mut entry) => {
                if global && !entry.get().0 {
                    entry.insert((global, address));
                }
            }
        }
        Ok(())
    }
}

/// Applies the relocations of an object's code.
fn relocate(file: &File<'_>, code: &mut Code) -> Result<(), ReadError> {
    for section in file.sections().filter(is_code) {
        let Some(range) = code.ranges.get(&section.index()).cloned() else { continue };
        let name = section.name_bytes()?;
        for (offset, relocation) in section.relocations() {
            let at = || Place { section: text(name), offset };
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            if r_type == R_X86_64_NONE {
                continue;
            }
            let kind = r_type.0;
            let Some(form) = Form::of(r_type) else {
                return Err(ReadError::Relocation { at: at(), kind });
            };
            if relocation.has_implicit_addend() {
                return Err(ReadError::ImplicitAddend { at: at() });
            }
            let target = target(file, code, &relocation, &at)?;
            let outside = || ReadError::OutsideSection { at: at() };
            let address = range.start.checked_add(offset).ok_or_else(outside)?;
            let field = code.field(&range, address, form.width).ok_or_else(outside)?;
            let value = target.wrapping_add_signed(relocation.addend());
            let value = if form.relative { value.wrapping_sub(address) } else { value };
            if !form.holds(value) {
                return Err(ReadError::Overflow { at: at(), kind, value, bits: form.bits() });
            }
            field.copy_from_slice(&value.to_le_bytes()[..form.width]);
        }
    }
    Ok(())
}

/// The address a relocation refers to, without its addend.
fn target(
    file: &File<'_>,
    code: &Code,
    relocation: &Relocation,
    at: &dyn Fn() -> Place,
) -> Result<u64, ReadError> {
    let symbol = match relocation.target() {
        RelocationTarget::Symbol(index) => file.symbol_by_index(index)?,
        // Symbol 0: the addend is all there is.
        _ => return Ok(0),
    };
    match symbol.section() {
        SymbolSection::Absolute => Ok(symbol.address()),
        SymbolSection::Section(index) => match code.ranges.get(&index) {
            Some(range) => Ok(range.start.wrapping_add(symbol.address())),
            None => {
                let section = text(file.section_by_index(index)?.name_bytes()?);
                Err(ReadError::Data { at: at(), section })
            }
        },
        SymbolSection::Common => Err(ReadError::Data { at: at(), section: "COMMON".into() }),
        _ => {
            let symbol = text(symbol.name_bytes()?);
            Foreign::of_host(&symbol).ok_or_else(|| ReadError::Undefined { at: at(), symbol })
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
