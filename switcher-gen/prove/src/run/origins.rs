//! What a value says of others: whether a guest may learn it, and whether a guest has chosen it.

use switcher_model::{Domain, Origin};

/// Whether a value says anything that no guest may learn.
pub(crate) fn is_a_leak<D: Domain>(d: &D, value: D::Word) -> bool {
    d.mentions(value, |origin| !origin.may_reach_a_guest())
}

/// Whether what `word` is depends on a value that a guest may have chosen, or has had a hand in.
pub(crate) fn is_steered<D: Domain>(d: &D, word: D::Word) -> bool {
    d.mentions(word, Origin::is_a_guests_choice)
}

/// Whether a value is made of the address of what the guest writes: whoever loads from there has
/// the guest's values.
pub(crate) fn is_of_guest_memory<D: Domain>(d: &D, value: D::Word) -> bool {
    d.mentions(value, |origin| origin == Origin::GuestMemory)
}
