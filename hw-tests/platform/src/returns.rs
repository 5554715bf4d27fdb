//! The kernel's return thunk and its untraining (`switcher_runtime::ReturnThunk`), as hosts need
//! them whose CPU predicts RETs by what a guest has trained.
//!
//! This kernel's other RETs are plain ones: the tests show that a switcher calls the untraining,
//! leaves through the thunk, and finds its registers again. It does not make the kernel safe.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use switcher_runtime::ReturnThunk;

global_asm!(
    r#"
    // The untraining counts, and changes everything that it may change.
    .text
    .global hw_platform_untrain_returns
hw_platform_untrain_returns:
    lock inc qword ptr [rip + {untrained}]
    mov     rax, 0x5A5A5A5A5A5A5A5A
    mov     rcx, rax
    mov     rdx, rax
    jmp     3f

    // The thunk is as AMD's CPUs up to Zen 2 want it: executed from the byte before it, the RET is
    // a part of TEST BL, 0xCC, so that the CPU finds that what it has predicted there is no branch.
    // The RET begins a cache line.
    .balign 64, 0xCC
    .skip   63, 0xCC
3:  .byte   0xF6
    .global hw_platform_return_thunk
hw_platform_return_thunk:
    ret
    int3
    lfence
    jmp     hw_platform_return_thunk
    int3
"#,
    untrained = sym UNTRAINED,
);

unsafe extern "C" {
    fn hw_platform_untrain_returns();
    fn hw_platform_return_thunk();
}

static UNTRAINED: AtomicU64 = AtomicU64::new(0);

/// The number of times that returns have been untrained, on all CPUs.
#[must_use]
pub fn untrained() -> u64 {
    UNTRAINED.load(Ordering::Acquire)
}

/// The thunk and its untraining, for [`Hooks`](switcher_runtime::Hooks).
#[must_use]
pub fn thunk() -> ReturnThunk {
    ReturnThunk { untrain: hw_platform_untrain_returns, thunk: hw_platform_return_thunk }
}
