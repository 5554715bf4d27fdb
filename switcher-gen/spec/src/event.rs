//! Events (spec/switcher.md, "Events from the guest"): exceptions, interrupts, NMIs.
//!
//! What is said here is said of every vector alike. Which are a guest's, which a hook is called for
//! and which cannot be gone on from depends on what was interrupted, and on nothing but this of the
//! vector:
//! #DB, NMI, #MC and #DF have stacks of their own and a meaning in ring 0, and #NP, #SS and #GP are the
//! guest's if the IRETQ to it raises them.
//!
//! **NMIs are blocked** from the delivery of one until an IRET is executed, whatever that returns
//! from (spec/hazards.md, rows 11 and 39). So:
//!
//! * a guest's NMI has left the NMIs' stack by the time that an IRETQ ends the blocking, before it
//!   exits;
//! * an NMI in ring 0 keeps others blocked up to the one IRETQ by which it returns;
//! * #DB and #MC in ring 0 leave NMIs blocked if they were: within the routines they never are, and
//!   what was interrupted goes on by IRETQ; elsewhere, which may be an NMI's entry, its hook or its
//!   return, it goes on without one;
//! * in a guest, and in the host after an exit, NMIs are not blocked.

use super::{Caller, ExitFrame, Guest, Host, Outcome, Registers, State, return_from_guest};
use switcher_gen::arch::RFlags;
use switcher_model::Domain;

/// What the CPU says of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event<W> {
    /// Its vector.
    pub vector: W,
    /// Its error code, if it has one.
    pub error_code: Option<W>,
}

/// What an event in ring 0 has interrupted: the switcher anywhere, or the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InterruptedCode<W> {
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
    /// The active GS base: the host's or a guest's.
    pub gs_base: W,
    /// The inactive GS base.
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
    pub interrupted: InterruptedCode<W>,
    /// Error code and vector.
    pub orig_ax: W,
}

/// The vector in the high half, the hardware's error code in the low half, -1 if there is none.
fn orig_ax<D: Domain>(d: &D, event: &Event<D::Word>) -> D::Word {
    let error_code = event.error_code.unwrap_or(d.word(u64::MAX));
    d.or(d.shl(event.vector, 32), d.truncate(error_code, 4))
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
/// What was interrupted by an NMI goes on as if nothing had happened; by a #MC: see
/// [`machine_check_in_ring_0`].
pub fn hook<D: Domain>(
    d: &D,
    host: &Host,
    event: &Event<D::Word>,
    interrupted: &InterruptedCode<D::Word>,
    state: &State<D>,
) -> Hook<D::Word> {
    let running = d.any(state.tss_extra.host_rsp, u64::MAX);
    let root = d.select(running, state.tss_extra.host_cr3, interrupted.root);
    let spec_ctrl = if host.ibrs { state.tss_extra.host_spec_ctrl } else { state.spec_ctrl };
    Hook { root, spec_ctrl, interrupted: *interrupted, orig_ax: orig_ax(d, event) }
}

/// #MC in ring 0: what goes on, once the hook has returned. That is what was interrupted, but for RF,
/// which only an IRETQ can set: it is kept `in_routines`, and clear elsewhere.
pub fn machine_check_in_ring_0<D: Domain>(
    d: &D,
    interrupted: &InterruptedCode<D::Word>,
    in_routines: D::Bit,
) -> InterruptedCode<D::Word> {
    let without = d.mask(interrupted.rflags, !RFlags::RF.bits());
    let rflags = d.select(in_routines, interrupted.rflags, without);
    InterruptedCode { rflags, ..*interrupted }
}

/// #DB in ring 0: what goes on. It is ignored, and so that it is not met again at once, TF is clear
/// and, `in_routines`, RF is set. Elsewhere that cannot be, and is not needed: no breakpoint on an
/// instruction is there.
pub fn debug_in_ring_0<D: Domain>(
    d: &D,
    interrupted: &InterruptedCode<D::Word>,
    in_routines: D::Bit,
) -> InterruptedCode<D::Word> {
    let without = d.mask(interrupted.rflags, !(RFlags::TF | RFlags::RF).bits());
    let rflags = d.select(in_routines, d.or(without, d.word(RFlags::RF.bits())), without);
    InterruptedCode { rflags, ..*interrupted }
}
