//! `.altinstructions`: Linux's table of code that is put somewhere on some CPUs.

use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::replacement::Corrected;
use super::tables::Table;
use super::{Choice, Feature, Site, To};

/// An entry of the table.
struct Entry {
    site: u64,
    length: u8,
    from: u64,
    by: u8,
    number: u16,
    is_not: bool,
    /// Why it is not known what comes of it, if it is not.
    wrong: Option<&'static str>,
}

/// `None` if its entries are of no size that is known, or could be of several.
pub(super) fn read<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Result<Option<Vec<Site>>, ReadError> {
    // Since Linux 6.3, since 5.13, and before. Of the first, the last versions count here; where
    // others do something else, it is asked for the version.
    let sizes = [(14, Corrected::All), (12, Corrected::First), (13, Corrected::First)];
    let of_size = |(size, corrected)| {
        let entries = table.entries(size, &[0, 4], &[])?;
        let entries: Option<Vec<_>> = entries.map(|at| entry(code, table, at, size)).collect();
        entries.map(|entries| (entries, corrected))
    };
    let mut known = sizes.into_iter().filter_map(of_size);
    let (Some((entries, corrected)), None) = (known.next(), known.next()) else { return Ok(None) };
    // Of several about one place, the longest says how much of it there is.
    let own = |number: usize| {
        let own = entries[number].site;
        let near = move |entry: &&Entry| entry.site == own;
        let after = entries[number..].iter().take_while(near);
        let before = entries[..number].iter().rev().take_while(near);
        after.chain(before)
    };
    let longest = |number: usize| own(number).map(|entry| entry.length).max().unwrap_or_default();
    // Before nested alternatives, all entries of a place had the same length.
    let shortest = |number: usize| own(number).map(|entry| entry.length).min().unwrap_or_default();
    let is_equal = |number: usize| shortest(number) == longest(number);
    if corrected == Corrected::First && !(0..entries.len()).all(is_equal) {
        return Ok(None);
    }
    let site = |(number, entry): (usize, &Entry)| {
        let Entry { site, from, by, number: feature, is_not, wrong, .. } = *entry;
        let to = To::Code(from..from + u64::from(by), corrected);
        let since = match corrected {
            Corrected::First => None,
            Corrected::All if is_equal(number) => Some(Choice::Since6_5),
            Corrected::All => Some(Choice::Since6_10),
        };
        Site {
            range: site..site + u64::from(longest(number)),
            when: wrong.is_none().then_some((Choice::Feature(Feature(feature)), !is_not)),
            to: wrong.map_or(to, To::Unknown),
            since,
            table: table.name.clone(),
        }
    };
    Ok(Some(entries.iter().enumerate().map(site).collect()))
}

/// The entry at an offset, if it can be one of this size.
fn entry<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
    at: usize,
    size: usize,
) -> Option<Entry> {
    /// More words of features than any version of Linux has.
    const WORDS: u16 = 32;
    /// The flags of any version: "not", and that a call is made direct.
    const FLAGS: u16 = 3;
    let (site, from) = (table.place(at)?, table.place(at + 4)?);
    let number = table.word(at + 8)?;
    let (number, flags, lengths) = match size {
        14 => (number, table.word(at + 10)?, at + 12),
        // A bit of the number means "not".
        _ => (number & 0x7FFF, number >> 15, at + 10),
    };
    let (length, by) = (table.byte(lengths)?, table.byte(lengths + 1)?);
    let is_code = |start: u64, length: u64| {
        code.area(start).is_some_and(|area| start + length <= area.range.end)
    };
    let has_code = is_code(site, length.into()) && (by == 0 || is_code(from, by.into()));
    let is_possible =
        length > 0 && by <= length && number < WORDS * 32 && flags <= FLAGS && has_code;
    let is_not = flags & 1 != 0;
    let wrong = match size {
        _ if flags & 2 != 0 => Some(To::NOT_MODELLED),
        13 if !is_padded(code, site, length, table.byte(lengths + 2)?) => Some(
            "an entry says that so many bytes at its end are padding, and not all of them are NOPs \
             of one byte: Linux up to 5.12 overwrites them without a look",
        ),
        _ => None,
    };
    is_possible.then_some(Entry { site, length, from, by, number, is_not, wrong })
}

/// Whether so many bytes at the end of a place are NOPs of one byte.
fn is_padded<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    site: u64,
    length: u8,
    padding: u8,
) -> bool {
    let end = site.saturating_add(length.into());
    let range = end.saturating_sub(padding.into())..end;
    let mut bytes = vec![0; padding.into()];
    let Some(area) = code.area(site).filter(|area| end <= area.range.end) else { return false };
    padding <= length
        && code.copy_file(area, range.start, &mut bytes).is_ok()
        && bytes.iter().all(|byte| *byte == 0x90)
        && code.touching(area, &range).is_ok_and(|relocations| relocations.is_empty())
}
