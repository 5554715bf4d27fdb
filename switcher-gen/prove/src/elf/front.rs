//! What Linux changes in front of the places that its tables name.
//!
//! A table names a function, or a call, and what belongs to it lies in front: the hash by which
//! kCFI checks an indirect call, or room that a compiler leaves for it. Linux takes for granted
//! that its own compiler has put nothing else there. It does not look, or not closely.

use super::code::FileCode;
use super::contents::Contents;
use super::error::ReadError;
use super::file::Of;
use super::{Choice, PlaceInFile};

/// What is changed in front of what a table names.
pub(super) struct Front {
    /// A part of the table's name, by which all of its variants are known.
    table: &'static str,
    /// How many bytes in front of the place may be others.
    bytes: u64,
    /// Whether only a kernel with FineIBT does it. No other calls `poison_cfi`, or rewrites the
    /// callers (Linux, arch/x86/kernel/alternative.c).
    is_fine_ibt: bool,
    how: &'static str,
}

/// The tables that do so. FineIBT has 16 bytes in front of a function and 14 in front of a call.
const FRONTS: [Front; 5] = [
    Front {
        table: "endbr_seal",
        bytes: 16,
        is_fine_ibt: true,
        how: "what is in front of a sealed ENDBR64 is poisoned if the kernel has FineIBT",
    },
    Front {
        table: "retpoline_sites",
        bytes: 16,
        is_fine_ibt: true,
        how: "what is in front of an indirect call is rewritten if the kernel has FineIBT",
    },
    Front {
        table: "cfi_sites",
        bytes: 16,
        is_fine_ibt: true,
        how: "what is around a function's hash is rewritten if the kernel has FineIBT",
    },
    // The place may be after an ENDBR64.
    Front {
        table: "mcount_loc",
        bytes: 20,
        is_fine_ibt: false,
        how: "in front of a traced function there is room for a hash, or for counting calls, which \
              the kernel fills",
    },
    Front {
        table: "patchable_function_entries",
        bytes: 16,
        is_fine_ibt: false,
        how: "in front of a traced function there is room for a hash, or for counting calls, which \
              the kernel fills",
    },
];

/// Whether a kernel has FineIBT.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FineIbt {
    /// The file has what only such a kernel has.
    Shown,
    /// The file is a whole kernel, and has nothing of it.
    Absent,
    /// It was said that it has not.
    Denied,
    Unknown,
}

fn of(table: &str) -> impl Iterator<Item = &'static Front> {
    FRONTS.iter().filter(move |front| table.contains(front.table))
}

/// How many bytes in front of what a table of this name names may be changed.
pub(super) fn bytes(table: &str) -> u64 {
    of(table).map(|front| front.bytes).max().unwrap_or_default()
}

/// Judges that reached code at `at` lies in front of what a table names. Says whether it is left
/// alone only because it was said that the kernel has no FineIBT.
///
/// # Errors
/// If it may be changed.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    table: &str,
    at: PlaceInFile,
) -> Result<bool, ReadError> {
    /// What a user may say instead, of a kernel of which nothing is known.
    const OR_SAY: &str = ", or say that the kernel is built without CONFIG_FINEIBT, if it is \
                          (`--boot fineibt=off`)";
    let has_fine_ibt = fine_ibt(code)?;
    let may = |front: &&Front| {
        !front.is_fine_ibt || matches!(has_fine_ibt, FineIbt::Shown | FineIbt::Unknown)
    };
    let Some(front) = of(table).find(may) else {
        return Ok(has_fine_ibt == FineIbt::Denied);
    };
    let or = front.is_fine_ibt && has_fine_ibt == FineIbt::Unknown;
    Err(ReadError::Before {
        section: table.into(),
        at,
        how: front.how,
        bytes: front.bytes,
        or: if or { OR_SAY } else { "" },
    })
}

/// What is known of FineIBT in the kernel that a file is, or is a part of. What the file has goes
/// before what is said.
fn fine_ibt<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
) -> Result<FineIbt, ReadError> {
    /// Symbols by which Linux finds its tables: whoever links a kernel makes them.
    const BOUNDS: [&[u8]; 2] = [b"__ibt_endbr_seal", b"__retpoline_sites"];
    let file = code.file;
    let is_cfi = |name: &str| name.contains("cfi_sites");
    if file.sections.iter().any(|section| section.size > 0 && is_cfi(&section.text())) {
        return Ok(FineIbt::Shown);
    }
    if file.request.says(&Choice::FineIbt) == Some(false) {
        return Ok(FineIbt::Denied);
    }
    if file.is_object() {
        return Ok(FineIbt::Unknown);
    }
    let (mut is_kernel, mut has_cfi) = (false, false);
    for symbol in file.symbols() {
        let symbol = symbol?;
        is_kernel |= BOUNDS.contains(&symbol.name) && symbol.of != Of::Undefined;
        has_cfi |= symbol.name.starts_with(b"__cfi_") || symbol.name.starts_with(b"__kcfi_");
    }
    Ok(if is_kernel && !has_cfi { FineIbt::Absent } else { FineIbt::Unknown })
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn a_table_and_its_variants_reach_in_front() {
        assert_eq!(bytes(".ibt_endbr_seal"), 16);
        assert_eq!(bytes(".init.retpoline_sites"), 16);
        assert_eq!((bytes(".altinstructions"), bytes("__mcount_loc")), (0, 20));
    }
}
