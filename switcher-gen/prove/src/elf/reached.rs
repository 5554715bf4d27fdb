//! What is reached of the code, and what an address or a table has to do with that.

use std::ops::Range;

use super::lengths::Extent;
use super::purpose::Purpose;

/// What one table names.
#[derive(Default)]
pub(super) struct TableContents {
    /// A place that is reached, and that nobody would have a pointer to.
    pub(super) site: Option<u64>,
    /// A place that is reached, right in front of one that is named.
    pub(super) front: Option<u64>,
    /// An entry point.
    pub(super) pointer: Option<u64>,
    /// Code of the same section that is not reached.
    pub(super) is_beside: bool,
    /// A place that is reached, by chance, since there are so many words.
    pub(super) is_chance: bool,
    /// Numbers that are the distance to a place that is reached.
    pub(super) has_numbers: bool,
}

/// The relation of an address to the reached code.
#[derive(Clone, Copy)]
pub(super) enum Named {
    Nothing,
    /// The address is one that other code has pointers to.
    Pointer,
    /// The address is this byte of the reached code.
    Site(u64),
    /// This byte of the reached code is so close in front of the address that it may be changed,
    /// too.
    Front(u64),
    /// The address is beside the reached code, and it is not known who may count from there.
    Beside,
}

/// The reached code, to judge references by.
pub(super) struct Reached<'a> {
    pub(super) ranges: &'a [Range<u64>],
    /// The section that they are in.
    pub(super) home: Range<u64>,
    /// Functions, which others may have a pointer to; and the entry points, which are called.
    pub(super) named: &'a [u64],
    pub(super) entries: &'a [u64],
    /// The first byte of each instruction, in order.
    pub(super) instructions: &'a [u64],
}

impl Reached<'_> {
    /// The first byte that is reached of `length` at `address`.
    pub(super) fn first(&self, address: u64, length: u64) -> Option<u64> {
        let end = address.saturating_add(length);
        let behind = self.ranges.partition_point(|range| range.end <= address);
        let range = self.ranges.get(behind)?;
        (range.start < end).then(|| range.start.max(address))
    }

    /// The first byte that is reached of so many in front of `address`.
    pub(super) fn front(&self, address: u64, bytes: u64) -> Option<u64> {
        let start = address.saturating_sub(bytes);
        if start < address { self.first(start, address - start) } else { None }
    }

    /// Whether an address, or what an entry of a table changes from there on, is in the section.
    pub(super) fn is_near(&self, address: u64) -> bool {
        /// In bytes: no entry changes more.
        const MOST: u64 = 255;
        let end = self.home.end.saturating_add(MOST);
        (self.home.start.saturating_sub(MOST)..=end).contains(&address)
    }

    /// Whether others may well refer to what lies there.
    pub(super) fn is_named(&self, address: u64) -> bool {
        self.entries.contains(&address) || self.named.binary_search(&address).is_ok()
    }

    /// What a word in a table refers to. A distance is no pointer as data holds them.
    pub(super) fn matters(
        &self,
        purpose: Purpose,
        address: u64,
        extent: Extent,
        is_distance: bool,
    ) -> Named {
        let Some(found) = self.first(address, extent.length.max(1)) else {
            if let Some(front) = self.front(address, extent.front) {
                return Named::Front(front);
            }
            let is_in = (self.home.start..=self.home.end).contains(&address);
            let is_beside = is_in && purpose == Purpose::Unknown;
            return if is_beside { Named::Beside } else { Named::Nothing };
        };
        let is_pointer = match purpose {
            Purpose::Data if !is_distance => self.is_named(address),
            Purpose::Data | Purpose::Unknown | Purpose::Code => self.entries.contains(&address),
            Purpose::Patches(_) | Purpose::Harmless(_) => false,
        };
        if is_pointer { Named::Pointer } else { Named::Site(found) }
    }
}
