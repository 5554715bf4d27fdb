//! Whether the symbols that a loader finds are those that were looked at: it knows no sections, and
//! follows the dynamic section alone.

use object::elf::SHT_DYNSYM;
use object::read::elf::SectionHeader;

use super::contents::{Contents, E};
use super::error::ReadError;
use super::file::File;

/// Where in the file the dynamic section leads; beyond the file if what it says is not loaded.
pub(super) struct Tables {
    pub(super) symbols: Option<u64>,
    pub(super) strings: Option<u64>,
    pub(super) hash: Option<u64>,
    pub(super) gnu_hash: Option<u64>,
}

/// Refuses a file if a loader looks at other symbols than its section of dynamic symbols holds.
pub(super) fn check<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    tables: &Tables,
) -> Result<(), ReadError> {
    let Some(symbols) = tables.symbols else { return Ok(()) };
    let mut sections = file.sections.iter();
    let section = sections.find(|section| section.header.sh_type(E) == SHT_DYNSYM);
    let Some(section) = section else { return Err(ReadError::DynamicSymbols) };
    let strings = file.sections.get(section.header.sh_link(E) as usize);
    let count = section.size / 24;
    let is_same = section.offset() == symbols
        && strings.map(|strings| strings.offset()) == tables.strings
        && tables.hash.is_none_or(|at| by_hash(file, at).is_some_and(|last| last <= count))
        && tables.gnu_hash.is_none_or(|at| by_gnu_hash(file, at).is_some_and(|last| last <= count));
    if is_same { Ok(()) } else { Err(ReadError::DynamicSymbols) }
}

fn dword<'data, R: Contents<'data>>(file: &File<'data, R>, at: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    file.data.copy(at, &mut bytes).ok()?;
    Some(u32::from_le_bytes(bytes))
}

/// The number of symbols by the hash table of the generic ABI, which has one chain for each.
fn by_hash<'data, R: Contents<'data>>(file: &File<'data, R>, at: u64) -> Option<u64> {
    dword(file, at.checked_add(4)?).map(u64::from)
}

/// The number of symbols by the GNU hash table, whose last chain ends with the last symbol.
fn by_gnu_hash<'data, R: Contents<'data>>(file: &File<'data, R>, at: u64) -> Option<u64> {
    /// More than any library of ours has.
    const MANY: u32 = 1 << 20;
    let field = |number: u64| dword(file, at.checked_add(4 * number)?);
    let (buckets, first, filter) = (field(0)?, field(1)?, field(2)?);
    if buckets > MANY || filter > MANY {
        return None;
    }
    let start = 4 + 2 * u64::from(filter);
    let mut last = 0;
    for bucket in 0..u64::from(buckets) {
        last = last.max(field(start + bucket)?);
    }
    if last < first || last == 0 {
        return Some(first.into());
    }
    let chains = start + u64::from(buckets);
    for number in last..last.saturating_add(MANY) {
        if field(chains + u64::from(number - first))? & 1 == 1 {
            return Some(u64::from(number) + 1);
        }
    }
    None
}
