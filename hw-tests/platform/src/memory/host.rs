//! The host's own root: its ranges, and how pages are mapped in them.

use spin::Once;
use switcher_gen::arch::PagingMode;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr4, Cr4Flags};

use super::root::Root;
use super::tables::{Flags, MapError, Tree};
use crate::boot::MAX_CPUS;
use crate::high::Half;
use crate::regions::Region;
use crate::{exit, percpu};

/// Where the high host range starts: one level-4 entry, 512 GiB, in the canonical upper half of
/// both paging modes.
pub const HIGH_BASE: u64 = 0xFFFF_FE80_0000_0000;
/// The size of each host range: what one level-4 entry maps.
pub const HOST_RANGE: u64 = 1 << 39;
/// The tables that all roots share.
pub(super) struct Host {
    /// The level-3 table of the identity map.
    pub(super) low: Tree,
    /// The level-3 table of the high host range.
    pub(super) high: Tree,
    /// The tables for addresses of more than 47 bits, in the order of [`Half::ALL`]; only under
    /// five-level paging.
    pub(super) halves: Option<[Tree; 2]>,
    /// The host's own root.
    pub(super) root: Root,
}

static HOST: Once<Host> = Once::new();

unsafe extern "C" {
    static __image_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __image_end: u8;
}

/// The sections of the image, by address, with their permissions. See image.ld.
pub(super) fn image() -> [(Region, Flags); 3] {
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

/// Stores the tables, once.
pub(super) fn set(host: Host) {
    HOST.call_once(|| host);
}

/// Links the tables of the host's ranges into its root.
pub(super) fn link(
    root: &Root,
    low: &Tree,
    high: &Tree,
    halves: Option<&[Tree; 2]>,
) -> Result<(), MapError> {
    root.tree.link(0, low)?;
    root.tree.link(HIGH_BASE, high)?;
    for (half, tree) in Half::ALL.into_iter().zip(halves.into_iter().flatten()) {
        root.tree.link(half.base(), tree)?;
    }
    Ok(())
}

pub(super) fn host() -> &'static Host {
    match HOST.get() {
        Some(host) => host,
        None => exit::fatal(format_args!("memory was used before it was set up")),
    }
}

/// The current paging mode.
#[must_use]
pub fn paging() -> PagingMode {
    host().root.paging()
}

/// CR3 of the host's own root, with PCID 0.
#[must_use]
pub fn host_cr3() -> u64 {
    host().root.cr3()
}

/// The address at which code is placed: in the high host range, or, under five-level paging, at an
/// address of more than 47 bits in this half.
#[must_use]
pub fn code_start(half: Half) -> u64 {
    match paging() {
        PagingMode::FourLevel => HIGH_BASE,
        PagingMode::FiveLevel => half.pages(),
    }
}

/// Maps a page in the high host range, or where code is placed, for the supervisor.
///
/// # Errors
/// If the address is in neither range, is not page-aligned or is mapped already, if the flags are
/// writable and executable or for users, or if no frame is left for a table.
pub fn map_host(virt: u64, phys: u64, flags: Flags) -> Result<(), MapError> {
    host_page(virt, flags)?.map(virt, phys, flags)?;
    protect_alias(phys, flags)
}

/// Changes the permissions of a page that [`map_host`] has mapped.
///
/// # Safety
/// Nothing relies on the former permissions: no code in the page runs again after it stops being
/// executable, and no reference into it is written through after it stops being writable.
///
/// # Errors
/// As for [`map_host`], and if the address is not mapped.
pub unsafe fn protect_host(virt: u64, flags: Flags) -> Result<(), MapError> {
    host_page(virt, flags)?.protect(virt, flags)?;
    protect_alias(host().root.translate(virt).ok_or(MapError::NotMapped)?, flags)?;
    flush_all();
    Ok(())
}

/// Makes a page read-only in the identity map while it is executable in the high host range, and
/// writable again afterwards: no page is writable at one address and executable at another.
fn protect_alias(phys: u64, flags: Flags) -> Result<(), MapError> {
    let host = host();
    let image = image();
    let in_image = (image[0].0.start..image[2].0.end).contains(&phys);
    // The image's sections keep their permissions; a page that is not in the identity map has no
    // alias.
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
/// If the address is in neither range, or is not mapped.
pub unsafe fn unmap_host(virt: u64) -> Result<u64, MapError> {
    let phys = host_page(virt, Flags::empty())?.unmap(virt)?;
    protect_alias(phys, Flags::WRITE)?;
    flush_all();
    Ok(phys)
}

/// The tables of an address at which the host maps pages one by one.
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
        _ => return Err(MapError::OutsideHostRanges),
    };
    if flags.contains(Flags::USER) {
        return Err(MapError::UserInHostRange);
    }
    Ok(tree)
}

/// Flushes every translation of every PCID, by a change of CR4.PGE (SDM vol. 3, 4.10.4.1).
pub fn flush_all() {
    for _ in 0..2 {
        // SAFETY: no entry has its global bit set, so PGE affects no translation.
        unsafe { Cr4::update(|cr4| cr4.toggle(Cr4Flags::PAGE_GLOBAL)) }
    }
    tlb::flush_all();
}
