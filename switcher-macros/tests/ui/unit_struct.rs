use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Unit;

fn main() {}
