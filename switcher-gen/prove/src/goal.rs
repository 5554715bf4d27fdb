//! One thing to be shown, and all that a run has to show.

use crate::obligation::Obligation;
use switcher_model::Domain;

/// One thing to be shown.
#[derive(Debug)]
pub struct Goal<D: Domain> {
    /// Which.
    pub obligation: Obligation,
    /// Whether it holds.
    pub holds: D::Bit,
    /// What of the state it is about.
    pub about: &'static str,
    /// What should be there and what is.
    pub values: Option<(D::Word, D::Word)>,
    /// The instruction, if one is concerned.
    pub at: Option<u64>,
}
