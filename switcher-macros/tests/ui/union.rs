use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
union Union {
    one: u64,
    other: u32,
}

const OFFSET: usize = Union::one.bytes();

fn main() {}
