//! How much of a stack something needs: it runs on one that is painted, and the bytes are counted
//! that have lost their paint.

use alloc::vec;
use core::arch::asm;

const PAINT: u64 = 0xA5C3_96E1_5A3C_691E;
/// The number of words that are painted.
const WORDS: usize = 4096;

/// Runs something on a stack of its own. Returns its result, and how many bytes of the stack it has
/// used.
pub(crate) fn on_painted<F: FnOnce() -> R, R>(what: F) -> (R, usize) {
    let mut stack = vec![PAINT; WORDS];
    let top = (stack.as_mut_ptr_range().end.addr() & !0xF) as u64;
    let mut task = Task { what: Some(what), result: None };
    // SAFETY: the stack is this function's, and is long enough for what kernels call on theirs;
    // `run` is called once, with what it is made for; R12 is kept by a function of C.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {top}",
            "call {run}",
            "mov rsp, r12",
            top = in(reg) top,
            run = in(reg) run_task::<F, R> as extern "C" fn(_),
            in("rdi") &raw mut task,
            out("r12") _,
            clobber_abi("sysv64"),
        );
    }
    // The compiler does not know who has written to it.
    let words = core::hint::black_box(&stack);
    let kept = words.iter().take_while(|word| **word == PAINT).count();
    let result = task.result.unwrap_or_else(|| unreachable!("the task has run"));
    (result, size_of::<u64>() * (WORDS - kept))
}

struct Task<F, R> {
    what: Option<F>,
    result: Option<R>,
}

extern "C" fn run_task<F: FnOnce() -> R, R>(task: *mut Task<F, R>) {
    // SAFETY: `on_painted` calls this with a task that is its own.
    let task = unsafe { &mut *task };
    task.result = task.what.take().map(|what| what());
}
