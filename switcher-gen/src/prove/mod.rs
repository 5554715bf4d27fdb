//! Proofs: the bytes do what the specification says, for every state.
mod counterexample;
mod engine;
pub mod obligation;
mod target;
mod theorem;
mod world;

pub use counterexample::Counterexample;
pub use engine::{Prover, Report, Unexplored, Verdict};
pub use obligation::Obligation;
pub use target::Target;
pub use theorem::{BadCode, Goal, Neighbour, Run, Theorem, Walk, run, saved};
pub use world::{Placement, Saved, Setting, Source};
pub(crate) use world::{read_extra, read_pvcs, region};
