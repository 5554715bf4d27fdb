//! Tables by which somebody rewrites code when it is loaded, or later.
//!
//! Linux keeps, beside its code, the places that are other bytes on this CPU, in this configuration
//! or at this moment: alternatives, static branches and calls, return and indirect-branch sites,
//! landing pads to be sealed, calls for tracing, LOCK prefixes. What such a table names is not what
//! runs. Other tables also name places in code and change nothing. And of a section with a name
//! that nobody knows, nobody knows what it is for.

use std::ops::Range;

use object::elf::{
    SHF_ALLOC, SHT_DYNAMIC, SHT_DYNSYM, SHT_GNU_HASH, SHT_HASH, SHT_NOTE, SHT_REL, SHT_RELA,
    SHT_RELR, SHT_STRTAB, SHT_SYMTAB,
};
use object::read::elf::SectionHeader;

use super::file::{Code, Contents, E, Section};
use super::read::{Place, ReadError};

/// What a section is for, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// The code that it names is changed: how.
    Patches(&'static str),
    /// It is not: why it names code.
    Harmless(&'static str),
    /// The usual places for data: a pointer to something that has a name is a pointer.
    Data,
    Unknown,
}

/// By a part of the name: there are variants of each, such as those of `__init` code.
const PATCHES: [(&str, &str); 17] = [
    ("altinstructions", "alternatives are put there on some CPUs"),
    ("parainstructions", "paravirtual calls are put there"),
    ("jump_table", "static branches are switched there"),
    ("static_call", "static calls are redirected there"),
    ("return_sites", "returns become jumps to a thunk there, or the reverse"),
    ("retpoline_sites", "indirect branches are replaced there"),
    ("call_sites", "calls are redirected there for call depth tracking"),
    ("cfi_sites", "checks of indirect calls are rewritten there"),
    ("endbr_seal", "ENDBR64 is removed there"),
    ("mcount_loc", "calls for tracing are switched there"),
    ("patchable_function_entries", "calls for tracing are switched there"),
    ("smp_locks", "LOCK prefixes are removed there on one CPU"),
    ("runtime_ptr_", "constants are stored there"),
    ("runtime_shift_", "constants are stored there"),
    (".klp.", "a live patch changes it"),
    ("livepatch", "a live patch changes it"),
    ("nops_sites", "instructions are replaced there"),
];

/// By the whole name, or the part of it before a dot.
const HARMLESS: [(&str, &str); 16] = [
    ("__bug_table", "it says where UD2 stands, for reports"),
    (".kcfi_traps", "it says where UD2 stands, for reports"),
    ("__kcfi_traps", "it says where UD2 stands, for reports"),
    ("_kprobe_blacklist", "it says where no probe may be set"),
    ("__ex_table", "it says where to go on after a fault, and none is allowed here"),
    ("switcher_windows", "it is the table of windows"),
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

/// What linkers make, and compilers use.
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

impl Purpose {
    fn of(section: &Section<'_>) -> Self {
        let is_linkers = matches!(
            section.header.sh_type(E),
            SHT_REL
                | SHT_RELA
                | SHT_RELR
                | SHT_SYMTAB
                | SHT_DYNSYM
                | SHT_STRTAB
                | SHT_HASH
                | SHT_GNU_HASH
                | SHT_DYNAMIC
                | SHT_NOTE
        );
        match Self::of_name(&section.text()) {
            patches @ Self::Patches(_) => patches,
            _ if is_linkers => Self::Harmless(""),
            other => other,
        }
    }

    fn of_name(name: &str) -> Self {
        let mut patches = PATCHES.iter().filter(|(part, _)| name.contains(part));
        let is = |known: &str| {
            name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some((_, how)) = patches.next() {
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

/// Code that Linux rewrites, or drops, by the name of its section.
const CODE: [(&str, &str); 6] = [
    (".static_call.text", "it is rewritten to redirect static calls"),
    (".init.text", "it is freed once the kernel has booted"),
    (".meminit.text", "it may be freed once the kernel has booted"),
    (".exit.text", "it is dropped where it is linked in"),
    (".discard", "linkers drop it"),
    (".altinstr", "it is copied to elsewhere, or not used"),
];

/// Why code in a section of this name is not what runs there.
pub(super) fn code(name: &str) -> Option<&'static str> {
    let found = CODE.iter().find(|(known, _)| name.starts_with(known));
    found.map(|(_, why)| *why)
}

/// A function that Linux rewrites, by its name: the trampoline of a static call.
pub(super) fn is_rewritten(symbol: &[u8]) -> bool {
    symbol.starts_with(b"__SCT__")
}

/// Somewhere in a file where addresses are kept.
struct Table {
    name: String,
    purpose: Purpose,
    /// Its bytes, by address and by place in the file.
    address: u64,
    offset: u64,
    size: u64,
}

/// What tables say of the code.
#[derive(Default)]
pub(super) struct Tables {
    /// Why those that name the code do no harm.
    pub(super) harmless: Vec<String>,
    /// Those of which it is not known what they are for.
    pub(super) unknown: Vec<(String, Place)>,
}

/// What a reference has to do with what is reached.
struct Reached<'a> {
    ranges: &'a [Range<u64>],
    /// What has a name that others may have a pointer to; and the entry points, which are called.
    named: &'a [u64],
    entries: &'a [u64],
}

impl Reached<'_> {
    /// The first byte that is reached of `length` at `address`.
    fn first(&self, address: u64, length: u64) -> Option<u64> {
        let end = address.saturating_add(length);
        let behind = self.ranges.partition_point(|range| range.end <= address);
        let range = self.ranges.get(behind)?;
        (range.start < end).then(|| range.start.max(address))
    }

    /// The byte that a word at some place in a table refers to, if that matters.
    fn matters(&self, purpose: Purpose, address: u64, length: u64) -> Option<u64> {
        let found = self.first(address, length.max(1))?;
        let is_pointer = match purpose {
            Purpose::Data => self.named.binary_search(&address).is_ok(),
            Purpose::Unknown => self.entries.contains(&address),
            Purpose::Patches(_) | Purpose::Harmless(_) => false,
        };
        (!is_pointer).then_some(found)
    }
}

/// Looks for tables that name bytes in `ranges`, which are in order.
///
/// # Errors
/// If one says that they are changed.
pub(super) fn check<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    ranges: &[Range<u64>],
    named: &[u64],
    entries: &[u64],
    bounds: &[(String, Range<u64>)],
) -> Result<Tables, ReadError> {
    let reached = Reached { ranges, named, entries };
    let mut tables = Tables::default();
    for (number, section) in code.file.sections.iter().enumerate() {
        let purpose = Purpose::of(section);
        let is_patches = matches!(purpose, Purpose::Patches(_));
        // A table is one whether or not it is marked as loaded: the linker puts it together with others.
        if section.size == 0 || section.is_code() || !section.has(SHF_ALLOC) && !is_patches {
            continue;
        }
        let found = if code.file.is_object() {
            in_object(code, number, purpose, &reached)?
        } else if section.has_bytes() && section.address != 0 {
            let (address, offset) = (section.address, section.offset());
            let name = section.text();
            in_memory(
                code,
                &Table { name, purpose, address, offset, size: section.size },
                &reached,
            )?
        } else {
            None
        };
        tables.add(code, section.text(), purpose, found)?;
    }
    if !code.file.is_object() {
        // Where linkers have put them into sections with other things.
        for (name, range) in bounds {
            let purpose = Purpose::of_name(name);
            let section = code.file.sections.iter().find(|section| {
                section.has(SHF_ALLOC)
                    && section.has_bytes()
                    && section.range().start <= range.start
                    && range.end <= section.range().end
            });
            if let (Purpose::Patches(_), Some(section)) = (purpose, section) {
                let address = range.start;
                let offset = section.offset().saturating_add(address - section.address);
                let (name, size) = (name.clone(), range.end - range.start);
                let table = Table { name: name.clone(), purpose, address, offset, size };
                tables.add(code, name, purpose, in_memory(code, &table, &reached)?)?;
            }
        }
    }
    Ok(tables)
}

impl Tables {
    fn add<'data, R: Contents<'data>>(
        &mut self,
        code: &Code<'_, 'data, R>,
        section: String,
        purpose: Purpose,
        found: Option<u64>,
    ) -> Result<(), ReadError> {
        /// So many are shown.
        const MANY: usize = 16;
        let Some(address) = found else { return Ok(()) };
        let area = code.area(address);
        let at = area.map_or_else(
            || Place { section: String::new(), offset: address },
            |area| code.place(area, address),
        );
        match purpose {
            Purpose::Patches(how) => return Err(ReadError::Patched { section, at, how }),
            Purpose::Harmless("") => {}
            Purpose::Harmless(why) if self.harmless.len() < MANY => {
                self.harmless.push(format!("`{section}` names {at}: {why}"));
            }
            Purpose::Unknown | Purpose::Data if self.unknown.len() < MANY => {
                self.unknown.push((section, at));
            }
            _ => {}
        }
        Ok(())
    }
}

/// By an object's relocations.
fn in_object<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    number: usize,
    purpose: Purpose,
    reached: &Reached<'_>,
) -> Result<Option<u64>, ReadError> {
    for relocation in code.file.relocations(number)? {
        let Some((section, value, is_section)) = code.file.refers_to(&relocation)? else {
            continue;
        };
        let Some(start) = code.address_in(section, 0) else { continue };
        let symbol = start.wrapping_add(value);
        let addend = relocation.addend.unwrap_or_default();
        let exact = symbol.wrapping_add_signed(addend);
        // `label - table` is stored with the distance from the table's start.
        let from_start = exact.wrapping_sub(relocation.offset);
        let length = length(code, number, relocation.offset, purpose);
        let by_name = (!is_section).then_some(symbol);
        let is_distance = relocation.is_relative() && relocation.offset > 0;
        let candidates = [Some(exact), Some(from_start).filter(|_| is_distance), by_name];
        let found = candidates.into_iter().flatten();
        let mut found = found.filter_map(|address| reached.matters(purpose, address, length));
        if let Some(found) = found.next() {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// How many bytes are changed at what a table's entry at `offset` names. Alternatives say it
/// themselves: 10 or 12 bytes behind the start of an entry, by the version.
fn length<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    number: usize,
    offset: u64,
    purpose: Purpose,
) -> u64 {
    let section = &code.file.sections[number];
    let is_table = matches!(purpose, Purpose::Patches(_));
    if !is_table || !section.text().contains("altinstructions") {
        return 1;
    }
    let byte = |at: u64| {
        let mut byte = [0];
        let offset = section.offset().checked_add(at).filter(|_| at < section.size)?;
        code.file.data.copy(offset, &mut byte).ok()?;
        Some(u64::from(byte[0]))
    };
    let lengths = [10, 12].map(|by| offset.checked_add(by).and_then(byte).unwrap_or_default());
    lengths.into_iter().max().unwrap_or_default().max(1)
}

/// By a linked table's bytes: distances from their own place, and addresses.
fn in_memory<'data, R: Contents<'data>>(
    code: &Code<'_, 'data, R>,
    table: &Table,
    reached: &Reached<'_>,
) -> Result<Option<u64>, ReadError> {
    const BLOCK: usize = 1 << 14;
    let Table { name, purpose, address, offset, size } = table;
    let (Some(first), Some(last)) = (reached.ranges.first(), reached.ranges.last()) else {
        return Ok(None);
    };
    let window = first.start.saturating_sub(255)..last.end;
    // Entries of Linux's tables are packed; pointers and distances are aligned elsewhere.
    let (step, has_distances) = match purpose {
        Purpose::Patches(_) => (1, true),
        Purpose::Unknown | Purpose::Harmless(_) => (4, true),
        Purpose::Data => (4, false),
    };
    let is_of_entries = matches!(purpose, Purpose::Patches(_)) && name.contains("altinstructions");
    let mut buffer = vec![0; BLOCK + 16];
    let mut done = 0;
    while done < *size {
        let length = (*size - done).min(buffer.len() as u64) as usize;
        let part = &mut buffer[..length];
        let truncated = || ReadError::Truncated { section: name.clone() };
        let from = offset.checked_add(done).ok_or_else(truncated)?;
        code.file.data.copy(from, part).map_err(|()| truncated())?;
        let here = address.wrapping_add(done);
        let aligned = here.next_multiple_of(step).wrapping_sub(here) as usize;
        for at in (aligned..length.min(BLOCK)).step_by(step as usize) {
            let (rest, place) = (&part[at..], here.wrapping_add(at as u64));
            let dword = rest.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
            let qword = rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            let relative = dword.filter(|_| has_distances);
            let relative = relative.map(|by| place.wrapping_add_signed(by.into()));
            let absolute = dword.filter(|_| has_distances && *purpose != Purpose::Unknown);
            let absolute = absolute.map(|value| i64::from(value).cast_unsigned());
            for address in [relative, absolute, qword].into_iter().flatten() {
                if !window.contains(&address) {
                    continue;
                }
                let bytes = if is_of_entries {
                    let by = |by: usize| rest.get(by).copied().unwrap_or_default();
                    by(10).max(by(12)).max(1).into()
                } else {
                    1
                };
                if let Some(found) = reached.matters(*purpose, address, bytes) {
                    return Ok(Some(found));
                }
            }
        }
        done += BLOCK as u64;
    }
    Ok(None)
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
        assert!(code(".static_call.text").is_some() && code(".text").is_none());
    }
}
