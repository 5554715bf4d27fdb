//! A GDT of the runtime's own, and the block's TSS, for as long as a guest runs: for hosts whose
//! own GDT has entries that no guest may have, or whose own TSS is not in a per-CPU block.
//!
//! They are loaded right before the switcher's IDT and given back right after the host's. Between
//! LTR and LIDT, an NMI or a machine check comes to the host's own handler on a stack of the
//! block's TSS.

use alloc::boxed::Box;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ptr::NonNull;

use switcher_gen::arch::{NonCanonical, PagingMode, Selectors};

use crate::registers::{self, DescriptorTablePointer};
use crate::state::descriptor;

/// The GDT and the TSS that a CPU has while a guest runs.
#[derive(Clone, Copy, Debug)]
pub enum Tables<'a> {
    /// The host's, as they are loaded whenever a guest is entered: TR's TSS is the per-CPU block's.
    Hosts,
    /// The block's TSS, and a GDT that [`prepare`](crate::Switcher::prepare) makes. LDTR is null
    /// meanwhile. The host gets its own back: GDTR, TR and LDTR.
    Own {
        /// Where the host's GDT can be written: its address, or that of another mapping of the same
        /// memory, if the host's own is read-only. LTR writes there.
        writable: NonNull<u64>,
        /// The selectors of entries that the GDT shall have besides those of the variant: of what
        /// the host's handlers of NMIs and machine checks use, and of what guests may load.
        keep: &'a [u16],
    },
}

/// Why a GDT cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TablesError {
    /// The host's GDT has no such entry, or an LDT would have it.
    #[error("the host's GDT has no entry {selector:#x} that could be kept: leave it out")]
    NoEntry {
        /// The selector that is to be kept.
        selector: u16,
    },
    /// TR's descriptor takes two entries, one of which is to hold something else.
    #[error(
        "TR is {tr:#x}, whose descriptor lies where {selector:#x} is to be: load TR with a \
         descriptor that is nobody else's"
    )]
    Taken {
        /// The selector in TR.
        tr: u16,
        /// The selector that needs the same entry.
        selector: u16,
    },
    /// Where the GDT is said to be writable is something else.
    #[error("at {writable:#x} is not the GDT that GDTR names: say where that can be written")]
    OtherTable {
        /// The address.
        writable: u64,
    },
    /// The address of a table is not canonical: LGDT would fault.
    #[error("a GDT cannot be loaded: {0}")]
    Address(#[from] NonCanonical),
}

/// The number of entries of a page.
const ENTRIES: usize = 512;
/// The bit of a TSS descriptor's type that says that a CPU has loaded it (Intel SDM vol. 3, 8.2.2).
const BUSY: u64 = 1 << 41;

/// A GDT is a page, so that a guest's root that maps it shows nothing else of the host.
#[derive(Debug)]
#[repr(C, align(4096))]
struct Gdt(UnsafeCell<[u64; ENTRIES]>);

const _: () = assert!(size_of::<Gdt>() == 4096, "a GDT is one page");

/// A GDT with the block's TSS, and what it takes to give the host its own back.
#[derive(Debug)]
pub(crate) struct OwnTables {
    gdt: Box<Gdt>,
    /// How GDTR names it.
    pointer: DescriptorTablePointer,
    /// The host's GDT, where it can be written.
    writable: DescriptorTablePointer,
    tr: u16,
}

/// The host's tables, while the runtime's are loaded.
#[derive(Debug)]
#[must_use = "the host's tables are to be loaded again"]
pub(crate) struct HostTables {
    gdtr: DescriptorTablePointer,
    ldtr: u16,
}

impl OwnTables {
    /// Makes a GDT with the entries that the host's GDT has for the selectors and for `keep`, and
    /// with a descriptor of the TSS at `tss` where TR's is.
    ///
    /// # Safety
    /// Must be called at CPL 0. At `writable` is a GDT as large as the one that is loaded.
    pub(crate) unsafe fn new(
        selectors: Selectors,
        tss: u64,
        (writable, keep): (NonNull<u64>, &[u16]),
        paging: PagingMode,
    ) -> Result<Self, TablesError> {
        let (host, tr) = (DescriptorTablePointer::gdtr(), registers::tr());
        let needed = [
            selectors.kernel_cs(),
            selectors.kernel_ds(),
            selectors.user32_cs(),
            selectors.user_ds(),
            selectors.user_cs(),
        ];
        let wanted = needed.into_iter().chain(keep.iter().copied());
        let entries = wanted.map(|selector| (selector, descriptor(host, selector)));
        let mut gdt = Box::new(Gdt(UnsafeCell::new([0; ENTRIES])));
        let last = fill(gdt.0.get_mut(), entries, tr, tss)?;
        let address = (&raw const *gdt).addr() as u64;
        let pointer = DescriptorTablePointer::new(address, last, paging)?;
        let at = writable.as_ptr().addr() as u64;
        let writable = DescriptorTablePointer::new(at, host.limit(), paging)?;
        if descriptor(writable, tr) != descriptor(host, tr) {
            return Err(TablesError::OtherTable { writable: at });
        }
        Ok(Self { gdt, pointer, writable, tr })
    }

    /// How GDTR names the GDT.
    pub(crate) const fn gdtr(&self) -> DescriptorTablePointer {
        self.pointer
    }

    /// Loads the GDT and the TSS. LDTR is null then.
    ///
    /// # Safety
    /// Must be called at CPL 0 with interrupts off, on the CPU on which this was made. The stacks
    /// of the TSS are as [`prepare`](crate::Switcher::prepare) asks.
    pub(crate) unsafe fn load(&self) -> HostTables {
        let host = HostTables { gdtr: DescriptorTablePointer::gdtr(), ldtr: registers::ldtr() };
        // SAFETY: the box is this CPU's alone, which has not loaded the table now.
        unsafe { make_available(self.gdt.0.get().cast(), self.tr) };
        // SAFETY: CPL 0; the table is in a box of this value, and has the descriptors of the
        // selectors that ring 0 uses, as the host's GDT has them.
        unsafe { self.pointer.load_gdt() };
        // SAFETY: CPL 0; the descriptor is one of the block's TSS, marked as available just now. No
        // selector in use is of an LDT: `check_running` has looked at the data segments.
        unsafe { load_tr_and_ldtr(self.tr, 0) };
        host
    }

    /// Loads the host's tables again.
    ///
    /// # Safety
    /// Must be called at CPL 0 with interrupts off, on the CPU on which `load` has returned `host`.
    pub(crate) unsafe fn restore(&self, host: HostTables) {
        let table = core::ptr::with_exposed_provenance_mut::<u64>(self.writable.base() as usize);
        // SAFETY: the host has said that its GDT is there, and can be written; no CPU has loaded
        // this descriptor now, as it is this CPU's.
        unsafe { make_available(table, self.tr) };
        // SAFETY: CPL 0; it is the host's own table, at an address where it can be written.
        unsafe { self.writable.load_gdt() };
        // SAFETY: CPL 0; the host itself had loaded both.
        unsafe { load_tr_and_ldtr(self.tr, host.ldtr) };
        // SAFETY: CPL 0; the host itself had loaded this.
        unsafe { host.gdtr.load_gdt() };
    }
}

/// Fills a GDT. Returns its limit.
fn fill(
    gdt: &mut [u64; ENTRIES],
    entries: impl Iterator<Item = (u16, u64)>,
    tr: u16,
    tss: u64,
) -> Result<u16, TablesError> {
    /// A TSS of 104 bytes that is present and available, of DPL 0.
    const TSS: u64 = 103 | 0x89 << 40;
    const TABLE_INDICATOR: u16 = 1 << 2;
    let first = usize::from(tr >> 3);
    let mut last = first + 1;
    for (selector, entry) in entries {
        let index = usize::from(selector >> 3);
        if index >= ENTRIES || selector & TABLE_INDICATOR != 0 || entry == 0 {
            return Err(TablesError::NoEntry { selector });
        }
        if index == first || index == first + 1 {
            return Err(TablesError::Taken { tr, selector });
        }
        gdt[index] = entry;
        last = last.max(index);
    }
    // Intel SDM vol. 3, figure 8-4.
    let low = TSS | (tss & 0xFF_FFFF) << 16 | (tss >> 24 & 0xFF) << 56;
    match gdt.get_mut(first..first + 2) {
        Some(place) if first > 0 => place.copy_from_slice(&[low, tss >> 32]),
        _ => return Err(TablesError::NoEntry { selector: tr }),
    }
    Ok((8 * last + 7) as u16)
}

/// Marks the TSS of a selector as one that no CPU has loaded, without which LTR faults.
///
/// # Safety
/// `table` is a GDT that has an entry for `tr`, and can be written.
unsafe fn make_available(table: *mut u64, tr: u16) {
    // SAFETY: the caller vouches for the entry.
    let entry = unsafe { table.byte_add(usize::from(tr & !0b111)) };
    // SAFETY: likewise. Descriptors may be unaligned.
    let content = unsafe { entry.read_unaligned() };
    // SAFETY: the caller says that the table can be written.
    unsafe { entry.write_unaligned(content & !BUSY) };
}

/// Loads TR and LDTR.
///
/// # Safety
/// Must be called at CPL 0; the GDT that is loaded has an available TSS for `tr`, and can be
/// written; `ldtr` is null, or names an LDT there. No selector in use is of another LDT.
unsafe fn load_tr_and_ldtr(tr: u16, ldtr: u16) {
    // SAFETY: the caller vouches for the descriptors. The instructions read the GDT, and write to
    // it, so the options let no memory access move across them.
    unsafe {
        asm!(
            "ltr {0:x}",
            "lldt {1:x}",
            in(reg) tr,
            in(reg) ldtr,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const CODE: u64 = 0x00AF_9B00_0000_FFFF;

    fn filled(entries: &[(u16, u64)], tr: u16) -> (Result<u16, TablesError>, Vec<(usize, u64)>) {
        let mut gdt = [0; ENTRIES];
        let limit = fill(&mut gdt, entries.iter().copied(), tr, 0x1234_5678_9ABC_DEF0);
        let used = gdt.into_iter().enumerate().filter(|(_, entry)| *entry != 0);
        (limit, used.collect())
    }

    #[test]
    fn the_gdt_has_what_is_wanted_and_the_tss_and_no_more() {
        let (limit, used) = filled(&[(0x10, CODE), (0x7B, CODE | 1)], 0x40);
        assert_eq!(limit, Ok(0x7F));
        // The base in four parts, the limit 103, and the type of an available TSS.
        let tss = [(8, 0x9A00_89BC_DEF0_0067), (9, 0x1234_5678)];
        assert_eq!(used, [(2, CODE), tss[0], tss[1], (15, CODE | 1)]);
        // The TSS may be the last.
        assert_eq!(filled(&[(0x10, CODE)], 0x40).0, Ok(0x4F));
    }

    #[test]
    fn what_is_not_there_or_taken_is_refused_by_its_selector() {
        let refused = |entries: &[(u16, u64)], tr| filled(entries, tr).0.unwrap_err();
        for selector in [0x10, 0x14] {
            let entry = if selector == 0x10 { 0 } else { CODE };
            assert_eq!(refused(&[(selector, entry)], 0x40), TablesError::NoEntry { selector });
        }
        for selector in [0x40, 0x48, 0x4B] {
            let taken = TablesError::Taken { tr: 0x40, selector };
            assert_eq!(refused(&[(selector, CODE)], 0x40), taken);
        }
        for tr in [0, 3, 0xFF8] {
            assert_eq!(refused(&[], tr), TablesError::NoEntry { selector: tr });
        }
    }

    #[test]
    fn a_busy_tss_is_made_available_and_nothing_else_changes() {
        let mut gdt = [u64::MAX; 4];
        // SAFETY: the table has an entry for the selector.
        unsafe { make_available(gdt.as_mut_ptr(), 0x13) };
        assert_eq!(gdt, [u64::MAX, u64::MAX, !(1 << 41), u64::MAX]);
    }
}
