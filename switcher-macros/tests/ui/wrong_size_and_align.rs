use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
#[asm(size = 0x80, align = 64)]
struct TssExtra {
    host_cr3: u64,
}

fn main() {}
