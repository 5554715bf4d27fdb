//! Memory: a few regions, each at a base address, and reached from that base only.
//!
//! The regions of a proof have unknown bases. **Assumed** is that an address computed from one base
//! never lies in a region with another: stacks, per-CPU block, PVCS and code do not overlap, and
//! the block's pointers point to the regions that they are for. An access anywhere else is
//! reported.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::domain::{Domain, Origin};

/// Who writes a region, besides the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: the host's memory.
    Host,
    /// The guest, at any moment, from any of its CPUs.
    Guest,
    /// Other code of ring 0, at any moment, such as that of an NMI: no load finds what another has
    /// found, nor what was stored, which may be a guest's or the host's.
    Ring0,
}

/// What a region is: an access to it is judged by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegionName {
    /// A CPU's TSS.
    Tss,
    /// The `TssExtra`, which follows the TSS.
    TssExtra,
    /// The TSS, the `TssExtra` and the rest of the per-CPU block.
    PerCpu,
    /// The page shared with the guest.
    Pvcs,
    /// The stack that TSS.sp0 points to.
    Sp0Stack,
    /// A stack of the IST.
    IstStack,
    /// The stack of the caller that entered a guest.
    HostStack,
    /// The stack of ring 0 that an event has interrupted, wherever that is.
    InterruptedStack,
    /// Instructions.
    Code,
    /// A guest's own.
    Guest,
    /// Another stack.
    Stack,
    /// Data of the host's that code may read.
    HostData,
    /// The same, which every root maps.
    MappedData,
    /// Data of the host's that code may write as it likes.
    HostWord,
}

impl RegionName {
    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tss => "tss",
            Self::TssExtra => "tss_extra",
            Self::PerCpu => "per-CPU block",
            Self::Pvcs => "pvcs",
            Self::Sp0Stack => "sp0 stack",
            Self::IstStack => "ist stack",
            Self::HostStack => "host stack",
            Self::InterruptedStack => "interrupted stack",
            Self::Code => "code",
            Self::Guest => "guest",
            Self::Stack => "stack",
            Self::HostData => "host data",
            Self::MappedData => "mapped data",
            Self::HostWord => "host word",
        }
    }

    /// Whether it is mapped under every root. The others are on the host's alone. The stack of
    /// interrupted code is mapped under the root that was loaded then, and is used under no other.
    #[must_use]
    pub const fn is_under_every_root(self) -> bool {
        match self {
            Self::Tss
            | Self::TssExtra
            | Self::PerCpu
            | Self::Pvcs
            | Self::Sp0Stack
            | Self::IstStack
            | Self::InterruptedStack
            | Self::MappedData
            | Self::Code => true,
            Self::HostStack | Self::Guest | Self::Stack | Self::HostData | Self::HostWord => false,
        }
    }

    /// Whether it is a stack of ring 0.
    #[must_use]
    pub const fn is_stack(self) -> bool {
        match self {
            Self::Sp0Stack
            | Self::IstStack
            | Self::HostStack
            | Self::InterruptedStack
            | Self::Stack => true,
            Self::Tss
            | Self::TssExtra
            | Self::PerCpu
            | Self::Pvcs
            | Self::Code
            | Self::Guest
            | Self::HostData
            | Self::MappedData
            | Self::HostWord => false,
        }
    }
}

/// The cells of a region. A copy of them takes no memory until one of the two is changed: a proof
/// keeps thousands of states, which differ in a few bytes of the stacks and never in the code.
#[derive(Clone, Debug)]
pub struct Cells<C>(Rc<[C]>);

impl<C> From<Vec<C>> for Cells<C> {
    fn from(cells: Vec<C>) -> Self {
        Self(cells.into())
    }
}

impl<C> Deref for Cells<C> {
    type Target = [C];

    fn deref(&self) -> &[C] {
        &self.0
    }
}

impl<C: Clone> DerefMut for Cells<C> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [C] {
        Rc::make_mut(&mut self.0)
    }
}

impl<C: PartialEq> PartialEq for Cells<C> {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

/// Memory around a base address.
#[derive(Debug)]
pub struct Region<D: Domain> {
    /// Which it is.
    pub name: RegionName,
    /// The address that offsets are counted from.
    pub base: D::Word,
    /// The offset of the first cell: negative for a stack whose base is its top.
    pub start: i64,
    /// What is there.
    pub cells: Cells<D::Cell>,
    /// Who else writes it.
    pub sharing: Sharing,
    /// Whether instructions are fetched from it: stores are then refused.
    pub is_code: bool,
    /// The CR3 value under which it is reached; `None` if every root reaches it.
    pub root: Option<D::Word>,
    /// Eight bytes in which hooks of the host's set bits, between any two instructions.
    pub hooked: Option<Hooked<D::Word>>,
}

/// Eight bytes in which a hook may set bits at any moment, and clears none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hooked<W> {
    /// The offset of the first from the region's base.
    pub at: i64,
    /// The bits that are a hook's to set.
    pub bits: u64,
    /// The value that would be there if only the hook had stored there.
    pub now: W,
    /// Whether the code has read it. Until then, a bit that the hook sets may as well have been set
    /// before.
    pub is_seen: bool,
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

/// The name of the bits that a hook sets.
const HOOKED: &str = "hook's flags";

/// All memory there is.
#[derive(Debug)]
pub struct Memory<D: Domain> {
    /// The regions.
    pub regions: Vec<Region<D>>,
    /// Whether each read of what a guest may write finds something new.
    pub racing: bool,
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
    pub fn new(name: RegionName, base: D::Word, start: i64, cells: Vec<D::Cell>) -> Self {
        let (sharing, cells) = (Sharing::Host, cells.into());
        Self { name, base, start, cells, sharing, is_code: false, root: None, hooked: None }
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

    /// Prepares a load: a hook may have set bits there since the last one. An instruction that
    /// reads and stores does both at the same moment.
    #[inline]
    pub fn look(&mut self, d: &D, place: Place) {
        let region = &mut self.regions[place.region];
        let Some(mut hooked) = region.hooked else { return };
        let first = region.offset(place.index);
        if first >= hooked.at + 8 || first + place.size as i64 <= hooked.at {
            return;
        }
        if hooked.is_seen {
            let set = d.mask(d.anew(HOOKED, 8), hooked.bits);
            let found = region.read(d, hooked.at, 8);
            region.write(d, hooked.at, 8, d.or(found, set));
            hooked.now = d.or(hooked.now, set);
        }
        hooked.is_seen = true;
        region.hooked = Some(hooked);
    }

    /// What a load finds.
    #[inline]
    pub fn load(&self, d: &D, place: Place) -> D::Word {
        let region = &self.regions[place.region];
        if self.racing && region.sharing == Sharing::Guest {
            return d.adversary(place.index, place.size);
        }
        if region.sharing == Sharing::Ring0 {
            return d.any_of("host word", place.size, &[Origin::Stale]);
        }
        d.load(&region.cells[place.index..place.index + place.size])
    }

    /// Stores the low bytes of `value`.
    #[inline]
    pub fn store(&mut self, d: &D, place: Place, value: D::Word) {
        let cells = &mut self.regions[place.region].cells;
        d.store(&mut cells[place.index..place.index + place.size], value);
    }

    /// The region of that name, to change it.
    pub fn region_mut(&mut self, name: RegionName) -> Option<&mut Region<D>> {
        self.regions.iter_mut().find(|region| region.name == name)
    }

    /// The region of that name.
    #[must_use]
    pub fn region(&self, name: RegionName) -> Option<&Region<D>> {
        self.regions.iter().find(|region| region.name == name)
    }
}
