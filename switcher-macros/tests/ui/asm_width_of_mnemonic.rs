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
        ; push WORD [rsp + Frame::word]
        ; pop DWORD [rdi + Frame::half]
        ; jmp WORD [rsp + Frame::word]
        ; call DWORD [rsp + Frame::half]
        ; ldmxcsr QWORD [rsp + Frame::cs]
        ; setz WORD [rsp + Frame::word]
        ; invlpg QWORD [rsp + Frame::cs]
        ; cmpxchg8b DWORD [rsp + Frame::half]
        ; push ax
        ; pop r9w
        ; push WORD 5
        ; pushfw
        ; popfw
        ; jmp ax
        ; call cx
        ; lea eax, QWORD [rsp + Frame::cs]
        ; lea r9d, [=>Label::Iretq]
        ; mov rax, [=>Label::Iretq]
        ; jmp [=>Label::Iretq]
    );
}

fn main() {}
