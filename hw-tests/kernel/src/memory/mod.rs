//! Physical frames, the heap, and page tables.
//!
//! # The virtual address space of the host's root
//! | range | what | who maps it |
//! |---|---|---|
//! | 0 .. 512 GiB | the **identity map**: all memory in use, supervisor; kernel image by section | here, once |
//! | within it, [`percpu::code`] | **holes** behind the per-CPU blocks, for code of one CPU | [`map_host`] |
//! | [`HIGH_BASE`] .. + 512 GiB | the **high host range**: the switcher of all CPUs and what else must have an address of its own, supervisor | [`map_host`] |
//!
//! Both ranges have the same addresses under four and five levels.
//!
//! # The virtual address space of a guest's root
//! Of the host there is nothing but what the runtime lists, page by page, at the same addresses ([`AddressSpace::new`]): host page-table isolation. The rest is the guest's.

mod frames;
mod heap;
mod space;
mod tables;

use alloc::vec::Vec;
use core::fmt;

use spin::Once;
use switcher_gen::arch::PagingMode;
use x86_64::registers::control::{Cr3, Cr3Flags, Cr4, Cr4Flags};
use x86_64::structures::paging::{PageTableFlags, PhysFrame};
use x86_64::{PhysAddr, instructions::tlb};

pub use frames::{Frame, OutOfFrames, PAGE};
pub use heap::{watch, watched};
pub use space::{AddressSpace, flags_of};
pub use tables::Leaf;
pub use tables::{Flags, MapError};

use crate::high::{self, Half};
use crate::percpu::{self, MAX_CPUS, Stack};
use crate::regions::{Region, Regions, TooManyRegions};
use crate::{boot, events, exit, segments};
use tables::Tree;

/// Where the high host range starts: one level-4 entry, 512 GiB, in the canonical upper half of
/// both paging modes.
pub const HIGH_BASE: u64 = 0xFFFF_FE80_0000_0000;
/// The size of each host range: what one level-4 entry maps.
pub const HOST_RANGE: u64 = 1 << 39;
/// The identity map reaches at least this far, however little memory there is.
const LEAST_IDENTITY: u64 = 512 << 20;
/// Bytes for the global allocator.
const HEAP: u64 = 32 << 20;
const LARGE_PAGE: u64 = 2 << 20;

/// The tables that all roots share.
struct Host {
    paging: PagingMode,
    /// The level-3 table of the identity map.
    low: Tree,
    /// The level-3 table of the high host range.
    high: Tree,
    /// Of five-level paging: those of what lies above 47 bits, in the order of [`Half::ALL`].
    halves: Option<[Tree; 2]>,
    /// The host's own root.
    root: AddressSpace,
}

static HOST: Once<Host> = Once::new();

/// Why memory could not be set up.
#[derive(Debug)]
pub(crate) enum InitError {
    Regions(TooManyRegions),
    NoRoomForHeap,
    Map(MapError),
    /// Five-level paging is entered through 32-bit mode.
    RootAbove4Gib,
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regions(error) => write!(f, "{error}"),
            Self::NoRoomForHeap => write!(f, "no {} MiB in one piece for the heap", HEAP >> 20),
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

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// The sections of the image, by address, with their permissions. See kernel.ld.
fn image() -> [(Region, Flags); 3] {
    let start = (&raw const __image_start).addr() as u64;
    let text = (&raw const __text_end).addr() as u64;
    let rodata = (&raw const __rodata_end).addr() as u64;
    let end = (&raw const __image_end).addr() as u64;
    [
        (Region::new(start, text), Flags::EXECUTE),
        (Region::new(text, rodata), Flags::empty()),
        (Region::new(rodata, end), Flags::WRITE),
    ]
}

/// Sets up frames, the heap and the final page tables, in the paging mode asked for, and loads
/// them. The identity map reaches to `end` at least. Returns how many bytes of frames are left.
///
/// # Safety
/// Called once, on the boot stack, with the boot page tables and the GDT in force, PCIDs off, and
/// `usable` memory that is really there and nobody's. The CPU has the paging mode.
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

    // SAFETY: the regions are usable memory less the image and the heap; they are below 4 GiB, and
    // those handed out before the identity map is loaded are the lowest, which the boot tables map.
    unsafe { frames::init(&usable) }
    // SAFETY: the heap's region is usable memory, given to nobody else.
    unsafe { heap::init(heap) }

    let low = identity_map(identity, &sections)?;
    let high = Tree::new(3)?;
    let halves = match paging {
        PagingMode::FourLevel => None,
        PagingMode::FiveLevel => Some(above_47_bits(sections[2].0, heap)?),
    };
    let root = AddressSpace::of_host(paging, &low, &high, halves.as_ref())?;
    let cr3 = root.cr3();
    match paging {
        // SAFETY: the new tables identity-map the image, where code, stack, GDT, TSS and IDT are.
        PagingMode::FourLevel => unsafe { load_cr3(cr3) },
        PagingMode::FiveLevel => {
            let cr3 = u32::try_from(cr3).map_err(|_| InitError::RootAbove4Gib)?;
            // SAFETY: the same, and the caller vouches for the CPU, the GDT and CR4.PCIDE.
            unsafe { boot::switch_to_la57(cr3) }
        }
    }
    events::set_host_cr3(cr3);
    HOST.call_once(|| Host { paging, low, high, halves, root });
    if paging == PagingMode::FiveLevel {
        high::are_mapped();
        // SAFETY: no event comes while the GDT, the TSS, its stacks and the block get their final addresses.
        unsafe { segments::init(0) }
        events::move_up();
        let base = Half::Lower.base();
        // SAFETY: the memory that the heap was given, mapped there as well.
        unsafe { heap::move_to(Region::new(heap.start + base, heap.end + base)) }
    }
    Ok(usable.total())
}

/// What stays unmapped of the image, by physical address: the lowest pages of the stacks and the places for
/// code of one CPU.
fn holes() -> Vec<u64> {
    let code = (0..MAX_CPUS).map(percpu::code);
    (0..MAX_CPUS)
        .flat_map(|cpu| Stack::ALL.map(|stack| stack.guard(cpu)))
        .chain([boot::stack_guard()])
        .chain(boot::started_stack_guards())
        .chain(code.flat_map(|region| (region.start..region.end).step_by(PAGE as usize)))
        .collect()
}

/// Builds the tables of both halves above 47 bits: the image's data in both, the heap in the lower one.
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
/// Large pages, except around the image, where the sections have their own permissions. Page 0
/// stays unmapped (null pointers), and so do the lowest pages of the stacks (overflow) and the
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

fn host() -> &'static Host {
    match HOST.get() {
        Some(host) => host,
        None => exit::fatal(format_args!("memory was used before it was set up")),
    }
}

/// The paging mode in force.
#[must_use]
pub fn paging() -> PagingMode {
    host().paging
}

/// The host's own root, PCID 0.
#[must_use]
pub fn host_cr3() -> u64 {
    host().root.cr3()
}

/// Where code goes: in the high host range, or, under five-level paging, above 47 bits, in this half.
#[must_use]
pub fn code_start(half: Half) -> u64 {
    match paging() {
        PagingMode::FourLevel => HIGH_BASE,
        PagingMode::FiveLevel => half.pages(),
    }
}

/// Maps a page in the high host range, or where code goes, for the supervisor.
///
/// # Errors
/// The address is in neither or not a page's, is mapped already, the flags are writable and
/// executable or for users, or there is no frame left for a table.
pub fn map_host(virt: u64, phys: u64, flags: Flags) -> Result<(), MapError> {
    host_page(virt, flags)?.map(virt, phys, flags)?;
    protect_alias(phys, flags)
}

/// Changes the permissions of a page that [`map_host`] has mapped.
///
/// # Safety
/// Nothing relies on what the page could do before: no code in it runs again after it stops being
/// executable, no reference into it is written through after it stops being writable.
///
/// # Errors
/// As for [`map_host`], and the address is not mapped.
pub unsafe fn protect_host(virt: u64, flags: Flags) -> Result<(), MapError> {
    host_page(virt, flags)?.protect(virt, flags)?;
    protect_alias(host().root.translate(virt).ok_or(MapError::NotMapped)?, flags)?;
    flush_all();
    Ok(())
}

/// Takes the identity map's right to write a page that is executable in the high host range, and
/// gives it back once that is over: no page is writable at one address and executable at another.
fn protect_alias(phys: u64, flags: Flags) -> Result<(), MapError> {
    let host = host();
    let image = image();
    let in_image = (image[0].0.start..image[2].0.end).contains(&phys);
    // The image's sections keep what they have; what the identity map lacks has no alias.
    if in_image || host.root.flags(phys).is_none() {
        return Ok(());
    }
    let alias = if flags.contains(Flags::EXECUTE) { Flags::empty() } else { Flags::WRITE };
    if host.root.flags(phys) != Some(alias) {
        host.low.split(phys)?;
        host.low.protect(phys, alias)?;
        flush_all();
    }
    Ok(())
}

/// How the page at an address is mapped in the host's root; `None` if it is not.
#[must_use]
pub fn host_flags(virt: u64) -> Option<Flags> {
    host().root.flags(virt)
}

/// The physical address of a byte in the host's root; `None` if it is not mapped.
#[must_use]
pub fn host_address(virt: u64) -> Option<u64> {
    host().root.translate(virt)
}

/// Unmaps a page that [`map_host`] has mapped, and returns what it mapped.
///
/// # Safety
/// Nothing uses the page any more.
///
/// # Errors
/// The address is in neither of its ranges, or not mapped.
pub unsafe fn unmap_host(virt: u64) -> Result<u64, MapError> {
    let phys = host_page(virt, Flags::empty())?.unmap(virt)?;
    protect_alias(phys, Flags::WRITE)?;
    flush_all();
    Ok(phys)
}

/// The tables of an address that is the host's to be mapped page by page.
fn host_page(virt: u64, flags: Flags) -> Result<&'static Tree, MapError> {
    let is_within = |region: Region| (region.start..region.end).contains(&virt);
    let is_code = (0..MAX_CPUS).any(|cpu| is_within(percpu::code(cpu)));
    let halves = Half::ALL.into_iter().zip(host().halves.iter().flatten());
    let half = halves.into_iter().find(|(half, _)| virt.wrapping_sub(half.base()) < HOST_RANGE);
    let tree = match (virt.wrapping_sub(HIGH_BASE), half) {
        (..HOST_RANGE, _) => &host().high,
        (_, Some((half, tree))) if is_code || virt >= half.pages() => tree,
        (_, None) if (0..MAX_CPUS).any(|cpu| is_within(percpu::code_near_image(cpu))) => {
            &host().low
        }
        _ => return Err(MapError::GuestRange),
    };
    if flags.contains(Flags::USER) {
        return Err(MapError::UserInHostRange);
    }
    Ok(tree)
}

/// Loads a root.
///
/// # Safety
/// `cr3` is the CR3 of a live [`AddressSpace`], with a PCID only if CR4.PCIDE is set.
pub unsafe fn load_cr3(cr3: u64) {
    let frame = PhysFrame::containing_address(PhysAddr::new(cr3 & 0x000F_FFFF_FFFF_F000));
    // SAFETY: every address space maps the host's ranges as the current one does.
    unsafe { Cr3::write(frame, Cr3Flags::from_bits_truncate(cr3 & 0xFFF)) }
}

/// Flushes every translation of every PCID: SDM vol. 3, 4.10.4.1, a change of CR4.PGE.
pub fn flush_all() {
    for _ in 0..2 {
        // SAFETY: no entry has its global bit set, so PGE decides about no translation.
        unsafe { Cr4::update(|cr4| cr4.toggle(Cr4Flags::PAGE_GLOBAL)) }
    }
    tlb::flush_all();
}

/// The flags of an entry that points to a table: each leaf decides for itself.
const TABLE: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::USER_ACCESSIBLE);
