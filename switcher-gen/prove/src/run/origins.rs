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

/// Whether code of the host that goes by `word` goes by what a guest has chosen: the word depends
/// on such a value, or is made of the address of what the guest writes.
pub(crate) fn steers_the_host<D: Domain>(d: &D, word: D::Word) -> bool {
    is_steered(d, word) || d.mentions(word, |origin| origin == Origin::GuestMemory)
}
