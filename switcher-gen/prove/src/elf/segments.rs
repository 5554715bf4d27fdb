//! What a loader maps: segments, by whole pages. Everything that a loader finds by its address is
//! looked for here, and never by an offset or a section that says the same.

use std::ops::Range;

use object::Endianness;
use object::elf::{PT_LOAD, ProgramHeader64};
use object::read::elf::ProgramHeader;

use super::contents::{Contents, E};
use super::file::File;

/// The smallest unit that `mmap` maps.
pub(super) const PAGE: u64 = 4096;

/// A segment that is loaded.
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) physical: u64,
    pub(super) offset: u64,
    pub(super) in_file: u64,
    pub(super) in_memory: u64,
    pub(super) flags: u32,
}

impl Segment {
    pub(super) fn new(header: &ProgramHeader64<Endianness>) -> Self {
        Self {
            address: header.p_vaddr(E),
            physical: header.p_paddr(E),
            offset: header.p_offset(E),
            in_file: header.p_filesz(E),
            in_memory: header.p_memsz(E),
            flags: header.p_flags(E).0,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.in_memory.max(self.in_file)
    }

    /// The addresses of the segment itself.
    pub(super) fn memory(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.size())
    }

    /// The addresses of the whole pages that it is mapped with.
    pub(super) fn pages(&self) -> Range<u64> {
        let Range { start, end } = self.memory();
        start & !(PAGE - 1)..end.saturating_add(PAGE - 1) & !(PAGE - 1)
    }
}

/// All segments of a file that are loaded, but for those that are empty.
pub(super) fn loaded<'data, R: Contents<'data>>(file: &File<'data, R>) -> Vec<Segment> {
    let loaded = file.segments.iter().filter(|segment| segment.p_type(E) == PT_LOAD);
    loaded.map(Segment::new).filter(|segment| segment.size() > 0).collect()
}

/// The first two segments of which one is loaded over the other.
pub(super) fn overlap(segments: &[Segment]) -> Option<u64> {
    let mut ranges: Vec<_> = segments.iter().map(Segment::memory).collect();
    ranges.sort_by_key(|range| range.start);
    ranges.array_windows().find(|[one, other]| other.start < one.end).map(|[_, other]| other.start)
}

/// Where in the file the bytes are that are loaded to `size` bytes at `at`: nowhere if two segments
/// have other bytes there, by whole pages, or none has them all.
pub(super) fn place(segments: &[Segment], at: u64, size: u64) -> Option<u64> {
    let last = at.checked_add(size.max(1) - 1)?;
    let mut found = None;
    for segment in segments {
        let pages = segment.pages();
        if last < pages.start || pages.end <= at {
            continue;
        }
        let there = segment.offset.wrapping_add(at.wrapping_sub(segment.address));
        let end = segment.address.saturating_add(segment.in_file);
        // If a segment has more memory than bytes in the file, the rest of its last page is zero.
        let is_zero = last >= end && segment.in_memory > segment.in_file;
        if is_zero || found.is_some_and(|(found, _)| found != there) {
            return None;
        }
        let is_own = segment.address <= at && last < end;
        let was_own = found.is_some_and(|(_, is_own)| is_own);
        found = Some((there, is_own || was_own));
    }
    found.and_then(|(place, is_own)| is_own.then_some(place))
}
