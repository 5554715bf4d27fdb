//! What a thread has for itself: its GS base, and the byte by which it tells Linux what its
//! SYSCALLs are.

use std::arch::asm;

/// Values of the byte that tells Syscall User Dispatch what to do.
pub(super) const SYSCALLS_PASS: u8 = 0;
/// Every SYSCALL but the handler's return becomes SIGSYS.
pub(super) const SYSCALLS_TRAP: u8 = 1;

/// The active GS base.
pub(super) fn gs_base() -> u64 {
    let base;
    // SAFETY: a machine exists only where user mode may execute RDGSBASE (`supported`); it
    // reads a register and nothing else.
    unsafe { asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

/// Sets the active GS base.
///
/// # Safety
/// `base` must be canonical on this CPU.
pub(super) unsafe fn set_gs_base(base: u64) {
    // SAFETY: as for RDGSBASE, and `base` is canonical by contract. Neither Rust nor libc uses GS
    // on x86-64, so nothing compiled depends on the old value.
    unsafe { asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
}
