//! What a guest's root must map of the host, and how.
//!
//! With host page-table isolation, a guest's root maps this and nothing else of the host; without,
//! the host's own mappings contain it. Either way a host that maps these ranges, at these
//! addresses, onto the same physical pages as its own root does, has mapped every operand that the
//! switcher uses under a guest's root (spec/hazards.md, row 22).

use alloc::vec::{self, Vec};
use core::slice;

use switcher_gen::layout::{IstTop, PerCpu, Pvcs, Sp0};

use crate::registers::DescriptorTablePointer;

/// The number of bytes in a page.
const PAGE: u64 = 4096;

/// How a range is mapped: always for the supervisor, never writable and executable at once. There
/// is no way to say "for users too".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rights {
    /// The range is code.
    ReadExecute,
    /// The range is data.
    ReadWrite,
    /// The range is a table that the hardware only reads.
    Read,
}

/// What a range holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// The code of the switcher.
    Code,
    /// The per-CPU block: the TSS and `TssExtra`.
    PerCpuBlock,
    /// The end of the stack at sp0: events of CPL 3 and SYSCALL exits put their frames there.
    EntryStack,
    /// The end of the stack with this number, 1 to 7, in the interrupt stack table, with the
    /// [`IstTop`] above it.
    IstStack(u8),
    /// An interrupt descriptor table: the switcher's, or the one that is loaded.
    Idt,
    /// The global descriptor table.
    Gdt,
    /// The page shared with a guest.
    Pvcs,
}

/// A range of addresses that a guest's root must map, for the supervisor alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The first address, which is the same in the host's root.
    pub start: u64,
    /// How many bytes there are, at least 1. Whatever else lies on the same [`pages`](Self::pages)
    /// is mapped with them.
    pub len: u64,
    /// The rights with which the range is mapped.
    pub rights: Rights,
    /// Whether every root that its CPUs ever load, the host's own among them, translates these
    /// addresses alike, so that the entry may be global. Where two roots translate an address
    /// differently, the entry must not be global in either: its translation would outlive the
    /// switch to the other root (spec/hazards.md, row 21). This says nothing about addresses
    /// outside this list, such as the host's pages that only its own root maps: their entries must
    /// not be global.
    pub may_be_global: bool,
    /// What the range holds.
    pub purpose: Purpose,
}

impl Mapping {
    /// The addresses of the pages of 4 KiB that it touches.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.start & !(PAGE - 1);
        let last = (self.start + (self.len - 1)) & !(PAGE - 1);
        (first..=last).step_by(PAGE as usize)
    }

    /// Whether the range has a byte on the page of this address.
    #[must_use]
    pub fn is_on_page_of(&self, address: u64) -> bool {
        self.pages().any(|page| page == address & !(PAGE - 1))
    }
}

/// All ranges that the roots of a CPU's guests must map, except for what belongs to a guest:
/// [`PvcsPage::mapping`](crate::PvcsPage::mapping).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingList(Vec<Mapping>);

impl MappingList {
    /// How many bytes of a stack are listed: one page. Under a guest's root, only frames are put
    /// there.
    pub const STACK: u64 = PAGE;

    /// The least size of each stack of the IST in bytes, without the [`IstTop`]: what the switcher
    /// puts there, and below that what a #MC and a #DB need to return if they interrupt it. What
    /// [`Hooks`](crate::Hooks) need comes on top.
    pub const LEAST_STACK: u64 = IstTop::LEAST as u64;

    /// The least size of the stack at sp0 in bytes: a frame, and below that what a #MC and a #DB
    /// need to return if they interrupt the entry of another event.
    pub const LEAST_ENTRY_STACK: u64 = Sp0::LEAST as u64;

    /// What the hardware of this CPU uses to deliver events as it is set up now: the GDT, the IDT,
    /// the block with its TSS, and the stacks that the TSS names. It is for guests without a
    /// switcher: [`Cpu::mappings`](crate::Cpu::mappings) has the switcher, and its IDT.
    #[must_use]
    pub fn of_hardware(block: &PerCpu, address: u64) -> Self {
        let idt = DescriptorTablePointer::idtr();
        let gdtr = DescriptorTablePointer::gdtr();
        Self::with_tables(block, address, gdtr, idt.base(), u64::from(idt.limit()) + 1)
    }

    /// What [`of_hardware`](Self::of_hardware) lists, with other tables than those that are loaded.
    pub(crate) fn with_tables(
        block: &PerCpu,
        address: u64,
        gdt: DescriptorTablePointer,
        idt: u64,
        idt_len: u64,
    ) -> Self {
        let mut list = Self(Vec::new());
        list.add(address, size_of::<PerCpu>() as u64, Rights::ReadWrite, Purpose::PerCpuBlock);
        list.add(gdt.base(), u64::from(gdt.limit()) + 1, Rights::Read, Purpose::Gdt);
        list.add(idt, idt_len, Rights::Read, Purpose::Idt);
        list.add_stacks(block);
        list
    }

    fn add_stacks(&mut self, block: &PerCpu) {
        let tss = &block.tss;
        let ist = [tss.ist1, tss.ist2, tss.ist3, tss.ist4, tss.ist5, tss.ist6, tss.ist7];
        // A stack that nothing uses has address 0 in the TSS, and is not listed.
        let ist = ist.map(|top| u64::from(top).checked_add(size_of::<IstTop>() as u64));
        let ist = ist.map(|end| end.filter(|end| *end > size_of::<IstTop>() as u64));
        let ist = (1..).map(Purpose::IstStack).zip(ist);
        let sp0 = Some(u64::from(tss.sp0));
        for (purpose, end) in [(Purpose::EntryStack, sp0)].into_iter().chain(ist) {
            if let Some(start) = end.and_then(|end| end.checked_sub(Self::STACK)) {
                self.add(start, Self::STACK, Rights::ReadWrite, purpose);
            }
        }
    }

    /// Adds the code of the switcher, of which one copy serves all CPUs.
    pub(crate) fn with_code(mut self, start: u64, len: u64) -> Self {
        self.add(start, len, Rights::ReadExecute, Purpose::Code);
        self
    }

    fn add(&mut self, start: u64, len: u64, rights: Rights, purpose: Purpose) {
        self.0.push(Mapping { start, len, rights, may_be_global: true, purpose });
    }

    /// The ranges, one after the other.
    pub fn iter(&self) -> slice::Iter<'_, Mapping> {
        self.0.iter()
    }
}

impl IntoIterator for MappingList {
    type Item = Mapping;
    type IntoIter = vec::IntoIter<Mapping>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'l> IntoIterator for &'l MappingList {
    type Item = &'l Mapping;
    type IntoIter = slice::Iter<'l, Mapping>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The mapping of a PVCS at this address. Another guest may have another one there, or none.
pub(crate) const fn pvcs(address: u64) -> Mapping {
    Mapping {
        start: address,
        len: size_of::<Pvcs>() as u64,
        rights: Rights::ReadWrite,
        may_be_global: false,
        purpose: Purpose::Pvcs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(start: u64, len: u64) -> Mapping {
        Mapping { len, ..pvcs(start) }
    }

    #[test]
    fn every_page_with_a_byte_of_it_is_listed_once() {
        let pages = |start, len| mapping(start, len).pages().collect::<Vec<_>>();
        assert_eq!(pages(0x5000, 1), [0x5000]);
        assert_eq!(pages(0x5000, 0x1000), [0x5000]);
        assert_eq!(pages(0x5FFF, 2), [0x5000, 0x6000]);
        assert_eq!(pages(0x5008, 0x2000), [0x5000, 0x6000, 0x7000]);
        // This is the last page of the address space: its end is not an address.
        assert_eq!(pages(0xFFFF_FFFF_FFFF_F000, 0x1000), [0xFFFF_FFFF_FFFF_F000]);
    }

    #[test]
    fn a_page_belongs_to_what_has_a_byte_on_it() {
        let two = mapping(0x5FFF, 2);
        for (address, is_on) in [(0x4FFF, false), (0x5000, true), (0x6FFF, true), (0x7000, false)] {
            assert_eq!(two.is_on_page_of(address), is_on, "{address:#x}");
        }
    }

    #[test]
    fn the_pvcs_is_never_global() {
        assert!(!pvcs(0x1000).may_be_global);
    }

    #[test]
    fn the_stacks_that_the_tss_names_are_listed_by_their_last_page_and_what_is_above() {
        let mut block = PerCpu::default();
        block.tss.sp0 = 0x9000.into();
        block.tss.ist1 = 0x2_0000.into();
        block.tss.ist7 = 0x3_0010.into();
        let mut list = MappingList(Vec::new());
        list.add_stacks(&block);
        let got: Vec<_> = list.iter().map(|m| (m.purpose, m.start, m.len, m.rights)).collect();
        let rw = Rights::ReadWrite;
        assert_eq!(
            got,
            [
                (Purpose::EntryStack, 0x8000, 0x1000, rw),
                (Purpose::IstStack(1), 0x1_F010, 0x1000, rw),
                (Purpose::IstStack(7), 0x2_F020, 0x1000, rw),
            ]
        );
    }
}
