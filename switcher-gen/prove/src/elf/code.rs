//! The code of a file as it lies in memory, read byte by byte and only where it is looked at.

use std::cell::{Cell, OnceCell};
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Instruction};
use object::elf::{R_X86_64_NONE, STT_GNU_IFUNC};

use super::contents::Contents;
use super::error::ReadError;
use super::file::{File, Of, Section, Symbol};
use super::labels::hosts;
use super::layout::Layout;
use super::leads::{Across, Leads, Out, To, Use};
use super::overlay::Overlay;
use super::per_cpu::{self, Copies, Variable, Variables};
use super::places::{BASE, PlaceInFile, REACH};
use super::relocation::{FAR, Form, Relocation};

/// The code of a file, by address.
pub(super) struct FileCode<'f, 'data, R: Contents<'data>> {
    pub(super) file: &'f File<'data, R>,
    /// The sections of code, by address. None is empty.
    pub(super) areas: Vec<Area>,
    /// For each section, the index of its area.
    numbers: foldhash::HashMap<usize, usize>,
    /// The addresses that each section covers. Empty ones are included, because they can have
    /// symbols.
    ranges: foldhash::HashMap<usize, Range<u64>>,
    /// Where the parts of an object are taken to lie.
    layout: Option<Layout>,
    /// The first absolute address of the code's own that was stored into it.
    pub(super) absolute: Cell<Option<(usize, u64)>>,
    /// The per-CPU variables that an object's code refers to.
    pub(super) variables: Variables,
    /// What runs instead of the file's bytes.
    overlay: Overlay,
}

/// A section of code.
pub(super) struct Area {
    /// Its number in the file.
    pub(super) section: usize,
    pub(super) range: Range<u64>,
    /// Where its bytes are in the file.
    offset: u64,
    /// The relocations of the section, by offset.
    relocations: OnceCell<Vec<Relocation>>,
}

/// Bytes in memory, with what could not be resolved in them.
pub(super) struct Glance {
    pub(super) bytes: [u8; 15],
    pub(super) len: usize,
    /// The ranges that could not be resolved and why, by address.
    pub(super) wrong: Vec<(Range<u64>, ReadError)>,
    /// The ranges that hold distances to what a linker puts elsewhere, by address.
    pub(super) out: Vec<(Range<u64>, Out)>,
    /// The ranges that hold what follows from a number.
    pub(super) numbers: Vec<Range<u64>>,
}

impl Glance {
    /// The instruction at `at`, where the bytes are from.
    pub(super) fn instruction(&self, at: u64) -> Instruction {
        Decoder::with_ip(64, &self.bytes[..self.len], at, DecoderOptions::NONE).decode()
    }

    /// Whether some of these bytes are not the file's alone to say.
    pub(super) fn is_open(&self, bytes: &Range<u64>) -> bool {
        let wrong = self.wrong.iter().map(|(field, _)| field);
        let out = self.out.iter().map(|(field, _)| field);
        let mut fields = wrong.chain(out).chain(&self.numbers);
        fields.any(|field| field.start < bytes.end && bytes.start < field.end)
    }
}

impl<'f, 'data, R: Contents<'data>> FileCode<'f, 'data, R> {
    /// Of an object, the first section lies at [`BASE`], and the others after it in the file's
    /// order, aligned as they ask, at the distances of the layout; of a linked file, where it says.
    pub(super) fn new(file: &'f File<'data, R>, layout: Option<Layout>) -> Result<Self, ReadError> {
        let (mut areas, mut ranges) = (Vec::new(), foldhash::HashMap::default());
        let mut next = BASE;
        for (number, section) in file.sections.iter().enumerate().filter(|(_, s)| s.is_code()) {
            let address = match &layout {
                Some(_) if ranges.is_empty() => BASE,
                Some(layout) => {
                    (next + layout.gap(number)).next_multiple_of(section.usual_alignment())
                }
                None => section.address,
            };
            let end = address.checked_add(section.size);
            let Some(end) = end.filter(|end| !file.is_object() || end - BASE <= REACH) else {
                if !section.has_bytes() {
                    return Err(ReadError::NoContents { section: section.text() });
                }
                return Err(if file.is_object() {
                    ReadError::TooLarge { what: "the sections of code" }
                } else {
                    ReadError::WrapsAround { section: section.text() }
                });
            };
            next = end;
            ranges.insert(number, address..end);
            if section.size > 0 {
                areas.push(Area {
                    section: number,
                    range: address..end,
                    offset: section.offset(),
                    relocations: OnceCell::new(),
                });
            }
        }
        if areas.is_empty() {
            return Err(ReadError::NoCode);
        }
        areas.sort_by_key(|area| area.range.start);
        let numbers = areas.iter().enumerate().map(|(at, area)| (area.section, at)).collect();
        let (absolute, variables) = (Cell::new(None), Variables::default());
        let overlay = Overlay::default();
        Ok(Self { file, areas, numbers, ranges, layout, absolute, variables, overlay })
    }

    /// From here on, other bytes run than the file's.
    pub(super) fn put(&mut self, overlay: Overlay) {
        self.overlay = overlay;
        self.absolute.set(None);
    }

    /// The code of a section.
    pub(super) fn area_of(&self, section: usize) -> Option<&Area> {
        self.areas.get(*self.numbers.get(&section)?)
    }

    /// Where a routine of the host's is taken to lie that an object does not have.
    pub(super) fn host(&self, name: &str) -> Option<u64> {
        self.layout.as_ref()?.host(name)
    }

    /// Whether a routine of the host's is taken to lie at an address.
    pub(super) fn is_host(&self, address: u64) -> bool {
        hosts().any(|name| self.host(name) == Some(address))
    }

    /// The addresses of a section of code, empty or not.
    pub(super) fn range_of(&self, section: usize) -> Option<&Range<u64>> {
        self.ranges.get(&section)
    }

    pub(super) fn section(&self, area: &Area) -> &'f Section<'data> {
        &self.file.sections[area.section]
    }

    pub(super) fn place(&self, area: &Area, address: u64) -> PlaceInFile {
        let offset = address.wrapping_sub(area.range.start);
        PlaceInFile { section: self.section(area).text(), offset }
    }

    /// What lies at an address.
    pub(super) fn area(&self, address: u64) -> Option<&Area> {
        let behind = self.areas.partition_point(|area| area.range.start <= address);
        self.areas[..behind].last().filter(|area| area.range.contains(&address))
    }

    /// Where `symbol` is, if it is in code. The end of a section counts, for labels after the last
    /// instruction.
    pub(super) fn address(&self, symbol: &Symbol<'_>) -> Option<u64> {
        let Of::Section(section) = symbol.of else { return None };
        self.address_in(section, symbol.value)
    }

    /// The address of an offset in a section, if the section is code. In a linked file, the offset
    /// is an address already.
    pub(super) fn address_in(&self, section: usize, value: u64) -> Option<u64> {
        let range = self.ranges.get(&section)?;
        let start = if self.file.is_object() { range.start } else { 0 };
        let address = start.checked_add(value)?;
        (range.start..=range.end).contains(&address).then_some(address)
    }

    /// Where the relocations of a section lie: of an object's code, at an address.
    fn relocations<'a>(&self, area: &'a Area) -> Result<&'a [Relocation], ReadError> {
        if let Some(known) = area.relocations.get() {
            return Ok(known);
        }
        let mut all = Vec::new();
        if self.file.is_object() {
            for relocation in self.file.relocations(area.section)? {
                all.extend(Some(relocation?).filter(|it| it.kind != R_X86_64_NONE));
            }
        }
        all.sort_by_key(|relocation| relocation.offset);
        let size = area.range.end - area.range.start;
        if let Some(outside) = all.last().filter(|last| last.offset >= size) {
            let at = PlaceInFile { section: self.section(area).text(), offset: outside.offset };
            return Err(ReadError::OutsideSection { at });
        }
        Ok(area.relocations.get_or_init(|| all))
    }

    /// The relocations that change something in `range`, which lies in `area`.
    pub(super) fn touching<'a>(
        &self,
        area: &'a Area,
        range: &Range<u64>,
    ) -> Result<Vec<&'a Relocation>, ReadError> {
        let all = self.relocations(area)?;
        let start = range.start - area.range.start;
        let end = range.end - area.range.start;
        let first =
            all.partition_point(|relocation| relocation.offset.saturating_add(FAR) <= start);
        let last = all.partition_point(|relocation| relocation.offset < end.saturating_add(FAR));
        let near = all.get(first..last).unwrap_or_default().iter();
        let touches = |changed: Range<u64>| changed.start < end && start < changed.end;
        Ok(near.filter(|relocation| touches(relocation.range())).collect())
    }

    /// The bytes that the CPU finds from `address` on, which lies in `area`: as many as an
    /// instruction can have.
    pub(super) fn glance(&self, area: &Area, address: u64) -> Result<Glance, ReadError> {
        let mut glance = self.glance_file(area, address)?;
        let range = address..address + glance.len as u64;
        for piece in self.overlay.over(&range) {
            let Range { start, end } = piece.range;
            let is_outside = |field: &Range<u64>| field.start < start || end < field.end;
            glance.wrong.retain(|(field, _)| is_outside(field));
            glance.out.retain(|(field, _)| is_outside(field));
            glance.numbers.retain(is_outside);
            put(&mut glance.bytes[..glance.len], address, start, &piece.bytes);
            let is_near = |field: &Range<u64>| field.start < range.end && range.start < field.end;
            let wrong = piece.wrong.iter().filter(|(field, _)| is_near(field));
            glance.wrong.extend(wrong.cloned());
            glance.out.extend(piece.out.iter().filter(|(field, _)| is_near(field)).cloned());
            glance.numbers.extend(piece.numbers.iter().filter(|field| is_near(field)).cloned());
        }
        Ok(glance)
    }

    /// The same as the file has it.
    pub(super) fn glance_file(&self, area: &Area, address: u64) -> Result<Glance, ReadError> {
        let len = (area.range.end - address).min(15) as usize;
        let (wrong, out, numbers) = (Vec::new(), Vec::new(), Vec::new());
        let mut glance = Glance { bytes: [0; 15], len, wrong, out, numbers };
        self.copy_file(area, address, &mut glance.bytes[..len])?;
        let range = address..address + len as u64;
        for relocation in self.touching(area, &range)? {
            let at = area.range.start + relocation.offset;
            let Range { start, end } = relocation.range();
            let place = |offset| area.range.start.saturating_add(offset);
            let changed = place(start)..place(end);
            match self.resolve(area, relocation) {
                Ok((field, width, leads)) => {
                    put(&mut glance.bytes[..len], address, at, &field[..width]);
                    match leads {
                        Leads::Within => {}
                        Leads::Number => glance.numbers.push(changed),
                        Leads::Out(out) => glance.out.push((changed, out)),
                    }
                }
                Err(error) => glance.wrong.push((changed, error)),
            }
        }
        Ok(glance)
    }

    /// The first place in `range`, which lies in `area`, that holds a distance to what a linker
    /// puts elsewhere.
    pub(super) fn first_out(
        &self,
        area: &Area,
        range: &Range<u64>,
    ) -> Result<Option<u64>, ReadError> {
        let mut touching = self.touching(area, range)?.into_iter();
        let out = touching.find(|relocation| {
            !self.is_replaced(area, relocation)
                && matches!(self.resolve(area, relocation), Ok((.., Leads::Out(_))))
        });
        let place = |out: &Relocation| area.range.start.saturating_add(out.range().start);
        let pieces = self.overlay.over(range).iter().flat_map(|piece| &piece.out);
        let out = out.into_iter().map(place).chain(pieces.map(|(field, _)| field.start));
        let first = out.filter(|at| *at < range.end).min();
        Ok(first.map(|at| at.max(range.start)))
    }

    /// The bytes at `range`, which lies in `area`, with all that is relocated in them. Distances to
    /// what a linker puts elsewhere may be at the places in `across` and nowhere else.
    pub(super) fn bytes(
        &self,
        area: &Area,
        range: &Range<u64>,
        across: Across<'_>,
    ) -> Result<Vec<u8>, ReadError> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.copy(area, range.start, &mut bytes)?;
        let mut touching = self.touching(area, range)?;
        touching.retain(|relocation| !self.is_replaced(area, relocation));
        for piece in self.overlay.over(range) {
            let is_in = |field: &Range<u64>| field.start < range.end && range.start < field.end;
            if let Some((_, error)) = piece.wrong.iter().find(|(field, _)| is_in(field)) {
                return Err(error.clone());
            }
            let mut out = piece.out.iter().filter(|(field, _)| is_in(field));
            if let Some((_, out)) = out.find(|(field, _)| !across.allows(field.start)) {
                return Err(out.error.clone());
            }
        }
        for (number, relocation) in touching.iter().enumerate() {
            let next = touching.get(number + 1);
            if let Some(next) = next.filter(|next| next.offset < relocation.range().end) {
                let at = PlaceInFile { section: self.section(area).text(), offset: next.offset };
                return Err(ReadError::RelocatedTwice { at });
            }
            let at = area.range.start + relocation.offset;
            let (field, width, leads) = self.resolve(area, relocation)?;
            let is_variable = matches!(&leads, Leads::Out(out) if matches!(out.use_, Use::PerCpu { .. } | Use::Fixed));
            if let Leads::Out(out) = leads
                && !across.allows(at)
            {
                return Err(out.error);
            }
            put(&mut bytes, range.start, at, &field[..width]);
            let is_absolute = !is_variable && self.is_absolute(relocation)?;
            if is_absolute && self.absolute.get().is_none() {
                self.absolute.set(Some((area.section, relocation.offset)));
            }
        }
        Ok(bytes)
    }

    /// Whether other bytes run than those that a relocation changes.
    pub(super) fn is_replaced(&self, area: &Area, relocation: &Relocation) -> bool {
        let Range { start, end } = relocation.range();
        let place = |offset| area.range.start.saturating_add(offset);
        let changed = place(start)..place(end);
        let pieces = self.overlay.over(&changed).iter();
        let mut pieces = pieces.map(|piece| &piece.range);
        pieces.any(|piece| piece.start <= changed.start && changed.end <= piece.end)
    }

    /// The bytes at `address`, before anything is relocated.
    pub(super) fn copy(&self, area: &Area, address: u64, to: &mut [u8]) -> Result<(), ReadError> {
        self.copy_file(area, address, to)?;
        let range = address..address + to.len() as u64;
        for piece in self.overlay.over(&range) {
            put(to, address, piece.range.start, &piece.bytes);
        }
        Ok(())
    }

    /// The bytes at `address` as they are in the file.
    pub(super) fn copy_file(
        &self,
        area: &Area,
        address: u64,
        to: &mut [u8],
    ) -> Result<(), ReadError> {
        let damaged = || ReadError::NoContents { section: self.section(area).text() };
        if !self.section(area).has_bytes() {
            return Err(damaged());
        }
        let offset = area.offset.checked_add(address - area.range.start).ok_or_else(damaged)?;
        self.file
            .data
            .copy(offset, to)
            .map_err(|()| ReadError::Truncated { section: self.section(area).text() })
    }

    /// Whether what is stored depends on where the code lies: an address of its own, or the
    /// distance to one that is a number.
    fn is_absolute(&self, relocation: &Relocation) -> Result<bool, ReadError> {
        let is_relative = Form::of(relocation.kind).is_some_and(|form| form.relative);
        if relocation.symbol == 0 {
            return Ok(is_relative);
        }
        Ok(match self.file.symbol_by_index(relocation.symbol)?.of {
            Of::Absolute => is_relative,
            _ => !is_relative,
        })
    }

    /// What a relocation stores, how many bytes of it, and where that leads.
    fn resolve(
        &self,
        area: &Area,
        relocation: &Relocation,
    ) -> Result<([u8; 8], usize, Leads), ReadError> {
        let at = || PlaceInFile { section: self.section(area).text(), offset: relocation.offset };
        let kind = relocation.kind.0;
        let Some(form) = Form::of(relocation.kind) else {
            return Err(ReadError::Relocation { at: at(), kind });
        };
        let addend = relocation.addend.ok_or_else(|| ReadError::ImplicitAddend { at: at() })?;
        let (target, to) = self.target(area, relocation, &at)?;
        if relocation.range().end > area.range.end - area.range.start {
            return Err(ReadError::OutsideSection { at: at() });
        }
        let address = area.range.start + relocation.offset;
        let value = target.wrapping_add_signed(addend);
        let value = if form.relative { value.wrapping_sub(address) } else { value };
        if !form.holds(value) {
            return Err(ReadError::Overflow { at: at(), kind, value, bits: form.bits() });
        }
        let leads = Leads::of(&form, (to, target), target.wrapping_add_signed(addend), at())?;
        Ok((value.to_le_bytes(), form.width, leads))
    }

    /// The address a relocation refers to, without its addend, and whose it is.
    fn target(
        &self,
        area: &Area,
        relocation: &Relocation,
        at: &dyn Fn() -> PlaceInFile,
    ) -> Result<(u64, To), ReadError> {
        // Symbol 0 stands for address 0, so the addend is the target.
        if relocation.symbol == 0 {
            return Ok((0, To::Number));
        }
        let symbol = self.file.symbol_by_index(relocation.symbol)?;
        if symbol.kind == STT_GNU_IFUNC {
            return Err(ReadError::Indirect { symbol: symbol.text() });
        }
        match symbol.of {
            Of::Undefined if symbol.is_weak() => {
                Err(ReadError::WeakUndefined { at: at(), symbol: symbol.text() })
            }
            Of::Undefined | Of::Other => {
                let symbol = symbol.text();
                if let Some(place) = self.host(&symbol) {
                    return Ok((place, To::Host(symbol)));
                }
                let is_wanted = self.file.request.wants(&symbol);
                let error = ReadError::Undefined { at: at(), symbol: symbol.clone() };
                let size = per_cpu::MOST;
                if self.file.request.wants_fixed(&symbol) {
                    let error = ReadError::FixedData { at: at(), symbol: symbol.clone() };
                    return self.fixed(Variable::Undefined(symbol), 0..size, error);
                }
                self.variable(Variable::Undefined(symbol), 0..size, is_wanted, error)
            }
            _ if symbol.is_weak() => Err(ReadError::Weak { symbol: symbol.text() }),
            Of::Absolute => Ok((symbol.value, To::Number)),
            Of::Section(index) => match self.ranges.get(&index) {
                Some(range)
                    if index != area.section && self.file.request.wants_fixed(&symbol.text()) =>
                {
                    let error = ReadError::FixedData { at: at(), symbol: symbol.text() };
                    let address = range.start.wrapping_add(symbol.value);
                    Ok((address, To::Fixed { within: range.clone(), error }))
                }
                Some(range) => {
                    let to = match index == area.section {
                        true => To::Own(range.clone()),
                        false => To::Section(range.clone(), self.file.sections[index].text()),
                    };
                    Ok((range.start.wrapping_add(symbol.value), to))
                }
                None => {
                    let section = self.file.sections.get(index);
                    let name = section.map_or_else(String::new, Section::text);
                    let error = ReadError::Data { at: at(), section: name };
                    match section {
                        Some(section) if per_cpu::is_section(section) => {
                            let is_wanted = self.file.request.wants(&symbol.text());
                            let own = symbol.value..section.size;
                            self.variable(Variable::Section(index), own, is_wanted, error)
                        }
                        Some(section) if self.file.request.wants_fixed(&symbol.text()) => {
                            let own = symbol.value..section.size;
                            let error = ReadError::FixedData { at: at(), symbol: symbol.text() };
                            self.fixed(Variable::Section(index), own, error)
                        }
                        _ => Err(error),
                    }
                }
            },
            Of::Common => Err(ReadError::Data { at: at(), section: "COMMON".into() }),
        }
    }
}

impl<'data, R: Contents<'data>> FileCode<'_, 'data, R> {
    /// The address of a per-CPU variable, or of a place in a section of them: it lies at the start
    /// of `own`, counted from the start of what ends where `own` does.
    fn variable(
        &self,
        variable: Variable,
        own: Range<u64>,
        is_wanted: bool,
        error: ReadError,
    ) -> Result<(u64, To), ReadError> {
        let Some(layout) = &self.layout else { return Err(error) };
        let place = self.variables.place(variable, Copies::OfEachCpu, layout)?;
        let within = place..place.saturating_add(own.end);
        Ok((place.wrapping_add(own.start), To::PerCpu { within, is_wanted, error }))
    }

    /// The address of data that every CPU shares, likewise.
    fn fixed(
        &self,
        variable: Variable,
        own: Range<u64>,
        error: ReadError,
    ) -> Result<(u64, To), ReadError> {
        if own.end > per_cpu::MOST {
            return Err(error);
        }
        let Some(layout) = &self.layout else { return Err(error) };
        let place = self.variables.place(variable, Copies::One, layout)?;
        let within = place..place.saturating_add(own.end);
        Ok((place.wrapping_add(own.start), To::Fixed { within, error }))
    }
}

/// Copies that part of `field`, which lies at `at`, that is within `bytes`, which lie at `start`.
fn put(bytes: &mut [u8], start: u64, at: u64, field: &[u8]) {
    for (address, byte) in (at..).zip(field) {
        let place = address.checked_sub(start).and_then(|place| bytes.get_mut(place as usize));
        if let Some(place) = place {
            *place = *byte;
        }
    }
}
