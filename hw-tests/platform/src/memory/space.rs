//! A guest's address space: a root that maps of the host what it must.

use alloc::vec::Vec;

use switcher_runtime::{Mapping, Rights};
use x86_64::registers::control::Cr3;

use super::frames::PAGE;
use super::host::{HIGH_BASE, flush_all, host};
use super::root::Root;
use super::tables::{Flags, Leaf, MapError};
use crate::high::Half;
use crate::{events, exit};

/// A root page table, and whatever is mapped for a guest.
///
/// It owns its tables but not the pages that they map: a [`Frame`](super::Frame) must outlive its
/// mapping. Each change that takes something away flushes all translations of this CPU, so that it
/// takes effect at once.
///
/// Mapping is safe whatever is mapped, because nothing happens before the root is loaded, which is
/// unsafe: see [`load_cr3`](super::load_cr3), and the switcher's contract for the roots that it is
/// given.
#[derive(Debug)]
pub struct AddressSpace {
    root: Root,
}

impl AddressSpace {
    /// A guest's space: of the host, it maps what `list` says, at the same addresses and onto the
    /// same pages as the host's root.
    ///
    /// # Errors
    /// If the host does not map what is listed, or not with such rights, or if no frame is left for
    /// the tables.
    pub fn new(list: impl IntoIterator<Item = Mapping>) -> Result<Self, MapError> {
        let mut space = Self { root: Root::new(host().root.paging())? };
        for mapping in list {
            for page in mapping.pages() {
                space.map_of_host(page, mapping.rights)?;
            }
        }
        Ok(space)
    }

    /// Adds the kernel's own event stubs, for a guest that runs without a switcher.
    ///
    /// # Errors
    /// If no frame is left for the tables.
    pub fn map_stubs(&mut self) -> Result<(), MapError> {
        for (region, rights) in events::mappings() {
            for page in (region.start..region.end).step_by(PAGE as usize) {
                self.map_of_host(page, rights)?;
            }
        }
        Ok(())
    }

    /// Maps a page of the host's as the host's root does, but with these rights at most.
    fn map_of_host(&mut self, page: u64, rights: Rights) -> Result<(), MapError> {
        let root = &host().root;
        let flags = flags_of(rights);
        let phys = root.translate(page).ok_or(MapError::NotMapped)?;
        match root.flags(page) {
            Some(has) if has.contains(flags) => self.root.tree.map(page, phys, flags),
            _ => Err(MapError::NotMappedByHost),
        }
    }

    /// The value for CR3, with PCID 0. The caller may add a PCID, and NOFLUSH, if CR4.PCIDE is set.
    #[must_use]
    pub fn cr3(&self) -> u64 {
        self.root.cr3()
    }

    /// Maps a page of 4 KiB.
    ///
    /// # Errors
    /// If the address is not canonical, not page-aligned or mapped already, if the page would be
    /// writable and executable, or if no frame is left for a table.
    pub fn map(&mut self, virt: u64, phys: u64, flags: Flags) -> Result<(), MapError> {
        self.check(virt)?;
        self.root.tree.map(virt, phys, flags)
    }

    /// Changes the permissions of a page.
    ///
    /// # Errors
    /// As for [`map`](Self::map), and if the page is not mapped.
    pub fn protect(&mut self, virt: u64, flags: Flags) -> Result<(), MapError> {
        self.check(virt)?;
        self.root.tree.protect(virt, flags)?;
        flush_all();
        Ok(())
    }

    /// Unmaps a page and returns the physical address it had.
    ///
    /// # Errors
    /// If the address is not a guest's, or the page is not mapped.
    pub fn unmap(&mut self, virt: u64) -> Result<u64, MapError> {
        self.check(virt)?;
        let phys = self.root.tree.unmap(virt)?;
        flush_all();
        Ok(phys)
    }

    /// Unmaps a page without flushing.
    ///
    /// # Safety
    /// No CPU uses an older translation: each flushes before it loads this root again.
    ///
    /// # Errors
    /// As for [`unmap`](Self::unmap).
    pub unsafe fn unmap_unflushed(&mut self, virt: u64) -> Result<u64, MapError> {
        self.check(virt)?;
        self.root.tree.unmap(virt)
    }

    /// Every page that the space maps.
    #[must_use]
    pub fn leaves(&self) -> Vec<Leaf> {
        self.root.tree.leaves(self.root.paging())
    }

    /// How the page at an address is mapped, the host's pages included; `None` if it is not mapped.
    #[must_use]
    pub fn flags(&self, virt: u64) -> Option<Flags> {
        self.root.flags(virt)
    }

    /// The physical address of a byte, the host's ranges included; `None` if the address is not
    /// mapped.
    #[must_use]
    pub fn translate(&self, virt: u64) -> Option<u64> {
        self.root.translate(virt)
    }

    fn check(&self, virt: u64) -> Result<(), MapError> {
        if !self.root.paging().is_canonical(virt) {
            return Err(MapError::NonCanonical);
        }
        Ok(())
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        if Cr3::read_raw().0.start_address().as_u64() == self.cr3() {
            exit::fatal(format_args!("the address space in use was dropped"));
        }
        let host = host();
        self.root.tree.unlink(0, &host.low);
        self.root.tree.unlink(HIGH_BASE, &host.high);
        for (half, tree) in Half::ALL.into_iter().zip(host.halves.iter().flatten()) {
            self.root.tree.unlink(half.base(), tree);
        }
        flush_all();
    }
}

/// The flags of a page of the host's with these rights: never [`Flags::USER`].
#[must_use]
pub const fn flags_of(rights: Rights) -> Flags {
    match rights {
        Rights::ReadExecute => Flags::EXECUTE,
        Rights::ReadWrite => Flags::WRITE,
        Rights::Read => Flags::empty(),
    }
}
