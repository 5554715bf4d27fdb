use switcher_gen::asm::Sink;
use switcher_gen::layout::{PerCpu, Pvcs, Tss, TssExtra};
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a
        ; percpu mov rax, QWORD [TssExtra::host_cr3]
        ; percpu mov rsp, QWORD [Pvcs::rip]
        ; percpu mov rsp, QWORD [PerCpu::tss.below_end() + Tss::sp0]
    );
}

fn main() {}
