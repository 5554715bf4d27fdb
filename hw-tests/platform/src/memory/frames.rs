//! Physical frames of 4 KiB.
//!
//! Frames never handed out are counted off the regions, lowest first; frames given back form a list
//! threaded through their first eight bytes.

use core::fmt;

use spin::Mutex;

use crate::regions::Regions;

/// Bytes in a frame and in a page.
pub const PAGE: u64 = 4096;

struct Allocator {
    fresh: Regions,
    /// The first frame of the list of those given back, or 0.
    free: u64,
}

static ALLOCATOR: Mutex<Allocator> = Mutex::new(Allocator { fresh: Regions::EMPTY, free: 0 });

/// There is no frame left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfFrames;

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no frame of physical memory is left")
    }
}

impl core::error::Error for OutOfFrames {}

/// Gives the allocator its memory.
///
/// # Safety
/// The regions are whole pages of memory, mapped at their own addresses by the time a frame from
/// them is asked for, and nobody else's.
pub(super) unsafe fn init(usable: &Regions) {
    ALLOCATOR.lock().fresh = *usable;
}

/// A frame that its owner alone uses; dropping it gives it back.
///
/// Its content is reached by [`read`](Self::read) and [`write`](Self::write), which copy through
/// the identity map: a frame may be mapped for a guest, and what a guest can change cannot be
/// behind a Rust reference.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(u64);

impl Frame {
    /// A frame of zeroes.
    ///
    /// # Errors
    /// None is left.
    pub fn new() -> Result<Self, OutOfFrames> {
        let mut allocator = ALLOCATOR.lock();
        let address = match allocator.free {
            0 => allocator.fresh.take(PAGE).ok_or(OutOfFrames)?.start,
            first => {
                // SAFETY: a frame on the list is nobody's, is mapped at its own address, and has
                // the next one's address in its first eight bytes.
                allocator.free = unsafe { pointer(first).cast::<u64>().read() };
                first
            }
        };
        // SAFETY: the frame has just stopped being anybody's, and is mapped at its own address.
        unsafe { pointer(address).write_bytes(0, PAGE as usize) }
        Ok(Self(address))
    }

    /// Its physical address, which is also where the identity map has it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0
    }

    /// Its first byte, through the identity map.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        pointer(self.0)
    }

    /// Copies bytes in, at an offset.
    ///
    /// # Panics
    /// They do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range, the frame is this one's own, and no reference to its
        // content exists that `bytes` could be.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes out, from an offset.
    ///
    /// # Panics
    /// There are not as many.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: as for writing.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let fits = offset.checked_add(len).is_some_and(|end| end <= PAGE as usize);
        assert!(fits, "{len} bytes at {offset:#x} do not fit in a frame");
        // SAFETY: the offset is within the frame, which is one piece of memory.
        unsafe { self.as_ptr().add(offset) }
    }

    /// Leaves the frame to whoever has its address, for [`from_address`](Self::from_address).
    pub(super) fn into_address(self) -> u64 {
        let address = self.0;
        core::mem::forget(self);
        address
    }

    /// Takes a frame back from [`into_address`](Self::into_address).
    ///
    /// # Safety
    /// The address came from there, and from now on this is its only user.
    pub(super) unsafe fn from_address(address: u64) -> Self {
        Self(address)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut allocator = ALLOCATOR.lock();
        // SAFETY: the frame was this one's own, is mapped at its own address, and is page-aligned.
        unsafe { self.as_ptr().cast::<u64>().write(allocator.free) }
        allocator.free = self.0;
    }
}

/// The identity map's address of physical memory.
fn pointer(physical: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(physical as usize)
}
