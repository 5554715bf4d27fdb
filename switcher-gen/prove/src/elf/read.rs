//! The code of an ELF file: what a prover needs to look at assembly that others have written.
//!
//! Only code is read, and only the code that the routines of a switcher reach. If it refers to
//! anything else, or if something says that other bytes will run, or that they will run at another
//! address, the file is refused. The bytes that are proved must be the bytes that will run.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use object::elf::{
    self, ET_DYN, ET_EXEC, SHF_COMPRESSED, SHF_EXCLUDE, SHF_GROUP, SHF_MERGE, SHF_TLS, SHF_WRITE,
    SHT_PROGBITS,
};
use object::read::ReadCache;
use object::read::elf::SectionHeader;

use super::code::{Area, FileCode};
use super::dynamic::Loaded;
use super::error::ReadError;
use super::file::{Contents, E, File, OnDisk, Section};
use super::names::Names;
use super::purpose::{self, Kept};
use super::{loaded, patched, reach};
use switcher_gen::asm::HostSymbol;

/// The code of an ELF file, as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where the section begins that holds the code. An object has no address yet: its first
    /// section of code is taken to lie at [`Foreign::BASE`].
    pub base: u64,
    /// The code that the routines of a switcher reach, by address, with relocations applied. If the
    /// file names none of the routines, this is all of its code.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// The addresses of the names in the code. A global symbol takes precedence over local ones of
    /// the same name, and the first of several local ones counts. The name of a routine is never
    /// ambiguous.
    pub symbols: BTreeMap<String, u64>,
    /// The sections that the bytes come from, by address.
    pub sections: Vec<CodeSection>,
    /// What decides about the code's address.
    pub linkage: Linkage,
    /// The first place in an object where the code stores an address of its own as a number.
    pub absolute: Option<PlaceInFile>,
    /// Tables that name the code and do not change it, and why.
    pub harmless: Vec<String>,
    /// Sections that name the code, of which it is not known what for: whoever knows that they do
    /// not change it says so with [`Foreign::assume_unpatched`].
    pub unknown: Vec<(String, PlaceInFile)>,
    /// Sections of unknown purpose that the user has declared not to change the code.
    pub unpatched: Vec<(String, PlaceInFile)>,
    /// What else the file does not show and a proof assumes, in whole sentences.
    pub taken: Vec<String>,
}

/// What decides about the address of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// The linker decides: the file is an object.
    Object,
    /// The address is fixed: the file is linked.
    Fixed,
    /// The loader decides: the file is linked and can be loaded anywhere.
    Movable,
}

/// A section of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSection {
    /// Its name.
    pub name: String,
    /// The addresses it covers; never empty.
    pub range: Range<u64>,
    /// The alignment of its final address. An object asks for it. The code of a linked file lies at
    /// its address, or whole pages away from it.
    pub alignment: u64,
}

/// A place in an object, in the way disassemblers show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceInFile {
    /// The section's name.
    pub section: String,
    /// Bytes from its start.
    pub offset: u64,
}

impl fmt::Display for PlaceInFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.section, self.offset)
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

    /// The address that is assumed for a symbol of the host's which the file calls and does not
    /// have. It is within reach of the code and overlaps nothing.
    #[must_use]
    pub fn of_host(name: &str) -> Option<u64> {
        let mut known = HostSymbol::HOOKS.iter().chain(&HostSymbol::RETURNS);
        let index = known.position(|symbol| symbol.0 == name)?;
        Some(Self::BASE - (1 << 24) + 0x100 * index as u64)
    }

    /// Declares that sections which name the code for an unknown purpose do not change it. A proof
    /// then [assumes](Self::assumed) this.
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
        assumed.extend(few(&self.unpatched, |(section, at)| {
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
    /// If no code has this name. The error lists the names that exist.
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
pub(super) fn likeness(a: &str, b: &str) -> usize {
    let same = |(a, b): &(u8, u8)| a == b;
    a.bytes().zip(b.bytes()).take_while(same).count()
        + a.bytes().rev().zip(b.bytes().rev()).take_while(same).count()
}

/// The code of an x86-64 ELF file.
///
/// Of an **object**, all sections that are loaded and executable are laid out one after the other
/// from [`Foreign::BASE`] on, in the file's order and aligned as they ask, and relocations among
/// them are applied as a linker would. Of a **linked** file, the same sections are taken where they
/// lie; what its code refers to elsewhere is not known any more.
///
/// Only code that can be executed from the symbols of a switcher on counts. The size of the rest,
/// and what is wrong with it, does not matter. If a file has none of these symbols, all of its code
/// is read.
///
/// # Errors
/// If the file is not such a file, if its code is not complete without other code or data, or if
/// what is in the file may not be what runs: patch tables that name the code, symbols that others
/// may override, sections that contradict segments. Never panics, and never needs much more memory
/// than the file, whatever is in it.
pub fn read(data: &[u8]) -> Result<Foreign, ReadError> {
    read_from(data)
}

/// Reads an open file, of which only the parts that are needed come into memory.
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
    let is_compiled_anew = |section: &&Section<'_>| purpose::is_lto(&section.text());
    if file.is_object()
        && let Some(section) = file.sections.iter().find(is_compiled_anew)
    {
        return Err(ReadError::Lto { section: section.text() });
    }
    let code = FileCode::new(&file)?;
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
    let loaded = if file.is_object() { None } else { Some(Loaded::new(&file)?) };
    if let Some(loaded) = &loaded {
        for area in &parts {
            let own = reached.iter().filter(|(of, _)| std::ptr::eq(*of, *area));
            let own: Vec<_> = own.map(|(_, range)| range.clone()).collect();
            loaded::check(&code, loaded, area, &own)?;
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
    let tables = patched::check(&code, loaded.as_ref(), &reached, &names.bounds)?;
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
        .map(|(section, offset)| PlaceInFile { section: file.sections[section].text(), offset });
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
        harmless: harmless(&tables),
        unknown: tables.unknown,
        unpatched: Vec::new(),
        taken,
    })
}

/// A sentence for each of the first items, and one that says how many more there are.
fn few<T>(all: &[T], sentence: impl Fn(&T) -> String) -> Vec<String> {
    /// How many are shown.
    const MANY: usize = 16;
    let mut few: Vec<_> = all.iter().take(MANY).map(sentence).collect();
    let more = all.len().saturating_sub(MANY);
    few.extend((more > 0).then(|| format!("and {more} more of the same")));
    few
}

/// Why tables that name the code do no harm.
fn harmless(tables: &patched::Tables) -> Vec<String> {
    let more = Some(tables.more_harmless).filter(|more| *more > 0);
    let more = more.map(|more| format!("and {more} more of the same"));
    tables.harmless.iter().cloned().chain(more).collect()
}

/// What the file does not show and a proof assumes.
fn taken<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    sections: &[CodeSection],
    tables: &patched::Tables,
) -> Vec<String> {
    /// How many sections are reported by name.
    const FEW: usize = 4;
    let all = |names: &[String]| {
        let more = names.len().saturating_sub(FEW);
        let few: Vec<_> = names.iter().take(FEW).map(|name| format!("`{name}`")).collect();
        let few = few.join(", ");
        if more == 0 { few } else { format!("{few} and {more} more") }
    };
    let is_unknown = |section: &&CodeSection| purpose::code(&section.name) == Kept::Unknown;
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
    taken.extend(few(&tables.pointers, |(section, at)| {
        format!("`{section}`, of which it is not known what for it names the entry point {at}, does not change it")
    }));
    if !tables.beside.is_empty() {
        taken.push(format!(
            "{} name code beside the switcher's, and not to count from there to what is changed",
            all(&tables.beside)
        ));
    }
    if !tables.chance.is_empty() {
        taken.push(format!(
            "words in {} that would be places in the code are not: they stand where no table of \
             addresses would have them, or among so many that some are so by chance",
            all(&tables.chance)
        ));
    }
    if !tables.numbers.is_empty() {
        taken.push(format!(
            "the numbers in {} are not places in the code, counted from its start, that are \
             changed",
            all(&tables.numbers)
        ));
    }
    taken
}

/// Linked files are moved by whole pages only.
const PAGE: u64 = 4096;

/// All code of a file that does not say what of it is a switcher.
fn whole<'a, 'data, R: Contents<'data>>(
    code: &'a FileCode<'_, 'data, R>,
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
    code: &FileCode<'_, 'data, R>,
    area: &Area,
) -> Result<(), ReadError> {
    let section = code.section(area);
    let name = section.text();
    if let Kept::No { is_later, why } = purpose::code(&name)
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
    } else if section.has(SHF_GROUP)
        || code.file.is_in_group(area.section)
        || name.starts_with(".gnu.linkonce")
    {
        "is in a group, of which linkers keep that of any file: take it out, or link the file first"
    } else {
        return Ok(());
    };
    Err(ReadError::Section { section: name, why: why.into() })
}

/// Refuses files of other kinds, and says what they are. A file that is too short for a header is
/// left to the parser.
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
