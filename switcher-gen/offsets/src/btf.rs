//! Structs from BTF, the types that a kernel has of itself while it runs.
//!
//! It is read here and not by a library, since of the libraries one has a licence that is not
//! wanted here, and the other copies every type of a kernel before it says anything, and takes the
//! BTF of a module for that of a kernel.

use crate::flatten::{Aggregate, Member, Shape, Types, flatten};
use crate::input::Input;
use crate::wanted::{Definitions, Wanted, not_found};
use crate::{Found, OffsetsError, Options, Source};

/// How many names for a type may lead to another.
const MOST_STEPS: usize = 64;

// The kinds of types (Documentation/bpf/btf.rst of Linux).
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FWD: u32 = 7;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;
const RESTRICT: u32 = 11;
const FUNC: u32 = 12;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const FLOAT: u32 = 16;
const DECL_TAG: u32 = 17;
const TYPE_TAG: u32 = 18;
const ENUM64: u32 = 19;

/// Bytes of a type's common part.
const COMMON: usize = 12;

fn damaged(what: impl Into<String>) -> OffsetsError {
    OffsetsError::DamagedBtf { what: what.into() }
}

fn split(why: impl Into<String>) -> OffsetsError {
    OffsetsError::SplitBtf { why: why.into() }
}

/// The number of four bytes at `at`.
fn word(bytes: &[u8], at: usize) -> Result<u32, OffsetsError> {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map(|word| u32::from_le_bytes(*word)).ok_or_else(|| damaged("it is cut off"))
}

/// What a file of nothing but BTF says.
pub(crate) fn read_raw(input: &dyn Input, options: &Options) -> Result<Found, OffsetsError> {
    read(&input.bytes(0, input.size())?, false, options)
}

/// What BTF says.
pub(crate) fn read(
    bytes: &[u8],
    is_module: bool,
    options: &Options,
) -> Result<Found, OffsetsError> {
    if is_module {
        return Err(split("the file is a module"));
    }
    let btf = Btf::new(bytes)?;
    let mut definitions = Definitions::new(&options.names);
    let mut others = Vec::new();
    for id in 1..=btf.count() {
        let common = btf.common(id)?;
        let name = btf.name(common.name)?;
        if common.kind != STRUCT {
            continue;
        }
        let Some(wanted) = Wanted::of_name(name, &options.names) else {
            others.push(common.name);
            continue;
        };
        if let Shape::Aggregate(aggregate) = btf.shape(id)? {
            let flat = flatten(&btf, wanted.name(&options.names), &aggregate)?;
            definitions.add(wanted, flat, || Ok(format!("type {id}")))?;
        }
        // The strings of all types tell a module's BTF, but nothing contradicts after this.
        if options.scan == crate::Scan::UntilFound && definitions.is_complete() {
            break;
        }
    }
    if definitions.is_empty() {
        let others = others.into_iter().map(|name| btf.text(name));
        return Err(not_found(&options.names, others.collect::<Result<Vec<_>, _>>()?));
    }
    definitions.finish(Source::Btf)
}

struct Btf<'b> {
    types: &'b [u8],
    strings: &'b [u8],
    /// Where each type begins, from number 1 on.
    starts: Vec<u32>,
}

/// What all types have.
struct Common {
    name: u32,
    kind: u32,
    /// A bit whose meaning depends on the kind.
    flag: bool,
    /// How many members there are.
    count: u32,
    /// A size or a type.
    value: u32,
}

impl<'b> Btf<'b> {
    fn new(bytes: &'b [u8]) -> Result<Self, OffsetsError> {
        const VERSION: u8 = 1;
        match bytes.get(..3) {
            Some([0x9F, 0xEB, VERSION]) => {}
            Some([0x9F, 0xEB, other]) => {
                return Err(damaged(format!("version {other} is not known")));
            }
            Some([0xEB, 0x9F, _]) => return Err(OffsetsError::BigEndian),
            _ => return Err(damaged("it does not begin as BTF does")),
        }
        let header = word(bytes, 4)?;
        let part = |at: usize| {
            let (from, size) = (word(bytes, at)?, word(bytes, at + 4)?);
            let from = u64::from(header) + u64::from(from);
            let to = from + u64::from(size);
            let part = usize::try_from(from).ok().zip(usize::try_from(to).ok());
            let part = part.and_then(|(from, to)| bytes.get(from..to).map(|part| (part, to)));
            part.ok_or_else(|| damaged("it is cut off"))
        };
        let ((types, types_end), (strings, strings_end)) = (part(8)?, part(16)?);
        let rest = bytes.get(types_end.max(strings_end)..).unwrap_or_default();
        if rest.windows(3).any(|it| it == [0x9F, 0xEB, VERSION]) {
            return Err(OffsetsError::SeveralBtf);
        }
        if strings.first() != Some(&0) {
            return Err(split("its strings do not begin with the empty one"));
        }
        let mut btf = Self { types, strings, starts: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            btf.starts.push(u32::try_from(at).map_err(|_| damaged("it is too large"))?);
            let common = btf.common_at(at)?;
            let each = match common.kind {
                STRUCT | UNION | DATASEC | ENUM64 => 12,
                ENUM | FUNC_PROTO => 8,
                _ => 0,
            };
            let once = match common.kind {
                INT | VAR | DECL_TAG => 4,
                ARRAY => 12,
                PTR | STRUCT | UNION | ENUM | FWD | TYPEDEF | VOLATILE | CONST | RESTRICT
                | FUNC | FUNC_PROTO | DATASEC | FLOAT | TYPE_TAG | ENUM64 => 0,
                other => {
                    return Err(damaged(format!(
                        "type {} is of kind {other}, which is not known, as is how long it is",
                        btf.starts.len()
                    )));
                }
            };
            at += COMMON + once + each * common.count as usize;
        }
        if at != types.len() {
            return Err(damaged("the last type is cut off"));
        }
        Ok(btf)
    }

    fn count(&self) -> u32 {
        self.starts.len() as u32
    }

    fn common_at(&self, at: usize) -> Result<Common, OffsetsError> {
        let info = word(self.types, at + 4)?;
        Ok(Common {
            name: word(self.types, at)?,
            kind: info >> 24 & 0x1F,
            flag: info >> 31 != 0,
            count: info & 0xFFFF,
            value: word(self.types, at + 8)?,
        })
    }

    fn start(&self, id: u32) -> Result<usize, OffsetsError> {
        let start = id.checked_sub(1).and_then(|id| self.starts.get(id as usize));
        start
            .map(|start| *start as usize)
            .ok_or_else(|| split(format!("it refers to type {id}, and has {}", self.count())))
    }

    fn common(&self, id: u32) -> Result<Common, OffsetsError> {
        self.common_at(self.start(id)?)
    }

    fn name(&self, at: u32) -> Result<&'b [u8], OffsetsError> {
        let rest = self.strings.get(at as usize..).filter(|rest| !rest.is_empty());
        let rest = rest.ok_or_else(|| {
            split(format!("it refers to string {at:#x}, and has {:#x}", self.strings.len()))
        })?;
        Ok(rest.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    fn text(&self, at: u32) -> Result<String, OffsetsError> {
        Ok(String::from_utf8_lossy(self.name(at)?).into_owned())
    }

    /// A name, unless it is empty.
    fn some_text(&self, at: u32) -> Result<Option<String>, OffsetsError> {
        let text = self.text(at)?;
        Ok((!text.is_empty()).then_some(text))
    }

    fn members(&self, start: usize, common: &Common) -> Result<Vec<Member<u32>>, OffsetsError> {
        let member = |number: usize| {
            let at = start + COMMON + 12 * number;
            let name = self.some_text(word(self.types, at)?)?;
            let (of, offset) = (word(self.types, at + 4)?, word(self.types, at + 8)?);
            let (bits, offset) = match common.flag {
                true => (offset >> 24, offset & 0xFF_FFFF),
                false => (0, offset),
            };
            let is_bit_field = bits != 0 || !offset.is_multiple_of(8) || self.is_part(of)?;
            Ok(Member { name, at: u64::from(offset / 8), is_bit_field, of })
        };
        (0..common.count as usize).map(member).collect()
    }

    /// Whether a type is a number of fewer bits than its bytes have, as bit fields once were.
    fn is_part(&self, id: u32) -> Result<bool, OffsetsError> {
        let Ok(start) = self.start(id) else { return Ok(false) };
        let common = self.common_at(start)?;
        if common.kind != INT {
            return Ok(false);
        }
        let bits = word(self.types, start + COMMON)?;
        Ok(bits >> 16 & 0xFF != 0 || bits & 0xFF != common.value.saturating_mul(8))
    }
}

impl Types for Btf<'_> {
    type Id = u32;

    fn shape(&self, id: u32) -> Result<Shape<u32>, OffsetsError> {
        let mut id = id;
        for _ in 0..MOST_STEPS {
            if id == 0 {
                return Ok(Shape::Scalar { size: None });
            }
            let start = self.start(id)?;
            let common = self.common_at(start)?;
            let size = Some(u64::from(common.value));
            return Ok(match common.kind {
                TYPEDEF | VOLATILE | CONST | RESTRICT | TYPE_TAG => {
                    id = common.value;
                    continue;
                }
                INT | ENUM | ENUM64 | FLOAT => Shape::Scalar { size },
                PTR => Shape::Scalar { size: Some(8) },
                ARRAY => {
                    let element = word(self.types, start + COMMON)?;
                    let count = word(self.types, start + COMMON + 8)?;
                    Shape::Array { element, counts: vec![Some(count.into())] }
                }
                STRUCT | UNION => Shape::Aggregate(Aggregate {
                    name: self.some_text(common.name)?,
                    size: common.value.into(),
                    members: self.members(start, &common)?,
                }),
                _ => Shape::Scalar { size: None },
            });
        }
        Err(damaged("a type is defined by itself"))
    }
}
