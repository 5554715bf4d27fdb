use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct OneAttribute {
    #[asm(at = 0, at = 8)]
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct TwoAttributes {
    #[asm(at = 0)]
    #[asm(at = 0)]
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Nested {
    #[asm(nested, nested)]
    field: OneAttribute,
}

#[repr(C)]
#[derive(AsmLayout)]
#[asm(size = 8)]
#[asm(align = 8, size = 8)]
struct OnStruct {
    field: u64,
}

fn main() {}
