use switcher_gen::asm::Sink;
use switcher_gen::layout::{PerCpu, TssExtra};
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
        ; bt QWORD [rsp + Frame::cs], rax
        ; bts QWORD [rsp + Frame::cs], rax
        ; btr DWORD [rsp + Frame::half], eax
        ; bts QWORD [rsp + Frame::cs], BIT
        ; percpu bts QWORD [PerCpu::tss_extra + TssExtra::smod_entry], rax
    );
}

fn main() {}
