use switcher_gen::asm::Sink;
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov rax,
        ; mov rax rcx
        ; .alias frame, rsp
        ; .arch x86
        ; nop
        #[inline]
        ; nop
        ; 3
        ; gs
    );
}

fn emit_dangling_comment(a: &mut impl Sink) {
    asm!(a
        ; nop
        /// What does this explain?
    );
}

fn emit_unknown(a: &mut impl Sink) {
    asm!(a ; swapgz);
}

fn emit_to_expression(a: &mut impl Sink) {
    asm!(a.inner ; nop);
}

fn main() {}
