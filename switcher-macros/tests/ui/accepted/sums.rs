//! Every sum that offset.rs lists is an operand, in a crate that allows no `unsafe` of its own.

#![forbid(unsafe_code)]

use switcher_gen::asm::CodeBuffer;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    wide: u64,
    #[asm(nested)]
    head: Head,
    array: [u16; 4],
}

#[repr(C)]
#[derive(AsmLayout)]
struct Head {
    #[asm(nested)]
    inner: Inner,
    id: u64,
}

#[repr(C)]
#[derive(AsmLayout)]
struct Inner {
    low: u16,
    high: u16,
    count: u32,
}

#[rustfmt::skip]
fn main() {
    const FIRST: usize = 1;
    let mut a = CodeBuffer::new();
    asm!(a
        ; mov rax, QWORD [rsp + Frame::head + Head::id]
        ; mov rax, QWORD [rsp + Frame::head.below_end() + Head::id]
        ; mov rax, QWORD [rsp + (Frame::head + Head::id).below_end()]
        ; mov rax, QWORD [rsp + ((Frame::head + Head::id)).below_end()]
        ; mov eax, DWORD [rsp + (Frame::head + Head::inner + Inner::low).pair(Frame::head + Head::inner + Inner::high)]
        ; mov eax, DWORD [rsp + Frame::head + Head::inner + Inner::low.pair(Inner::high)]
        ; mov eax, DWORD [rsp + Frame::head + (Head::inner + Inner::low).pair(Head::inner.then(Inner::high))]
        ; mov eax, DWORD [rsp + Frame::head.then(Head::inner + Inner::count)]
        ; mov eax, DWORD [rsp + (Frame::head + Head::id).low_dword().below_end()]
        ; mov ax, WORD [rsp + Frame::array.element(FIRST + 1)]
        ; mov eax, DWORD [rsp + Frame::array.element(FIRST).pair(Frame::array.element(FIRST + 1))]
    );
    let code = a.finish().unwrap().bytes;
    let mut rest = &code[..];
    let mut displacements = Vec::new();
    while !rest.is_empty() {
        // Prefixes, MOV, ModR/M and SIB; then the displacement.
        let at = rest.iter().position(|byte| *byte == 0x24).unwrap() + 1;
        displacements.push(i32::from_le_bytes(rest[at..at + 4].try_into().unwrap()));
        rest = &rest[at + 4..];
    }
    assert_eq!(displacements, [16, -16, -16, -16, 8, 8, 8, 12, -16, 28, 26]);
}
