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
    low: u16,
    _gap: u16,
    high: u16,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    id: u64,
}

fn emit(a: &mut impl Sink) {
    asm!(a ; mov eax, DWORD [rsp + Frame::low.pair(Frame::high)]);
}

fn main() {
    emit(&mut switcher_gen::asm::CodeBuffer::new());
}
