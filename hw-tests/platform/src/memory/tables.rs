//! Page tables: walking, mapping, freeing. Four or five levels, pages of 4 KiB and 2 MiB.
//!
//! A [`Tree`] is a table and everything below it except the pages that it maps. The `x86_64`
//! crate's mapper stops at four levels; its types of entries and tables are used here as well.

use alloc::vec::Vec;
use core::fmt;

use bitflags::bitflags;
use spin::Mutex;
use switcher_gen::arch::PagingMode;
use x86_64::PhysAddr;
use x86_64::structures::paging::page_table::{PageTable, PageTableEntry, PageTableFlags};

use super::frames::{Frame, OutOfFrames, PAGE};

/// The number of bytes that one entry of a level-2 table maps.
pub(super) const LARGE_PAGE: u64 = 2 << 20;

/// The flags of an entry that points to a table. They allow everything, as each leaf decides for
/// itself.
const TABLE: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::USER_ACCESSIBLE);

bitflags! {
    /// What a mapped page can be used for, besides being read.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u8 {
        /// It can be accessed from CPL 3, and then, with SMAP and SMEP, only from there.
        const USER = 1 << 0;
        /// It can be written.
        const WRITE = 1 << 1;
        /// Code in it can run.
        const EXECUTE = 1 << 2;
    }
}

impl Flags {
    fn entry(self) -> PageTableFlags {
        let mut flags = PageTableFlags::PRESENT;
        flags.set(PageTableFlags::USER_ACCESSIBLE, self.contains(Self::USER));
        flags.set(PageTableFlags::WRITABLE, self.contains(Self::WRITE));
        flags.set(PageTableFlags::NO_EXECUTE, !self.contains(Self::EXECUTE));
        flags
    }

    /// The flags that an entry gives.
    pub(super) fn of(entry: PageTableFlags) -> Self {
        let mut flags = Self::empty();
        flags.set(Self::USER, entry.contains(PageTableFlags::USER_ACCESSIBLE));
        flags.set(Self::WRITE, entry.contains(PageTableFlags::WRITABLE));
        flags.set(Self::EXECUTE, !entry.contains(PageTableFlags::NO_EXECUTE));
        flags
    }
}

/// Why a page could not be mapped, unmapped or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// The virtual address is not canonical in the current paging mode.
    NonCanonical,
    /// One of the addresses is not page-aligned.
    Unaligned,
    /// The host's root does not map the page, or does not give these rights.
    NotMappedByHost,
    /// The virtual address is neither in the high host range nor where code of one CPU is placed.
    OutsideHostRanges,
    /// The page is a user page in a host range.
    UserInHostRange,
    /// The page would be writable and executable at once.
    WritableAndExecutable,
    /// A page is mapped at the address already.
    AlreadyMapped,
    /// No page is mapped at the address.
    NotMapped,
    /// No frame is left for a table.
    OutOfFrames,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NonCanonical => "the virtual address is not canonical",
            Self::Unaligned => "the address is not page-aligned",
            Self::NotMappedByHost => "the host's root does not map the page with these rights",
            Self::OutsideHostRanges => {
                "the virtual address is not one of the host's that are mapped page by page"
            }
            Self::UserInHostRange => "a page in the host's range must not be a user page",
            Self::WritableAndExecutable => "a page must not be writable and executable",
            Self::AlreadyMapped => "the page is mapped already",
            Self::NotMapped => "the page is not mapped",
            Self::OutOfFrames => "no frame is left for a page table",
        })
    }
}

impl core::error::Error for MapError {}

impl From<OutOfFrames> for MapError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfFrames
    }
}

/// Guards every change of a table: a [`Tree`] that all roots share is changed through `&self`.
static CHANGES: Mutex<()> = Mutex::new(());

/// A page table of some level and all tables below it that belong to it.
#[derive(Debug)]
pub(super) struct Tree {
    table: u64,
    level: u32,
}

fn index(virt: u64, level: u32) -> usize {
    (virt >> (12 + 9 * (level - 1))) as usize & 0x1FF
}

/// The entry of a table that leads to a virtual address.
///
/// # Safety
/// `table` is the address of a page table, and nothing else refers to its entries.
unsafe fn entry<'a>(table: u64, virt: u64, level: u32) -> &'a mut PageTableEntry {
    let table = core::ptr::with_exposed_provenance_mut::<PageTable>(table as usize);
    // SAFETY: the caller vouches for the table; tables are page-aligned frames in the identity map.
    let table = unsafe { &mut *table };
    &mut table[index(virt, level)]
}

impl Tree {
    /// Makes a tree that maps nothing.
    pub(super) fn new(level: u32) -> Result<Self, OutOfFrames> {
        Ok(Self { table: Frame::new()?.into_address(), level })
    }

    /// The physical address of the tree's table.
    pub(super) fn address(&self) -> u64 {
        self.table
    }

    /// Finds the entry of `level` for an address, makes tables on the way if `create` is set, and
    /// passes the entry to `change`.
    fn at<T>(
        &self,
        virt: u64,
        level: u32,
        create: bool,
        change: impl FnOnce(&mut PageTableEntry) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let guard = CHANGES.lock();
        let mut table = self.table;
        for above in (level + 1..=self.level).rev() {
            // SAFETY: `table` is this tree's, or a table below it; the lock keeps others away.
            let entry = unsafe { entry(table, virt, above) };
            if entry.is_unused() {
                if !create {
                    return Err(MapError::NotMapped);
                }
                entry.set_addr(PhysAddr::new(Frame::new()?.into_address()), TABLE);
            } else if entry.flags().contains(PageTableFlags::HUGE_PAGE) {
                return Err(MapError::AlreadyMapped);
            }
            table = entry.addr().as_u64();
        }
        // SAFETY: `table` is this tree's, or a table below it; the lock keeps others away.
        let result = change(unsafe { entry(table, virt, level) });
        drop(guard);
        result
    }

    fn map_at(
        &self,
        virt: u64,
        phys: u64,
        level: u32,
        flags: PageTableFlags,
    ) -> Result<(), MapError> {
        let size = PAGE << (9 * (level - 1));
        if !virt.is_multiple_of(size) || !phys.is_multiple_of(size) {
            return Err(MapError::Unaligned);
        }
        self.at(virt, level, true, |entry| {
            if !entry.is_unused() {
                return Err(MapError::AlreadyMapped);
            }
            entry.set_addr(PhysAddr::new(phys), flags);
            Ok(())
        })
    }

    /// Maps a page of 2 MiB.
    pub(super) fn map_large(&self, virt: u64, phys: u64, flags: Flags) -> Result<(), MapError> {
        not_both(flags)?;
        self.map_at(virt, phys, 2, flags.entry() | PageTableFlags::HUGE_PAGE)
    }

    /// Maps a page of 4 KiB.
    pub(super) fn map(&self, virt: u64, phys: u64, flags: Flags) -> Result<(), MapError> {
        not_both(flags)?;
        self.map_at(virt, phys, 1, flags.entry())
    }

    /// Changes a page's permissions. The caller flushes.
    pub(super) fn protect(&self, virt: u64, flags: Flags) -> Result<(), MapError> {
        not_both(flags)?;
        self.change_page(virt, |entry| entry.set_flags(flags.entry()))
    }

    /// Unmaps a page and returns its physical address. The caller flushes.
    pub(super) fn unmap(&self, virt: u64) -> Result<u64, MapError> {
        self.change_page(virt, |entry| {
            let phys = entry.addr().as_u64();
            entry.set_unused();
            phys
        })
    }

    /// The page that is mapped at an address: its physical address (the large page's, if it is one)
    /// and the flags of its entry. The levels above restrict nothing: see [`TABLE`].
    pub(super) fn lookup(&self, virt: u64) -> Option<(u64, PageTableFlags)> {
        let _guard = CHANGES.lock();
        let mut table = self.table;
        for level in (1..=self.level).rev() {
            // SAFETY: `table` is this tree's, or a table below it; the lock keeps others away.
            let entry = unsafe { entry(table, virt, level) };
            let flags = entry.flags();
            if entry.is_unused() {
                return None;
            }
            if level == 1 || flags.contains(PageTableFlags::HUGE_PAGE) {
                return Some((entry.addr().as_u64(), flags));
            }
            table = entry.addr().as_u64();
        }
        None
    }

    /// Every page that the tree maps, by address.
    pub(super) fn leaves(&self, paging: PagingMode) -> Vec<Leaf> {
        let _guard = CHANGES.lock();
        let mut found = Vec::new();
        // SAFETY: the table is this tree's; the lock keeps others away.
        unsafe { leaves_below(self.table, self.level, 0, paging, &mut found) }
        found
    }

    fn change_page<T>(
        &self,
        virt: u64,
        change: impl FnOnce(&mut PageTableEntry) -> T,
    ) -> Result<T, MapError> {
        if !virt.is_multiple_of(PAGE) {
            return Err(MapError::Unaligned);
        }
        self.at(virt, 1, false, |entry| match entry.is_unused() {
            true => Err(MapError::NotMapped),
            false => Ok(change(entry)),
        })
    }

    /// Maps the 2 MiB around an address in pages of 4 KiB, if a large page maps them now.
    pub(super) fn split(&self, virt: u64) -> Result<(), MapError> {
        self.at(virt, 2, false, |large| {
            let flags = large.flags();
            if flags.contains(PageTableFlags::HUGE_PAGE) {
                let table = Frame::new()?.into_address();
                for slot in 0..512 {
                    let phys = large.addr() + slot * PAGE;
                    // SAFETY: the table is new, and its frame nobody else's.
                    let page = unsafe { entry(table, slot * PAGE, 1) };
                    page.set_addr(phys, flags - PageTableFlags::HUGE_PAGE);
                }
                large.set_addr(PhysAddr::new(table), TABLE);
            }
            Ok(())
        })
    }

    /// Makes another tree the part of this one at `virt`. That tree keeps its owner.
    pub(super) fn link(&self, virt: u64, part: &Self) -> Result<(), MapError> {
        let table = PhysAddr::new(part.table);
        self.at(virt, part.level + 1, true, |entry| {
            if !entry.is_unused() {
                return Err(MapError::AlreadyMapped);
            }
            entry.set_addr(table, TABLE);
            Ok(())
        })
    }

    /// Takes a linked tree out again, if it is linked there.
    pub(super) fn unlink(&self, virt: u64, part: &Self) {
        // The call fails if nothing was linked at the address, and then there is nothing to take
        // out.
        let _ = self.at(virt, part.level + 1, false, |entry| {
            if entry.addr().as_u64() == part.table {
                entry.set_unused();
            }
            Ok(())
        });
    }
}

/// A page as a tree maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The virtual address of the page.
    pub virt: u64,
    /// The physical address of the page.
    pub phys: u64,
    /// The flags of the page's entry.
    pub flags: Flags,
    /// Whether the translation outlives a change of CR3.
    pub global: bool,
    /// The size of the page in bytes.
    pub size: u64,
}

/// Finds the pages that a table and those below it map.
///
/// # Safety
/// `table` is a page table of that level, and nothing changes it meanwhile.
unsafe fn leaves_below(
    table: u64,
    level: u32,
    base: u64,
    paging: PagingMode,
    found: &mut Vec<Leaf>,
) {
    let size = PAGE << (9 * (level - 1));
    for slot in 0..512 {
        let virt = base + slot * size;
        // SAFETY: `table` is a page table that nothing changes.
        let entry = unsafe { entry(table, virt, level) };
        if entry.is_unused() {
            continue;
        }
        let flags = entry.flags();
        if level == 1 || flags.contains(PageTableFlags::HUGE_PAGE) {
            let (virt, phys) = (paging.canonicalize(virt), entry.addr().as_u64());
            let global = flags.contains(PageTableFlags::GLOBAL);
            found.push(Leaf { virt, phys, flags: Flags::of(flags), global, size });
        } else {
            // SAFETY: an entry that maps no page points to a table of the next level.
            unsafe { leaves_below(entry.addr().as_u64(), level - 1, virt, paging, found) }
        }
    }
}

fn not_both(flags: Flags) -> Result<(), MapError> {
    if flags.contains(Flags::WRITE | Flags::EXECUTE) {
        return Err(MapError::WritableAndExecutable);
    }
    Ok(())
}

impl Drop for Tree {
    fn drop(&mut self) {
        // SAFETY: the tree is its table's only owner, nothing linked is left in it, and no CR3
        // refers to it (AddressSpace's promise).
        unsafe { free(self.table, self.level) }
    }
}

/// Gives back a table and the tables below it.
///
/// # Safety
/// The tables are owned by nobody else, and no CPU walks them.
unsafe fn free(table: u64, level: u32) {
    if level > 1 {
        for slot in 0..512u64 {
            // SAFETY: `table` is a page table that nobody else uses.
            let entry = unsafe { entry(table, slot << (12 + 9 * (level - 1)), level) };
            if !entry.is_unused() && !entry.flags().contains(PageTableFlags::HUGE_PAGE) {
                // SAFETY: above level 1 an entry that is no large page points to a table below.
                unsafe { free(entry.addr().as_u64(), level - 1) }
            }
        }
    }
    // SAFETY: every table came from Frame::into_address, and this was its last use.
    drop(unsafe { Frame::from_address(table) });
}
