//! What a section is for, by its name and its type; and whether code in one is kept as it is.

use object::elf::{
    SHF_ALLOC, SHF_EXCLUDE, SHT_CREL, SHT_DYNAMIC, SHT_DYNSYM, SHT_GNU_HASH, SHT_GNU_VERDEF,
    SHT_GNU_VERNEED, SHT_GNU_VERSYM, SHT_GROUP, SHT_HASH, SHT_NULL, SHT_REL, SHT_RELA, SHT_RELR,
    SHT_STRTAB, SHT_SYMTAB, SHT_SYMTAB_SHNDX, SectionType,
};
use object::read::elf::SectionHeader;

use super::contents::{Contents, E};
use super::dynamic::Loaded;
use super::file::{File, Section};
use super::front;
use super::lengths::{Length, Lengths};
use super::table_error::TableError;

/// What a section is for, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The code that it names is changed. The text says how.
    Patches(&'static str),
    /// The code that it names is not changed. The text says why it is named.
    Harmless(&'static str),
    /// The usual places for data: a pointer to a function is a pointer.
    Data,
    /// A section of code. A word in it that refers to code is an instruction as a rule.
    Code,
    Unknown,
}

/// Tables that change code, by a part of their names: each has variants, such as those for `__init`
/// code.
const PATCHES: [(&str, Length, &str); 19] = {
    use Length::{After, Most, Stated, Sum};
    [
        // By the version of Linux, one or the other; of Xen's, what is padded counts besides.
        ("altinstructions", Sum(10, 12), "alternatives are put there on some CPUs"),
        ("parainstructions", Stated(9), "paravirtual calls are put there"),
        ("jump_table", Most(5), "static branches are switched there"),
        ("static_call", Most(6), "static calls are redirected there"),
        ("return_sites", Most(5), "returns become jumps to a thunk there, or the reverse"),
        ("retpoline_sites", Most(15), "indirect branches are replaced there"),
        ("call_sites", Most(5), "calls are redirected there for call depth tracking"),
        // As far as the ENDBR64 of a function that is aligned to 64 bytes.
        ("cfi_sites", Most(68), "checks of indirect calls are rewritten there"),
        ("endbr_seal", Most(4), "ENDBR64 is removed there"),
        ("mcount_loc", Most(5), "calls for tracing are switched there"),
        ("patchable_function_entries", Most(32), "calls for tracing are switched there"),
        ("smp_locks", Most(1), "LOCK prefixes are removed there on one CPU"),
        ("runtime_ptr_", Most(8), "constants are stored there"),
        ("runtime_shift_", Most(1), "constants are stored there"),
        (".klp.", Most(32), "a live patch changes it"),
        ("livepatch", Most(32), "a live patch changes it"),
        ("hotpatch", Most(255), "NetBSD puts other instructions there"),
        ("codepatch", After, "OpenBSD puts other instructions there"),
        ("nops_sites", Most(15), "instructions are replaced there"),
    ]
};

/// Tables that change nothing, by the whole name or by the part of it before a dot.
const HARMLESS: [(&str, &str); 23] = [
    (".discard", "it is for the checks of objtool, and linkers drop it"),
    ("__bug_table", "it says where UD2 stands, for reports"),
    (".kcfi_traps", "it says where UD2 stands, for reports"),
    ("__kcfi_traps", "it says where UD2 stands, for reports"),
    ("_kprobe_blacklist", "it says where no probe may be set"),
    ("__ex_table", "it says where to go on after a fault, and none is allowed here"),
    (".ex_table", "it says where to go on after a fault, and none is allowed here"),
    ("__llvm_faultmaps", "it says where to go on after a fault, and none is allowed here"),
    (".bug_frames", "it says where UD2 stands, for reports"),
    (".pseudo_probe", "it is for profiles"),
    (".callgraph", "it is for profiles"),
    ("switcher_windows", "it is the table of windows"),
    (".note.switcher", "it says what the code is"),
    (".orc_unwind", "it is for stack traces"),
    (".orc_unwind_ip", "it is for stack traces"),
    (".orc_lookup", "it is for stack traces"),
    (".eh_frame", "it is for stack traces"),
    (".eh_frame_hdr", "it is for stack traces"),
    (".sframe", "it is for stack traces"),
    (".gcc_except_table", "it is for stack traces"),
    ("__ksymtab", "it is for modules that are linked to it"),
    ("__ksymtab_gpl", "it is for modules that are linked to it"),
    (".kallsyms", "it is for stack traces"),
];

/// Sections of data that linkers make and compilers use.
const DATA: [&str; 20] = [
    ".data",
    ".rodata",
    ".bss",
    ".init_array",
    ".fini_array",
    ".preinit_array",
    ".ctors",
    ".dtors",
    ".got",
    ".plt",
    ".tdata",
    ".tbss",
    ".ldata",
    ".lrodata",
    ".lbss",
    ".sdata",
    ".dynamic",
    ".interp",
    ".opd",
    ".relro_padding",
];

/// Sections that are not loaded and describe the code to debuggers and linkers.
const DESCRIPTIONS: [&str; 12] = [
    ".debug",
    ".zdebug",
    ".gdb_index",
    ".stab",
    ".comment",
    ".line",
    ".gnu",
    ".llvm",
    ".symtab",
    ".strtab",
    ".shstrtab",
    ".note.GNU-stack",
];

impl Purpose {
    pub(super) fn of<'data, R: Contents<'data>>(
        file: &File<'data, R>,
        number: usize,
        loaded: Option<&Loaded>,
    ) -> Self {
        let section = &file.sections[number];
        let name = section.text();
        let describes = || DESCRIPTIONS.iter().any(|known| name.starts_with(known));
        // Linux's script takes it for code, whatever else is in the name.
        if section.is_code() && code(&name) != Kept::Unknown {
            return Self::Code;
        }
        match Self::of_name(&name) {
            patches @ Self::Patches(_) => patches,
            _ if is_linkers(file, number, loaded) => Self::Harmless(""),
            Self::Unknown if !section.has(SHF_ALLOC) && describes() => Self::Harmless(""),
            // Its name says that it is data, and its flags say that it is code.
            Self::Data | Self::Harmless(_) if section.is_code() => Self::Unknown,
            other => other,
        }
    }

    /// How much is changed where an entry of a table of this name leads, if it is one for
    /// this purpose. A name can be that of several tables.
    pub(super) fn lengths(self, name: &str) -> Lengths {
        let is_table = matches!(self, Self::Patches(_));
        let known = PATCHES.iter().filter(|(part, ..)| is_table && name.contains(part));
        let front = if is_table { front::bytes(name) } else { 0 };
        Lengths::of(known.map(|(_, length, _)| *length)).with_front(front)
    }

    pub(super) fn of_name(name: &str) -> Self {
        let mut patches = PATCHES.iter().filter(|(part, ..)| name.contains(part));
        let is = |known: &str| {
            name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some((_, _, how)) = patches.next() {
            Self::Patches(how)
        } else if let Some((_, why)) = HARMLESS.iter().find(|(known, _)| is(known)) {
            Self::Harmless(why)
        } else if DATA.iter().any(|known| is(known)) {
            Self::Data
        } else {
            Self::Unknown
        }
    }
}

/// Whether a section is a table of linkers and loaders. Its type alone does not make it one:
/// everything else that belongs to such a table must be there, too. A section that is loaded is
/// such a table if the dynamic section leads the loader to it.
fn is_linkers<'data, R: Contents<'data>>(
    file: &File<'data, R>,
    number: usize,
    loaded: Option<&Loaded>,
) -> bool {
    let section = &file.sections[number];
    let (link, info) = (section.header.sh_link(E) as usize, section.header.sh_info(E) as usize);
    let linked = |types: &[SectionType]| {
        file.sections.get(link).is_some_and(|to| types.contains(&to.header.sh_type(E)))
    };
    let is_linked = match section.header.sh_type(E) {
        SHT_NULL => true,
        SHT_REL | SHT_RELA | SHT_CREL => {
            let has_symbols = linked(&[SHT_SYMTAB, SHT_DYNSYM]) || !file.is_object() && link == 0;
            has_symbols && info < file.sections.len()
        }
        SHT_RELR => link == 0,
        SHT_GROUP | SHT_SYMTAB_SHNDX => linked(&[SHT_SYMTAB]),
        SHT_STRTAB => file.has_names(number),
        SHT_HASH | SHT_GNU_HASH | SHT_GNU_VERSYM => linked(&[SHT_DYNSYM]),
        SHT_SYMTAB | SHT_DYNSYM | SHT_DYNAMIC | SHT_GNU_VERDEF | SHT_GNU_VERNEED => {
            linked(&[SHT_STRTAB])
        }
        _ => false,
    };
    let is_found = match loaded {
        _ if !section.has(SHF_ALLOC) => true,
        Some(loaded) => loaded.dynamic.leads_to(section),
        None => false,
    };
    is_linked && is_found && !(file.is_object() && file.is_relocated(number))
}

/// Who reads a section of this name as a table, and what comes of it, whatever its flags are. Linux
/// goes by names alone, but for those that its script takes for code.
fn read_as_table(name: &str) -> Option<&'static str> {
    match Purpose::of_name(name) {
        Purpose::Patches(how) | Purpose::Harmless(how) if code(name) == Kept::Unknown => Some(how),
        _ => None,
    }
}

/// Refuses a table of what is patched that is marked executable. Nobody executes one, and who takes
/// it for code takes its entries for operands, or for code that is put elsewhere.
pub(super) fn check_tables<'data, R: Contents<'data>>(
    file: &File<'data, R>,
) -> Result<(), TableError> {
    let code = file.sections.iter().filter(|section| section.is_code() && section.size > 0);
    let mut tables = code.filter(|it| matches!(Purpose::of_name(&it.text()), Purpose::Patches(_)));
    tables.try_for_each(check_no_table)
}

/// Refuses a section of code that somebody reads as a table.
pub(super) fn check_no_table(section: &Section<'_>) -> Result<(), TableError> {
    let section = section.text();
    match read_as_table(&section) {
        Some(how) => Err(TableError::Executable { section, how: how.into() }),
        None => Ok(()),
    }
}

/// Sections that linkers make for calls of functions that may be in other files.
fn is_plt(name: &str) -> bool {
    name == ".plt" || name.starts_with(".plt.")
}

/// Code that Linux or a linker rewrites, drops or takes apart, by the start of its section's name,
/// or by all of it; and whether that is still to come once a file is linked.
const LOST: [(&str, bool, &str); 27] = [
    (".static_call.text", true, "it is rewritten to redirect static calls"),
    (".init.text", true, "it is freed once the kernel has booted"),
    ("init.text", true, "it is freed once the kernel has booted"),
    (".init.", true, "it is among what is freed once the kernel has booted"),
    (".exit.", true, "it is among what is dropped where it is linked in"),
    (".text.startup", false, "it is put among what is freed once the kernel has booted"),
    (".head.text", false, "it is what boots, and need not be mapped later"),
    (".meminit.text", true, "it may be freed once the kernel has booted"),
    (".cpuinit.text", true, "it may be freed once the kernel has booted"),
    (".devinit.text", true, "it may be freed once the kernel has booted"),
    (".exit.text", true, "it is dropped where it is linked in"),
    ("exit.text", true, "it is dropped where it is linked in"),
    (".text.exit", false, "it is dropped where it is linked in"),
    (".exitcall", false, "it is dropped where it is linked in"),
    (".memexit.text", true, "it may be dropped where it is linked in"),
    (".cpuexit.text", true, "it may be dropped where it is linked in"),
    (".devexit.text", true, "it may be dropped where it is linked in"),
    (".modinfo", false, "it is dropped where it is linked in"),
    (".export_symbol", false, "it is dropped where it is linked in"),
    (".no_trim_symbol", false, "it is dropped where it is linked in"),
    (".discard", false, "linkers drop it"),
    (".altinstr_", true, "it is copied to elsewhere, or not used"),
    (".apicdrivers", true, "it is among what is freed once the kernel has booted"),
    (".iommu_table", true, "it is among what is freed once the kernel has booted"),
    (".x86_trampoline", true, "it is among what is freed once the kernel has booted"),
    (".init", false, "linkers put it between the beginning and the end of a function"),
    (".fini", false, "linkers put it between the beginning and the end of a function"),
];

/// For these names only the whole name counts: other names that begin so mean something else.
const WHOLE: [&str; 2] = [".init", ".fini"];
/// So begin the names of tables, too.
const BROAD: [&str; 2] = [".init.", ".exit."];

/// Why code is not executed that lies in a section of this name, whatever its flags are: linkers
/// and Linux put what has such a name among data, or among what is freed, and go by the name alone.
pub(super) fn no_code(name: &str) -> Option<&'static str> {
    let describes = DESCRIPTIONS.iter().any(|known| name.starts_with(known));
    if Purpose::of_name(name) == Purpose::Data && !is_plt(name) {
        Some("its name is one of data, which is mapped without execution")
    } else if describes || name.starts_with(".note") {
        Some("its name is one of a description, which is mapped without execution, or not at all")
    } else if name.starts_with(".init") && name != ".init" || name.ends_with(".init") {
        // Of a module, all that begins so is freed once it is loaded (kernel/module/main.c).
        Some("its name is one of what is freed once it has been executed")
    } else if name.starts_with(".exit") {
        Some("its name is one of what a kernel leaves out that never unloads it")
    } else {
        None
    }
}

/// Sections of code that Linux's script and those of linkers keep, and leave as they are.
const KEEPS: [&str; 11] = [
    ".text",
    ".entry.text",
    ".noinstr.text",
    ".sched.text",
    ".spinlock.text",
    ".lock.text",
    ".cpuidle.text",
    ".irqentry.text",
    ".softirqentry.text",
    ".kprobes.text",
    ".ref.text",
];

/// Whether code of an object is kept in the file that is linked from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    /// It is not kept. The text says why, and the flag says whether a linked file may still lose
    /// it.
    No {
        is_later: bool,
        why: &'static str,
    },
    /// The linker script decides.
    Unknown,
}

/// Whether code in a section of this name is what runs there.
pub(super) fn code(name: &str) -> Kept {
    let is = |known: &str| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    // A table is for code that is freed, and no code that is freed.
    let is_table = || matches!(Purpose::of_name(name), Purpose::Patches(_));
    let mut lost = LOST.iter().filter(|(known, ..)| match *known {
        known if WHOLE.contains(&known) => name == known,
        known if BROAD.contains(&known) => name.starts_with(known) && !is_table(),
        known => name.starts_with(known),
    });
    match lost.next() {
        Some((_, is_later, why)) => Kept::No { is_later: *is_later, why },
        None if KEEPS.iter().any(|known| is(known)) || is_plt(name) => Kept::Yes,
        None => Kept::Unknown,
    }
}

/// Sections of code for linkers to compile anew, as GCC, LLVM and rustc put it beside what they
/// have compiled already, by the start of their names.
const LTO: [&str; 5] = [".gnu.lto_", ".gnu_object_only", ".llvm.lto", ".llvmbc", ".llvmcmd"];

/// What compilers tell linkers in an object, and is no code, by the section's name or what is in
/// front of a dot or an underscore.
const FOR_LINKERS: [&str; 13] = [
    ".llvm_addrsig",
    ".llvm.call-graph-profile",
    ".llvm_sympart",
    ".llvm.offloading",
    ".linker-options",
    ".deplibs",
    ".debug",
    ".zdebug",
    ".gnu.debuglto",
    ".stab",
    ".comment",
    ".discard",
    ".rmeta",
];

/// What a section of an object tells whoever links it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// Code to be compiled anew.
    Lto,
    /// Something that is left out of what is linked, and of which nothing else is known.
    Unknown,
}

/// What a section tells linkers.
pub(super) fn told(section: &Section<'_>) -> Told {
    let name = section.text();
    let is_usual = |known: &str| {
        let rest = name.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '_']))
    };
    let is_table = matches!(Purpose::of_name(&name), Purpose::Patches(_) | Purpose::Harmless(_));
    let is_known = section.size == 0
        || is_table
        || section.is_code()
        || FOR_LINKERS.iter().any(|known| is_usual(known));
    if LTO.iter().any(|known| name.starts_with(known)) {
        Told::Lto
    } else if section.has(SHF_EXCLUDE) && !is_known {
        Told::Unknown
    } else {
        Told::Nothing
    }
}

/// How many bytes of a function Linux rewrites, by its name: the trampoline of a static call is a
/// jump and a trap.
pub(super) fn rewritten(symbol: &[u8]) -> Option<u64> {
    symbol.starts_with(b"__SCT__").then_some(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_known_by_its_name_and_by_its_variants() {
        for (name, is_patches) in [
            (".altinstructions", true),
            (".init.altinstructions", true),
            ("__jump_table", true),
            (".static_call_sites", true),
            ("runtime_ptr_dentry_hashtable", true),
            (".rodata.hotpatch", true),
            (".codepatch", true),
            ("__bug_table", false),
            (".rodata.str1.1", false),
            ("anything", false),
        ] {
            let purpose = Purpose::of_name(name);
            assert_eq!(matches!(purpose, Purpose::Patches(_)), is_patches, "{name}: {purpose:?}");
        }
        assert_eq!(Purpose::of_name(".data.rel.ro"), Purpose::Data);
        assert_eq!(Purpose::of_name(".database"), Purpose::Unknown);
        assert!(matches!(Purpose::of_name("__bug_table"), Purpose::Harmless(_)));
        for (name, is_kept) in [(".text", true), (".text.unlikely", true), (".entry.text", true)]
            .into_iter()
            .chain([(".static_call.text", false), (".text.startup", false), (".fini", false)])
        {
            assert_eq!(code(name) == Kept::Yes, is_kept, "{name}");
        }
        assert_eq!((code("mine"), code(".initial")), (Kept::Unknown, Kept::Unknown));
    }
}
