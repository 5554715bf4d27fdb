//! Machine code the guests are made of.

/// SYSCALL.
pub(crate) const SYSCALL: &[u8] = &[0x0F, 0x05];
/// UD2: an exit that shows every register.
pub(crate) const PROBE: &[u8] = &[0x0F, 0x0B];
/// NOP; UD2.
pub(crate) const NOP_PROBE: &[u8] = &[0x90, 0x0F, 0x0B];
/// SYSCALL; UD2.
pub(crate) const SYSCALL_PROBE: &[u8] = &[0x0F, 0x05, 0x0F, 0x0B];
