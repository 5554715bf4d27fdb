//! The observer of a run: what it remembers of it, and who judges what of each step.
//!
//! [`Watch`] remembers and [`Goals`] is what is to be shown; [`Observed`] is both for as long as
//! one instruction is executed. What must hold is said in the files beside this one, each of which
//! adds methods to `Watch` or has a part of its state.

use crate::entry::Entry;
use crate::goal::Goals;
use crate::obligation;
use crate::run::arms::Arms;
use crate::run::barriers::Barriers;
use crate::run::blocking::Blocking;
use crate::run::calls::PushedAddresses;
use crate::run::decisions::Decisions;
use crate::run::gs::GsSpeculation;
use crate::run::lost::Lost;
use crate::run::met::Met;
use crate::run::origins::is_steered;
use crate::run::stores;
use crate::world::World;
use switcher_gen::arch::Msr;
use switcher_gen::layout::SwitchFlags;
use switcher_model::exists::Condition;
use switcher_model::{Domain, Effect, Features, Held, Observer, Origin, State as Machine};
use switcher_spec as spec;

/// What is remembered of a run.
pub(crate) struct Watch<'a, D: Domain> {
    /// What the run is about, and where it begins.
    pub(crate) entry: Entry<'a>,
    /// The addresses of all instructions executed.
    pub(crate) trace: Vec<u64>,
    /// What the run has found at its start.
    pub(crate) start: AtStart<D::Word>,
    held: HeldValues<D::Word>,
    /// Which GS base a CPU may go on with.
    pub(crate) gs: GsSpeculation,
    /// The mitigations that were executed.
    pub(crate) barriers: Barriers,
    /// Where the addresses are that calls and INTs have pushed.
    pub(crate) pushed: PushedAddresses,
    /// What blocks NMIs, and what may interrupt.
    pub(crate) blocking: Blocking<D>,
    /// What of stacks is overwritten between two instructions.
    pub(crate) lost: Lost,
    /// What was read of the PVCS while the guest writes it.
    pub(crate) met: Met<D::Word>,
    /// What the guest could tell from the way here.
    pub(crate) decisions: Decisions<D::Word>,
    pub(crate) stored: StoredFields<D::Bit>,
    pub(crate) needs: Needs,
    /// How many jumps the state has decided.
    pub(crate) decided: usize,
    /// Whether the host's own handler has run, to which an event was handed on.
    pub(crate) has_hosts_code_run: bool,
    /// Whether code was read as data.
    pub(crate) reads_code: bool,
    /// The first instruction that has accessed the PVCS.
    pub(crate) pvcs_at: Option<u64>,
    /// Arms that were not taken, if they are looked at.
    pub(crate) arms: Option<Arms<D>>,
    /// Who else watches.
    pub(crate) also: Option<&'a mut dyn Observer<D>>,
}

/// What a run has found at its start, and is held against on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AtStart<W> {
    pub(crate) host_gs: W,
    pub(crate) spec_ctrl: W,
    /// The switcher's data, with all roots.
    pub(crate) block: spec::TssExtra<W>,
    /// The root that the run has started on: it may be left and loaded again.
    pub(crate) root: W,
    /// The root that an event has interrupted: it is restored.
    pub(crate) interrupted_root: Option<W>,
}

/// What the CPU takes since it has held it, or since the host vouches for it: see [`Held`].
#[derive(Debug)]
struct HeldValues<W> {
    roots: Vec<W>,
    spec_ctrl: [W; 3],
    bases: [W; 3],
}

/// What was stored to fields that must change at once.
#[derive(Debug)]
pub(crate) struct StoredFields<B> {
    /// How often host_rsp was stored to.
    pub(crate) host_rsp: usize,
    /// Whether switch_flags were changed.
    pub(crate) flags_changed: B,
}

/// What was asked of the CPU.
#[derive(Debug)]
pub(crate) struct Needs {
    /// The features that it must have.
    pub(crate) asked: Features,
    /// The first condition that it does not meet.
    pub(crate) missing: Option<Condition>,
}

impl<'a, D: Domain> Watch<'a, D> {
    pub(crate) fn new(d: &D, entry: Entry<'a>, world: &World<D>) -> Self {
        let (block, machine) = (world.spec.tss_extra, &world.machine);
        let interrupted_root = world.event.as_ref().map(|event| event.interrupted.root);
        let roots = [block.host_cr3, block.enter_cr3, block.smod_cr3, block.umod_cr3];
        let spec_ctrl = world.spec.spec_ctrl;
        Self {
            entry,
            trace: Vec::with_capacity(64),
            start: AtStart {
                host_gs: world.host_gs,
                spec_ctrl,
                block,
                root: machine.cr3,
                interrupted_root,
            },
            held: HeldValues {
                roots: roots.into_iter().chain(interrupted_root).chain([machine.cr3]).collect(),
                spec_ctrl: [spec_ctrl, block.host_spec_ctrl, block.guest_spec_ctrl],
                bases: [machine.fs_base, machine.gs_base, machine.inactive_gs_base],
            },
            gs: GsSpeculation::default(),
            barriers: Barriers::new(entry.target.setting.variant.mitigations().bhb),
            pushed: PushedAddresses::new(),
            blocking: Blocking::new(d, world),
            lost: Lost::default(),
            met: Met::default(),
            decisions: Decisions::default(),
            stored: StoredFields { host_rsp: 0, flags_changed: d.bit(false) },
            needs: Needs { asked: Features::empty(), missing: None },
            decided: 0,
            has_hosts_code_run: false,
            reads_code: false,
            pvcs_at: None,
            arms: None,
            also: None,
        }
    }

    /// The values of a kind that the CPU takes: see [`Observer::held`].
    pub(crate) fn held(&self, what: Held) -> &[D::Word] {
        match what {
            Held::Root => &self.held.roots,
            Held::SpecCtrl => &self.held.spec_ctrl,
            Held::Base => &self.held.bases,
        }
    }

    /// If the PVCS was accessed, there must be one: otherwise the pointer to it means nothing.
    pub(crate) fn pvcs_is_registered(&self, d: &D, goals: &mut Goals<D>) {
        if self.pvcs_at.is_some() {
            let none = d.any(self.start.block.switch_flags, SwitchFlags::PVCS_INVALID.bits());
            let (obligation, about) = (obligation::PVCS_REGISTERED, "switch_flags");
            goals.add_last_at(obligation, d.not(none), about, self.pvcs_at);
        }
    }
}

/// A run as it is observed while an instruction is executed.
pub(crate) struct Observed<'a, 'w, D: Domain> {
    pub(crate) watch: &'a mut Watch<'w, D>,
    pub(crate) goals: &'a mut Goals<D>,
}

impl<D: Domain> Observer<D> for Observed<'_, '_, D> {
    fn held(&self, what: Held) -> &[D::Word] {
        self.watch.held(what)
    }

    fn observe(&mut self, d: &D, state: &Machine<D>, event: Effect<D::Word>) {
        let Self { watch, goals } = self;
        if let Some(also) = &mut watch.also {
            also.observe(d, state, event);
        }
        match event {
            Effect::Execute(at) => watch.execute(d, goals, state, at),
            Effect::Depends(condition) => {
                watch.decided += usize::from(d.known(condition).is_none());
                watch.gs.jump();
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
                let depends = d.mentions(condition, Origin::is_no_ground_for_a_decision);
                goals.add(obligation::NO_DECISION_ON_RSP, d.bit(!depends), "RSP");
            }
            Effect::Decided(condition) => {
                watch.decisions.decided(d, state, condition, watch.pvcs_at.is_some());
            }
            Effect::LoadCr3(value) => watch.cr3(d, goals, value),
            Effect::WriteGsBase(base) => {
                let canonical = watch.entry.target.model().is_canonical(d, base);
                goals.of(obligation::WRGSBASE_CANONICAL, canonical, "GS base", base);
                watch.gs.write();
            }
            Effect::Access(access) => watch.access(d, goals, state, &access),
            Effect::Needs { condition, met } => {
                watch.needs.asked |= condition.asks();
                watch.needs.missing = watch.needs.missing.or((!met).then_some(condition));
            }
            Effect::Sysretq => watch.sysretq(d, goals, state),
            Effect::Iretq(frame) => watch.iretq(d, goals, state, frame),
            // MSRs other than these may hold an entry's address.
            Effect::ReadMsr(number) => {
                watch.barriers.overwritten = false;
                watch.pushed.moves_if(number == Some(Msr::SpecCtrl.address().into()));
            }
            Effect::WriteMsr { number, value } => {
                let is_allowed = d.bit(stores::may_write(number));
                goals.add(obligation::KEPT, is_allowed, "MSR");
                let others = [Msr::SpecCtrl, Msr::PredCmd].map(|msr| Some(msr.address().into()));
                watch.pushed.moves_if(others.contains(&number));
                watch.barrier(d, goals, number, value);
            }
            Effect::Descriptor { selector, by_return } => {
                watch.descriptor(d, goals, selector);
                watch.barriers.overwritten &= by_return;
            }
            Effect::Verw => watch.barriers.overwritten = true,
            Effect::Branch(branch) => watch.branch(d, goals, state, branch),
            Effect::SwapGs => watch.gs.swap(),
            Effect::Fence(fence) => {
                watch.gs.fence(fence);
                watch.barriers.fence(fence);
            }
        }
    }
}
