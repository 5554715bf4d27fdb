//! One run of one theorem, from a state to its end, and the goals that come up on it: over numbers
//! or over unknowns.
//!
//! | file | what it is for |
//! |---|---|
//! | `execute` | the one loop, for routines and for events |
//! | `watch` | the observer: what is remembered of a run |
//! | `instruction` | what must hold before each instruction, whatever it is |
//! | `access` | what must hold of each access to memory |
//! | `transfer` | what must hold of SYSRETQ, IRETQ and of what is loaded into CR3 |
//! | `speculation` | what must hold of an instruction because of what a CPU does beside executing it |
//! | `gs` | which GS base a CPU may go on with |
//! | `barriers` | which mitigations the path has executed so far |
//! | `calls` | where the addresses are that calls have pushed |
//! | `events` | how an event is delivered, and what a hook of the host's finds and leaves |
//! | `handing_on` | the host's handler of an event that has ended a run, and who has called for it |
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
//! | `arms` | what is kept of the ways that a CPU may predict and no path takes |
//! | `untaken` | how those are followed, and what must hold there |

pub(crate) mod access;
pub(crate) mod arms;
pub(crate) mod barriers;
pub(crate) mod blocking;
pub(crate) mod calls;
pub(crate) mod compare;
pub(crate) mod decisions;
pub(crate) mod end;
pub(crate) mod events;
pub(crate) mod execute;
pub(crate) mod gs;
pub(crate) mod handing_on;
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
use crate::entry::Entry;
use crate::goal::{Goal, Goals};
use crate::{obligation, world};

use crate::run::arms::{Arms, Untaken};
use crate::run::compare::{in_guest, in_host, resumed};
use crate::run::end::End;
use crate::run::execute::execute;
use crate::run::watch::Watch;
use crate::theorem::{GuestMemory, Theorem};
use crate::world::name::Source;
use crate::world::{Saved, World};
pub(crate) use saved::saved;
use switcher_gen::arch::RFlags;
use switcher_model::{Domain, Features, Observer};

/// A run: where it went and what must hold of it.
#[derive(Debug)]
pub struct Run<D: Domain> {
    /// The addresses of all instructions executed.
    pub trace: Vec<u64>,
    /// What must hold where it has gone, in the order in which that came up.
    pub goals: Vec<Goal<D>>,
    /// What is judged apart: what must hold on arms that it has not taken, and what most faults
    /// break, too.
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
    /// The features that the CPU was asked for: the run says nothing about a CPU that lacks one.
    pub asked: Features,
    /// Where the arms lead that the run has not taken.
    pub untaken: Untaken,
    /// Why those arms were not all followed to their ends: if nothing is found to be wrong, no
    /// theorem can be about the code.
    pub given_up: Option<BadCode>,
    /// Whether the PVCS was accessed.
    pub touches_pvcs: bool,
}

/// Runs the theorem of `entry` from a state of `source`'s values. `assume` is told what is
/// assumed of them before anything is executed.
///
/// # Errors
/// If no theorem can be about the code.
pub fn run<D: Domain>(
    d: &D,
    entry: Entry<'_>,
    guest_memory: GuestMemory,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Run<D>, BadCode> {
    run_to(d, entry, (guest_memory, Extent::Everything), source, saved, assume)
}

/// How much of what must hold is judged in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What can be judged without the specification, whose questions make many paths of one; and,
    /// apart from that, arms that are not taken.
    Safety,
    /// What is judged without the specification, and the end by the specification.
    Specified,
    /// The same, and what most faults break, too.
    Ended,
    /// The same, and arms that are not taken, together with the rest.
    Everything,
}

pub(crate) fn run_to<D: Domain>(
    d: &D,
    entry: Entry<'_>,
    (guest_memory, extent): (GuestMemory, Extent),
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Run<D>, BadCode> {
    let mut world = world::of(d, entry, source, saved);
    if !crate::world::apart::are_regions(d, &world) {
        world.assumptions.push(("no two regions overlap", d.bit(false)));
    }
    assume(&world.assumptions);
    let mut watch = Watch::new(d, entry, &world);
    let mut goals = Goals::new();
    world.machine.memory.racing = guest_memory == GuestMemory::Racing;
    let has_arms = matches!(extent, Extent::Safety | Extent::Everything);
    watch.arms = has_arms.then(Arms::default);
    world.share_with_hooks(d);
    let end = execute(d, &mut world, &mut watch, &mut goals)?;
    world.add_what_hooks_set(d);
    let end = judge_end(d, &world, &mut watch, &mut goals, (end, extent), saved);
    watch.pvcs_is_registered(d, &mut goals);
    let last = goals.take_last();
    let mut later = Vec::new();
    match extent {
        Extent::Safety => later = last,
        Extent::Specified => {}
        Extent::Ended | Extent::Everything => goals.append(last),
    }
    if matches!(entry.theorem, Theorem::Syscall64 | Theorem::SyscallCompat) {
        // Other flags are judged where they do harm.
        let cleared = RFlags::DF | RFlags::AC | RFlags::IOPL | RFlags::RF;
        let sfmask = world.setting.sfmask;
        goals.add(obligation::SFMASK, d.bit(sfmask.contains(cleared)), "SFMASK");
    }
    let (untaken, of_arms, given_up) = untaken::follow(d, &mut world, &mut watch);
    match extent {
        Extent::Everything => goals.append(of_arms),
        Extent::Safety | Extent::Specified | Extent::Ended => later.extend(of_arms),
    }
    let Watch { trace, pushed, reads_code, needs, barriers, pvcs_at, .. } = watch;
    let (mut lines, touches_pvcs) = (barriers.into_lines(), pvcs_at.is_some());
    lines.extend(&untaken.lines);
    Ok(Run {
        trace,
        goals: goals.into_all(),
        later,
        end,
        is_movable: pushed.is_movable(),
        reads_code,
        lines,
        asked: needs.asked,
        untaken,
        given_up,
        touches_pvcs,
    })
}

/// What must hold of the end, and the end in words.
fn judge_end<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    (end, extent): (End<D::Word>, Extent),
    saved: Option<&Saved<D>>,
) -> String {
    let theorem = watch.entry.theorem;
    match end {
        End::Broken { obligation, text, about, values } => {
            goals.broken(d, obligation, about, values);
            // Arms would say nothing more.
            watch.arms = None;
            text
        }
        End::Guest { by_sysretq } => {
            watch.blocking.is_over(d, goals, &world.machine);
            let is_told = watch.decisions.is_a_secret() && watch.met.is_a_choice();
            goals.add(obligation::NO_HOST_VALUE, d.bit(!is_told), "what decided the way here");
            // Only entering a guest and an exit change it.
            let is_kept = theorem == Theorem::EnterGuest || watch.stored.host_rsp == 0;
            goals.add(obligation::KEPT, d.bit(is_kept), "host_rsp");
            in_guest(d, world, watch, goals, (theorem, extent), by_sysretq, saved)
        }
        End::Host if theorem.hands_on() => handing_on::returned(d, world, watch, goals),
        End::Host => {
            // This comes first: it may be the reason for a frame on the wrong stack.
            watch.blocking.has_exited(d, watch.entry, goals, &world.machine);
            if theorem.is_on_ist() {
                let is_once = d.bit(!watch.blocking.is_on_ist_again());
                goals.add(obligation::NMI_STACK, is_once, "address");
            }
            in_host(d, world, watch, goals, theorem, extent)
        }
        End::Resumed { hooked } => resumed(d, world, watch, goals, hooked),
        End::HandedOn => String::from("in the host's handler"),
        End::Stopped => String::from("for good"),
    }
}

/// One way through the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The addresses of all instructions executed, with the IRETQ that may be the last.
    pub trace: Vec<u64>,
    /// What went wrong, if it leads neither to a guest nor to the host.
    pub broken: Option<String>,
}

/// Runs the theorem of `entry` with stable guest memory. Nothing is compared with the
/// specification, whose questions would add paths that the code does not have. `also` observes
/// everything, too.
pub(crate) fn walk<'a, D: Domain>(
    d: &D,
    entry: Entry<'a>,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
    also: &'a mut dyn Observer<D>,
) -> Result<Walk, BadCode> {
    let mut world = world::of(d, entry, source, saved);
    assume(&world.assumptions);
    let mut watch = Watch::new(d, entry, &world);
    watch.also = Some(also);
    // Nobody asks whether these hold.
    let mut goals = Goals::new();
    let broken = match execute(d, &mut world, &mut watch, &mut goals)? {
        End::Broken { text, .. } => Some(text),
        End::Guest { .. } | End::Host | End::Resumed { .. } | End::HandedOn | End::Stopped => None,
    };
    Ok(Walk { trace: watch.trace, broken })
}
