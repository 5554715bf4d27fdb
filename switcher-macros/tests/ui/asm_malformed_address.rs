use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    #[asm(nested)]
    head: Head,
    wide: u64,
    narrow: u32,
    far: [u64; 16],
    last: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    id: u64,
}

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov rax, QWORD []
        ; mov rax, QWORD [BYTE rsp]
        ; mov rax, QWORD [BYTE Frame::wide]
        ; mov rax, QWORD [DWORD rsp + Frame::wide]
        ; mov rax, QWORD [esp + Frame::wide]
        ; mov rax, QWORD [rip + Frame::wide]
        ; mov rax, QWORD [rsp + rcx + Frame::wide]
        ; mov rax, QWORD [Frame::wide + rsp]
        ; mov rax, QWORD [rsp + 8 * rcx]
        ; mov rax, QWORD [rsp + Frame::wide.bytes() as i32]
        ; mov rax, QWORD [rsp - Frame::wide]
        ; mov rax, QWORD [rsp + Frame::wide, 8]
        ; mov rax, QWORD rsp => Frame.wide
    );
}

fn main() {}
