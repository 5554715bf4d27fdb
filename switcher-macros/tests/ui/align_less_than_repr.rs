use switcher_macros::AsmLayout;

#[repr(C, align(128))]
#[derive(AsmLayout)]
#[asm(align = 64)]
struct TssExtra {
    host_cr3: u64,
}

fn main() {}
