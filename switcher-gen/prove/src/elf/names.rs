//! What the symbols of a file say of a switcher: where its routines are, and who may take their
//! place.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use object::elf::{STT_FILE, STT_FUNC, STT_GNU_IFUNC, STT_SECTION, STT_TLS};

use super::code::FileCode;
use super::contents::Contents;
use super::error::{ReadError, likeness};
use super::file::{File, Of, Symbol, shown};
use super::labels::{ENTRIES, hosts, ours};
use super::linker_error::LinkerError;
use super::places::LIMIT;
use super::purpose;
use super::wanted::Wanted;
use crate::gate::TargetGate;
use switcher_gen::asm::Label;

/// A definition of a name by a symbol.
struct Definition {
    /// The address, if it is in code. A symbol of the host's may be anywhere.
    address: Option<u64>,
    /// The section of an object that it is in.
    section: Option<usize>,
    is_weak: bool,
    is_local: bool,
    is_indirect: bool,
}

/// What the symbols say that have a meaning for a switcher.
pub(super) struct Names<'f> {
    is_object: bool,
    /// The definitions of the names that code must or may have, and of the host's symbols.
    known: BTreeMap<&'f str, Vec<Definition>>,
    /// The same names, for a first look at each name of the file.
    wanted: Wanted,
    /// Those of these names at which nothing is entered: somebody goes by them.
    labels: BTreeSet<&'f str>,
    /// Those of these names that another file is asked for.
    undefined: BTreeSet<&'f str>,
    /// Names most like those of routines that are not there.
    similar: BTreeSet<(usize, String, u64)>,
    /// Functions that are rewritten, and how much of them.
    rewritten: Vec<(String, Range<u64>)>,
    /// What lies between `__start_` and `__stop_`.
    pub(super) bounds: Vec<(String, Range<u64>)>,
}

/// Names in what is reached.
pub(super) struct NamesFound {
    pub(super) symbols: BTreeMap<String, u64>,
    /// The addresses that other code may have pointers to.
    pub(super) pointers: Vec<u64>,
}

/// What two of these names bound.
const BOUNDS: [[Label; 2]; 2] =
    [[Label::EventStubs, Label::EventStubsEnd], [Label::Routines, Label::RoutinesEnd]];

/// Whether a file names any routine of a switcher.
pub(super) fn has_entries<'data, R: Contents<'data>>(
    file: &File<'data, R>,
) -> Result<bool, ReadError> {
    for symbol in file.called(&ENTRIES.map(|label| label.name().as_bytes())) {
        let name = without_version(symbol?.name);
        if ENTRIES.iter().any(|label| label.name().as_bytes() == name) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl<'f> Names<'f> {
    pub(super) fn new<'data, R: Contents<'data>>(
        code: &FileCode<'f, 'data, R>,
    ) -> Result<Self, ReadError> {
        let request = &code.file.request;
        let gates = request.gates().map(|gates| request.meant(gates.symbol()));
        let own = ours().map(|name| -> &'f str { name });
        let mut known: BTreeMap<_, _> = own.chain(gates).map(|name| (name, Vec::new())).collect();
        let labels: BTreeSet<_> =
            request.labels().filter(|name| !known.contains_key(name)).collect();
        known.extend(labels.iter().map(|name| (*name, Vec::new())));
        let mut wanted = Wanted::default();
        known.keys().for_each(|name| wanted.add(name.as_bytes()));
        let mut names = Self {
            is_object: code.file.is_object(),
            known,
            wanted,
            labels,
            undefined: BTreeSet::new(),
            similar: BTreeSet::new(),
            rewritten: Vec::new(),
            bounds: Vec::new(),
        };
        let (mut starts, mut stops) = (BTreeMap::new(), BTreeMap::new());
        for symbol in code.file.symbols() {
            let symbol = symbol?;
            if is_no_name(&symbol) {
                continue;
            }
            if symbol.of == Of::Undefined {
                names.undefined.extend(names.known_as(symbol.name));
                continue;
            }
            names.add(code, &symbol);
            if !code.file.is_object() {
                if let Some(name) = symbol.name.strip_prefix(b"__start_") {
                    starts.insert(name, symbol.value);
                } else if let Some(name) = symbol.name.strip_prefix(b"__stop_") {
                    stops.insert(name, symbol.value);
                }
            }
        }
        // The loader, and code that asks it for a symbol, use another table than linkers do.
        for symbol in code.file.other_symbols() {
            let symbol = symbol?;
            let Some(name) = names.known_as(symbol.name).filter(|_| !is_no_name(&symbol)) else {
                continue;
            };
            if symbol.of == Of::Undefined {
                names.undefined.insert(name);
            } else {
                names.add(code, &symbol);
            }
        }
        for (name, start) in starts {
            if let Some(stop) = stops.get(name).filter(|stop| **stop > start) {
                names.bounds.push((super::file::text(name), start..*stop));
            }
        }
        Ok(names)
    }

    /// The known name that a symbol has, if it has one.
    fn known_as(&self, name: &[u8]) -> Option<&'f str> {
        let name = without_version(name);
        let is_wanted = self.wanted.may_be(name);
        let known = is_wanted.then(|| self.known.get_key_value(meaning(name)));
        known.flatten().map(|(name, _)| *name)
    }

    fn add<'data, R: Contents<'data>>(
        &mut self,
        code: &FileCode<'_, 'data, R>,
        symbol: &Symbol<'_>,
    ) {
        /// So many names are like one that is not there.
        const FEW: usize = 16;
        let address = code.address(symbol);
        if let Some(length) = purpose::rewritten(symbol.name)
            && let Some(address) = address
        {
            self.rewritten.push((symbol.text(), address..address.saturating_add(length)));
        }
        if let Some(name) = self.known_as(symbol.name)
            && let Some(definitions) = self.known.get_mut(name)
        {
            let is_hosts = name.starts_with("switcher_host_");
            let linked = !code.file.is_object() && symbol.of == Of::Absolute;
            let anywhere = (is_hosts || linked && code.area(symbol.value).is_some())
                .then_some(symbol.value)
                .filter(|_| !code.file.is_object() || symbol.of == Of::Absolute);
            definitions.push(Definition {
                address: address.or(anywhere),
                section: match symbol.of {
                    Of::Section(section) if code.file.is_object() => Some(section),
                    _ => None,
                },
                is_weak: symbol.is_weak(),
                is_local: symbol.is_local(),
                is_indirect: symbol.kind == STT_GNU_IFUNC,
            });
        } else if let Some(address) = address {
            let name = meaning(symbol.name);
            if name.is_empty() {
                return;
            }
            let required = ENTRIES[..3].iter().map(|label| likeness(label.name(), name));
            let most = required.max().unwrap_or_default();
            let least = self.similar.first().map_or(0, |(likeness, ..)| *likeness);
            if self.similar.len() < FEW || most > least {
                self.similar.insert((most, shown(name), address));
                if self.similar.len() > FEW {
                    self.similar.pop_first();
                }
            }
        }
    }

    /// Where `name` is, if it is anywhere.
    pub(super) fn place(&self, name: &str) -> Result<Option<u64>, ReadError> {
        let symbol = || name.to_owned();
        let all = self.known.get(name).map_or(&[][..], Vec::as_slice);
        // Other files see the global definition of the name.
        let is_global = all.iter().any(|definition| !definition.is_local);
        let chosen: Vec<_> = all.iter().filter(|one| one.is_local != is_global).collect();
        if chosen.iter().any(|definition| definition.is_indirect) {
            return Err(ReadError::Indirect { symbol: symbol() });
        }
        if !is_global && !chosen.is_empty() && self.undefined.contains(name) {
            return Err(ReadError::LocalAndUndefined { symbol: symbol() });
        }
        // In a linked file, no other definition can take its place any more.
        if self.is_object && chosen.iter().any(|definition| definition.is_weak) {
            return Err(ReadError::Weak { symbol: symbol() });
        }
        let places: BTreeSet<_> = chosen.iter().map(|definition| definition.address).collect();
        let places: Vec<_> = places.into_iter().collect();
        match places.as_slice() {
            [] => Ok(None),
            [Some(address)] => Ok(Some(*address)),
            [None] => Err(ReadError::NotCode { symbol: symbol() }),
            several => {
                let at = several.iter().map(|address| address.unwrap_or_default()).collect();
                Err(ReadError::Ambiguous { symbol: symbol(), at })
            }
        }
    }

    fn places(&self, names: impl IntoIterator<Item = &'static str>) -> Result<Vec<u64>, ReadError> {
        let found = names.into_iter().filter_map(|name| self.place(name).transpose());
        found.collect()
    }

    /// Where the symbols are that have a meaning, of an object: each in front of something, and two
    /// bounds in one section, in their order. What a linker puts after a section nobody knows.
    pub(super) fn check<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
    ) -> Result<(), ReadError> {
        if !self.is_object {
            return Ok(());
        }
        // What ends a window may be the end of a section.
        let is_end = |name: &str| {
            BOUNDS.iter().any(|[_, end]| end.name() == name) || self.labels.contains(name)
        };
        for (name, definitions) in &self.known {
            for definition in definitions {
                let Some((section, at)) = definition.section.zip(definition.address) else {
                    continue;
                };
                let is_at_end = code.range_of(section).is_some_and(|range| range.end == at);
                if is_at_end && !is_end(name) {
                    let section = code.file.sections[section].text();
                    return Err(LinkerError::AtEnd { symbol: (*name).to_owned(), section }.into());
                }
            }
        }
        for [start, end] in BOUNDS {
            let [start, end] = [start.name(), end.name()];
            let Some((from, to)) = self.place(start)?.zip(self.place(end)?) else { continue };
            let section = |name, at| {
                let mut all = self.known.get(name).into_iter().flatten();
                all.find(|definition| definition.address == Some(at))?.section
            };
            if from >= to || section(start, from) != section(end, to) {
                return Err(LinkerError::Bounds { start, end }.into());
            }
        }
        Ok(())
    }

    /// The sections of code with anything that is looked for: all that a switcher reaches lies in
    /// one of them.
    pub(super) fn homes<'c, 'data, R: Contents<'data>>(
        &self,
        code: &'c FileCode<'_, 'data, R>,
    ) -> Vec<&'c Range<u64>> {
        let all = self.known.values().flatten().filter_map(|definition| definition.address);
        let own: BTreeSet<_> = all.filter_map(|at| Some(code.area(at)?.range.start)).collect();
        let ranges = code.areas.iter().map(|area| &area.range);
        ranges.filter(|range| own.contains(&range.start)).collect()
    }

    /// The addresses of all entry points, of which events have the `gates` that are said and, where
    /// none is, the `stubs`.
    pub(super) fn entries(
        &self,
        gates: &[TargetGate],
        stubs: Option<&Range<u64>>,
    ) -> Result<Vec<u64>, ReadError> {
        let mut entries = self.places(ENTRIES.iter().map(|label| label.name()))?;
        if entries.is_empty() {
            return Ok(entries);
        }
        if let Some(stubs) = stubs {
            let stride = (stubs.end - stubs.start) / 256;
            let is_said = |vector: &u8| gates.iter().any(|gate| gate.vector == *vector);
            let others = (0..=u8::MAX).filter(|vector| !is_said(vector));
            entries.extend(others.map(|vector| stubs.start + stride * u64::from(vector)));
        }
        let said: BTreeSet<_> = gates.iter().map(|gate| gate.address).collect();
        entries.extend(said);
        Ok(entries)
    }

    /// Where the IRETQ to a guest is taken to lie, if another file has it.
    pub(super) fn iretq_elsewhere<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
    ) -> Result<Option<u64>, ReadError> {
        let name = Label::Iretq.name();
        let is_elsewhere =
            self.is_object && self.undefined.contains(name) && self.place(name)?.is_none();
        Ok(if is_elsewhere { code.host(name) } else { None })
    }

    /// The event stubs, which are also looked at as they are.
    pub(super) fn stubs(&self) -> Result<Option<Range<u64>>, ReadError> {
        /// 256 stubs of a page each.
        const MOST: u64 = 1 << 20;
        let [start, end] = [Label::EventStubs, Label::EventStubsEnd].map(Label::name);
        let (start, end) = (self.place(start)?, self.place(end)?);
        let stubs = start.zip(end).filter(|(start, end)| start < end);
        match stubs {
            Some((start, end)) if end - start > MOST => {
                Err(ReadError::TooLarge { what: "the event stubs" })
            }
            stubs => Ok(stubs.map(|(start, end)| start..end)),
        }
    }

    /// Why there is nothing to be judged, if a routine is missing without which there is not.
    pub(super) fn missing(&self) -> Option<ReadError> {
        let is_there = |name: &&str| self.known.get(name).is_some_and(|all| !all.is_empty());
        let mut required = ENTRIES[..3].iter().map(|label| label.name());
        let name = required.find(|name| !is_there(name))?;
        let others = self.known.keys().copied().filter(is_there).map(str::to_owned);
        let similar = self.similar.iter().map(|(_, name, _)| name.clone());
        Some(ReadError::no_symbol(name, others.chain(similar).collect()))
    }

    /// A routine of the host's that is in one of these ranges.
    pub(super) fn hook_in(&self, ranges: &[Range<u64>]) -> Option<&'static str> {
        let is_in = |at: u64| ranges.iter().any(|range| range.contains(&at));
        hosts().find(|name| {
            let all = self.known.get(name).into_iter().flatten();
            all.filter_map(|definition| definition.address).any(is_in)
        })
    }

    /// The host's own routines, as far as they are in the file.
    pub(super) fn hooks(&self) -> Result<Vec<u64>, ReadError> {
        self.places(hosts())
    }

    /// The names in `ranges`, which are in order, and those that have a meaning.
    pub(super) fn within<'data, R: Contents<'data>>(
        &self,
        code: &FileCode<'_, 'data, R>,
        ranges: &[Range<u64>],
    ) -> Result<NamesFound, ReadError> {
        // Each name may be a part of the longest: a file's size is no limit for the sum.
        let mut length = 0;
        let mut found = BTreeMap::<String, (bool, u64)>::new();
        let mut pointers = Vec::new();
        let is_in = |address: u64| {
            let behind = ranges.partition_point(|range| range.end < address);
            ranges.get(behind).is_some_and(|range| range.start <= address)
        };
        for symbol in code.file.symbols() {
            let symbol = symbol?;
            if is_no_name(&symbol) {
                continue;
            }
            let Some(address) = code.address(&symbol).filter(|address| is_in(*address)) else {
                continue;
            };
            // A label inside a routine is no function, and a table that points to it may change the
            // code there.
            let name = std::str::from_utf8(symbol.name);
            let is_entry =
                |name: &str| self.known.contains_key(name) && !self.labels.contains(name);
            if symbol.kind == STT_FUNC || name.is_ok_and(is_entry) {
                pointers.push(address);
            }
            let Ok(name) = name.map(shown) else { continue };
            length += name.len() as u64;
            if length > LIMIT {
                return Err(ReadError::TooLarge { what: "the names of symbols" });
            }
            let is_global = !symbol.is_local();
            match found.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert((is_global, address));
                }
                Entry::Occupied(mut entry) => {
                    if is_global && !entry.get().0 {
                        entry.insert((is_global, address));
                    }
                }
            }
        }
        let first = |changed: &Range<u64>| {
            let behind = ranges.partition_point(|range| range.end <= changed.start);
            let range = ranges.get(behind).filter(|range| range.start < changed.end)?;
            Some(range.start.max(changed.start))
        };
        for (symbol, changed) in &self.rewritten {
            if let Some(address) = first(changed) {
                let why = format!(
                    "holds `{symbol}`, which Linux rewrites to redirect static calls: call the \
                     function itself"
                );
                let section = code.area(address).map(|area| code.section(area).text());
                return Err(ReadError::Section { section: section.unwrap_or_default(), why });
            }
        }
        pointers.sort_unstable();
        let mut symbols: BTreeMap<_, _> =
            found.into_iter().map(|(name, (_, address))| (name, address)).collect();
        let is_missing = |label: &Label| !symbols.contains_key(label.name());
        if ENTRIES[..3].iter().any(is_missing) {
            // They are shown to a user who looks for a name that does not exist.
            for (_, name, address) in &self.similar {
                symbols.entry(name.clone()).or_insert(*address);
            }
        }
        for name in self.known.keys() {
            let is_shown = |address: &u64| !self.labels.contains(name) || is_in(*address);
            if let Some(address) = self.place(name)?.filter(is_shown) {
                symbols.insert((*name).into(), address);
            }
        }
        Ok(NamesFound { symbols, pointers })
    }
}

/// That no code is called `name`, with the names that are most like it.
pub(super) fn no_symbol<'data, R: Contents<'data>>(
    code: &FileCode<'_, 'data, R>,
    name: &str,
) -> Result<ReadError, ReadError> {
    /// So many are kept: no more are shown.
    const FEW: usize = 12;
    let mut similar = BTreeSet::new();
    for symbol in code.file.symbols() {
        let symbol = symbol?;
        let other = meaning(symbol.name);
        if other.is_empty() || is_no_name(&symbol) || code.address(&symbol).is_none() {
            continue;
        }
        let likeness = likeness(name, other);
        let least = similar.first().map_or(0, |(likeness, _)| *likeness);
        if similar.len() < FEW || likeness > least {
            similar.insert((likeness, shown(other)));
            if similar.len() > FEW {
                similar.pop_first();
            }
        }
    }
    let similar = similar.into_iter().rev().map(|(_, name)| name).collect();
    Ok(ReadError::no_symbol(name, similar))
}

/// The name that linkers look for, without the version that follows it.
fn without_version(name: &[u8]) -> &[u8] {
    // Hardly any name has a version, and this way it is found out fastest.
    if !name.contains(&b'@') {
        return name;
    }
    name.split(|byte| *byte == b'@').next().unwrap_or_default()
}

/// The name that linkers look for. It is empty if the name is no text.
fn meaning(name: &[u8]) -> &str {
    std::str::from_utf8(without_version(name)).unwrap_or_default()
}

fn is_no_name(symbol: &Symbol<'_>) -> bool {
    matches!(symbol.kind, STT_SECTION | STT_FILE | STT_TLS) || symbol.name.is_empty()
}
