//! A root page table in a paging mode: the host's, and every guest's.

use switcher_gen::arch::PagingMode;
use x86_64::structures::paging::PageTableFlags;

use super::frames::{OutOfFrames, PAGE};
use super::tables::{Flags, LARGE_PAGE, Tree};

/// The tables below a root, and the paging mode for which they are.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) tree: Tree,
    paging: PagingMode,
}

impl Root {
    /// A root that maps nothing.
    pub(super) fn new(paging: PagingMode) -> Result<Self, OutOfFrames> {
        Ok(Self { tree: Tree::new(paging.levels().into())?, paging })
    }

    pub(super) const fn paging(&self) -> PagingMode {
        self.paging
    }

    /// The value for CR3, with PCID 0.
    pub(super) fn cr3(&self) -> u64 {
        self.tree.address()
    }

    /// How the page at an address is mapped; `None` if it is not mapped.
    pub(super) fn flags(&self, virt: u64) -> Option<Flags> {
        self.paging.is_canonical(virt).then_some(())?;
        self.tree.lookup(virt).map(|(_, flags)| Flags::of(flags))
    }

    /// The physical address of a byte; `None` if the address is not mapped.
    pub(super) fn translate(&self, virt: u64) -> Option<u64> {
        self.paging.is_canonical(virt).then_some(())?;
        let (page, flags) = self.tree.lookup(virt)?;
        let size = if flags.contains(PageTableFlags::HUGE_PAGE) { LARGE_PAGE } else { PAGE };
        Some(page + virt % size)
    }
}
