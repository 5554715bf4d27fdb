use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct Generic<T> {
    field: T,
}

const OFFSET: usize = Generic::<u64>::field.bytes();

fn main() {}
