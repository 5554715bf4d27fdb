use switcher_macros::AsmLayout;

#[repr(align(8))]
#[derive(AsmLayout)]
struct AlignOnly {
    field: u64,
}

fn main() {}
