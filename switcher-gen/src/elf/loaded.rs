//! Whether a linked file's code is what is in memory once the file is loaded: sections are what a
//! prover reads, segments are what is mapped, and relocations at load time are what the loader
//! changes.

use std::ops::Range;

use object::elf::{
    PF_W, PF_X, PT_DYNAMIC, PT_GNU_RELRO, PT_LOAD, SHF_ALLOC, SHF_TLS, SHT_REL, SHT_RELA, SHT_RELR,
};
use object::read::elf::{ProgramHeader, SectionHeader};

use super::code::{Area, Code};
use super::error::ReadError;
use super::exports;
use super::file::{Contents, E, File, Segment};

/// What `mmap` maps at least.
const PAGE: u64 = 4096;

/// Refuses `ranges` of `area` that are not what the loader puts there.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    area: &Area,
    ranges: &[Range<u64>],
) -> Result<(), ReadError> {
    let file = code.file;
    overlapping_sections(code, area, ranges)?;
    // Before what the segments say: this names an address.
    let (dynamic, has_text_relocations) = dynamic(file)?;
    if let Some(at) = relocated_at_load_time(file, &dynamic, ranges)? {
        return Err(ReadError::LoadTime { at });
    }
    if has_text_relocations {
        return Err(ReadError::TextRelocations);
    }
    // Whole pages become so.
    let relro = file.segments.iter().filter(|segment| segment.p_type(E) == PT_GNU_RELRO);
    for segment in relro.map(Segment::new) {
        let end = segment.address.saturating_add(segment.in_memory.max(segment.in_file));
        if let Some(range) = first_over(ranges, &(segment.address & !(PAGE - 1)..end)) {
            let section = code.section(area).text();
            return Err(ReadError::Relro { section, at: range.start });
        }
    }
    let segments: Vec<Segment> = file
        .segments
        .iter()
        .filter(|segment| segment.p_type(E) == PT_LOAD)
        .map(Segment::new)
        .collect();
    for range in ranges {
        mapped(code, area, range, &segments)?;
    }
    Ok(())
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The first of `ranges`, which are in order, that has to do with `other`.
fn first_over<'a>(ranges: &'a [Range<u64>], other: &Range<u64>) -> Option<&'a Range<u64>> {
    let behind = ranges.partition_point(|range| range.end <= other.start);
    ranges.get(behind).filter(|range| range.start < other.end)
}

/// Another section at the same addresses: nobody knows which of them is there.
fn overlapping_sections<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    area: &Area,
    ranges: &[Range<u64>],
) -> Result<(), ReadError> {
    let others = code.file.sections.iter().enumerate();
    // Thread-local templates without bytes have addresses, but no place.
    let others = others.filter(|(number, other)| {
        let has_no_place = other.has(SHF_TLS) && !other.has_bytes();
        *number != area.section && other.has(SHF_ALLOC) && other.size > 0 && !has_no_place
    });
    for (_, other) in others {
        if first_over(ranges, &other.range()).is_some() {
            return Err(ReadError::Overlap { section: other.text(), address: other.address });
        }
    }
    Ok(())
}

fn mapped<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    area: &Area,
    range: &Range<u64>,
    segments: &[Segment],
) -> Result<(), ReadError> {
    let section = || code.section(area).text();
    let at = range.start;
    let memory = |s: &Segment| s.address..s.address.saturating_add(s.in_memory.max(s.in_file));
    let mut there = segments.iter().filter(|segment| overlap(range, &memory(segment)));
    let (Some(segment), None) = (there.next(), there.next()) else {
        let overlaps = segments.iter().filter(|s| overlap(range, &memory(s))).count() > 1;
        return Err(if overlaps {
            ReadError::Segments { section: section(), at }
        } else {
            ReadError::NotMapped { section: section(), at }
        });
    };
    let in_file = segment.address..segment.address.saturating_add(segment.in_file);
    if range.start < in_file.start || in_file.end < range.end {
        return Err(ReadError::NotMapped { section: section(), at });
    }
    if segment.flags & PF_X.0 == 0 {
        return Err(ReadError::NotExecutable { section: section() });
    }
    if segment.flags & PF_W.0 != 0 {
        return Err(ReadError::Writable { section: section() });
    }
    let own = code.section(area).offset().wrapping_add(at - area.range.start);
    let length = range.end - range.start;
    // Pages are mapped whole: what is mapped beside a segment must be the same there.
    let page =
        |s: &Segment| s.address & !(PAGE - 1)..memory(s).end.saturating_add(PAGE - 1) & !(PAGE - 1);
    for other in segments.iter().filter(|other| overlap(range, &page(other))) {
        let is_own = std::ptr::eq(other, segment);
        if !is_own && other.in_memory > other.in_file {
            // The rest of its last page is zero.
            let zero = other.address.saturating_add(other.in_file)..page(other).end;
            if overlap(range, &zero) {
                return Err(ReadError::Segments { section: section(), at });
            }
        }
        let there = other.offset.wrapping_add(at.wrapping_sub(other.address));
        if there != own && !same(code.file, own, there, length) {
            return Err(if is_own {
                ReadError::OtherBytes { section: section(), at }
            } else {
                ReadError::Segments { section: section(), at }
            });
        }
    }
    Ok(())
}

/// Whether the file holds the same at two places.
fn same<'data, R: Contents<'data>>(file: &File<'data, R>, a: u64, b: u64, length: u64) -> bool {
    let (mut one, mut other) = ([0; PAGE as usize], [0; PAGE as usize]);
    let mut done = 0;
    while done < length {
        let size = (length - done).min(PAGE) as usize;
        let (one, other) = (&mut one[..size], &mut other[..size]);
        let place = |at: u64| at.checked_add(done);
        let (Some(a), Some(b)) = (place(a), place(b)) else { return false };
        let read = file.data.copy(a, one).and_then(|()| file.data.copy(b, other));
        if read.is_err() || one != other {
            return false;
        }
        done += size as u64;
    }
    true
}

/// The first relocation at load time that changes something in `ranges`, which are in order.
fn relocated_at_load_time<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    dynamic: &[Table],
    ranges: &[Range<u64>],
) -> Result<Option<u64>, ReadError> {
    // A relocation starts at most 7 bytes before the last byte it changes.
    let touched = |at: u64| first_over(ranges, &(at..at.saturating_add(8))).is_some();
    let tables = file.sections.iter().filter(|section| section.has(SHF_ALLOC));
    let tables = tables.filter_map(|section| {
        let entry = match section.header.sh_type(E) {
            SHT_RELA => 24,
            SHT_REL => 16,
            SHT_RELR => 8,
            _ => return None,
        };
        Some(Table { offset: section.offset(), size: section.size, entry })
    });
    for table in tables.chain(dynamic.iter().copied()) {
        if let Some(at) = table.find(file, &touched)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// Relocations, in the file.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    size: u64,
    /// 24 bytes with an addend, 16 without, 8 for the compact form of addresses alone.
    entry: u64,
}

impl Table {
    fn find<'data, R: Contents<'data>>(
        &self,
        file: &File<'data, R>,
        touched: &dyn Fn(u64) -> bool,
    ) -> Result<Option<u64>, ReadError> {
        let damaged = |()| ReadError::RelocationTable { section: "dynamic relocations".into() };
        let mut buffer = [0; 24 * 512];
        let (mut done, mut next) = (0, 0_u64);
        while done + self.entry <= self.size {
            let size = (self.size - done).min(buffer.len() as u64);
            let size = size - size % self.entry;
            let part = &mut buffer[..size as usize];
            let offset = self.offset.checked_add(done).ok_or(()).map_err(damaged)?;
            file.data.copy(offset, part).map_err(damaged)?;
            for entry in part.chunks_exact(self.entry as usize) {
                let word = u64::from_le_bytes(entry[..8].try_into().unwrap_or_default());
                let found = if self.entry == 8 {
                    relr(word, &mut next, touched)
                } else {
                    touched(word).then_some(word)
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
            done += size;
        }
        Ok(None)
    }
}

/// The generic ABI's compact form: an address, or a bitmap of the 63 words behind what was last.
fn relr(word: u64, next: &mut u64, touched: &dyn Fn(u64) -> bool) -> Option<u64> {
    if word & 1 == 0 {
        *next = word.wrapping_add(8);
        return touched(word).then_some(word);
    }
    let base = *next;
    *next = base.wrapping_add(63 * 8);
    let mut set = (0..63).filter(|bit| word >> (bit + 1) & 1 == 1);
    set.find_map(|bit| Some(base.wrapping_add(bit * 8)).filter(|at| touched(*at)))
}

/// Where in the file the byte is that is loaded to an address.
fn place<'data, R: Contents<'data>>(file: &File<'data, R>, at: u64) -> Option<u64> {
    let loaded = file.segments.iter().filter(|segment| segment.p_type(E) == PT_LOAD);
    loaded.map(Segment::new).find_map(|segment| {
        let distance = at.checked_sub(segment.address)?;
        (distance < segment.in_file).then(|| segment.offset.checked_add(distance))?
    })
}

/// The tables that the dynamic section leads to, whatever the sections say, and whether it says that
/// what is not writable is relocated.
fn dynamic<'data, R: Contents<'data>>(
    file: &File<'data, R>,
) -> Result<(Vec<Table>, bool), ReadError> {
    const PLTRELSZ: u64 = 2;
    const HASH: u64 = 4;
    const STRTAB: u64 = 5;
    const SYMTAB: u64 = 6;
    const GNU_HASH: u64 = 0x6FFF_FEF5;
    const RELA: u64 = 7;
    const RELASZ: u64 = 8;
    const REL: u64 = 17;
    const RELSZ: u64 = 18;
    const PLTREL: u64 = 20;
    const TEXTREL: u64 = 22;
    const JMPREL: u64 = 23;
    const FLAGS: u64 = 30;
    const RELRSZ: u64 = 35;
    const RELR: u64 = 36;
    const DF_TEXTREL: u64 = 4;
    /// More than there are tags.
    const ENTRIES: usize = 4096;

    let (mut tables, mut has_text_relocations) = (Vec::new(), false);
    for segment in file.segments.iter().filter(|segment| segment.p_type(E) == PT_DYNAMIC) {
        let damaged = |()| ReadError::RelocationTable { section: "PT_DYNAMIC".into() };
        let (mut values, mut offset) = ([0; 37], segment.p_offset(E));
        let mut gnu_hash = 0;
        let entries = (segment.p_filesz(E) / 16).min(ENTRIES as u64);
        for _ in 0..entries {
            let mut entry = [0; 16];
            file.data.copy(offset, &mut entry).map_err(damaged)?;
            let [tag, value] = [0, 8]
                .map(|at| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default()));
            match tag {
                0 => break,
                // That they are there is what matters.
                TEXTREL => values[TEXTREL as usize] = 1,
                GNU_HASH => gnu_hash = value,
                tag if tag < values.len() as u64 => values[tag as usize] = value,
                _ => {}
            }
            offset = offset.checked_add(16).ok_or(()).map_err(damaged)?;
        }
        let value = |tag: u64| values[tag as usize];
        let plt = if value(PLTREL) == REL { 16 } else { 24 };
        for (at, size, entry) in
            [(RELA, RELASZ, 24), (REL, RELSZ, 16), (JMPREL, PLTRELSZ, plt), (RELR, RELRSZ, 8)]
        {
            let (at, size) = (value(at), value(size));
            if size == 0 {
                continue;
            }
            let offset = place(file, at).ok_or(()).map_err(damaged)?;
            tables.push(Table { offset, size, entry });
        }
        let [symbols, strings, hash, gnu_hash] =
            [value(SYMTAB), value(STRTAB), value(HASH), gnu_hash]
                .map(|at| if at == 0 { None } else { Some(place(file, at).unwrap_or(u64::MAX)) });
        exports::check(file, &exports::Tables { symbols, strings, hash, gnu_hash })?;
        has_text_relocations |= value(TEXTREL) != 0 || value(FLAGS) & DF_TEXTREL != 0;
    }
    Ok((tables, has_text_relocations))
}
