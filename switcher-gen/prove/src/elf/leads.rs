//! Where a relocation of an object's code leads: within its section, which is one piece whatever a
//! linker does; or out of it, to what a linker puts wherever it likes.
//!
//! A distance out of the section is good for one thing: a call or a jump to what its symbol names.
//! Nothing else may depend on it, since nobody knows what a linker puts in between.

use std::collections::BTreeSet;
use std::ops::Range;

use iced_x86::{ConstantOffsets, Instruction, OpKind};

use super::error::ReadError;
use super::linker_error::LinkerError;
use super::places::PlaceInFile;
use super::relocation::Form;

/// Whose address a relocation's symbol is.
pub(super) enum To {
    /// The symbol is in the section of the field, which covers these addresses.
    Own(Range<u64>),
    /// The symbol is in another section of code: its addresses and its name.
    Section(Range<u64>, String),
    /// The symbol is a routine of the host's, which the object does not have.
    Host(String),
    /// The symbol is a per-CPU variable if the field is an operand through GS, or one that counts
    /// from a register and the variable was asked for; otherwise this is wrong with it.
    PerCpu {
        /// The addresses of the variable, or of its section.
        within: Range<u64>,
        /// Whether the variable was [asked for](super::Request::with_data).
        is_wanted: bool,
        /// What is wrong otherwise.
        error: ReadError,
    },
    /// The symbol is data that code may read relative to its own address.
    Fixed {
        /// The addresses of what it is in.
        within: Range<u64>,
        /// What is wrong otherwise.
        error: ReadError,
    },
    /// The address is a number.
    Number,
}

/// Where a relocated field leads.
pub(super) enum Leads {
    /// The field is about the section that it is in.
    Within,
    /// The field follows from a number, and is right for one place of the code only.
    Number,
    Out(Out),
}

/// A field that leads out of its section.
#[derive(Clone)]
pub(super) struct Out {
    /// What it is good for.
    pub(super) use_: Use,
    /// Why it is refused where it is anything else.
    pub(super) error: ReadError,
}

/// What a field is good for that leads out of its section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// A call or a jump with this distance leads to what the symbol names.
    Branch,
    /// An operand through GS with this displacement is a per-CPU variable.
    PerCpu {
        /// Whether it is counted from RIP.
        is_relative: bool,
        /// Whether it may be counted from a register as well, of which nothing is known here: the
        /// prover must find GS base in it.
        is_wanted: bool,
    },
    /// An operand counted from RIP with this displacement is data that was asked for.
    Fixed,
    Nothing,
}

/// At which addresses code may have distances that lead out of its section.
#[derive(Clone, Copy)]
pub(super) enum Across<'a> {
    /// Everywhere: no routine is proved.
    Anywhere,
    Nowhere,
    /// Where calls and jumps have them.
    At(&'a BTreeSet<u64>),
}

impl Across<'_> {
    pub(super) fn allows(self, at: u64) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Nowhere => false,
            Self::At(known) => known.contains(&at),
        }
    }
}

impl Leads {
    /// Where a field at `at` leads that has a symbol at `symbol`, and `value` with its addend.
    pub(super) fn of(
        form: &Form,
        (to, symbol): (To, u64),
        value: u64,
        at: PlaceInFile,
    ) -> Result<Self, ReadError> {
        // The distance of a call or a jump counts from its end, which is that of its field.
        let target = value.wrapping_add(form.width as u64);
        let is_distance = form.relative && form.width == 4;
        let branch_if = |is_branch| if is_branch { Use::Branch } else { Use::Nothing };
        Ok(match to {
            To::Number => Self::Number,
            To::Own(range) => {
                if !form.relative && !(range.start..=range.end).contains(&value) {
                    let section = at.section.clone();
                    return Err(LinkerError::Leaves { at, section }.into());
                }
                Self::Within
            }
            To::Section(range, section) => Self::Out(Out {
                use_: branch_if(is_distance && range.contains(&target)),
                error: LinkerError::Apart { at, section }.into(),
            }),
            To::PerCpu { within, is_wanted, error } => {
                // What is accessed lies at the operand's end, if the distance counts from there.
                let at = if form.relative { target } else { value };
                let is_within = is_in(&within, at, form.relative);
                let is_displacement = form.width == 4 && form.signed && is_within;
                let per_cpu = Use::PerCpu { is_relative: form.relative, is_wanted };
                let use_ = if is_displacement { per_cpu } else { Use::Nothing };
                Self::Out(Out { use_, error })
            }
            To::Fixed { within, error } => {
                let use_ = match is_distance && is_in(&within, target, true) {
                    true => Use::Fixed,
                    false => Use::Nothing,
                };
                Self::Out(Out { use_, error })
            }
            To::Host(name) => Self::Out(Out {
                use_: branch_if(is_distance && target == symbol),
                error: LinkerError::HookAddress { at, symbol: name }.into(),
            }),
        })
    }
}

/// Whether an operand at `at` is in this range. If it is `relative`, it is counted from the end of
/// its field, and an immediate operand may lie between that and the end of the instruction.
fn is_in(within: &Range<u64>, at: u64, relative: bool) -> bool {
    /// The longest that there is.
    const IMMEDIATE: u64 = 4;
    let longest = if relative { IMMEDIATE } else { 0 };
    within.start <= at.saturating_add(longest) && at < within.end
}

/// Whether `field` is the distance of a direct call or jump.
pub(super) fn is_distance_of(
    i: &Instruction,
    fields: &ConstantOffsets,
    field: &Range<u64>,
) -> bool {
    i.op0_kind() == OpKind::NearBranch64
        && fields.immediate_size() == 4
        && i.ip() + fields.immediate_offset() as u64 == field.start
        && i.next_ip() == field.end
        && field.end - field.start == 4
}
