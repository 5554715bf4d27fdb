//! Step 2. Offset -> code: `asm!` assembles at run time, with fields as operands.
//!
//! The size hint and the field's type must agree. Try `QWORD [BYTE rdi + Vcpu::exit_reason]`: it
//! does not compile.

use std::error::Error;

use switcher_asm::Sink as _;
use switcher_gen::asm::{CodeBuffer, Label, Sink};
use switcher_gen::layout::AsmLayout;
use switcher_macros::asm;

#[derive(AsmLayout)]
#[repr(C)]
struct Vcpu {
    entries: u64,
    exit_reason: u32,
    id: u32,
}

/// Counts an entry of the vCPU in RDI and returns why it last exited.
fn emit(a: &mut impl Sink, count: bool) {
    // Generators are functions: an option that is off leaves no byte in the code.
    if count {
        asm!(a
            /// One more entry.
            ; inc   QWORD [BYTE rdi + Vcpu::entries]
        );
    }
    asm!(a
        ; mov   eax, DWORD [BYTE rdi + Vcpu::exit_reason]
        ; ret
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut vcpu = Vcpu { entries: 41, exit_reason: 1024, id: 0 };
    for count in [true, false] {
        let mut buffer = CodeBuffer::new();
        buffer.dynamic_label(Label::EnterGuest);
        emit(&mut buffer, count);
        let code = buffer.finish()?;
        println!("count {count}: {:02x?}", code.bytes);
    }
    vcpu.entries += 1;
    println!("(a CPU would now read reason {} of vcpu {})", vcpu.exit_reason, vcpu.id);
    Ok(())
}
