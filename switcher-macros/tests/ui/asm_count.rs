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
        ; shl rax, 64
        ; shr eax, 32
        ; sar ax, 99
        ; rol r9b, 8
        ; shl QWORD [rsp + Frame::cs], 64
        ; shl BYTE [rsp + Frame::cs.low_byte()], -1
        ; shld rax, rcx, 64
        ; rorx eax, ecx, 32
        ; bt ax, 16
        ; bts Rd(1), 32
        ; bt QWORD [rsp + Frame::cs], 70
        ; btc DWORD [rsp + Frame::half], 32
        ; bt WORD [rsp + Frame::word], 16
        ; bt QWORD [rsp + Frame::cs], -1
    );
}

fn main() {}
