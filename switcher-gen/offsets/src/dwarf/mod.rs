//! Structs from DWARF.
//!
//! The compilation units are looked at one after the other. Of each, only what stands at file scope
//! counts, as that is where C has its structs; what stands in functions is skipped.

mod index;
mod strings;
mod types;
mod unit;

use gimli::UnitOffset;

use crate::elf::Elf;
use crate::flatten::{Shape, Types as _, flatten};
use crate::wanted::{Definitions, Wanted, not_found};
use crate::{Found, OffsetsError, Options, Scan, Source};
use index::Index;
use strings::{Meaning, Strings};
use types::{Place, UnitTypes};
use unit::{Raw, Unit, Value};

/// What the DWARF of a file says.
pub(crate) fn read(elf: &Elf<'_>, options: &Options) -> Result<Found, OffsetsError> {
    let index = Index::new(elf)?;
    let strings = Strings::new(elf, &options.names)?;
    let mut definitions = Definitions::new(&options.names);
    let mut split = None;
    let mut relocated = index.relocated();
    for number in 0..index.units.len() {
        let unit = index.load(number, Some(&mut relocated))?;
        if unit.is_split() {
            split.get_or_insert(number);
        }
        scan(&unit, &index, &strings, &mut definitions)?;
        if options.scan == Scan::UntilFound && definitions.is_complete() {
            return definitions.finish(Source::Dwarf);
        }
    }
    index.check_all_relocated(&relocated)?;
    match (definitions.is_empty(), split) {
        (false, _) => definitions.finish(Source::Dwarf),
        (true, Some(number)) => Err(OffsetsError::Elsewhere {
            unit: strings.title(&index.load(number, None)?),
            what: "the debug information",
            way_out: "give the .dwo file's contents by compiling without -gsplit-dwarf",
        }),
        (true, None) => Err(not_found(&options.names, strings.others()?)),
    }
}

/// Adds the definitions of one unit.
fn scan(
    unit: &Unit,
    index: &Index<'_>,
    strings: &Strings<'_>,
    definitions: &mut Definitions<'_>,
) -> Result<(), OffsetsError> {
    let header = unit.header()?;
    let abbreviations = unit.abbreviations();
    let damaged = |error| unit.damaged(error);
    let mut entries: Raw<'_, '_> = header.entries_raw(abbreviations, None).map_err(damaged)?;
    // Where the entries' own depth begins, how deep entries are that are looked at.
    let (mut base, mut level) = (0, 0);
    while !entries.is_empty() {
        let depth = base + entries.next_depth();
        let at = entries.next_offset();
        let Some(abbreviation) = entries.read_abbreviation().map_err(damaged)? else {
            // The end of the children of a namespace, or of the unit.
            if depth == level {
                level -= 1;
            }
            if level <= 0 {
                break;
            }
            continue;
        };
        let tag = abbreviation.tag();
        let is_scope = level == 0 || tag == gimli::DW_TAG_namespace;
        let is_struct = matches!(tag, gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type);
        let is_leaf = !abbreviation.has_children();
        if depth != level || is_scope || (is_leaf && !is_struct) {
            entries.skip_attributes(abbreviation.attributes()).map_err(damaged)?;
            if depth == level && is_scope {
                match is_leaf {
                    // A unit of nothing.
                    true if level == 0 => break,
                    true => {}
                    false => level += 1,
                }
            }
            continue;
        }
        let (mut name, mut sibling, mut is_declaration) = (None, None, false);
        for specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(*specification).map_err(damaged)?;
            match attribute.name() {
                gimli::DW_AT_name if is_struct => name = Some(attribute.value()),
                gimli::DW_AT_sibling => sibling = sibling_of(&attribute.value()),
                gimli::DW_AT_declaration => {
                    is_declaration = !matches!(attribute.value(), Value::Flag(false));
                }
                _ => {}
            }
        }
        if let Some(name) = name.filter(|_| !is_declaration)
            && let Meaning::Wanted(wanted) = strings.meaning(unit, &name)?
        {
            add(unit, index, strings, definitions, wanted, at)?;
        }
        if let Some(sibling) = sibling.filter(|to| !is_leaf && *to > entries.next_offset()) {
            entries = header.entries_raw(abbreviations, Some(sibling)).map_err(damaged)?;
            base = level;
        }
    }
    Ok(())
}

fn sibling_of(value: &Value<'_>) -> Option<UnitOffset> {
    match value {
        Value::UnitRef(offset) => Some(*offset),
        _ => None,
    }
}

/// Adds the definition of `wanted` that lies at `at` of its unit.
fn add(
    unit: &Unit,
    index: &Index<'_>,
    strings: &Strings<'_>,
    definitions: &mut Definitions<'_>,
    wanted: Wanted,
    at: UnitOffset,
) -> Result<(), OffsetsError> {
    let types = UnitTypes::new(unit, index, strings);
    let name = strings.name_of(wanted);
    let place = Place { unit: unit.number, at };
    match types.shape(place)? {
        Shape::Aggregate(aggregate) => {
            let flat = flatten(&types, name, &aggregate)?;
            definitions.add(wanted, flat, || Ok(strings.title(unit)))
        }
        _ => Err(OffsetsError::NoFields { name: format!("struct {name}") }),
    }
}
