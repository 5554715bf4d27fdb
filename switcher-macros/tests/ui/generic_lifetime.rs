use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Generic<'a> {
    field: &'a u64,
}

fn main() {}
