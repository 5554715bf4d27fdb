//! Tables by which somebody rewrites code when it is loaded, or later.
//!
//! Linux keeps, beside its code, the places that are other bytes on this CPU, in this configuration
//! or at this moment: alternatives, static branches and calls, return and indirect-branch sites,
//! landing pads to be sealed, calls for tracing, LOCK prefixes. What such a table names is not what
//! runs. Other tables also name places in code and change nothing. And of a section with a name
//! that nobody knows, nobody knows what it is for. Linux collects tables by their names alone: that
//! one is marked as executable, as a note or as not loaded makes it no other table.

use std::ops::Range;

use object::elf::SHF_ALLOC;

use super::among;
use super::code::Code;
use super::error::ReadError;
use super::file::{Contents, Section};
use super::purpose::Purpose;
use super::read::Place;

/// Somewhere in a file where addresses are kept.
struct Table {
    name: String,
    purpose: Purpose,
    /// Its bytes, by address and by place in the file.
    address: u64,
    offset: u64,
    size: u64,
}

/// What tables say of the code.
#[derive(Default)]
pub(super) struct Tables {
    /// Why those that name the code do no harm.
    pub(super) harmless: Vec<String>,
    /// Those of which it is not known what they are for.
    pub(super) unknown: Vec<(String, Place)>,
    /// Those with numbers that would be places in the code if somebody counted from its start.
    pub(super) numbers: Vec<String>,
    /// Sections of code that were not looked through for tables.
    pub(super) unsearched: Vec<String>,
}

/// What a reference has to do with what is reached.
pub(super) struct Reached<'a> {
    pub(super) ranges: &'a [Range<u64>],
    /// Functions, which others may have a pointer to; and the entry points, which are called.
    pub(super) named: &'a [u64],
    pub(super) entries: &'a [u64],
    /// The first byte of each instruction, in order.
    pub(super) instructions: &'a [u64],
}

impl Reached<'_> {
    /// The first byte that is reached of `length` at `address`.
    pub(super) fn first(&self, address: u64, length: u64) -> Option<u64> {
        let end = address.saturating_add(length);
        let behind = self.ranges.partition_point(|range| range.end <= address);
        let range = self.ranges.get(behind)?;
        (range.start < end).then(|| range.start.max(address))
    }

    /// Whether others may well refer to what lies there.
    pub(super) fn is_named(&self, address: u64) -> bool {
        self.entries.contains(&address) || self.named.binary_search(&address).is_ok()
    }

    /// The byte that a word at some place in a table refers to, if that matters. A distance is no
    /// pointer as data holds them.
    pub(super) fn matters(
        &self,
        purpose: Purpose,
        address: u64,
        length: u64,
        is_distance: bool,
    ) -> Option<u64> {
        let found = self.first(address, length.max(1))?;
        let is_pointer = match purpose {
            Purpose::Data if !is_distance => self.is_named(address),
            Purpose::Data | Purpose::Unknown | Purpose::Code => self.entries.contains(&address),
            Purpose::Patches(_) | Purpose::Harmless(_) => false,
        };
        (!is_pointer).then_some(found)
    }
}

/// Looks for tables that name bytes of what is `reached`.
///
/// # Errors
/// If one says that they are changed.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    reached: &Reached<'_>,
    bounds: &[(String, Range<u64>)],
) -> Result<Tables, ReadError> {
    let mut tables = Tables::default();
    for (number, section) in code.file.sections.iter().enumerate() {
        // What is executed is code, whatever its name.
        let holds =
            |range: &Range<u64>| code.area(range.start).is_some_and(|a| a.section == number);
        let is_home = reached.ranges.iter().any(holds);
        let purpose = if is_home { Purpose::Code } else { Purpose::of(section) };
        if section.size == 0 || purpose == Purpose::Harmless("") {
            continue;
        }
        let name = section.text();
        // A table is one whether or not it is marked as loaded: the linker puts it together with
        // others, and whoever looks for it takes it from the file.
        let (address, offset) = (section.address, section.offset());
        let is_memory = section.has_bytes() && (address != 0 || !section.has(SHF_ALLOC));
        let found = if code.file.is_object() {
            in_object(code, number, purpose, reached)?
        } else if is_memory && purpose != Purpose::Code {
            let table = Table { name: name.clone(), purpose, address, offset, size: section.size };
            in_memory(code, &table, reached)?
        } else {
            None
        };
        tables.add(code, name.clone(), purpose, found)?;
        if found.is_none() && purpose == Purpose::Code {
            // What an assembler can resolve by itself leaves no relocation.
            match among::search(code, number, reached)? {
                among::Found::Nothing => {}
                among::Found::Table(at) => tables.add(code, name, purpose, Some(at))?,
                among::Found::TooLarge => tables.unsearched.push(name),
            }
        } else if found.is_none()
            && purpose == Purpose::Unknown
            && section.has_bytes()
            && numbers(code, section, reached)?
        {
            tables.numbers.push(name);
        }
    }
    if !code.file.is_object() {
        // Where linkers have put them into sections with other things.
        for (name, range) in bounds {
            let purpose = Purpose::of_name(name);
            let section = code.file.sections.iter().find(|section| {
                section.has(SHF_ALLOC)
                    && section.has_bytes()
                    && section.range().start <= range.start
                    && range.end <= section.range().end
            });
            let is_of_interest = matches!(purpose, Purpose::Patches(_) | Purpose::Unknown);
            if let Some(section) = section.filter(|_| is_of_interest) {
                let address = range.start;
                let offset = section.offset().saturating_add(address - section.address);
                let (name, size) = (name.clone(), range.end - range.start);
                let table = Table { name: name.clone(), purpose, address, offset, size };
                tables.add(code, name, purpose, in_memory(code, &table, reached)?)?;
            }
        }
    }
    Ok(tables)
}

impl Tables {
    fn add<'data, R: Contents<'data>>(
        &mut self,
        code: &Code<'_, 'data, R>,
        section: String,
        purpose: Purpose,
        found: Option<u64>,
    ) -> Result<(), ReadError> {
        /// So many are shown.
        const MANY: usize = 16;
        let Some(address) = found else { return Ok(()) };
        let area = code.area(address);
        let at = area.map_or_else(
            || Place { section: String::new(), offset: address },
            |area| code.place(area, address),
        );
        match purpose {
            Purpose::Patches(how) => return Err(ReadError::Patched { section, at, how }),
            Purpose::Harmless("") => {}
            Purpose::Harmless(why) if self.harmless.len() < MANY => {
                self.harmless.push(format!("`{section}` names {at}: {why}"));
            }
            Purpose::Unknown | Purpose::Data | Purpose::Code if self.unknown.len() < MANY => {
                self.unknown.push((section, at));
            }
            _ => {}
        }
        Ok(())
    }
}

/// By an object's relocations.
fn in_object<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    number: usize,
    purpose: Purpose,
    reached: &Reached<'_>,
) -> Result<Option<u64>, ReadError> {
    let is_code = code.file.sections[number].is_code();
    for relocation in code.file.relocations(number)? {
        let Some((section, value, is_section)) = code.file.refers_to(&relocation)? else {
            continue;
        };
        let Some(start) = code.address_in(section, 0) else { continue };
        let symbol = start.wrapping_add(value);
        if is_code
            && (among::is_reached_code(code, number, relocation.offset, reached)
                || among::is_operand(code, number, &relocation, symbol, reached))
        {
            continue;
        }
        let addend = relocation.addend.unwrap_or_default();
        let exact = symbol.wrapping_add_signed(addend);
        // `label - table` is stored with the distance from the table's start.
        let from_start = exact.wrapping_sub(relocation.offset);
        let length = length(code, number, relocation.offset, purpose);
        let by_name = (!is_section).then_some(symbol);
        let is_relative = relocation.is_relative();
        let is_distance = is_relative && relocation.offset > 0;
        let candidates = [Some(exact), Some(from_start).filter(|_| is_distance), by_name];
        let found = candidates.into_iter().flatten();
        let mut found =
            found.filter_map(|address| reached.matters(purpose, address, length, is_relative));
        if let Some(found) = found.next() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// How many bytes are changed at what a table's entry at `offset` names. Alternatives say it
/// themselves: 10 or 12 bytes behind the start of an entry, by the version.
fn length<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    number: usize,
    offset: u64,
    purpose: Purpose,
) -> u64 {
    let section = &code.file.sections[number];
    let is_table = matches!(purpose, Purpose::Patches(_));
    if !is_table || !section.text().contains("altinstructions") {
        return 1;
    }
    let byte = |at: u64| {
        let mut byte = [0];
        let offset = section.offset().checked_add(at).filter(|_| at < section.size)?;
        code.file.data.copy(offset, &mut byte).ok()?;
        Some(u64::from(byte[0]))
    };
    let lengths = [10, 12].map(|by| offset.checked_add(by).and_then(byte).unwrap_or_default());
    lengths.into_iter().max().unwrap_or_default().max(1)
}

/// By a linked table's bytes: distances from their own place, and addresses.
fn in_memory<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    table: &Table,
    reached: &Reached<'_>,
) -> Result<Option<u64>, ReadError> {
    const BLOCK: usize = 1 << 14;
    let Table { name, purpose, address, offset, size } = table;
    let (Some(first), Some(last)) = (reached.ranges.first(), reached.ranges.last()) else {
        return Ok(None);
    };
    let window = first.start.saturating_sub(255)..last.end;
    // Entries of Linux's tables are packed; pointers and distances are aligned elsewhere.
    let step = match purpose {
        Purpose::Patches(_) => 1,
        Purpose::Unknown | Purpose::Harmless(_) | Purpose::Data | Purpose::Code => 4,
    };
    // Of data, distances are what tells nothing: there is too much of it.
    let has_distances = *purpose != Purpose::Data || *size <= among::FEW;
    let is_code = code
        .file
        .sections
        .iter()
        .any(|section| section.is_code() && section.range().contains(address));
    let is_of_entries = matches!(purpose, Purpose::Patches(_)) && name.contains("altinstructions");
    let mut buffer = vec![0; BLOCK + 16];
    let mut done = 0;
    while done < *size {
        let length = (*size - done).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..length];
        let truncated = || ReadError::Truncated { section: name.clone() };
        let from = offset.checked_add(done).ok_or_else(truncated)?;
        code.file.data.copy(from, part).map_err(|()| truncated())?;
        let here = address.wrapping_add(done);
        let aligned = here.next_multiple_of(step).wrapping_sub(here) as usize;
        for at in (aligned..length.min(BLOCK)).step_by(step as usize) {
            let (rest, place) = (&part[at..], here.wrapping_add(at as u64));
            let dword = rest.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
            let qword = rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let relative = dword.filter(|_| has_distances);
            let relative = relative.map(|by| place.wrapping_add_signed(by.into()));
            let is_known = matches!(purpose, Purpose::Patches(_) | Purpose::Harmless(_));
            let absolute = dword.filter(|_| is_known);
            let absolute = absolute.map(|value| i64::from(value).cast_unsigned());
            let candidates = [(relative, true), (absolute, false), (qword, false)];
            for (address, is_distance) in candidates {
                let Some(address) = address.filter(|address| window.contains(address)) else {
                    continue;
                };
                if is_code && is_distance && among::ends_a_branch(&part[..at]) {
                    continue;
                }
                let bytes = if is_of_entries {
                    let by = |by: usize| rest.get(by).copied().unwrap_or_default();
                    by(10).max(by(12)).max(1).into()
                } else {
                    1
                };
                if let Some(found) = reached.matters(*purpose, address, bytes, is_distance) {
                    return Ok(Some(found));
                }
            }
        }
        done += BLOCK as u64;
    }
    Ok(None)
}

/// Whether a section that nobody knows holds numbers that are where instructions begin, counted from
/// the code's start, or from an entry point. They leave no relocation, and numbers are often small:
/// that they are none is no more than assumed.
fn numbers<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    section: &Section<'_>,
    reached: &Reached<'_>,
) -> Result<bool, ReadError> {
    const BLOCK: usize = 1 << 14;
    let Some(area) = reached.ranges.first().and_then(|range| code.area(range.start)) else {
        return Ok(false);
    };
    let counted_from = |start: u64, by: u32| {
        let at = start.wrapping_add(by.into());
        by != 0 && reached.instructions.binary_search(&at).is_ok() && !reached.entries.contains(&at)
    };
    let mut buffer = vec![0; BLOCK];
    let mut done = 0;
    while done < section.size {
        let part = &mut buffer[..(section.size - done).min(BLOCK as u64) as usize];
        let truncated = || ReadError::Truncated { section: section.text() };
        let from = section.offset().checked_add(done).ok_or_else(truncated)?;
        code.file.data.copy(from, part).map_err(|()| truncated())?;
        for dword in part.as_chunks::<4>().0 {
            let by = u32::from_le_bytes(*dword);
            let mut starts = reached.entries.iter().chain([&area.range.start]);
            if starts.any(|start| counted_from(*start, by)) {
                return Ok(true);
            }
        }
        done += BLOCK as u64;
    }
    Ok(false)
}
