//! Lists of physical memory regions: the memory that the loader reports as usable, without what is
//! taken.
//!
//! It is pure arithmetic without a heap, because it runs before there is one.

/// A half-open range of physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// The first byte's address.
    pub start: u64,
    /// The address after the last byte's.
    pub end: u64,
}

impl Region {
    /// Makes a region, which is empty if `end` is not above `start`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }

    /// The size of the region in bytes.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the region has no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The pages that the region touches.
    #[must_use]
    pub const fn grow_to_pages(self, page: u64) -> Self {
        if self.is_empty() {
            return self;
        }
        Self { start: self.start / page * page, end: self.end.div_ceil(page) * page }
    }

    /// The whole pages in the region.
    #[must_use]
    pub const fn shrink_to_pages(self, page: u64) -> Self {
        match self.start.checked_next_multiple_of(page) {
            Some(start) => Self { start, end: self.end / page * page },
            None => Self { start: 0, end: 0 },
        }
    }
}

/// How many regions a list can hold. Firmware reports a dozen.
pub const CAPACITY: usize = 64;

/// A list of regions that do not overlap, in no particular order.
#[derive(Debug, Clone, Copy)]
pub struct Regions {
    list: [Region; CAPACITY],
    len: usize,
}

/// The list is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRegions;

impl core::fmt::Display for TooManyRegions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the memory map has more than {CAPACITY} usable regions")
    }
}

impl core::error::Error for TooManyRegions {}

impl Regions {
    /// A list without regions.
    pub const EMPTY: Self = Self { list: [Region::new(0, 0); CAPACITY], len: 0 };

    /// The regions of the list.
    #[must_use]
    pub fn as_slice(&self) -> &[Region] {
        &self.list[..self.len]
    }

    /// Adds a region, unless it is empty.
    ///
    /// # Errors
    /// If the list is full.
    pub fn add(&mut self, region: Region) -> Result<(), TooManyRegions> {
        if region.is_empty() {
            return Ok(());
        }
        let slot = self.list.get_mut(self.len).ok_or(TooManyRegions)?;
        *slot = region;
        self.len += 1;
        Ok(())
    }

    /// Takes a range out of every region.
    ///
    /// # Errors
    /// If the list is full: taking a range from the middle of a region leaves two.
    pub fn remove(&mut self, hole: Region) -> Result<(), TooManyRegions> {
        if hole.is_empty() {
            return Ok(());
        }
        let mut left = Self::EMPTY;
        for &region in self.as_slice() {
            left.add(Region::new(region.start, region.end.min(hole.start)))?;
            left.add(Region::new(region.start.max(hole.end), region.end))?;
        }
        *self = left;
        Ok(())
    }

    /// Takes `size` bytes off the start of the first region, by address, that has as many.
    pub fn take(&mut self, size: u64) -> Option<Region> {
        let fit = self.list[..self.len]
            .iter_mut()
            .filter(|region| region.len() >= size)
            .min_by_key(|region| region.start)?;
        let taken = Region::new(fit.start, fit.start + size);
        fit.start = taken.end;
        Some(taken)
    }

    /// The bytes in all regions.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.as_slice().iter().map(|region| region.len()).sum()
    }

    /// The address after the highest region.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.as_slice().iter().map(|region| region.end).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(regions: &[(u64, u64)]) -> Regions {
        let mut list = Regions::EMPTY;
        for &(start, end) in regions {
            list.add(Region::new(start, end)).expect("fits");
        }
        list
    }

    fn pairs(list: &Regions) -> Vec<(u64, u64)> {
        list.as_slice().iter().map(|region| (region.start, region.end)).collect()
    }

    #[test]
    fn a_hole_cuts_splits_and_swallows() {
        let mut regions = list(&[(0, 10), (20, 30), (40, 50)]);
        regions.remove(Region::new(5, 45)).expect("fits");
        assert_eq!(pairs(&regions), [(0, 5), (45, 50)]);
        regions.remove(Region::new(1, 2)).expect("fits");
        assert_eq!(pairs(&regions), [(0, 1), (2, 5), (45, 50)]);
        regions.remove(Region::new(60, 70)).expect("fits");
        regions.remove(Region::new(3, 3)).expect("fits");
        assert_eq!(regions.total(), 9);
        assert_eq!(regions.end(), 50);
    }

    #[test]
    fn empty_regions_take_no_room() {
        let mut regions = list(&[(5, 5), (7, 6)]);
        assert_eq!(pairs(&regions), []);
        for start in 0..CAPACITY as u64 {
            regions.add(Region::new(2 * start, 2 * start + 1)).expect("fits");
        }
        assert_eq!(regions.add(Region::new(1000, 1001)), Err(TooManyRegions));
        assert_eq!(regions.add(Region::new(1000, 1000)), Ok(()));
    }

    #[test]
    fn the_lowest_region_that_is_large_enough_gives() {
        let mut regions = list(&[(100, 200), (0, 10), (50, 90)]);
        assert_eq!(regions.take(20), Some(Region::new(50, 70)));
        assert_eq!(regions.take(200), None);
        assert_eq!(regions.take(10), Some(Region::new(0, 10)));
        assert_eq!(regions.total(), 120);
    }

    #[test]
    fn shrinking_never_grows() {
        assert_eq!(Region::new(1, 0x2fff).shrink_to_pages(0x1000), Region::new(0x1000, 0x2000));
        assert!(Region::new(1, 0xfff).shrink_to_pages(0x1000).is_empty());
        assert!(Region::new(u64::MAX - 1, u64::MAX).shrink_to_pages(0x1000).is_empty());
    }

    #[test]
    fn the_pages_around_a_region_contain_it() {
        assert_eq!(Region::new(0x1001, 0x2001).grow_to_pages(4096), Region::new(0x1000, 0x3000));
        assert_eq!(Region::new(0x1000, 0x2000).grow_to_pages(4096), Region::new(0x1000, 0x2000));
        assert!(Region::new(0x1001, 0x1001).grow_to_pages(4096).is_empty());
    }
}
