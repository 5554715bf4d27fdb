//! Names: where each of them is, and which of them are looked for.
//!
//! Most names are offsets into one section, and the same name has the same offset in many units. So
//! each offset is looked up once, and the section is not in memory.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

use gimli::AttributeValue;

use super::unit::{Unit, Value};
use crate::elf::{Elf, Section};
use crate::input::Input;
use crate::relocate::Relocations;
use crate::wanted::Wanted;
use crate::{Names, OffsetsError};

/// The longest name. Those of C++ and Rust have a tenth.
const LONGEST: u64 = 4096;
/// How many names are remembered. A kernel's structs have a quarter; `ld -r` leaves more, since it
/// does not join strings.
const MOST_KNOWN: usize = 1 << 17;

/// The sections that have names.
pub(super) struct Strings<'i> {
    names: &'i Names,
    strings: Option<Section<'i>>,
    line_strings: Option<Section<'i>>,
    offsets: Option<(Section<'i>, Option<Relocations<'i>>)>,
    /// The offsets of the strings by number, when they are needed.
    numbered: OnceCell<Vec<u8>>,
    /// What the offsets stand for that were looked up.
    known: RefCell<HashMap<u64, Meaning>>,
    /// Names of structs that stand in the units themselves.
    inline: RefCell<Vec<String>>,
}

/// What a name is to whoever looks for structs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Wanted(Wanted),
    Another,
}

/// Where a name is.
enum At<'v> {
    Strings(u64),
    LineStrings(u64),
    Here(&'v [u8]),
    Elsewhere,
}

impl<'i> Strings<'i> {
    pub(super) fn new(elf: &Elf<'i>, names: &'i Names) -> Result<Self, OffsetsError> {
        let offsets = match elf.first(".debug_str_offsets")? {
            Some(section) => {
                let relocations = Relocations::new(elf, &section)?;
                Some((section, relocations))
            }
            None => None,
        };
        Ok(Self {
            names,
            strings: elf.first(".debug_str")?,
            line_strings: elf.first(".debug_line_str")?,
            offsets,
            numbered: OnceCell::new(),
            known: RefCell::default(),
            inline: RefCell::default(),
        })
    }

    pub(super) fn name_of(&self, wanted: Wanted) -> &'i str {
        wanted.name(self.names)
    }

    /// Whether this name of a struct is looked for.
    pub(super) fn meaning(&self, unit: &Unit, value: &Value<'_>) -> Result<Meaning, OffsetsError> {
        let of = |name: &[u8]| {
            Wanted::of_name(name, self.names).map_or(Meaning::Another, Meaning::Wanted)
        };
        match self.at(unit, value)? {
            At::Strings(at) => {
                if let Some(meaning) = self.known.borrow().get(&at) {
                    return Ok(*meaning);
                }
                let meaning = of(&string(self.strings.as_ref(), at)?);
                let mut known = self.known.borrow_mut();
                if known.len() < MOST_KNOWN {
                    known.insert(at, meaning);
                }
                Ok(meaning)
            }
            At::LineStrings(at) => Ok(of(&string(self.line_strings.as_ref(), at)?)),
            At::Here(name) => {
                /// How many are kept, to be shown if nothing is found.
                const MOST: usize = 1 << 14;
                let mut inline = self.inline.borrow_mut();
                if inline.len() < MOST {
                    inline.push(String::from_utf8_lossy(name).into_owned());
                }
                Ok(of(name))
            }
            // Whoever has taken the names out has done so with all of them.
            At::Elsewhere => Err(unit.elsewhere("the name of a struct")),
        }
    }

    /// A name as text.
    pub(super) fn text(&self, unit: &Unit, value: &Value<'_>) -> Result<String, OffsetsError> {
        let bytes = match self.at(unit, value)? {
            At::Strings(at) => string(self.strings.as_ref(), at)?,
            At::LineStrings(at) => string(self.line_strings.as_ref(), at)?,
            At::Here(name) => name.to_vec(),
            At::Elsewhere => return Err(unit.elsewhere("a name")),
        };
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// What the source of a unit is called, or where the unit lies.
    pub(super) fn title(&self, unit: &Unit) -> String {
        let root = unit.root().ok().flatten();
        let name = root.and_then(|root| {
            let value = root.attr_value(gimli::DW_AT_name)?;
            self.text(unit, &value).ok()
        });
        name.unwrap_or_else(|| unit.place())
    }

    /// The names of structs that were seen and not looked for.
    pub(super) fn others(&self) -> Result<Vec<String>, OffsetsError> {
        let known = self.known.borrow();
        let mut others = self.inline.borrow().clone();
        for at in known.keys() {
            let name = string(self.strings.as_ref(), *at)?;
            others.push(String::from_utf8_lossy(&name).into_owned());
        }
        Ok(others)
    }

    fn at<'v>(&self, unit: &Unit, value: &Value<'v>) -> Result<At<'v>, OffsetsError> {
        Ok(match value {
            AttributeValue::String(name) => At::Here(name.slice()),
            AttributeValue::DebugStrRef(at) => At::Strings(at.0 as u64),
            AttributeValue::DebugLineStrRef(at) => At::LineStrings(at.0 as u64),
            AttributeValue::DebugStrOffsetsIndex(index) => {
                At::Strings(self.numbered(unit, index.0 as u64)?)
            }
            AttributeValue::DebugStrRefSup(_) => At::Elsewhere,
            _ => return Err(unit.damaged("a name is no string")),
        })
    }

    /// Where the string of a number is.
    fn numbered(&self, unit: &Unit, number: u64) -> Result<u64, OffsetsError> {
        let (Some(base), Some((section, relocations))) = (unit.string_offsets, &self.offsets)
        else {
            return Err(unit.damaged("a name is a number of a string, and no table has any"));
        };
        let table = match self.numbered.get() {
            Some(table) => table,
            None => {
                let mut table = section.bytes(0, section.size())?;
                if let Some(relocations) = relocations {
                    relocations.apply(0, &mut table, 0)?;
                }
                self.numbered.get_or_init(|| table)
            }
        };
        let width = unit.header()?.format().word_size();
        let at = number.checked_mul(width.into()).and_then(|at| at.checked_add(base));
        let at = at.and_then(|at| usize::try_from(at).ok());
        let there = at.and_then(|at| table.get(at..)?.get(..width.into()));
        let there = there.ok_or_else(|| unit.damaged("a string's number is too large"))?;
        let mut bytes = [0; 8];
        bytes[..there.len()].copy_from_slice(there);
        Ok(u64::from_le_bytes(bytes))
    }
}

/// The string at an offset of a section.
fn string(section: Option<&Section<'_>>, at: u64) -> Result<Vec<u8>, OffsetsError> {
    let section = section.ok_or(OffsetsError::Truncated { at })?;
    let mut size = 64;
    loop {
        let left = section.size().checked_sub(at).filter(|left| *left > 0);
        let left = left.ok_or(OffsetsError::Truncated { at })?;
        let mut bytes = section.bytes(at, left.min(size))?;
        if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
            bytes.truncate(end);
            return Ok(bytes);
        }
        // A name that is longer is not looked for; what is left is cut.
        if size >= LONGEST || size >= left {
            return Ok(bytes);
        }
        size *= 4;
    }
}
