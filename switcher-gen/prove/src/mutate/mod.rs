//! Breaks code on purpose, one instruction at a time, to see whether the proofs object.
//!
//! A [`Mutant`] is a whole switcher that differs from another in one thing. It is assembled anew
//! (every jump still leads to its instruction), proved like any other, and then it is
//!
//! * **killed**: refuted, by an obligation, or refused because no theorem can be about the code;
//! * **equivalent**: proved, *and* proved to leave everything as the original does, down to what
//!   the specification does not speak of ([`Prover::equivalent`](crate::Prover::equivalent));
//! * a **hole**: neither. There must be none.

mod assemble;
mod listing;
mod operators;
mod tally;

pub use tally::Tally;

use std::hash::Hash;
use std::rc::Rc;

use iced_x86::{Code, Instruction};

use crate::bad_code::BadCode;
use crate::equivalence::Equivalence;
use crate::mutate::listing::Listing;
use crate::mutate::operators::sequence;
use crate::prover::Prove;
use crate::target::Target;
use crate::verdict::Verdict;
use switcher_gen::Hazard;

/// The kind of change that makes a mutant.
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
    /// An instruction that only looks like the original, in what a CPU does beside executing it.
    Lookalike,
    /// A call of a RET is inserted.
    Return,
    /// The code around a RET lies in the other half of its cache line.
    Line,
    /// A prefix that means nothing there, or that is not allowed.
    Prefix,
    /// An instruction that not every CPU has takes the place of another.
    Existence,
    Unblock,
    /// A store of a value of the host's comes first, to the same place.
    Provenance,
}

impl Operator {
    /// Its name in reports.
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
    /// What the instruction was.
    pub original: String,
    /// What the instruction is now.
    pub changed: String,
    edit: Edit,
    listing: Rc<Listing>,
}

/// A change to a list of instructions, at an index.
#[derive(Clone, Copy, Debug)]
enum Edit {
    /// Another instruction takes its place.
    Replace(usize, Instruction),
    /// It comes once more.
    Duplicate(usize),
    /// The next instruction comes first.
    Swap(usize),
    /// A call of a RET comes before it.
    Return(usize),
    /// It lies so many bytes further on, together with what is around it.
    Shift(usize, u64),
    /// Something is inserted before it.
    Insert(usize, Inserted),
    /// An instruction is inserted before it.
    Before(usize, Instruction),
}

/// What is inserted before an instruction.
#[derive(Clone, Copy, Debug)]
enum Inserted {
    /// An IRETQ to the instruction, which ends the blocking of NMIs and changes nothing else but
    /// the stack below RSP.
    Iretq,
}

/// What became of a mutant.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Refuted: the obligation's name and its hazards.
    Killed(&'static str, &'static [Hazard]),
    /// Refused: no theorem can be about the code.
    Refused(BadCode),
    /// There is no such instruction, and so no mutant.
    NoCode,
    /// Proved, and proved to leave the same.
    Equivalent,
    /// Proved, and yet not the same; or the verdict is not known.
    Hole(String),
}

/// Every mutant of `target`, in a stable order.
#[must_use]
pub fn mutants(target: &Target) -> Vec<Mutant> {
    let listing = Rc::new(Listing::new(target));
    (0..listing.instructions.len()).flat_map(|index| Listing::at(&listing, index)).collect()
}

/// Every mutant of `target` that lacks one of its instructions.
#[must_use]
pub fn deletions(target: &Target) -> Vec<Mutant> {
    let listing = Rc::new(Listing::new(target));
    let all = (0..listing.instructions.len()).filter(|index| listing.repeated(*index).is_none());
    all.map(|index| Listing::delete(&listing, index)).collect()
}

/// The address of the instruction at which [`inserted`] has put others, for those that jump on to
/// it.
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
pub fn judge(prover: &impl Prove, original: &Target, mutant: &Mutant) -> Fate {
    let Some(target) = mutant.target() else { return Fate::NoCode };
    match prover.prove(&target) {
        Verdict::Unsupported(code) => Fate::Refused(code),
        Verdict::Refuted(found) => Fate::Killed(found.obligation.name, found.obligation.rows),
        Verdict::Unknown(why) => Fate::Hole(why),
        Verdict::Interrupted(theorem) => Fate::Hole(format!("{theorem}: interrupted")),
        Verdict::Proved(_) => match prover.prover().equivalent(original, &target) {
            Equivalence::Same => Fate::Equivalent,
            Equivalence::Differs(what) => Fate::Hole(what),
            Equivalence::Unsupported(code) => Fate::Refused(code),
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
                // Nobody jumps to this address.
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

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operator, at, original, changed, .. } = self;
        write!(f, "{} at {at:#x}: `{original}` -> `{changed}`", operator.name())
    }
}
