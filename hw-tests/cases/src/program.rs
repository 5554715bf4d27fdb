//! The programs that guests run.

use switcher_gen::program;

/// SYSCALL.
pub const SYSCALL: &[u8] = program!(; syscall);
/// UD2: an exit that shows every register.
pub const PROBE: &[u8] = program!(; ud2);
/// NOP; UD2.
pub(crate) const NOP_PROBE: &[u8] = program!(; nop ; ud2);
/// SYSCALL; UD2.
pub(crate) const SYSCALL_PROBE: &[u8] = program!(; syscall ; ud2);
/// As many SYSCALLs as RBX says, and UD2.
pub(crate) const SYSCALLS: &[u8] = program!(
    ; again:
    ; syscall
    ; dec rbx
    ; jnz BYTE <again
    ; ud2
);
