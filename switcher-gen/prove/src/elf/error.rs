//! Why a file's code cannot be read: what is wrong, where, and what to do.

use super::gate::GateError;
use super::linker_error::LinkerError;
use super::places::{BASE, LIMIT, PlaceInFile};
use super::table_error::TableError;

/// Why a file's code cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The magic number is not there.
    #[error("not an ELF file: give an object (from `as` or `cc -c`) or a linked file")]
    NotElf,
    /// The ELF file is inside of it, if there is one.
    #[error("the file is {what}, and no ELF file: {how}")]
    Packed {
        /// What it is.
        what: &'static str,
        /// How to get at what is in it.
        how: &'static str,
    },
    /// The file is for another CPU, or for another mode of it.
    #[error("the file holds {found}; a switcher is 64-bit little-endian code for x86-64")]
    NotX86_64 {
        /// What it is for.
        found: String,
    },
    /// A core dump, for instance.
    #[error("an ELF file of type {0} is neither an object nor linked: give one of those")]
    FileType(u16),
    /// The file contradicts itself or ends early.
    #[error("the file is damaged or truncated: {0}; make it again")]
    Malformed(#[from] object::read::Error),
    /// The file has no code.
    #[error("no section holds code: mark the code's section executable (`.section x, \"ax\"`)")]
    NoCode,
    /// Without names, nobody knows where the routines are.
    #[error(
        "the file has no symbol table: name its routines (`.globl`), or give it as it was before \
         it was stripped"
    )]
    Stripped,
    /// Code is spread over more memory than any switcher, or names are.
    #[error(
        "{what} take more than {} MiB, which is no switcher: give the file that holds it alone",
        LIMIT >> 20
    )]
    TooLarge {
        /// What is too large.
        what: &'static str,
    },
    /// Many headers lead to the same bytes, so that looking at all of them could take for ever.
    #[error("{what} claim more bytes than the file could hold without sharing them: make it again")]
    Claims {
        /// Which headers.
        what: &'static str,
    },
    /// Several sections relocate one section, and a linker may ignore one of them.
    #[error("`{section}` is relocated by more than one section: make the file again")]
    RelocatedBySeveral {
        /// Its name.
        section: String,
    },
    /// An alignment is not a power of two, or larger than a file could need.
    #[error(
        "section `{section}` wants to be aligned to {alignment:#x}: use a power of two, at most {LIMIT:#x}"
    )]
    Alignment {
        /// Its name.
        section: String,
        /// What it asks for.
        alignment: u64,
    },
    /// A variant's mitigations depend on where in its cache lines the code lies.
    #[error(
        "section `{section}` is aligned to {alignment}, and the variant's mitigations depend on where \
         code lies in its cache lines: align it to {line}", line = switcher_gen::asm::LINE
    )]
    Line {
        /// Its name.
        section: String,
        /// What it asks for.
        alignment: u64,
    },
    /// Two sections claim an address.
    #[error("`{section}` at {address:#x} lies over the code: check the addresses given to `ld`")]
    Overlap {
        /// The second one.
        section: String,
        /// Where it starts.
        address: u64,
    },
    /// Memory without bytes in the file is executable.
    #[error(
        "`{section}` is executable but the file does not hold its bytes: make it PROGBITS; if this is \
         what `objcopy --only-keep-debug` has made, give the file that it was made of"
    )]
    NoContents {
        /// Its name.
        section: String,
    },
    /// The address space ends before the code does.
    #[error("`{section}` reaches beyond the last address: check the addresses given to `ld`")]
    WrapsAround {
        /// Its name.
        section: String,
    },
    /// Code refers to what another file defines.
    #[error(
        "{at} refers to `{symbol}`, which the file does not define: link it with what does, or say which \
         symbol of ours it is (`--symbol OURS={symbol}`), or which data it is (`--per-cpu`, \
         `--read-only {symbol}:BYTES`)"
    )]
    Undefined {
        /// Where in the file.
        at: PlaceInFile,
        /// The symbol that it refers to.
        symbol: String,
    },
    /// Code refers to memory that is not code.
    #[error(
        "{at} refers to section `{section}`: only code is modelled; reach data through GS, make it an \
         immediate, or say which data it is, by its global symbol: `--per-cpu` if it is reached through \
         GS, `--read-only` if it lies in a section and is reached relative to the code"
    )]
    Data {
        /// Where in the file.
        at: PlaceInFile,
        /// The section that it refers to.
        section: String,
    },
    /// Data was asked for, and is not only read and written where it lies.
    #[error(
        "{at} uses `{symbol}`, which was said to be data, otherwise than as an operand in memory that is \
         counted from RIP alone: its address may be anywhere"
    )]
    FixedData {
        /// Where in the file.
        at: PlaceInFile,
        /// The symbol.
        symbol: String,
    },
    /// The IDT cannot lead where it is said to.
    #[error("`--gate`: {0}")]
    Gate(#[from] GateError),
    /// The file is right for one link only.
    #[error(transparent)]
    Linker(#[from] LinkerError),
    /// A table is not what it should be.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A reference that only a linker understands.
    #[error(
        "{at} has a relocation of kind {kind}, and only direct references are modelled (64, 32, \
         32S, PC64, PC32, PC16, PC8, PLT32): link the file first"
    )]
    Relocation {
        /// Where in the file.
        at: PlaceInFile,
        /// `ELF64_R_TYPE`.
        kind: u32,
    },
    /// A relocation reaches over the end of its section.
    #[error("the relocation at {at} is not inside its section: the file is damaged")]
    OutsideSection {
        /// Where in the file.
        at: PlaceInFile,
    },
    /// A relocation whose addend is in the code, which no x86-64 toolchain makes.
    #[error("the relocation at {at} has no addend: make the file with RELA relocations")]
    ImplicitAddend {
        /// Where in the file.
        at: PlaceInFile,
    },
    /// The target is too far away, or an absolute address is too large for the field.
    #[error(
        "{at}: {value:#x} does not fit into {bits} bits (relocation of kind {kind}); objects are \
         read at {:#x}: link the file to where it will run",
        BASE
    )]
    Overflow {
        /// Where in the file.
        at: PlaceInFile,
        /// `ELF64_R_TYPE`.
        kind: u32,
        /// What should be stored.
        value: u64,
        /// Size of the field.
        bits: usize,
    },
    /// Two relocations change the same bytes.
    #[error("the relocation at {at} lies over the one before it: make the file again")]
    RelocatedTwice {
        /// The second one.
        at: PlaceInFile,
    },
    /// Relocations in a form that is not read.
    #[error(
        "the relocations of `{section}` cannot be read: make the file with RELA relocations of its \
         symbol table"
    )]
    RelocationTable {
        /// The section that holds them.
        section: String,
    },
    /// The file ends before its code does.
    #[error("the file ends before `{section}` does: it is truncated, make it again")]
    Truncated {
        /// Its name.
        section: String,
    },
    /// Another file may define the symbol, too, and then that definition runs.
    #[error(
        "`{symbol}` is weak, so that another file may take its place: make it global (`.globl`), or \
         link the file first"
    )]
    Weak {
        /// Its name.
        symbol: String,
    },
    /// The symbol need not be defined by any file, and its address is 0 then.
    #[error(
        "{at} refers to `{symbol}`, which is weak and not defined, so that it may be address 0: \
         drop `.weak`"
    )]
    WeakUndefined {
        /// Where in the file.
        at: PlaceInFile,
        /// The symbol that it refers to.
        symbol: String,
    },
    /// The file asks another one for the routine, and has one of that name for itself.
    #[error(
        "`{symbol}` is local here, and referred to as another file's, so that another one is called: \
         make it global (`.globl {symbol}`), and keep it so where files are linked"
    )]
    LocalAndUndefined {
        /// Its name.
        symbol: String,
    },
    /// A linker compiles the code anew.
    #[error(
        "`{section}` holds the code once more, for linkers that compile it anew (LTO), so that other \
         bytes may run: compile it with `-fno-lto`, or link the file first"
    )]
    Lto {
        /// Its name.
        section: String,
    },
    /// Code decides at run time which function is called.
    #[error(
        "`{symbol}` is an indirect function (STT_GNU_IFUNC), so that another one is called: make it \
         a function (`.type {symbol}, @function`)"
    )]
    Indirect {
        /// Its name.
        symbol: String,
    },
    /// Several symbols have the name, and it is not known which of them is meant.
    #[error("`{symbol}` is defined more than once, at {}: leave one", addresses(.at))]
    Ambiguous {
        /// Its name.
        symbol: String,
        /// The addresses.
        at: Vec<u64>,
    },
    /// A routine's name is that of something else.
    #[error("`{symbol}` is not in a section of code: define it where its routine begins")]
    NotCode {
        /// Its name.
        symbol: String,
    },
    /// The bytes of a section are not what will be in memory.
    #[error("the code's section `{section}` {why}")]
    Section {
        /// Its name.
        section: String,
        /// Why, and what to do.
        why: String,
    },
    /// Code may be written to while it runs.
    #[error(
        "the code's section `{section}` is writable, so that other bytes may run: mark it \
         executable alone (`.section {section}, \"ax\"`; `ld` without `-N`)"
    )]
    Writable {
        /// Its name.
        section: String,
    },
    /// A call leads to where the loader says.
    #[error(
        "{}the stub in `{section}` is called, which jumps to whichever function the loader has found, in \
         this file or another: link with `-Bsymbolic`, or make the function local or hidden, so that the \
         linker calls it without the PLT",
        from.as_ref().map(|at| format!("from {at}, ")).unwrap_or_default()
    )]
    Plt {
        /// The section of the stub.
        section: String,
        /// The call.
        from: Option<PlaceInFile>,
    },
    /// Code is not all in one place.
    #[error(
        "{}`{section}` is reached, and `{first}` holds the code: a guest's root need not map both, so \
         put all code of the switcher into one section",
        from.as_ref().map(|at| format!("from {at}, ")).unwrap_or_default()
    )]
    SecondSection {
        /// The one that need not be mapped.
        section: String,
        /// The one that holds the first routine.
        first: String,
        /// The jump.
        from: Option<PlaceInFile>,
    },
    /// A routine of the host's would be judged as the switcher's.
    #[error(
        "`{symbol}` is among the code that is reached, and a routine of the host's is not looked at: \
         end the code in front of it by a return, a jump or a trap, and call the routine by its name"
    )]
    HookWithin {
        /// Its name.
        symbol: String,
    },
    /// A table says that other bytes will run.
    #[error(
        "`{section}` names {at}, which is reached or counted from: {how}, so that other bytes run than \
         are in the file; give the code without it, assembled once for each CPU that it is for"
    )]
    Patched {
        /// The table.
        section: String,
        /// What it names.
        at: PlaceInFile,
        /// What happens there.
        how: &'static str,
    },
    /// A table says that what is in front of the place that it names may be changed.
    #[error(
        "`{section}` names a place at most {bytes} bytes after {at}, which is reached: {how}, so that \
         other bytes may run than are in the file; put {bytes} bytes of INT3 in front of that place, or \
         take its entry out of the table{or}"
    )]
    Before {
        /// The table.
        section: String,
        /// The code in front of what it names.
        at: PlaceInFile,
        /// What happens there.
        how: &'static str,
        /// How far that reaches.
        bytes: u64,
        /// What may be said instead, if anything.
        or: &'static str,
    },
    /// Several images are possible, and one is asked for.
    #[error(
        "what runs depends on what the kernel finds when it boots: `{}`, `{}` or others; choose one \
         (`--boot`)", .images[0], .images[1]
    )]
    Open {
        /// The choices of two of them.
        images: [String; 2],
    },
    /// Nothing depends on what was said.
    #[error("no table of what Linux patches has `{choice}`: leave it out of `--boot`")]
    NoChoice {
        /// The choice.
        choice: String,
    },
    /// There are more images than can be judged.
    #[error(
        "what runs depends on more than the kernel's {most} ways to boot that are judged{}: say \
         how some of it is (`--boot`){}", such_as(.boot), stay(.keys)
    )]
    Combinations {
        /// How many are judged.
        most: usize,
        /// Some of the choices.
        boot: String,
        /// Keys of static branches, of which it can be said that they stay as they are.
        keys: Vec<String>,
    },
    /// Something names the code that may be such a table.
    #[error(
        "`{section}` names {at}, and it is not known what for: if it changes the code that is reached, \
         other bytes run; if it does not, say so (`--assume-unpatched`)"
    )]
    MaybePatched {
        /// The section.
        section: String,
        /// What it names.
        at: PlaceInFile,
    },
    /// No segment has the code.
    #[error(
        "`{section}` has code at {at:#x} that no segment loads: sections and program headers \
         contradict each other, link the file again"
    )]
    NotMapped {
        /// Its name.
        section: String,
        /// The address.
        at: u64,
    },
    /// A segment has other bytes than the section.
    #[error(
        "`{section}` has other bytes at {at:#x} than the segment that is loaded there: sections and \
         program headers contradict each other, link the file again"
    )]
    OtherBytes {
        /// Its name.
        section: String,
        /// From where on they were compared.
        at: u64,
    },
    /// Two segments have the code, or one page of it.
    #[error(
        "the code at {at:#x} in `{section}` is in a page of two segments: link the file with \
         segments apart (`-z separate-code`)"
    )]
    Segments {
        /// Its name.
        section: String,
        /// The address.
        at: u64,
    },
    /// Two segments have the same addresses.
    #[error(
        "two segments are loaded to {at:#x}, and it is not known which of them is there then: link \
         the file again, with each at addresses of its own"
    )]
    SegmentsOverlap {
        /// Where the second one begins.
        at: u64,
    },
    /// A table is not where its section says.
    #[error(
        "`{section}` is elsewhere in the file than what is loaded to its address: sections and \
         program headers contradict each other, link the file again"
    )]
    Elsewhere {
        /// Its name.
        section: String,
    },
    /// The segment cannot be executed.
    #[error("the segment of `{section}` is not executable: link the file again")]
    NotExecutable {
        /// Its name.
        section: String,
    },
    /// The dynamic section says that the loader relocates what is not writable.
    #[error(
        "the file asks for relocations in what is not writable (DT_TEXTREL), so that the loader may \
         change code: link it without `-z notext`"
    )]
    TextRelocations,
    /// The loader would not find there what the file seems to have.
    #[error("the dynamic section {why}: link the file again")]
    Dynamic {
        /// What is wrong with it.
        why: &'static str,
    },
    /// Where memory is addressed by physical addresses, something else is put over the code.
    #[error(
        "the code at {at:#x} in `{section}` has the physical address (p_paddr) of another segment, \
         so that who loads by it overwrites one of them: give each its own (`AT` in the script)"
    )]
    Physical {
        /// Its name.
        section: String,
        /// The address.
        at: u64,
    },
    /// The loader would find other symbols than were looked at.
    #[error(
        "the dynamic section leads to other symbols than the section of dynamic symbols holds: link \
         the file again"
    )]
    DynamicSymbols,
    /// The loader makes the code read-only, so that it is no longer executable.
    #[error(
        "the code at {at:#x} in `{section}` is in what the loader makes read-only alone \
         (PT_GNU_RELRO), so that it cannot be executed: link the file without that"
    )]
    Relro {
        /// Its name.
        section: String,
        /// The address.
        at: u64,
    },
    /// A loader may do anything by what nobody knows.
    #[error(
        "the code at {at:#x} in `{section}` is in a page of a program header of type {kind:#x}, and it \
         is not known what that tells a loader to do there: link the file without it"
    )]
    ProgramHeader {
        /// Its name.
        section: String,
        /// The address.
        at: u64,
        /// `p_type`.
        kind: u32,
    },
    /// Loaders refuse this, or load a part.
    #[error(
        "the segment at {at:#x} has more bytes in the file than in memory (p_filesz, p_memsz), so \
         that a loader may leave some out: link the file again"
    )]
    LessMemory {
        /// The address of the segment.
        at: u64,
    },
    /// The loader would change the code.
    #[error("the loader relocates the code at {at:#x}: link the file to a fixed address")]
    LoadTime {
        /// The address.
        at: u64,
    },
    /// The name is not among those in the code.
    #[error("no code is called `{name}`; {}", list(.known))]
    NoSymbol {
        /// The name asked for.
        name: String,
        /// The names that exist: all of them if they are few, otherwise the most similar ones.
        known: Vec<String>,
    },
}

impl ReadError {
    /// No code has this name, and these names are known.
    pub(super) fn no_symbol(name: &str, mut known: Vec<String>) -> Self {
        /// How many names a message can hold.
        const FEW: usize = 12;
        if known.len() > FEW {
            known.sort_by_key(|other| std::cmp::Reverse(likeness(name, other)));
            known.truncate(FEW);
        }
        Self::NoSymbol { name: name.into(), known }
    }
}

/// How many bytes two names have in common at both ends.
pub(super) fn likeness(a: &str, b: &str) -> usize {
    let same = |(a, b): &(u8, u8)| a == b;
    a.bytes().zip(b.bytes()).take_while(same).count()
        + a.bytes().rev().zip(b.bytes().rev()).take_while(same).count()
}

fn such_as(boot: &str) -> String {
    if boot.is_empty() { String::new() } else { format!(" (such as {boot})") }
}

fn stay(keys: &[String]) -> String {
    match keys {
        [] => String::new(),
        [key, ..] => format!(
            "; the static branches of a key go each by itself, unless it is never flipped: then say how \
             it is, such as `--boot {key}=on` or `=off`"
        ),
    }
}

fn addresses(all: &[u64]) -> String {
    let all: Vec<_> = all.iter().map(|address| format!("{address:#x}")).collect();
    all.join(" and ")
}

fn list(names: &[String]) -> String {
    match names {
        [] => "the file names no code at all".into(),
        names => format!("there is `{}`", names.join("`, `")),
    }
}
