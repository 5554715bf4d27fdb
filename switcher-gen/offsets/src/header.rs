//! Headers like the kernel's asm-offsets.h: a `#define` for each offset that assembly needs.

use std::collections::BTreeMap;

use crate::check::checked;
use crate::{Field, Found, MOST_BYTES, OffsetsError, Source, Struct};

const EXTRA: &str = "TSS_EX_";
const PVCS: &str = "PVCS_";
/// The fields of the hardware's TSS.
const TSS: [&str; 4] = ["TSS_sp0", "TSS_sp1", "TSS_sp2", "TSS_ist"];

/// What a header says.
pub(crate) fn read(text: &str) -> Result<Found, OffsetsError> {
    let mut values: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    let text = without_comments(text)?;
    for (number, line) in text.lines().enumerate() {
        let line = Line { number: number + 1, text: line };
        let Some((name, value)) = line.definition()? else { continue };
        match values.get(name) {
            None => {
                values.insert(name, (value, line.number));
            }
            Some((same, _)) if *same == value => {}
            Some((other, first)) => {
                return Err(line.wrong(format!(
                    "{name} is {value}, and line {first} says {other}: conditions are not \
                     evaluated here, so leave one of them"
                )));
            }
        }
    }
    let of = |prefix: &str| {
        let of_it = values.iter().filter_map(|(name, (at, _))| {
            Some(Field { name: name.strip_prefix(prefix)?.into(), at: *at, size: None })
        });
        Struct { fields: of_it.collect(), ..Struct::default() }
    };
    let (mut extra, pvcs) = (of(EXTRA), of(PVCS));
    let mut tss = of("TSS_");
    tss.fields.retain(|field| TSS.iter().any(|name| name.ends_with(&format!("_{}", field.name))));
    let start = extra.fields.iter().map(|field| field.at).min();
    for field in &mut extra.fields {
        field.at -= start.unwrap_or(0);
    }
    let there = |prefix: &str, layout: Struct| match layout.fields.is_empty() {
        true => Ok(None),
        false => checked(&format!("what begins with {prefix}"), layout).map(Some),
    };
    let found = Found {
        tss: there("TSS_", tss)?,
        tss_extra: there(EXTRA, extra)?,
        tss_extra_at: start,
        is_start_known: start.is_none(),
        pvcs: there(PVCS, pvcs)?,
        ..Found::nothing(Source::Header)
    };
    match found.is_empty() {
        false => Ok(found),
        true => Err(not_found(&text)),
    }
}

fn not_found(text: &str) -> OffsetsError {
    /// How many names are shown.
    const FEW: usize = 5;
    let defined = text.lines().filter_map(|line| {
        let name = directive(line, "define")?.split([' ', '\t', '(']).next()?;
        let is_alike = name.contains("TSS") || name.contains("PVCS") || name.contains("PVM");
        is_alike.then_some(name)
    });
    let alike: Vec<_> = defined.take(FEW).collect();
    OffsetsError::NotFound {
        looked_for: format!("{EXTRA}NAME, {PVCS}NAME, {}", TSS.join(", ")),
        similar: match alike.is_empty() {
            true => ", nor anything of a similar name".into(),
            false => format!("; of similar names there are {}", alike.join(", ")),
        },
    }
}

/// What follows a directive of the preprocessor.
fn directive<'t>(line: &'t str, name: &str) -> Option<&'t str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix(name)?;
    rest.starts_with([' ', '\t']).then(|| rest.trim())
}

/// A line without comments.
struct Line<'t> {
    number: usize,
    text: &'t str,
}

impl<'t> Line<'t> {
    fn wrong(&self, what: impl Into<String>) -> OffsetsError {
        OffsetsError::Header { line: self.number, what: what.into() }
    }

    /// What this line defines, if it is a place of ours.
    fn definition(&self) -> Result<Option<(&'t str, u64)>, OffsetsError> {
        let is_ours =
            |name: &str| name.starts_with(EXTRA) || name.starts_with(PVCS) || TSS.contains(&name);
        if let Some(name) = directive(self.text, "undef").filter(|name| is_ours(name)) {
            return Err(self.wrong(format!("{name} is undefined: leave one definition of it")));
        }
        let Some(rest) = directive(self.text, "define") else { return Ok(None) };
        let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let end = rest.find(|letter| !is_of_name(letter)).unwrap_or(rest.len());
        let (name, value) = rest.split_at(end);
        // A guard against including it twice has no value.
        if !is_ours(name) || value.trim().is_empty() {
            return Ok(None);
        }
        if [EXTRA, PVCS].contains(&name) {
            return Err(self.wrong(format!("{name} is no name of a field")));
        }
        let number = (!value.starts_with('(')).then(|| number(value.trim())).flatten();
        let number = number.ok_or_else(|| {
            self.wrong(format!(
                "{name} is `{}`, and only numbers are read, decimal or hexadecimal: give the \
                 header that the kernel's build generates",
                value.trim()
            ))
        })?;
        if number >= MOST_BYTES {
            return Err(self.wrong(format!(
                "{name} is {number}, and these structs have at most {} KiB",
                MOST_BYTES >> 10
            )));
        }
        Ok(Some((name, number)))
    }
}

/// A number as C writes it.
fn number(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['u', 'U', 'l', 'L']);
    if text.len() - digits.len() > 3 {
        return None;
    }
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = match hexadecimal {
        Some(digits) => (digits, 16),
        // Of the kernel's numbers, none is octal: whoever writes one means something else.
        None if digits.len() > 1 && digits.starts_with('0') => return None,
        None => (digits, 10),
    };
    let is_plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u64::from_str_radix(digits, radix).ok().filter(|_| is_plain)
}

/// The text with spaces in place of comments, and with as many lines; a line that goes on ends
/// with what it goes on with.
fn without_comments(text: &str) -> Result<String, OffsetsError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // Line ends that are owed for lines that were joined.
    let mut owed = 0;
    loop {
        let Some(at) = rest.find(['/', '\\', '\n', '"']) else {
            out += rest;
            return Ok(out);
        };
        out += &rest[..at];
        rest = &rest[at..];
        let (taken, is_line_end) = if let Some(after) = rest.strip_prefix("/*") {
            let Some(end) = after.find("*/") else {
                let line = out.matches('\n').count() + owed + 1;
                return Err(OffsetsError::Header { line, what: "a comment has no end".into() });
            };
            out.push(' ');
            owed += after[..end].matches('\n').count();
            (end + 4, false)
        } else if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("\\\n") || rest.starts_with("\\\r\n") {
            owed += 1;
            (rest.find('\n').map_or(rest.len(), |at| at + 1), false)
        } else if rest.starts_with('"') {
            // Within a string, nothing is a comment.
            let line = rest.find('\n').unwrap_or(rest.len());
            let end = rest[1..line].find('"').map_or(line, |at| at + 2);
            out += &rest[..end];
            (end, false)
        } else {
            let is_line_end = rest.starts_with('\n');
            out.push_str(&rest[..1]);
            (1, is_line_end)
        };
        rest = &rest[taken..];
        if is_line_end {
            out.extend(std::iter::repeat_n('\n', std::mem::take(&mut owed)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_c_and_nothing_else() {
        for (text, value) in [("0", 0), ("4104", 4104), ("0x68UL", 0x68), ("0X1f", 0x1F)] {
            assert_eq!(number(text), Some(value), "{text}");
        }
        for text in ["", "+4", "-4", "0x", "0x+4", "010", "4 + 4", "a", "4ULLL", "4.0", "UL"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn lines_keep_their_numbers() {
        let text = "a /* x\ny */ b\nc \\\nd // e\n\"/*\" f\n";
        let clean = without_comments(text).unwrap();
        let lines: Vec<_> = clean.lines().map(str::trim).collect();
        assert_eq!(lines, ["a   b", "", "c d", "", "\"/*\" f"]);
        let error = without_comments("a\nb /* c").unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
}
