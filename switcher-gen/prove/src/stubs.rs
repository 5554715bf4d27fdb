//! The stubs of event entries: which of them are alike, so that one of them is executed for all.
//!
//! The vector is an unknown of its theorem: all code after the stubs is executed with it, so that
//! what treats one vector unlike the others is a path of its own. The stubs themselves are code,
//! and each names its vector. They are put into [parts](Stubs::partition): in one part are those
//! that execute the same instructions, in the same windows and on the same stack, push **their
//! own** vector, and jump to one place. One of them is executed, and what it has pushed becomes the
//! unknown. A stub that does anything else is like no other: it is a part by itself and is executed
//! with its number.

use std::hash::Hash;

use iced_x86::{Code, ConstantOffsets, Decoder, DecoderOptions};

use crate::gate::TargetGate;
use crate::target::Target;
use crate::target::looks::{Looks, looks};
use crate::vectors::{Vectors, is_one_of};
use switcher_model::Domain;

/// Vectors with stubs that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alike {
    /// In ascending order; the first is the one whose stub is executed.
    vectors: Vec<u8>,
    /// What is executed if there is more than one: the PUSH of the first, and what the stub is.
    stub: Option<Stub>,
}

impl Alike {
    /// The vector that stands for all.
    pub(crate) fn first(&self) -> u8 {
        self.vectors[0]
    }

    /// Whether it stands for others.
    pub(crate) const fn has_others(&self) -> bool {
        self.vectors.len() > 1
    }

    /// The PUSH whose number is that of its vector, if there is one.
    pub(crate) fn push_at(&self) -> Option<u64> {
        self.stub.as_ref().map(|stub| stub.push_at)
    }

    /// What such a PUSH leaves of `vector`.
    pub(crate) fn pushed<D: Domain>(&self, d: &D, vector: D::Word) -> D::Word {
        match &self.stub {
            Some(Stub { is_byte: false, .. }) => vector,
            _ => d.sign_extend(vector, 1),
        }
    }

    /// Whether `word` is one of these.
    pub(crate) fn holds<D: Domain>(&self, d: &D, word: D::Word) -> D::Bit {
        is_one_of(d, word, self.vectors.iter().copied())
    }

    /// What proofs are kept by: without what says where the stub lies. The [`Looks`] of what is
    /// executed are kept apart.
    pub(crate) fn key(&self) -> AlikeKey<'_> {
        let Self { vectors, stub } = self;
        let is_byte =
            stub.as_ref().map(|Stub { is_byte, looks: _, to: _, ist: _, push_at: _ }| *is_byte);
        AlikeKey { vectors, is_byte }
    }
}

/// An [`Alike`] as proofs are kept by it.
#[derive(Hash)]
pub(crate) struct AlikeKey<'a> {
    vectors: &'a [u8],
    /// See [`Stub`].
    is_byte: Option<bool>,
}

/// A stub as it is but for its vector.
#[derive(Clone, Debug)]
struct Stub {
    /// All that a proof looks at of its instructions, the PUSH's number left out.
    looks: Vec<Looks>,
    /// Where its jump leads.
    to: u64,
    /// The stack of its gate.
    ist: u8,
    /// Whether the PUSH is of a byte with a sign, or else of four bytes.
    is_byte: bool,
    push_at: u64,
}

impl PartialEq for Stub {
    fn eq(&self, other: &Self) -> bool {
        // Where a stub lies does not matter.
        let Self { looks, to, ist, is_byte, push_at: _ } = self;
        (looks, to, ist, is_byte) == (&other.looks, &other.to, &other.ist, &other.is_byte)
    }
}

impl Eq for Stub {}

/// The stub of each vector, if it is one of those that may be like others.
pub(crate) struct Stubs {
    all: Vec<Option<Stub>>,
}

impl Stubs {
    /// Looks at all stubs of `target`, whose gate of a vector `gate` says.
    pub(crate) fn of<'t>(target: &Target, gate: impl Fn(u8) -> Option<&'t TargetGate>) -> Self {
        let stub = |vector| gate(vector).and_then(|gate| stub_of(target, gate));
        Self { all: (0..=u8::MAX).map(stub).collect() }
    }

    /// These vectors by stubs that are alike, those of most vectors first.
    pub(crate) fn partition(&self, vectors: Vectors) -> Vec<Alike> {
        let mut parts: Vec<Alike> = Vec::new();
        for vector in vectors.all() {
            let stub = self.all[usize::from(vector)].as_ref();
            let stub = stub.filter(|_| !matches!(vectors, Vectors::One(_)));
            match parts.iter_mut().find(|part| stub.is_some() && part.stub.as_ref() == stub) {
                Some(part) => part.vectors.push(vector),
                None => parts.push(Alike { vectors: vec![vector], stub: stub.cloned() }),
            }
        }
        parts.sort_by_key(|part| std::cmp::Reverse(part.vectors.len()));
        parts
    }
}

/// The stub of a gate, if it is an optional ENDBR64, a PUSH of the vector, and a JMP.
fn stub_of(target: &Target, gate: &TargetGate) -> Option<Stub> {
    let program = &target.program;
    let mut executed = Vec::with_capacity(3);
    let mut push = None;
    let mut at = gate.address;
    for _ in 0..3 {
        if !matches!(program.at(at), Some(Ok(_))) {
            return None;
        }
        let (instruction, offsets) = decoded(target, at);
        let mut here = looks(target, at, false);
        match instruction.code() {
            Code::Endbr64 if push.is_none() => {}
            code @ (Code::Pushq_imm8 | Code::Pushq_imm32) if push.is_none() => {
                let is_byte = code == Code::Pushq_imm8;
                let own = match is_byte {
                    true => i64::from(gate.vector.cast_signed()),
                    false => gate.vector.into(),
                };
                if instruction.immediate(0) != own.cast_unsigned() {
                    return None;
                }
                here.bytes.truncate(offsets.immediate_offset());
                push = Some((at, is_byte));
            }
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 => {
                let (push_at, is_byte) = push?;
                executed.push(here);
                let to = instruction.near_branch_target();
                return Some(Stub { looks: executed, to, ist: gate.ist, is_byte, push_at });
            }
            _ => return None,
        }
        executed.push(here);
        at = instruction.next_ip();
    }
    None
}

fn decoded(target: &Target, at: u64) -> (iced_x86::Instruction, ConstantOffsets) {
    let mut decoder = Decoder::with_ip(64, target.program.from(at), at, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let offsets = decoder.get_constant_offsets(&instruction);
    (instruction, offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryPoints;
    use crate::theorem::{Theorem, Whose};
    use switcher_gen::arch::vector;
    use switcher_gen::{Image, Variant};

    /// In each situation in which hardware can deliver an event, each vector but the one that
    /// nothing raises is of exactly one theorem.
    #[test]
    fn every_vector_is_of_a_theorem_wherever_it_comes() {
        let is_own = |vector| [vector::DB, vector::NMI, vector::MC, vector::DF].contains(&vector);
        for vector in 0..=u8::MAX {
            let of = |wanted: &[Whose]| {
                let events = Theorem::EVENTS.into_iter().filter_map(Theorem::event);
                let there = events.filter(|(_, whose)| wanted.contains(whose));
                there.filter(|(vectors, _)| vectors.contains(vector)).count()
            };
            let once = usize::from(vector != vector::SEGMENT_OVERRUN);
            assert_eq!(of(&[Whose::Guest]), once, "{vector}");
            assert_eq!(of(&[Whose::Ring0, Whose::Elsewhere]), once, "{vector}");
            // What has a stack of its own finds any ring 0 alike.
            let at_iretq = usize::from(!is_own(vector)) * once;
            assert_eq!(of(&[Whose::Iretq, Whose::AtIretq]), at_iretq, "{vector}");
        }
    }

    #[test]
    fn all_stubs_of_a_kind_are_alike_in_our_images() {
        for variant in Variant::representative() {
            let target = Target::image(&Image::new(&variant).unwrap());
            let points = EntryPoints::of(&target);
            for theorem in Theorem::EVENTS {
                let parts = points.entry(theorem).stubs();
                let is_one = parts.len() == usize::from(theorem.event().is_some());
                assert!(is_one, "{variant}: {theorem}: {parts:?}");
            }
        }
    }

    #[test]
    fn a_set_of_vectors_is_what_it_says() {
        let d = switcher_model::Concrete::default();
        for vectors in [Vectors::Plain, Vectors::Coded, Vectors::OfIretq, Vectors::NotOfIretq] {
            for vector in 0..=u8::MAX {
                assert_eq!(vectors.hold(&d, vector.into()), vectors.contains(vector), "{vector}");
            }
        }
    }
}
