//! Changed instructions, assembled again: every jump still leads to its instruction.

use std::collections::HashMap;
use std::ops::Range;

use iced_x86::{BlockEncoder, BlockEncoderOptions, Instruction, InstructionBlock};

use crate::gate::TargetGate;
use crate::mutate::listing::Listing;
use crate::target::Target;

impl Listing {
    /// The code with these instructions; what led to an instruction leads there still. `None` if
    /// there is no such code.
    pub(crate) fn assemble(
        &self,
        instructions: &[Instruction],
        shift: Option<(u64, u64)>,
    ) -> Option<Target> {
        let base = self.target.program.base();
        let (mut pieces, mut moved) = (Vec::from([(base, Vec::new())]), HashMap::new());
        for block in self.encode(instructions, shift)? {
            extend(&mut pieces, block.rip);
            if let Some((_, bytes)) = pieces.last_mut() {
                bytes.extend(block.bytes);
            }
            moved.extend(block.places);
        }
        // The end of a piece may be filler.
        let last = self.target.program.end();
        let after = |(start, bytes): &(u64, Vec<u8>)| *start + bytes.len() as u64;
        if pieces.last().is_some_and(|piece| (after(piece)..=after(piece) + GAP).contains(&last)) {
            extend(&mut pieces, last);
        }
        let end = pieces.last().map_or(base, after);
        let place = |old: u64| moved.get(&old).copied();
        // A window ends after an instruction.
        let boundary = |old: u64| {
            let next = instructions.iter().map(Instruction::ip).filter(|ip| *ip >= old).min();
            next.and_then(place).unwrap_or(end)
        };
        let target = &self.target;
        let moved = |range: &Range<u64>| boundary(range.start)..boundary(range.end);
        let windows = target.windows.iter();
        let windows = windows.map(|(window, all)| (*window, all.iter().map(moved).collect()));
        let windows = windows.collect();
        let gates = target.gates.as_ref().map(|gates| {
            let moved = |gate: &TargetGate| {
                let address = place(gate.address)?;
                Some(TargetGate { address, ..*gate })
            };
            gates.iter().filter_map(moved).collect()
        });
        Some(Target {
            program: target.program.with_pieces(base, pieces),
            enter_guest: place(target.enter_guest)?,
            return_from_guest: place(target.return_from_guest)?,
            syscall_64: place(target.syscall_64)?,
            syscall_compat: target.syscall_compat.and_then(place),
            hand_on: target.hand_on.map(|at| at.and_then(place)),
            iretq: target.iretq.and_then(place),
            windows,
            gates,
            extent: target.extent.as_ref().map(moved),
            routines: target.routines.as_ref().map(|at| boundary(at.start)..boundary(at.end)),
            hooks: target.hooks,
            limit: target.limit,
            returns: target.returns,
            data: target.data.clone(),
            setting: target.setting,
            assumed: target.assumed.clone(),
            harmless: target.harmless.clone(),
        })
    }
}

/// What lies between blocks: INT3.
const FILLER: u8 = 0xCC;
/// How many bytes between blocks are filler. What is further away is another piece.
const GAP: u64 = 1 << 16;

/// Goes on at `to`, which is after all pieces: in the last one, or in one of its own.
fn extend(pieces: &mut Vec<(u64, Vec<u8>)>, to: u64) {
    match pieces.last_mut() {
        Some((start, bytes)) if to - *start - bytes.len() as u64 <= GAP => {
            bytes.resize((to - *start) as usize, FILLER);
        }
        _ => pieces.push((to, Vec::new())),
    }
}

/// Instructions without filler between them, assembled.
struct Block {
    rip: u64,
    bytes: Vec<u8>,
    /// For each address in the original, where its instruction lies.
    places: Vec<(u64, u64)>,
}

impl Listing {
    /// The instructions, block by block: each where it was, or a cache line or some further on if
    /// another has grown; the block with the address in `shift` lies so many bytes further on.
    fn encode(
        &self,
        instructions: &[Instruction],
        shift: Option<(u64, u64)>,
    ) -> Option<Vec<Block>> {
        let starts = (0..instructions.len())
            .filter(|index| *index == 0 || self.starts.contains(&instructions[*index].ip()));
        let starts: Vec<usize> = starts.collect();
        let ends = starts.iter().skip(1).copied().chain([instructions.len()]);
        let blocks: Vec<&[Instruction]> =
            starts.iter().zip(ends).map(|(start, end)| &instructions[*start..end]).collect();
        let mut rips: Vec<u64> = blocks.iter().map(|block| block[0].ip()).collect();
        // What was inserted before the first instruction has no address of its own.
        rips[0] = self.target.program.base();
        if let Some((at, by)) = shift {
            let shifted = blocks.iter().position(|block| block.iter().any(|i| i.ip() == at))?;
            rips[shifted] += by;
        }
        let line = switcher_gen::asm::LINE as u64;
        // Each round puts at least one more block where it stays.
        for _ in 0..=blocks.len() {
            let placed: Vec<_> = blocks
                .iter()
                .zip(&rips)
                .map(|(block, rip)| InstructionBlock::new(block, *rip))
                .collect();
            let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
            let kept = options | BlockEncoderOptions::DONT_FIX_BRANCHES;
            // Branches stay as they are, unless they do not reach.
            let encoded = BlockEncoder::encode_slice(64, &placed, kept)
                .or_else(|_| BlockEncoder::encode_slice(64, &placed, options))
                .ok()?;
            let overlap = (1..rips.len()).find_map(|next| {
                let end = rips[next - 1] + encoded[next - 1].code_buffer.len() as u64;
                (end > rips[next]).then(|| (next, (end - rips[next]).next_multiple_of(line)))
            });
            if let Some((next, by)) = overlap {
                rips[next..].iter_mut().for_each(|rip| *rip += by);
                continue;
            }
            let made = encoded.into_iter().zip(&blocks).map(|(encoded, block)| {
                let places = block.iter().zip(&encoded.new_instruction_offsets);
                let places =
                    places.map(|(i, offset)| (i.ip(), encoded.rip + u64::from(*offset))).collect();
                Block { rip: encoded.rip, bytes: encoded.code_buffer, places }
            });
            return Some(made.collect());
        }
        None
    }
}
