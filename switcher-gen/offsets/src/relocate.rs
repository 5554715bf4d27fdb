//! The relocations of an object's debug information: until it is linked, its offsets into other
//! sections are in a table beside it.

use std::cell::RefCell;
use std::collections::HashMap;

use object::elf::{
    R_X86_64_32, R_X86_64_32S, R_X86_64_64, R_X86_64_DTPOFF32, R_X86_64_DTPOFF64, R_X86_64_NONE,
    RelocationType,
};

use crate::OffsetsError;
use crate::elf::{Elf, Section};
use crate::input::Input;

/// The bytes of a relocation and of a symbol.
const ENTRY: u64 = 24;

/// The relocations of one section, in the order of their places.
pub(crate) struct Relocations<'i> {
    /// The name of the section that they change.
    of: String,
    table: Section<'i>,
    symbols: Section<'i>,
    count: u64,
    /// Values of symbols: nearly all relocations are relative to the same few.
    values: RefCell<HashMap<u64, u64>>,
}

struct Relocation {
    at: u64,
    kind: RelocationType,
    symbol: u64,
    addend: u64,
}

impl<'i> Relocations<'i> {
    /// Those of `section`, if it has any.
    pub(crate) fn new(elf: &Elf<'i>, section: &Section<'i>) -> Result<Option<Self>, OffsetsError> {
        let Some((table, symbols)) = elf.relocations_of(section.index).filter(|_| elf.is_object)
        else {
            return Ok(None);
        };
        let (table, symbols) = (elf.section(table)?, elf.section(symbols)?);
        let count = table.size() / ENTRY;
        Ok(Some(Self {
            of: section.name.clone(),
            table,
            symbols,
            count,
            values: RefCell::default(),
        }))
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    fn wrong(&self, why: impl Into<String>) -> OffsetsError {
        OffsetsError::Relocations { section: self.of.clone(), why: why.into() }
    }

    fn parse(entry: &[u8]) -> Option<Relocation> {
        let number = |at: usize| {
            entry.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes)
        };
        let info = number(8)?;
        Some(Relocation {
            at: number(0)?,
            kind: RelocationType(info as u32),
            symbol: info >> 32,
            addend: number(16)?,
        })
    }

    /// The number of the first relocation at or after `at`, if they are in order.
    pub(crate) fn first_from(&self, at: u64) -> Result<u64, OffsetsError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut place = [0; 8];
            self.table.read_at(middle * ENTRY, &mut place)?;
            match u64::from_le_bytes(place) < at {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        Ok(low)
    }

    /// Applies to `bytes`, which lie at `start` of the section, the relocations from number `next`
    /// on that are for them. Returns the number of the first that is not.
    pub(crate) fn apply(
        &self,
        start: u64,
        bytes: &mut [u8],
        mut next: u64,
    ) -> Result<u64, OffsetsError> {
        /// How many are read at once.
        const SOME: u64 = 2048;
        let mut last = start;
        while next < self.count {
            let some = (self.count - next).min(SOME);
            let entries = self.table.bytes(next * ENTRY, some * ENTRY)?;
            for entry in entries.chunks_exact(ENTRY as usize) {
                let Some(relocation) = Self::parse(entry) else { return Ok(next) };
                if relocation.at.checked_sub(start).is_some_and(|at| at >= bytes.len() as u64) {
                    return Ok(next);
                }
                if relocation.at < last {
                    return Err(self.wrong("are not in order"));
                }
                last = relocation.at;
                self.change(&relocation, start, bytes)?;
                next += 1;
            }
        }
        Ok(next)
    }

    fn change(
        &self,
        relocation: &Relocation,
        start: u64,
        bytes: &mut [u8],
    ) -> Result<(), OffsetsError> {
        let width = match relocation.kind {
            R_X86_64_64 => 8,
            R_X86_64_32 | R_X86_64_32S => 4,
            // Where a variable of a thread lies is of no interest here.
            R_X86_64_NONE | R_X86_64_DTPOFF32 | R_X86_64_DTPOFF64 => return Ok(()),
            other => return Err(self.wrong(format!("are of kind {}, among others", other.0))),
        };
        let value = self.value_of(relocation.symbol)?.wrapping_add(relocation.addend);
        let at = usize::try_from(relocation.at - start).ok();
        let place = at.and_then(|at| bytes.get_mut(at..)?.get_mut(..width));
        let place = place.ok_or_else(|| self.wrong("reach beyond a unit"))?;
        place.copy_from_slice(&value.to_le_bytes()[..width]);
        Ok(())
    }

    /// Where a symbol lies in its section.
    fn value_of(&self, symbol: u64) -> Result<u64, OffsetsError> {
        /// Where the value is in a symbol.
        const VALUE: u64 = 8;
        /// How many values are kept.
        const MOST: usize = 1 << 16;
        if let Some(value) = self.values.borrow().get(&symbol) {
            return Ok(*value);
        }
        let mut value = [0; 8];
        self.symbols.read_at(symbol * ENTRY + VALUE, &mut value)?;
        let value = u64::from_le_bytes(value);
        let mut values = self.values.borrow_mut();
        if values.len() < MOST {
            values.insert(symbol, value);
        }
        Ok(value)
    }
}
