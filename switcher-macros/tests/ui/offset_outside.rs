//! Not even `unsafe` makes an offset of a field that the struct has no room for.

use switcher_gen::layout::Offset;
use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    low: u32,
    wide: u64,
}

// SAFETY: none; this is what must not compile.
const BEHIND: Offset<Frame, u64> = unsafe { Offset::__derived(100_000) };
// SAFETY: as above.
const HALF_OUTSIDE: Offset<Frame, u64> = unsafe { Offset::__derived(12) };

fn main() {}
