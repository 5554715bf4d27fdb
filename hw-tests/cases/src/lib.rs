//! What a switcher must do, case by case, with its exact outcome for each vendor and paging mode.
//!
//! A case puts a guest into a state ([`Setup`]), an engine ([`CaseHost`]) runs it until it exits,
//! and *everything* the exit shows ([`Observed`]) is compared with what must come of it
//! ([`Expected`]): all registers, the PVCS, the mode, and the host itself. The cases know nothing
//! of engines; the bare-metal kernel is one, the model of a CPU and the real CPU in user mode are
//! others. Whoever writes an engine implements [`CaseHost`] and runs the list.
//!
//! The guest's programs are a few instructions ([`program!`](switcher_gen::program!)). UD2 is the
//! probe: its #UD shows every register as it is, RCX and R11 too.
//!
//! ```
//! use switcher_gen::Hazard;
//!
//! // Which cases try whether SYSRETQ can fault in ring 0?
//! let cases = hw_cases::all();
//! let tried = cases.iter().filter(|case| case.rows.contains(&Hazard::SysretNonCanonical));
//! let names: Vec<_> = tried.map(|case| case.name).collect();
//! assert!(names.contains(&"eretu_to_a_rip_with_any_high_bit_faults_in_the_guest"));
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod case_host;
mod compat;
mod expect;
mod list;
mod program;
mod run;

pub use case_host::{
    CaseHost, Entries, Failure, GuestBytes, HostAfter, Observed, Platform, Refusal, Setup, place,
};
pub use compat::CompatSyscall;
pub use expect::Expected;
pub use list::all;
pub use program::{PROBE, SYSCALL};
pub use run::{Case, CaseEnd, CaseRun};
