//! What guests run here.

/// MOV AL, [RDI].
pub(crate) const LOAD: &[u8] = &[0x8A, 0x07];
/// MOV [RDI], AL.
pub(crate) const STORE: &[u8] = &[0x88, 0x07];
pub(crate) const SYSCALL: &[u8] = &[0x0F, 0x05];
pub(crate) const PROBE: &[u8] = &[0x0F, 0x0B];
