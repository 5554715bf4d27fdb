//! The barrier between those who share a CPU and do not trust each other.
//!
//! IBPB alone is not such a barrier: it leaves the return stack buffer on AMD's CPUs that do not
//! say IBPB_RET (CVE-2022-23824, AMD-SB-1040), and on Intel's without PBRSB_NO the first RET after
//! it may still be predicted by what came before (CVE-2022-26373). So the buffer is filled after
//! each IBPB, whatever the CPU says of itself, because a hypervisor may hide either bit, and next
//! to IBPB the filling costs nothing.

use core::arch::asm;

use switcher_gen::arch::Msr as MsrName;

use crate::registers;

/// One step of a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Writes IBPB to PRED_CMD.
    Command,
    /// Fills the return stack buffer: all its entries become addresses of traps.
    FillReturns,
}

/// The steps in their order, with IBPB or without. The filling comes last: the RETs after it are
/// predicted by CALLs that come later, or lead to the traps.
const fn steps(ibpb: bool) -> &'static [Step] {
    if ibpb { &[Step::Command, Step::FillReturns] } else { &[Step::FillReturns] }
}

/// Empties this CPU's branch predictors as far as it can: IBPB only where the CPU has it, the
/// return stack buffer always.
///
/// # Safety
/// Must be called at CPL 0, with `ibpb` set only if CPUID says that PRED_CMD has the command.
#[inline]
pub(crate) unsafe fn empty_predictors(ibpb: bool) {
    const IBPB: u64 = 1;
    for step in steps(ibpb) {
        match step {
            // SAFETY: the caller says that the MSR exists and has the command: `steps` has this
            // step only if `ibpb` is set.
            Step::Command => unsafe { registers::write_msr(MsrName::PredCmd.address(), IBPB) },
            Step::FillReturns => fill_returns(),
        }
    }
}

/// The instructions that fill the return stack buffer, between the lines of assembly that are
/// given. They are the emitted code's (`switcher-gen/src/emit/mitigations.rs`), without its loop,
/// and fill as many entries as any CPU has. There is no RET among them: on a host with return
/// thunks, it would have to go through a thunk.
macro_rules! filling {
    ($asm:ident, [$($before:literal),*], [$($behind:tt)*]) => {
        $asm! {
            $($before,)*
            ".rept 32",
            "call 2f",
            // This is where a RET is predicted to lead.
            "int3",
            "2:",
            "add rsp, 8",
            ".endr",
            // The CALLs have retired before anything after them is predicted.
            "lfence",
            $($behind)*
        }
    };
}

/// Fills the return stack buffer.
#[inline]
fn fill_returns() {
    // SAFETY: the CALLs write 8 bytes below RSP at a time, and RSP is as before afterwards. As the
    // options have no `nostack`, the compiler keeps nothing there; nor does it rely on the flags.
    unsafe { filling!(asm, [], []) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::arch::global_asm;

    // The same instructions again, between two labels, so that the test can read their bytes.
    filling!(
        global_asm,
        [
            ".global switcher_runtime_test_filling",
            ".global switcher_runtime_test_filled",
            "switcher_runtime_test_filling:"
        ],
        ["switcher_runtime_test_filled:",]
    );

    unsafe extern "C" {
        static switcher_runtime_test_filling: u8;
        static switcher_runtime_test_filled: u8;
    }

    #[test]
    fn the_return_stack_buffer_is_filled_after_ibpb_and_without_it() {
        assert_eq!(steps(true), [Step::Command, Step::FillReturns]);
        assert_eq!(steps(false), [Step::FillReturns]);
    }

    #[test]
    fn thirty_two_calls_whose_return_addresses_are_traps_and_no_ret() {
        // The bytes of: a CALL over the INT3; int3; add rsp, 8.
        const CALL: [u8; 10] = [0xE8, 1, 0, 0, 0, 0xCC, 0x48, 0x83, 0xC4, 8];
        const LFENCE: [u8; 3] = [0x0F, 0xAE, 0xE8];
        let (start, end) =
            (&raw const switcher_runtime_test_filling, &raw const switcher_runtime_test_filled);
        let len = end.addr() - start.addr();
        // SAFETY: between the two labels are instructions of this program's, which it may read.
        let code = unsafe { core::slice::from_raw_parts(start, len) };
        let (calls, rest) = code.split_at(32 * CALL.len());
        assert!(calls.chunks(CALL.len()).all(|call| call == CALL), "{calls:x?}");
        assert_eq!(rest, LFENCE);
    }

    #[test]
    fn filling_leaves_the_stack_as_it_was() {
        let local = core::hint::black_box([0x55_u64; 8]);
        fill_returns();
        assert_eq!(core::hint::black_box(local), [0x55; 8]);
    }
}
