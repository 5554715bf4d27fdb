//! One run of one theorem, from a state to its end, and the goals that come up on it: over numbers or over
//! unknowns.
//!
//! | file | what it is for |
//! |---|---|
//! | `watch` | the observer: what is remembered of a run, and which goals each step gives rise to |
//! | `instruction` | what must hold before each instruction, whatever it is |
//! | `access` | what must hold of each access to memory |
//! | `transfer` | what must hold of SYSRETQ, IRETQ and of what is loaded into CR3 |
//! | `speculation` | what must hold of an instruction because of what a CPU does beside executing it |
//! | `barriers` | which mitigations the path has executed so far |
//! | `calls` | where the addresses are that calls have pushed |
//! | `events` | how an event is delivered, and what a hook of the host's finds and leaves |
//! | `host_return` | a host whose RETs are those of a return thunk |
//! | `compare` | the end, compared with the specification |
//! | `unchanged` | memory at the end: what is as specified, and what is as before |
//! | `limits` | how long a path may be |
//! | `end` | where the machine came to |
//! | `saved` | what entering a guest leaves on the host's stack |
//! | `stores` | what may be stored to, judged at each store |
//! | `locked` | where a locked access may lie |
//! | `decisions` | what a guest learns from the way that a run went |
//! | `met` | what was read of the PVCS while the guest writes it |
//! | `blocking` | what blocks NMIs, and what a #DB or a #MC in ring 0 relies on |
//! | `lost` | what a #MC or a #DB overwrites on a stack meanwhile |
//! | `origins` | whether a value says what nobody may learn, or is a guest's choice |
//! | `untaken` | arms of jumps that a path does not take, and a CPU may predict |

pub(crate) mod access;
pub(crate) mod barriers;
pub(crate) mod blocking;
pub(crate) mod calls;
pub(crate) mod compare;
pub(crate) mod decisions;
pub(crate) mod end;
pub(crate) mod events;
pub(crate) mod host_return;
pub(crate) mod instruction;
pub(crate) mod limits;
pub(crate) mod locked;
pub(crate) mod lost;
pub(crate) mod met;
pub(crate) mod origins;
pub(crate) mod saved;
pub(crate) mod speculation;
pub(crate) mod stores;
pub(crate) mod transfer;
pub(crate) mod unchanged;
pub(crate) mod untaken;
pub(crate) mod watch;

use std::collections::BTreeSet;

use crate::bad_code::BadCode;
use crate::goal::Goal;
use crate::{obligation, world};

use crate::run::compare::{in_guest, in_host, resumed};
use crate::run::end::{End, bad, wild};
use crate::run::events::{call, deliver, gates, is_any, which};
use crate::run::host_return::HostReturn;
use crate::run::transfer::iretq;
use crate::run::untaken::Untaken;
use crate::run::watch::Watch;
use crate::target::Target;
use crate::theorem::{GuestMemory, Theorem};
use crate::world::entries;
use crate::world::name::Source;
use crate::world::{Saved, World};
pub(crate) use saved::saved;
use switcher_gen::arch::{RFlags, Vendor, vector};
use switcher_model::Entry;
use switcher_model::program::Op;
use switcher_model::{Domain, Features, Msrs, Observer, Step, Stuck};
use switcher_spec::Event;

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
pub(crate) enum Extent {
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

pub(crate) fn run_to<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    (guest_memory, extent): (GuestMemory, Extent),
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Run<D>, BadCode> {
    let mut world = world::of(d, target, theorem, source, saved);
    if !crate::world::apart::are_regions(d, &world) {
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
        End::Resumed { hooked } => resumed(d, &world, &mut watch, hooked),
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
pub(crate) fn walk<'a, D: Domain>(
    d: &D,
    target: &'a Target,
    theorem: Theorem,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
    also: &'a mut dyn Observer<D>,
) -> Result<Walk, BadCode> {
    let mut world = world::of(d, target, theorem, source, saved);
    assume(&world.assumptions);
    let mut watch = Watch { also: Some(also), ..Watch::new(d, target, theorem, &world) };
    let broken = match execute(d, target, theorem, &mut world, &mut watch)? {
        End::Broken { text, .. } => Some(text),
        End::Guest { .. } | End::Host | End::Resumed { .. } | End::Stopped => None,
    };
    Ok(Walk { trace: watch.trace, broken })
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
pub(crate) fn execute<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
) -> Result<End<D::Word>, BadCode> {
    if theorem.is_of_events() {
        return execute_event(d, target, theorem, world, watch);
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
                match (host_return::left(d, target, world, watch), rip) {
                    (HostReturn::Back, _) => {}
                    (HostReturn::Broken(end), _) => return Ok(end),
                    // A number in the code itself, and the caller is unknown to it.
                    (HostReturn::Elsewhere, Some(rip)) if target.leaves(at) => {
                        return Err(BadCode::Leaves { at, target: rip });
                    }
                    (HostReturn::Elsewhere | HostReturn::Returned, _) => return Ok(End::Host),
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

/// From the event to wherever its entry leads.
fn execute_event<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
) -> Result<End<D::Word>, BadCode> {
    let broken = |obligation, text, about| End::Broken { obligation, text, about, values: None };
    let Some(Event { error_code, .. }) = world.event.as_ref().map(|h| h.event) else {
        gates(d, target, watch);
        return Ok(End::Stopped);
    };
    let part = which(d, target, theorem, world);
    if let Some(end) = deliver(d, target, world, watch, part.first(), error_code) {
        return Ok(end);
    }
    let mut push_at = part.push_at().filter(|_| part.has_others());
    let mut hooked = false;
    loop {
        watch.is_bounded()?;
        let at = d.code_at(world.machine.rip).unwrap_or_default();
        let World { machine, model, event, .. } = world;
        watch.lose(d, machine, at);
        let stepped = machine.step(d, model, &target.program, watch);
        // A number may be an address in the code itself, and what is executed there no longer matters.
        let interrupted = event.as_ref().map(|happening| happening.interrupted.rip);
        let is_back = theorem.is_in_ring_0()
            && interrupted == Some(machine.rip)
            && target.program.at(at).and_then(Result::ok).is_some_and(Op::is_return_of_event);
        match stepped {
            Ok(Step::Next | Step::Left) if is_back => return Ok(End::Resumed { hooked }),
            Ok(Step::Next) if push_at == Some(at) => {
                push_at = None;
                is_any(d, world, &part);
            }
            Ok(Step::Next) => {}
            Ok(Step::Left) => {
                let rip = d.code_at(machine.rip);
                let hook = rip.and_then(|rip| target.hook(rip));
                match (host_return::left(d, target, world, watch), hook, rip) {
                    (HostReturn::Back, ..) => {}
                    (HostReturn::Broken(end), ..) => return Ok(end),
                    (HostReturn::Elsewhere, Some(hook), _) => {
                        watch.goal(obligation::HOOK, d.bit(!hooked), "how often");
                        hooked = true;
                        if call(d, target, world, watch, at, hook) {
                            return Ok(End::Stopped);
                        }
                    }
                    (HostReturn::Elsewhere, None, Some(rip)) if target.leaves(at) => {
                        return Err(BadCode::Leaves { at, target: rip });
                    }
                    _ if theorem.is_in_ring_0() => {
                        return Ok(End::Resumed { hooked });
                    }
                    _ => return Ok(End::Host),
                }
            }
            Ok(Step::Guest { .. }) => {
                let text = format!("at CPL 3, by the IRETQ at {at:#x}");
                return Ok(broken(obligation::KIND, text, "CPL"));
            }
            Ok(Step::Halted) => {
                return Ok(broken(obligation::NO_TRAP, format!("HLT at {at:#x}"), "RIP"));
            }
            Ok(Step::Fault(fault)) => {
                let op = target.program.at(at).and_then(Result::ok);
                let next = op.filter(|op| op.is_trap(&fault)).map(|op| op.next);
                // INT, by ring 0 itself.
                if let Some(next) = next.filter(|_| fault.vector == vector::SEGMENT_OVERRUN) {
                    machine.rip = d.code(next);
                    match deliver(d, target, world, watch, fault.vector, None) {
                        Some(end) => return Ok(end),
                        None => {
                            watch.interrupted(d, &world.machine);
                            continue;
                        }
                    }
                }
                let (obligation, text, about) = watch.fault(at, &fault);
                return Ok(broken(obligation, text, about));
            }
            Err(Stuck::Wild { at, address, size, store }) => {
                return Ok(wild(at, address, size, store));
            }
            Err(stuck) => return Err(bad(stuck, at)),
        }
    }
}
