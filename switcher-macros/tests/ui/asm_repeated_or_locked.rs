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
        ; rep mov rax, QWORD [rsp + Frame::cs]
        ; rep ret
        ; repe cmpsb
        ; repz nop
        ; repne scasb
        ; repnz jmp rax
        ; lock mov ss, ax
        ; lock sysretq
        ; lock endbr64
        ; lock retfq
    );
}

fn main() {}
