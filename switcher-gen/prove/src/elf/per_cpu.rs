//! Data of which each CPU has a copy, and which code reaches through GS: Linux's per-CPU variables.
//!
//! An object refers to such a variable by its symbol, relative to RIP or as a number, and what the
//! CPU accesses is GS base and the symbol's address. Where that is, whoever links the kernel
//! decides, so the variables of an object lie where a hash of the file says.

use std::cell::RefCell;

use iced_x86::{ConstantOffsets, Instruction, Mnemonic, Register};

use super::error::ReadError;
use super::file::Section;
use super::layout::Layout;
use std::ops::Range;

/// Where the variables of an object are taken to lie: with the code in the last 2 GiB of addresses,
/// so that every form of reference reaches them.
const START: u64 = 0xFFFF_FFFF_E000_0000;
/// How far apart the places of two of them are.
const SLOT: u64 = 4 << 20;
/// How large each may be.
pub(super) const MOST: u64 = 2 << 20;
/// How many of them there is room for.
const SLOTS: usize = 127;

/// What has a place of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Variable {
    /// A variable that the object does not have.
    Undefined(String),
    /// A section of the object, by its number.
    Section(usize),
}

/// How many there are of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copies {
    /// One for all CPUs: data that was [asked for](super::Request::with_fixed_data).
    One,
    OfEachCpu,
}

/// The variables that code was found to refer to, in the order in which it was.
#[derive(Default)]
pub(super) struct Variables(RefCell<Vec<(Variable, Copies, u64)>>);

impl Variables {
    /// Where a variable lies, from now on if it has no place yet.
    pub(super) fn place(
        &self,
        variable: Variable,
        copies: Copies,
        layout: &Layout,
    ) -> Result<u64, ReadError> {
        let mut all = self.0.borrow_mut();
        if let Some((.., place)) = all.iter().find(|(known, ..)| *known == variable) {
            return Ok(*place);
        }
        if all.len() >= SLOTS {
            return Err(ReadError::TooLarge { what: "the per-CPU variables" });
        }
        let place = START + SLOT * all.len() as u64 + layout.variable(all.len() as u64, MOST);
        all.push((variable, copies, place));
        Ok(place)
    }

    /// Whether each CPU has a copy of one.
    pub(super) fn are_of_cpus(&self) -> bool {
        self.0.borrow().iter().any(|(_, copies, _)| *copies == Copies::OfEachCpu)
    }

    /// Where a variable lies that has a place.
    pub(super) fn known(&self, variable: &Variable) -> Option<u64> {
        let all = self.0.borrow();
        all.iter().find(|(known, ..)| known == variable).map(|(.., place)| *place)
    }

    /// The variables that the object does not have.
    pub(super) fn undefined(&self) -> Vec<(String, u64)> {
        let all = self.0.borrow();
        let undefined = all.iter().filter_map(|(variable, _, place)| match variable {
            Variable::Undefined(name) => Some((name.clone(), *place)),
            Variable::Section(_) => None,
        });
        undefined.collect()
    }
}

/// Whether a section holds per-CPU variables, by its name in Linux.
pub(super) fn is_section(section: &Section<'_>) -> bool {
    let name = section.text();
    [".data..percpu", ".data.percpu"].iter().any(|known| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }) && !section.is_code()
        && section.size <= MOST
}

/// Whether the operand in memory is reached through GS, counted from RIP or not.
pub(super) fn is_through_gs(i: &Instruction, is_relative: bool) -> bool {
    i.memory_segment() == Register::GS && i.is_ip_rel_memory_operand() == is_relative
}

/// Whether the operand in memory is counted from a register alone: from GS base, which code has in
/// one while GS is a guest's.
pub(super) fn is_based(i: &Instruction) -> bool {
    i.memory_base().is_gpr64()
        && i.memory_index() == Register::None
        && matches!(i.memory_segment(), Register::DS | Register::SS)
}

/// Whether the operand in memory is counted from RIP, and from nothing else.
pub(super) fn is_fixed(i: &Instruction) -> bool {
    i.is_ip_rel_memory_operand() && matches!(i.memory_segment(), Register::DS | Register::SS)
}

/// Whether `field` is the displacement of an operand in memory.
pub(super) fn is_displacement_of(
    i: &Instruction,
    fields: &ConstantOffsets,
    field: &Range<u64>,
) -> bool {
    i.mnemonic() != Mnemonic::Lea
        && fields.displacement_size() == 4
        && i.ip() + fields.displacement_offset() as u64 == field.start
        && field.end - field.start == 4
}
