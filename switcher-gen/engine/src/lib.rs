//! Runs switchers.
//!
//! | module | what it is |
//! |---|---|
//! | [`scenario`] | a run: what it starts from, what comes of it, and what must not happen in it |
//! | [`interpreter`] | runs on the model of a CPU |
//! | [`native`] | runs on this CPU, in user mode |
//! | [`fuzz`] | many random states, on both, against the specification |
//!
//! Both engines take the same [`Setup`](scenario::Setup) and give the same
//! [`ScenarioEnd`](scenario::ScenarioEnd): how a guest is entered, and everything that its exit
//! shows. The command `switcher` takes its tour and its fuzzing from here, and `hw-tests` runs the
//! shared cases on both.
//!
//! ```
//! use switcher_engine::Interpreter;
//! use switcher_gen::layout::Mode;
//! use switcher_gen::{Variant, program};
//!
//! let mut machine = Interpreter::new(&"intel-4level".parse::<Variant>()?)?;
//! machine.load(Mode::Umod, 0, program!(; mov eax, 41 ; syscall ; ud2))?;
//! // This SYSCALL is ERETU.
//! let eretu = program!(; inc eax ; syscall);
//! machine.load(Mode::Smod, 0, eretu)?;
//! let mut setup = machine.setup(Mode::Umod);
//! setup.extra.retu_rip = machine.places().smod + eretu.len() as u64;
//!
//! // The system call and its return are direct switches: the host sees nothing before the #UD.
//! let outcome = machine.run(&setup)?;
//! assert_eq!((outcome.frame.orig_ax.reason, outcome.frame.rax), (6, 42));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod find;
pub mod fuzz;
pub mod interpreter;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "runs emitted bytes; each block carries its proof")]
pub mod native;
pub mod scenario;

pub use interpreter::Interpreter;
