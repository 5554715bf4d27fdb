//! The code of a file that its entry points reach. Only this code is judged, and only this code has
//! to be right.
//!
//! Direct jumps and calls are followed, and everything else that may become the address of an
//! instruction: results of LEA, constants, and words of the code that are read as data. The prover
//! does not see code that is not found here. If the switcher goes there, it leaves the code.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use super::code::{Area, FileCode};
use super::contents::Contents;
use super::error::ReadError;
use super::leads::{Across, Use, is_distance_of};
use super::linker_error::LinkerError;
use super::per_cpu;
use super::places::PlaceInFile;

/// No switcher has more instructions. Code beyond these is not examined.
const INSTRUCTIONS: usize = 1 << 16;
/// LEA may name a table. So many bytes of it are kept.
const TABLE: u64 = 256;
/// How much filler between two pieces of code is kept with them.
const FILLER: u64 = 64;

/// How certain it is that an address is one of code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sure {
    /// A jump leads there.
    Yes,
    /// A number happens to be the address.
    Maybe,
}

struct Sweep<'a, 's, 'f, 'data, R: Contents<'data>> {
    code: &'a FileCode<'f, 'data, R>,
    /// The only section that may be reached.
    home: &'a Area,
    /// The host's own routines, which are not looked at.
    ends: &'s [u64],
    ahead: VecDeque<(u64, Sure, Option<u64>)>,
    seen: BTreeMap<u64, Sure>,
    found: Vec<Range<u64>>,
    /// The distances of calls and jumps that lead out of the section.
    across: BTreeSet<u64>,
    /// Where jumps and numbers lead, and from where.
    led: Vec<(u64, u64)>,
    /// What may be an instruction, and would use what only a linker knows.
    doubtful: Vec<(Range<u64>, ReadError)>,
}

/// The code that is reached.
pub(super) struct Reached<'a> {
    /// The section that it is in.
    pub(super) home: &'a Area,
    /// In their order.
    pub(super) ranges: Vec<Range<u64>>,
    /// Where instructions begin, in order.
    pub(super) instructions: Vec<u64>,
    /// Where calls and jumps have distances that lead out of the section.
    pub(super) across: BTreeSet<u64>,
    /// Where jumps and numbers lead, each after the instruction that says so.
    pub(super) led: Vec<(u64, u64)>,
}

/// What is reached from `entries`. `ends` are the host's own routines, which are not looked at.
pub(super) fn reached<'a, 'f, 'data, R: Contents<'data>>(
    code: &'a FileCode<'f, 'data, R>,
    entries: &[u64],
    whole: &[Range<u64>],
    ends: &[u64],
) -> Result<Reached<'a>, ReadError> {
    // A sweep cannot start from an entry after the last instruction.
    let home = entries.iter().find_map(|entry| code.area(*entry)).ok_or(ReadError::NoCode)?;
    let ahead = entries.iter().map(|entry| (*entry, Sure::Yes, None)).collect();
    let mut sweep = Sweep {
        code,
        home,
        ends,
        ahead,
        seen: BTreeMap::new(),
        found: Vec::new(),
        across: BTreeSet::new(),
        led: Vec::new(),
        doubtful: Vec::new(),
    };
    for range in whole {
        // A range that is examined although perhaps nothing leads there.
        let start = range.start.clamp(home.range.start, home.range.end);
        let end = range.end.clamp(start, home.range.end);
        sweep.found.push(start..end);
    }
    while let Some((at, sure, from)) = sweep.ahead.pop_front() {
        if ends.contains(&at) && from.is_some() || sweep.seen.len() >= INSTRUCTIONS {
            continue;
        }
        sweep.at(at, sure, from)?;
    }
    let instructions = sweep.seen.keys().copied().collect();
    let across = std::mem::take(&mut sweep.across);
    let doubtful = std::mem::take(&mut sweep.doubtful);
    let led = std::mem::take(&mut sweep.led);
    let ranges = sweep.joined()?;
    // They are there for whoever goes there.
    let is_kept = |field: &Range<u64>| {
        ranges.iter().any(|range| range.start <= field.start && field.end <= range.end)
    };
    match doubtful.into_iter().find(|(field, _)| is_kept(field)) {
        Some((_, error)) => Err(error),
        None => Ok(Reached { home, ranges, instructions, across, led }),
    }
}

impl<'data, R: Contents<'data>> Sweep<'_, '_, '_, 'data, R> {
    fn at(&mut self, at: u64, sure: Sure, from: Option<u64>) -> Result<(), ReadError> {
        if !self.home.range.contains(&at) {
            // The prover objects to code in another section by itself, but it cannot say that a
            // guest's root need not map that section.
            let other = self.code.area(at).filter(|_| sure == Sure::Yes);
            return match other {
                None => Ok(()),
                Some(other) => {
                    let (section, from) =
                        (self.code.section(other).text(), from.map(|from| self.place(from)));
                    if section.starts_with(".plt") {
                        return Err(ReadError::Plt { section, from });
                    }
                    let first = self.code.section(self.home).text();
                    Err(ReadError::SecondSection { section, first, from })
                }
            };
        }
        match self.seen.get(&at) {
            Some(known) if *known == Sure::Yes || sure == Sure::Maybe => return Ok(()),
            _ => {}
        }
        self.seen.insert(at, sure);
        let glance = self.code.glance(self.home, at)?;
        let bytes = &glance.bytes[..glance.len];
        let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
        let i = decoder.decode();
        // Bytes that are no instruction are kept, so that a report can show them.
        let end = at + if i.is_invalid() { bytes.len().min(8) } else { i.len() } as u64;
        let wrong = glance.wrong.into_iter().find(|(field, _)| field.start < end);
        match (wrong, sure) {
            (Some((_, error)), Sure::Yes) => return Err(error),
            (Some(_), Sure::Maybe) => return Ok(()),
            (None, _) => {}
        }
        let fields = decoder.get_constant_offsets(&i);
        let mut is_across = false;
        for (field, out) in glance.out.into_iter().filter(|(field, _)| field.start < end) {
            let is_used = match out.use_ {
                _ if i.is_invalid() => false,
                Use::Branch => is_distance_of(&i, &fields, &field),
                Use::PerCpu { is_relative, is_wanted } => {
                    let is_based = is_wanted && !is_relative && per_cpu::is_based(&i);
                    (is_based || per_cpu::is_through_gs(&i, is_relative))
                        && per_cpu::is_displacement_of(&i, &fields, &field)
                }
                Use::Fixed => {
                    per_cpu::is_fixed(&i) && per_cpu::is_displacement_of(&i, &fields, &field)
                }
                Use::Nothing => false,
            };
            if is_used {
                self.across.insert(field.start);
                is_across = true;
            } else if sure == Sure::Yes {
                return Err(out.error);
            } else {
                self.doubtful.push((at..end, out.error));
                return Ok(());
            }
        }
        self.found.push(at..end);
        if !i.is_invalid() {
            if !is_across {
                let is_number = glance.numbers.iter().any(|field| field.start < end);
                self.stays(&i, if is_number { Sure::Maybe } else { sure })?;
            }
            self.follow(&i, sure)?;
        }
        Ok(())
    }

    /// Refuses an instruction of an object that leads out of its section by a number. Where it only
    /// may be one, or the number is an address, the prover sees it leave the code; but not if
    /// something else was taken to lie there. So it is with data, which with the placement `percpu`
    /// lies at a distance from the code.
    fn stays(&self, i: &Instruction, sure: Sure) -> Result<(), ReadError> {
        let (to, sure) = if i.op0_kind() == OpKind::NearBranch64 {
            (i.near_branch_target(), sure)
        } else if i.is_ip_rel_memory_operand() {
            (i.ip_rel_memory_address(), Sure::Maybe)
        } else {
            return Ok(());
        };
        let own = self.home.range.start..=self.home.range.end;
        let is_known = || self.code.area(to).is_some() || self.code.is_host(to);
        if !self.code.file.is_object() || own.contains(&to) || sure == Sure::Maybe && !is_known() {
            return Ok(());
        }
        let section = self.code.section(self.home).text();
        Err(LinkerError::Leaves { at: self.place(i.ip()), section }.into())
    }

    fn place(&self, at: u64) -> PlaceInFile {
        self.code.place(self.home, at)
    }

    fn follow(&mut self, i: &Instruction, sure: Sure) -> Result<(), ReadError> {
        let (next, from) = (i.next_ip(), Some(i.ip()));
        if i.op0_kind() == OpKind::NearBranch64 {
            self.led.push((i.ip(), i.near_branch_target()));
        }
        let goes_on = match i.flow_control() {
            FlowControl::Next | FlowControl::IndirectCall => true,
            FlowControl::ConditionalBranch | FlowControl::Call => {
                self.ahead.push_back((i.near_branch_target(), sure, from));
                true
            }
            FlowControl::UnconditionalBranch => {
                self.ahead.push_back((i.near_branch_target(), sure, from));
                false
            }
            FlowControl::XbeginXabortXend => true,
            // INT returns; INT3 stops the code.
            FlowControl::Interrupt => i.mnemonic() == Mnemonic::Int,
            FlowControl::Exception | FlowControl::Return | FlowControl::IndirectBranch => false,
        };
        // iced-x86 does not count HLT and SYSRET as ends of a path.
        let ends = matches!(
            i.mnemonic(),
            Mnemonic::Hlt | Mnemonic::Sysretq | Mnemonic::Sysret | Mnemonic::Iretq
        );
        if goes_on && !ends {
            self.ahead.push_back((next, sure, from));
        } else {
            self.trap(next)?;
        }
        if i.is_ip_rel_memory_operand() {
            self.data(i, sure)?;
        }
        // What may lie anywhere has no address as a number.
        let operands = if self.code.file.is_movable() { 0 } else { i.op_count() };
        for operand in 0..operands {
            let is_constant = matches!(
                i.op_kind(operand),
                OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64
            );
            if is_constant {
                self.led.push((i.ip(), i.immediate(operand)));
                self.ahead.push_back((i.immediate(operand), Sure::Maybe, from));
            }
        }
        Ok(())
    }

    /// The trap that stops speculation after the end of a path belongs to the path.
    fn trap(&mut self, at: u64) -> Result<(), ReadError> {
        if !self.home.range.contains(&at) {
            return Ok(());
        }
        let glance = self.code.glance(self.home, at)?;
        let i = glance.instruction(at);
        let is_trap = matches!(
            i.mnemonic(),
            Mnemonic::Int3 | Mnemonic::Ud2 | Mnemonic::Hlt | Mnemonic::Lfence
        );
        if is_trap && glance.wrong.iter().all(|(field, _)| field.start >= i.next_ip()) {
            self.found.push(at..i.next_ip());
        }
        Ok(())
    }

    /// Code that is read as data, or might be.
    fn data(&mut self, i: &Instruction, sure: Sure) -> Result<(), ReadError> {
        let (at, from) = (i.ip_rel_memory_address(), Some(i.ip()));
        if !self.home.range.contains(&at) {
            return Ok(());
        }
        let is_lea = i.mnemonic() == Mnemonic::Lea;
        let size = if is_lea { TABLE } else { (i.memory_size().size() as u64).clamp(1, 64) };
        let mut range = at..at.saturating_add(size).min(self.home.range.end);
        if is_lea {
            self.led.push((i.ip(), at));
            self.ahead.push_back((at, Sure::Maybe, from));
        }
        // What follows a table may be code that leads elsewhere.
        if is_lea {
            let out = self.code.first_out(self.home, &range)?;
            let hooks = self.ends.iter().filter(|hook| range.contains(*hook));
            range.end = hooks.copied().chain(out).fold(range.end, u64::min);
        }
        // A number in the code can be the target of a jump.
        let bytes = match self.code.bytes(self.home, &range, Across::Nowhere) {
            Ok(bytes) => bytes,
            Err(_) if is_lea || sure == Sure::Maybe => return Ok(()),
            Err(error) => return Err(error),
        };
        let words = if self.code.file.is_movable() { &[] } else { bytes.as_chunks::<8>().0 };
        for word in words {
            self.ahead.push_back((u64::from_le_bytes(*word), Sure::Maybe, from));
        }
        self.found.push(range);
        Ok(())
    }

    /// In their order, with what only fills the room between them.
    fn joined(mut self) -> Result<Vec<Range<u64>>, ReadError> {
        self.found.retain(|range| !range.is_empty());
        self.found.sort_by_key(|range| (range.start, range.end));
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in std::mem::take(&mut self.found) {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                Some(last) if self.is_filler(&(last.end..range.start))? => last.end = range.end,
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }

    fn is_filler(&self, gap: &Range<u64>) -> Result<bool, ReadError> {
        if gap.end - gap.start > FILLER || !self.code.touching(self.home, gap)?.is_empty() {
            return Ok(false);
        }
        let bytes = self.code.bytes(self.home, gap, Across::Nowhere)?;
        let mut decoder = Decoder::with_ip(64, &bytes, gap.start, DecoderOptions::NONE);
        while decoder.can_decode() {
            if !matches!(decoder.decode().mnemonic(), Mnemonic::Nop | Mnemonic::Int3) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
