//! One run of one entry point, from a state to an outcome, and everything that must hold of it: over
//! numbers or over unknowns.

mod untaken;

pub(super) use untaken::ARMS;
pub use untaken::Untaken;

use std::collections::BTreeSet;

use iced_x86::{Mnemonic, Register};
use serde::Serialize;

use super::apart;
use super::blocking::Blocking;
use super::decisions::Decisions;
use super::events;
use super::locked;
use super::lost::Lost;
use super::met::Met;
use super::mitigations::{AtReturn, Barriers, is_steered};
use super::obligation::{self, Obligation};
use super::overlap::{self, Overlap};
use super::returns::{self, Left};
use super::stores::{self, Store};
use super::target::Target;
use super::world::{
    self, BlockOffsets, EXTRA_FIELDS, FRAME_REST, FieldAt, Name, Object, Part, Saved, Setting,
    Source, Start, World, by_number, in_frame, pvcs_fields,
};
use switcher_gen::arch::{Msr, RFlags, Vendor};
use switcher_gen::asm::Window;
use switcher_gen::layout::{FarFrame, PtRegs, Revision, SwitchFlags, Tss, TssExtra};
use switcher_model::RegionName;
use switcher_model::exists::{Address, Condition};
use switcher_model::program::Kind;
use switcher_model::{
    ARITHMETIC, Access, Branch, Domain, Entry, Event, Fault, Features, Gpr, Held, Msrs, Observer,
    Origin, Place, ProgramError, Region, State as Machine, Step, Stuck,
};
use switcher_spec as spec;
use switcher_spec::{Exit, Outcome, Return};

/// What a theorem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Theorem {
    /// `switcher_enter_guest`, called.
    EnterGuest,
    /// `entry_SYSCALL_64_switcher`, reached by SYSCALL.
    Syscall64,
    /// `entry_SYSCALL_compat_switcher`, reached by a SYSCALL in 32-bit code.
    SyscallCompat,
    /// `switcher_return_from_guest`, the frame on the sp0 stack.
    ReturnFromGuest,
    /// The same, the frame on a stack of the IST.
    ReturnFromGuestIst,
    /// The IDT, by looking at it.
    Gates,
    /// An event of a guest without an error code.
    Event,
    /// One with an error code.
    EventError,
    /// #DB of a guest.
    EventDb,
    /// An NMI while a guest runs.
    EventNmi,
    /// A machine check while a guest runs.
    EventMc,
    /// A double fault of a guest.
    EventDf,
    /// #NP, #SS or #GP of the IRETQ to a guest.
    Iretq,
    /// #DB anywhere in ring 0.
    DbInRing0,
    /// An NMI anywhere in ring 0.
    NmiInRing0,
    /// A machine check anywhere in ring 0.
    McInRing0,
    /// A double fault anywhere in ring 0.
    DfInRing0,
    /// Anything else in ring 0 that is not the IRETQ's, without an error code.
    FatalInRing0,
    /// The same with one.
    FatalErrorInRing0,
    /// At the IRETQ to a guest what that is not to blame for, without an error code.
    FatalAtIretq,
    /// The same with one, such as a page fault: of its frame, which is the host's.
    FatalErrorAtIretq,
}

impl Theorem {
    /// Those about routines that are called or reached by SYSCALL.
    pub const ALL: [Self; 5] = [
        Self::EnterGuest,
        Self::Syscall64,
        Self::SyscallCompat,
        Self::ReturnFromGuest,
        Self::ReturnFromGuestIst,
    ];

    /// Those about event entries.
    pub const EVENTS: [Self; 16] = [
        Self::Gates,
        Self::Event,
        Self::EventError,
        Self::EventDb,
        Self::EventNmi,
        Self::EventMc,
        Self::EventDf,
        Self::Iretq,
        Self::DbInRing0,
        Self::NmiInRing0,
        Self::McInRing0,
        Self::DfInRing0,
        Self::FatalInRing0,
        Self::FatalErrorInRing0,
        Self::FatalAtIretq,
        Self::FatalErrorAtIretq,
    ];

    /// Those that `target` has the code for.
    pub fn of(target: &Target) -> impl Iterator<Item = Self> {
        let events = if target.gates.is_some() { &Self::EVENTS[..] } else { &[] };
        let has_compat = target.syscall_compat.is_some();
        let all = Self::ALL.iter().chain(events).copied();
        all.filter(move |theorem| has_compat || *theorem != Self::SyscallCompat)
    }

    /// In reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EnterGuest => "enter_guest",
            Self::Syscall64 => "syscall_64",
            Self::SyscallCompat => "syscall_compat",
            Self::ReturnFromGuest => "return_from_guest",
            Self::ReturnFromGuestIst => "return_from_guest (IST)",
            Self::Gates => "gates",
            Self::Event => "event",
            Self::EventError => "event (error code)",
            Self::EventDb => "event (#DB)",
            Self::EventNmi => "event (NMI)",
            Self::EventMc => "event (#MC)",
            Self::EventDf => "event (#DF)",
            Self::Iretq => "IRETQ (#NP, #SS, #GP)",
            Self::DbInRing0 => "ring 0 (#DB)",
            Self::NmiInRing0 => "ring 0 (NMI)",
            Self::McInRing0 => "ring 0 (#MC)",
            Self::DfInRing0 => "ring 0 (#DF)",
            Self::FatalInRing0 => "ring 0 (others)",
            Self::FatalErrorInRing0 => "ring 0 (others, error code)",
            Self::FatalAtIretq => "IRETQ (others)",
            Self::FatalErrorAtIretq => "IRETQ (others, error code)",
        }
    }

    /// Where it begins: an event at one stub of those that are alike. Empty if `target` has no such
    /// entry.
    pub(crate) fn entries(self, target: &Target) -> Vec<u64> {
        match self {
            Self::EnterGuest => vec![target.enter_guest],
            Self::Syscall64 => vec![target.syscall_64],
            Self::SyscallCompat => target.syscall_compat.into_iter().collect(),
            Self::ReturnFromGuest | Self::ReturnFromGuestIst => vec![target.return_from_guest],
            of_events => {
                let parts = super::vectors::partition(target, of_events);
                let gate_of = |vector| {
                    let mut gates = target.gates.iter().flatten();
                    gates.find(|gate| gate.vector == vector).map(|gate| gate.address)
                };
                parts.iter().filter_map(|part| gate_of(part.first())).collect()
            }
        }
    }

    const fn start(self) -> Start {
        match self {
            Self::EnterGuest => Start::Call,
            Self::Syscall64 => Start::Guest,
            Self::SyscallCompat => Start::Guest32,
            Self::ReturnFromGuest => Start::Handler { ist: false },
            Self::ReturnFromGuestIst => Start::Handler { ist: true },
            _ => Start::Guest,
        }
    }
}

/// The state that a theorem starts from.
fn world<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
) -> World<D> {
    if theorem.is_of_events() {
        return events::world(d, target, theorem, source, saved);
    }
    // Nothing is saved before it.
    let saved = saved.filter(|_| theorem != Theorem::EnterGuest);
    target.world(d, source, theorem.start(), saved)
}

impl std::fmt::Display for Theorem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the guest leaves the PVCS alone while the switcher runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestMemory {
    /// It does: the outcome is compared with the specification.
    Stable,
    /// Every read finds something new (hazards.md, row 24): the outcome must be right for what was
    /// read of the PVCS, and all that does not depend on it must be as with a quiet guest.
    Racing,
}

/// One thing to be shown.
#[derive(Debug)]
pub struct Goal<D: Domain> {
    /// Which.
    pub obligation: Obligation,
    /// Whether it holds.
    pub holds: D::Bit,
    /// What of the state it is about.
    pub about: &'static str,
    /// What should be there and what is.
    pub values: Option<(D::Word, D::Word)>,
    /// The instruction, if one is concerned.
    pub at: Option<u64>,
}

/// Code that no theorem can be about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCode {
    /// An instruction without semantics, or none.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A jump or a fall through to elsewhere.
    #[error("{at:#x}: control leaves the code, to {target:#x}")]
    Leaves {
        /// The instruction.
        at: u64,
        /// Where to.
        target: u64,
    },
    /// More instructions than any path has.
    #[error(
        "{at:#x}: more than {limit} instructions on one path: a loop without a bound, or of more rounds \
         than `--instructions` allows"
    )]
    Loop {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// More jumps that the state decides than any path has.
    #[error(
        "{at:#x}: a loop that nothing bounds: more than {limit} jumps on one path that depend on the \
         state"
    )]
    Open {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// A jump through a value that is an address of the code's own, and which is not known.
    #[error(
        "{at:#x}: jumps to one of several addresses, and which is not known: choose it by conditional \
         jumps"
    )]
    Several {
        /// The instruction.
        at: u64,
    },
    /// A REP, and how often it repeats is not known.
    #[error(
        "{at:#x}: a REP that repeats as often as the state says: load a constant into RCX in front of \
         it, on each path its own"
    )]
    Count {
        /// The instruction.
        at: u64,
    },
    /// More instructions on all paths together than any theorem has.
    #[error(
        "{at:#x}: more than {limit} instructions on all paths together: loops behind jumps that \
         depend on the state"
    )]
    Work {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// More instructions where jumps may be predicted to lead than any theorem has.
    #[error(
        "{at:#x}: more than {limit} instructions where jumps may be predicted to lead and no path goes \
         from there"
    )]
    Arms {
        /// Where it was when it was given up.
        at: u64,
        /// How many.
        limit: usize,
    },
    /// A store to code.
    #[error("{at:#x}: the code writes to itself")]
    SelfModifying {
        /// The instruction.
        at: u64,
    },
    /// RDMSR or WRMSR of an MSR without semantics.
    #[error("{at:#x}: an access to an MSR that is not modelled")]
    Msr {
        /// The instruction.
        at: u64,
    },
    /// Its data lies over the code, or over each other.
    #[error(transparent)]
    Overlap(#[from] Overlap),
}

/// A run: where it went and what must hold of it.
#[derive(Debug)]
pub struct Run<D: Domain> {
    /// The addresses of all instructions executed.
    pub trace: Vec<u64>,
    /// In the order in which they came up.
    pub goals: Vec<Goal<D>>,
    /// What must hold where it has not gone, and what is broken by most that is wrong otherwise, if that is
    /// judged apart.
    pub later: Vec<Goal<D>>,
    /// How it ended, in words.
    pub end: String,
    /// Whether the addresses that calls pushed went nowhere but to the RETs that they are for, and
    /// no MSR that holds an address was accessed.
    pub is_movable: bool,
    /// Whether code was read as data.
    pub reads_code: bool,
    /// The branches that must stay in their cache line for what was shown.
    pub lines: BTreeSet<u64>,
    /// What was asked of the CPU: the run says nothing about one that lacks it.
    pub asked: Features,
    /// Where arms lead that the run has not taken.
    pub untaken: Untaken,
    /// Whether the PVCS was accessed.
    pub touches_pvcs: bool,
}

/// More instructions than any theorem of a switcher has on all of its paths together: each is one
/// that is executed, from the beginning of its path on.
const WORK: usize = 1 << 17;
/// And than this many paths have that are as long as they may be.
const LONG_PATHS: usize = 12;
/// More jumps that no number decides than any path of a switcher has. Each of them may make two paths
/// of one, and asks the solver.
const OPEN: usize = 256;

/// More instructions than all paths of a theorem about `target` have together.
pub(super) fn work(target: &Target) -> usize {
    WORK.max(target.limit.saturating_mul(LONG_PATHS))
}

/// What a run is watched for.
pub(super) struct Watch<'a, D: Domain> {
    pub(super) target: &'a Target,
    pub(super) theorem: Theorem,
    goals: Vec<Goal<D>>,
    pub(super) trace: Vec<u64>,
    /// The first instruction that has accessed the PVCS.
    pvcs_at: Option<u64>,
    /// Whether SWAPGS was executed, and whether a jump before it may not have gone there, so that
    /// nothing is certain before a fence.
    swapped: Option<Speculation>,
    jumped: bool,
    /// Whether GS base was written: it is the same, whatever it was before.
    gs_is_known: bool,
    barriers: Barriers,
    /// SPEC_CTRL at the start.
    spec_ctrl: D::Word,
    host_gs: D::Word,
    roots: spec::TssExtra<D::Word>,
    /// Whether a guest is said to be run where its root is loaded. Comes last: what else is wrong
    /// says more.
    running: Vec<Goal<D>>,
    /// The root that a routine was called or reached on: it may be left and loaded again.
    first_root: D::Word,
    /// The root that an event has interrupted: it is restored.
    interrupted: Option<D::Word>,
    /// Whether an event has executed an IRETQ.
    pub(super) unblocked: bool,
    /// Whether it has used its stack of the IST since.
    pub(super) on_ist_again: bool,
    /// What blocks NMIs, and what may interrupt.
    pub(super) blocking: Blocking<D>,
    /// What of stacks is overwritten between two instructions.
    pub(super) lost: Lost,
    /// How often host_rsp was stored to, and whether switch_flags were changed.
    host_rsp_stored: usize,
    flags_changed: D::Bit,
    /// Where the addresses are that calls and INTs have pushed, and whether nothing was done with
    /// them but to return.
    pushed: Vec<Place>,
    is_movable: bool,
    reads_code: bool,
    was_interrupted: bool,
    /// What was read of the PVCS while the guest writes it.
    met: Met<D::Word>,
    /// What the guest could tell from the way here.
    decisions: Decisions<D::Word>,
    /// What of the CPU was asked for, and what was not there.
    asked: Features,
    /// How many jumps the state has decided.
    open: usize,
    missing: Option<Condition>,
    /// What the CPU takes since it has held it, or since the host vouches for it: see [`Held`].
    held_roots: Vec<D::Word>,
    held_spec_ctrl: [D::Word; 3],
    held_bases: [D::Word; 3],
    /// Arms that were not taken, if they are looked at.
    arms: Option<untaken::Arms<D>>,
    /// Who else watches.
    also: Option<&'a mut dyn Observer<D>>,
}

impl<'a, D: Domain> Watch<'a, D> {
    fn new(d: &D, target: &'a Target, theorem: Theorem, world: &World<D>) -> Self {
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
            first_root: machine.cr3,
            interrupted: world.event.as_ref().map(|event| event.interrupted.root),
            unblocked: false,
            on_ist_again: false,
            lost: Lost::default(),
            host_rsp_stored: 0,
            flags_changed: d.bit(false),
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
                .chain([machine.cr3])
                .collect(),
            held_spec_ctrl: [world.spec.spec_ctrl, extra.host_spec_ctrl, extra.guest_spec_ctrl],
            held_bases: [machine.fs_base, machine.gs_base, machine.inactive_gs_base],
            arms: None,
            also: None,
        }
    }

    /// Whether there may be an end to the path.
    pub(super) fn is_bounded(&self) -> Result<(), BadCode> {
        let at = self.trace.last().copied().unwrap_or_default();
        match (self.trace.len(), self.open) {
            (length, _) if length >= self.target.limit => {
                Err(BadCode::Loop { at, limit: self.target.limit })
            }
            (_, OPEN..) => Err(BadCode::Open { at, limit: OPEN }),
            _ => Ok(()),
        }
    }

    /// What an exception of the instruction at `at` breaks, and why.
    pub(super) fn fault(
        &self,
        at: u64,
        fault: &Fault<D::Word>,
    ) -> (Obligation, String, &'static str) {
        let text = format!("exception {} in ring 0 at {at:#x}", fault.vector);
        match self.missing {
            // Of GS, another says it.
            Some(Condition::Canonical(Address::GsBase | Address::KernelGsBase)) | None => {
                (fault_breaks(self.target, at, fault), text, "RIP")
            }
            Some(condition) => {
                let instruction = self.target.program.text(at).unwrap_or_default();
                let text = format!("{text}: `{instruction}` needs {condition}");
                (obligation::EXISTS, text, condition.about())
            }
        }
    }

    pub(super) fn goal(&mut self, obligation: Obligation, holds: D::Bit, about: &'static str) {
        let at = self.trace.last().copied();
        self.goals.push(Goal { obligation, holds, about, values: None, at });
    }

    /// The same of an instruction that has not been executed.
    pub(super) fn goal_at(
        &mut self,
        obligation: Obligation,
        holds: D::Bit,
        about: &'static str,
        at: u64,
    ) {
        self.goals.push(Goal { obligation, holds, about, values: None, at: Some(at) });
    }

    pub(super) fn equal(
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

    /// Whether an access to this region is to the frame that is returned to. A guest's lies there with
    /// its registers. Ring 0's lies beside values of the host's: only the IRETQ may read it, or what
    /// takes its place on the interrupted stack.
    fn is_of_frame(&self, name: RegionName) -> bool {
        if self.theorem.has_hook() {
            let at = self.trace.last().and_then(|at| self.target.program.at(*at));
            let is_iretq = at.and_then(Result::ok).is_some_and(|op| op.is_iretq());
            return is_iretq || name == RegionName::InterruptedStack;
        }
        name == RegionName::Sp0Stack
    }

    /// From which byte on an access reads switch_flags, and how many bytes.
    fn reads_flags(&self, state: &Machine<D>, access: &Access<D::Word>) -> Option<(usize, usize)> {
        let Place { region, index, size } = access.place;
        let region = &state.memory.regions[region];
        let flags = self.target.setting.block.tss_extra + TssExtra::switch_flags.bytes() as i64;
        let at = usize::try_from(region.offset(index) - flags).ok()?;
        let is_there = region.name == RegionName::TssExtra && at + size <= 8;
        (is_there && !access.store).then_some((at, size))
    }

    /// An access may be to an address that a call has pushed.
    fn follow(&mut self, d: &D, access: &Access<D::Word>, kind: Option<Kind>) {
        let Place { region, index, size } = access.place;
        let program = &self.target.program;
        let is_return = matches!(kind, Some(Kind::Return(_)));
        let overlaps =
            |p: &Place| p.region == region && p.index < index + size && index < p.index + p.size;
        let is_pushed = self.pushed.iter().any(overlaps);
        if access.store {
            let covers = |p: &Place| index <= p.index && p.index + p.size <= index + size;
            self.is_movable &= self.pushed.iter().all(|p| !overlaps(p) || covers(p));
            self.pushed.retain(|p| !overlaps(p));
            if kind == Some(Kind::Call) {
                self.pushed.push(access.place);
            }
        } else if is_pushed {
            // An INT has pushed more, which may have overwritten some.
            let is_whole = self.pushed.contains(&access.place) && !self.was_interrupted;
            self.is_movable &= is_return && is_whole;
        } else if is_return {
            let is_code = d.code_at(access.value).is_some_and(|value| program.contains(value));
            self.is_movable &= !is_code;
        }
    }

    /// The code's own INT has pushed its address.
    pub(super) fn interrupted(&mut self, d: &D, state: &Machine<D>) {
        self.was_interrupted = true;
        match state.memory.locate(d, state.get(Gpr::Rsp), 8, state.cr3) {
            Some(place) => self.pushed.push(place),
            None => self.is_movable = false,
        }
    }

    /// Before each instruction of ring 0.
    fn execute(&mut self, d: &D, state: &Machine<D>, at: u64) {
        self.pass(d, state, at);
        self.trace.push(at);
        self.speculation(d, state, at);
        let clear = |flag| d.not(state.flags.other(d, flag));
        self.goal(obligation::RING_0_FLAGS, d.both(clear(RFlags::IF), clear(RFlags::TF)), "RFLAGS");
        self.boundary(d, state, at);
        self.running(d, state);
        let Some(windows) = &self.target.windows else { return };
        let within =
            |window| windows.iter().any(|(which, range)| *which == window && range.contains(&at));
        let (root, stack) = (within(Window::GuestRoot), within(Window::UnsafeStack));
        if !root {
            let on_own = d.eq(state.cr3, self.roots.host_cr3);
            self.goal(obligation::WINDOW_ROOT, on_own, "CR3");
        }
        if !stack {
            let on_own = d.bit(is_on_a_stack(d, state));
            self.goal(obligation::WINDOW_STACK, on_own, "RSP");
        }
    }

    /// What an NMI or machine check relies on that comes now: if no guest is said to be run, CR3 is the
    /// host's, be it the root that an event has interrupted.
    fn running(&mut self, d: &D, state: &Machine<D>) {
        let extra = state.memory.region(RegionName::TssExtra).expect("every world has all regions");
        let at = self.target.setting.block.tss_extra + TssExtra::host_rsp.bytes() as i64;
        let running = d.any(extra.read(d, at, 8), u64::MAX);
        let mut holds = d.either(d.eq(state.cr3, self.roots.host_cr3), running);
        if let Some(root) = self.interrupted.filter(|_| self.theorem.is_in_ring_0()) {
            holds = d.either(holds, d.eq(state.cr3, root));
        }
        let (obligation, about) = (obligation::HOST_RSP_SET, "host_rsp");
        let at = self.trace.last().copied();
        self.running.push(Goal { obligation, holds, about, values: None, at });
    }

    /// A store: to what may be stored to, and of what may be known there.
    fn store(&mut self, d: &D, state: &Machine<D>, access: &Access<D::Word>) {
        let region = &state.memory.regions[access.place.region];
        let at = region.offset(access.place.index);
        let store = Store { region: region.name, at, size: access.place.size };
        let setting = &self.target.setting;
        let is_allowed = store.is_allowed(self.theorem, setting);
        if let Some(hooks) = store.hooks_bits(setting).filter(|_| is_allowed) {
            let at = self.trace.last().copied();
            let op = at.and_then(|at| self.target.program.at(at));
            let changed = d.xor(access.value, region.read(d, store.at, store.size));
            let changed = d.truncate(changed, store.size);
            // Twice, unless the first was none: a CMPXCHG may fail.
            let is_change = d.any(changed, u64::MAX);
            let again = d.both(self.flags_changed, is_change);
            self.flags_changed = d.either(self.flags_changed, is_change);
            let is_one = stores::is_one_update(op.and_then(Result::ok));
            let holds = d.both(d.bit(is_one), d.not(again));
            self.goal(obligation::ONE_UPDATE, holds, "switch_flags");
            // What this breaks otherwise says more.
            let holds = d.not(d.any(changed, hooks));
            let (obligation, about) = (obligation::ONE_UPDATE, "switch_flags");
            self.running.push(Goal { obligation, holds, about, values: None, at });
        }
        // At no instant, not only at the end.
        if region.sharing.is_guests() {
            self.goal(
                obligation::NO_HOST_VALUE,
                d.bit(!is_a_leak(d, access.value)),
                store.region.name(),
            );
        }
        self.goal(obligation::KEPT, d.bit(is_allowed), store.region.name());
        if store.is_to_host_rsp(setting) {
            // It is what it was, or what it will be, and nothing in between.
            self.host_rsp_stored += 1;
            self.goal(obligation::KEPT, d.bit(self.host_rsp_stored == 1), "host_rsp");
        }
    }

    /// What must hold of an instruction because of what a CPU may do beside executing it.
    fn speculation(&mut self, d: &D, state: &Machine<D>, at: u64) {
        if self.barriers.overwritten {
            // RSP points to the frame that is returned to.
            let mut others = Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp);
            let is_hosts = |register| d.mentions(state.get(register), Origin::is_the_hosts);
            self.barriers.overwritten = !others.any(is_hosts);
        }
        let Some(Ok(op)) = self.target.program.at(at) else { return };
        if op.wants_trap() {
            let is_trapped = self.target.around(at).trap.is_some();
            self.goal(obligation::TRAPPED, d.bit(is_trapped), "the next instruction");
        }
        let mitigations = self.target.setting.variant.mitigations();
        // The CPUs that need it are among those that need the other.
        if mitigations.bhb.is_on() && op.is_predicted() {
            let is_there = self.target.around(at).is_upper;
            self.goal(obligation::UPPER_HALF, d.bit(is_there == Some(true)), "address");
        }
        if op.is_indirect() {
            let holds = match self.theorem {
                // The host's own code, as long as it is restricted as that is.
                Theorem::EnterGuest => d.eq(state.msrs.spec_ctrl, self.spec_ctrl),
                _ => {
                    let done = d.bit(self.barriers.is_safe_to_branch(mitigations));
                    d.both(done, self.is_restricted(d, state))
                }
            };
            self.goal(obligation::INDIRECT_FIRST, holds, "branch");
            self.barriers.poison();
        }
    }

    /// Whether SPEC_CTRL has been made the host's, if that is switched.
    fn is_restricted(&self, d: &D, state: &Machine<D>) -> D::Bit {
        if !self.target.setting.variant.mitigations().ibrs {
            return d.bit(true);
        }
        let is_hosts = d.eq(state.msrs.spec_ctrl, self.roots.host_spec_ctrl);
        d.both(d.bit(self.barriers.restricted), is_hosts)
    }

    /// An access to a region: what only the host maps is there on the host's root alone, so that
    /// isolation needs no instruction.
    fn mapped(&mut self, d: &D, state: &Machine<D>, region: usize) {
        let name = state.memory.regions[region].name;
        let everywhere = d.bit(name.is_under_every_root());
        let holds = d.either(everywhere, d.eq(state.cr3, self.roots.host_cr3));
        self.reads_code |= name == RegionName::Code;
        self.goal(obligation::MAPPED, holds, name.name());
    }

    fn cr3(&mut self, d: &D, value: D::Word) {
        let roots = &self.roots;
        let peers = d.either(d.eq(value, roots.smod_cr3), d.eq(value, roots.umod_cr3));
        let others = d.either(d.eq(value, roots.host_cr3), d.eq(value, roots.enter_cr3));
        let restored = self.interrupted.map_or(d.bit(false), |root| d.eq(value, root));
        let others = d.either(others, d.either(restored, d.eq(value, self.first_root)));
        let unprepared = d.any(roots.switch_flags, SwitchFlags::NO_DS_CR3.bits());
        // Slots may hold the same value: what counts is that there is a reason to load it.
        let prepared = d.either(others, d.not(unprepared));
        self.goal(obligation::CR3_OPERAND, d.either(peers, others), "CR3");
        self.goal(obligation::CR3_PREPARED, prepared, "CR3");
    }

    fn sysretq(&mut self, d: &D, state: &Machine<D>) {
        let model = self.target.model();
        let canonical = model.is_canonical(d, state.get(Gpr::Rcx));
        self.goal(obligation::SYSRETQ_CANONICAL, canonical, "RCX");
        let traced = d.any(state.get(Gpr::R11), RFlags::NOT_BY_SYSRET.bits());
        self.goal(obligation::SYSRETQ_RF_TF, d.not(traced), "R11");
        self.flags(d, state.get(Gpr::R11));
        self.verw(d);
        if model.vendor == Vendor::Amd {
            self.goal(obligation::SYSRETQ_SS, d.any(state.ss, 0xFFFC), "SS");
        }
        // 32-bit code's stub leaves the guest's RSP where it is.
        if self.theorem != Theorem::SyscallCompat {
            self.goal(obligation::ADJACENT, d.bit(self.rsp_was_loaded_last()), "RSP");
        }
    }

    /// What most faults break, too: it comes last, for what else is wrong with a path that should not have
    /// come there says more. Without a PVCS, the pointer to it means nothing.
    fn broken_by_most(&mut self, d: &D) -> Vec<Goal<D>> {
        let mut goals = std::mem::take(&mut self.running);
        let at = self.pvcs_at;
        if at.is_some() {
            let none = d.any(self.roots.switch_flags, SwitchFlags::PVCS_INVALID.bits());
            let (obligation, about) = (obligation::PVCS_REGISTERED, "switch_flags");
            goals.push(Goal { obligation, holds: d.not(none), about, values: None, at });
        }
        goals
    }

    /// Whether the instruction right in front of the present one, in the code and on the path, has
    /// loaded RSP. The code is asked and no value: what RSP held before may be anything.
    fn rsp_was_loaded_last(&self) -> bool {
        let [.., before, at] = *self.trace.as_slice() else { return false };
        let instruction = self.target.program.instruction(before);
        let loads = instruction.op_count() > 0
            && instruction.op0_register() == Register::RSP
            && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Pop);
        // What RSP holds already was loaded before.
        let is_new = instruction.op1_register() != Register::RSP;
        loads && is_new && instruction.next_ip() == at
    }

    fn iretq(&mut self, d: &D, state: &Machine<D>, [_, cs, flags, _, ss]: [D::Word; 5]) {
        let at = self.trace.last().copied();
        if self.theorem.is_of_events() {
            // To a guest there is another way.
            let kernel = self.target.model().selectors.kernel_cs();
            self.goal(obligation::IRETQ_RING_0, d.is(cs, kernel.into()), "CS");
            self.verw(d);
            self.unblocked = true;
            return;
        }
        let is_known = at.is_some() && at == self.target.iretq;
        self.goal(obligation::IRETQ_LABEL, d.bit(is_known), "RIP");
        let nested = state.flags.other(d, RFlags::NT);
        self.goal(obligation::IRETQ_NT, d.not(nested), "RFLAGS");
        let ring_3 = |selector| d.is(d.mask(selector, 3), 3);
        self.goal(obligation::IRETQ_RING_3, d.both(ring_3(cs), ring_3(ss)), "CS, SS");
        self.flags(d, flags);
        self.verw(d);
        self.frame_of_iretq(d, state);
    }

    /// WRMSR, on a path or on an arm that none takes: of PRED_CMD, it must be an IBPB. Another bit empties
    /// less, and none of them nothing.
    fn barrier(&mut self, d: &D, number: Option<u64>, value: D::Word) {
        if number == Some(Msr::PredCmd.address().into()) {
            self.goal(obligation::IBPB_FIRST, d.test(value, 0), "PRED_CMD");
        }
        self.barriers.msr(number);
    }

    fn branch(&mut self, d: &D, state: &Machine<D>, branch: Branch) {
        let op = self.trace.last().and_then(|at| self.target.program.at(*at));
        let is_far = matches!(op, Some(Ok(op)) if matches!(op.kind, Kind::ReturnFar(_)));
        // No CPU predicts a far one, and what it leads to is what was interrupted. An exit by one leads to
        // the host, which wants an exit's mitigations all the same.
        let is_resuming = is_far && self.theorem.keeps_blocking();
        let at = self.trace.last().copied().unwrap_or_default();
        let to = d.code_at(state.rip);
        match branch {
            Branch::Return if is_resuming => self.verw(d),
            Branch::Return => {
                // To behind a call of the routine's own, or to the caller.
                let is_own = self.barriers.is_predicted(to);
                self.at_return(d, state, is_own, false, 0);
                self.barriers.returned();
                self.barriers.branch(at, None);
            }
            Branch::Jump => self.barriers.branch(at, to),
            Branch::Counted => {}
            Branch::Call => {
                let next = self.target.program.instruction(at).next_ip();
                self.barriers.called(next, self.target.around(at).fills);
            }
        }
    }

    /// Where a RET of the host's leads; it uses up what a call has left in the return stack buffer.
    pub(super) fn returned(&mut self) {
        self.barriers.returned();
    }

    /// Whether a RET to `to` is predicted by the call that it returns from.
    pub(super) fn is_predicted(&self, to: Option<u64>) -> bool {
        self.barriers.is_predicted(to)
    }

    /// A RET, one of the routine's own or the host's: that of an exit, or the first of a hook, `within`
    /// whose call that is. The host's are those of its thunk.
    pub(super) fn at_return(
        &mut self,
        d: &D,
        state: &Machine<D>,
        is_own: bool,
        is_thunks: bool,
        within: usize,
    ) {
        let mitigations = self.target.setting.variant.mitigations();
        let AtReturn { emptied, untrained, filled, history } =
            self.barriers.at_return(mitigations, is_own, is_thunks, within);
        if mitigations.ibrs {
            let holds = self.is_restricted(d, state);
            self.goal(obligation::IBRS_FIRST, holds, "SPEC_CTRL");
        }
        self.goal(obligation::IBPB_FIRST, d.bit(emptied), "PRED_CMD");
        self.goal(obligation::UNTRAINED, d.bit(untrained), "RIP");
        self.goal(obligation::RSB_FILLED, d.bit(filled), "calls");
        self.goal(obligation::BHB_CLEARED, d.bit(history), "branches");
    }

    /// The host untrains returns: it must be able to, on its root.
    pub(super) fn untrain(&mut self, d: &D, state: &Machine<D>, [root, gs_base]: [D::Word; 2]) {
        self.barriers.untrained = true;
        self.goal(obligation::UNTRAINED, d.eq(state.cr3, root), "CR3");
        self.goal(obligation::UNTRAINED, d.eq(state.gs_base, gs_base), "GS base");
        self.goal(obligation::UNTRAINED, d.bit(is_on_a_stack(d, state)), "RSP");
    }

    /// The host's code, which is not looked at, has popped its return address.
    pub(super) fn popped(&mut self, d: &D, access: &Access<D::Word>) {
        self.follow(d, access, Some(Kind::Return(0)));
    }

    /// Where an entry gets to the guest, or the hook's event to what it has interrupted: that may be
    /// an entry behind its own VERW.
    fn verw(&mut self, d: &D) {
        let wanted = self.target.setting.variant.mitigations().verw;
        if wanted && (self.theorem == Theorem::EnterGuest || self.theorem.has_hook()) {
            self.goal(obligation::VERW_LAST, d.bit(self.barriers.overwritten), "VERW");
        }
    }

    /// Flags that a guest is about to have.
    fn flags(&mut self, d: &D, flags: D::Word) {
        let forbidden = d.any(flags, !RFlags::GUEST_ALLOWED.bits());
        let fixed = RFlags::GUEST_FIXED.bits();
        let forced = d.is(d.mask(flags, fixed), fixed);
        self.goal(obligation::GUEST_FLAGS, d.both(d.not(forbidden), forced), "RFLAGS");
    }
}

/// Whether a value says anything that no guest may learn.
pub(super) fn is_a_leak<D: Domain>(d: &D, value: D::Word) -> bool {
    d.mentions(value, |origin| !origin.may_reach_a_guest())
}

/// Whether RSP points into a stack of the host's, or to its top.
fn is_on_a_stack<D: Domain>(d: &D, state: &Machine<D>) -> bool {
    state.memory.regions.iter().any(|region| {
        let end = region.offset(region.cells.len());
        let distance = || d.distance(state.get(Gpr::Rsp), region.base);
        region.name.is_stack() && distance().is_some_and(|at| (region.start..=end).contains(&at))
    })
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
            Event::Decided(condition) => {
                self.decisions.decided(d, state, condition, self.pvcs_at.is_some());
            }
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
                if let Some((at, size)) = self.reads_flags(state, &access) {
                    self.decisions.read_flags(access.value, at, size);
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

/// Whether a CPU may go on as if a SWAPGS had been executed that was not, or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speculation {
    None,
    Possible,
}

/// Where the machine came to.
pub(super) enum End<W> {
    Guest {
        by_sysretq: bool,
    },
    Host,
    /// Where an event has interrupted ring 0.
    Resumed {
        hooked: bool,
    },
    /// In the host, for good; or nothing was executed.
    Stopped,
    Broken {
        obligation: Obligation,
        text: String,
        about: &'static str,
        values: Option<(W, W)>,
    },
}

/// Runs `theorem` of `target`'s code from a state of `source`'s values. `assume` is told what is
/// assumed of them before anything is executed.
///
/// # Errors
/// If the code is none that a theorem can be about.
pub fn run<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    guest_memory: GuestMemory,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Run<D>, BadCode> {
    run_to(d, target, theorem, (guest_memory, Extent::Everything), source, saved, assume)
}

/// How much is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// What can be said without the specification, whose questions make one path many; and, apart from
    /// that, where jumps may be predicted to lead.
    Safety,
    /// And what the specification says.
    Specified,
    /// And what is broken by most that is wrong otherwise.
    Ended,
    /// And where jumps may be predicted to lead, at once.
    Everything,
}

pub(super) fn run_to<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    (guest_memory, extent): (GuestMemory, Extent),
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Run<D>, BadCode> {
    let mut world = self::world(d, target, theorem, source, saved);
    if !apart::are_regions(d, &world) {
        world.assumptions.push(("no two regions overlap", d.bit(false)));
    }
    assume(&world.assumptions);
    let mut watch = Watch::new(d, target, theorem, &world);
    world.machine.memory.racing = guest_memory == GuestMemory::Racing;
    let has_arms = matches!(extent, Extent::Safety | Extent::Everything);
    watch.arms = has_arms.then(untaken::Arms::default);
    world.share_with_hooks(d);
    let end = execute(d, target, theorem, &mut world, &mut watch)?;
    world.add_what_hooks_set(d);
    let end = match end {
        End::Broken { obligation, text, about, values } => {
            let at = watch.trace.last().copied();
            watch.goals.push(Goal { obligation, holds: d.bit(false), about, values, at });
            // That says enough.
            watch.arms = None;
            text
        }
        End::Guest { by_sysretq } => {
            watch.is_over(d, &world.machine);
            let is_told = watch.decisions.is_a_secret() && watch.met.is_a_choice();
            watch.goal(obligation::NO_HOST_VALUE, d.bit(!is_told), "what decided the way here");
            // Only an entry and an exit have another value for it.
            let is_kept = theorem == Theorem::EnterGuest || watch.host_rsp_stored == 0;
            watch.goal(obligation::KEPT, d.bit(is_kept), "host_rsp");
            in_guest(d, &world, &mut watch, (theorem, extent), by_sysretq, saved)
        }
        End::Host => {
            if theorem.is_on_ist() {
                // First: a frame on the wrong stack is one because of it.
                watch.is_over(d, &world.machine);
                watch.goal(obligation::NMI_STACK, d.bit(!watch.on_ist_again), "address");
            }
            in_host(d, &world, &mut watch, theorem, extent)
        }
        End::Resumed { hooked } => events::resumed(d, &world, &mut watch, hooked),
        End::Stopped => String::from("for good"),
    };
    if matches!(extent, Extent::Ended | Extent::Everything) {
        let mut goals = watch.broken_by_most(d);
        watch.goals.append(&mut goals);
    }
    if matches!(theorem, Theorem::Syscall64 | Theorem::SyscallCompat) {
        // The others show where they do harm.
        let cleared = RFlags::DF | RFlags::AC | RFlags::IOPL | RFlags::RF;
        let sfmask = world.setting.sfmask;
        watch.goal(obligation::SFMASK, d.bit(sfmask.contains(cleared)), "SFMASK");
    }
    let mut later = match extent {
        Extent::Safety => watch.broken_by_most(d),
        Extent::Specified | Extent::Ended | Extent::Everything => Vec::new(),
    };
    let (untaken, mut of_arms) = untaken::follow(d, target, &mut world, &mut watch)?;
    match extent {
        Extent::Everything => watch.goals.append(&mut of_arms),
        Extent::Safety | Extent::Specified | Extent::Ended => later.append(&mut of_arms),
    }
    let Watch { trace, goals, is_movable, reads_code, asked, barriers, pvcs_at, .. } = watch;
    let (mut lines, touches_pvcs) = (barriers.into_lines(), pvcs_at.is_some());
    lines.extend(&untaken.lines);
    Ok(Run {
        trace,
        goals,
        later,
        end,
        is_movable,
        reads_code,
        lines,
        asked,
        untaken,
        touches_pvcs,
    })
}

/// A way through the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The addresses of all instructions executed, with the IRETQ that may be the last.
    pub trace: Vec<u64>,
    /// What went wrong, if it leads neither to a guest nor to the host.
    pub broken: Option<String>,
}

/// The same with a quiet guest, and nothing is compared with the specification, whose questions
/// would add paths that the code does not have. `also` is told everything.
pub(super) fn walk<'a, D: Domain>(
    d: &D,
    target: &'a Target,
    theorem: Theorem,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
    also: &'a mut dyn Observer<D>,
) -> Result<Walk, BadCode> {
    let mut world = self::world(d, target, theorem, source, saved);
    assume(&world.assumptions);
    let mut watch = Watch { also: Some(also), ..Watch::new(d, target, theorem, &world) };
    let broken = match execute(d, target, theorem, &mut world, &mut watch)? {
        End::Broken { text, .. } => Some(text),
        End::Guest { .. } | End::Host | End::Resumed { .. } | End::Stopped => None,
    };
    Ok(Walk { trace: watch.trace, broken })
}

/// The MSRs that make a SYSCALL what it is, as the host has them.
pub(super) fn entries<D: Domain>(d: &D, target: &Target, setting: &Setting) -> Msrs<D> {
    Msrs {
        star: d.word(setting.variant.selectors().star().bits()),
        lstar: d.code(target.syscall_64),
        cstar: d.code(target.syscall_compat.unwrap_or_default()),
        sfmask: d.word(setting.sfmask.bits()),
        spec_ctrl: d.word(0),
        efer: d.word(0),
    }
}

/// What the CPU or the host does before the first instruction.
fn begin<D: Domain>(d: &D, target: &Target, theorem: Theorem, world: &mut World<D>) {
    let machine = &mut world.machine;
    let Msrs { spec_ctrl, efer, .. } = machine.msrs;
    machine.msrs = Msrs { spec_ctrl, efer, ..entries(d, target, &world.setting) };
    match theorem {
        Theorem::EnterGuest => machine.rip = d.code(target.enter_guest),
        Theorem::ReturnFromGuest | Theorem::ReturnFromGuestIst => {
            machine.rip = d.code(target.return_from_guest);
        }
        Theorem::Syscall64 => {
            // 64-bit code's SYSCALL goes to LSTAR on every CPU.
            let _ = machine.syscall(d, &world.model, Entry::Long);
        }
        Theorem::SyscallCompat => {
            // On Intel it is #UD; emulators that play Intel go to CSTAR all the same.
            let amd = switcher_model::Model { vendor: Vendor::Amd, ..world.model };
            let _ = machine.syscall(d, &amd, Entry::Compatibility);
        }
        // The event comes first: see `events::execute`.
        _ => {}
    }
}

/// From the first instruction to wherever it ends.
fn execute<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
) -> Result<End<D::Word>, BadCode> {
    if theorem.is_of_events() {
        return events::execute(d, target, theorem, world, watch);
    }
    begin(d, target, theorem, world);
    if target.setting.variant.ibt() {
        let entry = d.code_at(world.machine.rip).unwrap_or_default();
        watch.goal(obligation::ENDBR, d.bit(target.is_endbr(entry)), "entry point");
    }
    loop {
        watch.is_bounded()?;
        let World { machine, model, .. } = world;
        let at = d.code_at(machine.rip).unwrap_or_default();
        watch.lose(d, machine, at);
        if let Some(Ok(op)) = target.program.at(at)
            && op.is_iretq()
        {
            return Ok(iretq(d, machine, watch, at));
        }
        let broken =
            |obligation, text, about| Ok(End::Broken { obligation, text, about, values: None });
        let stepped = machine.step(d, model, &target.program, watch);
        if target.setting.variant.ibt() && target.is_indirect(at) {
            let to = d.code_at(machine.rip).unwrap_or_default();
            watch.goal(obligation::ENDBR, d.bit(target.is_endbr(to)), "indirect jump");
        }
        match stepped {
            Ok(Step::Next) => {}
            Ok(Step::Guest { by_sysretq }) => return Ok(End::Guest { by_sysretq }),
            Ok(Step::Left) => {
                let rip = d.code_at(machine.rip);
                match (returns::left(d, target, world, watch), rip) {
                    (Left::Back, _) => {}
                    (Left::Broken(end), _) => return Ok(end),
                    // A number in the code itself, and the caller is unknown to it.
                    (Left::Elsewhere, Some(rip)) if target.leaves(at) => {
                        return Err(BadCode::Leaves { at, target: rip });
                    }
                    (Left::Elsewhere | Left::Returned, _) => return Ok(End::Host),
                }
            }
            Ok(Step::Halted) => {
                return broken(obligation::NO_TRAP, format!("HLT at {at:#x}"), "RIP");
            }
            Ok(Step::Fault(fault)) => {
                let (obligation, text, about) = watch.fault(at, &fault);
                return broken(obligation, text, about);
            }
            Err(Stuck::Wild { at, address, size, store }) => {
                return Ok(wild(at, address, size, store));
            }
            Err(stuck) => return Err(bad(stuck, at)),
        }
    }
}

/// An access to memory that no assumption is made of.
pub(super) fn wild<W: Copy>(at: u64, address: W, size: usize, store: bool) -> End<W> {
    let (what, to) = if store { ("a store", "to") } else { ("a load", "from") };
    let text = format!("{what} of {size} bytes {to} memory that is not the switcher's, at {at:#x}");
    let values = Some((address, address));
    End::Broken { obligation: obligation::MEMORY, text, about: "address", values }
}

/// What the code at `at` is, if there is no telling what it does.
pub(super) fn bad<W: core::fmt::Debug>(stuck: Stuck<W>, at: u64) -> BadCode {
    match stuck {
        Stuck::Program(error) => error.into(),
        Stuck::SelfModifying { at } => BadCode::SelfModifying { at },
        Stuck::NoCode { .. } | Stuck::Wild { .. } => BadCode::Leaves { at, target: at },
        Stuck::Msr { at, .. } => BadCode::Msr { at },
        Stuck::Several { at } => BadCode::Several { at },
        Stuck::Count { at } => BadCode::Count { at },
    }
}

/// The IRETQ to a guest. Whether it faults is between the CPU and the frame: the frame is what must
/// be right.
fn iretq<D: Domain>(
    d: &D,
    machine: &mut Machine<D>,
    watch: &mut Watch<'_, D>,
    at: u64,
) -> End<D::Word> {
    watch.observe(d, machine, Event::Execute(at));
    let rsp = machine.get(Gpr::Rsp);
    let mut frame = [rsp; 5];
    for (slot, word) in frame.iter_mut().enumerate() {
        let address = d.plus(rsp, 8 * slot as i64);
        let Some(place) = machine.memory.locate(d, address, 8, machine.cr3) else {
            let text = format!(
                "the IRETQ at {at:#x} takes its frame from memory that is not the switcher's"
            );
            let values = Some((address, address));
            return End::Broken { obligation: obligation::MEMORY, text, about: "address", values };
        };
        watch.mapped(d, machine, place.region);
        *word = machine.memory.load(d, place);
    }
    watch.observe(d, machine, Event::Iretq(frame));
    machine.arrive(d, frame);
    End::Guest { by_sysretq: false }
}

/// What an exception in ring 0 breaks.
pub(super) fn fault_breaks<W>(target: &Target, at: u64, fault: &Fault<W>) -> Obligation {
    match target.program.instruction(at).mnemonic() {
        Mnemonic::Wrgsbase => obligation::WRGSBASE_CANONICAL,
        Mnemonic::Sysretq => obligation::SYSRETQ_CANONICAL,
        _ if fault.vector == 3 || fault.vector == 6 => obligation::NO_TRAP,
        _ => obligation::NO_FAULT,
    }
}

/// Ends at CPL 3.
fn in_guest<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    (theorem, extent): (Theorem, Extent),
    by_sysretq: bool,
    saved: Option<&Saved<D>>,
) -> String {
    let machine = &world.machine;
    let how = if by_sysretq { "SYSRET" } else { "IRETQ" };
    let end = format!("to the guest by {how}");
    // What must hold whatever the guest does meanwhile.
    watch.equal(
        d,
        obligation::HOST_GS_KEPT,
        "inactive GS base",
        world.host_gs,
        machine.inactive_gs_base,
    );
    if theorem == Theorem::Syscall64 {
        let extra = extra_of(d, world);
        let smod = d.is(
            d.mask(extra.switch_flags, SwitchFlags::MODE_TOGGLE.bits()),
            SwitchFlags::SMOD.bits(),
        );
        let root = d.select(smod, extra.smod_cr3, extra.umod_cr3);
        watch.equal(d, obligation::ROOT_OF_MODE, "CR3", root, machine.cr3);
    }
    if extent == Extent::Safety {
        return end;
    }

    if is_met(world, theorem) {
        // What comes from the PVCS must come from there.
        let values = [
            ("RIP", machine.rip),
            ("RFLAGS", machine.rflags(d)),
            ("GS base", machine.gs_base),
            ("rsp", machine.get(Gpr::Rsp)),
            ("rcx", machine.get(Gpr::Rcx)),
            ("r11", machine.get(Gpr::R11)),
            ("PKRU", machine.pkru),
        ];
        for (name, value) in values {
            watch.goal(obligation::NO_HOST_VALUE, d.bit(!is_a_leak(d, value)), name);
        }
    }
    let mut spec = world.spec;
    let outcome = specified(d, world, theorem, &watch.met, true, &mut spec);
    let expected = if by_sysretq { Return::Sysretq } else { Return::Iretq };
    let fits = outcome == Outcome::Guest(expected);
    // Where the guest races, which kind it is follows from what was read: what is wrong with that
    // says more, and comes first.
    let is_late = is_met(world, theorem) && matches!(outcome, Outcome::Guest(_));
    if !is_late {
        watch.goal(obligation::KIND, d.bit(fits), "kind of return");
        if !fits {
            return end;
        }
    }
    let guest = &spec.guest;
    watch.equal(d, obligation::GS_BASE, "GS base", guest.gs_base, machine.gs_base);
    watch.equal(d, obligation::ROOT, "CR3", spec.root, machine.cr3);
    watch.equal(d, obligation::RFLAGS, "RFLAGS", guest.rflags, machine.rflags(d));
    watch.equal(d, obligation::SELECTORS, "CS", guest.cs, machine.cs);
    watch.equal(d, obligation::SELECTORS, "SS", guest.ss, machine.ss);
    untouched(d, world, watch, &spec);
    watch.equal(d, obligation::RIP, "RIP", guest.rip, machine.rip);
    let expected = by_number(&guest.registers);
    for register in Gpr::ALL {
        let got = machine.get(register);
        watch.equal(d, obligation::REGISTERS, register.name(), expected[register as usize], got);
    }
    if theorem == Theorem::EnterGuest {
        // The switcher's own choice.
        let extra = extra_of(d, world);
        spec.tss_extra.host_rsp = extra.host_rsp;
        watch.goal(obligation::EXIT_HOST_RSP, d.any(extra.host_rsp, u64::MAX), "host_rsp");
        if let Some(saved) = saved {
            watch.equal(d, obligation::SAVED, "host_rsp", saved.host_rsp, extra.host_rsp);
            compare_stack(d, watch, region_of(world, RegionName::HostStack), &saved.stack);
        }
    } else {
        unchanged(d, world, watch, RegionName::HostStack, i64::MIN..i64::MAX);
    }
    memory(d, world, watch, &spec);
    unchanged(d, world, watch, RegionName::IstStack, i64::MIN..i64::MAX);
    if is_late {
        watch.goal(obligation::KIND, d.bit(fits), "kind of return");
    }
    end
}

/// Whether the end depends on what was met in the PVCS: only SYSCALL reads it, and a hostile guest
/// writes it meanwhile.
fn is_met<D: Domain>(world: &World<D>, theorem: Theorem) -> bool {
    world.machine.memory.racing && theorem == Theorem::Syscall64
}

/// What the specification makes of the state. If a guest writes the PVCS meanwhile, it must make what
/// the machine has made of what was read there: of several values of a field, of one that leads to
/// what the guest has now, and of selectors that lead to the run's end (`to_guest` or not).
/// Everything else is as with a quiet guest.
fn specified<D: Domain>(
    d: &D,
    world: &World<D>,
    theorem: Theorem,
    met: &Met<D::Word>,
    to_guest: bool,
    spec: &mut spec::State<D>,
) -> Outcome<D::Word> {
    let host = world.setting.host();
    let machine = &world.machine;
    let decided_on = world.flags_to_decide_on(to_guest);
    spec.tss_extra.switch_flags = decided_on;
    if is_met(world, theorem) {
        let fields = pvcs_fields(world.setting.revision());
        let [cs, ss, gs_base, eflags, pkru, rip, rsp, rcx, r11] = fields;
        let before = world.spec.pvcs;
        let is_usual = |selector: u16| {
            move |found| {
                let is = d.is(found, selector.into());
                if to_guest { is } else { d.not(is) }
            }
        };
        let one = |field: Option<FieldAt>, before, fits: &dyn Fn(D::Word) -> D::Bit| {
            field.and_then(|field| met.one(d, field, fits)).unwrap_or(before)
        };
        let same = |now| move |found| d.eq(found, now);
        let register = |register| same(machine.get(register));
        spec.pvcs = spec::Pvcs {
            user_cs: one(cs, before.user_cs, &is_usual(host.selectors.user_cs())),
            user_ss: one(ss, before.user_ss, &is_usual(host.selectors.user_ds())),
            user_gsbase: one(gs_base, before.user_gsbase, &|found| {
                d.eq(spec::canonical(d, &host, found), machine.gs_base)
            }),
            eflags: one(eflags, before.eflags, &|found| {
                d.eq(spec::sanitised(d, found), machine.rflags(d))
            }),
            pkru: one(pkru, before.pkru, &same(machine.pkru)),
            rip: one(rip, before.rip, &same(machine.rip)),
            rsp: one(rsp, before.rsp, &register(Gpr::Rsp)),
            rcx: one(rcx, before.rcx, &register(Gpr::Rcx)),
            r11: one(r11, before.r11, &register(Gpr::R11)),
        };
    }
    let outcome = match theorem {
        Theorem::EnterGuest => spec::enter_guest(d, &host, &world.frame, spec),
        Theorem::SyscallCompat => spec::syscall_compat(d, &host, spec),
        Theorem::Syscall64 => spec::syscall_64(d, &host, &world.caller, world.frame_at, spec),
        Theorem::ReturnFromGuest | Theorem::ReturnFromGuestIst => {
            spec::return_from_guest(d, &host, &world.caller, None, world.frame_at, spec)
        }
        _ => events::specified(d, world, spec),
    };
    world.with_what_hooks_set(d, decided_on, spec);
    if is_met(world, theorem) {
        let flags = decided_on;
        // Only the switch to smod writes there.
        if d.decide(d.any(flags, SwitchFlags::NO_DS_TO_SMOD.bits())) {
            spec.pvcs = world.spec.pvcs;
        }
    }
    outcome
}

/// Ends in the host, behind the call of `switcher_enter_guest`.
fn in_host<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    theorem: Theorem,
    extent: Extent,
) -> String {
    let machine = &world.machine;
    let end = String::from("to the host");
    let mut spec = world.spec;
    let outcome = match extent {
        Extent::Safety => {
            let host = world.setting.host();
            spec::return_from_guest(d, &host, &world.caller, None, world.frame_at, &mut spec)
        }
        Extent::Specified | Extent::Ended | Extent::Everything => {
            specified(d, world, theorem, &watch.met, false, &mut spec)
        }
    };
    let Outcome::Host(Exit { frame, frame_at, caller }) = outcome else {
        watch.goal(obligation::KIND, d.bit(false), "kind of exit");
        return end;
    };
    watch.equal(d, obligation::EXIT_CALLER, "RIP", caller.rip, machine.rip);
    watch.equal(d, obligation::EXIT_CALLER, "RSP", caller.rsp, machine.get(Gpr::Rsp));
    let kept = [
        (Gpr::Rbx, caller.rbx),
        (Gpr::Rbp, caller.rbp),
        (Gpr::R12, caller.r12),
        (Gpr::R13, caller.r13),
        (Gpr::R14, caller.r14),
        (Gpr::R15, caller.r15),
    ];
    for (register, expected) in kept {
        let got = machine.get(register);
        watch.equal(d, obligation::EXIT_CALLER, register.name(), expected, got);
    }
    watch.equal(d, obligation::EXIT_ROOT, "CR3", spec.root, machine.cr3);
    watch.equal(d, obligation::EXIT_GS, "GS base", world.host_gs, machine.gs_base);
    watch.equal(
        d,
        obligation::EXIT_GS,
        "inactive GS base",
        world.spec.guest.gs_base,
        machine.inactive_gs_base,
    );
    let unwanted = RFlags::DF | RFlags::AC | RFlags::NT | RFlags::TF | RFlags::IF | RFlags::IOPL;
    let flags = d.mask(machine.rflags(d), unwanted.bits());
    watch.equal(d, obligation::EXIT_FLAGS, "DF, AC, NT, TF, IF, IOPL", d.word(0), flags);
    watch.equal(d, obligation::EXIT_RESULT, "rax", frame_at, machine.get(Gpr::Rax));
    for register in [Gpr::Rcx, Gpr::Rdx, Gpr::Rsi, Gpr::Rdi, Gpr::R8, Gpr::R9, Gpr::R10, Gpr::R11] {
        let got = machine.get(register);
        watch.equal(d, obligation::EXIT_SCRATCH, register.name(), d.word(0), got);
    }
    untouched(d, world, watch, &spec);
    if world.model.vendor == Vendor::Amd {
        watch.goal(obligation::EXIT_SS, d.any(machine.ss, 0xFFFC), "SS");
    }
    if extent == Extent::Safety {
        return end;
    }
    memory(d, world, watch, &spec);
    let size = size_of::<PtRegs>() as i64;
    match frame {
        Some(frame) => {
            let stack = region_of(world, RegionName::Sp0Stack);
            let guest = &frame.guest;
            let gpr = by_number(&guest.registers);
            for register in Gpr::ALL {
                let got = stack.read(d, in_frame(register) - size, 8);
                let expected = gpr[register as usize];
                watch.equal(d, obligation::EXIT_FRAME, register.name(), expected, got);
            }
            let rest = [frame.orig_ax, guest.rip, guest.cs, guest.rflags, guest.ss];
            for ((name, at, _), expected) in FRAME_REST.into_iter().zip(rest) {
                let got = stack.read(d, at - size, 8);
                watch.equal(d, obligation::EXIT_FRAME, name, expected, got);
            }
            let start = if theorem.is_on_ist() { 0 } else { i64::MIN };
            unchanged(d, world, watch, RegionName::IstStack, start..i64::MAX);
        }
        // A handler has written it, and there it stays.
        None => {
            unchanged(d, world, watch, RegionName::Sp0Stack, -size..0);
            unchanged(d, world, watch, RegionName::IstStack, -size..0);
        }
    }
    end
}

/// What no routine changes, SPEC_CTRL and PKRU.
pub(super) fn untouched<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    spec: &spec::State<D>,
) {
    let World { machine, fs_base, .. } = world;
    watch.equal(d, obligation::UNCHANGED, "FS base", *fs_base, machine.fs_base);
    watch.equal(d, obligation::PKRU, "PKRU", spec.pkru, machine.pkru);
    watch.equal(d, obligation::SPEC_CTRL, "SPEC_CTRL", spec.spec_ctrl, machine.msrs.spec_ctrl);
    let before = entries(d, watch.target, &world.setting);
    let msrs = &machine.msrs;
    watch.equal(d, obligation::UNCHANGED, "STAR", before.star, msrs.star);
    watch.equal(d, obligation::UNCHANGED, "LSTAR", before.lstar, msrs.lstar);
    watch.equal(d, obligation::UNCHANGED, "CSTAR", before.cstar, msrs.cstar);
    watch.equal(d, obligation::UNCHANGED, "SFMASK", before.sfmask, msrs.sfmask);
}

pub(super) fn region_of<D: Domain>(world: &World<D>, name: RegionName) -> &Region<D> {
    world.machine.memory.region(name).expect("every world has all regions")
}

fn extra_of<D: Domain>(d: &D, world: &World<D>) -> spec::TssExtra<D::Word> {
    world::read_extra(d, region_of(world, RegionName::TssExtra), &world.setting)
}

/// Per-CPU block and PVCS are as specified.
fn memory<D: Domain>(d: &D, world: &World<D>, watch: &mut Watch<'_, D>, spec: &spec::State<D>) {
    let BlockOffsets { tss, tss_extra } = world.setting.block;
    let e = &spec.tss_extra;
    let values = [
        e.host_cr3,
        e.host_rsp,
        e.enter_cr3,
        e.switch_flags,
        e.smod_cr3,
        e.umod_cr3,
        e.pvcs,
        e.retu_rip,
        e.smod_entry,
        e.smod_gsbase,
        e.smod_rsp,
        e.host_spec_ctrl,
        e.guest_spec_ctrl,
        e.smod_pkru,
    ];
    let fields = EXTRA_FIELDS.into_iter().zip(values).map(|((name, at, size), value)| {
        let obligation = match name {
            "switch_flags" => obligation::SWITCH_FLAGS,
            "host_rsp" => obligation::EXIT_HOST_RSP,
            _ => obligation::TSS_EXTRA,
        };
        let is_scratch = world::is_scratch(Object::TssExtra, name, world.setting.revision());
        ((name, tss_extra + at, size), (!is_scratch).then_some(value), obligation)
    });
    compare(d, world, watch, RegionName::TssExtra, fields);
    let p = &spec.pvcs;
    let values =
        [p.user_cs, p.user_ss, p.user_gsbase, p.eflags, p.pkru, p.rip, p.rsp, p.rcx, p.r11];
    let fields = pvcs_fields(world.setting.revision()).into_iter().zip(values);
    let fields = fields.filter_map(|(field, value)| {
        let field = field?;
        let obligation =
            if field.0 == "user_gsbase" { obligation::PVCS_GSBASE } else { obligation::PVCS };
        Some((field, Some(value), obligation))
    });
    compare(d, world, watch, RegionName::Pvcs, fields);
    // sp2 is scratch.
    let sp2 = tss + Tss::sp2.bytes() as i64;
    unchanged(d, world, watch, RegionName::Tss, i64::MIN..sp2);
    unchanged(d, world, watch, RegionName::Tss, sp2 + 8..i64::MAX);
}

/// A region holds `fields`, anything where there is no value, and is otherwise as before.
fn compare<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    name: RegionName,
    fields: impl Iterator<Item = (world::FieldAt, Option<D::Word>, Obligation)>,
) {
    let region = region_of(world, name);
    let mut others = Vec::new();
    let mut next = region.start;
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by_key(|((_, at, _), ..)| *at);
    for ((field, at, size), value, obligation) in fields {
        others.push(next..at);
        next = at + size as i64;
        if let Some(value) = value {
            watch.equal(d, obligation, field, value, region.read(d, at, size));
        }
    }
    others.push(next..region.offset(region.cells.len()));
    for range in others {
        unchanged(d, world, watch, name, range);
    }
}

/// What lies at these offsets of a region is as before.
pub(super) fn unchanged<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    name: RegionName,
    range: std::ops::Range<i64>,
) {
    let now = region_of(world, name);
    let before = world.before.region(name).expect("the same regions as now");
    let end = range.end.min(now.offset(now.cells.len()));
    let mut at = range.start.max(now.start);
    while at < end {
        let size = (end - at).min(8) as usize;
        watch.equal(
            d,
            obligation::UNCHANGED,
            name.name(),
            before.read(d, at, size),
            now.read(d, at, size),
        );
        at += size as i64;
    }
}

/// What the entry has saved of its caller is what it always saves.
fn compare_stack<D: Domain>(
    d: &D,
    watch: &mut Watch<'_, D>,
    now: &Region<D>,
    expected: &[D::Cell],
) {
    for (index, cells) in expected.chunks(8).enumerate() {
        let got = d.load(&now.cells[8 * index..8 * index + cells.len()]);
        watch.equal(d, obligation::SAVED, "host stack", d.load(cells), got);
    }
}

/// Runs `theorem` of two targets from the same state: what they leave must be the same, whether the
/// specification speaks of it or not. Left out is what nobody can read: stacks below what they hold,
/// sp2, smod_rsp where it is scratch too, and the arithmetic flags and Intel's SS in the host.
///
/// # Errors
/// If one of them is none that a theorem can be about.
pub(super) fn compare_runs<D: Domain>(
    d: &D,
    targets: [&Target; 2],
    theorem: Theorem,
    source: &mut impl Source<D>,
    saved: [&Saved<D>; 2],
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Run<D>, BadCode> {
    let [one, other] = targets;
    let mut world = self::world(d, one, theorem, source, Some(saved[0]));
    let mut second = self::world(d, other, theorem, source, Some(saved[1]));
    if let (Some(first), Some(other)) = (&world.event, &second.event) {
        // Code of another size has its routines elsewhere, and what it does rests on where they are:
        // alike is what is said of RIPs that are within both, or within neither.
        let agree = d.not(d.differ(first.in_routines, other.in_routines));
        world.assumptions.push(("both have a routine there, or neither", agree));
    }
    assume(&world.assumptions);
    let mut watch = Watch::new(d, one, theorem, &world);
    let end = execute(d, one, theorem, &mut world, &mut watch)?;
    let mut ignored = Watch::new(d, other, theorem, &second);
    let second_end = execute(d, other, theorem, &mut second, &mut ignored)?;

    watch.goals.clear();
    let in_guest = matches!(end, End::Guest { .. });
    let same_end = match (&end, &second_end) {
        (End::Guest { by_sysretq: a }, End::Guest { by_sysretq: b }) => a == b,
        (End::Host, End::Host) | (End::Stopped, End::Stopped) => true,
        (End::Resumed { hooked: a }, End::Resumed { hooked: b }) => a == b,
        _ => false,
    };
    watch.goal(obligation::KIND, d.bit(same_end), "kind of end");
    let same = obligation::UNCHANGED;
    let (a, b) = (&world.machine, &second.machine);
    for register in Gpr::ALL {
        watch.equal(d, same, register.name(), a.get(register), b.get(register));
    }
    let flags = |m: &Machine<D>| {
        let flags = m.rflags(d);
        if in_guest { flags } else { d.mask(flags, !ARITHMETIC) }
    };
    // In the host, SS may be null or not, but for AMD.
    let has_ss = !matches!(end, End::Host) || world.model.vendor == Vendor::Amd;
    let others = |m: &Machine<D>| {
        [
            ("RIP", m.rip),
            ("RFLAGS", flags(m)),
            ("CS", m.cs),
            ("SS", if has_ss { m.ss } else { d.word(0) }),
            ("GS base", m.gs_base),
            ("inactive GS base", m.inactive_gs_base),
            ("FS base", m.fs_base),
            ("CR3", m.cr3),
            ("PKRU", m.pkru),
            ("SPEC_CTRL", m.msrs.spec_ctrl),
        ]
    };
    for ((name, a), (_, b)) in others(a).into_iter().zip(others(b)) {
        watch.equal(d, same, name, a, b);
    }
    let BlockOffsets { tss, tss_extra } = world.setting.block;
    let sp2 = tss + Tss::sp2.bytes() as i64;
    let smod_rsp = tss_extra + TssExtra::smod_rsp.bytes() as i64;
    let has_smod_rsp = world.setting.revision() == Revision::V2024;
    let frame = -(size_of::<PtRegs>() as i64);
    for (a, b) in a.memory.regions.iter().zip(&b.memory.regions) {
        let is_read = |at: i64| match a.name {
            RegionName::Code => false,
            RegionName::Tss => !(sp2..sp2 + 8).contains(&at),
            RegionName::TssExtra => has_smod_rsp || !(smod_rsp..smod_rsp + 8).contains(&at),
            // Where an event has gone through, what it left there is nobody's.
            RegionName::IstStack if theorem.is_of_events() => at >= 0,
            RegionName::Sp0Stack | RegionName::IstStack => !in_guest && at >= frame,
            RegionName::InterruptedStack => at >= -(FarFrame::RED_ZONE as i64),
            RegionName::HostStack => in_guest,
            RegionName::Pvcs | RegionName::PerCpu | RegionName::Guest | RegionName::Stack => true,
        };
        for index in (0..a.cells.len()).step_by(4) {
            let at = a.offset(index);
            if is_read(at) {
                let size = (a.cells.len() - index).min(4);
                watch.equal(d, same, a.name.name(), a.read(d, at, size), b.read(d, at, size));
            }
        }
    }
    let end = String::from("the same way");
    let Watch { trace, goals, reads_code, asked, barriers, pvcs_at, .. } = watch;
    Ok(Run {
        trace,
        goals,
        later: Vec::new(),
        end,
        is_movable: false,
        reads_code,
        asked,
        lines: barriers.into_lines(),
        untaken: Untaken::default(),
        touches_pvcs: pvcs_at.is_some(),
    })
}

/// What `switcher_enter_guest` leaves on the host's stack, found by entering a guest all of whose
/// registers are known. That it is always the same is part of the theorem about it.
///
/// # Errors
/// If the code is none that a theorem can be about, or does not get to the guest.
pub fn saved<D: Domain>(
    d: &D,
    target: &Target,
    source: &mut impl Source<D>,
) -> Result<Option<Saved<D>>, BadCode> {
    overlap::check(target)?;
    let mut known = KnownFrame { inner: source, selectors: target.model().selectors };
    let mut world = target.world(d, &mut known, Start::Call, None);
    let mut watch = Watch::new(d, target, Theorem::EnterGuest, &world);
    let End::Guest { .. } = execute(d, target, Theorem::EnterGuest, &mut world, &mut watch)? else {
        return Ok(None);
    };
    let extra = region_of(&world, RegionName::TssExtra);
    let at = world.setting.block.tss_extra + TssExtra::host_rsp.bytes() as i64;
    let host_rsp = extra.read(d, at, 8);
    Ok(Some(Saved { stack: region_of(&world, RegionName::HostStack).cells.clone(), host_rsp }))
}

/// Whether the unknown of this name can have another value at the exit than it had at the entry.
fn is_changed(Name { of, part, .. }: Name) -> bool {
    matches!(
        (of, part),
        (Object::FsBase | Object::Pkru | Object::Pvcs, _)
            | (Object::Guest, Part::Field("gs_base"))
            | (_, Part::Scratch(_))
            // ERETU writes down the stack of the guest's kernel.
            | (Object::TssExtra, Part::Field("switch_flags" | "smod_rsp"))
            | (Object::Sp0Stack | Object::IstStack, _)
    )
}

/// A source whose frame is one of known numbers, so that there is one path.
struct KnownFrame<'a, S> {
    inner: &'a mut S,
    selectors: switcher_gen::arch::Selectors,
}

impl<D: Domain, S: Source<D>> Source<D> for KnownFrame<'_, S> {
    fn value(&mut self, d: &D, name: Name, bits: u32) -> D::Word {
        match (name.of, name.part) {
            (Object::Frame, Part::Field("cs")) => d.word(self.selectors.user_cs().into()),
            (Object::Frame, Part::Field("ss")) => d.word(self.selectors.user_ds().into()),
            (Object::Frame, Part::Field("rflags")) => d.word(RFlags::GUEST_FIXED.bits()),
            (Object::Frame | Object::OrigAx, _) => d.word(0),
            // The guest, or another routine, changes these until there is an exit: what was saved of
            // them is not what they are then.
            _ if is_changed(name) => self.inner.value(d, Name { at_entry: true, ..name }, bits),
            _ => self.inner.value(d, name, bits),
        }
    }
}
