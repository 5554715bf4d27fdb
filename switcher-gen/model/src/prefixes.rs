//! Refuses prefixes that mean nothing where they stand.
//!
//! A CPU ignores most of them, or takes them for something else on the next generation; decoders
//! disagree about them before anything else (F3 41 90 is XCHG, and PAUSE to some). So whoever reads
//! code refuses each prefix without which the instruction would be the same, but for the forms that
//! assemblers, linkers and kernels are known to write. Sources: Intel SDM vol. 2, 2.1.1 and 2.2.1;
//! AMD APM vol. 3, 1.2; [`KNOWN`] names the others.

use super::operation::Op;

/// A prefix that means nothing where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MeaninglessPrefix {
    /// Its name.
    pub(super) name: &'static str,
    /// Its byte.
    pub(super) byte: u8,
}

/// An instruction's bytes: prefixes, and what they stand in front of.
struct Split<'a> {
    legacy: &'a [u8],
    rex: Option<u8>,
    opcode: &'a [u8],
}

/// Which forms have prefixes that change nothing and are accepted all the same.
struct Known {
    #[cfg(test)]
    why: &'static str,
    is: fn(&Split<'_>) -> bool,
    #[cfg(test)]
    examples: &'static [&'static [u8]],
}

macro_rules! known {
    ($($why:literal, $is:expr, $examples:expr;)*) => {
        &[$(Known {
            #[cfg(test)]
            why: $why,
            is: $is,
            #[cfg(test)]
            examples: $examples,
        }),*]
    };
}

/// The list of the forms that are known to be harmless.
const KNOWN: &[Known] = known! {
    "PAUSE and ENDBR64: F3 is a part of the operation's code",
    |i| i.rex.is_none() && matches!((i.legacy, i.opcode), ([0xF3], [0x90] | [0x0F, 0x1E, 0xFA])),
    &[&[0xF3, 0x90], &[0xF3, 0x0F, 0x1E, 0xFA]];

    "NOPs of several bytes, as the vendors recommend them and assemblers lengthen them (Intel SDM \
     vol. 2, NOP; gas, i386_align_code)",
    |i| {
        let is_nop = match *i.opcode {
            [0x90] => true,
            _ => is_long_nop(i.opcode),
        };
        let rex = i.rex.is_none() || i.rex == Some(0x48) && i.opcode.len() > 1;
        is_nop && rex && i.legacy.iter().all(|byte| matches!(byte, 0x66 | 0x2E))
    },
    &[
        &[0x66, 0x90],
        &[0x66, 0x66, 0x90],
        &[0x48, 0x0F, 0x1F, 0x01],
        &[0x66, 0x0F, 0x1F, 0x44, 0x00, 0x00],
        &[0x66, 0x2E, 0x0F, 0x1F, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        &[0x66, 0x66, 0x2E, 0x0F, 0x1F, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
        &[0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x2E, 0x0F, 0x1F, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00],
    ];

    "CS in front of a direct jump or call, which kernels are compiled with so that there is room for \
     an LFENCE (gcc, -mindirect-branch-cs-prefix), and both hints in front of a Jcc",
    |i| {
        let is_conditional = matches!(i.opcode, [0x70..=0x7F, ..] | [0x0F, 0x80..=0x8F, ..]);
        let is_direct = is_conditional || matches!(i.opcode, [0xE8 | 0xE9 | 0xEB, ..]);
        let is_hint = i.legacy == [0x2E] || i.legacy == [0x3E] && is_conditional;
        is_direct && i.rex.is_none() && is_hint
    },
    &[
        &[0x2E, 0xE8, 0, 0, 0, 0],
        &[0x2E, 0xE9, 0, 0, 0, 0],
        &[0x2E, 0x0F, 0x84, 0, 0, 0, 0],
        &[0x3E, 0x75, 0],
    ];

    "NOTRACK in front of an indirect jump or call (Intel SDM vol. 1, 17.3.3); what it leads to must \
     be ENDBR64 here all the same",
    |i| {
        let is_indirect = matches!(i.opcode, [0xFF, modrm, ..] if matches!(reg(*modrm), 2 | 4));
        // A REX in front of it is judged by itself.
        is_indirect && i.legacy == [0x3E] && i.rex.is_none_or(|rex| rex == 0x41)
    },
    &[&[0x3E, 0xFF, 0xE0], &[0x3E, 0xFF, 0xD1], &[0x3E, 0x41, 0xFF, 0xE3]];

    "an address size in front of a direct call, by which linkers lengthen one that was indirect (x86-64 \
     psABI, B.2)",
    |i| i.rex.is_none() && i.legacy == [0x67] && i.opcode.first() == Some(&0xE8),
    &[&[0x67, 0xE8, 0, 0, 0, 0]];
};

const fn reg(modrm: u8) -> u8 {
    modrm >> 3 & 7
}

/// 0F 1F /0.
fn is_long_nop(opcode: &[u8]) -> bool {
    matches!(opcode, [0x0F, 0x1F, modrm, ..] if reg(*modrm) == 0)
}

const fn is_legacy(byte: u8) -> bool {
    name(byte).is_some()
}

const fn is_rex(byte: u8) -> bool {
    byte >> 4 == 4
}

/// The name of a legacy prefix.
const fn name(byte: u8) -> Option<&'static str> {
    Some(match byte {
        0x26 => "ES",
        0x2E => "CS",
        0x36 => "SS",
        0x3E => "DS",
        0x64 => "FS",
        0x65 => "GS",
        0x66 => "operand size",
        0x67 => "address size",
        0xF0 => "LOCK",
        0xF2 => "REPNE",
        0xF3 => "REP",
        _ => return None,
    })
}

/// The group of a legacy prefix: there is at most one of each.
const fn group(byte: u8) -> u8 {
    match byte {
        0xF0 | 0xF2 | 0xF3 => 1,
        0x66 => 3,
        0x67 => 4,
        _ => 2,
    }
}

/// Where `code` begins with a REX that is ignored, because it is not the last prefix.
pub(super) fn misplaced(code: &[u8]) -> Option<MeaninglessPrefix> {
    let mut ahead = code.iter().skip_while(|byte| is_legacy(**byte));
    let (rex, next) = (*ahead.next()?, *ahead.next()?);
    let is_ignored = is_rex(rex) && (is_legacy(next) || is_rex(next));
    is_ignored.then_some(MeaninglessPrefix { name: "REX in front of another prefix", byte: rex })
}

/// A prefix that means nothing in the instruction that all of `code` is. None of its prefixes is
/// [`misplaced`]. `decode` decodes shorter bytes that end where `code` ends.
pub(super) fn superfluous(
    code: &[u8],
    op: &Op,
    decode: impl Fn(&[u8]) -> Option<Op>,
) -> Option<MeaninglessPrefix> {
    let count = code.iter().take_while(|byte| is_legacy(**byte)).count();
    let (legacy, rest) = code.split_at(count);
    let rex = rest.first().copied().filter(|byte| is_rex(*byte));
    if count == 0 && rex.is_none() {
        return None;
    }
    let opcode = &rest[usize::from(rex.is_some())..];
    let split = Split { legacy, rex, opcode };
    let is_known = KNOWN.iter().any(|known| (known.is)(&split));
    for (index, &byte) in legacy.iter().enumerate().filter(|_| !is_known) {
        let is_repeated = legacy[..index].iter().any(|other| group(*other) == group(byte));
        let without = [&legacy[..index], &legacy[index + 1..], rest].concat();
        if is_repeated || decode(&without).as_ref() == Some(op) {
            return Some(MeaninglessPrefix { name: name(byte).unwrap_or_default(), byte });
        }
    }
    let rex = rex.filter(|_| !(is_known && is_long_nop(opcode)))?;
    let with = |rex: &[u8]| decode(&[legacy, rex, opcode].concat());
    let bits = [(8, "REX.W"), (4, "REX.R"), (2, "REX.X"), (1, "REX.B")];
    let mut set = bits.into_iter().filter(|(bit, _)| rex & bit != 0).peekable();
    if set.peek().is_none() {
        // It says that SPL is meant and not AH, and so on.
        let same = with(&[]).as_ref() == Some(op);
        return same.then_some(MeaninglessPrefix { name: "REX", byte: rex });
    }
    let found = set.find(|(bit, _)| with(&[rex & !bit]).as_ref() == Some(op));
    found.map(|(_, name)| MeaninglessPrefix { name, byte: rex })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Program, ProgramError};

    fn read(code: &[u8]) -> Result<Op, ProgramError> {
        let program = Program::new(0x1000, code.to_vec());
        program.at(0x1000).unwrap().copied().map_err(Clone::clone)
    }

    #[test]
    fn the_known_forms_are_read() {
        for known in KNOWN {
            for example in known.examples {
                let op = read(example).unwrap_or_else(|why| panic!("{}: {why}", known.why));
                assert_eq!(op.next, 0x1000 + example.len() as u64, "{}", known.why);
            }
        }
    }

    #[test]
    fn a_prefix_that_means_nothing_is_refused_by_name() {
        let all: [(&str, &[u8]); 32] = [
            ("operand size", &[0x66, 0x48, 0x89, 0xC8]),
            ("operand size", &[0x66, 0x0F, 0x01, 0xF8]),
            ("operand size", &[0x66, 0x88, 0xC8]),
            ("operand size", &[0x66, 0x0F, 0x30]),
            ("operand size", &[0x66, 0x66, 0x89, 0xC8]),
            ("operand size", &[0x66, 0x0F, 0x22, 0xD8]),
            ("operand size", &[0x66, 0xF3, 0x48, 0x0F, 0xAE, 0xD8]),
            ("address size", &[0x67, 0x89, 0xC8]),
            ("address size", &[0x67, 0x0F, 0x01, 0xF8]),
            ("CS", &[0x2E, 0x48, 0x8B, 0x07]),
            ("DS", &[0x3E, 0x48, 0x8B, 0x07]),
            ("ES", &[0x26, 0x48, 0x8B, 0x07]),
            ("SS", &[0x36, 0x48, 0x8B, 0x07]),
            ("CS", &[0x2E, 0x89, 0xC8]),
            ("GS", &[0x65, 0x89, 0xC8]),
            // LEA does not access what it has the address of.
            ("GS", &[0x65, 0x48, 0x8D, 0x01]),
            // CPUs obey the last segment prefix.
            ("FS", &[0x64, 0x65, 0x48, 0x8B, 0x07]),
            ("CS", &[0x2E, 0x0F, 0x07]),
            ("DS", &[0x3E, 0xE8, 0, 0, 0, 0]),
            ("CS", &[0x2E, 0x2E, 0xE8, 0, 0, 0, 0]),
            ("REX", &[0x40, 0x89, 0xC8]),
            ("REX", &[0x40, 0x0F, 0x01, 0xF8]),
            ("REX.W", &[0x48, 0x0F, 0x05]),
            ("REX.W", &[0x48, 0x50]),
            ("REX.W", &[0x48, 0xFF, 0xE0]),
            ("REX.W", &[0x48, 0x88, 0xC8]),
            ("REX.X", &[0x4A, 0x89, 0xC8]),
            ("REX.R", &[0x4C, 0x0F, 0x07]),
            ("REX.B", &[0x49, 0xCF]),
            ("REX.X", &[0x4A, 0x8B, 0x07]),
            ("REX in front of another prefix", &[0x48, 0x66, 0x89, 0xC8]),
            ("REX in front of another prefix", &[0x41, 0x48, 0x89, 0xC8]),
        ];
        for (name, code) in all {
            match read(code) {
                Err(ProgramError::Prefix { prefix, .. }) => {
                    assert!(prefix.starts_with(name), "{code:02x?}: {prefix}");
                }
                other => panic!("{code:02x?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_prefix_that_means_something_is_read() {
        let all: [&[u8]; 11] = [
            &[0x66, 0x89, 0xC8],
            &[0x48, 0x89, 0xC8],
            &[0x41, 0x90],
            &[0x40, 0x88, 0xE0],
            &[0x65, 0x48, 0x8B, 0x07],
            &[0x48, 0x0F, 0x07],
            &[0x48, 0xCF],
            &[0xF3, 0x48, 0x0F, 0xAE, 0xD8],
            &[0xF0, 0x48, 0x01, 0x07],
            &[0x66, 0xF0, 0x01, 0x07],
            &[0x4B, 0x8B, 0x04, 0x08],
        ];
        for code in all {
            assert!(read(code).is_ok(), "{code:02x?}: {:?}", read(code));
        }
    }
}
