//! What must hold of fields that somebody wrote.

use crate::{MOST_BYTES, OffsetsError, Struct};

/// Brings the fields into order and checks that they are in the struct, which is no larger than
/// such structs are.
pub(crate) fn checked(name: &str, mut layout: Struct) -> Result<Struct, OffsetsError> {
    let name = || name.to_owned();
    if layout.fields.is_empty() {
        return Err(OffsetsError::NoFields { name: name() });
    }
    if let Some(size) = layout.size.filter(|size| *size > MOST_BYTES) {
        return Err(OffsetsError::TooLarge { name: name(), size });
    }
    let size = layout.size.unwrap_or(MOST_BYTES);
    for field in &layout.fields {
        // A field of unknown size has at least a byte.
        let end = field.at.saturating_add(field.size.unwrap_or(1));
        if end > size {
            let field = field.name.clone();
            return Err(OffsetsError::Outside { name: name(), field, end, size });
        }
    }
    layout.sort();
    Ok(layout)
}
