use switcher_gen::asm::{HostSymbol, Label, Sink};
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov QWORD [=>(Label::Iretq) - 8], rax
        ; lea rax, [=>Label::Iretq + 8]
        ; jmp =>(Label::Iretq) + 5
        ; jz =>(Label::Iretq) - 5
        ; call =>Label::Iretq + 1
        ; call extern (HostSymbol::NMI) + 1
        ; jmp =>Label::ALL[3]
    );
}

fn main() {}
