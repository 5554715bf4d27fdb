use switcher_gen::asm::Sink;
use switcher_gen::layout::{PerCpu, Tss};
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a
        ; percpu nop
        ; percpu mov rax, QWORD [rdi + PerCpu::tss + Tss::sp2]
        ; gs percpu mov rax, QWORD [PerCpu::tss + Tss::sp2]
        ; percpu lock inc QWORD [PerCpu::tss + Tss::sp2]
    );
}

fn main() {}
