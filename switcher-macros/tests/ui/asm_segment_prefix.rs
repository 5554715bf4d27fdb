use switcher_gen::asm::{Label, Sink};
use switcher_gen::layout::{PerCpu, TssExtra};
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
        ; gs mov rax, QWORD [rsp + Frame::cs]
        ; fs mov rax, QWORD [rsp + Frame::cs]
        ; gs mov rax, QWORD [rdi]
        ; gs mov rax, QWORD [=>Label::Iretq]
        ; gs xor eax, eax
        ; gs ret
        ; gs push rax
        ; gs jmp rax
        ; gs jz =>Label::Iretq
        ; gs iretq
        ; gs lea rax, QWORD [Frame::cs]
        ; fs lea rax, QWORD [Frame::cs]
        ; percpu lea rax, QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        ; cs mov rax, QWORD [rax + Frame::cs]
        ; ds mov rax, QWORD [Frame::cs]
        ; es nop
        ; ss mov rax, QWORD [rsp + Frame::cs]
        ; ds jmp rax
    );
}

fn main() {}
