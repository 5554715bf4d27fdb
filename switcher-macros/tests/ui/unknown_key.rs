use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
#[asm(at = 8)]
struct OnStruct {
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct OnField {
    #[asm(offset = 0)]
    field: u64,
}

fn main() {}
