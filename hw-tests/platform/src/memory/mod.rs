//! Physical frames, the heap, and page tables.
//!
//! # The virtual address space of the host's root
//! | range | what | who maps it |
//! |---|---|---|
//! | 0 .. 512 GiB | the **identity map**: all memory in use, supervisor; kernel image by section | here, once |
//! | within it, [`percpu::code`] | **holes** after the per-CPU blocks, for code of one CPU | [`map_host`] |
//! | [`HIGH_BASE`] .. + 512 GiB | the **high host range**: the switcher of all CPUs and what else must have an address of its own, supervisor | [`map_host`] |
//!
//! Both ranges have the same addresses under four and five levels.
//!
//! # The virtual address space of a guest's root
//! Of the host, it maps only what the runtime lists, page by page, at the same addresses
//! ([`AddressSpace::new`]): host page-table isolation. All other addresses are the guest's.
//!
//! # The order of the files
//! A file imports only from those above it in this list: `hw-tests/tests/module_order.rs` sees to
//! it.
//!
//! 1. `frames`: pages of physical memory.
//! 2. `heap`: the global allocator.
//! 3. `tables`: page tables.
//! 4. `root`: a root page table in a paging mode.
//! 5. `host`: the host's own root, and how pages get into it.
//! 6. `space`: a guest's root.

mod frames;
mod heap;
mod host;
mod root;
mod space;
mod tables;

use alloc::vec::Vec;
use core::fmt;

use switcher_gen::arch::PagingMode;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;

pub use frames::{Frame, OutOfFrames, PAGE};
pub use heap::{watch, watched};
pub use host::{
    HIGH_BASE, HOST_RANGE, code_start, flush_all, host_address, host_cr3, host_flags, map_host,
    paging, protect_host, unmap_host,
};
pub use space::{AddressSpace, flags_of};
pub use tables::{Flags, Leaf, MapError};

use crate::boot::MAX_CPUS;
use crate::high::{self, Half};
use crate::percpu::{self, Stack};
use crate::regions::{Region, Regions, TooManyRegions};
use crate::{boot, events, segments};
use host::{Host, image};
use root::Root;
use tables::{LARGE_PAGE, Tree};

/// The least size of the identity map, however little memory there is.
const LEAST_IDENTITY: u64 = 512 << 20;
/// The number of bytes for the global allocator.
const HEAP: u64 = 32 << 20;
/// Why memory could not be set up.
#[derive(Debug)]
pub(crate) enum InitError {
    Regions(TooManyRegions),
    NoRoomForHeap,
    Map(MapError),
    /// The root lies above 4 GiB, but five-level paging is entered through 32-bit mode.
    RootAbove4Gib,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regions(error) => write!(f, "{error}"),
            Self::NoRoomForHeap => {
                write!(f, "there are no {} MiB in one piece for the heap", HEAP >> 20)
            }
            Self::Map(error) => write!(f, "{error}"),
            Self::RootAbove4Gib => f.write_str("the page table root is above 4 GiB"),
        }
    }
}

impl From<TooManyRegions> for InitError {
    fn from(error: TooManyRegions) -> Self {
        Self::Regions(error)
    }
}

impl From<MapError> for InitError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

impl From<OutOfFrames> for InitError {
    fn from(error: OutOfFrames) -> Self {
        Self::Map(error.into())
    }
}

/// Sets up frames, the heap and the final page tables, in the paging mode that is asked for, and
/// loads the tables. The identity map reaches at least to `end`. Returns how many bytes of frames
/// are left.
///
/// # Safety
/// Must be called once, on the boot stack, with the boot page tables and the GDT loaded and PCIDs
/// off. `usable` is memory that exists and that nobody else uses. The CPU has the paging mode.
pub(crate) unsafe fn init(
    usable: &Regions,
    end: u64,
    paging: PagingMode,
) -> Result<u64, InitError> {
    let sections = image();
    let mut usable = *usable;
    usable.remove(Region::new(sections[0].0.start, sections[2].0.end))?;
    let heap = usable.take(HEAP).ok_or(InitError::NoRoomForHeap)?;
    let identity =
        usable.end().max(heap.end).max(end).max(LEAST_IDENTITY).next_multiple_of(LARGE_PAGE);

    // SAFETY: the regions are the usable memory without the image and the heap; they are below 4
    // GiB, and those handed out before the identity map is loaded are the lowest, which the boot
    // tables map.
    unsafe { frames::init(&usable) }
    // SAFETY: the heap's region is usable memory, which nobody else is given.
    unsafe { heap::init(heap) }

    let low = identity_map(identity, &sections)?;
    let high = Tree::new(3)?;
    let halves = match paging {
        PagingMode::FourLevel => None,
        PagingMode::FiveLevel => Some(above_47_bits(sections[2].0, heap)?),
    };
    let root = Root::new(paging)?;
    host::link(&root, &low, &high, halves.as_ref())?;
    let cr3 = root.cr3();
    match paging {
        // SAFETY: the new tables identity-map the image, where code, stack, GDT, TSS and IDT are.
        PagingMode::FourLevel => unsafe { load_cr3(cr3) },
        PagingMode::FiveLevel => {
            let cr3 = u32::try_from(cr3).map_err(|_| InitError::RootAbove4Gib)?;
            // SAFETY: the new tables identity-map the image; the caller vouches for the CPU, the
            // GDT and CR4.PCIDE.
            unsafe { boot::switch_to_la57(cr3) }
        }
    }
    events::set_host_cr3(cr3);
    host::set(Host { low, high, halves, root });
    if paging == PagingMode::FiveLevel {
        high::are_mapped();
        // SAFETY: no event comes while the GDT, the TSS, its stacks and the block get their final
        // addresses.
        unsafe { segments::init(0) }
        events::move_up();
        let base = Half::Lower.base();
        // SAFETY: it is the memory that the heap was given, which is mapped at these addresses as
        // well.
        unsafe { heap::move_to(Region::new(heap.start + base, heap.end + base)) }
    }
    Ok(usable.total())
}

/// The pages of the image that stay unmapped, by physical address: the lowest pages of the stacks,
/// and the places for code of one CPU.
fn holes() -> Vec<u64> {
    let code = (0..MAX_CPUS).map(percpu::code);
    (0..MAX_CPUS)
        .flat_map(|cpu| Stack::ALL.map(|stack| stack.guard(cpu)))
        .chain([boot::stack_guard()])
        .chain(boot::started_stack_guards())
        .chain(code.flat_map(|region| (region.start..region.end).step_by(PAGE as usize)))
        .collect()
}

/// Builds the tables for addresses of more than 47 bits: the image's data in both halves, the heap
/// in the lower one.
fn above_47_bits(data: Region, heap: Region) -> Result<[Tree; 2], InitError> {
    let holes = holes();
    let halves = [Tree::new(3)?, Tree::new(3)?];
    for (half, tree) in Half::ALL.into_iter().zip(&halves) {
        for page in
            (data.start..data.end).step_by(PAGE as usize).filter(|page| !holes.contains(page))
        {
            tree.map(half.base() + page, page, Flags::WRITE)?;
        }
    }
    for page in (heap.start..heap.end).step_by(PAGE as usize) {
        halves[Half::Lower as usize].map(Half::Lower.base() + page, page, Flags::WRITE)?;
    }
    Ok(halves)
}

/// Builds the tables of the identity map, up to `end`.
///
/// It has large pages, except around the image, where the sections have their own permissions. Page
/// 0 stays unmapped (null pointers), and so do the lowest pages of the stacks (overflow) and the
/// places for code of one CPU.
fn identity_map(end: u64, sections: &[(Region, Flags)]) -> Result<Tree, InitError> {
    let tree = Tree::new(3)?;
    let image = Region::new(sections[0].0.start, sections[sections.len() - 1].0.end);
    let holes = holes();
    let mut at = 0;
    while at < end {
        if at >= image.end && at.is_multiple_of(LARGE_PAGE) {
            tree.map_large(at, at, Flags::WRITE)?;
            at += LARGE_PAGE;
            continue;
        }
        let section = sections.iter().find(|(region, _)| (region.start..region.end).contains(&at));
        let flags = section.map_or(Flags::WRITE, |&(_, flags)| flags);
        if at != 0 && !holes.contains(&at) {
            tree.map(at, at, flags)?;
        }
        at += PAGE;
    }
    Ok(tree)
}

/// Loads a root.
///
/// # Safety
/// `cr3` names a root whose tables are not freed while it is loaded, and that maps the running
/// code, its stack and whatever else the host uses until another root is loaded. It has a PCID only
/// if CR4.PCIDE is set.
pub unsafe fn load_cr3(cr3: u64) {
    let frame = PhysFrame::containing_address(PhysAddr::new(cr3 & 0x000F_FFFF_FFFF_F000));
    // SAFETY: the caller says that the host can go on under this root, and that CR3 takes this
    // value.
    unsafe { Cr3::write(frame, Cr3Flags::from_bits_truncate(cr3 & 0xFFF)) }
}
