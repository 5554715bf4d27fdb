//! What must hold of an arm: what it may tell, and what it leaves to the host, to a guest and to a hook.

use crate::goal::Goals;
use crate::obligation;
use crate::run::origins::is_a_leak;
use crate::run::origins::is_steered;
use crate::run::untaken::Arms;
use crate::run::watch::Watch;
use crate::theorem::Theorem;
use crate::world::World;
use switcher_gen::layout::TssExtra;
use switcher_model::{
    Access, Domain, Effect, Gpr, Held, Observer, Origin, Place, RegionName, State as Machine,
};

impl<D: Domain> Watch<'_, D> {
    /// The arm has read something: it may be too late for that.
    pub(crate) fn has_read(&self, d: &D, goals: &mut Goals<D>, is_last: bool) {
        let wanted = self.entry.target.setting.variant.mitigations().verw;
        if wanted
            && is_last
            && (self.entry.theorem == Theorem::EnterGuest || self.entry.theorem.has_hook())
        {
            goals.broken(d, obligation::VERW_LAST, "VERW", None);
        }
    }

    /// Whether all of host_rsp is read.
    fn is_host_rsp(&self, state: &Machine<D>, access: &Access<D::Word>) -> bool {
        let Place { region, index, size } = access.place;
        let region = &state.memory.regions[region];
        let at = self.entry.target.setting.block.tss_extra + TssExtra::host_rsp.bytes() as i64;
        region.name == RegionName::TssExtra && region.offset(index) == at && size == 8
    }

    /// The arm leaves for the host, or calls a hook.
    pub(crate) fn is_host(&self, d: &D, goals: &mut Goals<D>, machine: &Machine<D>) {
        let ours = d.eq(machine.gs_base, self.start.host_gs);
        goals.add(obligation::SWAPGS_FENCED, ours, "GS base");
    }
}

impl<D: Domain> Arms<D> {
    /// Whether a jump by `condition` tells what was found, or what no guest may learn, beyond what
    /// it is told anyway: by the way of the path itself, or because it is run at all. A question by
    /// which an event's entry tells whether the code was interrupted tells nothing.
    pub(crate) fn tells(
        &self,
        d: &D,
        watch: &Watch<'_, D>,
        state: &Machine<D>,
        condition: D::Word,
    ) -> bool {
        let is_of_code = d.is_of_code(condition);
        let is_secret = |origin: Origin| match origin {
            Origin::Interrupted => !is_of_code,
            Origin::Place => false,
            origin => !origin.may_reach_a_guest(),
        };
        let is_told = || {
            self.told.contains(&condition)
                || watch.decisions.is_told(d, condition)
                || watch.decisions.is_in_parts(d, state, condition)
        };
        is_found(d, condition) || d.mentions(condition, is_secret) && !is_told()
    }
}

/// The arm returns to the host, after the call of `switcher_enter_guest`.
pub(crate) fn at_caller<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) {
    let machine = &world.machine;
    if is_a_leak(d, machine.rip) && d.distance(machine.rip, world.caller.rip) != Some(0) {
        goals.broken(d, obligation::UNTAKEN_TARGET, "RIP", None);
    }
    watch.is_host(d, goals, machine);
    for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
        let is_free = !is_steered(d, machine.get(register));
        goals.add(obligation::EXIT_SCRATCH, d.bit(is_free), register.name());
    }
}

/// The arm enters a guest, if it is about routines that do.
pub(crate) fn at_guest<D: Domain>(
    d: &D,
    machine: &Machine<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) {
    if watch.entry.theorem.is_of_events() {
        return;
    }
    for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
        let is_free = !is_a_leak(d, machine.get(register));
        goals.add(obligation::NO_HOST_VALUE, d.bit(is_free), register.name());
    }
}

/// Whether a value says what no guest may learn, or what was found.
pub(crate) fn tells<D: Domain>(d: &D, word: D::Word) -> bool {
    is_found(d, word) || is_a_leak(d, word)
}

/// Whether it depends on what was loaded from where the path loads nothing.
fn is_found<D: Domain>(d: &D, word: D::Word) -> bool {
    d.mentions(word, |origin| origin == Origin::Cpu)
}

/// Whether a guest has a hand in where this leads.
pub(crate) fn is_a_guests<D: Domain>(d: &D, rip: D::Word) -> bool {
    d.mentions(rip, |origin| origin.is_a_guests_choice() || origin == Origin::Cpu)
}

/// The observer of an arm: it sees what mitigations are judged by.
pub(crate) struct Eye<'a, 'b, D: Domain> {
    pub(crate) watch: &'a mut Watch<'b, D>,
    pub(crate) goals: &'a mut Goals<D>,
    /// Whether nothing may be read but the frame that is returned to.
    pub(crate) is_last: bool,
    pub(crate) told: &'a mut Vec<D::Word>,
    pub(crate) lacks: &'a mut bool,
}

impl<D: Domain> Observer<D> for Eye<'_, '_, D> {
    fn held(&self, what: Held) -> &[D::Word] {
        self.watch.held(what)
    }

    fn observe(&mut self, d: &D, state: &Machine<D>, event: Effect<D::Word>) {
        let (watch, goals) = (&mut *self.watch, &mut *self.goals);
        match event {
            Effect::Depends(condition) => {
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
            }
            Effect::Access(access) => {
                let name = state.memory.regions[access.place.region].name;
                let is_frame =
                    watch.is_of_frame(name) && !d.mentions(access.value, Origin::is_the_hosts);
                watch.barriers.overwritten &= is_frame;
                watch.has_read(d, goals, self.is_last && !is_frame);
                if let Some((at, size)) = watch.reads_flags(state, &access) {
                    watch.decisions.read_flags(access.value, at, size);
                }
                if watch.is_host_rsp(state, &access) {
                    let is_zero = d.is(access.value, 0);
                    self.told.extend([is_zero, d.not(is_zero)].map(|bit| d.number(bit)));
                }
                if access.gs {
                    let ours = d.eq(state.gs_base, watch.start.host_gs);
                    goals.add(obligation::SWAPGS_FENCED, ours, "GS base");
                }
            }
            Effect::ReadMsr(_) => {
                watch.barriers.overwritten = false;
                watch.has_read(d, goals, self.is_last);
            }
            Effect::WriteMsr { number, value } => watch.barrier(d, goals, number, value),
            Effect::Verw => watch.barriers.overwritten = true,
            Effect::Branch(branch) => watch.branch(d, goals, state, branch),
            Effect::Fence(fence) => watch.barriers.fence(fence),
            // What another CPU does, which may lack the feature, is not judged here.
            Effect::Needs { condition, met } => {
                watch.needs.asked |= condition.asks();
                *self.lacks |= !met && !condition.asks().is_empty();
            }
            // An arm may go anywhere; what must hold is said of each access.
            Effect::Execute(_)
            | Effect::Decided(_)
            | Effect::LoadCr3(_)
            | Effect::WriteGsBase(_)
            | Effect::SwapGs
            | Effect::Sysretq
            | Effect::Iretq(_) => {}
        }
    }
}
