//! The struct's users must not fail as well: the constants and the impl stay.

use switcher_macros::AsmLayout;

#[derive(AsmLayout)]
struct NoRepr {
    field: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct User {
    #[asm(nested)]
    inner: NoRepr,
}

const OFFSET: usize = User::inner.then(NoRepr::field).bytes();

fn main() {}
