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
        ; mov cs, ax
        ; mov cs, WORD [rsp + Frame::word]
        ; mov Rs(1), ax
        ; mov eax, Rs(1)
        ; mov cr1, rax
        ; mov rax, cr9
        ; mov dr4, rax
        ; mov dr12, rax
    );
}

fn main() {}
