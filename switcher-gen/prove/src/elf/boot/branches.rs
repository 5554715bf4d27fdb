//! `__jump_table`: Linux's table of static branches.
//!
//! Linux flips the sites of a key one after the other, whenever it likes, and also while a guest
//! runs. Until the first flip each site is what the file has. So each is a choice by itself, unless
//! it was said that the key stays at one way for good.

use std::collections::BTreeMap;

use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::super::file::{Of, Symbol};
use super::super::table_error::TableError;
use super::bytes::bytes_at;
use super::tables::{Named, Table};
use super::{Choice, Site, To};

/// An entry: the place, where it leads, and the key.
const ENTRY: usize = 16;

/// The static branches of a file, and the keys of those that have one.
pub(super) struct Branches {
    /// Each has two entries here, for either way.
    pub(super) sites: Vec<Site>,
    /// The choice of a key, by the choice of each site of it.
    pub(super) keys: BTreeMap<Choice, Choice>,
}

/// The lowest bits of the key in an entry (Linux, include/linux/jump_label.h).
#[derive(Clone, Copy)]
struct Bits(u64);

impl Bits {
    /// Whether the site jumps if the key is on.
    const fn jumps(self, is_on: bool) -> bool {
        is_on != (self.0 & 1 != 0)
    }

    /// Whether Linux up to 5.13 leaves the site as the file has it.
    const fn may_stay(self) -> bool {
        self.0 & 2 != 0
    }
}

/// `None` if there is something that is no static branch, or two of them share bytes.
pub(super) fn read<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Result<Option<Branches>, ReadError> {
    let Some(entries) = table.entries(ENTRY, &[0, 4], &[8]) else { return Ok(None) };
    let entries: Vec<usize> = entries.collect();
    let mut last = None;
    let mut places: Vec<_> = entries.iter().filter_map(|at| table.place(*at)).collect();
    places.sort_unstable();
    for place in places {
        let end = place.saturating_add(form(code, place).map_or(1, |(length, _)| length));
        if last.replace(end).is_some_and(|last| place < last) {
            return Ok(None);
        }
    }
    let names = names(code, entries.iter().filter_map(|at| Some(table.named(at + 8)?.0)))?;
    let (mut sites, mut keys) = (Vec::new(), BTreeMap::new());
    // Which way a key would be whose sites are what the file has.
    let mut ways: BTreeMap<Choice, bool> = BTreeMap::new();
    for at in entries {
        let (Some(site), Some(target)) = (table.place(at), table.place(at + 4)) else {
            return Ok(None);
        };
        let (Some(area), Some((length, has_jump))) = (code.area(site), form(code, site)) else {
            return Ok(None);
        };
        let range = site..site + length;
        let by = target.wrapping_sub(range.end).cast_signed();
        let is_near =
            if length == 2 { i8::try_from(by).is_ok() } else { i32::try_from(by).is_ok() };
        let place = code.place(area, site);
        let key = table.named(at + 8).and_then(|(key, bits)| {
            let name = names.get(&key)?;
            Some((Choice::Key(name.clone()), Bits(bits)))
        });
        let mut own = (Choice::Branch(place.to_string()), true);
        if let Some((key, bits)) = key {
            keys.insert(own.0.clone(), key.clone());
            // What is said of the key is that it stays so: then it may not need a flip, and each
            // site is what the file has.
            if let Some(is_on) = code.file.request.says(&key) {
                let way = bits.jumps(has_jump);
                let is_mixed = *ways.entry(key.clone()).or_insert(way) != way;
                if is_mixed || bits.may_stay() && bits.jumps(is_on) != has_jump {
                    return Err(TableError::Stays { choice: key.to_string(), at: place }.into());
                }
                own = (key, bits.jumps(true));
            }
        }
        let (choice, if_on) = own;
        let way = |jumps: bool, to| Site {
            range: range.clone(),
            when: Some((choice.clone(), jumps == if_on)),
            to,
            since: None,
            table: table.name.clone(),
        };
        if has_jump && leads(code, site)? != Some(target) {
            let other = "the jump in the file leads elsewhere than the table says, and it is what \
                         runs until the branch is flipped";
            sites.push(Site { when: None, ..way(true, To::Unknown(other)) });
            continue;
        }
        // Where the sections of an object come to lie, a linker decides.
        if area.range.contains(&target) && is_near {
            sites.extend([way(true, To::Jump(target)), way(false, To::Nops)]);
        } else {
            sites.push(Site { when: None, ..way(true, To::Unknown(To::NOT_MODELLED)) });
        }
    }
    Ok(Some(Branches { sites, keys }))
}

/// The length of a site, and whether the file has a jump there.
fn form<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    site: u64,
) -> Option<(u64, bool)> {
    Some(match bytes_at::<R, 2>(code, site)? {
        [0xEB, _] => (2, true),
        [0x66, 0x90] => (2, false),
        _ => match bytes_at::<R, 5>(code, site)? {
            [0xE9, ..] => (5, true),
            [0x0F, 0x1F, 0x44, 0x00, 0x00] => (5, false),
            _ => return None,
        },
    })
}

/// Where the jump of the file leads, if that is known.
fn leads<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    site: u64,
) -> Result<Option<u64>, ReadError> {
    let area = code.area(site).ok_or(ReadError::NoCode)?;
    let glance = code.glance_file(area, site)?;
    let i = glance.instruction(site);
    let is_known = !i.is_invalid() && !glance.is_open(&(site..i.next_ip()));
    Ok(is_known.then(|| i.near_branch_target()))
}

/// What keys are called: as a symbol that lies there, if there is one.
fn names<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    keys: impl Iterator<Item = Named>,
) -> Result<BTreeMap<Named, String>, ReadError> {
    let mut names: BTreeMap<Named, String> = keys.map(|key| (key, String::new())).collect();
    if names.is_empty() {
        return Ok(names);
    }
    let is_object = code.file.is_object();
    let place = |symbol: &Symbol<'data>| match symbol.of {
        Of::Section(section) if is_object => Some(Named::Section(section, symbol.value)),
        Of::Section(_) => Some(Named::Address(symbol.value)),
        _ => None,
    };
    // Of several there, one that all files see goes before others, and the first before the next.
    for is_local in [false, true] {
        for symbol in code.file.symbols() {
            let symbol = symbol?;
            if symbol.name.is_empty() || symbol.is_local() != is_local {
                continue;
            }
            let name = place(&symbol).and_then(|place| names.get_mut(&place));
            if let Some(name) = name.filter(|name| name.is_empty()) {
                *name = symbol.text();
            }
        }
    }
    for (key, name) in names.iter_mut().filter(|(_, name)| name.is_empty()) {
        *name = match key {
            Named::Undefined(symbol, 0) => symbol.clone(),
            Named::Undefined(symbol, by) => format!("{symbol}+{by:#x}"),
            Named::Section(section, by) => {
                let section = code.file.sections.get(*section);
                format!("{}+{by:#x}", section.map_or_else(String::new, |it| it.text()))
            }
            Named::Address(address) => format!("{address:#x}"),
        };
    }
    // A name that two keys share is the name of neither.
    let mut uses: BTreeMap<String, u32> = BTreeMap::new();
    for name in names.values() {
        *uses.entry(name.clone()).or_default() += 1;
    }
    for (number, name) in names.values_mut().enumerate().filter(|(_, name)| uses[*name] > 1) {
        *name = format!("{name} (one of {}: {number})", uses[name]);
    }
    Ok(names)
}
