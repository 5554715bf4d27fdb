use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    #[asm(nested)]
    head: Head,
    wide: u64,
    narrow: u32,
    low: u16,
    high: u16,
    array: [u16; 4],
    byte: u8,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    id: u64,
    first: u16,
    second: u16,
}

fn emit(a: &mut impl Sink) {
    asm!(a
        ; mov eax, DWORD [rsp + Frame::low.pair(Frame::high.below_end())]
        ; mov eax, DWORD [rsp + Frame::low.below_end().pair(Frame::high)]
        ; mov eax, DWORD [rsp + Frame::low.pair(Head::second)]
        ; mov eax, DWORD [rsp + Frame::narrow.pair(Frame::low)]
        ; mov eax, DWORD [rsp + Frame::head.then(Head::first).pair(Frame::low.below_end())]
        ; mov rax, QWORD [rsp + Frame::wide.pair(Frame::wide)]
        ; mov rax, QWORD [rsp + Frame::low.pair(Frame::high).pair(Frame::low.pair(Frame::high))]
    );
}

fn main() {}
