//! Usual instructions are taken.

use switcher_gen::asm::{CodeBuffer, Label, Sink};
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
        ; =>Label::Iretq
        ; lock xadd QWORD [rsp + Frame::cs], rax
        ; lock cmpxchg QWORD [rsp + Frame::cs], rax
        ; lock gs inc QWORD [Frame::cs]
        ; gs push QWORD [Frame::cs]
        ; fs pop QWORD [Frame::cs]
        ; gs call QWORD [Frame::cs]
        ; pop QWORD [rdi + Frame::cs]
        ; pop QWORD [rsp + Frame::cs.below_end()]
        ; bts QWORD [rsp + Frame::cs], 63
        ; lock btr DWORD [rsp + Frame::half], 31
        ; bt rax, rcx
        ; shl eax, 31
        ; sar r9b, 7
        ; shl sil, 7
        ; rorx rax, rcx, 63
        ; movzx eax, WORD [rsp + Frame::word]
        ; movsxd rax, DWORD [rsp + Frame::half]
        ; cmovz rax, QWORD [rsp + Frame::cs]
        ; setz BYTE [rsp + Frame::cs.low_byte()]
        ; imul rax, QWORD [rsp + Frame::cs], 7
        ; shl QWORD [rsp + Frame::cs], 3
        ; crc32 eax, BYTE [rsp + Frame::cs.low_byte()]
        ; lsl eax, WORD [rsp + Frame::word]
        ; mov rax, QWORD [=>Label::Iretq]
        ; lea r7, [=>Label::Iretq]
        ; percpu verw WORD [PerCpu::tss_extra + TssExtra::smod_entry.low_word()]
        ; percpu bts QWORD [PerCpu::tss_extra + TssExtra::smod_entry], 5
        ; gs invlpg BYTE [Frame::cs.low_byte()]
        ; push fs
        ; mov cr4, rax
        ; mov dr7, rax
        ; movd xmm0, eax
        ; pshufb xmm0, xmm1
        ; jrcxz BYTE =>Label::Iretq
        ; jmp QWORD [=>Label::Iretq]
    );
}

fn main() {
    emit(&mut CodeBuffer::new());
}
