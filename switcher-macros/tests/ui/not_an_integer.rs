use switcher_macros::AsmLayout;

const SIZE: usize = 8;

#[repr(C)]
#[derive(AsmLayout)]
#[asm(size = SIZE)]
struct Path {
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Text {
    #[asm(at = "0x40")]
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Negative {
    #[asm(at = -8)]
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct TooLarge {
    #[asm(at = 0x1_0000_0000_0000_0000)]
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Missing {
    #[asm(at)]
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Bare {
    #[asm]
    field: u64,
}

fn main() {}
