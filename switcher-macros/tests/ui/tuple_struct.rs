use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Tuple(u64, u32);

fn main() {}
