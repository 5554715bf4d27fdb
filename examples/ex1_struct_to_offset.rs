//! Step 1. Struct -> offset: a Rust struct is the only place that says where a field lies.
//!
//! Swap two fields of `Vcpu` and run this again: the offsets follow, and with them every
//! instruction that names the fields. `#[asm(at = ..)]` pins a field that an ABI fixes.

use switcher_gen::layout::{AsmLayout, Offset, PerCpu, TssExtra};

/// What a toy hypervisor stores about a virtual CPU.
#[derive(AsmLayout)]
#[repr(C)]
#[asm(size = 24, align = 8)]
struct Vcpu {
    /// How often the virtual CPU was entered.
    #[asm(at = 0)]
    entries: u64,
    /// The number of the virtual CPU.
    id: u32,
    /// Why the virtual CPU last exited.
    exit_reason: u32,
    /// The stack pointer.
    rsp: u64,
}

fn main() {
    let vcpu = Vcpu { entries: 0, id: 7, exit_reason: 0, rsp: 0 };

    // A constant per field; its type carries the struct and the field's type.
    let exit_reason: Offset<Vcpu, u32> = Vcpu::exit_reason;
    println!("exit_reason of vcpu {} lies {} bytes in", vcpu.id, exit_reason.bytes());
    let _ = (vcpu.entries, vcpu.exit_reason, vcpu.rsp);

    // Nested structs compose: the switcher's view of the per-CPU block.
    let pvcs = PerCpu::tss_extra + TssExtra::pvcs;
    println!("gs:[tss_extra.pvcs] is gs:[{:#x}]", pvcs.bytes());

    // There is also a table of the fields, for listings and exports.
    for field in Vcpu::LAYOUT.fields {
        println!("{:#04x} {:12} {:4} {}", field.offset, field.name, field.ty, field.doc);
    }
}
