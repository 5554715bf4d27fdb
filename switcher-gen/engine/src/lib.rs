//! Runs switchers.
//!
//! | module | what it is |
//! |---|---|
//! | [`scenario`] | a run: what it starts from, what comes of it, and what must not happen in it |
//! | [`interpreter`] | runs on the model of a CPU |
//! | [`native`] | runs on this CPU, in user mode |
//! | [`fuzz`] | many random states, on both, against the specification |

#[cfg(test)]
mod find;
pub mod fuzz;
pub mod interpreter;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "runs emitted bytes; each block carries its proof")]
pub mod native;
pub mod scenario;

pub use interpreter::Interpreter;
