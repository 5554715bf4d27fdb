//! Physical frames of 4 KiB.
//!
//! Frames that were never handed out are taken off the regions, lowest first; frames that were
//! given back form a list, linked through their first eight bytes.

use core::fmt;

use spin::Mutex;

use crate::regions::Regions;

/// The number of bytes in a frame and in a page.
pub const PAGE: u64 = 4096;

struct Allocator {
    fresh: Regions,
    /// The address of the first frame in the list of those given back, or 0.
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
/// The regions are whole pages of memory that nobody else uses, and they are mapped at their own
/// addresses by the time a frame from them is asked for.
pub(super) unsafe fn init(usable: &Regions) {
    ALLOCATOR.lock().fresh = *usable;
}

/// A frame that only its owner uses. Dropping it gives it back.
///
/// Its content is accessed by [`read`](Self::read) and [`write`](Self::write), which copy through
/// the identity map: a frame may be mapped for a guest, and there must be no Rust reference to what
/// a guest can change.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame(u64);

impl Frame {
    /// Takes a frame, and fills it with zeroes.
    ///
    /// # Errors
    /// If no frame is left.
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

    /// The frame's physical address, which is also its address in the identity map.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0
    }

    /// A pointer to the frame's first byte, in the identity map.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        pointer(self.0)
    }

    /// Copies bytes in, at an offset.
    ///
    /// # Panics
    /// If the bytes do not fit.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range, the frame is this one's own, and no reference to its
        // content exists that `bytes` could be.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes out, from an offset.
    ///
    /// # Panics
    /// If the range is not within the frame.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range, the frame is this one's own, and `bytes` cannot be a
        // reference to its content.
        unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let fits = offset.checked_add(len).is_some_and(|end| end <= PAGE as usize);
        assert!(fits, "{len} bytes at {offset:#x} do not fit in a frame");
        // SAFETY: the offset is within the frame, which is one piece of memory.
        unsafe { self.as_ptr().add(offset) }
    }

    /// Gives up ownership without giving the frame back, until
    /// [`from_address`](Self::from_address).
    pub(super) fn into_address(self) -> u64 {
        let address = self.0;
        core::mem::forget(self);
        address
    }

    /// Takes ownership of a frame that [`into_address`](Self::into_address) has given up.
    ///
    /// # Safety
    /// The address came from `into_address`, and from now on the result is its only user.
    pub(super) unsafe fn from_address(address: u64) -> Self {
        Self(address)
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        let mut allocator = ALLOCATOR.lock();
        // SAFETY: the frame was owned by this value, is mapped at its own address, and is
        // page-aligned.
        unsafe { self.as_ptr().cast::<u64>().write(allocator.free) }
        allocator.free = self.0;
    }
}

/// A pointer to physical memory, in the identity map.
fn pointer(physical: u64) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(physical as usize)
}
