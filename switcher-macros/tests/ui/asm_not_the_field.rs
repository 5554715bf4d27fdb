use switcher_gen::asm::{Label, Sink};
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
        ; pshufb xmm0, QWORD [rsp + Frame::cs]
        ; movups xmm0, QWORD [rsp + Frame::cs]
        ; lidt QWORD [rsp + Frame::cs]
        ; sgdt QWORD [rsp + Frame::cs]
        ; xsave QWORD [rsp + Frame::cs]
        ; fxsave QWORD [rsp + Frame::cs]
        ; fnstenv QWORD [rsp + Frame::cs]
        ; cmpxchg16b QWORD [rsp + Frame::cs]
        ; invpcid rax, QWORD [rsp + Frame::cs]
        ; lss rax, QWORD [rsp + Frame::cs]
        ; jmpf QWORD [rsp + Frame::cs]
        ; callf DWORD [rsp + Frame::half]
        ; nop DWORD [rsp + Frame::half]
        ; retfq QWORD [rsp + Frame::cs]
        ; percpu nop QWORD [PerCpu::tss_extra + TssExtra::smod_entry]
        ; movups xmm0, OWORD [=>Label::Iretq]
    );
}

fn main() {}
