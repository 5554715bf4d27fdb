//! Where instructions begin in a place that Linux changes.
//!
//! Linux writes other bytes with the same meaning: a longer NOP for several, a short jump for a
//! long one. They mean the same only to who executes them from where Linux begins to read them, one
//! after the other.

use std::ops::Range;

use iced_x86::Mnemonic;
use switcher_model::Changed;

use super::super::choice::Choices;
use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::opcode::{is_read_alike, is_taken_for_nop};
use super::{Site, To};

/// No place is longer than this: its length has one byte.
const LONGEST: u64 = 255;
/// No instruction is longer.
const INSTRUCTION: u64 = 15;

/// Refuses what is executed other than from where an instruction begins in what is changed, and
/// what begins or ends in the middle of one. The `sites` are reached, and `instructions` begin
/// there and elsewhere, in order. Where a computed jump leads is not known here: whoever follows it
/// goes by what is returned.
pub(super) fn check<'s, 'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    sites: impl Iterator<Item = &'s Site>,
    instructions: &[u64],
    made: &Choices,
) -> Result<Vec<Changed>, ReadError> {
    let mut changed = Vec::new();
    let mut sites: Vec<&Site> = sites.collect();
    sites.sort_by_key(|site| site.range.start);
    for site in &sites {
        let Range { start, end } = site.range;
        let is_over = |other: &&&Site| {
            let is_longer = other.range.end - other.range.start > end - start;
            is_longer && end <= other.range.end && other.is_made(made) == Some(true)
        };
        // Something else runs there than what this one makes of it.
        let first =
            sites.partition_point(|other| other.range.start.saturating_add(LONGEST) < start);
        let before = sites[first..].iter().take_while(|other| other.range.start <= start);
        if before.filter(|other| matches!(other.to, To::Code(..))).any(|other| is_over(&other)) {
            continue;
        }
        let (begins, entries) = begins(code, site)?;
        let first = instructions.partition_point(|at| at.saturating_add(INSTRUCTION) <= start);
        let near = instructions[first..].iter().copied().take_while(|at| *at < end);
        for at in near {
            let next = at.saturating_add(length(code, at)?);
            let is_right = match at < start {
                true => next <= start,
                false => next <= end && begins.binary_search(&at).is_ok(),
            };
            if !is_right {
                let how = "code is executed from, or over, the middle of an instruction that is \
                           changed there, and not all versions of Linux put the same bytes there";
                return Err(site.refused(code, how)?);
            }
        }
        if matches!(site.to, To::Sealed) && instructions.binary_search(&start).is_err() {
            let how = "what is sealed there is read as data, or is no ENDBR64 that is executed: versions \
                       of Linux put different bytes in its place";
            return Err(site.refused(code, how)?);
        }
        changed.push(Changed { range: start..end, begins, entries });
    }
    changed.dedup();
    Ok(changed)
}

/// Where instructions begin, read one after the other as Linux does; and which of them stay where
/// they are, whatever Linux makes of the NOPs: those that come after no NOP, and after no jump,
/// which some versions take for a part of the NOPs behind it.
fn begins<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    site: &Site,
) -> Result<(Vec<u64>, Vec<u64>), ReadError> {
    let (mut begins, mut entries, mut at) = (Vec::new(), Vec::new(), site.range.start);
    let mut is_merged = false;
    while at < site.range.end {
        let area = code.area(at).ok_or(ReadError::NoCode)?;
        let glance = code.glance(area, at)?;
        let i = glance.instruction(at);
        if i.is_invalid() {
            break;
        }
        let is_read = matches!(site.to, To::Code(..));
        if is_read && is_taken_for_nop(&glance.bytes[..i.len()], &i) {
            let how = "Linux takes an instruction there for a NOP by its opcode, and it is not one";
            return Err(site.refused(code, how)?);
        }
        if is_read && !is_read_alike(&glance.bytes[..i.len()], at) {
            let how = "Linux may read an instruction there as another one, or as one of another \
                       length: write it as assemblers do";
            return Err(site.refused(code, how)?);
        }
        begins.push(at);
        entries.extend((!is_merged).then_some(at));
        is_merged = matches!(i.mnemonic(), Mnemonic::Nop | Mnemonic::Jmp);
        at += i.len() as u64;
    }
    Ok((begins, entries))
}

/// How many bytes are executed at an address.
fn length<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    at: u64,
) -> Result<u64, ReadError> {
    let area = code.area(at).ok_or(ReadError::NoCode)?;
    let glance = code.glance(area, at)?;
    let i = glance.instruction(at);
    Ok(if i.is_invalid() { 1 } else { i.len() as u64 })
}
