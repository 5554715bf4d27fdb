//! Which line of which source an address of a file comes from, where the file has DWARF that says
//! so.
//!
//! Nothing rests on it: it is for whoever reads a report. So what is damaged or compressed is no
//! error of the file, but a reason why there are no lines.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::ops::Range;

use gimli::{Dwarf, DwarfSections, EndianSlice, LittleEndian, SectionId, Unit};
use object::Endianness;
use object::read::elf::ElfFile64;
use object::read::{
    CompressionFormat, Object as _, ObjectSection as _, ObjectSymbol as _, ReadCache,
    RelocationTarget, SectionIndex,
};
use object::{ObjectKind, RelocationKind};
use serde::Serialize;

use crate::elf::Foreign;

/// The lines of a file's sources, by address.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Sorted by address.
    rows: Vec<Row>,
    files: Vec<String>,
}

/// Instructions of one line.
#[derive(Clone, Debug)]
struct Row {
    range: Range<u64>,
    file: usize,
    line: u64,
}

/// A line of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceLine {
    /// The file: relative to the folder that it was compiled in, if it lies there.
    pub file: String,
    /// Its line, from 1 on.
    pub line: u64,
}

/// Why the lines of a file are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLines {
    /// It has none.
    #[error("the file has no DWARF: assemble and link it with `-g`, and do not strip it")]
    None,
    /// It is compressed.
    #[error("`{0}` is compressed: `objcopy --decompress-debug-sections` decompresses it")]
    Compressed(&'static str),
    /// It has more lines, or files, than any switcher.
    #[error("the DWARF names more than {0} lines or files of this code")]
    Many(usize),
    /// It is too large to be read for that.
    #[error("the DWARF has more than {0} bytes")]
    TooLarge(u64),
    /// The file cannot be read any more, or is damaged where that is.
    #[error("the DWARF cannot be read: {0}")]
    Damaged(String),
}

/// What is read of DWARF at most: more than kernels have with all of their modules' types.
const MOST: u64 = 1 << 30;

/// So many ranges of one line, and so many files, has no switcher's code.
const FEW: usize = 1 << 16;
/// So much of a path is shown.
const LONGEST: usize = 4096;

/// What says which line an address is of.
const SECTIONS: [SectionId; 9] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Elf<'data> = ElfFile64<'data, Endianness, &'data ReadCache<&'data fs::File>>;

fn damaged(error: impl ToString) -> NoLines {
    NoLines::Damaged(error.to_string())
}

impl Lines {
    /// The lines of the code that `foreign` is, which was read from `file`.
    ///
    /// # Errors
    /// Says why they are not known.
    pub fn read(file: &fs::File, foreign: &Foreign) -> Result<Self, NoLines> {
        let cache = ReadCache::new(file);
        let elf = Elf::parse(&cache).map_err(damaged)?;
        let mut left = MOST;
        let sections = DwarfSections::load(|id| match SECTIONS.contains(&id) {
            true => section(&elf, foreign, id, &mut left),
            false => Ok(Cow::Borrowed(&[][..])),
        })?;
        let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
        let code: Vec<Range<u64>> = foreign
            .pieces
            .iter()
            .map(|(start, bytes)| *start..start.saturating_add(bytes.len() as u64))
            .collect();
        let mut lines = Self::default();
        let mut headers = dwarf.units();
        while let Some(header) = headers.next().map_err(damaged)? {
            let unit = dwarf.unit(header).map_err(damaged)?;
            lines.add(&dwarf, &unit, &code).map_err(damaged)?;
            if lines.rows.len().max(lines.files.len()) > FEW {
                return Err(NoLines::Many(FEW));
            }
        }
        if lines.rows.is_empty() {
            return Err(NoLines::None);
        }
        lines.rows.sort_by_key(|row| row.range.start);
        Ok(lines)
    }

    /// The line of the instruction at `address`.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<SourceLine> {
        let after = self.rows.partition_point(|row| row.range.start <= address);
        let row = self.rows.get(after.checked_sub(1)?)?;
        let file = self.files.get(row.file)?.clone();
        row.range.contains(&address).then_some(SourceLine { file, line: row.line })
    }

    /// Adds those of `unit` that are of `code`.
    fn add(
        &mut self,
        dwarf: &Dwarf<Slice<'_>>,
        unit: &Unit<Slice<'_>>,
        code: &[Range<u64>],
    ) -> Result<(), gimli::Error> {
        let is_code = |range: &Range<u64>| {
            code.iter().any(|code| code.start < range.end && range.start < code.end)
        };
        let mut ranges = dwarf.unit_ranges(unit)?;
        let (mut has_any, mut has_code) = (false, false);
        while let Some(range) = ranges.next()? {
            has_any = true;
            has_code |= is_code(&(range.begin..range.end));
        }
        // A unit need not say where its code is.
        let Some(program) = unit.line_program.clone().filter(|_| has_code || !has_any) else {
            return Ok(());
        };
        let mut rows = program.rows();
        let mut known = HashMap::new();
        let mut before: Option<(u64, u64, u64)> = None;
        while self.rows.len().max(self.files.len()) <= FEW
            && let Some((header, row)) = rows.next_row()?
        {
            let at = row.address();
            if let Some((start, file, line)) = before.filter(|(start, ..)| *start < at)
                && is_code(&(start..at))
            {
                let number = match known.get(&file) {
                    Some(number) => *number,
                    None => {
                        let number = self.file(dwarf, unit, header.file(file), header)?;
                        known.insert(file, number);
                        number
                    }
                };
                if let Some(file) = number {
                    self.rows.push(Row { range: start..at, file, line });
                }
            }
            let line = row.line().map(|line| (at, row.file_index(), line.get()));
            before = line.filter(|_| !row.end_sequence());
        }
        Ok(())
    }

    /// The number of a file that a program of lines names, if it does.
    fn file<'a>(
        &mut self,
        dwarf: &Dwarf<Slice<'a>>,
        unit: &Unit<Slice<'a>>,
        file: Option<&gimli::FileEntry<Slice<'a>>>,
        header: &gimli::LineProgramHeader<Slice<'a>>,
    ) -> Result<Option<usize>, gimli::Error> {
        let Some(file) = file else { return Ok(None) };
        let folder = match file.directory(header) {
            Some(folder) => text(dwarf, unit, folder)?,
            None => String::new(),
        };
        let name = text(dwarf, unit, file.path_name())?;
        let built_in = unit.comp_dir.map(shortened);
        self.files.push(path(&built_in.unwrap_or_default(), &folder, &name));
        Ok(Some(self.files.len() - 1))
    }
}

fn text(
    dwarf: &Dwarf<Slice<'_>>,
    unit: &Unit<Slice<'_>>,
    value: gimli::AttributeValue<Slice<'_>>,
) -> Result<String, gimli::Error> {
    Ok(shortened(dwarf.attr_string(unit, value)?))
}

/// A path, as much of it as is shown.
fn shortened(bytes: Slice<'_>) -> String {
    let bytes = bytes.slice();
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned()
}

/// The path of a file in a folder, relative to the one that it was `built_in` if it lies there.
fn path(built_in: &str, folder: &str, name: &str) -> String {
    let path = match name.starts_with('/') || folder.is_empty() {
        true => name.to_owned(),
        false => format!("{}/{name}", folder.trim_end_matches('/')),
    };
    let within = path.strip_prefix(built_in).and_then(|rest| rest.strip_prefix('/'));
    within.filter(|_| !built_in.is_empty()).unwrap_or(&path).to_owned()
}

/// The bytes of a section; an object's as they are once its code lies where `foreign` has it.
fn section<'data>(
    elf: &Elf<'data>,
    foreign: &Foreign,
    id: SectionId,
    left: &mut u64,
) -> Result<Cow<'data, [u8]>, NoLines> {
    let Some(section) = elf.section_by_name(id.name()) else { return Ok(Cow::Borrowed(&[])) };
    *left = left.checked_sub(section.size()).ok_or(NoLines::TooLarge(MOST))?;
    let data = section.compressed_data().map_err(damaged)?;
    if data.format != CompressionFormat::None {
        return Err(NoLines::Compressed(id.name()));
    }
    if elf.kind() != ObjectKind::Relocatable {
        return Ok(Cow::Borrowed(data.data));
    }
    let mut bytes = data.data.to_vec();
    for (offset, relocation) in section.relocations() {
        let size = usize::from(relocation.size() / 8);
        let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
        if relocation.kind() != RelocationKind::Absolute || !matches!(size, 4 | 8) {
            continue;
        }
        let symbol = elf.symbol_by_index(symbol).map_err(damaged)?;
        let start = symbol.section_index().map_or(0, |index| start(elf, foreign, index));
        let value = start.wrapping_add(symbol.address()).wrapping_add_signed(relocation.addend());
        let place =
            usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at..)?.get_mut(..size));
        if let Some(place) = place {
            place.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }
    Ok(Cow::Owned(bytes))
}

/// Where a section of an object is taken to lie: 0 if it has no code that is looked at.
fn start(elf: &Elf<'_>, foreign: &Foreign, index: SectionIndex) -> u64 {
    let name_of = |index| elf.section_by_index(index).ok()?.name().ok().map(str::to_owned);
    let Some(name) = name_of(index) else { return 0 };
    let is_one = elf.sections().filter(|section| section.name() == Ok(&name)).count() == 1;
    let known = foreign.sections.iter().find(|section| section.name == name);
    known.filter(|_| is_one).map_or(0, |section| section.range.start)
}

#[cfg(test)]
mod tests {
    use super::path;

    #[test]
    fn paths_are_relative_to_where_they_were_built() {
        for (built_in, folder, name, expected) in [
            ("/build", "/build", "entry.S", "entry.S"),
            ("/build", "/build/arch/x86", "entry.S", "arch/x86/entry.S"),
            ("/build", "arch/x86", "entry.S", "arch/x86/entry.S"),
            ("/build", "/builder", "entry.S", "/builder/entry.S"),
            ("/build", "/other", "/usr/entry.S", "/usr/entry.S"),
            ("/build", "", "/build/entry.S", "entry.S"),
            ("", "", "/entry.S", "/entry.S"),
            ("", "/", "entry.S", "/entry.S"),
        ] {
            assert_eq!(path(built_in, folder, name), expected, "{built_in} {folder} {name}");
        }
    }
}
