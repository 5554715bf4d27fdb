use switcher_gen::asm::{Label, Sink};
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
        ; jmp 5
        ; jmp BYTE -2
        ; jz 0x10
        ; call Frame::cs.bytes() as i32
        ; loop BYTE 3
        ; jrcxz BYTE 3
        ; xbegin 7
        ; mov rax, =>Label::Iretq
        ; push =>Label::Iretq
        ; jmp -Label::Iretq
    );
}

fn main() {}
