use switcher_macros::AsmLayout;

#[repr(C)]
#[derive(AsmLayout)]
struct TssExtra {
    #[asm(at = 0x10)]
    host_cr3: u64,
    #[asm(at = 16)]
    host_rsp: u64,
}

fn main() {}
