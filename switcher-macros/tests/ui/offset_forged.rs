//! Only the derive makes offsets, and only an integer has a lower part.

use switcher_gen::layout::{Half, Narrow, Offset};
use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    wide: u64,
    head: Head,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    low: u32,
    high: u32,
}

const FORGED: Offset<Frame, u64> = Offset::<Frame, u64>::__derived(3);

impl Narrow<u8> for Head {}

impl Half for Head {}

fn main() {}
