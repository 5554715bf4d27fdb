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
        ; mov al, BYTE [rsp + Frame::head.low_byte()]
        ; mov al, BYTE [rsp + Frame::array.low_byte()]
        ; mov al, BYTE [rsp + Frame::byte.low_byte()]
        ; mov al, BYTE [rsp + Frame::low.pair(Frame::high).low_byte()]
        ; mov ax, WORD [rsp + Frame::low.low_word()]
        ; mov ax, WORD [rsp + Frame::byte.below_end().low_word()]
        ; mov eax, DWORD [rsp + Frame::narrow.low_dword()]
        ; mov eax, DWORD [rsp + Frame::array.below_end().low_dword()]
        ; mov eax, DWORD [rsp + Frame::wide.low_word().low_dword()]
    );
}

fn main() {}
