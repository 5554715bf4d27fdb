//! An entry of the IDT, as theorems are about it.

/// An entry of the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TargetGate {
    /// The vector.
    pub vector: u8,
    /// Where the handler is.
    pub address: u64,
    /// The stack of the IST, or 0.
    pub ist: u8,
    /// From which privilege level on INT may use it.
    pub dpl: u8,
}
