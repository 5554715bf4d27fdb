use switcher_macros::AsmLayout;

#[repr(transparent)]
#[derive(AsmLayout)]
struct Transparent {
    field: u64,
}

fn main() {}
