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
        ; lock mov rax, QWORD [rsp + Frame::cs]
        ; lock add rax, rbx
        ; lock cmp QWORD [rsp + Frame::cs], rax
        ; lock jmp rax
        ; gs fs mov rax, QWORD [Frame::cs]
    );
}

fn main() {}
