//! `switcher_enter_guest` (spec/switcher.md, "Enter guest and common exit"): the way in.

use super::{Guest, Host, Outcome, State, return_to_guest, sanitised};
use switcher_model::Domain;

/// The host has called; `frame` is what stands just below sp0. The switcher chooses the value of
/// `host_rsp`. It must not be zero, and the exit must find the caller by it.
pub fn enter_guest<D: Domain>(
    d: &D,
    host: &Host,
    frame: &Guest<D::Word>,
    state: &mut State<D>,
) -> Outcome<D::Word> {
    state.root = state.tss_extra.enter_cr3;
    if host.ibrs {
        state.spec_ctrl = state.tss_extra.guest_spec_ctrl;
    }
    // The guest's GS base has been in the CPU all the time, as the inactive one.
    let gs_base = state.guest.gs_base;
    state.guest = Guest { gs_base, rflags: sanitised(d, frame.rflags), ..*frame };
    Outcome::Guest(return_to_guest(d, host, &state.guest))
}
