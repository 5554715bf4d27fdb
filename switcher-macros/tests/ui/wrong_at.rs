use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct TssExtra {
    host_cr3: u64,
    #[asm(at = 0x40)]
    switch_flags: u32,
    #[asm(at = 12)]
    _reserved: u32,
}

fn main() {}
