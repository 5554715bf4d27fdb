//! The CPU, as far as switchers use it: **one** semantics of each instruction, generic over what a
//! register holds.
//!
//! | file | what it is |
//! |---|---|
//! | `domain`, `concrete`, `symbolic` | values: numbers for interpretation, terms for proofs |
//! | `operation` | what an instruction is once it is decoded, and how one of iced-x86's becomes one |
//! | `program` | bytes, decoded into operations; anything not modelled is an error |
//! | `second`, `prefixes` | the same bytes by another decoder, which must agree; prefixes that mean nothing |
//! | `flags` | RFLAGS and conditions |
//! | `memory` | regions, and what is assumed of their addresses |
//! | `state` | registers, MSRs, the CPU's own transitions: SYSCALL, SYSRETQ, IRETQ, events |
//! | `event` | exceptions, interrupts and NMIs: how the CPU delivers them |
//! | `exists` | what a CPU must have for an instruction to exist, and for a value to be allowed |
//! | `step` | the semantics of each operation |
//!
//! The proofs of `switcher-prove`, the interpreter and the fuzzers of `switcher-engine`, and the
//! cost of paths all go through [`State::step`]. What it says is compared with the real CPU and
//! with emulators by the tests of `hw-vectors`. To teach it an instruction, see CONTRIBUTING.md.
//!
//! ```
//! use switcher_model::Program;
//!
//! // Two decoders read each instruction: the operation is what both make of the bytes.
//! let program = Program::new(0x1000, vec![0x48, 0x89, 0xD8, 0x0F, 0x05]);
//! assert_eq!(program.text(0x1000).as_deref(), Some("mov rax,rbx"));
//! assert!(matches!(program.at(0x1003), Some(Ok(_))));
//!
//! // What has no semantics here is an error, and not a guess: CPUID.
//! let unknown = Program::new(0x1000, vec![0x0F, 0xA2]);
//! assert!(matches!(unknown.at(0x1000), Some(Err(_))));
//! ```
//!
//! [`symbolic`] has an example of terms, paths and the solver.

pub mod concrete;
pub mod domain;
mod event;
pub mod exists;
mod flags;
mod memory;
mod operation;
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
pub use memory::{Cells, Hooked, Memory, Place, Region, RegionName, Sharing};
pub use operation::{Fault, Fence, Gpr};
pub use program::{Changed, Op, Program, ProgramError};
pub use state::WRITABLE;
pub use state::{CR4, CR4_PCIDE, CR4_PKE, CpuModel, EFER, Msrs, State, SyscallKind, cr4};
pub use step::{Access, Branch, Effect, Elsewhere, Held, Observer, Step, Stuck, Unobserved};
