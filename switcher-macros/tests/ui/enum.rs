use switcher_gen::layout::Layout;
use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
enum Enum {
    Variant,
}

const LAYOUT: &Layout = <Enum as switcher_gen::layout::AsmLayout>::LAYOUT;

fn main() {}
