//! Our own images, attacked: code put in front of a place or in the place of some, and what becomes
//! of it.

#![allow(dead_code, reason = "each test uses some of it")]

use iced_x86::{Code, Instruction, MemoryOperand, Register};
use switcher_gen::Image;
use switcher_gen::asm::Label;
use switcher_prove::mutate;
use switcher_prove::{Findings, Prover, Target, Verdict};

pub(crate) fn image(variant: &str) -> Image {
    Image::new(&variant.parse().unwrap()).unwrap()
}

/// An image, and where it is attacked.
pub(crate) struct Ours {
    pub(crate) image: Image,
    pub(crate) target: Target,
}

impl Ours {
    pub(crate) fn new(variant: &str) -> Self {
        let image = image(variant);
        let target = Target::image(&image);
        Self { image, target }
    }

    pub(crate) fn at(&self, label: Label) -> u64 {
        Target::BASE + u64::from(self.image.offset(label))
    }

    /// `more` in front of what is at `label`.
    pub(crate) fn with(&self, label: Label, more: &[Instruction]) -> Target {
        mutate::inserted(&self.target, self.at(label), more).unwrap()
    }

    /// The instruction after `from` that reads `text`.
    pub(crate) fn find(&self, from: Label, text: &str) -> u64 {
        let mut at = self.at(from);
        while self.target.program.text(at).unwrap() != text {
            assert!(at < self.at(Label::End), "`{text}` is not there");
            at = self.target.program.instruction(at).next_ip();
        }
        at
    }

    /// The first of that code after `from`.
    pub(crate) fn code(&self, from: Label, code: Code) -> u64 {
        let mut at = self.at(from);
        while self.target.program.instruction(at).code() != code {
            assert!(at < self.at(Label::End), "{code:?} is not there");
            at = self.target.program.instruction(at).next_ip();
        }
        at
    }

    /// A jump to what `more` stands in front of.
    pub(crate) fn on(&self, code: Code) -> Instruction {
        Instruction::with_branch(code, mutate::behind(&self.target)).unwrap()
    }

    /// The code with other bytes.
    pub(crate) fn patched(&self, at: u64, bytes: &[u8]) -> Target {
        let mut target = self.target.clone();
        target.program.patch(at, bytes);
        target
    }

    pub(crate) fn gate(&self, vector: u8) -> usize {
        let mut gates = self.target.gates.iter().flatten();
        gates.position(|gate| gate.vector == vector).unwrap()
    }

    pub(crate) fn stub(&self, vector: u8) -> u64 {
        self.target.gates.as_ref().unwrap()[self.gate(vector)].address
    }
}

pub(crate) fn stack(displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RSP, displacement)
}

#[track_caller]
pub(crate) fn refused(target: &Target, row: u8, obligation: &str) {
    // What is wrong on a path may be wrong where a prediction leads, too.
    let Findings { refuted, refused, .. } = Prover::default().findings(target).unwrap();
    let found = refuted.iter().find(|found| found.obligation.name == obligation);
    let found = found.unwrap_or_else(|| panic!("{obligation}: {refuted:?}, {refused:?}"));
    assert!(found.obligation.rows.iter().any(|it| it.number() == row), "row {row}: {found}");
    assert!(found.replay(target), "{found}");
}

#[track_caller]
pub(crate) fn proved(target: &Target) {
    match Prover::default().prove(target) {
        Verdict::Proved(_) => {}
        Verdict::Refuted(found) => panic!("{found}"),
        other => panic!("{other:?}"),
    }
}
