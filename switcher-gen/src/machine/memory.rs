//! Memory: a few regions, each at a base address and reached by no other.
//!
//! The regions of a proof have unknown bases. **Assumed** is that an address computed from one base
//! never lies in a region with another: stacks, per-CPU block, PVCS and code do not overlap, and the
//! block's pointers point to the regions that they are for. An access anywhere else is reported.

use super::domain::Domain;

/// Who else writes a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: the host's memory.
    Host,
    /// The guest, at any moment, from any of its CPUs.
    Guest,
}

/// Memory around a base address.
#[derive(Debug)]
pub struct Region<D: Domain> {
    /// In reports.
    pub name: &'static str,
    /// The address that offsets are counted from.
    pub base: D::Word,
    /// The offset of the first cell: negative for a stack whose base is its top.
    pub start: i64,
    /// What is there.
    pub cells: Vec<D::Cell>,
    /// Who else writes it.
    pub sharing: Sharing,
    /// Whether instructions are fetched from it: stores are then refused.
    pub is_code: bool,
    /// The CR3 value it is reached with; without one, any.
    pub root: Option<D::Word>,
}

/// Where in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the region.
    pub region: usize,
    /// Index of the first cell.
    pub index: usize,
    /// How many bytes.
    pub size: usize,
}

/// All memory there is.
#[derive(Debug)]
pub struct Memory<D: Domain> {
    /// The regions.
    pub regions: Vec<Region<D>>,
    /// Whether each read of what a guest may write finds something new.
    pub hostile: bool,
}

// Not derived: words and cells are `Copy`, a domain need not be `Clone`.
impl<D: Domain> Clone for Region<D> {
    fn clone(&self) -> Self {
        Self { cells: self.cells.clone(), ..*self }
    }
}

impl<D: Domain> Clone for Memory<D> {
    fn clone(&self) -> Self {
        Self { regions: self.regions.clone(), ..*self }
    }
}

impl<D: Domain> Region<D> {
    /// Memory that only the host writes.
    pub fn new(name: &'static str, base: D::Word, start: i64, cells: Vec<D::Cell>) -> Self {
        Self { name, base, start, cells, sharing: Sharing::Host, is_code: false, root: None }
    }

    /// The offset from the base of a cell.
    #[must_use]
    pub fn offset(&self, index: usize) -> i64 {
        self.start + index as i64
    }

    /// The cell at an offset from the base.
    #[must_use]
    pub fn index(&self, offset: i64) -> Option<usize> {
        let index = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        (index < self.cells.len()).then_some(index)
    }

    /// `size` bytes at an offset from the base.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn read(&self, d: &D, offset: i64, size: usize) -> D::Word {
        let index = self.index(offset).expect("the offset is within the region");
        d.load(&self.cells[index..index + size])
    }

    /// Changes `size` bytes at an offset from the base.
    ///
    /// # Panics
    /// If they are not all there.
    pub fn write(&mut self, d: &D, offset: i64, size: usize, value: D::Word) {
        let index = self.index(offset).expect("the offset is within the region");
        d.store(&mut self.cells[index..index + size], value);
    }
}

impl<D: Domain> Memory<D> {
    /// Where `address` is, if `size` bytes there are within one region of root `cr3`.
    #[inline]
    pub fn locate(&self, d: &D, address: D::Word, size: usize, cr3: D::Word) -> Option<Place> {
        self.regions.iter().enumerate().find_map(|(region, r)| {
            let distance = d.distance(address, r.base)?;
            let index = usize::try_from(distance.checked_sub(r.start)?).ok()?;
            let fits = index.checked_add(size)? <= r.cells.len();
            let mapped = r.root.is_none_or(|root| root == cr3);
            (fits && mapped).then_some(Place { region, index, size })
        })
    }

    /// What a load finds.
    #[inline]
    pub fn load(&self, d: &D, place: Place) -> D::Word {
        let region = &self.regions[place.region];
        if self.hostile && region.sharing == Sharing::Guest {
            return d.adversary(place.index, place.size);
        }
        d.load(&region.cells[place.index..place.index + place.size])
    }

    /// Stores the low bytes of `value`.
    #[inline]
    pub fn store(&mut self, d: &D, place: Place, value: D::Word) {
        let cells = &mut self.regions[place.region].cells;
        d.store(&mut cells[place.index..place.index + place.size], value);
    }

    /// The region of that name.
    #[must_use]
    pub fn region(&self, name: &str) -> Option<&Region<D>> {
        self.regions.iter().find(|region| region.name == name)
    }
}
