//! The code of an ELF file: what a prover needs to look at assembly that others have written.
//!
//! Only code is read, and only the code that the routines of a switcher reach. If it refers to
//! anything else, or if something says that other bytes will run, or that they will run at another
//! address, the file is refused. The bytes that are proved must be the bytes that will run.

use std::cell::RefCell;
use std::ops::Range;

use object::elf::{
    self, ET_DYN, ET_EXEC, SHF_COMPRESSED, SHF_EXCLUDE, SHF_GROUP, SHF_MERGE, SHF_TLS, SHF_WRITE,
    SHT_PROGBITS,
};
use object::read::ReadCache;
use object::read::elf::SectionHeader;

use super::boot::Boot;
use super::choice::{self, Choice, Choices};
use super::code::{Area, FileCode};
use super::contents::{Contents, E, OnDisk};
use super::data;
use super::dynamic::Loaded;
use super::error::ReadError;
use super::file::File;
use super::foreign::{CodeSection, Foreign, Linkage, few};
use super::labels::hosts;
use super::layout::Layout;
use super::leads::Across;
use super::linker_error::LinkerError;
use super::names::{self, Names};
use super::places::{LIMIT, PlaceInFile};
use super::purpose::{self, Kept, Told};
use super::reached::Reached;
use super::request::Request;
use super::{idt, loaded, patched, reach, segments};
use switcher_gen::asm::Label;

/// The code of an x86-64 ELF file.
///
/// Of an **object**, all sections that are loaded and executable are laid out from
/// [`Foreign::BASE`] on, in the file's order and aligned as they ask, and relocations among them
/// are applied as a linker would. How far they are apart follows from a hash of the file, so that
/// nothing can rely on it. Of a **linked** file, the same sections are taken where they lie; what
/// its code refers to elsewhere is not known any more.
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
    read_as(data, Request::default())
}

/// The same, with names that are not ours.
///
/// # Errors
/// As [`read()`].
pub fn read_as(data: &[u8], request: Request) -> Result<Foreign, ReadError> {
    images(data, request).and_then(only)
}

/// The code for each combination of what Linux chooses when it boots, as far as the code depends on
/// it and the request does not say it. There is at least one.
///
/// # Errors
/// As [`read()`], and if there are too many.
pub fn images(data: &[u8], request: Request) -> Result<Vec<Foreign>, ReadError> {
    read_from(data, request)
}

/// The same of an open file.
///
/// # Errors
/// As [`images()`]; a file that cannot be read is a damaged one.
pub fn images_of(file: &std::fs::File, request: Request) -> Result<Vec<Foreign>, ReadError> {
    let cache = ReadCache::new(file);
    read_from(OnDisk { cache: &cache, file, window: &RefCell::default() }, request)
}

/// The only image.
fn only(mut images: Vec<Foreign>) -> Result<Foreign, ReadError> {
    match (images.pop(), images.pop()) {
        (Some(image), None) => Ok(image),
        (Some(one), Some(other)) => {
            let images = [one, other].map(|image| choice::text(&image.choices));
            Err(ReadError::Open { images })
        }
        (None, _) => Err(ReadError::NoCode),
    }
}

/// Reads an open file, of which only the parts that are needed come into memory.
///
/// # Errors
/// As [`read()`]; a file that cannot be read is a damaged one.
pub fn read_file(file: &std::fs::File) -> Result<Foreign, ReadError> {
    read_file_as(file, Request::default())
}

/// The same, with names that are not ours.
///
/// # Errors
/// As [`read_file()`].
pub fn read_file_as(file: &std::fs::File, request: Request) -> Result<Foreign, ReadError> {
    images_of(file, request).and_then(only)
}

fn read_from<'data, R: Contents<'data>>(
    data: R,
    request: Request,
) -> Result<Vec<Foreign>, ReadError> {
    let length = data.len().unwrap_or_default().min(64);
    check_header(data.read_bytes_at(0, length).unwrap_or_default())?;
    let file = File::parse(data, request)?;
    let layout = file.is_object().then(|| names::has_entries(&file)).transpose()?;
    let layout = layout.map(|is_switcher| Layout::of(&file, is_switcher));
    let mut code = FileCode::new(&file, layout)?;
    let names = Names::new(&code)?;
    // Of a file that is no switcher, this is what is wrong with it, and nothing else.
    combinations(&mut code, &names).map_err(|error| names.missing().unwrap_or(error))
}

/// The code for each combination of choices that it depends on, besides those that are made.
fn combinations<'data, R: Contents<'data>>(
    code: &mut FileCode<'_, 'data, R>,
    names: &Names<'_>,
) -> Result<Vec<Foreign>, ReadError> {
    /// More combinations than anybody would judge.
    const MOST: usize = 64;
    purpose::check_tables(code.file)?;
    let boot = Boot::read(code, &names.homes(code))?;
    let mut said = code.file.request.choices().keys();
    let is_branch = |choice: &&Choice| matches!(choice, Choice::Branch(_) | Choice::Key(_));
    if let Some(choice) = said.find(|choice| is_branch(choice) && !boot.has(choice)) {
        return Err(ReadError::NoChoice { choice: choice.to_string() });
    }
    // Each with the ways that lead to it: choices that make no difference make no other image, and
    // are not said of the one.
    let mut images: Vec<(Foreign, Vec<Choices>)> = Vec::new();
    let mut ahead = vec![code.file.request.choices().clone()];
    while let Some(made) = ahead.pop() {
        boot.put(code, &made)?;
        // Each image is read from the beginning.
        code.file.refill();
        match switcher(code, names, &boot, &made)? {
            Read::Code(foreign) => {
                let is_known = |(known, _): &&mut (Foreign, Vec<Choices>)| {
                    known.pieces == foreign.pieces && known.features() == foreign.features()
                };
                let way = foreign.choices.clone();
                match images.iter_mut().find(is_known) {
                    Some((_, ways)) => choice::add(ways, way),
                    None => images.push((*foreign, vec![way])),
                }
            }
            Read::Open(choice) => {
                for is_on in [true, false] {
                    let mut made = made.clone();
                    choice::make(&mut made, choice.clone(), is_on);
                    ahead.push(made);
                }
            }
        }
        if images.len() + ahead.len() > MOST {
            let keys = boot.keys(&made).into_keys().map(Choice::to_string).collect();
            return Err(ReadError::Combinations { most: MOST, boot: choice::text(&made), keys });
        }
    }
    let with_ways = images.into_iter().map(|(image, ways)| {
        let choices = ways.into_iter().next().unwrap_or_default();
        Foreign { choices, ..image }
    });
    Ok(with_ways.collect())
}

/// What comes of reading the code with some choices made.
enum Read {
    Code(Box<Foreign>),
    /// What is reached depends on this choice as well.
    Open(Choice),
}

/// The code, and what is assumed of it.
fn switcher<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    names: &Names<'_>,
    boot: &Boot,
    made: &Choices,
) -> Result<Read, ReadError> {
    let file = code.file;
    let of_objects = if file.is_object() { file.sections.as_slice() } else { &[] };
    for section in of_objects {
        match purpose::told(section) {
            Told::Lto => return Err(ReadError::Lto { section: section.text() }),
            Told::Unknown => return Err(LinkerError::ForLinkers { section: section.text() }.into()),
            Told::Nothing => {}
        }
    }
    names.check(code)?;
    let gates = idt::gates(code, names)?;
    let stubs = if idt::are_all(&gates) { None } else { names.stubs()? };
    let entries = names.entries(&gates, stubs.as_ref())?;
    let (home, reached, instructions, across, led) = if entries.is_empty() {
        for area in &code.areas {
            usable(code, area)?;
        }
        (None, whole(code)?, Vec::new(), None, Vec::new())
    } else {
        let ends = names.hooks()?;
        let reach::Reached { home, ranges, instructions, across, led } =
            reach::reached(code, &entries, stubs.as_slice(), &ends)?;
        let ranges = ranges.into_iter().map(|range| (home, range)).collect();
        (Some(home), ranges, instructions, Some(across), led)
    };
    let parts: Vec<&Area> = match home {
        Some(home) => vec![home],
        None => code.areas.iter().collect(),
    };
    for area in &parts {
        usable(code, area)?;
    }
    let ranges: Vec<_> = reached.iter().map(|(_, range)| range.clone()).collect();
    if home.is_some()
        && let Some(choice) = boot.open(code, &ranges, made)?
    {
        return Ok(Read::Open(choice.clone()));
    }
    boot.check_led(code, &led)?;
    boot.check_returns(code, &instructions, made)?;
    let changed = boot.changed(code, (&ranges, &instructions), made)?;
    let mut choices = boot.made(&ranges, made);
    let is_without_fine_ibt = home.is_some() && boot.check_fronts(code, &ranges)?;
    if home.is_some() && boot.check_calls(code, &ranges)? {
        choices.insert(Choice::CallDepth, false);
    }
    for at in boot.sources(&ranges) {
        let area = code.area(at).ok_or(ReadError::NoCode)?;
        is_kept(code, area)?;
    }
    let loaded = if file.is_object() { None } else { Some(Loaded::new(file)?) };
    if let Some(loaded) = &loaded {
        // What is patched, and by what, is what is in memory.
        let sources = boot.sources(&ranges).filter_map(|at| code.area(at));
        let sections = sources.map(|area| area.section).chain(boot.tables());
        for section in sections.map(|number| &file.sections[number]) {
            let there = segments::place(&loaded.segments, section.address, section.size);
            if section.size > 0 && there != Some(section.offset()) {
                return Err(ReadError::Elsewhere { section: section.text() });
            }
        }
    }
    if let Some(loaded) = &loaded {
        for area in &parts {
            let own = reached.iter().filter(|(of, _)| std::ptr::eq(*of, *area));
            let own: Vec<_> = own.map(|(_, range)| range.clone()).collect();
            loaded::check(code, loaded, area, &own)?;
        }
    }
    if let Some(at) = loaded.as_ref().and_then(|loaded| segments::overlap(&loaded.segments)) {
        return Err(ReadError::SegmentsOverlap { at });
    }
    let mut pieces = Vec::new();
    for (area, range) in &reached {
        let across = across.as_ref().map_or(Across::Anywhere, Across::At);
        pieces.push((range.start, code.bytes(area, range, across)?));
    }
    if let Some(symbol) = home.and_then(|_| names.hook_in(&ranges)) {
        return Err(ReadError::HookWithin { symbol: symbol.into() });
    }
    let mut found = names.within(code, &ranges)?;
    let reached = Reached {
        ranges: &ranges,
        home: home.map_or(0..0, |home| home.range.clone()),
        named: &found.pointers,
        entries: &entries,
        instructions: &instructions,
    };
    // Nothing is proved if a routine is missing.
    let tables = match names.missing() {
        None => patched::check(code, loaded.as_ref(), &reached, &names.bounds, boot)?,
        Some(_) => patched::Tables::default(),
    };
    if is_without_fine_ibt || tables.is_without_fine_ibt {
        choices.insert(Choice::FineIbt, false);
    }
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
    let mut taken = taken(file, &sections, &tables);
    for (key, _) in boot.keys(&choices).into_iter().filter(|(_, sites)| *sites > 1) {
        taken.push(format!(
            "the static branches of `{key}` are as this image has them, of which there is one for each \
             way of each: Linux flips them one after the other, while a guest runs as well (say \
             `--boot {key}=on` or `=off` if it never does)"
        ));
    }
    taken.extend(idt::assumed(&file.request.gates().collect::<Vec<_>>()));
    if let Some(at) = names.iretq_elsewhere(code)? {
        found.symbols.insert(Label::Iretq.name().into(), at);
        pieces.push((at, IRETQ.to_vec()));
        taken.push(format!(
            "`{}`, which the object does not have, is an IRETQ, after which nothing is executed",
            file.request.theirs(Label::Iretq.name())
        ));
    }
    let data = data::addresses(code)?;
    if code.variables.are_of_cpus() {
        taken.push(String::from(
            "whoever links the object has each CPU's copy of a per-CPU variable at GS base and the \
             variable's address, wherever the code lies, and aligned as its operands are large",
        ));
    }
    Ok(Read::Code(Box::new(Foreign {
        choices,
        base,
        pieces,
        changed,
        symbols: found.symbols,
        gates,
        data,
        hosts: hosts().filter_map(|name| Some((name, code.host(name)?))).collect(),
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
    })))
}

/// IRETQ, and a trap after it.
const IRETQ: [u8; 3] = [0x48, 0xCF, 0xCC];

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
    if let Some(why) = purpose::no_code(&name) {
        let why = format!("holds code that need not be executable: {why}; use another name");
        return Err(ReadError::Section { section: name, why });
    }
    is_kept(code, area)
}

/// Refuses a section of code of which other bytes may come into memory, or none.
fn is_kept<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    area: &Area,
) -> Result<(), ReadError> {
    let section = code.section(area);
    let name = section.text();
    purpose::check_no_table(section)?;
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

/// What a file is instead, if it is one that an ELF file may be in.
fn not_elf(data: &[u8]) -> ReadError {
    const KINDS: [(&[u8], &str, &str); 8] = [
        (b"!<arch>\n", "an archive", "take the object out of it (`ar x`)"),
        (b"!<thin>\n", "an archive of names", "give the object that it names (`ar t`)"),
        (b"\x1F\x8B", "compressed", "unpack it (`gunzip`)"),
        (b"\xFD7zXZ", "compressed", "unpack it (`unxz`)"),
        (b"\x28\xB5\x2F\xFD", "compressed", "unpack it (`unzstd`)"),
        (b"BZh", "compressed", "unpack it (`bunzip2`)"),
        (b"MZ", "an image that firmware loads", "give the ELF file that it is made of (vmlinux)"),
        (b"BC\xC0\xDE", "LLVM's bitcode", "compile it with `-fno-lto`"),
    ];
    let known = KINDS.iter().find(|(magic, ..)| data.starts_with(magic));
    known.map_or(ReadError::NotElf, |(_, what, how)| ReadError::Packed { what, how })
}

/// Refuses files of other kinds, and says what they are. A file that is too short for a header is
/// left to the parser.
fn check_header(data: &[u8]) -> Result<(), ReadError> {
    const BITS_32: u8 = 1;
    const BIG_ENDIAN: u8 = 2;
    const X86_64: u16 = elf::EM_X86_64.0;

    let Some(rest) = data.strip_prefix(b"\x7FELF") else { return Err(not_elf(data)) };
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
