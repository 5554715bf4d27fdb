use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Generic<const N: usize> {
    field: [u8; N],
}

fn main() {}
