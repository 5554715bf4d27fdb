//! Tables among code: in sections that are marked as executable, or between instructions.
//!
//! Linux finds its tables by name, and a compiler puts none among code. An author of assembly can:
//! a distance within a section leaves no relocation, so that only the bytes show it. The operand of
//! an instruction is no entry of a table. In a large amount of code the search says nothing,
//! because some words would be such distances by chance.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind};

use super::code::FileCode;
use super::contents::Contents;
use super::error::ReadError;
use super::reached::Reached;
use super::relocation::Relocation;

/// How many bytes are searched for distances. In more bytes, some would be found by chance.
pub(super) const FEW: u64 = 1 << 16;
/// How many bytes can stand in front of an operand in its instruction.
const IN_FRONT: u64 = 11;

/// What a section holds beside the reached code.
pub(super) enum Beside {
    Nothing,
    /// A word that is the distance to the instruction at this address.
    Table(u64),
    /// The section is too large to be searched.
    TooLarge,
}

/// Whether the relocation at this place changes the reached code itself.
pub(super) fn is_reached_code<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    section: usize,
    offset: u64,
    reached: &Reached<'_>,
) -> bool {
    let at = code.address_in(section, 0).map(|start| start.wrapping_add(offset));
    at.is_some_and(|at| reached.first(at, 1).is_some())
}

/// Whether the relocated word is an operand: the distance of a branch, or an address that other
/// code may well refer to.
pub(super) fn is_operand<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
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

/// Whether a distance after these bytes is that of a call or a jump.
pub(super) fn ends_a_branch(before: &[u8]) -> bool {
    matches!(before, [.., 0xE8 | 0xE9] | [.., 0x0F, 0x80..=0x8F])
}

/// Searches the part of a section of code that is not reached.
pub(super) fn search<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    section: usize,
    reached: &Reached<'_>,
) -> Result<Beside, ReadError> {
    let Some(area) = code.area_of(section) else { return Ok(Beside::Nothing) };
    if reached.instructions.is_empty() || !code.section(area).has_bytes() {
        return Ok(Beside::Nothing);
    }
    let (mut gaps, mut next) = (Vec::new(), area.range.start);
    for range in reached.ranges.iter().filter(|range| area.range.contains(&range.start)) {
        gaps.push(next..range.start);
        next = range.end;
    }
    gaps.push(next..area.range.end.max(next));
    if gaps.iter().map(|gap| gap.end.saturating_sub(gap.start)).sum::<u64>() > FEW {
        return Ok(Beside::TooLarge);
    }
    for gap in gaps.into_iter().filter(|gap| !gap.is_empty()) {
        let mut bytes = vec![0; (gap.end - gap.start) as usize];
        code.copy(area, gap.start, &mut bytes)?;
        if let Some(found) = distance(&bytes, gap.start, reached) {
            return Ok(Beside::Table(found));
        }
    }
    Ok(Beside::Nothing)
}

/// Bytes as the instructions that they would be, one after the other.
pub(super) struct Stream {
    /// Where instructions begin.
    begins: Vec<bool>,
    /// Which bytes are an operand, or a part of what does nothing.
    is_operand: Vec<bool>,
}

impl Stream {
    pub(super) fn of(bytes: &[u8]) -> Self {
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
            if i.mnemonic() == Mnemonic::Nop && i.len() >= 4 {
                is_operand[at..at + i.len()].fill(true);
            }
            at += i.len();
        }
        Self { begins, is_operand }
    }

    /// Whether some of the four bytes there are an operand.
    pub(super) fn is_operand(&self, at: usize) -> bool {
        let end = (at + 4).min(self.is_operand.len());
        self.is_operand.get(at..end).is_some_and(|bytes| bytes.contains(&true))
    }
}

/// The first instruction whose distance or address stands in `bytes` and is no operand. The bytes
/// lie at `start`, where data could begin.
fn distance(bytes: &[u8], start: u64, reached: &Reached<'_>) -> Option<u64> {
    let Stream { begins, is_operand } = Stream::of(bytes);
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
