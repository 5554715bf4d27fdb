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
        ; xlatb
        ; xlat
        ; movsb
        ; rep movsq
        ; stosq
        ; lodsd
        ; scasw
        ; cmpsd
        ; insb
        ; outsd
        ; enter 5, 3
        ; maskmovdqu xmm0, xmm1
        ; clzero
        ; vmsave
    );
}

fn main() {}
