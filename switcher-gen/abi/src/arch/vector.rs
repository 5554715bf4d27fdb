//! Exception vectors (Intel SDM vol. 3, table 7-1).

/// Debug exception.
pub const DB: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// Breakpoint: INT3.
pub const BP: u8 = 3;
/// Overflow: INTO, or INT 4.
pub const OF: u8 = 4;
/// Invalid opcode.
pub const UD: u8 = 6;
/// Device not available: the FPU is not there, or not this task's.
pub const NM: u8 = 7;
/// Double fault.
pub const DF: u8 = 8;
/// Coprocessor segment overrun: reserved since the 80486, and nothing raises it. A local APIC
/// delivers no vector below 16 (Intel SDM vol. 3, "Valid Interrupt Vectors"). An 8259 would, if its
/// vectors started at 8 as firmware leaves them: a host that runs guests has moved them, or masked
/// it.
pub const SEGMENT_OVERRUN: u8 = 9;
/// Segment not present.
pub const NP: u8 = 11;
/// Stack-segment fault.
pub const SS: u8 = 12;
/// General protection.
pub const GP: u8 = 13;
/// Page fault: the vector that comes with an address, in CR2.
pub const PF: u8 = 14;
/// Machine check.
pub const MC: u8 = 18;
/// Control protection: an indirect branch that leads to no ENDBR64, or a shadow stack that
/// disagrees.
pub const CP: u8 = 21;
/// The first vector that is not an exception's.
pub const FIRST_INTERRUPT: u8 = 32;
/// The vector of guests' 32-bit system calls, by Linux's custom.
pub const SYSTEM_CALL: u8 = 0x80;

/// Whether the hardware pushes an error code.
#[must_use]
pub const fn pushes_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
