use switcher_gen::asm::Sink;
use switcher_gen::layout::IretFrame;
use switcher_macros::asm;

fn emit(a: &mut impl Sink) {
    asm!(a
        ; verw DWORD [rsp + IretFrame::ss.low_dword()]
        ; str QWORD [rsp + IretFrame::ss]
        ; lea rax, QWORD [rsp + IretFrame::ss]
    );
}

fn main() {}
