//! Bytes: those that are there, and what Linux puts over code where it is no code of the file's.

use std::ops::Range;

use super::super::code::FileCode;
use super::super::contents::Contents;
use super::super::overlay::Piece;

/// The bytes of ENDBR64.
pub(super) const ENDBR64: [u8; 4] = [0xF3, 0x0F, 0x1E, 0xFA];
/// What Linux puts over it: a NOP that nothing else is.
pub(super) const SEALED: [u8; 4] = [0x66, 0x0F, 0x1F, 0x00];

/// The bytes in the file at an address of code.
pub(super) fn bytes_at<'data, R: Contents<'data>, const N: usize>(
    code: &FileCode<'_, 'data, R>,
    address: u64,
) -> Option<[u8; N]> {
    let area = code.area(address)?;
    let mut bytes = [0; N];
    let is_within = address.checked_add(N as u64).is_some_and(|end| end <= area.range.end);
    (is_within && code.copy_file(area, address, &mut bytes).is_ok()).then_some(bytes)
}

/// Bytes in which nothing is relocated.
pub(super) fn plain(range: &Range<u64>, bytes: Vec<u8>) -> Piece {
    let (wrong, out, numbers) = (Vec::new(), Vec::new(), Vec::new());
    Piece { range: range.clone(), bytes, wrong, out, numbers }
}

/// So many bytes that do nothing, as Linux puts them there.
pub(super) fn nops(length: u64) -> Vec<u8> {
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
pub(super) fn jump(range: &Range<u64>, target: u64) -> Vec<u8> {
    let by = target.wrapping_sub(range.end);
    match range.end - range.start {
        2 => vec![0xEB, by as u8],
        _ => [&[0xE9][..], &(by as u32).to_le_bytes()].concat(),
    }
}
