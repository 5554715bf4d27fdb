//! Proofs: the bytes do what the specification says, for every state.
pub mod obligation;
mod target;
mod theorem;
mod world;

pub use obligation::Obligation;
pub use target::Target;
pub use theorem::{BadCode, Goal, Neighbour, Run, Theorem, run, saved};
pub use world::{Placement, Saved, Setting, Source};
mod smoke;
