//! The CPU, as far as switchers use it: **one** semantics of each instruction, generic over what a
//! register holds.
//!
//! | file | what it is |
//! |---|---|
//! | `domain`, `concrete`, `symbolic` | values: numbers for interpretation, terms for proofs |
//! | `program` | bytes decoded by iced-x86 into operations; anything not modelled is an error |
//! | `second`, `prefixes` | the same bytes by another decoder, which must agree; prefixes that mean nothing |
//! | `flags` | RFLAGS and conditions |
//! | `memory` | regions, and what is assumed of their addresses |
//! | `state` | registers, MSRs, the CPU's own transitions: SYSCALL, SYSRETQ, IRETQ, events |
//! | `event` | exceptions, interrupts and NMIs: how the CPU delivers them |
//! | `exists` | what a CPU must have for an instruction to exist, and for a value to be allowed |
//! | `step` | the semantics of each operation |
//! | `interpreter` | whole runs on numbers: host, switcher, guest, and what must never happen |
//!
//! The interpreter, the proofs, the cost model and the fuzzers all go through [`State::step`]. What
//! it says is compared with the real CPU and with emulators by the tests.

pub mod concrete;
pub mod domain;
mod event;
pub mod exists;
mod flags;
mod memory;
mod prefixes;
pub mod program;
mod second;
mod state;
mod step;
pub mod symbolic;

pub use concrete::Concrete;
pub use concrete::SLIDE;
pub use domain::low_bytes;
pub use domain::{Domain, Origin};
pub use event::{Arrival, Gate, Undeliverable};
pub use exists::Features;
pub use flags::{ARITHMETIC, Condition, Flags};
pub use memory::{Hooked, Memory, Place, Region, RegionName, Sharing};
pub use program::{Op, Program, ProgramError};
pub use state::WRITABLE;
pub use state::{CR4, CR4_PCIDE, CR4_PKE, EFER, Entry, Fault, Gpr, Model, Msrs, State, cr4};
pub use step::{Access, Branch, Event, Fence, Held, Observer, Step, Stuck, Unobserved};
