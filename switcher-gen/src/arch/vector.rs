//! Exception vectors (Intel SDM vol. 3, table 7-1).

/// Debug exception.
pub const DB: u8 = 1;
/// Non-maskable interrupt.
pub const NMI: u8 = 2;
/// Invalid opcode.
pub const UD: u8 = 6;
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
/// The first vector that is no exception.
pub const FIRST_INTERRUPT: u8 = 32;

/// Whether the hardware pushes an error code.
#[must_use]
pub const fn pushes_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}
