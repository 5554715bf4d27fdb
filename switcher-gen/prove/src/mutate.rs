//! Breaks code on purpose, one instruction at a time, to see whether the proofs object.
//!
//! A [`Mutant`] is a whole switcher that differs from another in one thing. It is assembled anew
//! (every jump still leads to its instruction), proved like any other, and then it is
//!
//! * **killed**: refuted, by an obligation, or refused as code no theorem can be about;
//! * **equivalent**: proved, *and* proved to leave everything as the original does, down to what the
//!   specification does not speak of ([`Prover::equivalent`]);
//! * a **hole**: neither. There must be none.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;
use std::sync::LazyLock;

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Instruction,
    InstructionBlock, MemoryOperand, Mnemonic, OpKind, Register,
};

use crate::{BadCode, Prover, Target, TargetGate, Verdict, executed_vectors};
use switcher_gen::Hazard;
use switcher_gen::arch::Selectors;
use switcher_gen::layout::{
    AsmLayout, Layout, PerCpu, PtRegs, Pvcs, PvcsV2026, Revision, Tss, TssExtra,
};
use switcher_model::Program;

/// What was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Operator {
    Delete,
    Duplicate,
    Swap,
    Condition,
    Immediate,
    Displacement,
    Size,
    Register,
    Branch,
    /// What only looks like the instruction, in what a CPU does beside executing it.
    Lookalike,
    /// A call of a RET is inserted.
    Return,
    /// The code around a RET lies in the other half of its cache line.
    Line,
    /// A prefix that means nothing there, or that is not allowed.
    Prefix,
    /// An instruction for others that not every CPU has.
    Existence,
    Unblock,
    /// A store of a value of the host's comes first, to the same place.
    Provenance,
}

impl Operator {
    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Duplicate => "duplicate",
            Self::Swap => "swap",
            Self::Condition => "condition",
            Self::Immediate => "immediate",
            Self::Displacement => "displacement",
            Self::Size => "size",
            Self::Register => "register",
            Self::Branch => "branch",
            Self::Lookalike => "lookalike",
            Self::Return => "return",
            Self::Line => "line",
            Self::Prefix => "prefix",
            Self::Existence => "existence",
            Self::Unblock => "unblock",
            Self::Provenance => "provenance",
        }
    }
}

/// Code with one change.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// The kind of change.
    pub operator: Operator,
    /// The instruction that was changed, by its address in the original.
    pub at: u64,
    /// What it was.
    pub original: String,
    /// What it is now.
    pub changed: String,
    edit: Edit,
    /// The bytes that the instruction has.
    length: usize,
    listing: Rc<Listing>,
}

/// A change to a list of instructions, at an index.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// Another instruction.
    Replace(usize, Instruction),
    /// The same once more.
    Duplicate(usize),
    /// The next one first.
    Swap(usize),
    /// A call of a RET in front of it.
    Return(usize),
    /// It and what is around it, so many bytes further on.
    Shift(usize, u64),
    /// Something before it.
    Insert(usize, Inserted),
    /// An instruction before it.
    Before(usize, Instruction),
}

/// What is inserted before an instruction.
#[derive(Clone, Copy, Debug)]
enum Inserted {
    /// An IRETQ to the instruction, which ends the blocking of NMIs and changes nothing else but the
    /// stack below RSP.
    Iretq,
}

/// What became of a mutant.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Refuted: the obligation's name and its hazards.
    Killed(&'static str, &'static [Hazard]),
    /// Not even code that a theorem can be about.
    Refused(BadCode),
    /// No such instruction: there is no mutant.
    NoCode,
    /// Proved, and proved to be the same.
    Equivalent,
    /// Proved, and yet not the same; or not known.
    Hole(String),
}

/// The code as instructions, to be changed and assembled again.
#[derive(Debug)]
struct Listing {
    target: Target,
    instructions: Vec<Instruction>,
    /// The addresses of those with filler in front, or nothing. They stay where they are in their
    /// cache lines, as long as there is room.
    starts: BTreeSet<u64>,
    /// The vectors whose stubs theorems execute.
    executed: Vec<u8>,
}

/// Every mutant of `target`, in a stable order.
#[must_use]
pub fn mutants(target: &Target) -> Vec<Mutant> {
    let listing = Rc::new(Listing::new(target));
    (0..listing.instructions.len()).flat_map(|index| Listing::at(&listing, index)).collect()
}

/// Those of them that lack an instruction, one for each.
#[must_use]
pub fn deletions(target: &Target) -> Vec<Mutant> {
    let listing = Rc::new(Listing::new(target));
    let all = (0..listing.instructions.len()).filter(|index| listing.repeated(*index).is_none());
    all.map(|index| Listing::delete(&listing, index)).collect()
}

/// The address of the instruction at which [`inserted`] has put others, for those that jump on to it.
#[must_use]
pub fn behind(target: &Target) -> u64 {
    target.program.base() - 16
}

/// The code with `more` in front of the instruction at `at`: what leads there leads to these. For
/// attacks that no operator makes. `None` if there is no such code.
#[must_use]
pub fn inserted(target: &Target, at: u64, more: &[Instruction]) -> Option<Target> {
    let listing = Listing::new(target);
    let mut instructions = listing.instructions.clone();
    let index = instructions.binary_search_by_key(&at, Instruction::ip).ok()?;
    listing.insert(&mut instructions, index, more.to_vec());
    listing.assemble(&instructions, None)
}

/// The mutants of the instructions that read `text`.
#[must_use]
pub fn mutants_of(target: &Target, text: &str) -> Vec<Mutant> {
    let listing = Rc::new(Listing::new(target));
    let instructions = listing.instructions.iter().enumerate();
    let places = instructions.filter(|(_, instruction)| instruction.to_string() == text);
    places.flat_map(|(index, _)| Listing::at(&listing, index)).collect()
}

/// What becomes of `mutant` of `original`.
#[must_use]
pub fn judge(prover: &Prover, original: &Target, mutant: &Mutant) -> Fate {
    let Some(target) = mutant.target() else { return Fate::NoCode };
    match prover.prove(&target) {
        Err(bad) => Fate::Refused(bad),
        Ok(Verdict::Refuted(found)) => Fate::Killed(found.obligation.name, found.obligation.rows),
        Ok(Verdict::Unknown(why)) => Fate::Hole(why),
        Ok(Verdict::Proved(_)) => match prover.equivalent(original, &target) {
            Ok(None) => Fate::Equivalent,
            Ok(Some(difference)) => Fate::Hole(difference),
            Err(bad) => Fate::Refused(bad),
        },
    }
}

impl Mutant {
    /// The whole code; `None` if there is no such instruction after all.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        let mut instructions = self.listing.instructions.clone();
        let mut shift = None;
        match self.edit {
            Edit::Replace(index, changed) => {
                let at = instructions[index].ip();
                instructions[index] = changed;
                instructions[index].set_ip(at);
            }
            Edit::Return(index) => {
                // Whoever jumped to the instruction comes to the call first.
                let [at, ret, trap, behind] =
                    [0, 8, 16, 24].map(|by| self.listing.target.program.base() - 64 + by);
                let old = instructions[index].ip();
                instructions[index].set_ip(behind);
                let made = [
                    Instruction::with_branch(Code::Call_rel32_64, ret).ok()?,
                    Instruction::with_branch(Code::Jmp_rel8_64, behind).ok()?,
                    Instruction::with(Code::Retnq),
                    Instruction::with(Code::Int3),
                ];
                let places = [old, at, ret, trap];
                let made = made.into_iter().zip(places).map(|(mut made, place)| {
                    made.set_ip(place);
                    made
                });
                instructions.splice(index..index, made);
            }
            Edit::Shift(index, by) => shift = Some((instructions[index].ip(), by)),
            Edit::Duplicate(index) => {
                let mut copy = instructions[index];
                // An address that nobody jumps to.
                copy.set_ip(self.listing.target.program.base() - 16);
                instructions.insert(index + 1, copy);
            }
            Edit::Swap(index) => {
                let places = [index, index + 1].map(|index| instructions[index].ip());
                instructions.swap(index, index + 1);
                // Whoever jumps to one of the places finds what is there now.
                instructions[index].set_ip(places[0]);
                instructions[index + 1].set_ip(places[1]);
            }
            Edit::Insert(index, what) => {
                let selectors = self.listing.target.setting.variant.selectors();
                let more = sequence(what, behind(&self.listing.target), selectors)?;
                self.listing.insert(&mut instructions, index, more);
            }
            Edit::Before(index, one) => self.listing.insert(&mut instructions, index, vec![one]),
        }
        self.listing.assemble(&instructions, shift)
    }

    /// How many NOPs have the place of an instruction that was deleted.
    pub(crate) fn nops(&self) -> usize {
        match self.operator {
            Operator::Delete => nops(self.length).len(),
            _ => 0,
        }
    }
}

/// NOPs of so many bytes in all, without prefixes.
fn nops(mut length: usize) -> Vec<&'static [u8]> {
    const NOPS: [&[u8]; 6] = [
        &[0x0F, 0x1F, 0x84, 0, 0, 0, 0, 0],
        &[0x0F, 0x1F, 0x80, 0, 0, 0, 0],
        &[0x0F, 0x1F, 0x44, 0, 0],
        &[0x0F, 0x1F, 0x40, 0],
        &[0x0F, 0x1F, 0],
        &[0x90],
    ];
    let mut made = Vec::new();
    while let Some(nop) = NOPS.into_iter().find(|nop| (1..=length).contains(&nop.len())) {
        made.push(nop);
        length -= nop.len();
    }
    made
}

impl Listing {
    /// Puts `more` in front of an instruction, which is [`behind`] them then. Whoever jumps to it finds
    /// them first.
    fn insert(&self, instructions: &mut Vec<Instruction>, index: usize, more: Vec<Instruction>) {
        // Behind an IRETQ is a trap, as everywhere.
        let mut more: Vec<_> = more
            .into_iter()
            .flat_map(|one| {
                let is_iretq = one.mnemonic() == Mnemonic::Iretq;
                [Some(one), is_iretq.then(|| Instruction::with(Code::Int3))]
            })
            .flatten()
            .collect();
        let behind = behind(&self.target);
        // Addresses that nobody jumps to, but for the first.
        for (address, instruction) in (behind - 64..).zip(&mut more) {
            instruction.set_ip(address);
        }
        if let Some(first) = more.first_mut() {
            first.set_ip(instructions[index].ip());
            instructions[index].set_ip(behind);
        }
        instructions.splice(index..index, more);
    }

    fn new(target: &Target) -> Self {
        let decode = |(start, bytes)| {
            let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
            std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
        };
        let mut instructions: Vec<Instruction> = Vec::new();
        let mut starts = BTreeSet::new();
        for instruction in target.program.pieces().flat_map(decode) {
            let last = instructions.last().filter(|last| last.next_ip() == instruction.ip());
            // Filler is not executed, and not changed. Behind a call it is none: it stops whoever
            // is predicted to return there; nor behind what leads elsewhere, whatever is predicted.
            let is_trap = last.is_some_and(|last| {
                let kinds = [FlowControl::Call, FlowControl::Return, FlowControl::IndirectBranch];
                // HLT and SYSRET are no ends to iced-x86.
                let others = [Mnemonic::Iretq, Mnemonic::Sysretq, Mnemonic::Sysret];
                kinds.contains(&last.flow_control()) || others.contains(&last.mnemonic())
            });
            let is_filler = instruction.code() == Code::Int3 && !is_trap;
            if !is_filler {
                if last.is_none() {
                    starts.insert(instruction.ip());
                }
                instructions.push(instruction);
            }
        }
        let executed = executed_vectors(target);
        Self { target: target.clone(), instructions, starts, executed }
    }

    /// The code without one instruction: NOPs have its place, so that all else stays where it is.
    fn delete(self: &Rc<Self>, index: usize) -> Mutant {
        let original = self.instructions[index];
        let bytes = nops(original.len()).concat();
        let nops = Instruction::with_declare_byte(&bytes);
        Mutant {
            operator: Operator::Delete,
            at: original.ip(),
            original: original.to_string(),
            changed: "nothing".into(),
            edit: Edit::Replace(index, nops.unwrap_or_else(|_| Instruction::with(Code::Nopd))),
            length: original.len(),
            listing: Rc::clone(self),
        }
    }

    /// Every mutant of one instruction.
    fn at(self: &Rc<Self>, index: usize) -> Vec<Mutant> {
        let mut found = vec![self.delete(index)];
        let original = self.instructions[index];
        if let Some(vector) = self.repeated(index) {
            found.extend(self.of_stub(index, vector));
            return found;
        }
        let text = original.to_string();
        let mut add = |operator, changed: String, edit| {
            let (at, length, listing) = (original.ip(), original.len(), Rc::clone(self));
            let original = text.clone();
            found.push(Mutant { operator, at, original, changed, edit, length, listing });
        };
        let one = |changed: Instruction| Edit::Replace(index, changed);

        add(Operator::Duplicate, "twice".into(), Edit::Duplicate(index));
        add(Operator::Unblock, "behind an IRETQ".into(), Edit::Insert(index, Inserted::Iretq));
        if let Some(first) = of_the_host(&original) {
            add(Operator::Provenance, format!("behind `{first}`"), Edit::Before(index, first));
        }
        if let Some(next) = self.instructions.get(index + 1) {
            add(Operator::Swap, format!("after `{next}`"), Edit::Swap(index));
        }
        let mut flipped = original;
        flipped.negate_condition_code();
        if flipped != original {
            add(Operator::Condition, flipped.to_string(), one(flipped));
        }
        if is_sensitive(&original) {
            add(Operator::Return, "behind a call of a RET".into(), Edit::Return(index));
        }
        if original.mnemonic() == Mnemonic::Ret {
            let half = switcher_gen::asm::LINE as u64 / 2;
            add(Operator::Line, format!("{half} bytes further on"), Edit::Shift(index, half));
        }
        for (changed, bytes) in lookalikes(&original) {
            add(Operator::Lookalike, changed.into(), one(bytes));
        }
        let each = [
            (Operator::Immediate, immediates(&original)),
            (Operator::Displacement, self.displacements(&original)),
            (Operator::Size, sizes(&original)),
            (Operator::Register, registers(&original)),
            (Operator::Branch, self.branches(&original)),
        ];
        for (prefix, changed) in prefixes(&original) {
            add(Operator::Prefix, format!("{prefix} {changed}"), one(changed));
        }
        // What has to do with flags is what these are written for.
        if original.op_count() == 0 {
            for code in [Code::Clac, Code::Stac, Code::Cld] {
                let changed = Instruction::with(code);
                if changed.code() != original.code() {
                    add(Operator::Existence, changed.to_string(), one(changed));
                }
            }
        }
        for (operator, changes) in each {
            for changed in changes {
                add(operator, changed.to_string(), one(changed));
            }
        }
        found
    }

    /// The vector of the stub that the instruction is of, if others stand for that stub.
    fn repeated(&self, index: usize) -> Option<u8> {
        let gates = self.target.gates.as_ref()?;
        let at = self.instructions[index].ip();
        // They lie one behind the other.
        let own = gates.iter().filter(|gate| gate.address <= at).max_by_key(|gate| gate.address)?;
        let end = gates.iter().map(|gate| gate.address).max()? + 16;
        let is_other = at < end && !self.executed.contains(&own.vector);
        is_other.then_some(own.vector)
    }

    /// A few mutants of a stub that is like others: one stub has all, and these are hundreds.
    fn of_stub(self: &Rc<Self>, index: usize, vector: u8) -> Vec<Mutant> {
        let original = self.instructions[index];
        let some = |changes: Vec<Instruction>| {
            let chosen = usize::from(vector) % changes.len().max(1);
            changes.into_iter().nth(chosen)
        };
        let gates = self.target.gates.iter().flatten();
        let mut jumps: Vec<_> = self.branches(&original);
        // Where other stubs go.
        let others: Vec<_> = gates
            .filter_map(|gate| {
                let at = self.instructions.binary_search_by_key(&gate.address, |i| i.ip()).ok()?;
                let near = self.instructions[at..].iter().take(3);
                near.map(Instruction::near_branch_target).find(|to| *to != 0)
            })
            .collect();
        jumps.retain(|jump| others.contains(&jump.near_branch_target()));
        let changes =
            [(Operator::Immediate, some(immediates(&original))), (Operator::Branch, some(jumps))];
        let mutant = |(operator, changed): (Operator, Option<Instruction>)| {
            let changed = changed?;
            Some(Mutant {
                operator,
                at: original.ip(),
                original: original.to_string(),
                changed: changed.to_string(),
                edit: Edit::Replace(index, changed),
                length: original.len(),
                listing: Rc::clone(self),
            })
        };
        changes.into_iter().filter_map(mutant).collect()
    }

    /// Other targets for a jump: every place that another jump goes to, every entry point, and the
    /// instructions around its own target.
    fn branches(&self, original: &Instruction) -> Vec<Instruction> {
        if !is_jump(original) {
            return Vec::new();
        }
        let target = original.near_branch_target();
        let addresses: Vec<_> = self.instructions.iter().map(Instruction::ip).collect();
        let jumps = self.instructions.iter().filter(|i| is_jump(i));
        let mut others: Vec<_> =
            jumps.map(Instruction::near_branch_target).chain(self.target.entry_points()).collect();
        if let Ok(at) = addresses.binary_search(&target) {
            let near = [at.checked_sub(1), Some(at + 1)];
            others.extend(near.into_iter().flatten().filter_map(|at| addresses.get(at)));
        }
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != target);
        others
            .into_iter()
            .map(|other| {
                let mut changed = *original;
                changed.set_near_branch64(other);
                // As near as it is, if it reaches.
                if i8::try_from(other.wrapping_sub(original.next_ip()).cast_signed()).is_err() {
                    changed.as_near_branch();
                }
                changed
            })
            .collect()
    }

    /// Other displacements: a little off, each bit flipped, and the other fields of the struct.
    fn displacements(&self, original: &Instruction) -> Vec<Instruction> {
        if original.is_ip_rel_memory_operand() {
            return self.rip_relative(original);
        }
        let Some(operand) = memory_operand(original) else { return Vec::new() };
        let old = operand.displacement;
        let is_byte = i8::try_from(old).is_ok() && operand.base != Register::None;
        let bits = if is_byte { 0..8 } else { 0..32 };
        let mut others: Vec<_> = [-8, -1, 1, 8].map(|by| old + by).into();
        others.extend(bits.map(|bit| i64::from((old as i32) ^ 1_i32.wrapping_shl(bit))));
        others.extend(self.siblings(old, operand.segment_prefix == Register::GS));
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != old);
        others
            .into_iter()
            .map(|other| {
                let mut changed = *original;
                changed.set_memory_displacement64(other.cast_unsigned());
                // The shortest form that holds it; without a base there is one form only.
                let size = match i8::try_from(other) {
                    _ if operand.base == Register::None => original.memory_displ_size(),
                    Ok(_) => 1,
                    Err(_) => 8,
                };
                changed.set_memory_displ_size(size);
                changed
            })
            .collect()
    }

    /// Other targets of an access relative to RIP.
    fn rip_relative(&self, original: &Instruction) -> Vec<Instruction> {
        let old = original.memory_displacement64();
        let block = self.target.program.base().wrapping_sub(PerCpu::BEFORE_CODE);
        let mut others: Vec<_> = [-8, -1, 1, 8].map(|by| old.wrapping_add_signed(by)).into();
        // The bits of the displacement, less the highest: as far as it reaches from any instruction.
        let encoded = old.wrapping_sub(original.next_ip());
        let flipped = (0..31).map(|bit| original.next_ip().wrapping_add(encoded ^ (1 << bit)));
        others.extend(flipped);
        let fields = self.siblings(old.wrapping_sub(block).cast_signed(), true);
        others.extend(fields.into_iter().map(|field| block.wrapping_add_signed(field)));
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != old);
        others
            .into_iter()
            .map(|other| {
                let mut changed = *original;
                changed.set_memory_displacement64(other);
                changed
            })
            .collect()
    }

    /// The displacements of the fields of whatever struct has one at `old`, in the per-CPU block or
    /// elsewhere.
    fn siblings(&self, old: i64, per_cpu: bool) -> Vec<i64> {
        let setting = &self.target.setting;
        let pvcs = match setting.revision() {
            Revision::V2024 => Pvcs::LAYOUT,
            Revision::V2026 => PvcsV2026::LAYOUT,
        };
        let structs: &[(&Layout, i64)] = if per_cpu {
            &[(Tss::LAYOUT, setting.block.tss), (TssExtra::LAYOUT, setting.block.tss_extra)]
        } else {
            // A frame's base register points to its start or to its end.
            &[(pvcs, 0), (PtRegs::LAYOUT, 0), (PtRegs::LAYOUT, -(size_of::<PtRegs>() as i64))]
        };
        let fields = |&(layout, base): &(&Layout, i64)| {
            let all: Vec<_> = layout.fields.iter().map(|f| base + f.offset as i64).collect();
            if all.contains(&old) { all } else { Vec::new() }
        };
        structs.iter().flat_map(fields).collect()
    }

    /// The code with these instructions; what led to an instruction leads there still. `None` if
    /// there is no such code.
    fn assemble(&self, instructions: &[Instruction], shift: Option<(u64, u64)>) -> Option<Target> {
        let base = self.target.program.base();
        let (mut bytes, mut moved) = (Vec::new(), HashMap::new());
        for block in self.encode(instructions, shift)? {
            bytes.resize((block.rip - base) as usize, FILLER);
            bytes.extend(block.bytes);
            moved.extend(block.places);
        }
        bytes.resize(bytes.len().max((self.target.program.end() - base) as usize), FILLER);
        let end = base + bytes.len() as u64;
        let place = |old: u64| moved.get(&old).copied();
        // A window ends behind an instruction.
        let boundary = |old: u64| {
            let next = instructions.iter().map(Instruction::ip).filter(|ip| *ip >= old).min();
            next.and_then(place).unwrap_or(end)
        };
        let target = &self.target;
        let windows = target.windows.as_ref().map(|windows| {
            let range = |range: &Range<u64>| boundary(range.start)..boundary(range.end);
            windows.iter().map(|(window, at)| (*window, range(at))).collect()
        });
        let gates = target.gates.as_ref().map(|gates| {
            let moved = |gate: &TargetGate| {
                let address = place(gate.address)?;
                Some(TargetGate { address, ..*gate })
            };
            gates.iter().filter_map(moved).collect()
        });
        Some(Target {
            program: Program::new(base, bytes),
            enter_guest: place(target.enter_guest)?,
            return_from_guest: place(target.return_from_guest)?,
            syscall_64: place(target.syscall_64)?,
            syscall_compat: target.syscall_compat.and_then(place),
            iretq: target.iretq.and_then(place),
            windows,
            gates,
            routines: target.routines.as_ref().map(|at| boundary(at.start)..boundary(at.end)),
            hooks: target.hooks,
            limit: target.limit,
            returns: target.returns,
            setting: target.setting,
            assumed: target.assumed.clone(),
            harmless: target.harmless.clone(),
        })
    }
}

/// INT3, between blocks.
const FILLER: u8 = 0xCC;

/// Instructions without filler between them, assembled.
struct Block {
    rip: u64,
    bytes: Vec<u8>,
    /// Where what was at an address is.
    places: Vec<(u64, u64)>,
}

impl Listing {
    /// The instructions, block by block: each where it was, or a cache line or some further on if
    /// another has grown; the one with an address is shifted by so many bytes.
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
        // What was inserted in front of the first has no address of its own.
        rips[0] = self.target.program.base();
        if let Some((at, by)) = shift {
            let shifted = blocks.iter().position(|block| block.iter().any(|i| i.ip() == at))?;
            rips[shifted] += by;
        }
        let line = switcher_gen::asm::LINE as u64;
        // Each time, at least one more is where it stays.
        for _ in 0..=blocks.len() {
            let placed: Vec<_> = blocks
                .iter()
                .zip(&rips)
                .map(|(block, rip)| InstructionBlock::new(block, *rip))
                .collect();
            let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
            let kept = options | BlockEncoderOptions::DONT_FIX_BRANCHES;
            // As they are, unless that does not reach.
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

/// Where a mitigation, or what one protects, is easily taken back.
fn is_sensitive(instruction: &Instruction) -> bool {
    use Mnemonic::{Call, Iretq, Lfence, Ret, Sysretq, Verw, Wrmsr};
    [Call, Iretq, Lfence, Ret, Sysretq, Verw, Wrmsr].contains(&instruction.mnemonic())
}

/// Instructions that are taken for this one, and have not its effect on predictors and buffers. NOPs
/// behind them make them as long.
fn lookalikes(original: &Instruction) -> Vec<(&'static str, Instruction)> {
    let others: &[(&str, &[u8])] = match original.code() {
        Code::Lfence => &[
            ("mfence", &[0x0F, 0xAE, 0xF0]),
            ("sfence", &[0x0F, 0xAE, 0xF8]),
            ("pause", &[0xF3, 0x90]),
        ],
        Code::Verw_rm16 | Code::Verw_r32m16 | Code::Verw_r64m16 => {
            &[("verw ax", &[0x0F, 0x00, 0xE8])]
        }
        _ => &[],
    };
    let made = others.iter().filter_map(|(text, bytes)| {
        let behind = nops(original.len().checked_sub(bytes.len())?).concat();
        Some((*text, Instruction::with_declare_byte(&[*bytes, &behind].concat()).ok()?))
    });
    made.collect()
}

/// The instructions of `what`, in front of the one at `next`; `None` if there are none.
fn sequence(what: Inserted, next: u64, selectors: Selectors) -> Option<Vec<Instruction>> {
    match what {
        Inserted::Iretq => {
            let at = |base, displacement| MemoryOperand::with_base_displ(base, displacement);
            let push = |selector: u16| Instruction::with1(Code::Pushq_imm8, i32::from(selector));
            let rax = |code| Instruction::with1(code, Register::RAX);
            let lea = |from| Instruction::with2(Code::Lea_r64_m, Register::RAX, from);
            let saved = at(Register::RSP, 40);
            let all = [
                rax(Code::Push_r64),
                lea(at(Register::RSP, 8)),
                push(selectors.kernel_ds()),
                rax(Code::Push_r64),
                Ok(Instruction::with(Code::Pushfq)),
                push(selectors.kernel_cs()),
                lea(at(Register::RIP, next.cast_signed())),
                rax(Code::Push_r64),
                Instruction::with2(Code::Mov_r64_rm64, Register::RAX, saved),
                Ok(Instruction::with(Code::Iretq)),
            ];
            all.into_iter().collect::<Result<_, _>>().ok()
        }
    }
}

/// The same store of what says where the host's stack lies.
fn of_the_host(original: &Instruction) -> Option<Instruction> {
    let register = match original.code() {
        Code::Mov_rm8_r8 => Register::SPL,
        Code::Mov_rm16_r16 => Register::SP,
        Code::Mov_rm32_r32 => Register::ESP,
        Code::Mov_rm64_r64 => Register::RSP,
        _ => return None,
    };
    let is_store = original.op0_kind() == OpKind::Memory && original.op1_register() != register;
    is_store.then(|| {
        let mut changed = *original;
        changed.set_op1_register(register);
        changed
    })
}

fn is_jump(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
    )
}

/// The same with a prefix, where it has none of that group.
fn prefixes(original: &Instruction) -> Vec<(&'static str, Instruction)> {
    let mut found = Vec::new();
    let mut add = |name, set: &dyn Fn(&mut Instruction)| {
        let mut changed = *original;
        set(&mut changed);
        found.push((name, changed));
    };
    if original.segment_prefix() == Register::None {
        add("cs", &|changed| changed.set_segment_prefix(Register::CS));
        add("ds", &|changed| changed.set_segment_prefix(Register::DS));
    }
    add("lock", &|changed| changed.set_has_lock_prefix(true));
    add("repne", &|changed| changed.set_has_repne_prefix(true));
    add("rep", &|changed| changed.set_has_rep_prefix(true));
    found
}

/// Other constants: a little off, and each bit flipped.
fn immediates(original: &Instruction) -> Vec<Instruction> {
    let Some(operand) = (0..original.op_count()).find(|op| immediate_bits(original, *op) > 0)
    else {
        return Vec::new();
    };
    let bits = immediate_bits(original, operand);
    let old = original.immediate(operand).cast_signed();
    let mut others: Vec<_> = [-8, -1, 1, 8].map(|by| old.wrapping_add(by)).into();
    others.extend((0..bits).map(|bit| old ^ (1 << bit)));
    // As they are once encoded: sign-extended from their width.
    let unused = 64 - bits;
    others.iter_mut().for_each(|other| *other = *other << unused >> unused);
    others.sort_unstable();
    others.dedup();
    others.retain(|other| *other != old << unused >> unused);
    let change = |other: i64| {
        let mut changed = *original;
        match original.op_kind(operand) {
            OpKind::Immediate8 => changed.set_immediate8(other as u8),
            OpKind::Immediate16 => changed.set_immediate16(other as u16),
            OpKind::Immediate32 => changed.set_immediate32(other as u32),
            OpKind::Immediate8to16 => changed.set_immediate8to16(other as i16),
            OpKind::Immediate8to32 => changed.set_immediate8to32(other as i32),
            OpKind::Immediate8to64 => changed.set_immediate8to64(other),
            OpKind::Immediate32to64 => changed.set_immediate32to64(other),
            _ => changed.set_immediate64(other.cast_unsigned()),
        }
        changed
    };
    others.into_iter().map(change).collect()
}

/// How wide an operand is encoded, if it is an immediate.
fn immediate_bits(instruction: &Instruction, operand: u32) -> u32 {
    match instruction.op_kind(operand) {
        OpKind::Immediate8
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64 => 8,
        OpKind::Immediate16 => 16,
        OpKind::Immediate32 | OpKind::Immediate32to64 => 32,
        OpKind::Immediate64 => 64,
        _ => 0,
    }
}

/// Other registers, of the same size: each of the fifteen in each place.
fn registers(original: &Instruction) -> Vec<Instruction> {
    let mut found = Vec::new();
    let mut others = |old: Register, set: &dyn Fn(&mut Instruction, Register)| {
        if !old.is_gpr() || old.size() == 1 {
            return;
        }
        let first = old as usize - old.number();
        for number in (0..16).filter(|number| *number != old.number()) {
            let Ok(register) = Register::try_from(first + number) else { continue };
            let mut changed = *original;
            set(&mut changed, register);
            found.push(changed);
        }
    };
    for operand in 0..original.op_count() {
        if original.op_kind(operand) == OpKind::Register {
            others(original.op_register(operand), &|i, r| i.set_op_register(operand, r));
        }
    }
    if memory_operand(original).is_some() {
        others(original.memory_base(), &|i, r| i.set_memory_base(r));
    }
    found
}

/// The same operation on operands of other sizes.
fn sizes(original: &Instruction) -> Vec<Instruction> {
    static CODES: LazyLock<HashMap<String, Code>> =
        LazyLock::new(|| Code::values().map(|code| (format!("{code:?}"), code)).collect());
    let name = format!("{:?}", original.code());
    let forms: &[(&str, &[&str])] = &[
        ("rm64_r64", &["rm32_r32", "rm16_r16", "rm8_r8"]),
        ("r64_rm64", &["r32_rm32", "r16_rm16", "r8_rm8"]),
        ("rm32_r32", &["rm64_r64", "rm16_r16", "rm8_r8"]),
        ("r32_rm32", &["r64_rm64", "r16_rm16", "r8_rm8"]),
        ("rm64_imm32", &["rm32_imm32", "rm16_imm16", "rm8_imm8"]),
        ("rm32_imm32", &["rm64_imm32", "rm16_imm16", "rm8_imm8"]),
        ("r32_imm32", &["r64_imm64", "r16_imm16", "r8_imm8"]),
        ("rm64_imm8", &["rm32_imm8", "rm16_imm8", "rm8_imm8"]),
        ("rm32_imm8", &["rm64_imm8", "rm16_imm8", "rm8_imm8"]),
        ("rm8_imm8", &["rm64_imm8", "rm32_imm8", "rm16_imm8"]),
        ("gsbase_r64", &["gsbase_r32"]),
    ];
    let Some((form, others)) =
        forms.iter().find_map(|(form, others)| name.ends_with(form).then_some((form, others)))
    else {
        return Vec::new();
    };
    let stem = &name[..name.len() - form.len()];
    let code = |other: &&str| CODES.get(&format!("{stem}{other}")).copied();
    others.iter().filter_map(code).filter_map(|code| resized(original, code)).collect()
}

/// An operand, whatever its size.
enum Part {
    Register(usize),
    Memory(MemoryOperand),
    Immediate(i64),
}

/// `original` as another form of its operation.
fn resized(original: &Instruction, code: Code) -> Option<Instruction> {
    let sizes = code.op_code();
    let register = |number: usize, operand: u32| {
        use iced_x86::OpCodeOperandKind as Kind;
        let first = match sizes.op_kind(operand) {
            Kind::r64_or_mem | Kind::r64_reg | Kind::r64_opcode => Register::RAX,
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_opcode => Register::EAX,
            Kind::r16_or_mem | Kind::r16_reg | Kind::r16_opcode => Register::AX,
            // SPL and its like follow BH in the enumeration: only the first four are simple.
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode if number < 4 => Register::AL,
            Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => {
                return Register::try_from(Register::SPL as usize + number - 4).ok();
            }
            _ => return None,
        };
        Register::try_from(first as usize + number).ok()
    };
    let part = |operand: u32| match original.op_kind(operand) {
        OpKind::Register => {
            Some(Part::Register(original.op_register(operand).full_register().number()))
        }
        OpKind::Memory => memory_operand(original).map(Part::Memory),
        _ if immediate_bits(original, operand) > 0 => {
            Some(Part::Immediate(original.immediate(operand).cast_signed()))
        }
        _ => None,
    };
    let made = match (part(0)?, (original.op_count() > 1).then(|| part(1)).flatten()) {
        (Part::Register(a), None) => Instruction::with1(code, register(a, 0)?),
        (Part::Register(a), Some(Part::Register(b))) => {
            Instruction::with2(code, register(a, 0)?, register(b, 1)?)
        }
        (Part::Register(a), Some(Part::Memory(b))) => Instruction::with2(code, register(a, 0)?, b),
        (Part::Memory(a), Some(Part::Register(b))) => Instruction::with2(code, a, register(b, 1)?),
        (Part::Register(a), Some(Part::Immediate(b))) => {
            Instruction::with2(code, register(a, 0)?, b)
        }
        (Part::Memory(a), Some(Part::Immediate(b))) => Instruction::with2(code, a, b as i32),
        _ => return None,
    };
    made.ok()
}

fn memory_operand(i: &Instruction) -> Option<MemoryOperand> {
    let has_memory = (0..i.op_count()).any(|operand| i.op_kind(operand) == OpKind::Memory);
    if !has_memory {
        return None;
    }
    Some(MemoryOperand::new(
        i.memory_base(),
        i.memory_index(),
        i.memory_index_scale(),
        i.memory_displacement64().cast_signed(),
        i.memory_displ_size(),
        false,
        i.segment_prefix(),
    ))
}

/// A summary of fates.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many mutants there were.
    pub mutants: usize,
    /// How many of them each obligation killed.
    pub killed: BTreeMap<&'static str, usize>,
    /// How many were refused as code no theorem can be about.
    pub refused: usize,
    /// How many are the same code in effect.
    pub equivalent: usize,
    /// Those that should not be there.
    pub holes: Vec<String>,
}

impl Tally {
    /// Counts one.
    pub fn count(&mut self, mutant: &Mutant, fate: &Fate) {
        self.mutants += usize::from(!matches!(fate, Fate::NoCode));
        match fate {
            Fate::Killed(obligation, _) => *self.killed.entry(obligation).or_default() += 1,
            Fate::NoCode => {}
            Fate::Refused(_) => self.refused += 1,
            Fate::Equivalent => self.equivalent += 1,
            Fate::Hole(why) => self.holes.push(format!("{mutant}: {why}")),
        }
    }

    /// Adds another one's counts.
    pub fn add(&mut self, other: Self) {
        self.mutants += other.mutants;
        for (obligation, count) in other.killed {
            *self.killed.entry(obligation).or_default() += count;
        }
        self.refused += other.refused;
        self.equivalent += other.equivalent;
        self.holes.extend(other.holes);
    }
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operator, at, original, changed, .. } = self;
        write!(f, "{} at {at:#x}: `{original}` -> `{changed}`", operator.name())
    }
}
