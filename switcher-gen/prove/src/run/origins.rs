//! What a value says of others: whether a guest may learn it, and whether a guest has chosen it.

use crate::target::Target;
use switcher_gen::layout::Placement;
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

/// Whether a word is made of the address of memory of the host's in which values of a guest's lie,
/// too, in whatever way. Where the per-CPU block lies beside the code, what is made of an address
/// of the code's may be one of the block's, if it is not seen to be the code's, and so may a
/// number.
pub(crate) fn is_of_mixed_memory<D: Domain>(d: &D, target: &Target, word: D::Word) -> bool {
    let is_beside_code = target.setting.variant.placement() == Placement::PerCpu;
    let is_of_code = || d.code_at(word).is_some_and(|at| target.program.contains(at));
    let is_mixed = d.mentions(word, |origin| {
        origin == Origin::MixedMemory || is_beside_code && origin == Origin::Place
    });
    is_mixed && !is_of_code() || is_beside_code && may_be_address(d, word)
}

/// Whether a word may be a number that is an address of a kernel's, wherever its code is linked to
/// lie: one of several, or one that lies between those that it was. Small negative numbers are the
/// last of them, and none.
fn may_be_address<D: Domain>(d: &D, word: D::Word) -> bool {
    const SMALL: i64 = -(1 << 16);
    let may_be = |word: D::Word| d.span(word).is_some_and(|(least, _)| least < SMALL);
    may_be(word) || d.alternatives(word).into_iter().any(may_be)
}

/// Whether a word is made of the address of the host's own stack. Below RSP, an arm or an earlier
/// exit may have left a value of a guest's there.
pub(crate) fn is_of_hosts_stack<D: Domain>(d: &D, word: D::Word) -> bool {
    d.mentions(word, |origin| origin == Origin::HostStack)
}

/// Whether code of the host that follows `word` may come to a value that a guest has chosen.
pub(crate) fn leads_to_a_guests<D: Domain>(d: &D, target: &Target, word: D::Word) -> bool {
    is_of_mixed_memory(d, target, word) || is_of_hosts_stack(d, word)
}

/// Whether a word is made of the address of anything, in whatever way: cut, added to, or chosen.
pub(crate) fn is_of_address<D: Domain>(d: &D, target: &Target, word: D::Word) -> bool {
    is_of_mixed_memory(d, target, word)
        || d.mentions(word, |origin| match origin {
            Origin::MixedMemory
            | Origin::GuestMemory
            | Origin::HostStack
            | Origin::InterruptedBase
            | Origin::Place
            | Origin::Found => true,
            Origin::Guest
            | Origin::GuestStackPointer
            | Origin::Shared
            | Origin::Published
            | Origin::Host
            | Origin::Stale
            | Origin::Interrupted
            | Origin::Cpu
            | Origin::Code => false,
        })
}
