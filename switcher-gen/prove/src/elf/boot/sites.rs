//! Linux's tables of returns and landing pads.

use std::ops::Range;

use super::super::code::{Area, FileCode};
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::super::file::Of;
use super::super::front;
use super::bytes::{ENDBR64, bytes_at};
use super::tables::Table;
use super::{Choice, Near, Site, To};
use iced_x86::OpKind;

/// The thunk of returns, by Linux's name of it, and by ours.
const THUNKS: [&[u8]; 2] = [b"__x86_return_thunk", b"switcher_host_return_thunk"];

/// `.return_sites`: jumps to the thunk of returns, of those that are near. Linux leaves any other
/// jump as it is.
pub(super) fn returns<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
    near: &Near<'_>,
) -> Result<Option<Vec<Site>>, ReadError> {
    /// A jump of 32 bits.
    const LENGTH: u64 = 5;
    let Some(entries) = table.entries(4, &[0], &[]) else { return Ok(None) };
    let mut thunks = Vec::new();
    for symbol in code.file.called(&THUNKS) {
        let symbol = symbol?;
        // Linux compares with the one that all files see.
        if THUNKS.contains(&symbol.name) && !symbol.is_local() {
            thunks.extend(code.address(&symbol));
        }
    }
    let mut sites = Vec::new();
    for at in entries {
        let Some(site) = table.place(at) else { return Ok(None) };
        let is_code = |area: &Area| site + LENGTH <= area.range.end;
        if !code.area(site).is_some_and(is_code) {
            return Ok(None);
        }
        if !near.has(&(site..site + LENGTH)) {
            continue;
        }
        if may_be_trampoline(code, site)? {
            let how = "what is five bytes after it is the mark of a trampoline for static calls, so \
                       that Linux writes five bytes there, whatever they are";
            sites.push(Site {
                range: site..site + LENGTH,
                when: None,
                to: To::Unknown(how),
                since: None,
                table: table.name.clone(),
            });
            continue;
        }
        let Some(bytes) = bytes_at::<R, 5>(code, site) else { return Ok(None) };
        let is_jump = bytes[0] == 0xE9;
        if is_jump && leads_to_thunk(code, site..site + LENGTH, &thunks)? {
            sites.push(Site {
                range: site..site + LENGTH,
                when: Some((Choice::ReturnThunk, false)),
                to: To::Return,
                since: None,
                table: table.name.clone(),
            });
        }
    }
    Ok(Some(sites))
}

/// Refuses a jump to the thunk that no `.return_sites` names, where returns are to be untrained:
/// Linux makes another jump of those that are named, and leaves the plain thunk, which is a RET, to
/// all others. The `instructions` are reached.
pub(super) fn check_named<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    sites: &[Site],
    instructions: &[u64],
) -> Result<(), ReadError> {
    const LINUXS: &str = "__x86_return_thunk";
    let request = &code.file.request;
    let is_mapped = request.theirs("switcher_host_return_thunk") == LINUXS;
    let is_linuxs = |name: &[u8]| name == LINUXS.as_bytes() || is_mapped && THUNKS.contains(&name);
    let mut thunks = Vec::new();
    for symbol in code.file.called(&[LINUXS.as_bytes(), THUNKS[1]]) {
        let symbol = symbol?;
        thunks.extend(is_linuxs(symbol.name).then(|| code.address(&symbol)).flatten());
    }
    for at in instructions {
        let is_named = |site: &Site| matches!(site.to, To::Return) && site.range.start == *at;
        let Some(area) = code.area(*at) else { continue };
        let i = code.glance_file(area, *at)?.instruction(*at);
        if i.op0_kind() != OpKind::NearBranch64 {
            continue;
        }
        let mut leads_there = thunks.contains(&i.near_branch_target());
        for relocation in code.touching(area, &(*at..i.next_ip()))? {
            leads_there |= is_linuxs(code.file.symbol_by_index(relocation.symbol)?.name);
        }
        if leads_there && !sites.iter().any(is_named) {
            let why = format!(
                "jumps to the return thunk at {}, which `.return_sites` does not name, so that Linux leaves it as it \
                 is: it leads to a plain RET, which is not untrained (run objtool on the file first)",
                code.place(area, *at)
            );
            return Err(ReadError::Section { section: code.section(area).text(), why });
        }
    }
    Ok(())
}

/// Whether Linux may take a return for the trampoline of a static call, which it knows by the UD1
/// behind it (arch/x86/kernel/static_call.c, `__static_call_fixup`).
fn may_be_trampoline<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    site: u64,
) -> Result<bool, ReadError> {
    const MARK: [u8; 3] = [0x0F, 0xB9, 0xCC];
    let start = site.saturating_add(5);
    let Some(area) = code.area(start) else { return Ok(false) };
    let glance = code.glance_file(area, start)?;
    let bytes = glance.bytes[..glance.len].iter().zip(start..);
    // What a linker puts there is not known.
    let may_be =
        |((byte, at), mark): ((&u8, u64), &u8)| byte == mark || glance.is_open(&(at..at + 1));
    Ok(glance.len >= MARK.len() && bytes.zip(&MARK).all(may_be))
}

/// Whether a jump of 32 bits leads to the thunk, by its symbol or by its address.
fn leads_to_thunk<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    jump: Range<u64>,
    thunks: &[u64],
) -> Result<bool, ReadError> {
    let Some(area) = code.area(jump.start) else { return Ok(false) };
    let field = jump.start + 1..jump.end;
    if let [relocation] = code.touching(area, &field)?.as_slice() {
        let symbol = code.file.symbol_by_index(relocation.symbol)?;
        let is_plain = relocation.addend == Some(-4) && relocation.is_relative();
        if THUNKS.contains(&symbol.name) && symbol.of == Of::Undefined {
            return Ok(is_plain && !symbol.is_weak());
        }
    }
    let glance = code.glance_file(area, jump.start)?;
    let by = glance.bytes[1..].first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
    let to = by.map(|by| jump.end.wrapping_add_signed(by.into()));
    let is_whole = glance.wrong.iter().all(|(wrong, _)| wrong.start >= jump.end);
    Ok(is_whole && to.is_some_and(|to| thunks.contains(&to)))
}

/// `.ibt_endbr_seal`: landing pads of functions whose address nobody takes.
pub(super) fn seals<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &Table,
) -> Result<Option<Vec<Site>>, ReadError> {
    let entry = |at: usize| -> Option<Site> {
        let site = table.place(at)?;
        let range = site..site.checked_add(4)?;
        let is_plain = code.touching(code.area(site)?, &range).is_ok_and(|all| all.is_empty());
        let is_pad = bytes_at::<R, 4>(code, site)? == ENDBR64 && is_plain;
        let other = "it is not ENDBR64 there, and it depends on the version of Linux what is \
                     taken for one, and what is put there";
        Some(Site {
            range,
            when: None,
            to: if is_pad { To::Sealed } else { To::Unknown(other) },
            since: None,
            table: table.name.clone(),
        })
    };
    let Some(entries) = table.entries(4, &[0], &[]) else { return Ok(None) };
    Ok(entries.map(entry).collect())
}

/// What a kernel with FineIBT may change in front of landing pads: what is there by its own
/// compiler, and where functions are aligned to more, the hash further in front, if there is one.
pub(super) fn fronts<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    sites: &[Site],
    near: &Near<'_>,
) -> Vec<(Range<u64>, String)> {
    let mut fronts = Vec::new();
    // The sites of one table stand together, and there are many.
    for pads in sites.chunk_by(|one, next| one.table == next.table) {
        let bytes = pads.first().map_or(0, |site| front::bytes(&site.table));
        let pads = pads.iter().filter(|_| bytes > 0);
        for pad in pads {
            let ranges = in_front(code, pad.range.start, bytes).filter(|it| near.is_home(it));
            fronts.extend(ranges.map(|range| (range, pad.table.clone())));
        }
    }
    fronts
}

/// What may be changed in front of a landing pad that has so many bytes of its own there.
fn in_front<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    start: u64,
    bytes: u64,
) -> impl Iterator<Item = Range<u64>> {
    /// Where the hash is in such kernels: `mov $hash, %r32`.
    const HASHES: [u64; 2] = [32, 64];
    const MOV: u64 = 5;
    let hashes = HASHES.into_iter().filter_map(move |by| {
        let at = start.checked_sub(by)?;
        let is_mov = matches!(bytes_at::<R, 1>(code, at)?, [0xB8..=0xBF]);
        is_mov.then_some(at..at + MOV)
    });
    std::iter::once(start.saturating_sub(bytes)..start).chain(hashes)
}
