//! Runs a switcher's emitted bytes on this CPU, in user mode.
//!
//! The bytes are the ones a host would map, and the CPU executes them; so this module says nothing
//! about what instructions do, except for the few that CPL 3 refuses: SWAPGS, MOV CR3, SYSRETQ, MOV
//! SS. They fault, and a signal handler does what [`machine`](switcher_model) says they do in ring
//! 0. A guest's SYSCALL, which would reach Linux, comes to the same handler (Syscall User
//! Dispatch), and is made to land on `entry_SYSCALL_64_switcher`. Guests are small programs in
//! pages of their own.
//!
//! | file | purpose |
//! |---|---|
//! | `memory` | code and data pages, never writable and executable at once |
//! | `thread` | what a thread has for itself: GS base, and what Linux is told of its SYSCALLs |
//! | `signal` | the real CPU: entry, signal handler |
//! | `registers` | the context of a signal |
//! | `ring_0` | the instructions that fault at CPL 3, on the model of the CPU |
//! | `cpu` | what ring 0 adds: its registers, SYSCALL, events, and what must never happen |
//! | `machine` | an image with memory around it, ready to run |
//! | `tour` | a demonstration: round trips at full speed, and counted paths |
//!
//! What a run starts from and what comes of it is in [`scenario`](crate::scenario).
//!
//! **What it cannot show**: that memory is mapped where it is used, because all of it always is,
//! and what depends on the CPU's privilege level or on interrupts. One address space also means
//! that guests are to be trusted with this process's memory.

mod cpu;
mod machine;
mod memory;
mod registers;
mod ring_0;
mod signal;
#[cfg(test)]
mod tests;
mod thread;
mod tour;

use std::io;

pub use cpu::Interception;
pub use machine::Machine;
pub use tour::{PathCount, TourReport, tour};

pub use crate::scenario::{Crossing, Emulated, Failure, Mode, ScenarioEnd, Setup, WayIn, WayOut};
use switcher_gen::LinkError;
use switcher_gen::arch::Selectors;
use switcher_gen::asm::AsmError;

/// Why this machine cannot run emitted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// RDGSBASE and WRGSBASE are for ring 0 only here.
    #[error(
        "user mode may not execute RDGSBASE and WRGSBASE here: AT_HWCAP2 lacks FSGSBASE \
         (needs a CPU with it and Linux 5.9)"
    )]
    FsGsBase,
    /// Guests would get other selectors than a host's.
    #[error("this process has CS {cs:#x} and SS {ss:#x}, not those of the ABI")]
    Selectors {
        /// CS.
        cs: u16,
        /// SS.
        ss: u16,
    },
}

/// Why a run did not come to an end, or could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing can be run on this machine.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The switcher did what no switcher may.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// An emitter is wrong.
    #[error(transparent)]
    Asm(#[from] AsmError),
    /// The image refers to a host, and no host exists here.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The variant is for other selectors than this machine's own kernel has.
    #[error("this machine's user selectors are not those of {selectors:?}")]
    Selectors {
        /// The variant's.
        selectors: Selectors,
    },
    /// A PKRU of a guest's would apply to this process, too.
    #[error("variants with protection keys are not run in user mode: take one without `pku`")]
    ProtectionKeys,
    /// A guest's program does not fit into its page.
    #[error("the guest's program does not fit into {} bytes", Machine::CODE_LEN)]
    ProgramTooLong,
    /// The operating system refused.
    #[error("this machine's operating system refused: {0}")]
    Os(#[from] io::Error),
    /// A guest exited in another way than it should.
    #[error("{run}: the guest exited at {rip:#x} for reason {reason}, not as expected")]
    Unexpected {
        /// What was being run.
        run: &'static str,
        /// The value of RIP.
        rip: u64,
        /// The high half of `orig_ax`.
        reason: u32,
    },
}

/// Bit of AT_HWCAP2 that says that CR4.FSGSBASE is set (Linux, Documentation/arch/x86/elf_auxvec).
const HWCAP2_FSGSBASE: libc::c_ulong = 1 << 1;

/// Whether, and how, emitted bytes can be run here.
///
/// # Errors
/// An error that names what is missing.
pub fn supported() -> Result<Interception, Unsupported> {
    // SAFETY: reads the auxiliary vector; 0 for what the kernel does not say.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if hwcap2 & HWCAP2_FSGSBASE == 0 {
        return Err(Unsupported::FsGsBase);
    }
    let (cs, ss) = signal::own_selectors();
    if (cs, ss) != (Selectors::DEFAULT.user_cs(), Selectors::DEFAULT.user_ds()) {
        return Err(Unsupported::Selectors { cs, ss });
    }
    let dispatch = signal::has_dispatch();
    Ok(if dispatch { Interception::UserDispatch } else { Interception::Stepping })
}
