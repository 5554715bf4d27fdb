//! From the members of a struct to its fields, wherever the members were read from.

use crate::{Field, MOST_BYTES, OffsetsError, Struct};

/// Arrays of more elements are one field.
pub const MOST_ELEMENTS: u64 = 64;
/// The largest number of fields. A kernel's structs have a few hundred.
const MOST_FIELDS: usize = 4096;
/// The largest number of members that are looked at, with those that are no fields.
const MOST_STEPS: usize = 16 * MOST_FIELDS;
/// How deep structs may be nested.
const MOST_DEPTH: u32 = 16;

/// What is needed to know of a type.
#[derive(Clone, Debug)]
pub(crate) enum Shape<Id> {
    /// Numbers, pointers, enumerations.
    Scalar { size: Option<u64> },
    /// An array, with the number of elements in each dimension; it is unknown for the last field of
    /// a struct that may be longer.
    Array { element: Id, counts: Vec<Option<u64>> },
    /// A struct or union; those that are only declared are scalars of unknown size.
    Aggregate(Aggregate<Id>),
}

/// A struct or union.
#[derive(Clone, Debug)]
pub(crate) struct Aggregate<Id> {
    pub(crate) name: Option<String>,
    pub(crate) size: u64,
    pub(crate) members: Vec<Member<Id>>,
}

/// A member of a struct or union.
#[derive(Clone, Debug)]
pub(crate) struct Member<Id> {
    pub(crate) name: Option<String>,
    /// In bytes from the start. Of a bit field it does not count.
    pub(crate) at: u64,
    pub(crate) is_bit_field: bool,
    pub(crate) of: Id,
}

/// Where types come from.
pub(crate) trait Types {
    type Id: Copy;

    fn shape(&self, id: Self::Id) -> Result<Shape<Self::Id>, OffsetsError>;
}

/// A struct with all its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flat {
    pub(crate) layout: Struct,
    /// The named structs in it, and where they lie.
    pub(crate) nested: Vec<(String, u64)>,
}

/// The fields of the struct `name`.
pub(crate) fn flatten<T: Types>(
    types: &T,
    name: &str,
    aggregate: &Aggregate<T::Id>,
) -> Result<Flat, OffsetsError> {
    let size = aggregate.size;
    let name = format!("struct {name}");
    if size > MOST_BYTES {
        return Err(OffsetsError::TooLarge { name, size });
    }
    let mut flattening = Flattening {
        types,
        name: &name,
        size,
        steps: 0,
        flat: Flat { layout: Struct { size: Some(size), ..Struct::default() }, nested: Vec::new() },
    };
    flattening.members(aggregate, "", 0, 0)?;
    let mut flat = flattening.flat;
    if flat.layout.fields.is_empty() {
        return Err(OffsetsError::NoFields { name });
    }
    flat.layout.sort();
    Ok(flat)
}

struct Flattening<'t, T> {
    types: &'t T,
    name: &'t str,
    size: u64,
    steps: usize,
    flat: Flat,
}

impl<T: Types> Flattening<'_, T> {
    fn too_much(&self, what: &'static str) -> OffsetsError {
        OffsetsError::TooMuch { name: self.name.into(), what }
    }

    /// Adds the members of a struct that lies at `base`; their names begin with `prefix`.
    fn members(
        &mut self,
        aggregate: &Aggregate<T::Id>,
        prefix: &str,
        base: u64,
        depth: u32,
    ) -> Result<(), OffsetsError> {
        if depth > MOST_DEPTH {
            return Err(self.too_much("structs nested too deeply"));
        }
        for member in &aggregate.members {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err(self.too_much("too many members"));
            }
            let name = member.name.as_deref().map(|name| format!("{prefix}{name}"));
            if member.is_bit_field {
                // Padding has no name.
                self.flat.layout.bit_fields.extend(name);
                if self.flat.layout.bit_fields.len() > MOST_FIELDS {
                    return Err(self.too_much("too many bit fields"));
                }
                continue;
            }
            let at = base.saturating_add(member.at);
            let shape = self.types.shape(member.of)?;
            match (name, shape) {
                (Some(name), shape) => {
                    self.add(name, at, &shape, depth)?;
                }
                (None, Shape::Aggregate(inner)) => self.members(&inner, prefix, at, depth + 1)?,
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// Adds a field and what it consists of.
    fn add(
        &mut self,
        name: String,
        at: u64,
        shape: &Shape<T::Id>,
        depth: u32,
    ) -> Result<(), OffsetsError> {
        let size = self.size_of(shape, depth)?;
        let end = at.saturating_add(size.unwrap_or(0));
        if end > self.size {
            let (struct_name, size) = (self.name.into(), self.size);
            return Err(OffsetsError::Outside { name: struct_name, field: name, end, size });
        }
        if self.flat.layout.fields.len() >= MOST_FIELDS {
            return Err(self.too_much("too many fields"));
        }
        self.flat.layout.fields.push(Field { name: name.clone(), at, size });
        match shape {
            Shape::Scalar { .. } => Ok(()),
            Shape::Aggregate(inner) => {
                self.flat.nested.extend(inner.name.clone().map(|name| (name, at)));
                self.members(inner, &format!("{name}."), at, depth + 1)
            }
            Shape::Array { element, counts } => {
                self.elements(&name, at, (*element, counts), depth + 1)
            }
        }
    }

    /// Adds the elements of an array.
    fn elements(
        &mut self,
        name: &str,
        at: u64,
        (element, counts): (T::Id, &[Option<u64>]),
        depth: u32,
    ) -> Result<(), OffsetsError> {
        if depth > MOST_DEPTH {
            return Err(self.too_much("arrays nested too deeply"));
        }
        let Some((Some(count), inner)) = counts.split_first() else { return Ok(()) };
        let shape = match inner {
            [] => self.types.shape(element)?,
            inner => Shape::Array { element, counts: inner.to_vec() },
        };
        let size = self.size_of(&shape, depth)?;
        if *count > MOST_ELEMENTS || matches!(size, None | Some(0..=1)) {
            return Ok(());
        }
        for index in 0..*count {
            let at = at.saturating_add(size.unwrap_or(0).saturating_mul(index));
            self.add(format!("{name}[{index}]"), at, &shape, depth)?;
        }
        Ok(())
    }

    fn size_of(&self, shape: &Shape<T::Id>, depth: u32) -> Result<Option<u64>, OffsetsError> {
        match shape {
            Shape::Scalar { size } => Ok(*size),
            Shape::Aggregate(inner) => Ok(Some(inner.size)),
            Shape::Array { .. } if depth > MOST_DEPTH => {
                Err(self.too_much("arrays nested too deeply"))
            }
            Shape::Array { element, counts } => {
                let element = self.size_of(&self.types.shape(*element)?, depth + 1)?;
                // Of unknown length is only what may have none.
                let counts = counts.iter().map(|count| count.unwrap_or(0));
                Ok(element.map(|size| counts.fold(size, u64::saturating_mul)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types of which each has many members of the next, without names, up to the twelfth. Another
    /// one is a number.
    struct Maze;

    const NUMBER: u64 = 100;

    impl Types for Maze {
        type Id = u64;

        fn shape(&self, id: u64) -> Result<Shape<u64>, OffsetsError> {
            if id >= 12 {
                return Ok(Shape::Scalar { size: Some(8) });
            }
            let member = Member { name: None, at: 0, is_bit_field: false, of: id + 1 };
            let members = vec![member; 100];
            Ok(Shape::Aggregate(Aggregate { name: None, size: 0, members }))
        }
    }

    #[test]
    fn what_has_hardly_a_field_and_no_end_is_refused_soon() {
        let Ok(Shape::Aggregate(maze)) = Maze.shape(0) else { panic!() };
        let error = flatten(&Maze, "maze", &maze).unwrap_err().to_string();
        assert!(error.contains("too many members"), "{error}");
    }

    #[test]
    fn a_field_that_its_struct_has_no_room_for_is_refused() {
        let of_size = |size: u64| {
            let name = Some("last".to_owned());
            let members = vec![Member { name, at: 8, is_bit_field: false, of: NUMBER }];
            flatten(&Maze, "room", &Aggregate { name: None, size, members })
        };
        assert_eq!(of_size(16).unwrap().layout.fields.len(), 1);
        let error = of_size(15).unwrap_err();
        assert!(matches!(error, OffsetsError::Outside { end: 16, size: 15, .. }), "{error}");
    }
}
