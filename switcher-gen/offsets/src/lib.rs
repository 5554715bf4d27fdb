//! Reads where the fields of another hypervisor's structs lie, out of the files that its build has
//! made. Whoever judges a switcher of anybody's needs them: `switcher offsets --from` prints them
//! beside ours.
//!
//! What is read is the **block** of a CPU, `struct tss_struct` (in the variable `cpu_tss_rw`), with
//! the hardware's TSS (`struct x86_hw_tss`) and what the switcher keeps (`struct tss_extra`) in it,
//! and the **PVCS** (`struct pvm_vcpu_struct`). [`Names`] has these names; other kernels have
//! others.
//!
//! # What is read
//!
//! The contents of a file say what it is, not its name:
//!
//! | source | what it is | what it lacks |
//! |---|---|---|
//! | DWARF | any ELF file for x86-64 that was compiled with `-g`, versions 4 and 5 | |
//! | BTF | the section `.BTF` of a file without the structs in DWARF, or a file of nothing else | modules leave out what the kernel has |
//! | header | the kernel's `asm-offsets.h`: `#define TSS_EX_host_cr3 4104` | sizes |
//! | TOML, JSON | [written by hand](#written-by-hand) | what was not written |
//!
//! In a header, `TSS_EX_NAME` is a field of what the switcher keeps, from the start of the block;
//! `PVCS_NAME` is one of the PVCS; and `TSS_sp0`, `TSS_sp1`, `TSS_sp2` and `TSS_ist` are the
//! hardware's. Where `struct tss_extra` begins is not in a header, so the first of its fields
//! counts as the start, and [`Found::is_start_known`] is false.
//!
//! # What a field is
//!
//! A nested struct is a field, and so is each of its fields, as `outer.inner`. An array is a field,
//! and so is each of its elements, as `name[0]`, unless they are bytes or more than
//! [`MOST_ELEMENTS`]. Fields of an unnamed struct or union are those of the struct around it.
//! Fields may overlap, as those of a union do. Bit fields have no place in bytes: they are no
//! fields, and [`Struct::bit_fields`] has their names.
//!
//! # Written by hand
//!
//! Tables `tss`, `tss_extra` and `pvcs`, each with `size`, with `at`, which is where it lies in the
//! block (the PVCS lies in none), and with `fields`. Each field is where it lies, or that and its
//! size; JSON has the same keys. All but `fields` may be left out. An unknown key is an error.
//!
//! ```
//! let found = switcher_offsets::read(
//!     br#"
//!     [tss_extra]
//!     at = 0x68
//!     size = 0x80
//!     [tss_extra.fields]
//!     host_cr3 = 0x00
//!     switch_flags = { at = 0x40, size = 8 }
//!
//!     [pvcs.fields]
//!     rip = 0x60
//!     "#,
//! )?;
//! let extra = found.tss_extra.expect("it is written there");
//! assert_eq!(found.tss_extra_at, Some(0x68));
//! let flags = extra.field("switch_flags").expect("so is its field");
//! assert_eq!((flags.at, flags.size), (0x40, Some(8)));
//! assert_eq!(found.pvcs.expect("this one too").size, None);
//! assert_eq!(found.tss, None);
//!
//! let wrong = switcher_offsets::read(b"[tss_extra]\nfeilds = { host_cr3 = 0 }").unwrap_err();
//! assert!(wrong.to_string().contains("line 2") && wrong.to_string().contains("`fields`"));
//! # Ok::<(), switcher_offsets::OffsetsError>(())
//! ```
//!
//! # Large files
//!
//! Of an ELF file, a compilation unit is in memory at a time, with the abbreviations of all; a
//! section that is compressed is in memory as a whole. By default all units are looked at, so that
//! two definitions that differ are seen wherever they are; [`Scan::UntilFound`] stops at the first
//! of each.
//!
//! | module | what it is |
//! |---|---|
//! | `input` | bytes, or a file of which only parts are read |
//! | `elf` | sections, unpacked if they are compressed |
//! | `relocate` | relocations of an object's debug information |
//! | `dwarf` | structs from DWARF: `index` finds units, `unit` reads one, `strings` has names, `types` what members are |
//! | `either` | DWARF or BTF of an ELF file |
//! | `btf` | structs from BTF |
//! | `flatten` | from members to fields, whatever they come from |
//! | `wanted` | the structs that are looked for, and what was found of them |
//! | `header` | headers |
//! | `written` | TOML and JSON |
//! | `check` | what must hold of fields that somebody wrote |
//! | `merge` | several files that complete each other |
//! | `error` | why not |

mod btf;
mod check;
mod dwarf;
mod either;
mod elf;
mod error;
mod flatten;
mod header;
mod input;
mod merge;
mod relocate;
mod wanted;
mod written;

use std::fmt;
use std::fs::File;

use serde::Serialize;

pub use error::OffsetsError;
pub use flatten::MOST_ELEMENTS;
use input::Input;
pub use merge::{Contradiction, merge};

/// The largest struct, in bytes. Those of a kernel have a tenth.
pub const MOST_BYTES: u64 = 64 << 10;

/// A field, in bytes from the start of its struct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    /// As the source has it, with those around it: `outer.inner`, `name[0]`.
    pub name: String,
    /// Where it lies.
    pub at: u64,
    /// How large it is, if the source says so.
    pub size: Option<u64>,
}

/// The layout of a struct.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Struct {
    /// How large it is, if the source says so.
    pub size: Option<u64>,
    /// The fields by offset; of those at one offset, the larger one first.
    pub fields: Vec<Field>,
    /// The names of the bit fields, which are no fields here.
    pub bit_fields: Vec<String>,
}

impl Struct {
    /// The field of this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Brings the fields into their order.
    fn sort(&mut self) {
        let larger_first = |field: &Field| std::cmp::Reverse(field.size);
        self.fields.sort_by(|a, b| {
            let order = (a.at, larger_first(a)).cmp(&(b.at, larger_first(b)));
            order.then_with(|| a.name.len().cmp(&b.name.len())).then_with(|| a.name.cmp(&b.name))
        });
    }
}

/// What kind of file it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Debug information of an ELF file.
    Dwarf,
    /// The kernel's type information.
    Btf,
    /// A header of `#define` lines.
    Header,
    /// Written by hand, as TOML.
    Toml,
    /// Written by hand, as JSON.
    Json,
    /// Several files.
    Several,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dwarf => "DWARF",
            Self::Btf => "BTF",
            Self::Header => "a header",
            Self::Toml => "TOML",
            Self::Json => "JSON",
            Self::Several => "several files",
        })
    }
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The hardware's TSS.
    pub tss: Option<Struct>,
    /// Where it lies in the block.
    pub tss_at: Option<u64>,
    /// What the switcher keeps of the running guest.
    pub tss_extra: Option<Struct>,
    /// Where it lies in the block.
    pub tss_extra_at: Option<u64>,
    /// Whether `tss_extra_at` is where `tss_extra` begins. If not, that is where the first field
    /// lies that the source names; the sum of it and a field's place is right all the same.
    pub is_start_known: bool,
    /// The page shared with the guest.
    pub pvcs: Option<Struct>,
    /// What kind of file it was.
    pub source: Source,
}

impl Found {
    /// Nothing so far.
    fn nothing(source: Source) -> Self {
        Self {
            tss: None,
            tss_at: None,
            tss_extra: None,
            tss_extra_at: None,
            is_start_known: true,
            pvcs: None,
            source,
        }
    }

    fn is_empty(&self) -> bool {
        self.tss.is_none() && self.tss_extra.is_none() && self.pvcs.is_none()
    }
}

/// What the structs are called in C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The block.
    pub tss_struct: String,
    /// The hardware's TSS.
    pub tss: String,
    /// What the switcher keeps.
    pub tss_extra: String,
    /// The page shared with the guest.
    pub pvcs: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            tss_struct: "tss_struct".into(),
            tss: "x86_hw_tss".into(),
            tss_extra: "tss_extra".into(),
            pvcs: "pvm_vcpu_struct".into(),
        }
    }
}

/// How much of a file is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scan {
    /// All of it: two definitions of one name that differ are an error.
    #[default]
    All,
    /// Until each struct was found once.
    UntilFound,
}

/// What to look for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The names of the structs.
    pub names: Names,
    /// How much is looked at.
    pub scan: Scan,
}

/// What `bytes`, the contents of a file, say of the structs with the usual names.
///
/// # Errors
/// If the file is of no known kind or damaged, has none of the structs, or contradicts itself.
pub fn read(bytes: &[u8]) -> Result<Found, OffsetsError> {
    read_with(bytes, &Options::default())
}

/// What `bytes`, the contents of a file, say.
///
/// # Errors
/// As of [`read`].
pub fn read_with(bytes: &[u8], options: &Options) -> Result<Found, OffsetsError> {
    read_input(&bytes, options)
}

/// What a file says of the structs with the usual names; of a large one, only parts are read. Its
/// position neither counts nor changes.
///
/// # Errors
/// As of [`read`], and if it cannot be read.
pub fn read_file(file: &File) -> Result<Found, OffsetsError> {
    read_file_with(file, &Options::default())
}

/// What a file says; of a large one, only parts are read.
///
/// # Errors
/// As of [`read_file`].
pub fn read_file_with(file: &File, options: &Options) -> Result<Found, OffsetsError> {
    read_input(&input::OnDisk::new(file)?, options)
}

fn read_input(input: &dyn Input, options: &Options) -> Result<Found, OffsetsError> {
    /// The largest text. Headers and what is written by hand have a thousandth.
    const MOST_TEXT: u64 = 16 << 20;
    let mut start = [0; 4];
    let has_start = input.size() >= 4;
    if has_start {
        input.read_at(0, &mut start)?;
    }
    match start {
        _ if has_start && &start == b"\x7fELF" => return either::read(input, options),
        [0x9F, 0xEB, ..] => return btf::read_raw(input, options),
        [0xEB, 0x9F, ..] => return Err(OffsetsError::BigEndian),
        _ => {}
    }
    if input.size() > MOST_TEXT {
        return Err(OffsetsError::Unrecognised);
    }
    let bytes = input.bytes(0, input.size())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| OffsetsError::Unrecognised)?;
    // An editor may have put it there.
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    let found = match written::kind(text) {
        written::Kind::Header => header::read(text)?,
        written::Kind::Toml => written::toml(text)?,
        written::Kind::Json => written::json(text)?,
        written::Kind::Unknown => return Err(OffsetsError::Unrecognised),
    };
    Ok(found)
}
