//! `entry_SYSCALL_compat_switcher`: where SYSCALL from compatibility mode lands (MSR CSTAR).
//!
//! **The CPU** was at CPL 3 in 32-bit code (AMD; on Intel SYSCALL is #UD there). It has put EIP
//! into RCX and RFLAGS into R11. RSP, GS base and CR3 are still the guest's.
//! **Live**: everything but EAX, the result.
//! **May be clobbered**: EAX.
//!
//! No 32-bit SYSCALL is part of the ABI. If CSTAR were left as it was, it would be a way into ring
//! 0 past all checks (spec/hazards.md, row 17). So it leads here: the routine answers -ENOSYS and
//! touches neither stack nor memory.

use switcher_macros::asm;

use super::entry_point;
use crate::asm::{Label, Sink};
use crate::variant::Variant;

/// Linux's "no such system call".
const ENOSYS: i32 = 38;

/// Both windows of `syscall_64` are open here, and stay so.
#[rustfmt::skip]
pub(super) fn emit<S: Sink>(a: &mut S, variant: &Variant) {
    entry_point(a, variant, Label::SyscallCompat);
    asm!(a
        /// There is no 32-bit SYSCALL: -ENOSYS.
        ; mov   eax, -ENOSYS
        ; sysretl
    );
}
