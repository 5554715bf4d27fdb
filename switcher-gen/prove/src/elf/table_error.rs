//! Why a file is not judged whose tables cannot be taken for what they should be.

use super::places::PlaceInFile;

/// What is wrong with a table by which somebody rewrites code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// It has the name of a table and the flags of code.
    #[error(
        "`{section}` has the name of a table ({how}), and is marked executable: a table is no code, so \
         mark it as data (`.section {section}, \"a\"`), or give code a section of another name"
    )]
    Executable {
        /// Its name.
        section: String,
        /// Who reads it, and what it does.
        how: String,
    },
    /// What its entries say is not known.
    #[error(
        "the entries of `{section}` cannot be read, so that it is not known what is changed by them: \
         give the file without it, or with one section of that name"
    )]
    Unreadable {
        /// Its name.
        section: String,
    },
    /// Calls are counted in front of what is called.
    #[error(
        "`{section}` names a call of what comes at most 16 bytes after {at}, which is reached: a kernel \
         that counts how deep its calls are puts other bytes over the NOPs in front of what is called; \
         put an INT3 right in front of that, or say that the kernel does not (`--boot call-depth=off`)"
    )]
    Padding {
        /// Its name.
        section: String,
        /// The code in front of what is called.
        at: PlaceInFile,
    },
    /// A key that stays as it is leaves its static branches as they are.
    #[error(
        "`--boot {choice}`: the static branch at {at} is not as the file has the others of that key, or \
         stays as the file has it on some versions of Linux, and a key that is never flipped changes \
         none; leave it out of `--boot`, or make the file with sites of one form"
    )]
    Stays {
        /// The key.
        choice: String,
        /// The static branch.
        at: PlaceInFile,
    },
    /// A relocation has no addend of its own: what it adds lies in the field that it changes, which
    /// is not looked at.
    #[error(
        "`{section}` names {at} by a relocation without an addend, so that it may name another place: \
         make the file with RELA relocations"
    )]
    ImplicitAddend {
        /// Its name.
        section: String,
        /// What it would name if nothing is added.
        at: PlaceInFile,
    },
}
