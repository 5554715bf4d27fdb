use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    #[asm(nested)]
    head: Head,
    wide: u64,
    narrow: u32,
    low: u16,
    high: u16,
    array: [u16; 4],
    byte: u8,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    id: u64,
    first: u16,
    second: u16,
}

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov ax, WORD [rsp + Frame::wide.element(0)]
        ; mov rax, QWORD [rsp + Frame::head.element(0) + Head::id]
        ; mov ax, WORD [rsp + Frame::array + Head::first]
        ; mov rax, QWORD [rsp + Frame::array]
    );
}

fn main() {}
