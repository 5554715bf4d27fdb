use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    #[asm(nested)]
    head: Head,
    wide: u64,
    narrow: u32,
    far: [u64; 16],
    last: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    id: u64,
}

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov rax, [rsp + Frame::wide]
        ; lea rax, [rsp]
        ; fxsave OWORD [rsp]
    );
}

fn main() {}
