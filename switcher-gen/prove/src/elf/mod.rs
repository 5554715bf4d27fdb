//! ELF files, both ways.
//!
//! | file | purpose |
//! |---|---|
//! | `write` | an image as an object, for hosts that link it and for every tool that reads objects |
//! | `read` | the code of any object or linked file, for checking what others have written |
//! | `error` | why it cannot be read |
//! | `file` | its tables |
//! | `code` | its code byte by byte |
//! | `relocation` | what each kind of relocation changes |
//! | `names` | what its symbols say |
//! | `reach` | what of the code a switcher's routines reach |
//! | `segments` | what a loader maps, and where |
//! | `dynamic` | what the dynamic section says to it |
//! | `loaded` | whether a linked file's code is what is loaded |
//! | `purpose` | what a section is for, by its name and its type |
//! | `patched` | tables by which somebody rewrites code |
//! | `words` | what the words of such a table may be |
//! | `among` | such tables among code |
//! | `exports` | whether what the dynamic section names is what was looked at |
//!
//! What the object of an image holds:
//!
//! | section | |
//! |---|---|
//! | `.text` | the image; it may be linked anywhere |
//! | `switcher_windows` | a table of the image's windows: see below |
//! | `.note.switcher` | what it is: owner `switcher`, type 1, the variant's name; type 2, the fingerprint's 32 bytes |
//! | `.note.GNU-stack` | empty: no executable stack is asked for |
//!
//! Entry points are global functions whose sizes reach to the next one, filler included. The other
//! exported labels are global symbols without a type. What the image calls of the host is an
//! undefined symbol.
//!
//! Each entry of `switcher_windows` is three little-endian dwords: start and end of the range (half
//! open), each relative to its own dword, and the kind, [`Window`](switcher_gen::asm::Window) as a
//! number. The section's name is a C identifier, so linkers define `__start_switcher_windows` and
//! `__stop_switcher_windows` around it:
//!
//! ```c
//! struct window { int32_t start, end; uint32_t kind; };
//! extern const struct window __start_switcher_windows[], __stop_switcher_windows[];
//! /* start of w, for instance: */ (uintptr_t)&w->start + w->start
//! ```

mod among;
mod code;
mod dynamic;
mod error;
mod exports;
mod file;
mod loaded;
mod names;
mod patched;
mod purpose;
mod reach;
mod read;
mod relocation;
mod segments;
mod words;

pub use error::ReadError;
pub use read::{CodeSection, Foreign, Linkage, PlaceInFile, read, read_file};
