//! One unit, in memory by itself.

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugInfo, DebugTypes, DebuggingInformationEntry,
    EndianSlice, EntriesRaw, LittleEndian, UnitHeader, UnitOffset,
};

use crate::OffsetsError;

pub(super) type Slice<'u> = EndianSlice<'u, LittleEndian>;
pub(super) type Value<'u> = AttributeValue<Slice<'u>>;
pub(super) type Entry<'u> = DebuggingInformationEntry<Slice<'u>>;
pub(super) type Raw<'a, 'u> = EntriesRaw<'a, Slice<'u>>;

/// A unit.
pub(super) struct Unit {
    /// Its number in the index.
    pub(super) number: usize,
    bytes: Vec<u8>,
    is_types: bool,
    /// Where it lies in its section.
    start: u64,
    abbreviations: Abbreviations,
    /// Where its numbers of strings begin to count.
    pub(super) string_offsets: Option<u64>,
    is_split: bool,
}

impl Unit {
    pub(super) fn new(
        number: usize,
        bytes: Vec<u8>,
        is_types: bool,
        start: u64,
        abbreviations: &[u8],
    ) -> Result<Self, OffsetsError> {
        let mut unit = Self {
            number,
            bytes,
            is_types,
            start,
            abbreviations: Abbreviations::default(),
            string_offsets: None,
            is_split: false,
        };
        let at = unit.header()?.debug_abbrev_offset();
        let all = DebugAbbrev::new(abbreviations, LittleEndian);
        unit.abbreviations = all.abbreviations(at).map_err(|error| unit.damaged(error))?;
        let (string_offsets, is_split) = {
            let root = unit.root()?;
            let base =
                root.as_ref().and_then(|root| root.attr_value(gimli::DW_AT_str_offsets_base));
            let base = match base {
                Some(AttributeValue::DebugStrOffsetsBase(base)) => Some(base.0 as u64),
                _ => None,
            };
            let is_split = root.is_some_and(|root| {
                root.has_attr(gimli::DW_AT_dwo_name) || root.has_attr(gimli::DW_AT_GNU_dwo_name)
            });
            (base, is_split)
        };
        unit.string_offsets = string_offsets;
        unit.is_split = is_split;
        Ok(unit)
    }

    pub(super) fn header(&self) -> Result<UnitHeader<Slice<'_>>, OffsetsError> {
        let header = match self.is_types {
            false => DebugInfo::new(&self.bytes, LittleEndian).units().next(),
            true => DebugTypes::new(&self.bytes, LittleEndian).units().next(),
        };
        let header = header.map_err(|error| self.damaged(error))?;
        header.ok_or_else(|| self.damaged("it has no header"))
    }

    pub(super) fn abbreviations(&self) -> &Abbreviations {
        &self.abbreviations
    }

    /// The entry that is around all others, if there is any.
    pub(super) fn root(&self) -> Result<Option<Entry<'_>>, OffsetsError> {
        let header = self.header()?;
        let entries = header.entries_raw(&self.abbreviations, None);
        let mut entries = entries.map_err(|error| self.damaged(error))?;
        if entries.is_empty() {
            return Ok(None);
        }
        let mut root = Entry::null();
        let is_there = entries.read_entry(&mut root).map_err(|error| self.damaged(error))?;
        Ok(is_there.then_some(root))
    }

    /// The entries from `at` on.
    pub(super) fn entries<'u>(
        &'u self,
        header: &UnitHeader<Slice<'u>>,
        at: UnitOffset,
    ) -> Result<Raw<'u, 'u>, OffsetsError> {
        header.entries_raw(&self.abbreviations, Some(at)).map_err(|error| self.damaged(error))
    }

    /// Whether its contents are in another file.
    pub(super) fn is_split(&self) -> bool {
        self.is_split
    }

    /// Where it lies, for errors.
    pub(super) fn place(&self) -> String {
        format!("the unit at {:#x}", self.start)
    }

    pub(super) fn damaged(&self, what: impl ToString) -> OffsetsError {
        OffsetsError::DamagedDwarf { unit: self.place(), what: what.to_string() }
    }

    pub(super) fn elsewhere(&self, what: &'static str) -> OffsetsError {
        OffsetsError::Elsewhere {
            unit: self.place(),
            what,
            way_out: "give the file as it was before `dwz` took it apart",
        }
    }
}
