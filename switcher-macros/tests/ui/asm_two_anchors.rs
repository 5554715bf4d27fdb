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
        ; mov rax, QWORD [rsp + Frame::head + Head::id.below_end()]
        ; mov rax, QWORD [rsp + Frame::head.then(Head::id.below_end())]
        ; mov rax, QWORD [rsp + Frame::head.below_end() + Head::id.below_end()]
        ; mov ax, WORD [rsp + Frame::head + Head::id.below_end().low_word()]
        ; mov rax, QWORD [rsp + Frame::wide.below_end().below_end()]
        ; mov rax, QWORD [rsp + Frame::head.below_end().then(Head::id).below_end()]
    );
}

fn main() {}
