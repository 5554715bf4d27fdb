//! The information that the boot loader passes: the command line, the memory map and a module.
//!
//! The structures are those of the Multiboot Specification 0.6.96, section 3.3. They lie anywhere
//! in low memory and are copied before anything is allocated.

use core::fmt;
use core::mem::size_of;

use spin::Once;

use crate::boot::LOADER_MAGIC;
use crate::regions::{Region, Regions, TooManyRegions};

/// A copy of the loader's information.
pub(crate) struct BootInfo {
    /// The command line, empty if there is none.
    pub(crate) command_line: &'static str,
    /// The usable memory above 1 MiB, in whole pages, still with the image.
    pub(crate) usable: Regions,
    /// The first module, which the loader has put into memory along with the kernel; empty if the
    /// loader has put none there. Its pages are not usable.
    pub(crate) module: Region,
}

/// Why the loader's information cannot be used.
#[derive(Debug)]
pub(crate) enum BootError {
    /// EAX did not have the loader's magic.
    Magic(u32),
    /// There is no memory map.
    NoMemoryMap,
    /// A structure lies beyond what the boot page tables map.
    OutOfReach(u64),
    /// The command line is not UTF-8, or is longer than `COMMAND_LINE` bytes.
    CommandLine,
    /// The memory map has too many regions.
    Regions(TooManyRegions),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "not started by a multiboot loader (EAX = {magic:#x})"),
            Self::NoMemoryMap => f.write_str("the boot loader passed no memory map"),
            Self::OutOfReach(at) => {
                write!(f, "the boot loader's information at {at:#x} is out of reach")
            }
            Self::CommandLine => f.write_str("the command line is unreadable"),
            Self::Regions(error) => write!(f, "{error}"),
        }
    }
}

/// The part of the information structure that is used here. `flags` says which fields are valid.
#[repr(C)]
#[derive(Clone, Copy)]
struct Information {
    flags: u32,
    mem_lower: u32,
    mem_upper: u32,
    boot_device: u32,
    cmdline: u32,
    mods_count: u32,
    mods_addr: u32,
    syms: [u32; 4],
    mmap_length: u32,
    mmap_addr: u32,
}

const FLAG_CMDLINE: u32 = 1 << 2;
const FLAG_MODULES: u32 = 1 << 3;
const FLAG_MMAP: u32 = 1 << 6;

/// An entry of the memory map. `size` does not count the field itself.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct MapEntry {
    size: u32,
    base: u64,
    length: u64,
    kind: u32,
}

/// An entry of the list of modules.
#[repr(C)]
#[derive(Clone, Copy)]
struct Module {
    start: u32,
    end: u32,
    string: u32,
    reserved: u32,
}

const KIND_USABLE: u32 = 1;
/// The number of bytes that the boot page tables map.
const REACH: u64 = 1 << 30;
/// The end of the memory that the BIOS and the loader use.
const LOW_MEMORY: u64 = 1 << 20;
/// The end of the physical memory that is used: the identity map and every table stay below 4 GiB.
const HIGHEST: u64 = 1 << 32;
/// The number of bytes of the command line that are read at most.
const COMMAND_LINE: usize = 4096;
/// A copy of the command line, and its length. The memory in which the loader has left it is handed
/// out.
static LINE: Once<([u8; COMMAND_LINE], usize)> = Once::new();

/// Reads a structure from physical memory, which the boot page tables map at its own address.
///
/// # Safety
/// Nothing writes there meanwhile, and any bit pattern is a valid `T`.
unsafe fn read_physical<T: Copy>(address: u64) -> Result<T, BootError> {
    let in_reach =
        address.checked_add(size_of::<T>() as u64).is_some_and(|end| address != 0 && end <= REACH);
    if !in_reach {
        return Err(BootError::OutOfReach(address));
    }
    // SAFETY: the range is mapped and not at null; the caller vouches that nothing writes there,
    // and that any bit pattern is a `T`.
    Ok(unsafe { core::ptr::with_exposed_provenance::<T>(address as usize).read_unaligned() })
}

/// Copies the command line and the memory map.
///
/// # Safety
/// `magic` and `information` are what the loader left in EAX and EBX, the boot page tables are
/// loaded, and no memory outside the image has been written since.
pub(crate) unsafe fn read(magic: u32, information: u32) -> Result<BootInfo, BootError> {
    if magic != LOADER_MAGIC {
        return Err(BootError::Magic(magic));
    }
    // SAFETY: the structure is the loader's and nothing has overwritten it; it is plain numbers.
    let header: Information = unsafe { read_physical(u64::from(information)) }?;

    let mut command_line = "";
    if header.flags & FLAG_CMDLINE != 0 {
        // SAFETY: the loader's structure points to it, and nothing has overwritten either.
        let copy = unsafe { copy_string(u64::from(header.cmdline)) }?;
        let (bytes, len) = LINE.call_once(|| copy);
        command_line = core::str::from_utf8(&bytes[..*len]).map_err(|_| BootError::CommandLine)?;
    }

    if header.flags & FLAG_MMAP == 0 {
        return Err(BootError::NoMemoryMap);
    }
    let mut usable = Regions::EMPTY;
    let mut at = u64::from(header.mmap_addr);
    let end = at + u64::from(header.mmap_length);
    while at + size_of::<MapEntry>() as u64 <= end {
        // SAFETY: the loader's structure points to it, and nothing has overwritten either.
        let entry: MapEntry = unsafe { read_physical(at) }?;
        if entry.kind == KIND_USABLE {
            let start = entry.base.max(LOW_MEMORY);
            let end = entry.base.saturating_add(entry.length).min(HIGHEST);
            usable
                .add(Region::new(start, end).shrink_to_pages(4096))
                .map_err(BootError::Regions)?;
        }
        at += u64::from(entry.size) + size_of::<u32>() as u64;
    }

    let mut module = Region::new(0, 0);
    if header.flags & FLAG_MODULES != 0 && header.mods_count > 0 {
        // SAFETY: the loader's structure points to it, and nothing has overwritten either.
        let first: Module = unsafe { read_physical(u64::from(header.mods_addr)) }?;
        module = Region::new(first.start.into(), first.end.into());
        usable.remove(module.grow_to_pages(4096)).map_err(BootError::Regions)?;
    }
    Ok(BootInfo { command_line, usable, module })
}

/// Copies a zero-terminated string, and counts its bytes.
///
/// # Safety
/// Nothing writes to the string meanwhile, as for [`read_physical`].
unsafe fn copy_string(address: u64) -> Result<([u8; COMMAND_LINE], usize), BootError> {
    let mut copy = [0; COMMAND_LINE];
    for index in 0..copy.len() {
        // SAFETY: the caller vouches that nothing writes there, and any byte is a `u8`.
        let byte = unsafe { read_physical::<u8>(address + index as u64) }?;
        if byte == 0 {
            return Ok((copy, index));
        }
        copy[index] = byte;
    }
    Err(BootError::CommandLine)
}
