//! Measures how much of a stack the runtime needs: kernels have a few pages. A thread's stack is
//! painted, and the bytes that have lost their paint are counted.

use std::alloc::{Layout, alloc, dealloc};
use std::convert::Infallible;
use std::hint::black_box;
use std::ptr::NonNull;
use std::thread;

use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{CodeMapping, Hooks, Protection, Reserved, Switcher, Variant};

/// The number of bytes that are painted.
const PAINTED: usize = 128 * 1024;
const PAINT: u64 = 0xA5C3_96E1_5A3C_691E;

/// How many bytes of stack `run` uses, on a stack of its own.
fn depth(run: impl FnOnce() + Send + 'static) -> usize {
    let measure = move || {
        let here = 0_u64;
        // This is below everything that this frame has.
        let top = ((&raw const here).addr() & !0xF) - 1024;
        let bottom = top - PAINTED;
        let word = |at: usize| core::ptr::with_exposed_provenance_mut::<u64>(at);
        for at in (bottom..top).step_by(8).rev() {
            // SAFETY: this thread's stack has 16 times as much, and nothing is at these addresses
            // yet: the frames of what this loop calls are above them.
            unsafe { word(at).write_volatile(PAINT) };
        }
        under(run);
        // SAFETY: the words lie on this thread's stack, as for writing.
        let lost =
            (bottom..top).step_by(8).find(|at| unsafe { word(*at).read_volatile() } != PAINT);
        let lost = lost.unwrap_or(top);
        assert_ne!(lost, bottom, "it needs more than was painted");
        (&raw const here).addr() - lost
    };
    let thread = thread::Builder::new().stack_size(16 * PAINTED).spawn(measure).unwrap();
    thread.join().unwrap()
}

#[inline(never)]
fn under(run: impl FnOnce()) {
    run();
}

/// Two pages that have whatever protection a switcher asks for. Nothing in them is executed.
struct Pages {
    memory: NonNull<u8>,
    sealed: bool,
}

const LAYOUT: Layout = match Layout::from_size_align(8192, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("two pages are a layout"),
};

impl Pages {
    fn new() -> Self {
        // SAFETY: the layout's size is not zero.
        Self { memory: NonNull::new(unsafe { alloc(LAYOUT) }).unwrap(), sealed: false }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.memory.as_ptr(), LAYOUT) };
    }
}

// SAFETY: the memory is two pages of the test's own; nothing here is ever entered or executed.
unsafe impl CodeMapping for Pages {
    type Error = Infallible;

    fn reserve(&mut self, len: usize) -> Result<Reserved, Infallible> {
        assert!(len <= LAYOUT.size(), "two pages are not enough");
        Ok(Reserved::in_place(self.memory))
    }

    unsafe fn seal(&mut self, _: Reserved, _: usize) -> Result<(), Infallible> {
        self.sealed = true;
        Ok(())
    }

    unsafe fn release(&mut self, _: NonNull<u8>, _: usize) {}

    fn protection(&self, _: NonNull<u8>) -> Option<Protection> {
        Some(Protection { writable: !self.sealed, executable: self.sealed, user: false })
    }
}

unsafe extern "C" fn hook(_: *mut PtRegs) {}
unsafe extern "C" fn stop(_: *mut PtRegs) -> ! {
    std::process::abort()
}

const HOOKS: Hooks =
    Hooks { nmi: hook, machine_check: hook, fatal: stop, exception: None, returns: None };

#[test]
fn what_is_measured_is_what_is_used() {
    let with = |len: usize| {
        depth(move || {
            // This is more than what the frames around it may differ in.
            let array = [len as u8; 8192];
            black_box(&array);
        })
    };
    let found = with(1);
    assert!((8192..16 * 1024).contains(&found), "{found}");
    assert!(depth(|| ()) < 4096);
}

/// An optimised build, such as a kernel is, needs a page at most; any other needs less than the 16
/// KiB of a kernel's stack.
#[test]
fn assembling_needs_a_page_of_stack() {
    let limit = if cfg!(debug_assertions) { 12 * 1024 } else { 4096 };
    for variant in ["intel-la57-ibt-pcid-pku-percpu-current", "intel-4level+ibrs+rsb+bhb+verw"] {
        let variant: Variant = variant.parse().unwrap();
        let needed = depth(move || {
            // The result does not matter here, but looking up the proof also uses this stack.
            black_box(Switcher::assemble(&variant, &HOOKS, &mut Pages::new()).is_ok());
            let mut pages = Pages::new();
            let switcher = Switcher::assemble_unproved(&variant, &HOOKS, &mut pages);
            assert!(black_box(&switcher).is_ok());
        });
        println!("{variant}: {needed} bytes");
        assert!(needed < limit, "{variant}: {needed} bytes");
    }
}
