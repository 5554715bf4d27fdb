use switcher_gen::asm::Sink;
use switcher_gen::layout::{PerCpu, Tss, TssExtra};
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov rax, QWORD [TssExtra::host_cr3]
        ; rep mov rax, QWORD [PerCpu::tss + Tss::sp0]
        ; gs mov rax, QWORD [TssExtra::host_cr3.below_end()]
    );
}

fn main() {}
