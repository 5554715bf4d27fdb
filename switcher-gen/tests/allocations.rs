//! Emission is allocation-light: a host assembles at load time, from whatever heap it has by then.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use switcher_gen::{Image, Variant};

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

/// The system's allocator, counting the calls of each thread.
struct Counting;

fn count() {
    // A thread that is being torn down has nobody left to ask.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call is handed on to the system's allocator as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; the memory came from `System`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_switcher_takes_five_allocations_and_none_grows() {
    for variant in Variant::representative() {
        let before = ALLOCATIONS.get();
        let image = Image::new(&variant).unwrap();
        let allocations = ALLOCATIONS.get() - before;
        // The code, its labels, its windows, its relocations, its fixups.
        assert_eq!(allocations, 5, "{variant}, {} bytes", image.bytes().len());
    }
}
