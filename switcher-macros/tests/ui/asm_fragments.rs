use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    cs: u64,
}

/// What an expression of another macro is, `asm!` and dynasm agree on: no register.
macro_rules! emit {
    ($a:ident, $register:expr, $number:expr) => {
        asm!($a
            ; jmp $register
            ; call $register
            ; bts QWORD [rsp + Frame::cs], $register
            ; mov rax, QWORD [rsp + Frame::cs + $register]
            ; jmp $number
        );
    };
}

fn emit(a: &mut impl Sink) {
    emit!(a, rcx, 5);
}

fn main() {}
