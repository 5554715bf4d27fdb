use switcher_gen::asm::Sink;
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a ; mov ss, WORD [rdi + Pvcs::user_ss]);
}

fn main() {}
