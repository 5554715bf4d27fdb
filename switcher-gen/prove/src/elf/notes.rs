//! What a section consists of, where its parts have purposes of their own: notes, each of which
//! says by its owner and its type what it is.

use std::ops::Range;

use object::elf::SHT_NOTE;
use object::read::elf::SectionHeader;

use super::contents::{Contents, E};
use super::error::ReadError;
use super::file::File;
use super::lengths::{Length, Lengths};
use super::purpose::Purpose;

/// A part of a section, by offsets in it.
pub(super) struct Part {
    pub(super) range: Range<u64>,
    pub(super) purpose: Purpose,
    pub(super) lengths: Lengths,
}

/// Who has more notes in one section than this writes no notes.
const MANY: usize = 64;
/// The largest section that is looked at note by note.
const LARGE: u64 = 1 << 16;
/// Xen puts its hypercalls over the whole page that a note of this type names.
const HYPERCALL_PAGE: u32 = 2;

/// The parts of a section that as a whole has this purpose, but for notes that say nothing of code.
pub(super) fn parts<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    number: usize,
    purpose: Purpose,
) -> Result<Vec<Part>, ReadError> {
    let section = &file.sections[number];
    let whole =
        || Part { range: 0..section.size, purpose, lengths: purpose.lengths(&section.text()) };
    let is_note = section.header.sh_type(E) == SHT_NOTE && !section.is_code();
    if !is_note || section.size > LARGE {
        return Ok(vec![whole()]);
    }
    let mut bytes = vec![0; section.size as usize];
    let truncated = |()| ReadError::Truncated { section: section.text() };
    file.data.copy(section.offset(), &mut bytes).map_err(truncated)?;
    let alignment = if section.header.sh_addralign(E) == 8 { 8 } else { 4 };
    let Some(notes) = notes(&bytes, alignment) else { return Ok(vec![whole()]) };
    // What is relocated says more than it seems to.
    let is_relocated = file.is_object() && file.is_relocated(number);
    let is_silent = |note: &Note<'_>| note.is_known() && !is_relocated;
    let part = |note: Note<'_>| {
        let (purpose, lengths) = if note.is_hypercall_page() {
            let how = "Xen puts its hypercalls over the page there";
            (Purpose::Patches(how), Lengths::of([Length::Most(4096)]))
        } else {
            (purpose, whole().lengths)
        };
        Part { range: note.range, purpose, lengths }
    };
    Ok(notes.into_iter().filter(|note| !is_silent(note)).map(part).collect())
}

struct Note<'a> {
    /// Its place in the section, header and all.
    range: Range<u64>,
    owner: &'a [u8],
    kind: u32,
    text: &'a [u8],
}

fn dword(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The notes that these bytes are, if they are notes from end to end.
fn notes(bytes: &[u8], alignment: usize) -> Option<Vec<Note<'_>>> {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (name, text, kind) = (dword(rest)?, dword(rest.get(4..)?)?, dword(rest.get(8..)?)?);
        let (name, text) = (name as usize, text as usize);
        let start = 12_usize.checked_add(name)?.checked_next_multiple_of(alignment)?;
        let end = start.checked_add(text)?;
        let owner = rest.get(12..12 + name)?;
        let text = rest.get(start..end)?;
        let next = at + end.next_multiple_of(alignment).min(rest.len());
        all.push(Note { range: at as u64..next as u64, owner, kind, text });
        at = next;
        if all.len() > MANY {
            return None;
        }
    }
    Some(all)
}

impl Note<'_> {
    fn is_hypercall_page(&self) -> bool {
        self.owner == b"Xen\0" && self.kind == HYPERCALL_PAGE
    }

    /// Whether it is one of GNU's that says nothing of code: in its own form, so that nothing else
    /// hides in it.
    fn is_known(&self) -> bool {
        const ABI_TAG: u32 = 1;
        const BUILD_ID: u32 = 3;
        const GOLD_VERSION: u32 = 4;
        const PROPERTIES: u32 = 5;
        self.owner == b"GNU\0"
            && match self.kind {
                ABI_TAG => self.text.len() == 16,
                BUILD_ID => self.text.len() <= 64,
                GOLD_VERSION => self.text.len() <= 64 && self.text.is_ascii(),
                PROPERTIES => are_properties(self.text),
                _ => false,
            }
    }
}

/// Whether these are GNU's properties: each a type, a length and a word.
fn are_properties(mut text: &[u8]) -> bool {
    while !text.is_empty() {
        let length = text.get(4..).and_then(dword).unwrap_or(u32::MAX);
        let next = 8 + (length.min(64) as usize).next_multiple_of(8);
        if length > 8 || text.len() < next {
            return false;
        }
        text = &text[next..];
    }
    true
}
