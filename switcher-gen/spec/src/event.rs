//! Events (spec/switcher.md, "Events from the guest"): exceptions, interrupts, NMIs.
//!
//! All vectors are treated alike, with two exceptions. #DB, NMI, #MC and #DF have stacks of their
//! own and a meaning in ring 0. #NP, #SS and #GP are the guest's if the IRETQ to it raises them.
//! Apart from that, what was interrupted decides whether an event is a guest's, whether a hook is
//! called, or whether the host cannot go on.
//!
//! **NMIs are blocked** from the delivery of one until an IRET is executed, whatever event the IRET
//! returns from (spec/hazards.md, rows 11 and 39). So:
//!
//! * a guest's NMI exits with NMIs still blocked: the host hands it on to its handler, whose IRET
//!   ends the blocking;
//! * an NMI in ring 0 keeps others blocked up to the one IRETQ by which it returns;
//! * #DB and #MC in ring 0 leave NMIs blocked if they were. Within the routines, up to the
//!   common exit, NMIs are never blocked, and interrupted code goes on by IRETQ. Elsewhere an NMI's
//!   entry, its hook, its return or its exit may have been interrupted, and that code goes on
//!   without an IRETQ;
//! * in a guest NMIs are not blocked, and neither are they in the host after any other exit.

use super::{Caller, ExitFrame, Guest, Host, Outcome, Registers, State, return_from_guest};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::EventFrame;
use switcher_model::{ARITHMETIC, Domain};

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
    /// The interrupted code, as the `PtRegs` describes it that the hook is given.
    pub interrupted: InterruptedCode<W>,
    /// Error code and vector.
    pub orig_ax: W,
}

/// The vector in the high half, the hardware's error code in the low half, -1 if there is none.
fn orig_ax<D: Domain>(d: &D, event: &Event<D::Word>) -> D::Word {
    let error_code = event.error_code.unwrap_or(d.word(u64::MAX));
    d.or(d.shl(event.vector, 32), d.truncate(error_code, 4))
}

/// An event of a guest, whose state is `guest`. It has interrupted CPL 3, or the IRETQ to the guest
/// has faulted on that state. The guest exits, with the frame on the sp0 stack in any case.
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

/// What the host's hook finds at an NMI or #MC in ring 0, or at an event after which the host
/// cannot go on. The hook runs on the host's root; if no guest is being run, that is the
/// interrupted root. GS is the host's.
///
/// Code that was interrupted by an NMI goes on as if nothing had happened. After a #MC, it goes on
/// as [`machine_check_in_ring_0`] says.
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

/// What the host's own handler of exceptions finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HandedOn<W> {
    /// The vector, in the lowest byte of what RSP points to.
    pub vector: W,
    /// The error code of the hardware, or -1; above it is the `IretFrame` of the interrupted code.
    pub error_code: W,
    /// The state with which the handler begins; of the flags, all but the arithmetic ones.
    pub state: InterruptedCode<W>,
}

/// The host's own code has raised an exception while the switcher's IDT is loaded, and has a
/// handler for that. It begins as if the CPU had delivered the event to it through an interrupt
/// gate without a stack of its own, and a stub had pushed what the frame says.
pub fn exception_in_host<D: Domain>(
    d: &D,
    event: &Event<D::Word>,
    interrupted: &InterruptedCode<D::Word>,
) -> HandedOn<D::Word> {
    let error_code = event.error_code.unwrap_or(d.word(u64::MAX));
    let cleared = RFlags::IF | RFlags::TF | RFlags::NT | RFlags::RF;
    let rflags = d.mask(interrupted.rflags, !(cleared.bits() | ARITHMETIC));
    let top = d.mask(interrupted.registers.rsp, !0xF);
    let rsp = d.plus(top, -(size_of::<EventFrame>() as i64));
    let registers = Registers { rsp, ..interrupted.registers };
    HandedOn {
        vector: event.vector,
        error_code,
        state: InterruptedCode { rflags, registers, ..*interrupted },
    }
}

/// The state that goes on after a #MC in ring 0, once the hook has returned. It is the interrupted
/// one except for RF, which only an IRETQ can set: RF is kept `in_routines`, and clear elsewhere.
pub fn machine_check_in_ring_0<D: Domain>(
    d: &D,
    interrupted: &InterruptedCode<D::Word>,
    in_routines: D::Bit,
) -> InterruptedCode<D::Word> {
    let without = d.mask(interrupted.rflags, !RFlags::RF.bits());
    let rflags = d.select(in_routines, interrupted.rflags, without);
    InterruptedCode { rflags, ..*interrupted }
}

/// The state that goes on after a #DB in ring 0, which is ignored. TF is clear and, `in_routines`,
/// RF is set, so that the same #DB does not come again at once. Elsewhere RF cannot be set. That is
/// not needed, because no breakpoint on an instruction lies there.
pub fn debug_in_ring_0<D: Domain>(
    d: &D,
    interrupted: &InterruptedCode<D::Word>,
    in_routines: D::Bit,
) -> InterruptedCode<D::Word> {
    let without = d.mask(interrupted.rflags, !(RFlags::TF | RFlags::RF).bits());
    let rflags = d.select(in_routines, d.or(without, d.word(RFlags::RF.bits())), without);
    InterruptedCode { rflags, ..*interrupted }
}
