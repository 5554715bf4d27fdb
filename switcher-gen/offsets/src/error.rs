//! Why a file says nothing of the structs, and what helps.

use std::io;

/// Why a file says nothing of the structs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OffsetsError {
    /// The operating system does not let it be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A pipe, a device or a folder.
    #[error("it is no regular file, so that parts of it cannot be read: write it to one first")]
    NoFile,
    /// None of the kinds of files that are known.
    #[error(
        "it is neither an ELF file nor BTF, a header with `#define` lines, TOML or JSON: give a \
         vmlinux, an object or module with debug information, asm-offsets.h, or a table written \
         by hand"
    )]
    Unrecognised,
    /// It ends before what it says is there.
    #[error("it is cut off or damaged: what is to lie at {at:#x} is not there")]
    Truncated {
        /// An offset into the file or a section of it.
        at: u64,
    },
    /// BTF of another kind of machine.
    #[error("this BTF is big-endian, so it is not of an x86-64 kernel")]
    BigEndian,
    /// An ELF file of another kind of machine.
    #[error("this ELF file is not a 64-bit one for x86-64")]
    NotX86,
    /// An ELF file with wrong tables.
    #[error("the ELF file is damaged: {what}")]
    DamagedElf {
        /// What is wrong with it.
        what: String,
    },
    /// An ELF file with neither DWARF nor BTF.
    #[error(
        "the ELF file has neither .debug_info nor .BTF, so nothing in it says what structs look \
         like: build with CONFIG_DEBUG_INFO, or compile with `gcc -g`"
    )]
    NoTypes,
    /// A section that is packed in a way that is not read here.
    #[error("section {section} {why}: unpack it with `objcopy --decompress-debug-sections`")]
    Compressed {
        /// Its name.
        section: String,
        /// What hinders.
        why: &'static str,
    },
    /// Relocations that are not as compilers and linkers write them.
    #[error("the relocations of section {section} {why}: link the object first, as with `ld -r`")]
    Relocations {
        /// The name of the section that they change.
        section: String,
        /// What is wrong with them.
        why: String,
    },
    /// DWARF that cannot be decoded.
    #[error("the debug information of {unit} is damaged: {what}")]
    DamagedDwarf {
        /// The compilation unit.
        unit: String,
        /// What is wrong.
        what: String,
    },
    /// A part of the DWARF is in another file.
    #[error("{what} of {unit} is in another file: {way_out}")]
    Elsewhere {
        /// The compilation unit.
        unit: String,
        /// What is not here.
        what: &'static str,
        /// What helps.
        way_out: &'static str,
    },
    /// BTF that cannot be decoded.
    #[error("the BTF is damaged: {what}")]
    DamagedBtf {
        /// What is wrong.
        what: String,
    },
    /// BTF that refers to that of a kernel.
    #[error(
        "this is the BTF of a module, which leaves out the types that its kernel has ({why}): give \
         the kernel's vmlinux, or the module with DWARF"
    )]
    SplitBtf {
        /// What shows it.
        why: String,
    },
    /// One BTF behind another.
    #[error(
        "a linker has put the BTF of several objects behind each other, which nobody reads as one: \
         give the objects one by one, or what pahole has written"
    )]
    SeveralBtf,
    /// A name with two meanings.
    #[error("struct {name} is defined in two ways: {difference}, in {first} and in {second}")]
    TwoDefinitions {
        /// The struct.
        name: String,
        /// Where they differ.
        difference: String,
        /// Where the first definition is.
        first: String,
        /// Where the second one is.
        second: String,
    },
    /// A struct that lies in the block twice.
    #[error("struct {name} lies twice in struct {block}, at {first:#x} and at {second:#x}")]
    TwoPlaces {
        /// The struct.
        name: String,
        /// The struct around it.
        block: String,
        /// The lower offset.
        first: u64,
        /// The higher one.
        second: u64,
    },
    /// A struct without fields.
    #[error("{name} has no fields: is that the struct that is meant?")]
    NoFields {
        /// The struct.
        name: String,
    },
    /// A struct that is too large.
    #[error(
        "{name} has {size} bytes, more than {} KiB: is that the struct that is meant?",
        crate::MOST_BYTES >> 10
    )]
    TooLarge {
        /// The struct.
        name: String,
        /// How large it is.
        size: u64,
    },
    /// A struct that is too large or too deep to be listed.
    #[error("{name} has {what}: is that the struct that is meant?")]
    TooMuch {
        /// The struct.
        name: String,
        /// Of what it has too much.
        what: &'static str,
    },
    /// A field that its struct has no room for.
    #[error("field {field} of {name} ends at {end:#x}, and the struct at {size:#x}")]
    Outside {
        /// The struct.
        name: String,
        /// The field.
        field: String,
        /// The byte after its last one.
        end: u64,
        /// How large the struct is.
        size: u64,
    },
    /// A line of a header.
    #[error("line {line}: {what}")]
    Header {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A text that is no TOML, or says something else.
    #[error("not as this crate's page describes it, in TOML: {0}")]
    Toml(String),
    /// A text that is no JSON, or says something else.
    #[error("not as this crate's page describes it, in JSON: {0}")]
    Json(String),
    /// Nothing that was looked for.
    #[error("none of {looked_for} is there{similar}")]
    NotFound {
        /// What was looked for.
        looked_for: String,
        /// What may be meant, as the rest of the sentence.
        similar: String,
    },
}
