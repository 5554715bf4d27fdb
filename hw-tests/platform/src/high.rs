//! Addresses of more than 47 bits: under five-level paging, the kernel's own state lies there.
//!
//! A host may have its memory at any address of its paging mode, and code that truncates an address
//! to 48 bits fails here (spec/hazards.md, row 52). The image itself is linked at low addresses, as
//! it boots without paging. Its data and the heap are mapped a second time, at high addresses in
//! both halves; a CPU is given addresses of the data only (GDT, IDT, TSS, stacks, per-CPU blocks).
//! Nothing is mapped at what remains of such an address when it is truncated.

use core::sync::atomic::{AtomicBool, Ordering};

use switcher_gen::arch::PagingMode;

/// One of the two halves of the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Below 2^56: bit 47 clear, bits 48, 50, 53 and 55 set.
    Lower,
    /// From 2^64 - 2^56 on: bit 47 set, bits 49 to 51 and 53 to 55 clear.
    Upper,
}

impl Half {
    /// Both halves.
    pub const ALL: [Self; 2] = [Self::Lower, Self::Upper];

    /// The address that physical address 0 would have in this half.
    #[must_use]
    pub const fn base(self) -> u64 {
        match self {
            Self::Lower => 0x00A5_2000_0000_0000,
            Self::Upper => 0xFF10_A000_0000_0000,
        }
    }
}

impl Half {
    /// The address from which on pages are mapped one by one: for code.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.base() + (1 << 38)
    }
}

/// Whether five-level paging is on, with tables that map these addresses.
static IN_FORCE: AtomicBool = AtomicBool::new(false);

/// Makes [`of`] return high addresses from now on: five-level tables that map them are loaded.
#[cfg_attr(test, expect(dead_code, reason = "tests load no tables"))]
pub(crate) fn are_mapped() {
    IN_FORCE.store(true, Ordering::Release);
}

/// The current paging mode.
pub(crate) fn paging() -> PagingMode {
    if IN_FORCE.load(Ordering::Acquire) { PagingMode::FiveLevel } else { PagingMode::FourLevel }
}

/// The address of an object in the image's data or in the heap, by its physical address. Under
/// four-level paging, the two are the same.
#[must_use]
pub fn of(physical: u64, half: Half) -> u64 {
    match paging() {
        PagingMode::FourLevel => physical,
        PagingMode::FiveLevel => physical + half.base(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_cut_is_another_one_and_nothings() {
        for half in Half::ALL {
            for offset in [0, 0x10_0000, half.pages() - half.base()] {
                let address = half.base() + offset;
                assert!(PagingMode::FiveLevel.is_canonical(address));
                assert!(!PagingMode::FourLevel.is_canonical(address));
                let cut = PagingMode::FourLevel.canonicalize(address);
                assert_ne!(cut, address);
                // The address is beyond the identity map, and not in the range at the end.
                assert!((1 << 39..0xFFFF_FE80_0000_0000).contains(&cut), "{cut:#x}");
            }
        }
    }
}
