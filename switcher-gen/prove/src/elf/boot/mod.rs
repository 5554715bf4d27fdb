//! What Linux makes of its code when it boots, from the tables that it keeps for that: alternatives,
//! returns, landing pads and static branches.
//!
//! | file | purpose |
//! |---|---|
//! | `features` | Linux's numbers of features |
//! | `choice` | what decides which bytes run |
//! | `tables` | the tables as they are in a file |
//! | `overlay` | the bytes that are put over those of the file |
//! | `replacement` | the code of an alternative, moved to where it runs |
//!
//! A verdict is about what runs. So each combination of choices that the reached code depends on is
//! made and judged by itself. A table that cannot be read entry by entry is none of these: what it
//! names is refused, like what any other table names that changes code.

mod choice;
mod features;
pub(super) mod overlay;
mod replacement;
mod tables;

pub use choice::{Choice, Choices, text};
pub use features::Feature;

use std::collections::HashSet;
use std::ops::Range;

use super::code::FileCode;
use super::error::ReadError;
use super::file::Contents;
use overlay::{Overlay, Piece};
use tables::Table;

/// What Linux may change.
#[derive(Default)]
pub(super) struct Boot {
    sites: Vec<Site>,
    /// The sections of the tables that these are from.
    sections: HashSet<usize>,
}

/// A place that is changed if a choice is made.
struct Site {
    range: Range<u64>,
    /// The choice, and how it must be; nothing if the place is changed anyway.
    when: Option<(Choice, bool)>,
    to: To,
    /// The table.
    table: String,
}

/// What a place is changed to.
enum To {
    /// The code at these addresses, and NOPs after it.
    Code(Range<u64>),
    /// RET and traps.
    Return,
    /// A NOP of four bytes, where ENDBR64 was.
    Sealed,
    /// A jump.
    Jump(u64),
    /// NOPs.
    Nops,
}

/// The bytes of ENDBR64.
const ENDBR64: [u8; 4] = [0xF3, 0x0F, 0x1E, 0xFA];
/// What Linux puts over it: a NOP that nothing else is.
const SEALED: [u8; 4] = [0x66, 0x0F, 0x1F, 0x00];

impl Boot {
    /// The tables of a file that can be read.
    pub(super) fn read<'data, R: Contents<'data>>(
        code: &FileCode<'_, 'data, R>,
    ) -> Result<Self, ReadError> {
        let mut boot = Self::default();
        for number in 0..code.file.sections.len() {
            let sites = match code.file.sections[number].text().as_str() {
                ".altinstructions" => alternatives,
                ".return_sites" => returns,
                ".ibt_endbr_seal" => seals,
                "__jump_table" => branches,
                _ => continue,
            };
            let Some(table) = Table::read(code, number)? else { continue };
            if let Some(sites) = sites(code, &table) {
                boot.sites.extend(sites);
                boot.sections.insert(table.section);
            }
        }
        Ok(boot)
    }

    /// Whether what a section names is known to be changed by it, and how.
    pub(super) fn knows(&self, section: usize) -> bool {
        self.sections.contains(&section)
    }

    /// The first choice that is not made and that these ranges, which are in order, depend on.
    pub(super) fn open(&self, ranges: &[Range<u64>], made: &Choices) -> Option<&Choice> {
        self.choices(ranges).find(|choice| !made.contains_key(choice))
    }

    /// The choices that these ranges depend on, of those that are made.
    pub(super) fn made(&self, ranges: &[Range<u64>], made: &Choices) -> Choices {
        let own =
            self.choices(ranges).filter_map(|choice| Some((choice.clone(), *made.get(choice)?)));
        own.collect()
    }

    /// The choices that ranges, which are in order, depend on; some more than once.
    fn choices(&self, ranges: &[Range<u64>]) -> impl Iterator<Item = &Choice> {
        let reached = self.sites.iter().filter(|site| {
            let first = ranges.partition_point(|range| range.end <= site.range.start);
            ranges.get(first).is_some_and(|range| range.start < site.range.end)
        });
        reached.filter_map(|site| site.when.as_ref().map(|(choice, _)| choice))
    }

    /// What runs instead of the file's bytes once these choices are made.
    pub(super) fn overlay<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        made: &Choices,
    ) -> Result<Overlay, ReadError> {
        let mut overlay = Overlay::default();
        for site in &self.sites {
            let is_changed = match &site.when {
                Some((choice, wanted)) => made.get(choice) == Some(wanted),
                None => true,
            };
            if !is_changed {
                continue;
            }
            let piece = match &site.to {
                To::Code(from) => replacement::moved(code, from, &site.range)?,
                To::Return => plain(&site.range, [0xC3, 0xCC, 0xCC, 0xCC, 0xCC].to_vec()),
                To::Sealed => plain(&site.range, SEALED.to_vec()),
                To::Nops => plain(&site.range, nops(site.range.end - site.range.start)),
                To::Jump(target) => plain(&site.range, jump(&site.range, *target)),
            };
            if !overlay.put(piece) {
                let area = code.area(site.range.start).ok_or(ReadError::NoCode)?;
                let at = code.place(area, site.range.start);
                let how = "another patch changes a part of the same bytes";
                return Err(ReadError::Patched { section: site.table.clone(), at, how });
            }
        }
        Ok(overlay)
    }
}

/// Bytes in which nothing is relocated.
fn plain(range: &Range<u64>, bytes: Vec<u8>) -> Piece {
    let (wrong, out, numbers) = (Vec::new(), Vec::new(), Vec::new());
    Piece { range: range.clone(), bytes, wrong, out, numbers }
}

/// So many bytes that do nothing, as Linux puts them there.
fn nops(length: u64) -> Vec<u8> {
    /// NOPs of one byte to eight (Intel SDM vol. 2, NOP).
    const NOPS: [&[u8]; 8] = [
        &[0x90],
        &[0x66, 0x90],
        &[0x0F, 0x1F, 0x00],
        &[0x0F, 0x1F, 0x40, 0x00],
        &[0x0F, 0x1F, 0x44, 0x00, 0x00],
        &[0x66, 0x0F, 0x1F, 0x44, 0x00, 0x00],
        &[0x0F, 0x1F, 0x80, 0x00, 0x00, 0x00, 0x00],
        &[0x0F, 0x1F, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    ];
    let (mut bytes, mut left) = (Vec::new(), length as usize);
    while left > 0 {
        let nop = NOPS[left.min(NOPS.len()) - 1];
        bytes.extend(nop);
        left -= nop.len();
    }
    bytes
}

/// A jump of two or five bytes.
fn jump(range: &Range<u64>, target: u64) -> Vec<u8> {
    let by = target.wrapping_sub(range.end);
    match range.end - range.start {
        2 => vec![0xEB, by as u8],
        _ => [&[0xE9][..], &(by as u32).to_le_bytes()].concat(),
    }
}

/// The bytes in the file at an address of code.
fn bytes_at<'data, R: Contents<'data>, const N: usize>(
    code: &FileCode<'_, 'data, R>,
    address: u64,
) -> Option<[u8; N]> {
    let area = code.area(address)?;
    let mut bytes = [0; N];
    let is_within = address.checked_add(N as u64).is_some_and(|end| end <= area.range.end);
    (is_within && code.copy_file(area, address, &mut bytes).is_ok()).then_some(bytes)
}

/// `.altinstructions`: `None` if its entries are of no size that is known, or of several.
fn alternatives<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Option<Vec<Site>> {
    let of_size = |size: usize| -> Option<Vec<Site>> {
        let entry = |at: usize| -> Option<Site> {
            let (site, from) = (table.place(at)?, table.place(at + 4)?);
            let number = table.word(at + 8)?;
            // Since Linux 6.3, flags follow the number; before, a bit of it was one.
            let (number, is_not, lengths) = match size {
                14 => (number, table.word(at + 10)? & 1 != 0, at + 12),
                _ => (number & 0x7FFF, number & 0x8000 != 0, at + 10),
            };
            if size == 14 && table.word(at + 10)? > 1 {
                return None;
            }
            let (length, by) = (table.byte(lengths)?, table.byte(lengths + 1)?);
            let is_code = |start: u64, length: u64| {
                code.area(start).is_some_and(|area| start + length <= area.range.end)
            };
            let has_code = is_code(site, length.into()) && (by == 0 || is_code(from, by.into()));
            if length == 0 || by > length || number >= 32 * 32 || !has_code {
                return None;
            }
            let choice = Choice::Feature(Feature(number));
            Some(Site {
                range: site..site + u64::from(length),
                when: Some((choice, !is_not)),
                to: To::Code(from..from + u64::from(by)),
                table: table.name.clone(),
            })
        };
        table.entries(size)?.map(entry).collect()
    };
    let mut known = [14, 12, 13].into_iter().filter_map(of_size);
    match (known.next(), known.next()) {
        (Some(sites), None) => Some(sites),
        _ => None,
    }
}

/// `.return_sites`: jumps to the thunk of returns.
fn returns<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Option<Vec<Site>> {
    let entry = |at: usize| -> Option<Site> {
        let site = table.place(at)?;
        let is_jump = bytes_at::<R, 5>(code, site)?[0] == 0xE9;
        is_jump.then(|| Site {
            range: site..site + 5,
            when: Some((Choice::ReturnThunk, false)),
            to: To::Return,
            table: table.name.clone(),
        })
    };
    table.entries(4)?.map(entry).collect()
}

/// `.ibt_endbr_seal`: landing pads of functions whose address nobody takes.
fn seals<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Option<Vec<Site>> {
    let entry = |at: usize| -> Option<Site> {
        let site = table.place(at)?;
        // What is no landing pad is left as it is.
        let is_pad = bytes_at::<R, 4>(code, site)? == ENDBR64;
        is_pad.then(|| Site {
            range: site..site + 4,
            when: None,
            to: To::Sealed,
            table: table.name.clone(),
        })
    };
    table.entries(4)?.map(entry).collect()
}

/// `__jump_table`: static branches. Each has two entries here, for either way.
fn branches<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Option<Vec<Site>> {
    /// The place, where it leads, and the key.
    const ENTRY: usize = 16;
    let entry = |at: usize| -> Option<[Site; 2]> {
        let (site, target) = (table.place(at)?, table.place(at + 4)?);
        let length = match bytes_at::<R, 2>(code, site)? {
            [0xEB, _] | [0x66, 0x90] => 2,
            _ => match bytes_at::<R, 5>(code, site)? {
                [0xE9, ..] | [0x0F, 0x1F, 0x44, 0x00, 0x00] => 5,
                _ => return None,
            },
        };
        let range = site..site + length;
        let by = target.wrapping_sub(range.end).cast_signed();
        let is_near =
            if length == 2 { i8::try_from(by).is_ok() } else { i32::try_from(by).is_ok() };
        let area = code.area(site).filter(|area| area.range.contains(&target) && is_near)?;
        let choice = Choice::Branch(code.place(area, site).to_string());
        let way = |is_on, to| Site {
            range: range.clone(),
            when: Some((choice.clone(), is_on)),
            to,
            table: table.name.clone(),
        };
        Some([way(true, To::Jump(target)), way(false, To::Nops)])
    };
    let both: Option<Vec<_>> = table.entries(ENTRY)?.map(entry).collect();
    both.map(|both| both.into_iter().flatten().collect())
}
