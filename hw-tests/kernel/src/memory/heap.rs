//! The global allocator.

use linked_list_allocator::LockedHeap;

use crate::regions::Region;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the allocator its memory.
///
/// # Safety
/// Called once. The region is writable memory at its own address, now and for ever, and nobody
/// else's.
pub(super) unsafe fn init(region: Region) {
    let start = core::ptr::with_exposed_provenance_mut(region.start as usize);
    // SAFETY: the caller's promise is what the allocator asks for.
    unsafe { HEAP.lock().init(start, region.len() as usize) }
}
