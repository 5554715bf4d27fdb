//! The observer of a run: what it remembers, and which goals each step gives rise to.

use crate::goal::Goal;
use crate::obligation;
use crate::obligation::Obligation;
use crate::run::barriers::{Barriers, is_steered};
use crate::run::blocking::Blocking;
use crate::run::decisions::Decisions;
use crate::run::lost::Lost;
use crate::run::met::Met;
use crate::run::speculation::Speculation;
use crate::run::{locked, stores, untaken};
use crate::target::Target;
use crate::theorem::Theorem;
use crate::world::World;
use switcher_gen::arch::Msr;
use switcher_gen::layout::SwitchFlags;
use switcher_model::exists::Condition;
use switcher_model::{
    Domain, Event, Features, Held, Observer, Origin, Place, RegionName, State as Machine,
};
use switcher_spec as spec;

/// What a run is watched for.
pub(crate) struct Watch<'a, D: Domain> {
    pub(crate) target: &'a Target,
    pub(crate) theorem: Theorem,
    pub(crate) goals: Vec<Goal<D>>,
    pub(crate) trace: Vec<u64>,
    /// The first instruction that has accessed the PVCS.
    pub(crate) pvcs_at: Option<u64>,
    /// Whether SWAPGS was executed, and whether a jump before it may not have gone there, so that
    /// nothing is certain before a fence.
    pub(crate) swapped: Option<Speculation>,
    pub(crate) jumped: bool,
    /// Whether GS base was written: it is the same, whatever it was before.
    pub(crate) gs_is_known: bool,
    pub(crate) barriers: Barriers,
    /// SPEC_CTRL at the start.
    pub(crate) spec_ctrl: D::Word,
    pub(crate) host_gs: D::Word,
    pub(crate) roots: spec::TssExtra<D::Word>,
    /// Whether a guest is said to be run where its root is loaded. Comes last: what else is wrong
    /// says more.
    pub(crate) running: Vec<Goal<D>>,
    /// The root that an event has interrupted: it is restored.
    pub(crate) interrupted: Option<D::Word>,
    /// Whether an event has executed an IRETQ.
    pub(crate) unblocked: bool,
    /// Whether it has used its stack of the IST since.
    pub(crate) on_ist_again: bool,
    /// What blocks NMIs, and what may interrupt.
    pub(crate) blocking: Blocking<D>,
    /// What of stacks is overwritten between two instructions.
    pub(crate) lost: Lost,
    /// How often host_rsp and switch_flags were stored to.
    pub(crate) host_rsp_stored: usize,
    pub(crate) flags_stored: usize,
    /// Where the addresses are that calls and INTs have pushed, and whether nothing was done with
    /// them but to return.
    pub(crate) pushed: Vec<Place>,
    pub(crate) is_movable: bool,
    pub(crate) reads_code: bool,
    pub(crate) was_interrupted: bool,
    /// What was read of the PVCS while the guest writes it.
    pub(crate) met: Met<D::Word>,
    /// What the guest could tell from the way here.
    pub(crate) decisions: Decisions<D::Word>,
    /// What of the CPU was asked for, and what was not there.
    pub(crate) asked: Features,
    /// How many jumps the state has decided.
    pub(crate) open: usize,
    pub(crate) missing: Option<Condition>,
    /// What the CPU takes since it has held it, or since the host vouches for it: see [`Held`].
    pub(crate) held_roots: Vec<D::Word>,
    pub(crate) held_spec_ctrl: [D::Word; 3],
    pub(crate) held_bases: [D::Word; 3],
    /// Arms that were not taken, if they are looked at.
    pub(crate) arms: Option<untaken::Arms<D>>,
    /// Who else watches.
    pub(crate) also: Option<&'a mut dyn Observer<D>>,
}

impl<'a, D: Domain> Watch<'a, D> {
    pub(crate) fn new(d: &D, target: &'a Target, theorem: Theorem, world: &World<D>) -> Self {
        let (extra, machine) = (&world.spec.tss_extra, &world.machine);
        Self {
            blocking: Blocking::new(d, world),
            target,
            theorem,
            // About as many as there are.
            goals: Vec::with_capacity(256),
            trace: Vec::with_capacity(64),
            pvcs_at: None,
            swapped: None,
            jumped: false,
            gs_is_known: false,
            barriers: Barriers::new(target.setting.variant.mitigations().bhb),
            spec_ctrl: world.spec.spec_ctrl,
            host_gs: world.host_gs,
            roots: world.spec.tss_extra,
            running: Vec::with_capacity(64),
            interrupted: world.event.as_ref().map(|event| event.interrupted.root),
            unblocked: false,
            on_ist_again: false,
            lost: Lost::default(),
            host_rsp_stored: 0,
            flags_stored: 0,
            pushed: Vec::with_capacity(8),
            is_movable: true,
            reads_code: false,
            was_interrupted: false,
            met: Met::default(),
            decisions: Decisions::default(),
            asked: Features::empty(),
            open: 0,
            missing: None,
            held_roots: [extra.host_cr3, extra.enter_cr3, extra.smod_cr3, extra.umod_cr3]
                .into_iter()
                .chain(world.event.as_ref().map(|event| event.interrupted.root))
                .collect(),
            held_spec_ctrl: [world.spec.spec_ctrl, extra.host_spec_ctrl, extra.guest_spec_ctrl],
            held_bases: [machine.fs_base, machine.gs_base, machine.inactive_gs_base],
            arms: None,
            also: None,
        }
    }

    pub(crate) fn goal(&mut self, obligation: Obligation, holds: D::Bit, about: &'static str) {
        let at = self.trace.last().copied();
        self.goals.push(Goal { obligation, holds, about, values: None, at });
    }

    /// The same of an instruction that has not been executed.
    pub(crate) fn goal_at(
        &mut self,
        obligation: Obligation,
        holds: D::Bit,
        about: &'static str,
        at: u64,
    ) {
        self.goals.push(Goal { obligation, holds, about, values: None, at: Some(at) });
    }

    pub(crate) fn equal(
        &mut self,
        d: &D,
        obligation: Obligation,
        about: &'static str,
        expected: D::Word,
        got: D::Word,
    ) {
        let values = Some((expected, got));
        self.goals.push(Goal { obligation, holds: d.eq(expected, got), about, values, at: None });
    }

    /// What most faults break, too: it comes last, for what else is wrong with a path that should not have
    /// come there says more. Without a PVCS, the pointer to it means nothing.
    pub(crate) fn broken_by_most(&mut self, d: &D) -> Vec<Goal<D>> {
        let mut goals = std::mem::take(&mut self.running);
        let at = self.pvcs_at;
        if at.is_some() {
            let none = d.any(self.roots.switch_flags, SwitchFlags::PVCS_INVALID.bits());
            let (obligation, about) = (obligation::PVCS_REGISTERED, "switch_flags");
            goals.push(Goal { obligation, holds: d.not(none), about, values: None, at });
        }
        goals
    }
}

impl<D: Domain> Observer<D> for Watch<'_, D> {
    fn held(&self, what: Held) -> &[D::Word] {
        match what {
            Held::Root => &self.held_roots,
            Held::SpecCtrl => &self.held_spec_ctrl,
            Held::Base => &self.held_bases,
        }
    }

    fn observe(&mut self, d: &D, state: &Machine<D>, event: Event<D::Word>) {
        if let Some(also) = &mut self.also {
            also.observe(d, state, event);
        }
        match event {
            Event::Execute(at) => self.execute(d, state, at),
            Event::Depends(condition) => {
                self.open += usize::from(d.known(condition).is_none());
                self.jumped = true;
                if is_steered(d, condition) {
                    self.barriers.poison();
                }
                let depends = d.mentions(condition, Origin::is_no_ground_for_a_decision);
                self.goal(obligation::NO_DECISION_ON_RSP, d.bit(!depends), "RSP");
            }
            Event::Decided(condition) => self.decisions.decided(d, condition),
            Event::LoadCr3(value) => self.cr3(d, value),
            Event::WriteGsBase(base) => {
                let canonical = self.target.model().is_canonical(d, base);
                self.goal(obligation::WRGSBASE_CANONICAL, canonical, "GS base");
                // Whichever it was.
                self.gs_is_known = true;
            }
            Event::Access(access) => {
                self.mapped(d, state, access.place.region);
                if state.memory.regions[access.place.region].name.is_stack() {
                    self.lost.accessed(access.place);
                }
                let program = &self.target.program;
                let op = self.trace.last().and_then(|at| program.at(*at)).and_then(Result::ok);
                self.follow(d, &access, op.map(|op| op.kind));
                if access.gs {
                    let ours = d.eq(state.gs_base, self.host_gs);
                    self.goal(obligation::GS_IS_THE_HOSTS, ours, "GS base");
                    // Of ring 0 or of a guest: a jump may have been taken for the other.
                    if self.theorem.is_of_events() && self.swapped.is_none() {
                        let certain = d.bit(self.gs_is_known || !self.jumped);
                        self.goal(obligation::SWAPGS_FENCED, certain, "GS base");
                    }
                    if let Some(speculation) = self.swapped {
                        let certain = d.bit(speculation == Speculation::None);
                        self.goal(obligation::SWAPGS_FENCED, certain, "GS base");
                    }
                }
                let region = &state.memory.regions[access.place.region];
                if op.is_some_and(|op| op.locks()) {
                    let (at, size) = (region.offset(access.place.index), access.place.size);
                    let is_whole = locked::is_in_one_line(region.name, at, size);
                    self.goal(obligation::SPLIT_LOCK, d.bit(is_whole), region.name.name());
                }
                if access.store {
                    self.store(d, state, &access);
                }
                let name = state.memory.regions[access.place.region].name;
                let is_frame =
                    self.is_of_frame(name) && !d.mentions(access.value, Origin::is_the_hosts);
                self.barriers.overwritten &= is_frame;
                self.on_ist_again |= self.unblocked && name == RegionName::IstStack;
                if name == RegionName::InterruptedStack {
                    self.interrupted_stack(d, state);
                }
                if let Some(size) = self.reads_flags(state, &access) {
                    self.decisions.read_flags(access.value, size);
                }
                if name == RegionName::Pvcs {
                    let is_free = d.bit(!self.decisions.is_a_secret());
                    self.goal(obligation::NO_HOST_VALUE, is_free, "what decided the way here");
                    if !access.store {
                        self.met.read(access.place.index, access.place.size, access.value);
                    }
                    self.pvcs_at = self.pvcs_at.or(self.trace.last().copied());
                }
            }
            Event::Needs { condition, met } => {
                self.asked |= condition.asks();
                self.missing = self.missing.or((!met).then_some(condition));
            }
            Event::Sysretq => self.sysretq(d, state),
            Event::Iretq(frame) => self.iretq(d, state, frame),
            // The others may hold an entry's address.
            Event::ReadMsr(number) => {
                self.barriers.overwritten = false;
                self.is_movable &= number == Some(Msr::SpecCtrl.address().into());
            }
            Event::WriteMsr { number, value } => {
                let is_allowed = d.bit(stores::may_write(number));
                self.goal(obligation::KEPT, is_allowed, "MSR");
                let others = [Msr::SpecCtrl, Msr::PredCmd].map(|msr| Some(msr.address().into()));
                self.is_movable &= others.contains(&number);
                self.barrier(d, number, value);
            }
            Event::Verw => self.barriers.overwritten = true,
            Event::Branch(branch) => self.branch(d, state, branch),
            Event::SwapGs => {
                let certain = if self.jumped { Speculation::Possible } else { Speculation::None };
                self.swapped = Some(certain);
            }
            Event::Fence(fence) => {
                if fence.stops_dispatch() {
                    self.swapped = self.swapped.map(|_| Speculation::None);
                    self.jumped = false;
                }
                self.barriers.fence(fence);
            }
        }
    }
}
