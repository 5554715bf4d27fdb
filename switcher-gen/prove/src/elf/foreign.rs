//! What is read of a file: its code as it lies in memory, and what is known and assumed of it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::choice::{self, Choice, Choices};
use super::error::ReadError;
use super::features::Feature;
use super::places::{BASE, PlaceInFile};
use crate::gate::TargetGate;
use switcher_model::{Changed, Features};

/// The code of an ELF file, as it lies in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where the section begins that holds the code. An object has no address yet: its first
    /// section of code is taken to lie at [`Foreign::BASE`].
    pub base: u64,
    /// The code that the routines of a switcher reach, by address, with relocations applied. If the
    /// file names none of the routines, this is all of its code.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// What Linux has changed there, with these choices.
    pub changed: Vec<Changed>,
    /// The addresses of the names in the code. A global symbol takes precedence over local ones of
    /// the same name, and the first of several local ones counts. The name of a routine is never
    /// ambiguous.
    pub symbols: BTreeMap<String, u64>,
    /// Where the routines of the host's are taken to lie, if the file is an object. What it defines
    /// itself is among the symbols, and goes before these.
    pub hosts: BTreeMap<&'static str, u64>,
    /// What decides about these bytes when Linux boots, and how it was decided.
    pub choices: Choices,
    /// The addresses of data, relative to GS base, by their names: the per-CPU variables of an
    /// object that its code refers to, and those that were [asked for](super::Request::with_data).
    pub data: BTreeMap<String, u64>,
    /// The entries of the IDT that were [said](super::Request::with_gates), in the order of their
    /// vectors.
    pub gates: Vec<TargetGate>,
    /// The sections that the bytes come from, by address.
    pub sections: Vec<CodeSection>,
    /// What decides about the code's address.
    pub linkage: Linkage,
    /// The first place in an object where the code stores an address of its own as a number.
    pub absolute: Option<PlaceInFile>,
    /// Tables that name the code and do not change it, and why.
    pub harmless: Vec<String>,
    /// Sections that name the code, of which it is not known what for: whoever knows that they do
    /// not change it says so with [`Foreign::assume_unpatched`].
    pub unknown: Vec<(String, PlaceInFile)>,
    /// Sections of unknown purpose that the user has declared not to change the code.
    pub unpatched: Vec<(String, PlaceInFile)>,
    /// What else the file does not show and a proof assumes, in whole sentences.
    pub taken: Vec<String>,
}

/// What decides about the address of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// The linker decides: the file is an object.
    Object,
    /// The address is fixed: the file is linked.
    Fixed,
    /// The loader decides: the file is linked and can be loaded anywhere.
    Movable,
}

/// A section of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeSection {
    /// Its name.
    pub name: String,
    /// The addresses it covers; never empty.
    pub range: Range<u64>,
    /// The alignment of its final address. An object asks for it. The code of a linked file lies at
    /// its address, or whole pages away from it.
    pub alignment: u64,
}

/// INT3: what fills gaps, so that a jump into one stops at once.
const FILLER: u8 = 0xCC;

impl Foreign {
    /// Where the code of an object is put: an address such as kernels run at. Objects do not say
    /// where they will run; an address of theirs in 32 bits does not fit here, and is an error.
    pub const BASE: u64 = BASE;

    /// Declares that sections which name the code for an unknown purpose do not change it. A proof
    /// then [assumes](Self::assumed) this.
    pub fn assume_unpatched(&mut self) {
        self.unpatched.append(&mut self.unknown);
    }

    /// What a proof of this code assumes, beside what every proof does, in whole sentences.
    #[must_use]
    pub fn assumed(&self) -> Vec<String> {
        let base = self.pieces.first().map_or(self.base, |(start, _)| *start);
        let mut assumed = Vec::new();
        assumed.extend(match self.linkage {
            Linkage::Fixed => Some(format!(
                "the code runs where it is linked to, its first instruction at {base:#x}: of other \
                 addresses nothing is said"
            )),
            Linkage::Movable => Some(format!(
                "the code is loaded where the file has it, its first instruction at {base:#x}: of \
                 other addresses nothing is said"
            )),
            Linkage::Object => self.absolute.as_ref().map(|at| {
                format!(
                    "the code is linked so that its first instruction lies at {base:#x}: {at} holds \
                     an address as a number, and of other addresses nothing is said"
                )
            }),
        });
        if !self.choices.is_empty() {
            assumed.push(format!(
                "the kernel has booted with {}: other bytes run otherwise",
                choice::text(&self.choices)
            ));
        }
        // Each image is of one way.
        if self.choices.keys().any(|choice| matches!(choice, Choice::Branch(_))) {
            assumed.push(
                "a static branch is not flipped between two executions of it by one routine".into(),
            );
        }
        // The variant says it only of the faults that it knows.
        if self.choices.get(&Choice::ReturnThunk) == Some(&false) {
            assumed.push(
                "returns go through no thunk, as they do on CPUs with other faults than the variant's \
                 (ITS), and where the kernel was told to count calls (say `--boot return-thunk=on` then)"
                    .into(),
            );
        }
        assumed.extend(few(&self.unpatched, |(section, at)| {
            format!("what `{section}` is for, which names {at}, does not change the code")
        }));
        assumed.extend(self.taken.iter().cloned());
        assumed
    }

    /// What a CPU has on which these bytes run, as far as that was a choice.
    #[must_use]
    pub fn features(&self) -> Features {
        match self.choices.get(&Choice::Feature(Feature::SMAP)) {
            Some(true) => Features::SMAP,
            _ => Features::empty(),
        }
    }

    /// All bytes from the first one known to the last. INT3 fills the gaps.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (start, piece) in &self.pieces {
            bytes.resize((start - self.base) as usize, FILLER);
            bytes.extend(piece);
        }
        bytes
    }

    /// The address of `name`.
    ///
    /// # Errors
    /// If no code has this name. The error lists the names that exist.
    pub fn symbol(&self, name: &str) -> Result<u64, ReadError> {
        let known = || self.symbols.keys().cloned().collect();
        self.symbols.get(name).copied().ok_or_else(|| ReadError::no_symbol(name, known()))
    }
}

/// A sentence for each of the first items, and one that says how many more there are.
pub(super) fn few<T>(all: &[T], sentence: impl Fn(&T) -> String) -> Vec<String> {
    /// How many are shown.
    const MANY: usize = 16;
    let mut few: Vec<_> = all.iter().take(MANY).map(sentence).collect();
    let more = all.len().saturating_sub(MANY);
    few.extend((more > 0).then(|| format!("and {more} more of the same")));
    few
}
