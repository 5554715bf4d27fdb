//! What the words of a table are, if they are places in the code: addresses and distances of every
//! width, wherever they stand, for tables are packed.

use std::ops::Range;

use object::elf::SHF_ALLOC;

use super::among::{self, FEW, Stream};
use super::code::Area;
use super::contents::Contents;
use super::error::ReadError;
use super::file::{File, Section};
use super::lengths::Lengths;
use super::purpose::Purpose;
use super::reached::{Named, Reached, TableContents};
use super::segments::Segment;

/// How many bytes are read at a time.
const BLOCK: usize = 1 << 14;

/// A part of a file that may hold addresses.
pub(super) struct WordTable {
    pub(super) name: String,
    pub(super) purpose: Purpose,
    pub(super) lengths: Lengths,
    /// Its bytes, by address and by place in the file.
    pub(super) address: u64,
    pub(super) offset: u64,
    pub(super) size: u64,
    /// Whether it is marked as executable.
    pub(super) is_code: bool,
}

/// The distances of instructions from the places that a number may be counted from: the start of
/// the code, or an entry point. There is one bit for each distance, because there are many entry
/// points.
pub(super) struct Sites<'a> {
    /// The distances from any of these places.
    all: Vec<u64>,
    /// The distances from the start of the code, and from the entry points that have a name.
    near: Vec<u64>,
    instructions: &'a [u64],
}

fn set(bits: &mut [u64], at: u64) {
    if let Some(word) = bits.get_mut((at / 64) as usize) {
        *word |= 1 << (at % 64);
    }
}

fn has(bits: &[u64], at: u64) -> bool {
    bits.get((at / 64) as usize).is_some_and(|word| word >> (at % 64) & 1 == 1)
}

impl<'a> Sites<'a> {
    pub(super) fn new(home: &Area, reached: &Reached<'a>) -> Self {
        /// The entries in front of the event stubs.
        const NAMED: usize = 5;
        let last = reached.instructions.last().copied().unwrap_or_default();
        let most = last.saturating_sub(home.range.start);
        // No more than the section has bytes.
        let mut all = vec![0; (most / 64 + 1) as usize];
        let mut near = all.clone();
        let starts = std::iter::once(&home.range.start).chain(reached.entries);
        let is_entry = |at: &&u64| reached.entries.contains(*at);
        let inside: Vec<_> = reached.instructions.iter().filter(|at| !is_entry(at)).collect();
        for (number, start) in starts.enumerate() {
            for at in &inside {
                let Some(by) = at.checked_sub(*start).filter(|by| *by != 0) else { continue };
                set(&mut all, by);
                if number <= NAMED {
                    set(&mut near, by);
                }
            }
        }
        Self { all, near, instructions: reached.instructions }
    }

    /// Whether the number that `bytes` begin with may be such a distance; or one from its own
    /// place, in so few bytes that it tells nothing.
    fn has_number(&self, bytes: &[u8], own: Option<u64>) -> bool {
        let word = bytes.first_chunk().map(|bytes| i16::from_le_bytes(*bytes));
        let dword = bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        let is_near = word.is_some_and(|by| has(&self.near, by.cast_unsigned().into()));
        let is_any = dword.is_some_and(|by| has(&self.all, by.into()));
        let itself = own.zip(word).map(|(own, by)| own.wrapping_add_signed(by.into()));
        // Most places are far from the code.
        let (first, last) = (self.instructions.first(), self.instructions.last());
        let is_close = |at: &u64| first.is_some_and(|first| first <= at) && last >= Some(at);
        let is_site = |at: u64| self.instructions.binary_search(&at).is_ok();
        is_near || is_any || itself.filter(is_close).is_some_and(is_site)
    }
}

/// Whether a part of a section holds numbers that are where instructions begin, counted from the
/// code's start, or from an entry point. Such numbers leave no relocation, and numbers are often
/// small. A proof assumes that they are no distances.
pub(super) fn numbers<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    section: &Section<'_>,
    part: &Range<u64>,
    purpose: Purpose,
    sites: &Sites<'_>,
) -> Result<bool, ReadError> {
    if !matches!(purpose, Purpose::Unknown | Purpose::Data) {
        return Ok(false);
    }
    let lengths = Lengths::default();
    let (name, size) = (section.text(), part.end - part.start);
    let offset = section.offset().saturating_add(part.start);
    let table = WordTable { name, purpose, lengths, address: 0, offset, size, is_code: false };
    let mut is_found = false;
    table.each(file, 1, &mut |_, rest| {
        is_found = sites.has_number(rest, None);
        is_found
    })?;
    Ok(is_found)
}

/// Looks at an address, what is in front of it, and what is there; says whether that is enough.
type Look<'a> = dyn FnMut(u64, &[u8], &[u8]) -> bool + 'a;

impl WordTable {
    /// Goes through its bytes, at each place that is a multiple of `step`, until it is said to
    /// be enough.
    fn walk<'data, R: Contents<'data>>(
        &self,
        file: &File<'data, R>,
        step: u64,
        look: &mut Look<'_>,
    ) -> Result<(), ReadError> {
        let mut buffer = vec![0; BLOCK + 16];
        let mut done = 0;
        while done < self.size {
            let length = (self.size - done).min(buffer.len() as u64) as usize;
            let part = &mut buffer[..length];
            let truncated = || ReadError::Truncated { section: self.name.clone() };
            let from = self.offset.checked_add(done).ok_or_else(truncated)?;
            file.data.copy(from, part).map_err(|()| truncated())?;
            let here = self.address.wrapping_add(done);
            let aligned = here.next_multiple_of(step).wrapping_sub(here) as usize;
            for at in (aligned..length.min(BLOCK)).step_by(step as usize) {
                if look(here.wrapping_add(at as u64), &part[..at], &part[at..]) {
                    return Ok(());
                }
            }
            done += BLOCK as u64;
        }
        Ok(())
    }

    fn each<'data, R: Contents<'data>>(
        &self,
        file: &File<'data, R>,
        step: u64,
        look: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        self.walk(file, step, &mut |at, _, rest| look(at, rest))
    }

    /// Its instructions, if it is code, and not too much to be looked through.
    fn instructions<'data, R: Contents<'data>>(
        &self,
        file: &File<'data, R>,
    ) -> Result<Option<Stream>, ReadError> {
        if !self.is_code || self.size > FEW || matches!(self.purpose, Purpose::Patches(_)) {
            return Ok(None);
        }
        let mut bytes = vec![0; self.size as usize];
        let truncated = |()| ReadError::Truncated { section: self.name.clone() };
        file.data.copy(self.offset, &mut bytes).map_err(truncated)?;
        Ok(Some(Stream::of(&bytes)))
    }

    /// Whether a dword at `at` that is a place in the code is one on purpose. Among very many words
    /// some are so by chance; fewer of those that are aligned as a compiler's are.
    fn is_sure(&self, at: u64) -> bool {
        match self.purpose {
            Purpose::Patches(_) | Purpose::Harmless(_) => true,
            _ if self.is_code && self.size > FEW => false,
            Purpose::Unknown if at.is_multiple_of(4) => true,
            Purpose::Data if at.is_multiple_of(4) => self.size <= FEW,
            Purpose::Unknown | Purpose::Data | Purpose::Code => self.size <= FEW / 4,
        }
    }
}

/// Searches the bytes of a linked table for addresses, and for distances from their own place.
pub(super) fn search<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    table: &WordTable,
    reached: &Reached<'_>,
    sites: &Sites<'_>,
) -> Result<TableContents, ReadError> {
    let mut all = TableContents::default();
    let (Some(first), Some(last)) = (reached.ranges.first(), reached.ranges.last()) else {
        return Ok(all);
    };
    let (most, front) = (table.lengths.most(), table.lengths.front());
    let window = match table.purpose {
        Purpose::Unknown => reached.home.start..reached.home.end.max(last.end),
        _ => first.start.saturating_sub(most)..last.end.saturating_add(front),
    };
    let step = match table.purpose {
        Purpose::Harmless(_) | Purpose::Code => 4,
        // Instructions are full of distances; `among` knows more of them.
        Purpose::Unknown | Purpose::Data if table.is_code => 4,
        Purpose::Patches(_) | Purpose::Unknown | Purpose::Data => 1,
    };
    // What may lie anywhere has its addresses from the loader, which says where they are.
    let is_known = table.is_code || matches!(table.purpose, Purpose::Data | Purpose::Code);
    let has_addresses = !(file.is_movable() && is_known);
    let stream = table.instructions(file)?;
    let may_count = matches!(table.purpose, Purpose::Unknown | Purpose::Data);
    table.walk(file, step, &mut |place, before, rest| {
        let dword = rest.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
        let qword = rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let relative = dword.map(|by| place.wrapping_add_signed(by.into()));
        let absolute = dword.map(|value| i64::from(value).cast_unsigned());
        // Most words are nothing of this.
        let is_there = |address: Option<u64>| address.is_some_and(|at| window.contains(&at));
        if !(is_there(relative) || is_there(absolute) || is_there(qword)) {
            if may_count && !all.has_numbers {
                all.has_numbers = sites.has_number(rest, Some(place));
            }
            return false;
        }
        let is_sure = table.is_sure(place);
        // Where nothing is aligned, and among data, two small numbers beside each other make others
        // that are not so large, such as the address of a program that is linked low, or a distance
        // to close by.
        let is_aligned = place.is_multiple_of(4) || matches!(table.purpose, Purpose::Patches(_));
        let is_high = |value: &u64| *value >> 32 != 0;
        let is_large = |by: &i32| by.unsigned_abs() >> 16 != 0;
        let is_distance = is_aligned && table.purpose != Purpose::Data;
        let candidates = [
            (qword, 8, false, has_addresses && (is_aligned || qword.as_ref().is_some_and(is_high))),
            (
                absolute,
                4,
                false,
                has_addresses && is_sure && (is_aligned || absolute.as_ref().is_some_and(is_high)),
            ),
            (relative, 4, true, is_sure && (is_distance || dword.as_ref().is_some_and(is_large))),
        ];
        for (address, width, is_distance, is_sure) in candidates {
            let Some(address) = address.filter(|address| window.contains(address)) else {
                continue;
            };
            if table.is_code && is_distance && among::ends_a_branch(before) {
                continue;
            }
            let offset = place.wrapping_sub(table.address) as usize;
            if width == 4 && stream.as_ref().is_some_and(|stream| stream.is_operand(offset)) {
                continue;
            }
            let byte = |by: u64| rest.get(by as usize).copied().unwrap_or_default().into();
            let extent = table.lengths.of_entry(width, byte);
            match reached.matters(table.purpose, address, extent, is_distance) {
                Named::Nothing => {}
                Named::Beside => all.is_beside |= is_sure,
                Named::Pointer => {
                    all.pointer.get_or_insert(address);
                }
                Named::Front(at) => {
                    all.front.get_or_insert(at);
                }
                Named::Site(_) if !is_sure => all.is_chance = true,
                Named::Site(site) => {
                    all.site = Some(site);
                    return true;
                }
            }
        }
        if may_count && !all.has_numbers {
            all.has_numbers = sites.has_number(rest, Some(place));
        }
        false
    })?;
    Ok(all)
}

/// The parts of segments that no section covers, by address and by offset in the file. The headers
/// of the file are left out. No two of the segments overlap.
pub(super) fn uncovered<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    segments: &[Segment],
) -> Vec<(Range<u64>, u64)> {
    let own = file.sections.iter().filter(|section| section.has(SHF_ALLOC) && section.size > 0);
    let mut ranges: Vec<_> = own.map(Section::range).collect();
    ranges.sort_by_key(|range| range.start);
    let mut covered: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match covered.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => covered.push(range),
        }
    }
    let mut found = Vec::new();
    for segment in segments {
        let end = segment.address.saturating_add(segment.in_file);
        let headers = file.headers.saturating_sub(segment.offset);
        let mut next = segment.address.saturating_add(headers);
        let behind = covered.partition_point(|range| range.end <= next);
        for range in covered[behind..].iter().take_while(|range| range.start < end) {
            if next < range.start {
                found.push(next..range.start);
            }
            next = next.max(range.end);
        }
        if next < end {
            found.push(next..end);
        }
    }
    let place =
        |range: &Range<u64>| super::segments::place(segments, range.start, range.end - range.start);
    found.into_iter().filter_map(|range| place(&range).map(|at| (range, at))).collect()
}
