//! What blocks NMIs, and what an event in ring 0 may find: the invariants that the theorems about
//! #DB and #MC in ring 0 assume of what they interrupt, shown at every boundary of every other
//! theorem.
//!
//! Where a target has event entries, they have to return from a #MC or a #DB in ring 0 so that NMIs
//! are blocked afterwards if they were before (spec/hazards.md, row 39): the IRETQ that ends the
//! blocking would let the next NMI overwrite a frame that the present one still needs. By the
//! interrupted RIP they know which way is right:
//!
//! * in [`Target::routines`](crate::Target::routines), NMIs are never blocked, and RSP may be a
//!   guest's;
//! * anywhere else RSP is a stack of ring 0, with room for what is put there, and IF, TF,
//!   VIF and VIP are clear.
//!
//! The theorems about them assume this of the interrupted state, and every theorem shows it of all
//! states that it passes through, these two included: so an NMI, a #MC and a #DB may come at any
//! boundary of anything, and nested as the hardware nests them. Events from which nothing goes on
//! are excepted: nobody looks again at what they have interrupted.

use crate::entry::Entry;
use crate::goal::Goals;
use crate::theorem::Theorem;
use crate::world::World;
use crate::world::event::INTERRUPTED;
use crate::{boundary, obligation};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::{FarFrame, IstTop};
use switcher_model::{Domain, Gpr, RegionName, State as Machine};

/// How much of a stack an event uses itself, at most: a `PtRegs`, a hook's alignment, and the calls
/// of mitigations.
pub(crate) const OWN_STACK: i64 = IstTop::USED as i64;
/// How much a #MC or a #DB may put below what it interrupts. Neither interrupts itself, but each
/// may interrupt the other's return.
pub(crate) const ROOM: i64 = FarFrame::ROOM as i64;

/// What is known of NMIs: when a theorem starts, and by what an event has done.
#[derive(Debug)]
pub(crate) struct Blocking<D: Domain> {
    /// Whether they were blocked in the ring 0 that is interrupted, where that matters.
    before: Option<D::Bit>,
    /// Whether what is interrupted there is one of the routines.
    in_routines: D::Bit,
    /// The root that ring 0 is interrupted on.
    root: D::Word,
    /// Whether an event has executed an IRETQ.
    is_ended: bool,
    /// Whether it has used its stack of the IST since.
    is_on_ist_again: bool,
}

impl<D: Domain> Blocking<D> {
    pub(crate) fn new(d: &D, world: &World<D>) -> Self {
        let happening = world.event.as_ref();
        Self {
            before: happening.and_then(|happening| happening.nmi_blocked),
            in_routines: happening.map_or(d.bit(false), |happening| happening.in_routines),
            root: happening.map_or(world.machine.cr3, |happening| happening.interrupted.root),
            is_ended: false,
            is_on_ist_again: false,
        }
    }

    /// An IRETQ of an event's: NMIs are no longer blocked.
    pub(crate) const fn end(&mut self) {
        self.is_ended = true;
    }

    /// An access to this region.
    pub(crate) fn uses(&mut self, region: RegionName) {
        self.is_on_ist_again |= self.is_ended && region == RegionName::IstStack;
    }

    /// Whether an event has used its stack of the IST after its IRETQ.
    pub(crate) const fn is_on_ist_again(&self) -> bool {
        self.is_on_ist_again
    }
}

impl<D: Domain> Blocking<D> {
    /// What must hold before the instruction at `at`: an event that comes there finds what it
    /// relies on.
    pub(crate) fn boundary(
        &mut self,
        d: &D,
        entry: Entry<'_>,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        at: u64,
    ) {
        // To hand an event on is the host's business, under its own IDT.
        if entry.is_fatal() || entry.theorem.hands_on() {
            return;
        }
        let is_routine = entry.target.is_routine(at);
        // If the code has no event entries, it is not known where NMIs may be blocked.
        let has_gates = entry.target.gates.is_some();
        let (model, setting) = (entry.target.model(), entry.target.setting);
        let in_routines = d.bit(is_routine && has_gates);
        for condition in boundary::conditions(d, &model, &setting, state, in_routines) {
            goals.add(condition.obligation, condition.holds, condition.about);
        }
        if !has_gates {
            return;
        }
        if !is_routine {
            let has_room = d.bit(has_room(d, entry, state));
            goals.add(obligation::STACK_ROOM, has_room, "RSP");
        }
        self.still_blocked(d, entry, goals, state);
        if entry.theorem.is_on_ist() && is_on_ist(d, state) {
            self.uses(RegionName::IstStack);
        }
    }

    /// NMIs are blocked if they were when ring 0 was interrupted. If an NMI has interrupted it,
    /// they are blocked until ring 0 goes on.
    fn still_blocked(&self, d: &D, entry: Entry<'_>, goals: &mut Goals<D>, state: &Machine<D>) {
        if entry.theorem == Theorem::NmiInRing0 {
            goals.add(obligation::NMI_KEPT, state.nmi_blocked, "NMIs");
        } else if let Some(before) = self.before {
            let is_kept = d.either(d.not(before), state.nmi_blocked);
            goals.add(obligation::NMI_KEPT, is_kept, "NMIs");
        }
    }

    /// What must hold of NMIs where the interrupted code goes on.
    pub(crate) fn resumed(
        &self,
        d: &D,
        entry: Entry<'_>,
        goals: &mut Goals<D>,
        state: &Machine<D>,
    ) {
        if entry.theorem == Theorem::NmiInRing0 {
            goals.add(obligation::NMI_UNBLOCKED, d.not(state.nmi_blocked), "NMIs");
        } else {
            self.still_blocked(d, entry, goals, state);
        }
    }

    /// What must hold of NMIs where the guest goes on: whatever has interrupted it is over.
    pub(crate) fn is_over(&self, d: &D, goals: &mut Goals<D>, state: &Machine<D>) {
        goals.add(obligation::NMI_UNBLOCKED, d.not(state.nmi_blocked), "NMIs");
    }

    /// What must hold of NMIs in the host after its call. An NMI that has interrupted the guest is
    /// the host's to hand on, and others wait until its handler is over.
    pub(crate) fn has_exited(
        &self,
        d: &D,
        entry: Entry<'_>,
        goals: &mut Goals<D>,
        state: &Machine<D>,
    ) {
        if entry.theorem.is_of_nmis() {
            goals.add(obligation::NMI_KEPT, state.nmi_blocked, "NMIs");
        } else {
            self.is_over(d, goals, state);
        }
    }

    /// What must hold of an access to the stack of the interrupted code.
    pub(crate) fn interrupted_stack(&self, d: &D, goals: &mut Goals<D>, state: &Machine<D>) {
        let Self { in_routines, root, .. } = *self;
        let is_known = d.both(d.not(in_routines), d.eq(state.cr3, root));
        goals.add(obligation::RESUMED_STACK, is_known, "RSP");
    }

    /// The IRETQ to a guest takes its frame from where the theorems about its faults have it, and
    /// those have flags that a guest may have.
    pub(crate) fn frame_of_iretq(
        &self,
        d: &D,
        entry: Entry<'_>,
        goals: &mut Goals<D>,
        state: &Machine<D>,
    ) {
        let others = d.any(state.rflags(d), !RFlags::GUEST_ALLOWED.bits());
        goals.add(obligation::IRETQ_FLAGS, d.not(others), "RFLAGS");
        if entry.target.gates.is_none() {
            return;
        }
        let sp0 =
            state.memory.region(RegionName::Sp0Stack).expect("every world has all regions").base;
        let expected = d.plus(sp0, -40);
        goals.equal(d, obligation::IRETQ_FRAME, "RSP", expected, state.get(Gpr::Rsp));
    }
}

/// Whether RSP is on a stack, and deep enough below its end are the bytes that a #MC or a #DB
/// needs.
fn has_room<D: Domain>(d: &D, entry: Entry<'_>, state: &Machine<D>) -> bool {
    let rsp = state.get(Gpr::Rsp);
    state.memory.regions.iter().any(|stack| {
        let deepest = match stack.name {
            // The room for them lies below what an event uses.
            RegionName::IstStack => OWN_STACK,
            // This is all that a host has there, less their room.
            RegionName::Sp0Stack => -stack.start - 2 * ROOM,
            // The host promises as much below its own RSP and below what the code uses there, and
            // where its code raises an exception that is handed on, room for an event besides.
            RegionName::HostStack if entry.hands_on() => OWN_STACK,
            RegionName::HostStack => -stack.start,
            // The frame of the far RET lies there.
            RegionName::InterruptedStack => ROOM,
            RegionName::Tss
            | RegionName::TssExtra
            | RegionName::PerCpu
            | RegionName::Pvcs
            | RegionName::Code
            | RegionName::Guest
            | RegionName::HostData
            | RegionName::MappedData
            | RegionName::HostWord
            | RegionName::Stack => return false,
        };
        let top = stack.offset(stack.cells.len());
        d.distance(rsp, stack.base).is_some_and(|at| (-deepest..=top).contains(&at))
    })
}

pub(crate) fn is_on_ist<D: Domain>(d: &D, state: &Machine<D>) -> bool {
    state.memory.region(RegionName::IstStack).is_some_and(|stack| {
        let at = d.distance(state.get(Gpr::Rsp), stack.base);
        at.is_some_and(|at| stack.index(at).is_some() || at == 0)
    })
}

const _: () = assert!(ROOM <= INTERRUPTED);
