//! Names of the caller and of the expansion do not meet, and the sink's trait need not be in
//! scope. Being a program that passes, this also has trybuild build instead of check all others,
//! without which it would not see errors of `const` blocks in generic functions.

use switcher_gen::asm::CodeBuffer;
use switcher_macros::{AsmLayout, asm};

#[repr(C)]
#[derive(AsmLayout)]
struct Frame {
    low: u32,
    high: u32,
}

fn main() {
    let (operand, offset, displacement) = (1, 2, 3);
    let mut owned = CodeBuffer::new();
    asm!(owned ; add DWORD [rax + Frame::high], operand + offset + displacement);
    let borrowed = &mut owned;
    asm!(borrowed ; gs add DWORD [Frame::low], displacement ;);
    asm!(borrowed);
    assert_eq!(
        owned.finish().unwrap().bytes,
        [0x81, 0x80, 4, 0, 0, 0, 6, 0, 0, 0, 0x65, 0x81, 0x04, 0x25, 0, 0, 0, 0, 3, 0, 0, 0]
    );
}
