//! Random states, run and compared in full with the specification.
//!
//! Proofs cover all states, if the model of terms is right; this covers many, without it.
//!
//! | file | what it is |
//! |---|---|
//! | `machine` | a theorem's states, on the model of the CPU |
//! | `native` | whole scenarios, on this CPU, on the model and by the specification |
//! | `scenario` | random guests, for `native` and for the tests |

mod machine;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod native;
pub mod scenario;

pub use machine::{Class, Coverage, Difference, machine};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub use native::{
    Disagreement, Engines, NativeCoverage, NativeDifference, NativeError, SwitcherPath, Witness,
    native,
};
