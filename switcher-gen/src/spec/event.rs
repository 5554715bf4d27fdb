//! Events (spec/switcher.md, "Events from the guest"): exceptions, interrupts, NMIs.

use super::{Caller, ExitFrame, Guest, Host, Outcome, Registers, State, return_from_guest};
use crate::arch::RFlags;
use crate::machine::Domain;

/// What the CPU says of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event<W> {
    /// Its vector.
    pub vector: u8,
    /// Its error code, if it has one.
    pub error_code: Option<W>,
}

/// What an event in ring 0 has interrupted: the switcher anywhere, or the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interrupted<W> {
    /// The general registers.
    pub registers: Registers<W>,
    /// The next instruction.
    pub rip: W,
    /// RFLAGS.
    pub rflags: W,
    /// The code selector.
    pub cs: W,
    /// The stack selector.
    pub ss: W,
    /// GS base, whosesoever it is.
    pub gs_base: W,
    /// The other one.
    pub inactive_gs_base: W,
    /// CR3.
    pub root: W,
}

/// What a hook of the host finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hook<W> {
    /// CR3.
    pub root: W,
    /// MSR SPEC_CTRL.
    pub spec_ctrl: W,
    /// What the `PtRegs` that it is given says.
    pub interrupted: Interrupted<W>,
    /// Error code and vector.
    pub orig_ax: W,
}

/// The vector in the high half, the hardware's error code in the low half, -1 if there is none.
fn orig_ax<D: Domain>(d: &D, event: &Event<D::Word>) -> D::Word {
    let error_code = event.error_code.unwrap_or(d.word(u64::MAX));
    d.or(d.word(u64::from(event.vector) << 32), d.truncate(error_code, 4))
}

/// An event of a guest, whose state is `guest`: CPL 3 was interrupted, or an IRETQ to it has
/// refused that state. It exits, with the frame on the sp0 stack in any case.
pub fn event<D: Domain>(
    d: &D,
    host: &Host,
    caller: &Caller<D::Word>,
    event: &Event<D::Word>,
    guest: &Guest<D::Word>,
    frame_at: D::Word,
    state: &mut State<D>,
) -> Outcome<D::Word> {
    state.guest = *guest;
    let frame = ExitFrame { guest: *guest, orig_ax: orig_ax(d, event) };
    return_from_guest(d, host, caller, Some(frame), frame_at, state)
}

/// NMI and #MC in ring 0, and what cannot be gone on from: what the host's hook finds. It runs on
/// the host's root; if no guest is being run, that is the interrupted one. GS is the host's.
///
/// What was interrupted by NMI or #MC goes on as if nothing had happened.
pub fn hook<D: Domain>(
    d: &D,
    host: &Host,
    event: &Event<D::Word>,
    interrupted: &Interrupted<D::Word>,
    state: &State<D>,
) -> Hook<D::Word> {
    let running = d.any(state.tss_extra.host_rsp, u64::MAX);
    let root = d.select(running, state.tss_extra.host_cr3, interrupted.root);
    let spec_ctrl = if host.ibrs { state.tss_extra.host_spec_ctrl } else { state.spec_ctrl };
    Hook { root, spec_ctrl, interrupted: *interrupted, orig_ax: orig_ax(d, event) }
}

/// #DB in ring 0: what goes on. It is ignored, and so that it is not met again at once, TF is clear
/// and RF is set.
pub fn debug_in_ring_0<D: Domain>(
    d: &D,
    interrupted: &Interrupted<D::Word>,
) -> Interrupted<D::Word> {
    let rflags = d.mask(interrupted.rflags, RFlags::NOT_TRACED.bits());
    Interrupted { rflags: d.or(rflags, d.word(RFlags::RF.bits())), ..*interrupted }
}
