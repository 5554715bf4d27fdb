//! What the members of a struct are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use gimli::{AttributeValue, DwAt, Operation, UnitOffset};

use super::index::Index;
use super::strings::Strings;
use super::unit::{Entry, Unit, Value};
use crate::OffsetsError;
use crate::flatten::{Aggregate, Member, Shape, Types};

/// How many names for a type may lead to another.
const MOST_STEPS: usize = 64;
/// How many other units are kept in memory for the types of one.
const MOST_UNITS: usize = 16;

/// An entry: the number of its unit, and where it is in it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) unit: usize,
    pub(super) at: UnitOffset,
}

/// The types of a unit, and of those that it refers to.
pub(super) struct UnitTypes<'a, 'i> {
    unit: &'a Unit,
    index: &'a Index<'i>,
    strings: &'a Strings<'i>,
    others: RefCell<HashMap<usize, Rc<Unit>>>,
}

impl<'a, 'i> UnitTypes<'a, 'i> {
    pub(super) fn new(unit: &'a Unit, index: &'a Index<'i>, strings: &'a Strings<'i>) -> Self {
        Self { unit, index, strings, others: RefCell::default() }
    }

    /// Does something with a unit.
    fn with<T>(
        &self,
        number: usize,
        what: impl FnOnce(&Unit) -> Result<T, OffsetsError>,
    ) -> Result<T, OffsetsError> {
        if number == self.unit.number {
            return what(self.unit);
        }
        let known = self.others.borrow().get(&number).cloned();
        let unit = match known {
            Some(unit) => unit,
            None => {
                let unit = Rc::new(self.index.load(number, None)?);
                let mut others = self.others.borrow_mut();
                if others.len() >= MOST_UNITS {
                    others.clear();
                }
                others.insert(number, Rc::clone(&unit));
                unit
            }
        };
        what(&unit)
    }

    /// The entry that a value refers to.
    fn place(&self, unit: &Unit, value: &Value<'_>) -> Result<Place, OffsetsError> {
        let outside = |found: Option<(usize, u64)>| {
            let (unit, at) = found?;
            Some(Place { unit, at: UnitOffset(usize::try_from(at).ok()?) })
        };
        let place = match value {
            AttributeValue::UnitRef(at) => Some(Place { unit: unit.number, at: *at }),
            AttributeValue::DebugInfoRef(at) => {
                outside(self.index.around(unit.number, at.0 as u64))
            }
            AttributeValue::DebugTypesRef(signature) => outside(self.index.signed(signature.0)),
            AttributeValue::DebugInfoRefSup(_) => return Err(unit.elsewhere("a type")),
            _ => None,
        };
        place.ok_or_else(|| unit.damaged("a type is not where it is said to be"))
    }

    /// The type of an entry, if it has one: `void` has none.
    fn type_of(&self, unit: &Unit, entry: &Entry<'_>) -> Result<Option<Place>, OffsetsError> {
        let value = entry.attr_value(gimli::DW_AT_type);
        value.map(|value| self.place(unit, &value)).transpose()
    }

    /// What an entry is, or what it stands for.
    fn step(&self, unit: &Unit, at: UnitOffset) -> Result<Step, OffsetsError> {
        let header = unit.header()?;
        let mut entries = unit.entries(&header, at)?;
        let mut entry = Entry::null();
        if !entries.read_entry(&mut entry).map_err(|error| unit.damaged(error))? {
            return Err(unit.damaged("a type is missing"));
        }
        let size = number(&entry, gimli::DW_AT_byte_size);
        let scalar = |size| Ok(Step::Is(Shape::Scalar { size }));
        match entry.tag() {
            gimli::DW_TAG_typedef
            | gimli::DW_TAG_const_type
            | gimli::DW_TAG_volatile_type
            | gimli::DW_TAG_restrict_type
            | gimli::DW_TAG_atomic_type
            | gimli::DW_TAG_packed_type => match self.type_of(unit, &entry)? {
                Some(place) => Ok(Step::To(place)),
                None => scalar(size),
            },
            gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type => {
                scalar(size.or(Some(header.address_size().into())))
            }
            gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type | gimli::DW_TAG_union_type => {
                if let Some(signature) = entry.attr_value(gimli::DW_AT_signature) {
                    return Ok(Step::To(self.place(unit, &signature)?));
                }
                match size.filter(|_| !is_set(&entry, gimli::DW_AT_declaration)) {
                    Some(size) => self.aggregate(unit, &entry, entries, size),
                    None => scalar(None),
                }
            }
            gimli::DW_TAG_array_type => {
                let element = self.type_of(unit, &entry)?;
                let element = element.ok_or_else(|| unit.damaged("an array is of no type"))?;
                let mut counts = Vec::new();
                children(unit, &entry, entries, |child| {
                    if child.tag() == gimli::DW_TAG_subrange_type {
                        let upper = |it: u64| it.checked_add(1);
                        let count = number(child, gimli::DW_AT_count)
                            .or_else(|| number(child, gimli::DW_AT_upper_bound).and_then(upper));
                        counts.push(count);
                    }
                    Ok(())
                })?;
                Ok(Step::Is(Shape::Array { element, counts }))
            }
            // An enumeration may leave its size to the type that it is made of.
            _ => match (size, self.type_of(unit, &entry)?) {
                (None, Some(place)) => Ok(Step::To(place)),
                (size, _) => scalar(size),
            },
        }
    }

    fn aggregate<'u>(
        &self,
        unit: &'u Unit,
        entry: &Entry<'u>,
        entries: super::unit::Raw<'u, 'u>,
        size: u64,
    ) -> Result<Step, OffsetsError> {
        let name = |entry: &Entry<'_>| {
            let name = entry.attr_value(gimli::DW_AT_name);
            name.map(|name| self.strings.text(unit, &name)).transpose()
        };
        let mut members = Vec::new();
        children(unit, entry, entries, |child| {
            // In C++, what is static is declared within a class and lies elsewhere.
            if child.tag() != gimli::DW_TAG_member || is_set(child, gimli::DW_AT_external) {
                return Ok(());
            }
            let of = self.type_of(unit, child)?;
            let of = of.ok_or_else(|| unit.damaged("a member is of no type"))?;
            let is_bit_field =
                [gimli::DW_AT_bit_size, gimli::DW_AT_bit_offset, gimli::DW_AT_data_bit_offset]
                    .iter()
                    .any(|it| child.has_attr(*it));
            let at = location(unit, child)?;
            members.push(Member { name: name(child)?, at, is_bit_field, of });
            Ok(())
        })?;
        Ok(Step::Is(Shape::Aggregate(Aggregate { name: name(entry)?, size, members })))
    }
}

/// What an entry says of a type.
enum Step {
    Is(Shape<Place>),
    To(Place),
}

impl Types for UnitTypes<'_, '_> {
    type Id = Place;

    fn shape(&self, id: Place) -> Result<Shape<Place>, OffsetsError> {
        let mut place = id;
        for _ in 0..MOST_STEPS {
            match self.with(place.unit, |unit| self.step(unit, place.at))? {
                Step::Is(shape) => return Ok(shape),
                Step::To(next) => place = next,
            }
        }
        self.with(place.unit, |unit| Err(unit.damaged("a type is defined by itself")))
    }
}

/// Does something with each child of the entry that was read last.
fn children<'u>(
    unit: &'u Unit,
    entry: &Entry<'u>,
    mut entries: super::unit::Raw<'u, 'u>,
    mut with: impl FnMut(&Entry<'u>) -> Result<(), OffsetsError>,
) -> Result<(), OffsetsError> {
    if !entry.has_children() {
        return Ok(());
    }
    let mut child = Entry::null();
    // The entry itself is at depth 0.
    while entries.next_depth() > 0 {
        let is_child = entries.next_depth() == 1;
        let is_there = entries.read_entry(&mut child).map_err(|error| unit.damaged(error))?;
        if is_there && is_child {
            with(&child)?;
        }
    }
    Ok(())
}

fn number(entry: &Entry<'_>, attribute: DwAt) -> Option<u64> {
    entry.attr(attribute)?.udata_value()
}

fn is_set(entry: &Entry<'_>, attribute: DwAt) -> bool {
    entry.attr_value(attribute).is_some_and(|value| !matches!(value, AttributeValue::Flag(false)))
}

/// Where a member lies in its struct.
fn location(unit: &Unit, member: &Entry<'_>) -> Result<u64, OffsetsError> {
    let Some(attribute) = member.attr(gimli::DW_AT_data_member_location) else {
        // So it is in unions, and for bit fields.
        return Ok(0);
    };
    if let Some(at) = attribute.udata_value() {
        return Ok(at);
    }
    let unknown = || unit.damaged("where a member lies is not a number");
    let expression = attribute.exprloc_value().ok_or_else(unknown)?;
    let mut operations = expression.operations(unit.header()?.encoding());
    let first = operations.next().map_err(|error| unit.damaged(error))?;
    let at = match first {
        Some(Operation::PlusConstant { value } | Operation::UnsignedConstant { value }) => value,
        _ => return Err(unknown()),
    };
    match operations.next() {
        Ok(None) => Ok(at),
        _ => Err(unknown()),
    }
}
