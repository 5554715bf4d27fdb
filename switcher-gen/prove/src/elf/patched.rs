//! Tables by which somebody rewrites code when it is loaded, or later.
//!
//! Beside its code, Linux keeps tables of the places that hold other bytes on some CPUs, in some
//! configurations or at some moments: alternatives, static branches and calls, return and
//! indirect-branch sites, landing pads to be sealed, calls for tracing, LOCK prefixes. The bytes
//! that such a table names are not the bytes that run. Other tables also name places in code and
//! change nothing. If the name of a section is not known, its purpose is not known either. Linux
//! collects tables by their names alone. A table remains one if it is marked as executable, as a
//! note or as not loaded.
//!
//! A table that certainly changes the code makes the file be refused. A finding that may be chance,
//! or a pointer to an entry point, is reported with the verdict. No finding is dropped because
//! there are too many.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use object::elf::SHF_ALLOC;

use super::among;
use super::boot::Boot;
use super::code::{Area, FileCode};
use super::contents::Contents;
use super::dynamic::{Applied, Loaded};
use super::error::ReadError;
use super::file::{File, Section};
use super::front;
use super::lengths::{Extent, Lengths};
use super::notes::{self, Part};
use super::places::PlaceInFile;
use super::purpose::Purpose;
use super::reached::{Named, Reached, TableContents};
use super::relocation::{Relocation, span};
use super::segments::place;
use super::table_error::TableError;
use super::words::{self, Sites, WordTable};

/// What the tables of a file say of the code.
#[derive(Default)]
pub(super) struct Tables {
    /// Why tables that name the code do no harm.
    pub(super) harmless: Vec<String>,
    /// How many more of them there are.
    pub(super) more_harmless: usize,
    /// Tables whose purpose is not known.
    pub(super) unknown: Vec<(String, PlaceInFile)>,
    /// Tables of unknown purpose that name an entry point, as a pointer would.
    pub(super) pointers: Vec<(String, PlaceInFile)>,
    /// Tables that name code in the switcher's section which is not the switcher's.
    pub(super) beside: Vec<String>,
    /// Tables with words that are places in the code, as happens by chance among so many words.
    pub(super) chance: Vec<String>,
    /// Tables with numbers that would be places in the code if they were counted from its start.
    pub(super) numbers: Vec<String>,
    /// Whether something was taken because it was said that the kernel has no FineIBT.
    pub(super) is_without_fine_ibt: bool,
    /// Sections of code that were not looked through for tables.
    pub(super) unsearched: Vec<String>,
}

/// Looks for tables that name bytes of what is `reached`. Of what is linked, `loaded` says what is
/// in memory.
///
/// # Errors
/// If a table says that the code is changed.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    loaded: Option<&Loaded>,
    reached: &Reached<'_>,
    bounds: &[(String, Range<u64>)],
    boot: &Boot,
) -> Result<Tables, ReadError> {
    let mut tables = Tables::default();
    let areas = reached.ranges.iter().filter_map(|range| code.area(range.start));
    let homes: foldhash::HashSet<usize> = areas.map(|area| area.section).collect();
    let Some(home) = reached.ranges.first().and_then(|range| code.area(range.start)) else {
        return Ok(tables);
    };
    let sites = Sites::new(home, reached);
    // What is put into the code may be changed before, where it lies.
    let copied = boot.copied(reached.ranges);
    let copies = Reached {
        ranges: &copied,
        home: copied.first().map_or(0, |from| from.start)..copied.last().map_or(0, |from| from.end),
        named: &[],
        entries: &[],
        instructions: &[],
    };
    let copied_in = copied.iter().filter_map(|from| code.area(from.start));
    let copied_in: foldhash::HashSet<usize> = copied_in.map(|area| area.section).collect();
    // The first header belongs to no section.
    for (number, section) in code.file.sections.iter().enumerate().skip(1) {
        // The section that is executed is code, whatever its name.
        let is_home = homes.contains(&number);
        let purpose = if is_home { Purpose::Code } else { Purpose::of(code.file, number, loaded) };
        // What a known table changes was changed already.
        if section.size == 0 || purpose == Purpose::Harmless("") || boot.knows(number) {
            continue;
        }
        let name = section.text();
        // A table is one whether or not it is marked as loaded: the linker puts it together with
        // others, and whoever looks for it takes it from the file.
        let mut is_clear = true;
        for part in notes::parts(code.file, number, purpose)? {
            let found = if code.file.is_object() {
                let mut found = in_object(code, number, &part, (reached, boot), &homes)?;
                let has_bytes = section.has_bytes();
                found.has_numbers = has_bytes
                    && words::numbers(code.file, section, &part.range, part.purpose, &sites)?;
                found
            } else if purpose == Purpose::Code {
                TableContents::default()
            } else if let Some(table) = in_file(section, &part, loaded)? {
                words::search(code.file, &table, reached, &sites)?
            } else {
                is_clear = false;
                continue;
            };
            is_clear &= found.site.is_none();
            tables.add(code, home, &name, part.purpose, &found)?;
            if matches!(part.purpose, Purpose::Patches(_)) && !copied.is_empty() {
                let found = if code.file.is_object() {
                    in_object(code, number, &part, (&copies, boot), &copied_in)?
                } else if let Some(table) = in_file(section, &part, loaded)? {
                    words::search(code.file, &table, &copies, &sites)?
                } else {
                    continue;
                };
                tables.add(code, home, &name, part.purpose, &found)?;
            }
        }
        if is_clear && (purpose == Purpose::Code || section.is_code()) {
            // A distance that an assembler can resolve by itself leaves no relocation.
            match among::search(code, number, reached)? {
                among::Beside::Nothing => {}
                among::Beside::Table(at) => {
                    let found = TableContents { site: Some(at), ..TableContents::default() };
                    tables.add(code, home, &name, purpose, &found)?;
                }
                among::Beside::TooLarge => tables.unsearched.push(name),
            }
        }
    }
    let Some(loaded) = loaded else { return Ok(tables) };
    // Linkers may have put tables into sections together with other data.
    code.file.claims(bounds.iter().map(|(_, range)| range.end - range.start))?;
    let is_of_interest = |(name, _): &&(String, Range<u64>)| {
        matches!(Purpose::of_name(name), Purpose::Patches(_) | Purpose::Unknown)
    };
    // A known table by its own name.
    let is_known = |(name, range): &&(String, Range<u64>)| {
        let mut sections = code.file.sections.iter().enumerate();
        sections.any(|(number, section)| {
            boot.knows(number) && section.text() == *name && section.range() == *range
        })
    };
    for (name, range) in bounds.iter().filter(is_of_interest).filter(|bounds| !is_known(bounds)) {
        let purpose = Purpose::of_name(name);
        let (address, size) = (range.start, range.end - range.start);
        let Some(offset) = place(&loaded.segments, address, size) else { continue };
        let (name, lengths) = (name.clone(), purpose.lengths(name));
        let table = WordTable { name, purpose, lengths, address, offset, size, is_code: false };
        let found = words::search(code.file, &table, reached, &sites)?;
        tables.add(code, home, &table.name, purpose, &found)?;
    }
    relocated(code, home, loaded, reached, &mut tables)?;
    // Bytes that are loaded and belong to no section.
    for (range, offset) in words::uncovered(code.file, &loaded.segments) {
        let name = format!("the memory at {:#x} that no section has", range.start);
        let (address, size) = (range.start, range.end - range.start);
        let (purpose, lengths) = (Purpose::Unknown, Lengths::default());
        let table = WordTable { name, purpose, lengths, address, offset, size, is_code: false };
        let found = words::search(code.file, &table, reached, &sites)?;
        tables.add(code, home, &table.name, purpose, &found)?;
    }
    Ok(tables)
}

/// If a file can be loaded anywhere, its addresses are in the loader's relocations, and the places
/// where they will be stored hold nothing yet.
fn relocated<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    home: &Area,
    loaded: &Loaded,
    reached: &Reached<'_>,
    tables: &mut Tables,
) -> Result<(), ReadError> {
    let sections = code.file.sections.iter().enumerate();
    let mut places: Vec<_> = sections
        .filter(|(_, section)| section.has(SHF_ALLOC) && section.size > 0)
        .map(|(number, section)| (section.range(), number))
        .collect();
    places.sort_by_key(|(range, _)| range.start);
    let section_at = |address: u64| {
        let after = places.partition_point(|(range, _)| range.start <= address);
        let (range, number) = places.get(after.checked_sub(1)?)?;
        range.contains(&address).then_some(*number)
    };
    /// The largest length that an entry of a table can state.
    const MOST: u64 = 0xFFFF;
    let home_range = reached.home.start..=reached.home.end;
    let is_close = |at| reached.first(at, MOST).is_some() || reached.front(at, MOST).is_some();
    let mut purposes = HashMap::new();
    let mut known = HashSet::new();
    for table in &loaded.dynamic.tables {
        table.each(code.file, &mut |relocation: Applied| {
            let named =
                names(code.file, &relocation).filter(|at| home_range.contains(at) || is_close(*at));
            for address in named {
                let number = section_at(relocation.at);
                let (purpose, lengths) = purposes.entry(number).or_insert_with(|| {
                    let Some(number) = number else {
                        return (Purpose::Unknown, Lengths::default());
                    };
                    let purpose = Purpose::of(code.file, number, Some(loaded));
                    (purpose, purpose.lengths(&code.file.sections[number].text()))
                });
                let byte = |by: u64| {
                    let mut byte = [0];
                    let at = place(&loaded.segments, relocation.at.wrapping_add(by), 1);
                    let is_there = at.is_some_and(|at| code.file.data.copy(at, &mut byte).is_ok());
                    if is_there { byte[0].into() } else { 0 }
                };
                let extent = lengths.of_entry(relocation.width(), byte);
                let (purpose, is_distance) = (*purpose, relocation.is_relative());
                let found = match reached.matters(purpose, address, extent, is_distance) {
                    Named::Nothing => continue,
                    Named::Beside => TableContents { is_beside: true, ..TableContents::default() },
                    Named::Pointer => {
                        TableContents { pointer: Some(address), ..TableContents::default() }
                    }
                    Named::Front(front) => {
                        TableContents { front: Some(front), ..TableContents::default() }
                    }
                    Named::Site(site) => {
                        TableContents { site: Some(site), ..TableContents::default() }
                    }
                };
                // Only one finding of each kind is reported.
                let kind = (found.site.is_some(), found.front.is_some(), found.is_beside);
                if known.insert((number, kind)) {
                    let name = number.map(|number| code.file.sections[number].text());
                    let name =
                        name.unwrap_or_else(|| format!("the memory at {:#x}", relocation.at));
                    tables.add(code, home, &name, purpose, &found)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// The addresses that a loader's relocation may name, whatever its kind: its symbol, and the symbol
/// plus the addend. A kind that one loader does not know may be known to another.
fn names<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    relocation: &Applied,
) -> impl Iterator<Item = u64> {
    let symbol = match relocation.symbol {
        0 => Some(0),
        number => file.dynamic_symbol(number, 8),
    };
    let by_itself = symbol.filter(|_| relocation.symbol != 0);
    let with_addend = symbol.map(|symbol| symbol.wrapping_add(relocation.addend));
    // If the addend is zero, both are the same.
    by_itself.into_iter().chain(with_addend.filter(|at| Some(*at) != by_itself))
}

/// The bytes of a part of a section of what is linked: those that are loaded to its address, if any
/// are.
fn in_file(
    section: &Section<'_>,
    part: &Part,
    loaded: Option<&Loaded>,
) -> Result<Option<WordTable>, ReadError> {
    let is_loaded = section.has(SHF_ALLOC);
    let address = section.address.saturating_add(part.range.start);
    let size = part.range.end - part.range.start;
    let at = section.offset().saturating_add(part.range.start);
    let segments = loaded.filter(|_| is_loaded).map_or(&[][..], |loaded| &loaded.segments);
    let there = place(segments, address, size);
    if section.has_bytes() && there.is_some_and(|there| there != at) {
        return Err(ReadError::Elsewhere { section: section.text() });
    }
    let own = section.has_bytes() && (section.address != 0 || !is_loaded);
    let offset = there.or_else(|| own.then_some(at));
    let is_code = section.is_code();
    Ok(offset.map(|offset| WordTable {
        name: section.text(),
        purpose: part.purpose,
        lengths: part.lengths.clone(),
        address,
        offset,
        size,
        is_code,
    }))
}

impl Tables {
    fn add<'data, R: Contents<'data>>(
        &mut self,
        code: &FileCode<'_, 'data, R>,
        home: &Area,
        section: &str,
        purpose: Purpose,
        found: &TableContents,
    ) -> Result<(), ReadError> {
        /// How many are shown.
        const MANY: usize = 16;
        let at = |address: u64| code.place(code.area(address).unwrap_or(home), address);
        let name = || section.to_owned();
        let is_unknown = purpose == Purpose::Unknown;
        if let Some(front) = found.front.filter(|_| found.site.is_none()) {
            self.is_without_fine_ibt |= front::check(code, section, at(front))?;
        }
        match (purpose, found.site) {
            (Purpose::Patches(how), Some(site)) => {
                return Err(ReadError::Patched { section: name(), at: at(site), how });
            }
            (Purpose::Harmless(why), Some(site)) if self.harmless.len() < MANY => {
                self.harmless.push(format!("`{section}` names {}: {why}", at(site)));
            }
            (Purpose::Harmless(_), Some(_)) => self.more_harmless += 1,
            (_, Some(site)) => self.unknown.push((name(), at(site))),
            (_, None) => {
                if let Some(pointer) = found.pointer.filter(|_| is_unknown) {
                    self.pointers.push((name(), at(pointer)));
                }
                if found.is_beside {
                    self.beside.push(name());
                }
                if found.is_chance {
                    self.chance.push(name());
                }
                if found.has_numbers {
                    self.numbers.push(name());
                }
            }
        }
        Ok(())
    }
}

/// What a part of a table of an object names, by its relocations.
fn in_object<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    number: usize,
    part: &Part,
    (reached, boot): (&Reached<'_>, &Boot),
    homes: &foldhash::HashSet<usize>,
) -> Result<TableContents, ReadError> {
    let mut all = TableContents::default();
    let purpose = part.purpose;
    // A table is never code, and nothing is put elsewhere from there.
    let is_code = code.file.sections[number].is_code() && !matches!(purpose, Purpose::Patches(_));
    for relocation in code.file.relocations(number)? {
        let relocation = relocation?;
        if !part.range.contains(&relocation.offset) && purpose != Purpose::Code {
            continue;
        }
        let Some((section, value, is_section)) = code.file.refers_to(&relocation)? else {
            continue;
        };
        let Some(start) = code.address_in(section, 0) else { continue };
        let symbol = start.wrapping_add(value);
        let Some(addend) = relocation.addend else {
            return Err(implicit(code, number, section, symbol));
        };
        let exact = symbol.wrapping_add_signed(addend);
        // `label - table` is stored with the distance from the table's start.
        let from_start = exact.wrapping_sub(relocation.offset);
        // Most of a kernel names nothing near the switcher.
        let is_near = [symbol, exact, from_start].into_iter().any(|at| reached.is_near(at));
        if !homes.contains(&section) && !is_near {
            continue;
        }
        // What is put somewhere is looked at there.
        let is_copied = is_code && purpose == Purpose::Code;
        let own = code.address_in(number, relocation.offset).filter(|_| is_copied);
        if own.is_some_and(|own| boot.copies(own)) {
            continue;
        }
        // Other bytes run there.
        if code.area_of(number).is_some_and(|area| code.is_replaced(area, &relocation)) {
            continue;
        }
        if is_code
            && (among::is_reached_code(code, number, relocation.offset, reached)
                || among::is_operand(code, number, &relocation, symbol, reached))
        {
            continue;
        }
        let extent = extent(code, number, &relocation, &part.lengths);
        let by_name = (!is_section).then_some(symbol);
        let is_relative = relocation.is_relative();
        let from_start = Some(from_start).filter(|_| is_relative && relocation.offset > 0);
        let (mut is_pointer, mut is_beside) = (false, false);
        for address in [Some(exact), from_start].into_iter().flatten() {
            match reached.matters(purpose, address, extent, is_relative) {
                Named::Nothing => {}
                Named::Beside => is_beside = true,
                Named::Front(front) => {
                    all.front.get_or_insert(front);
                }
                Named::Site(site) => {
                    all.site = Some(site);
                    return Ok(all);
                }
                // The table's target is known, so it is not also counted from another place.
                Named::Pointer => {
                    all.pointer.get_or_insert(address);
                    is_pointer = true;
                    break;
                }
            }
        }
        if is_pointer {
            continue;
        }
        match by_name.map(|name| reached.matters(purpose, name, extent, is_relative)) {
            Some(Named::Site(site)) => {
                all.site = Some(site);
                return Ok(all);
            }
            Some(Named::Front(front)) => {
                all.front.get_or_insert(front);
            }
            _ => {}
        }
        // Of another part of the section, it may be other code; of none, it is a place that
        // somebody counts from.
        let is_table = matches!(purpose, Purpose::Unknown | Purpose::Data | Purpose::Patches(_));
        if is_table
            && homes.contains(&section)
            && let Some(area) = code.area_of(section)
        {
            let is_in = |at: u64| (area.range.start..=area.range.end).contains(&at);
            if !is_in(exact) && !from_start.is_some_and(is_in) {
                all.site = Some(exact);
                return Ok(all);
            }
        }
        all.is_beside |= is_beside;
    }
    Ok(all)
}

/// A relocation of a section says that something is added to a symbol, and not what.
fn implicit<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    number: usize,
    of: usize,
    symbol: u64,
) -> ReadError {
    let section = code.file.sections[number].text();
    match code.area_of(of) {
        Some(area) => TableError::ImplicitAddend { section, at: code.place(area, symbol) }.into(),
        None => ReadError::ImplicitAddend { at: PlaceInFile { section, offset: 0 } },
    }
}

/// How much is changed at what the entry of a table names that is relocated there.
fn extent<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    number: usize,
    relocation: &Relocation,
    lengths: &Lengths,
) -> Extent {
    let section = &code.file.sections[number];
    let byte = |by: u64| {
        let mut byte = [0];
        let at = relocation.offset.checked_add(by).filter(|at| *at < section.size)?;
        let at = section.offset().checked_add(at)?;
        code.file.data.copy(at, &mut byte).ok()?;
        Some(u64::from(byte[0]))
    };
    let width = span(relocation.kind).1;
    lengths.of_entry(width, |by| byte(by).unwrap_or_default())
}
