//! `switcher_return_from_guest` (spec/switcher.md, "Enter guest and common exit"): the way out.

use super::{Caller, Exit, ExitFrame, Host, Outcome, State};
use switcher_model::Domain;

/// A guest's registers are in a frame at `frame_at`, on the sp0 stack or on one of the IST; `frame`
/// is what it holds if the switcher itself wrote it.
///
/// What else every exit must establish is in the list of goals of `switcher-prove`:
/// scratch registers are zero, DF and AC are clear, GS base is the host's.
pub fn return_from_guest<D: Domain>(
    d: &D,
    host: &Host,
    caller: &Caller<D::Word>,
    frame: Option<ExitFrame<D::Word>>,
    frame_at: D::Word,
    state: &mut State<D>,
) -> Outcome<D::Word> {
    state.root = state.tss_extra.host_cr3;
    if host.ibrs {
        state.spec_ctrl = state.tss_extra.host_spec_ctrl;
    }
    // No guest is being run any more.
    state.tss_extra.host_rsp = d.word(0);
    Outcome::Host(Exit { frame, frame_at, caller: *caller })
}
