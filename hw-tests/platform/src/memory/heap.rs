//! The global allocator.

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicU64, Ordering};

use linked_list_allocator::LockedHeap;

use crate::regions::Region;
use crate::{exit, gs};

#[global_allocator]
static ALLOCATOR: Watched = Watched;

static HEAP: LockedHeap = LockedHeap::empty();

/// The GS base under which uses of the allocator are counted; 0 if they are not.
static WATCHED: AtomicU64 = AtomicU64::new(0);
/// How often the allocator has been used under that GS base.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// The allocator, which can count how often it is used under some GS base: a host's own allocator
/// may need the host's GS base.
struct Watched;

impl Watched {
    fn note(&self) {
        let watched = WATCHED.load(Ordering::Acquire);
        if watched != 0 && gs::base() == watched {
            SEEN.fetch_add(1, Ordering::AcqRel);
        }
    }
}

// SAFETY: `LockedHeap` keeps the contract, and each call is passed on as it is.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.note();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { HEAP.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        self.note();
        // SAFETY: the caller keeps the contract of `dealloc`, which is the same.
        unsafe { HEAP.dealloc(place, layout) }
    }
}

/// Starts to count allocations and deallocations on a CPU with this GS base.
pub fn watch(gs_base: u64) {
    SEEN.store(0, Ordering::Release);
    WATCHED.store(gs_base, Ordering::Release);
}

/// Ends the counting, and returns how many there were.
pub fn watched() -> u64 {
    WATCHED.store(0, Ordering::Release);
    SEEN.load(Ordering::Acquire)
}

/// Gives the allocator its memory.
///
/// # Safety
/// Must be called once. The region is writable memory at its own address, now and for ever, and
/// nobody else uses it.
pub(super) unsafe fn init(region: Region) {
    let start = core::ptr::with_exposed_provenance_mut(region.start as usize);
    // SAFETY: the caller promises what the allocator asks for.
    unsafe { HEAP.lock().init(start, region.len() as usize) }
}

/// Moves the allocator to other addresses of its memory.
///
/// # Safety
/// The region is the memory that `init` was given, at the addresses that it has from now on.
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
    // SAFETY: the caller vouches for the memory, and no part of it is allocated.
    unsafe { heap.init(start, region.len() as usize) }
}
