//! The code of an alternative, moved to where it runs: distances to what lies elsewhere are
//! corrected by how far it was moved, as Linux does.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, OpKind};

use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::error::ReadError;
use super::super::leads::Use;
use super::super::overlay::Piece;
use super::bytes::{nops, plain};
use super::opcode::{is_long_jump, is_read_alike};

/// Which distances Linux corrects when it moves code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Corrected {
    /// All that lead out of it: since 6.5.
    All,
    /// Before, that of a call or a jump of five bytes which is all there is, wherever it leads.
    First,
}

/// The first byte of a jump by a distance of one byte.
const SHORT_JUMP: u8 = 0xEB;

/// Whether all versions of Linux make the same of code once they have moved it.
pub(super) fn is_moved_alike<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    from: &Range<u64>,
    to: &Range<u64>,
) -> Result<bool, ReadError> {
    let moved = |corrected| moved(code, from, to, corrected);
    Ok(match (moved(Corrected::First), moved(Corrected::All)) {
        (Ok(first), Ok(all)) => first.bytes == all.bytes,
        // What the newest versions cannot make is refused anyway.
        (_, Err(_)) => true,
        (Err(_), Ok(_)) => false,
    })
}

/// The code at `from` as it is once it has been moved to `to`, and NOPs up to its end.
pub(super) fn moved<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    from: &Range<u64>,
    to: &Range<u64>,
    corrected: Corrected,
) -> Result<Piece, ReadError> {
    let mut piece = plain(to, Vec::new());
    let home = code.area(to.start).ok_or(ReadError::NoCode)?;
    let mut at = from.start;
    while at < from.end {
        let area = code.area(at).ok_or(ReadError::NoCode)?;
        let wrong = |how| {
            let section = code.section(area).text();
            Err(ReadError::Patched { section, at: code.place(home, to.start), how })
        };
        let glance = code.glance(area, at)?;
        let bytes = &glance.bytes[..glance.len.min((from.end - at) as usize)];
        let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
        let i = decoder.decode();
        if i.is_invalid() {
            return wrong("what is put there is no instruction");
        }
        if !is_read_alike(&bytes[..i.len()], at) {
            return wrong(
                "Linux may read an instruction that is put there as another one, or as one of another \
                 length (write it as assemblers do)",
            );
        }
        let fields = decoder.get_constant_offsets(&i);
        let here = to.start + (at - from.start);
        let mut own = bytes[..i.len()].to_vec();
        let target = if i.op0_kind() == OpKind::NearBranch64 {
            Some((i.near_branch_target(), fields.immediate_offset(), fields.immediate_size()))
        } else if i.is_ip_rel_memory_operand() {
            let (offset, size) = (fields.displacement_offset(), fields.displacement_size());
            Some((i.ip_rel_memory_address(), offset, size))
        } else {
            None
        };
        let is_first = corrected == Corrected::First;
        // Linux makes it a short one, by a distance that it has not corrected, if that fits.
        let is_within =
            |(target, ..): (u64, usize, usize)| (from.start..=from.end).contains(&target);
        if !is_first && is_long_jump(&own) && target.is_some_and(is_within) {
            return wrong(
                "a jump of five bytes that is put there leads to what is put there as well, and Linux \
                 6.5 and later may shorten it by a distance that is wrong (write a short jump)",
            );
        }
        // It makes a short one of it by what the lengths without a prefix differ in.
        if !is_first && is_long_jump(&own) && own.len() != 5 {
            return wrong(
                "a jump with a prefix that is put there may be shortened by Linux 6.5 and later, by a \
                 distance that is wrong (write it without)",
            );
        }
        // Of five bytes that begin like a jump of two, it takes four for a distance.
        if is_first && at == from.start && from.end - from.start == 5 && bytes[0] == SHORT_JUMP {
            return wrong(
                "this version of Linux takes a short jump that is put there for a long one",
            );
        }
        let is_all = at == from.start && i.next_ip() == from.end && i.len() == 5;
        let is_branch =
            matches!(i.flow_control(), FlowControl::UnconditionalBranch | FlowControl::Call);
        let is_only = is_all && is_branch;
        // Its own end is a place within it, but not to who corrects whatever is there.
        let is_outside =
            |target: u64| is_first && is_only || !(from.start..=from.end).contains(&target);
        let leaves = target.filter(|(target, ..)| is_outside(*target));
        let is_corrected = !is_first || is_only;
        if leaves.is_some() && !is_corrected {
            return wrong("this version of Linux does not correct a distance that is put there");
        }
        if let Some((target, offset, size)) = leaves {
            let by = target.wrapping_sub(here + i.len() as u64).cast_signed();
            match i32::try_from(by) {
                Ok(by) if size == 4 => own[offset..offset + 4].copy_from_slice(&by.to_le_bytes()),
                _ => return wrong("what is put there leads further than its distance can"),
            }
        }
        let end = at + i.len() as u64;
        let there = |field: &Range<u64>| field.start - at + here..field.end - at + here;
        let within = |field: &Range<u64>| field.start < end;
        // A distance to its own end is the same wherever both lie.
        let is_own = target.is_some() && leaves.is_none();
        piece.wrong.extend(
            glance
                .wrong
                .into_iter()
                .filter(|(field, _)| within(field))
                .map(|(f, e)| (there(&f), e)),
        );
        for (field, out) in glance.out.into_iter().filter(|(field, _)| within(field)) {
            // What was in another section is in its own now.
            let leads_home = out.use_ == Use::Branch
                && target.is_some_and(|(target, ..)| home.range.contains(&target));
            if !leads_home && !is_own {
                piece.out.push((there(&field), out));
            }
        }
        if !is_own {
            piece.numbers.extend(glance.numbers.iter().filter(|f| within(f)).map(there));
        }
        piece.bytes.extend(own);
        at = end;
    }
    let left = (to.end - to.start).saturating_sub(piece.bytes.len() as u64);
    piece.bytes.extend(nops(left));
    Ok(piece)
}

/// What Linux makes of code that it leaves: of NOPs of a byte that follow each other, fewer.
pub(super) fn fewer_nops<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    range: &Range<u64>,
) -> Result<Vec<Piece>, ReadError> {
    /// The shortest NOP.
    const NOP: u8 = 0x90;
    let area = code.area(range.start).ok_or(ReadError::NoCode)?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    code.copy(area, range.start, &mut bytes)?;
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let run = bytes[at..].iter().take_while(|byte| **byte == NOP).count();
        if run > 1 {
            let start = range.start + at as u64;
            pieces.push(plain(&(start..start + run as u64), nops(run as u64)));
        }
        let mut decoder = Decoder::new(64, &bytes[at..], DecoderOptions::NONE);
        at += run.max(decoder.decode().len()).max(1);
    }
    Ok(pieces)
}
