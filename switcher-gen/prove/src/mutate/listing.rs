//! The code as instructions, and every change to each of them.

use crate::entry::EntryPoints;
use std::collections::BTreeSet;
use std::rc::Rc;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};

use crate::gate::TargetGate;
use crate::layouts::{Places, PvcsField};
use crate::mutate::operators::{
    immediates, is_jump, is_sensitive, lookalikes, memory_operand, of_the_host, prefixes,
    registers, sizes,
};
use crate::mutate::{Edit, Inserted, Mutant, Operator, behind, nops};
use crate::setting::BlockOffsets;
use crate::target::Target;
use crate::world::fields::{FieldAt, extra_fields, pvcs_fields};
use switcher_gen::layout::{AsmLayout, Layout, PerCpu, PtRegs, Tss};

/// The code as instructions, to be changed and assembled again.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) target: Target,
    pub(crate) instructions: Vec<Instruction>,
    /// The addresses of instructions with filler before them, or nothing. They stay where they are
    /// in their cache lines, as long as there is room.
    pub(crate) starts: BTreeSet<u64>,
    /// The vectors whose stubs theorems execute.
    executed: Vec<u8>,
}

impl Listing {
    /// Puts `more` before an instruction, which is [`behind`] them then. Whoever jumps to it finds
    /// them first.
    pub(crate) fn insert(
        &self,
        instructions: &mut Vec<Instruction>,
        index: usize,
        more: Vec<Instruction>,
    ) {
        // A trap comes after an IRETQ, as everywhere.
        let mut more: Vec<_> = more
            .into_iter()
            .flat_map(|one| {
                let is_iretq = one.mnemonic() == Mnemonic::Iretq;
                [Some(one), is_iretq.then(|| Instruction::with(Code::Int3))]
            })
            .flatten()
            .collect();
        let behind = behind(&self.target);
        // Nobody jumps to these addresses, except the first.
        for (address, instruction) in (behind - 64..).zip(&mut more) {
            instruction.set_ip(address);
        }
        if let Some(first) = more.first_mut() {
            first.set_ip(instructions[index].ip());
            instructions[index].set_ip(behind);
        }
        instructions.splice(index..index, more);
    }

    pub(crate) fn new(target: &Target) -> Self {
        let decode = |(start, bytes)| {
            let mut decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
            std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
        };
        let mut instructions: Vec<Instruction> = Vec::new();
        let mut starts = BTreeSet::new();
        for instruction in target.program.pieces().flat_map(decode) {
            let last = instructions.last().filter(|last| last.next_ip() == instruction.ip());
            // Filler is not executed, and not changed. INT3 is no filler after a call, where it
            // stops speculation that is predicted to return there, nor after an instruction that
            // leads elsewhere.
            let is_trap = last.is_some_and(|last| {
                let kinds = [FlowControl::Call, FlowControl::Return, FlowControl::IndirectBranch];
                // HLT and SYSRET are no ends to iced-x86.
                let others = [Mnemonic::Iretq, Mnemonic::Sysretq, Mnemonic::Sysret];
                kinds.contains(&last.flow_control()) || others.contains(&last.mnemonic())
            });
            // The end of an image has a name, so it has to be found again.
            let is_end = target.ends_at(instruction.ip());
            let is_filler = instruction.code() == Code::Int3 && !is_trap && !is_end;
            if !is_filler {
                if last.is_none() {
                    starts.insert(instruction.ip());
                }
                instructions.push(instruction);
            }
        }
        let executed = EntryPoints::of(target).executed_vectors();
        Self { target: target.clone(), instructions, starts, executed }
    }

    /// The code without one instruction: NOPs have its place, so that all else stays where it is.
    pub(crate) fn delete(self: &Rc<Self>, index: usize) -> Mutant {
        let original = self.instructions[index];
        let bytes = nops(original.len()).concat();
        let nops = Instruction::with_declare_byte(&bytes);
        Mutant {
            operator: Operator::Delete,
            at: original.ip(),
            original: original.to_string(),
            changed: "nothing".into(),
            edit: Edit::Replace(index, nops.unwrap_or_else(|_| Instruction::with(Code::Nopd))),
            listing: Rc::clone(self),
        }
    }

    /// Every mutant of one instruction.
    pub(crate) fn at(self: &Rc<Self>, index: usize) -> Vec<Mutant> {
        // The trap there is not executed.
        if self.target.ends_at(self.instructions[index].ip()) {
            return Vec::new();
        }
        let mut found = vec![self.delete(index)];
        let original = self.instructions[index];
        if let Some(vector) = self.repeated(index) {
            found.extend(self.of_stub(index, vector));
            return found;
        }
        let text = original.to_string();
        let mut add = |operator, changed: String, edit| {
            let (at, listing) = (original.ip(), Rc::clone(self));
            let original = text.clone();
            found.push(Mutant { operator, at, original, changed, edit, listing });
        };
        let one = |changed: Instruction| Edit::Replace(index, changed);

        add(Operator::Duplicate, "twice".into(), Edit::Duplicate(index));
        add(Operator::Unblock, "after an IRETQ".into(), Edit::Insert(index, Inserted::Iretq));
        if let Some(first) = of_the_host(&original) {
            add(Operator::Provenance, format!("after `{first}`"), Edit::Before(index, first));
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
            add(Operator::Return, "after a call of a RET".into(), Edit::Return(index));
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
        // These are written for instructions without operands, such as those about flags.
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
    pub(crate) fn repeated(&self, index: usize) -> Option<u8> {
        let gates = self.target.gates.as_ref()?;
        let at = self.instructions[index].ip();
        // A stub that may be like others has no more bytes: ENDBR64, a PUSH and a jump.
        let is_near = |gate: &&TargetGate| gate.address <= at && at - gate.address < 16;
        let own = gates.iter().filter(is_near).max_by_key(|gate| gate.address)?;
        let mut same = gates.iter().filter(|gate| gate.address == own.address);
        // Several vectors may lead to one entry.
        same.all(|gate| !self.executed.contains(&gate.vector)).then_some(own.vector)
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
        // The targets of other stubs.
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
                // The form stays as short as it is, if that reaches.
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
            return match self.target.program.linked_gs(original) {
                Some(address) => self.linked(original, address),
                None => self.rip_relative(original),
            };
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
                // This is the shortest form that holds it; without a base there is one form only.
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
        // Each bit of the displacement but the highest: what is reached from any instruction.
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

    /// Other per-CPU data, of an operand whose address is a number although it counts from RIP.
    fn linked(&self, original: &Instruction, address: u64) -> Vec<Instruction> {
        let old = address.cast_signed();
        let mut others: Vec<_> = [-8, -1, 1, 8].map(|by| old.wrapping_add(by)).into();
        others.extend(self.siblings(old, true));
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != old);
        let changed = others.into_iter().map(|other| {
            let mut changed = *original;
            changed.set_memory_displacement64(other.cast_unsigned());
            changed
        });
        changed.collect()
    }

    /// The displacements of the fields of whatever struct has one at `old`, in the per-CPU block or
    /// elsewhere.
    fn siblings(&self, old: i64, per_cpu: bool) -> Vec<i64> {
        let setting = &self.target.setting;
        let of = |layout: &Layout| layout.fields.iter().map(|f| f.offset as i64).collect();
        let places = |fields: &[Option<FieldAt>]| {
            fields.iter().flatten().map(|(_, at, _)| *at).collect::<Vec<_>>()
        };
        let structs: Vec<(Vec<i64>, i64)> = if per_cpu {
            let BlockOffsets { tss, tss_extra } = setting.block;
            vec![(of(Tss::LAYOUT), tss), (places(&extra_fields(setting)), tss_extra)]
        } else {
            let pvcs = match setting.pvcs == Places::<PvcsField>::ours(setting.revision()) {
                true => of(setting.revision().layout()),
                false => places(&pvcs_fields(setting)),
            };
            // A frame's base register points to its start or to its end.
            let frame: Vec<i64> = of(PtRegs::LAYOUT);
            vec![(pvcs, 0), (frame.clone(), 0), (frame, -(size_of::<PtRegs>() as i64))]
        };
        let fields = |(fields, base): (Vec<i64>, i64)| {
            let all: Vec<_> = fields.into_iter().map(|at| base + at).collect();
            if all.contains(&old) { all } else { Vec::new() }
        };
        structs.into_iter().flat_map(fields).collect()
    }
}
