//! The barrier between those who share a CPU and do not trust each other.
//!
//! IBPB alone is not one: it leaves the return stack buffer on AMD's CPUs that do not say IBPB_RET
//! (CVE-2022-23824, AMD-SB-1040), and on Intel's without PBRSB_NO the first RET behind it may still
//! be predicted by what came before (CVE-2022-26373). So the buffer is filled behind each, whatever
//! the CPU says of itself, for a hypervisor may hide one of the two: next to IBPB it costs nothing.

use core::arch::asm;

use switcher_gen::arch::Msr as MsrName;

use crate::registers;

/// What a barrier consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// IBPB, by PRED_CMD.
    Command,
    /// All entries of the return stack buffer are addresses of traps.
    FillReturns,
}

/// The steps in their order, with IBPB or without. The filling comes last: behind it is no RET but
/// those whose CALLs come later, or the traps.
const fn steps(ibpb: bool) -> &'static [Step] {
    if ibpb { &[Step::Command, Step::FillReturns] } else { &[Step::FillReturns] }
}

/// Empties this CPU's branch predictors as far as there is a way to: IBPB only where the CPU has
/// it.
///
/// # Safety
/// CPL 0, and `ibpb` only if CPUID says that PRED_CMD has it.
#[inline]
pub(crate) unsafe fn empty_predictors(ibpb: bool) {
    const IBPB: u64 = 1;
    for step in steps(ibpb) {
        match step {
            // SAFETY: the caller says that the MSR exists and has the command, and `steps` has it
            // only then.
            Step::Command => unsafe { registers::write_msr(MsrName::PredCmd.address(), IBPB) },
            Step::FillReturns => fill_returns(),
        }
    }
}

/// The instructions by which the return stack buffer is filled, between what is given. They are the
/// emitted code's (`switcher-gen/src/emit/mitigations.rs`), without its loop: no entry of any CPU's
/// is left. There is no RET, which on a host with return thunks could not stay one.
macro_rules! filling {
    ($asm:ident, [$($before:literal),*], [$($behind:tt)*]) => {
        $asm! {
            $($before,)*
            ".rept 32",
            "call 2f",
            // Where a RET is predicted to lead.
            "int3",
            "2:",
            "add rsp, 8",
            ".endr",
            // The CALLs have retired before anything behind them is predicted.
            "lfence",
            $($behind)*
        }
    };
}

/// Fills the return stack buffer.
#[inline]
fn fill_returns() {
    // SAFETY: 8 bytes below RSP are written, and RSP is as it was afterwards. Without `nostack`,
    // that is stack that nothing else has, and flags are not kept.
    unsafe { filling!(asm, [], []) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::arch::global_asm;

    // The same instructions, where their bytes can be read.
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
    fn the_return_stack_buffer_is_filled_behind_ibpb_and_without_it() {
        assert_eq!(steps(true), [Step::Command, Step::FillReturns]);
        assert_eq!(steps(false), [Step::FillReturns]);
    }

    #[test]
    fn thirty_two_calls_whose_return_addresses_are_traps_and_no_ret() {
        // call over the INT3; int3; add rsp, 8.
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
