//! Several files that complete each other, as a header with the places of fields and DWARF with
//! their sizes.

use std::fmt;

use crate::{Field, Found, Source, Struct};

/// Two files say different things.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{first} and {second} contradict each other: {what} is {first_value} and {second_value}")]
pub struct Contradiction {
    /// The name of the one that came first.
    pub first: String,
    /// The name of the other.
    pub second: String,
    /// What they contradict each other about.
    pub what: String,
    /// What the first says.
    pub first_value: String,
    /// What the second says.
    pub second_value: String,
}

/// What two files disagree about, with what either says.
type Difference = (String, String, String);

/// All that the files say, each with its name: a later one fills what those before it lack.
/// Without any file there is nothing to return.
///
/// # Errors
/// If one contradicts another.
pub fn merge(
    files: impl IntoIterator<Item = (String, Found)>,
) -> Result<Option<Found>, Contradiction> {
    let files: Vec<_> = files.into_iter().collect();
    // Each is compared with each, so that the error names the two that it is about.
    for (number, (second, later)) in files.iter().enumerate() {
        for (first, earlier) in &files[..number] {
            both(earlier, later).map_err(|(what, first_value, second_value)| Contradiction {
                first: first.clone(),
                second: second.clone(),
                what,
                first_value,
                second_value,
            })?;
        }
    }
    let Some((first, rest)) = files.split_first() else { return Ok(None) };
    let (name, mut merged) = first.clone();
    for (second, found) in rest {
        merged = both(&merged, found).map_err(|(what, first_value, second_value)| {
            // Two that agree may each complete a third in ways that do not.
            let first = format!("{name} with those after it");
            Contradiction { first, second: second.clone(), what, first_value, second_value }
        })?;
    }
    Ok(Some(merged))
}

/// What both say.
fn both(first: &Found, second: &Found) -> Result<Found, Difference> {
    let (mut first, mut second) = (first.clone(), second.clone());
    // One that does not know where the struct begins is told by the other.
    if !first.is_start_known {
        rebase(&mut first, &second)?;
    }
    if !second.is_start_known {
        rebase(&mut second, &first)?;
    }
    let (extra, other_extra) = (first.tss_extra_at, second.tss_extra_at);
    Ok(Found {
        tss: layouts("tss", first.tss, second.tss)?,
        tss_at: one("where tss lies in the block", first.tss_at, second.tss_at)?,
        tss_extra: layouts("tss_extra", first.tss_extra, second.tss_extra)?,
        tss_extra_at: one("where tss_extra lies in the block", extra, other_extra)?,
        is_start_known: first.is_start_known && second.is_start_known,
        pvcs: layouts("pvcs", first.pvcs, second.pvcs)?,
        source: Source::Several,
    })
}

/// Lets the fields of `tss_extra` count from where the other file says that it begins.
fn rebase(found: &mut Found, other: &Found) -> Result<(), Difference> {
    let Some(own) = found.tss_extra_at else { return Ok(()) };
    // Of two that do not know it, the one that names an earlier field is nearer.
    let start = match (other.tss_extra_at, other.is_start_known) {
        (Some(start), true) => start,
        (Some(start), false) => start.min(own),
        (None, _) => return Ok(()),
    };
    let Some(by) = own.checked_sub(start) else {
        let values = (format!("at most {own:#x}"), format!("{start:#x}"));
        return Err(("where tss_extra lies in the block".into(), values.0, values.1));
    };
    for field in found.tss_extra.iter_mut().flat_map(|extra| &mut extra.fields) {
        field.at += by;
    }
    found.tss_extra_at = Some(start);
    found.is_start_known = other.is_start_known;
    Ok(())
}

fn layouts(
    name: &str,
    first: Option<Struct>,
    second: Option<Struct>,
) -> Result<Option<Struct>, Difference> {
    let (mut first, second) = match (first, second) {
        (Some(first), Some(second)) => (first, second),
        (first, second) => return Ok(first.or(second)),
    };
    first.size = one(&format!("the size of {name}"), first.size, second.size)?;
    for field in second.fields {
        let same = first.fields.iter_mut().find(|it| it.name == field.name);
        match same {
            None => first.fields.push(field),
            Some(same) => {
                let Field { name: of, at, size } = field;
                if same.at != at {
                    let place = |at: u64| format!("{at:#x}");
                    return Err((format!("{name}.{of}"), place(same.at), place(at)));
                }
                same.size = one(&format!("the size of {name}.{of}"), same.size, size)?;
            }
        }
    }
    for name in second.bit_fields {
        if !first.bit_fields.contains(&name) {
            first.bit_fields.push(name);
        }
    }
    let end = |field: &Field| field.at.saturating_add(field.size.unwrap_or(1));
    if let Some(size) = first.size
        && let Some(outside) = first.fields.iter().find(|field| end(field) > size)
    {
        let what = format!("the end of {name}");
        let value = format!("{:#x}, by field {}", end(outside), outside.name);
        return Err((what, format!("{size:#x}"), value));
    }
    first.sort();
    Ok(Some(first))
}

/// What either says, if they do not say different things.
fn one<T: PartialEq + fmt::LowerHex>(
    what: &str,
    first: Option<T>,
    second: Option<T>,
) -> Result<Option<T>, Difference> {
    match (first, second) {
        (Some(first), Some(second)) if first != second => {
            Err((what.into(), format!("{first:#x}"), format!("{second:#x}")))
        }
        (first, second) => Ok(first.or(second)),
    }
}
