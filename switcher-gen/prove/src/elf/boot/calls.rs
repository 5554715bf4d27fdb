//! `.call_sites`: the calls of a kernel that counts how deep they are, for the sake of returns.
//!
//! What counts is put in front of each routine that a named call leads to, over the NOPs that a
//! compiler leaves there, and the call then leads to that (Linux, arch/x86/kernel/callthunks.c).

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{Mnemonic, OpKind};

use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::super::table_error::TableError;
use super::tables::Table;
use super::{Choice, Near, Site, To};

/// How much there is in front of a routine at most.
const ROOM: u64 = 16;
/// No entry of an alternative changes more.
const LONGEST: u64 = 255;

/// What is in front of what a named call leads to, of what may be reached, and the table.
pub(super) fn fronts<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    sites: &[Site],
    near: &Near<'_>,
) -> Result<Vec<(Range<u64>, String)>, ReadError> {
    let named = |name: &String| name.contains("call_sites") && !name.contains("static_call");
    let sections = code.file.sections.iter().filter(|section| section.size > 0);
    let tables: BTreeSet<String> = sections.map(|it| it.text()).filter(named).collect();
    let mut moved: Vec<(Range<u64>, u64)> = Vec::new();
    for site in sites.iter().filter(|_| !tables.is_empty()) {
        if let To::Code(from, _) = &site.to {
            moved.push((site.range.clone(), from.start));
        }
    }
    moved.sort_by_key(|(range, _)| range.start);
    let mut fronts = Vec::new();
    for name in tables {
        let unreadable = || TableError::Unreadable { section: name.clone() };
        let table = Table::read(code, &name)?.ok_or_else(unreadable)?;
        let entries = table.entries(4, &[0], &[]).ok_or_else(unreadable)?;
        for place in entries.filter_map(|at| table.place(at)) {
            // A call that is put there is one, too.
            let first =
                moved.partition_point(|(range, _)| range.start.saturating_add(LONGEST) < place);
            let there = moved[first..].iter().take_while(|(range, _)| range.start <= place);
            let there = there.filter(|(range, _)| range.contains(&place));
            let sources = there.map(|(range, from)| from.wrapping_add(place - range.start));
            for at in std::iter::once(place).chain(sources) {
                let Some(target) = called(code, at)? else { continue };
                let front = target.saturating_sub(ROOM)..target;
                if near.is_home(&front) && has_room(code, target) {
                    fronts.push((front, name.clone()));
                }
            }
        }
    }
    fronts.sort_by_key(|(front, _)| front.start);
    fronts.dedup();
    Ok(fronts)
}

/// Where a direct call leads, if there is one, and if that is in the file.
fn called<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    at: u64,
) -> Result<Option<u64>, ReadError> {
    let Some(area) = code.area(at) else { return Ok(None) };
    let glance = code.glance_file(area, at)?;
    let i = glance.instruction(at);
    if i.mnemonic() != Mnemonic::Call || i.op0_kind() != OpKind::NearBranch64 {
        return Ok(None);
    }
    let touching = code.touching(area, &(i.ip()..i.next_ip()))?;
    let Some(relocation) = touching.last() else { return Ok(Some(i.near_branch_target())) };
    // Whatever else is wrong with it.
    let Some((section, value, _)) = code.file.refers_to(relocation)? else { return Ok(None) };
    let by = relocation.addend.unwrap_or_default().wrapping_add(4);
    let start = code.address_in(section, 0);
    Ok(start.map(|start| start.wrapping_add(value).wrapping_add_signed(by)))
}

/// Whether there may be NOPs in front of a routine, as Linux wants them. None ends in another byte.
fn has_room<'data, R: Contents<'data>>(code: &FileCode<'_, 'data, R>, target: u64) -> bool {
    let Some(last) = target.checked_sub(1) else { return false };
    let Some(area) = code.area(last) else { return false };
    let mut byte = [0];
    let is_read = code.copy_file(area, last, &mut byte).is_ok();
    is_read && matches!(byte, [0x90 | 0x00])
}

/// Refuses what these ranges, which are in order, have in front of what is called. Says whether it
/// is left alone only because it was said that nothing counts calls.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    fronts: &[(Range<u64>, String)],
    ranges: &[Range<u64>],
) -> Result<bool, ReadError> {
    for (front, section) in fronts {
        let first = ranges.partition_point(|range| range.end <= front.start);
        let Some(range) = ranges.get(first).filter(|range| range.start < front.end) else {
            continue;
        };
        if code.file.request.says(&Choice::CallDepth) == Some(false) {
            return Ok(true);
        }
        let at = range.start.max(front.start);
        let area = code.area(at).ok_or(ReadError::NoCode)?;
        let (section, at) = (section.clone(), code.place(area, at));
        return Err(TableError::Padding { section, at }.into());
    }
    Ok(false)
}
