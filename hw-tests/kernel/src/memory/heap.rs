//! The global allocator.

use linked_list_allocator::LockedHeap;

use crate::exit;
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

/// Moves the allocator to other addresses of its memory.
///
/// # Safety
/// The region is the memory given before, at its addresses from now on.
pub(super) unsafe fn move_to(region: Region) {
    let mut heap = HEAP.lock();
    if heap.used() != 0 {
        exit::fatal(format_args!(
            "{} bytes of the heap are in use before it is moved",
            heap.used()
        ));
    }
    let start = core::ptr::with_exposed_provenance_mut(region.start as usize);
    *heap = linked_list_allocator::Heap::empty();
    // SAFETY: the caller's promise; nobody has a part of it.
    unsafe { heap.init(start, region.len() as usize) }
}
