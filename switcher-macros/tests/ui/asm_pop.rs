use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    rip: u64,
    cs: u64,
    half: u32,
    word: u16,
}

fn emit(a: &mut impl Sink) {
    asm!(a
        ; pop QWORD [rsp + Frame::cs]
        ; pop QWORD [BYTE rsp + Frame::cs]
    );
}

fn main() {}
