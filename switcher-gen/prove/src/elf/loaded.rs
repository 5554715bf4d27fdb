//! Whether a linked file's code is what is in memory once the file is loaded: sections are what a
//! prover reads, segments are what is mapped, and relocations at load time are what the loader
//! changes.

use std::ops::Range;

use object::elf::{
    PF_W, PF_X, PT_DYNAMIC, PT_GNU_EH_FRAME, PT_GNU_PROPERTY, PT_GNU_RELRO, PT_GNU_STACK,
    PT_INTERP, PT_LOAD, PT_NOTE, PT_NULL, PT_PHDR, PT_TLS, ProgramType, R_X86_64_COPY,
    RelocationType, SHF_ALLOC, SHF_TLS,
};
use object::read::elf::ProgramHeader;

use super::code::{Area, FileCode};
use super::contents::{Contents, E};
use super::dynamic::{Loaded, RelocationTable};
use super::error::ReadError;
use super::exports;
use super::file::File;
use super::relocation;
use super::segments::{PAGE, Segment};

/// Refuses `ranges` of `area` that are not what the loader puts there.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    loaded: &Loaded,
    area: &Area,
    ranges: &[Range<u64>],
) -> Result<(), ReadError> {
    let file = code.file;
    overlapping_sections(code, area, ranges)?;
    // This comes before the checks of segments, because it names an address.
    if let Some(at) = relocated_at_load_time(file, &loaded.dynamic.tables, ranges)? {
        return Err(ReadError::LoadTime { at });
    }
    if loaded.dynamic.has_text_relocations() {
        return Err(ReadError::TextRelocations);
    }
    exports::check(file, &loaded.dynamic.symbols(&loaded.segments))?;
    for segment in &loaded.segments {
        if segment.in_memory < segment.in_file {
            return Err(ReadError::LessMemory { at: segment.address });
        }
    }
    told(code, area, ranges)?;
    // The loader makes whole pages read-only.
    let relro = file.segments.iter().filter(|segment| segment.p_type(E) == PT_GNU_RELRO);
    for segment in relro.map(Segment::new) {
        let Range { start, end } = segment.memory();
        if let Some(range) = first_over(ranges, &(start & !(PAGE - 1)..end)) {
            let section = code.section(area).text();
            return Err(ReadError::Relro { section, at: range.start });
        }
    }
    for range in ranges {
        let segment = mapped(code, area, range, &loaded.segments)?;
        physical(code, area, range, segment, &loaded.segments)?;
    }
    Ok(())
}

/// Program headers that do not tell a loader to change what is in memory, or of which that is
/// looked at elsewhere.
const HARMLESS: [ProgramType; 11] = [
    PT_NULL,
    PT_LOAD,
    PT_DYNAMIC,
    PT_INTERP,
    PT_NOTE,
    PT_PHDR,
    // Each thread has a copy of it, which is elsewhere.
    PT_TLS,
    PT_GNU_EH_FRAME,
    PT_GNU_STACK,
    PT_GNU_RELRO,
    PT_GNU_PROPERTY,
];
/// What lists the stack frames, as binutils make it.
const PT_GNU_SFRAME: ProgramType = ProgramType(0x6474_E554);

/// Refuses a program header of another type that has bytes in a page of the code: a loader may do
/// anything there.
fn told<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    area: &Area,
    ranges: &[Range<u64>],
) -> Result<(), ReadError> {
    for header in code.file.segments {
        let kind = header.p_type(E);
        if HARMLESS.contains(&kind) || kind == PT_GNU_SFRAME {
            continue;
        }
        let segment = Segment::new(header);
        let at = (segment.size() > 0).then(|| first_over(ranges, &segment.pages())).flatten();
        if let Some(at) = at {
            let (section, at) = (code.section(area).text(), at.start);
            return Err(ReadError::ProgramHeader { section, at, kind: kind.0 });
        }
    }
    Ok(())
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The first of `ranges`, which are in order, that overlaps `other`.
fn first_over<'a>(ranges: &'a [Range<u64>], other: &Range<u64>) -> Option<&'a Range<u64>> {
    let behind = ranges.partition_point(|range| range.end <= other.start);
    ranges.get(behind).filter(|range| range.start < other.end)
}

/// Another section at the same addresses. It is not known which of the two is loaded.
fn overlapping_sections<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
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

/// The one segment that has a range, which nothing else is mapped to a page of.
fn mapped<'a, 'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    area: &Area,
    range: &Range<u64>,
    segments: &'a [Segment],
) -> Result<&'a Segment, ReadError> {
    let section = || code.section(area).text();
    let at = range.start;
    let mut there = segments.iter().filter(|segment| overlap(range, &segment.memory()));
    let segment = match (there.next(), there.next()) {
        (Some(segment), None) => segment,
        (None, _) => return Err(ReadError::NotMapped { section: section(), at }),
        (Some(_), Some(_)) => return Err(ReadError::Segments { section: section(), at }),
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
    // Pages are mapped whole, and have the rights of what is mapped last.
    let is_other = |other: &&Segment| !std::ptr::eq(*other, segment);
    let mut others = segments.iter().filter(is_other);
    if others.any(|other| overlap(range, &other.pages())) {
        return Err(ReadError::Segments { section: section(), at });
    }
    let own = code.section(area).offset().wrapping_add(at - area.range.start);
    let there = segment.offset.wrapping_add(at - segment.address);
    if there != own && !same(code.file, own, there, range.end - range.start) {
        return Err(ReadError::OtherBytes { section: section(), at });
    }
    Ok(segment)
}

/// A boot loader loads a kernel by physical addresses, byte by byte. If all of them are 0, the file
/// is not loaded in this way.
fn physical<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    area: &Area,
    range: &Range<u64>,
    segment: &Segment,
    segments: &[Segment],
) -> Result<(), ReadError> {
    if segments.iter().all(|segment| segment.physical == 0) {
        return Ok(());
    }
    let start = segment.physical.wrapping_add(range.start - segment.address);
    let own = start..start.saturating_add(range.end - range.start);
    let is_other = |other: &&Segment| !std::ptr::eq(*other, segment);
    let mut others = segments.iter().filter(is_other);
    let is_over = |s: &Segment| overlap(&own, &(s.physical..s.physical.saturating_add(s.size())));
    if own.start > start.wrapping_add(range.end - range.start) || others.any(is_over) {
        let section = code.section(area).text();
        return Err(ReadError::Physical { section, at: range.start });
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
    dynamic: &[RelocationTable],
    ranges: &[Range<u64>],
) -> Result<Option<u64>, ReadError> {
    let touched = |changed: Range<u64>| first_over(ranges, &changed).is_some();
    let tables = file.sections.iter().filter(|section| section.has(SHF_ALLOC));
    for table in tables.filter_map(RelocationTable::of).chain(dynamic.iter().copied()) {
        if let Some(at) = table.find(file, &touched)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// What a loader changes by a relocation at `at`.
fn changed<'data, R: Contents<'data>>(file: &File<'data, R>, at: u64, info: u64) -> Range<u64> {
    /// The object that a library defines may be larger than the one that the file was linked with.
    const LARGE: u64 = 1 << 16;
    let kind = RelocationType(info as u32);
    let (before, width) = match kind {
        R_X86_64_COPY => (0, file.dynamic_symbol(info >> 32, 16).unwrap_or_default().max(LARGE)),
        kind => relocation::span(kind),
    };
    at.saturating_sub(before)..at.saturating_add(width)
}

impl RelocationTable {
    fn find<'data, R: Contents<'data>>(
        &self,
        file: &File<'data, R>,
        touched: &dyn Fn(Range<u64>) -> bool,
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
                let word = |bytes: &[u8]| {
                    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
                };
                let at = word(entry);
                let found = if self.entry == 8 {
                    relr(at, &mut next, &|at| touched(at..at.saturating_add(8)))
                } else {
                    touched(changed(file, at, word(&entry[8..]))).then_some(at)
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

/// The generic ABI's compact form: an address, or a bitmap of the 63 words after what was last.
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
