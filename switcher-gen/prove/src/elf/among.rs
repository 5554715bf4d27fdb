//! Tables among code: in sections that are marked as executable, or between instructions.
//!
//! Linux finds its tables by name, and a compiler puts none among code. Who writes assembly can: a
//! distance from the same section leaves no relocation, so that only the bytes tell of it. What is
//! an operand of an instruction is none, and for large amounts of code the rest says nothing: some of
//! it would be such a distance by chance.

use iced_x86::{Decoder, DecoderOptions, OpKind};

use super::code::Code;
use super::error::ReadError;
use super::file::Contents;
use super::reached::Reached;
use super::relocation::Relocation;

/// So many bytes are looked through for distances. In more, chance finds some.
pub(super) const FEW: u64 = 1 << 16;
/// As many bytes as can be in front of an operand in its instruction.
const IN_FRONT: u64 = 11;

/// What there is beside the reached code of a section.
pub(super) enum Found {
    Nothing,
    /// A word that is the distance to the instruction at this address.
    Table(u64),
    /// More than can be told.
    TooLarge,
}

/// Whether it is the reached code itself that is relocated there.
pub(super) fn is_reached_code<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    section: usize,
    offset: u64,
    reached: &Reached<'_>,
) -> bool {
    let at = code.address_in(section, 0).map(|start| start.wrapping_add(offset));
    at.is_some_and(|at| reached.first(at, 1).is_some())
}

/// Whether what is relocated is an operand: of a branch, or the address of what others may well refer
/// to.
pub(super) fn is_operand<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    section: usize,
    relocation: &Relocation,
    symbol: u64,
    reached: &Reached<'_>,
) -> bool {
    let Some(area) = code.area_of(section) else { return false };
    let before = relocation.offset.min(IN_FRONT);
    let start = area.range.start.wrapping_add(relocation.offset - before);
    if !area.range.contains(&start) {
        return false;
    }
    let length = (area.range.end - start).min(IN_FRONT + 15);
    let mut bytes = [0; 26];
    let bytes = &mut bytes[..length as usize];
    if code.copy(area, start, bytes).is_err() {
        return false;
    }
    let exact = symbol.wrapping_add_signed(relocation.addend.unwrap_or_default());
    (1..=before as usize).any(|ahead| {
        let from = before as usize - ahead;
        let mut decoder = Decoder::new(64, &bytes[from..], DecoderOptions::NONE);
        let i = decoder.decode();
        let fields = decoder.get_constant_offsets(&i);
        let is_displacement =
            fields.displacement_offset() == ahead && fields.displacement_size() == 4;
        let is_immediate = fields.immediate_offset() == ahead && fields.immediate_size() >= 4;
        if i.is_invalid() || !(is_displacement || is_immediate) {
            return false;
        }
        let behind = if relocation.is_relative() { (i.len() - ahead) as u64 } else { 0 };
        i.op0_kind() == OpKind::NearBranch64 || reached.is_named(exact.wrapping_add(behind))
    })
}

/// Whether a distance behind these bytes is that of a call or a jump.
pub(super) fn ends_a_branch(before: &[u8]) -> bool {
    matches!(before, [.., 0xE8 | 0xE9] | [.., 0x0F, 0x80..=0x8F])
}

/// Looks through what is not reached of a section of code.
pub(super) fn search<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    section: usize,
    reached: &Reached<'_>,
) -> Result<Found, ReadError> {
    let Some(area) = code.area_of(section) else { return Ok(Found::Nothing) };
    if reached.instructions.is_empty() || !code.section(area).has_bytes() {
        return Ok(Found::Nothing);
    }
    let (mut gaps, mut next) = (Vec::new(), area.range.start);
    for range in reached.ranges.iter().filter(|range| area.range.contains(&range.start)) {
        gaps.push(next..range.start);
        next = range.end;
    }
    gaps.push(next..area.range.end.max(next));
    if gaps.iter().map(|gap| gap.end.saturating_sub(gap.start)).sum::<u64>() > FEW {
        return Ok(Found::TooLarge);
    }
    for gap in gaps.into_iter().filter(|gap| !gap.is_empty()) {
        let mut bytes = vec![0; (gap.end - gap.start) as usize];
        code.copy(area, gap.start, &mut bytes)?;
        if let Some(found) = distance(&bytes, gap.start, reached) {
            return Ok(Found::Table(found));
        }
    }
    Ok(Found::Nothing)
}

/// The first instruction whose distance or address stands in `bytes`, which are at `start`, where
/// data could begin, and is no operand.
fn distance(bytes: &[u8], start: u64, reached: &Reached<'_>) -> Option<u64> {
    let (mut begins, mut is_operand) = (vec![false; bytes.len()], vec![false; bytes.len()]);
    let mut at = 0;
    while at < bytes.len() {
        begins[at] = true;
        let mut decoder = Decoder::new(64, &bytes[at..], DecoderOptions::NONE);
        let i = decoder.decode();
        if i.is_invalid() {
            at += 1;
            continue;
        }
        let fields = decoder.get_constant_offsets(&i);
        for (offset, size) in [
            (fields.displacement_offset(), fields.displacement_size()),
            (fields.immediate_offset(), fields.immediate_size()),
        ] {
            if size >= 4 {
                is_operand[at + offset..at + offset + size].fill(true);
            }
        }
        at += i.len();
    }
    let is_site = |address: &u64| reached.instructions.binary_search(address).is_ok();
    (0..bytes.len().saturating_sub(3)).find_map(|at| {
        let address = start + at as u64;
        let may_begin = begins[at] || address.is_multiple_of(4);
        if !may_begin || is_operand[at..at + 4].contains(&true) {
            return None;
        }
        let dword = bytes[at..].first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
        let relative = dword.map(|by| address.wrapping_add_signed(by.into()));
        let qword = bytes[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let relative = relative.filter(|at| is_site(at) && !reached.entries.contains(at));
        relative.or(qword.filter(|at| is_site(at) && !reached.is_named(*at)))
    })
}
