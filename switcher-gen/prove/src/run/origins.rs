//! What a value says of others: whether a guest may learn it, and whether a guest has chosen it.

use switcher_model::Domain;

/// Whether a value says anything that no guest may learn.
pub(crate) fn is_a_leak<D: Domain>(d: &D, value: D::Word) -> bool {
    d.mentions(value, |origin| !origin.may_reach_a_guest())
}
