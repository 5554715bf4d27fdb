//! Why an object is not judged: something in it is right for one link only, or for linkers alone.

use super::places::PlaceInFile;

/// What depends on what a linker decides.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkerError {
    /// Code uses the place of another section otherwise than to go there.
    #[error(
        "{at} refers to `{section}` otherwise than by a call or a jump to a place in it, and what a \
         linker puts between the two sections is not known: put the code into one section, or link \
         the file"
    )]
    Apart {
        /// Where in the file.
        at: PlaceInFile,
        /// The other section.
        section: String,
    },
    /// Code uses the address of a routine of the host's otherwise than to go there.
    #[error(
        "{at} uses the address of `{symbol}` otherwise than to call it or to jump to it, and where \
         that is, the linker decides: write `call {symbol}`, or link the file"
    )]
    HookAddress {
        /// Where in the file.
        at: PlaceInFile,
        /// The routine.
        symbol: String,
    },
    /// A number leads to where something else may be.
    #[error(
        "{at} leads out of `{section}` by a number, and what a linker puts there is not known: name \
         the place by a symbol, or link the file"
    )]
    Leaves {
        /// Where in the file.
        at: PlaceInFile,
        /// The section.
        section: String,
    },
    /// A routine's name is where its section ends.
    #[error(
        "`{symbol}` is at the end of `{section}`, and what a linker puts after it is not known: \
         define it where its routine begins"
    )]
    AtEnd {
        /// Its name.
        symbol: String,
        /// The section.
        section: String,
    },
    /// Two symbols are not the bounds of anything.
    #[error(
        "`{start}` and `{end}` are not the start and the end of a part of one section: define the \
         one in front of that part, and the other after it"
    )]
    Bounds {
        /// The first one.
        start: &'static str,
        /// The second one.
        end: &'static str,
    },
    /// A linker may do anything by what nobody knows.
    #[error(
        "`{section}` is for linkers alone (SHF_EXCLUDE), and it is not known what it tells them: if it is \
         code to be compiled anew, other bytes run; take it out (`objcopy --remove-section`), or link \
         the file first"
    )]
    ForLinkers {
        /// Its name.
        section: String,
    },
}
