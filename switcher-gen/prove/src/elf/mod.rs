//! Reads ELF files: the code of any object or linked file, as a target for proofs.
//!
//! | file | purpose |
//! |---|---|
//! | `read` | the code of any object or linked file, for checking what others have written |
//! | `request` | what is asked of a file: names that are not ours, and addresses of data |
//! | `per_cpu` | what is reached through GS: data of which each CPU has a copy |
//! | `data` | where that lies, by its names |
//! | `front` | what is changed in front of what a table names |
//! | `foreign` | what is read of a file: its code as it lies in memory, and what is assumed of it |
//! | `places` | where things lie, and how much of them there may be |
//! | `gate` | what is said of an IDT that leads to its symbols |
//! | `idt` | where that leads in the file |
//! | `error` | why it cannot be read |
//! | `linker_error` | why an object is right for one link only |
//! | `table_error` | why a table is not taken for one |
//! | `contents` | where its bytes come from |
//! | `file` | its tables |
//! | `code` | its code byte by byte |
//! | `layout` | where the parts of an object are taken to lie |
//! | `leads` | what of an object's code leads out of its section, and may |
//! | `labels` | the names that have a meaning |
//! | `features` | Linux's numbers of features |
//! | `choice` | what decides which bytes run, and is not in the file |
//! | `overlay` | bytes that run instead of the file's |
//! | `boot` | what Linux makes of the code when it boots |
//! | `relocation` | what each kind of relocation changes |
//! | `relocation_table` | the relocations of a section, in pieces |
//! | `names` | what its symbols say |
//! | `reach` | what of the code a switcher's routines reach |
//! | `segments` | what a loader maps, and where |
//! | `dynamic` | what the dynamic section says to it |
//! | `loaded` | whether a linked file's code is what is loaded |
//! | `purpose` | what a section is for, by its name and its type |
//! | `reached` | what is reached of the code, and what an address has to do with that |
//! | `patched` | tables by which somebody rewrites code |
//! | `lengths` | how much an entry of such a table changes |
//! | `notes` | what each note in a section is |
//! | `words` | what the words of such a table may be |
//! | `wanted` | the few names that are looked for among all |
//! | `among` | such tables among code |
//! | `exports` | whether what the dynamic section names is what was looked at |

mod among;
mod boot;
mod choice;
mod code;
mod contents;
mod data;
mod dynamic;
mod error;
mod exports;
mod features;
mod file;
mod foreign;
mod front;
mod gate;
mod idt;
mod labels;
mod layout;
mod leads;
mod lengths;
mod linker_error;
mod loaded;
mod names;
mod notes;
mod overlay;
mod patched;
mod per_cpu;
mod places;
mod purpose;
mod reach;
mod reached;
mod read;
mod relocation;
mod relocation_table;
mod request;
mod segments;
mod table_error;
mod wanted;
mod words;

pub use choice::{Choice, Choices, text as choices};
pub use error::ReadError;
pub use features::Feature;
pub use foreign::{CodeSection, Foreign, Linkage};
pub use gate::{GateError, Gates};
pub use linker_error::LinkerError;
pub use places::PlaceInFile;
pub use read::{images, images_of, read, read_as, read_file, read_file_as};
pub use request::{Request, RequestError};
pub use table_error::TableError;
