use switcher_macros::AsmLayout;

#[repr(C, packed(4))]
#[derive(AsmLayout)]
struct Packed {
    field: u64,
}

const OFFSET: usize = Packed::field.bytes();

fn main() {}
