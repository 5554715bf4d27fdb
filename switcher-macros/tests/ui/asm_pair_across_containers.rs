//! What only happens to lie side by side is no pair.

use switcher_gen::asm::Sink;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    #[asm(nested)]
    head: Head,
    after_head: u32,
    #[asm(nested)]
    other: Head,
    wide: u64,
    halves: [u16; 2],
    more: [u16; 2],
    last: u16,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    id: u64,
    first: u16,
    second: u16,
    third: u32,
}

fn emit(a: &mut impl Sink) {
    asm!(a
        // The last field of a struct and what follows the struct.
        ; mov rax, QWORD [rsp + Frame::head.then(Head::third).pair(Frame::after_head)]
        // And half of it.
        ; mov rax, QWORD [rsp + Frame::other.then(Head::third).pair(Frame::wide.low_dword())]
        // A field and half of its neighbour in the same struct.
        ; mov eax, DWORD [rsp + Frame::wide.low_word().pair(Frame::last)]
        // An array's last element and what follows the array: an element of another one, or a field.
        ; mov eax, DWORD [rsp + Frame::halves.element(1).pair(Frame::more.element(0))]
        ; mov eax, DWORD [rsp + (Frame::more.element(1)).pair(Frame::last)]
        // The same fields of two structs, seen from the end.
        ; mov eax, DWORD [rsp + (Frame::head + Head::first).below_end().pair((Frame::other + Head::second).below_end())]
    );
}

fn main() {
    emit(&mut switcher_gen::asm::CodeBuffer::new());
}
