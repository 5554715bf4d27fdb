//! The code of an ELF file: what a prover needs to look at assembly that others have written.
//!
//! Only code is taken, and of that what the routines of a switcher reach. Where it refers to anything
//! else, or where something says that other bytes will run, or elsewhere, that is an error and not a
//! guess: what is proved must be what will run.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use object::elf::{
    self, ET_DYN, ET_EXEC, SHF_COMPRESSED, SHF_EXCLUDE, SHF_GROUP, SHF_MERGE, SHF_TLS, SHF_WRITE,
    SHT_PROGBITS, STT_FILE, STT_FUNC, STT_GNU_IFUNC, STT_SECTION, STT_TLS,
};
use object::read::ReadCache;
use object::read::elf::SectionHeader;

use super::file::{Area, Code, Contents, E, File, Of, OnDisk, Symbol};
use super::patched::Kept;
use super::{loaded, patched, reach};
use crate::asm::{HostSymbol, Label};

/// The code of an ELF file, as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where the section begins that holds the code. An object has no address yet: its first section
    /// of code is taken to lie at [`Foreign::BASE`].
    pub base: u64,
    /// What the routines of a switcher reach, by address, relocations applied. Of a file that has
    /// none of them by name, all code.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// The addresses of the names in the code. A global symbol goes before local ones of the same
    /// name, and of those the first one counts; of a routine's name, none is a guess.
    pub symbols: BTreeMap<String, u64>,
    /// What the bytes come from, by address.
    pub sections: Vec<CodeSection>,
    /// What decides about the code's address.
    pub linkage: Linkage,
    /// The first place in an object where the code stores an address of its own as a number.
    pub absolute: Option<Place>,
    /// Tables that name the code and do not change it, and why.
    pub harmless: Vec<String>,
    /// Sections that name the code, of which it is not known what for: whoever knows that they do not
    /// change it says so with [`Foreign::assume_unpatched`].
    pub unknown: Vec<(String, Place)>,
    /// Those of which somebody has said it.
    pub unpatched: Vec<(String, Place)>,
    /// What else of the file cannot be told from it, and is taken for granted: whole sentences.
    pub taken: Vec<String>,
}

/// What decides about the address of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Whoever links it.
    Object,
    /// Nobody any more.
    Fixed,
    /// The loader.
    Movable,
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
    /// Two sections claim an address.
    #[error("`{section}` at {address:#x} lies over the code: check the addresses given to `ld`")]
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
    /// Two relocations change the same bytes.
    #[error("the relocation at {at} lies over the one before it: make the file again")]
    RelocatedTwice {
        /// The second one.
        at: Place,
    },
    /// Relocations in a form that is not read.
    #[error(
        "the relocations of `{section}` cannot be read: make the file with RELA relocations of its \
         symbol table"
    )]
    RelocationTable {
        /// The section that holds them.
        section: String,
    },
    /// The file ends before its code does.
    #[error("the file ends before `{section}` does: it is truncated, make it again")]
    Truncated {
        /// Its name.
        section: String,
    },
    /// Another file may define it, too, and then that is what runs.
    #[error(
        "`{symbol}` is weak, so that another file may take its place: make it global (`.globl`), or \
         link the file first"
    )]
    Weak {
        /// Its name.
        symbol: String,
    },
    /// Nobody need define it, and then its address is 0.
    #[error(
        "{at} refers to `{symbol}`, which is weak and not defined, so that it may be address 0: \
         drop `.weak`"
    )]
    WeakUndefined {
        /// Where.
        at: Place,
        /// To what.
        symbol: String,
    },
    /// Which function it is, code decides at run time.
    #[error(
        "`{symbol}` is an indirect function (STT_GNU_IFUNC), so that another one is called: make it \
         a function (`.type {symbol}, @function`)"
    )]
    Indirect {
        /// Its name.
        symbol: String,
    },
    /// Nobody knows which of them is meant.
    #[error("`{symbol}` is defined more than once, at {}: leave one", addresses(.at))]
    Ambiguous {
        /// Its name.
        symbol: String,
        /// Where.
        at: Vec<u64>,
    },
    /// A routine's name is that of something else.
    #[error("`{symbol}` is not in a section of code: define it where its routine begins")]
    NotCode {
        /// Its name.
        symbol: String,
    },
    /// The bytes of a section are not what will be in memory.
    #[error("the code's section `{section}` {why}")]
    Section {
        /// Its name.
        section: String,
        /// Why, and what to do.
        why: String,
    },
    /// Code may be written to while it runs.
    #[error(
        "the code's section `{section}` is writable, so that other bytes may run: mark it \
         executable alone (`.section {section}, \"ax\"`; `ld` without `-N`)"
    )]
    Writable {
        /// Its name.
        section: String,
    },
    /// Code is not all in one place.
    #[error(
        "{}`{section}` is reached, and `{first}` holds the code: a guest's root need not map both, so \
         put all code of the switcher into one section",
        from.as_ref().map(|at| format!("from {at}, ")).unwrap_or_default()
    )]
    SecondSection {
        /// The one that need not be mapped.
        section: String,
        /// The one that holds the first routine.
        first: String,
        /// The jump.
        from: Option<Place>,
    },
    /// A table says that other bytes will run.
    #[error(
        "`{section}` names {at}, which is reached: {how}, so that other bytes run than are in the \
         file; give the code without it, assembled once for each CPU that it is for"
    )]
    Patched {
        /// The table.
        section: String,
        /// What it names.
        at: Place,
        /// What happens there.
        how: &'static str,
    },
    /// Something names the code that may be such a table.
    #[error(
        "`{section}` names {at}, which is reached, and it is not known what for: if it changes the \
         code, other bytes run; if it does not, say so (`--assume-unpatched`)"
    )]
    MaybePatched {
        /// The section.
        section: String,
        /// What it names.
        at: Place,
    },
    /// No segment has the code.
    #[error(
        "`{section}` has code at {at:#x} that no segment loads: sections and program headers \
         contradict each other, link the file again"
    )]
    NotMapped {
        /// Its name.
        section: String,
        /// Where.
        at: u64,
    },
    /// A segment has other bytes than the section.
    #[error(
        "`{section}` has other bytes at {at:#x} than the segment that is loaded there: sections and \
         program headers contradict each other, link the file again"
    )]
    OtherBytes {
        /// Its name.
        section: String,
        /// From where on they were compared.
        at: u64,
    },
    /// Two segments have the code, or one page of it.
    #[error(
        "the code at {at:#x} in `{section}` is in a page of two segments: link the file with \
         segments apart (`-z separate-code`)"
    )]
    Segments {
        /// Its name.
        section: String,
        /// Where.
        at: u64,
    },
    /// The segment cannot be executed.
    #[error("the segment of `{section}` is not executable: link the file again")]
    NotExecutable {
        /// Its name.
        section: String,
    },
    /// The dynamic section says so.
    #[error(
        "the file asks for relocations in what is not writable (DT_TEXTREL), so that the loader may \
         change code: link it without `-z notext`"
    )]
    TextRelocations,
    /// The loader would find other symbols than were looked at.
    #[error(
        "the dynamic section leads to other symbols than the section of dynamic symbols holds: link \
         the file again"
    )]
    DynamicSymbols,
    /// The loader makes it read-only, and no longer executable.
    #[error(
        "the code at {at:#x} in `{section}` is in what the loader makes read-only alone \
         (PT_GNU_RELRO), so that it cannot be executed: link the file without that"
    )]
    Relro {
        /// Its name.
        section: String,
        /// Where.
        at: u64,
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

fn addresses(all: &[u64]) -> String {
    let all: Vec<_> = all.iter().map(|address| format!("{address:#x}")).collect();
    all.join(" and ")
}

fn list(names: &[String]) -> String {
    match names {
        [] => "the file names no code at all".into(),
        names => format!("there is `{}`", names.join("`, `")),
    }
}

/// Code, and the names in it, may not take more memory than this, whatever a file says.
pub(super) const LIMIT: u64 = 16 << 20;
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
        Some(Self::BASE - (1 << 24) + 0x100 * index as u64)
    }

    /// Takes it for granted that what names the code for an unknown purpose does not change it. That
    /// is [assumed](Self::assumed), then.
    pub fn assume_unpatched(&mut self) {
        self.unpatched.append(&mut self.unknown);
    }

    /// What a proof of this code assumes, beside what every proof does, in whole sentences.
    #[must_use]
    pub fn assumed(&self) -> Vec<String> {
        let base = self.pieces.first().map_or(self.base, |(start, _)| *start);
        let mut assumed = Vec::new();
        assumed.extend(match self.linkage {
            Linkage::Fixed => Some(format!(
                "the code runs where it is linked to, its first instruction at {base:#x}: of other \
                 addresses nothing is said"
            )),
            Linkage::Movable => Some(format!(
                "the code is loaded where the file has it, its first instruction at {base:#x}: of \
                 other addresses nothing is said"
            )),
            Linkage::Object => self.absolute.as_ref().map(|at| {
                format!(
                    "the code is linked so that its first instruction lies at {base:#x}: {at} holds \
                     an address as a number, and of other addresses nothing is said"
                )
            }),
        });
        assumed.extend(self.unpatched.iter().map(|(section, at)| {
            format!("what `{section}` is for, which names {at}, does not change the code")
        }));
        assumed.extend(self.taken.iter().cloned());
        assumed
    }

    /// All bytes from the first one known to the last. INT3 fills the gaps.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (start, piece) in &self.pieces {
            bytes.resize((start - self.base) as usize, FILLER);
            bytes.extend(piece);
        }
        bytes
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

/// The code of an x86-64 ELF file.
///
/// Of an **object**, all sections that are loaded and executable are laid out one behind the other
/// from [`Foreign::BASE`] on, in the file's order and aligned as they ask, and relocations among
/// them are applied as a linker would. Of a **linked** file, the same sections are taken where they
/// lie; what its code refers to elsewhere is not known any more.
///
/// Of the code, what counts is what can be executed from the symbols of a switcher on: how large the
/// rest is, and what is wrong with it, does not matter. Of a file that has none of them, all code is
/// taken.
///
/// # Errors
/// If the file is not such a file, if its code is not complete without other code or data, or if
/// what is in the file may not be what runs: patch tables that name the code, symbols that others
/// may override, sections that contradict segments. Never panics, and never needs much more memory
/// than the file, whatever is in it.
pub fn read(data: &[u8]) -> Result<Foreign, ReadError> {
    read_from(data)
}

/// The same of an open file, of which only those parts come into memory that are needed.
///
/// # Errors
/// As [`read()`]; a file that cannot be read is a damaged one.
pub fn read_file(file: &std::fs::File) -> Result<Foreign, ReadError> {
    let cache = ReadCache::new(file);
    read_from(OnDisk { cache: &cache, file })
}

fn read_from<'data, R: Contents<'data>>(data: R) -> Result<Foreign, ReadError> {
    let length = data.len().unwrap_or_default().min(64);
    check_header(data.read_bytes_at(0, length).unwrap_or_default())?;
    let file = File::parse(data)?;
    let code = Code::new(&file)?;
    let names = Names::new(&code)?;
    let entries = names.entries()?;
    let (home, reached, instructions) = if entries.is_empty() {
        for area in &code.areas {
            usable(&code, area)?;
        }
        (None, whole(&code)?, Vec::new())
    } else {
        let (whole, ends) = (names.stubs()?, names.hooks()?);
        let reach::Reached { home, ranges, instructions } =
            reach::reached(&code, &entries, whole.as_slice(), &ends)?;
        (Some(home), ranges.into_iter().map(|range| (home, range)).collect(), instructions)
    };
    let parts: Vec<&Area> = match home {
        Some(home) => vec![home],
        None => code.areas.iter().collect(),
    };
    for area in &parts {
        usable(&code, area)?;
    }
    let ranges: Vec<_> = reached.iter().map(|(_, range)| range.clone()).collect();
    if !file.is_object() {
        for area in &parts {
            let own = reached.iter().filter(|(of, _)| std::ptr::eq(*of, *area));
            let own: Vec<_> = own.map(|(_, range)| range.clone()).collect();
            loaded::check(&code, area, &own)?;
        }
    }
    let mut pieces = Vec::new();
    for (area, range) in &reached {
        pieces.push((range.start, code.bytes(area, range)?));
    }
    let found = names.within(&code, &ranges)?;
    let reached = patched::Reached {
        ranges: &ranges,
        named: &found.pointers,
        entries: &entries,
        instructions: &instructions,
    };
    let tables = patched::check(&code, &reached, &names.bounds)?;
    let base = home.map_or(ranges[0].start, |home| home.range.start);
    // As with symbols, a file's size is no limit for the sum of its names' lengths.
    let sections: Vec<_> = parts
        .iter()
        .map(|area| {
            let section = code.section(area);
            let alignment = match code.file.is_object() {
                true => section.header.sh_addralign(E).max(1),
                false => PAGE,
            };
            CodeSection { name: section.text(), range: area.range.clone(), alignment }
        })
        .collect();
    if sections.iter().map(|section| section.name.len() as u64).sum::<u64>() > LIMIT {
        return Err(ReadError::TooLarge { what: "the names of sections" });
    }
    let absolute = code
        .absolute
        .get()
        .map(|(section, offset)| Place { section: file.sections[section].text(), offset });
    let taken = taken(&file, &sections, &tables);
    Ok(Foreign {
        base,
        pieces,
        symbols: found.symbols,
        sections,
        linkage: match file.kind {
            ET_EXEC => Linkage::Fixed,
            ET_DYN => Linkage::Movable,
            _ => Linkage::Object,
        },
        absolute,
        harmless: tables.harmless,
        unknown: tables.unknown,
        unpatched: Vec::new(),
        taken,
    })
}

/// What the file does not tell, and is taken for granted.
fn taken<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    sections: &[CodeSection],
    tables: &patched::Tables,
) -> Vec<String> {
    /// So many sections are told of by name.
    const FEW: usize = 4;
    let all = |names: &[String]| {
        let more = names.len().saturating_sub(FEW);
        let few: Vec<_> = names.iter().take(FEW).map(|name| format!("`{name}`")).collect();
        let few = few.join(", ");
        if more == 0 { few } else { format!("{few} and {more} more") }
    };
    let is_unknown = |section: &&CodeSection| patched::code(&section.name) == Kept::Unknown;
    let of_objects: &[CodeSection] = if file.is_object() { sections } else { &[] };
    let unknown = of_objects.iter().filter(is_unknown).map(|section| section.name.clone());
    let unknown: Vec<_> = unknown.collect();
    let mut taken = Vec::new();
    if !unknown.is_empty() {
        taken.push(format!(
            "what links the object keeps the code in {}, and leaves its bytes as they are: a name \
             that says nothing of that",
            all(&unknown)
        ));
    }
    if !tables.unsearched.is_empty() {
        taken.push(format!(
            "no table among the code in {} says that the switcher's is changed: it is too much to \
             be looked through",
            all(&tables.unsearched)
        ));
    }
    if !tables.numbers.is_empty() {
        taken.push(format!(
            "the numbers in {} are not places in the code, counted from its start, that are changed",
            all(&tables.numbers)
        ));
    }
    taken
}

/// Linked files are moved by whole pages only.
const PAGE: u64 = 4096;

/// All code of a file that does not say what of it is a switcher.
fn whole<'a, 'data, R: Contents<'data>>(
    code: &'a Code<'_, 'data, R>,
) -> Result<Vec<(&'a Area, Range<u64>)>, ReadError> {
    let base = code.areas[0].range.start;
    let mut end = base;
    for area in &code.areas {
        let Range { start: address, end: next } = area.range;
        if next - base > LIMIT {
            let what =
                "the sections of code and their gaps, of which no routine of a switcher is named,";
            return Err(ReadError::TooLarge { what });
        }
        if address < end {
            return Err(ReadError::Overlap { section: code.section(area).text(), address });
        }
        end = next;
    }
    Ok(code.areas.iter().map(|area| (area, area.range.clone())).collect())
}

/// Refuses a section whose bytes are not, or need not be, those that will be in memory.
fn usable<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    area: &Area,
) -> Result<(), ReadError> {
    let section = code.section(area);
    let name = section.text();
    if let Kept::No { is_later, why } = patched::code(&name)
        && (is_later || code.file.is_object())
    {
        let why = format!("is one that Linux does not keep as it is: {why}; use another name");
        return Err(ReadError::Section { section: name, why });
    }
    let alignment = section.header.sh_addralign(E).max(1);
    if code.file.is_object() && !(alignment.is_power_of_two() && alignment <= LIMIT) {
        return Err(ReadError::Alignment { section: name, alignment });
    }
    if !section.has_bytes() {
        return Err(ReadError::NoContents { section: name });
    }
    if section.has(SHF_WRITE) {
        return Err(ReadError::Writable { section: name });
    }
    let why = if section.has(SHF_COMPRESSED) {
        "is compressed, so that other bytes are in memory: give the file as it was before that"
    } else if section.has(SHF_TLS) {
        "is thread-local, so that each thread has a copy elsewhere: drop that flag"
    } else if section.header.sh_type(E) != SHT_PROGBITS {
        "does not have the type of code: make it `@progbits`"
    } else if !code.file.is_object() {
        return Ok(());
    } else if section.has(SHF_EXCLUDE) {
        "is left out by linkers (SHF_EXCLUDE): drop that flag"
    } else if section.has(SHF_MERGE) {
        "is rearranged by linkers (SHF_MERGE): drop that flag"
    } else if section.has(SHF_GROUP) || name.starts_with(".gnu.linkonce") {
        "is in a group, of which linkers keep that of any file: take it out, or link the file first"
    } else {
        return Ok(());
    };
    Err(ReadError::Section { section: name, why: why.into() })
}

/// What a symbol says of a name.
struct Definition {
    /// In code, or anywhere if it is the host's.
    address: Option<u64>,
    is_weak: bool,
    is_local: bool,
    is_indirect: bool,
}

/// What the symbols say that have a meaning here.
struct Names {
    is_object: bool,
    /// Of what code must or may have, and of the host's symbols.
    known: BTreeMap<&'static str, Vec<Definition>>,
    /// Names most like those of routines that are not there.
    similar: BTreeSet<(usize, String, u64)>,
    /// Functions that are rewritten.
    rewritten: Vec<(String, u64)>,
    /// What lies between `__start_` and `__stop_`.
    bounds: Vec<(String, Range<u64>)>,
}

/// Names in what is reached.
struct Found {
    symbols: BTreeMap<String, u64>,
    /// What others may have pointers to.
    pointers: Vec<u64>,
}

const ENTRIES: [Label; 4] =
    [Label::EnterGuest, Label::ReturnFromGuest, Label::Syscall64, Label::SyscallCompat];
const OTHERS: [Label; 3] = [Label::Iretq, Label::EventStubs, Label::EventStubsEnd];

impl Names {
    fn new<'data, R: Contents<'data>>(code: &Code<'_, 'data, R>) -> Result<Self, ReadError> {
        let labels = ENTRIES.iter().chain(&OTHERS).map(|label| label.name());
        let hosts = HostSymbol::HOOKS.iter().chain(&HostSymbol::RETURNS).map(|symbol| symbol.0);
        let known = labels.chain(hosts).map(|name| (name, Vec::new())).collect();
        let mut names = Self {
            is_object: code.file.is_object(),
            known,
            similar: BTreeSet::new(),
            rewritten: Vec::new(),
            bounds: Vec::new(),
        };
        let (mut starts, mut stops) = (BTreeMap::new(), BTreeMap::new());
        for symbol in code.file.symbols() {
            let symbol = symbol?;
            if symbol.of == Of::Undefined || is_no_name(&symbol) {
                continue;
            }
            names.add(code, &symbol);
            if !code.file.is_object() {
                if let Some(name) = symbol.name.strip_prefix(b"__start_") {
                    starts.insert(name, symbol.value);
                } else if let Some(name) = symbol.name.strip_prefix(b"__stop_") {
                    stops.insert(name, symbol.value);
                }
            }
        }
        // The loader, and who asks it for a symbol, looks at another table than linkers do.
        for symbol in code.file.other_symbols() {
            let symbol = symbol?;
            let name = std::str::from_utf8(symbol.name).unwrap_or_default();
            let is_known = names.known.contains_key(name);
            if is_known && symbol.of != Of::Undefined && !is_no_name(&symbol) {
                names.add(code, &symbol);
            }
        }
        for (name, start) in starts {
            if let Some(stop) = stops.get(name).filter(|stop| **stop > start) {
                names.bounds.push((super::file::text(name), start..*stop));
            }
        }
        Ok(names)
    }

    fn add<'data, R: Contents<'data>>(&mut self, code: &Code<'_, 'data, R>, symbol: &Symbol<'_>) {
        /// So many names are like one that is not there.
        const FEW: usize = 16;
        let address = code.address(symbol);
        if patched::is_rewritten(symbol.name)
            && let Some(address) = address
        {
            self.rewritten.push((symbol.text(), address));
        }
        let Ok(name) = std::str::from_utf8(symbol.name) else { return };
        if let Some(definitions) = self.known.get_mut(name) {
            let is_hosts = name.starts_with("switcher_host_");
            let linked = !code.file.is_object() && symbol.of == Of::Absolute;
            let anywhere = (is_hosts || linked && code.area(symbol.value).is_some())
                .then_some(symbol.value)
                .filter(|_| !code.file.is_object() || symbol.of == Of::Absolute);
            definitions.push(Definition {
                address: address.or(anywhere),
                is_weak: symbol.is_weak(),
                is_local: symbol.is_local(),
                is_indirect: symbol.kind == STT_GNU_IFUNC,
            });
        } else if let Some(address) = address {
            let required = ENTRIES[..3].iter().map(|label| likeness(label.name(), name));
            let most = required.max().unwrap_or_default();
            let least = self.similar.first().map_or(0, |(likeness, ..)| *likeness);
            if self.similar.len() < FEW || most > least {
                self.similar.insert((most, name.into(), address));
                if self.similar.len() > FEW {
                    self.similar.pop_first();
                }
            }
        }
    }

    /// Where `name` is, if it is anywhere.
    fn place(&self, name: &'static str) -> Result<Option<u64>, ReadError> {
        let symbol = || name.to_owned();
        let all = self.known.get(name).map_or(&[][..], Vec::as_slice);
        // What others see of the name is the global one.
        let is_global = all.iter().any(|definition| !definition.is_local);
        let chosen: Vec<_> = all.iter().filter(|one| one.is_local != is_global).collect();
        if chosen.iter().any(|definition| definition.is_indirect) {
            return Err(ReadError::Indirect { symbol: symbol() });
        }
        // Of what is linked, nobody takes the place any more.
        if self.is_object && chosen.iter().any(|definition| definition.is_weak) {
            return Err(ReadError::Weak { symbol: symbol() });
        }
        let places: BTreeSet<_> = chosen.iter().map(|definition| definition.address).collect();
        let places: Vec<_> = places.into_iter().collect();
        match places.as_slice() {
            [] => Ok(None),
            [Some(address)] => Ok(Some(*address)),
            [None] => Err(ReadError::NotCode { symbol: symbol() }),
            several => {
                let at = several.iter().map(|address| address.unwrap_or_default()).collect();
                Err(ReadError::Ambiguous { symbol: symbol(), at })
            }
        }
    }

    fn places(&self, names: impl IntoIterator<Item = &'static str>) -> Result<Vec<u64>, ReadError> {
        let found = names.into_iter().filter_map(|name| self.place(name).transpose());
        found.collect()
    }

    /// All that is entered from outside.
    fn entries(&self) -> Result<Vec<u64>, ReadError> {
        let mut entries = self.places(ENTRIES.iter().map(|label| label.name()))?;
        if entries.is_empty() {
            return Ok(entries);
        }
        if let Some(stubs) = self.stubs()? {
            let stride = (stubs.end - stubs.start) / 256;
            entries.extend((0..256).map(|vector| stubs.start + stride * vector));
        }
        Ok(entries)
    }

    /// The event stubs, which are also looked at as they are.
    fn stubs(&self) -> Result<Option<Range<u64>>, ReadError> {
        /// 256 stubs of a page each.
        const MOST: u64 = 1 << 20;
        let [start, end] = [Label::EventStubs, Label::EventStubsEnd].map(Label::name);
        let (start, end) = (self.place(start)?, self.place(end)?);
        let stubs = start.zip(end).filter(|(start, end)| start < end);
        match stubs {
            Some((start, end)) if end - start > MOST => {
                Err(ReadError::TooLarge { what: "the event stubs" })
            }
            stubs => Ok(stubs.map(|(start, end)| start..end)),
        }
    }

    /// The host's own routines, as far as they are in the file.
    fn hooks(&self) -> Result<Vec<u64>, ReadError> {
        let hosts = HostSymbol::HOOKS.iter().chain(&HostSymbol::RETURNS);
        self.places(hosts.map(|symbol| symbol.0))
    }

    /// The names in `ranges`, which are in order, and those that have a meaning.
    fn within<'data, R: Contents<'data>>(
        &self,
        code: &Code<'_, 'data, R>,
        ranges: &[Range<u64>],
    ) -> Result<Found, ReadError> {
        // Each name may be a part of the longest: a file's size is no limit for the sum.
        let mut length = 0;
        let mut found = BTreeMap::<String, (bool, u64)>::new();
        let mut pointers = Vec::new();
        let is_in = |address: u64| {
            let behind = ranges.partition_point(|range| range.end < address);
            ranges.get(behind).is_some_and(|range| range.start <= address)
        };
        for symbol in code.file.symbols() {
            let symbol = symbol?;
            if is_no_name(&symbol) {
                continue;
            }
            let Some(address) = code.address(&symbol).filter(|address| is_in(*address)) else {
                continue;
            };
            // A label inside of a routine is no function, and what points there may change it.
            let name = std::str::from_utf8(symbol.name);
            if symbol.kind == STT_FUNC || name.is_ok_and(|name| self.known.contains_key(name)) {
                pointers.push(address);
            }
            let Ok(name) = name else { continue };
            length += name.len() as u64;
            if length > LIMIT {
                return Err(ReadError::TooLarge { what: "the names of symbols" });
            }
            let is_global = !symbol.is_local();
            match found.entry(name.into()) {
                Entry::Vacant(entry) => {
                    entry.insert((is_global, address));
                }
                Entry::Occupied(mut entry) => {
                    if is_global && !entry.get().0 {
                        entry.insert((is_global, address));
                    }
                }
            }
        }
        for (symbol, address) in &self.rewritten {
            if is_in(*address) {
                let why = format!(
                    "holds `{symbol}`, which Linux rewrites to redirect static calls: call the \
                     function itself"
                );
                let section = code.area(*address).map(|area| code.section(area).text());
                return Err(ReadError::Section { section: section.unwrap_or_default(), why });
            }
        }
        pointers.sort_unstable();
        let mut symbols: BTreeMap<_, _> =
            found.into_iter().map(|(name, (_, address))| (name, address)).collect();
        let is_missing = |label: &Label| !symbols.contains_key(label.name());
        if ENTRIES[..3].iter().any(is_missing) {
            // To be shown to whoever looks for it.
            for (_, name, address) in &self.similar {
                symbols.entry(name.clone()).or_insert(*address);
            }
        }
        for name in self.known.keys() {
            if let Some(address) = self.place(name)? {
                symbols.insert((*name).into(), address);
            }
        }
        Ok(Found { symbols, pointers })
    }
}

fn is_no_name(symbol: &Symbol<'_>) -> bool {
    matches!(symbol.kind, STT_SECTION | STT_FILE | STT_TLS) || symbol.name.is_empty()
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
