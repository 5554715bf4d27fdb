//! Whether two targets leave the same, down to what the specification does not speak of.

use std::ops::ControlFlow;

use crate::bad_code::BadCode;
use crate::contract::Clauses;
use crate::entry::{Entry, EntryPoints};
use crate::goal::{Goal, Goals};
use crate::layouts::ExtraField;
use crate::prover::{Prover, Unknowns, assume};
use crate::run::end::End;
use crate::run::events::{CLOBBERED, is_in_code};
use crate::run::execute::execute;
use crate::run::watch::Watch;
use crate::target::Target;
use crate::theorem::Theorem;
use crate::world::Saved;
use crate::world::event::EventContext;
use crate::world::name::Source;
use crate::{obligation, run, world};
use switcher_gen::arch::Vendor;
use switcher_gen::layout::{FarFrame, PtRegs, Revision, Tss};
use switcher_model::symbolic::{Symbolic, Validity as Answer};
use switcher_model::{ARITHMETIC, Domain, Gpr, RegionName, State as Machine};

/// Runs `theorem` of two targets from the same state: what they leave must be the same, whether the
/// specification speaks of it or not. Left out is what nobody can read: stacks below what they
/// hold, sp2, smod_rsp where it is scratch too, and the arithmetic flags and Intel's SS in the
/// host.
///
/// # Errors
/// If no theorem can be about one of them.
pub(crate) fn compare_runs<D: Domain>(
    d: &D,
    entries: [Entry<'_>; 2],
    source: &mut impl Source<D>,
    saved: [&Saved<D>; 2],
    assume: impl FnOnce(&[(&'static str, D::Bit)]),
) -> Result<Vec<Goal<D>>, BadCode> {
    let [one, other] = entries;
    let theorem = one.theorem;
    let mut world = world::of(d, one, source, Some(saved[0]));
    let mut second = world::of(d, other, source, Some(saved[1]));
    if let (Some(first), Some(other)) = (&world.event, &second.event) {
        // Code of another size has its routines elsewhere, and what it does depends on where they
        // are. So the interrupted RIP is within the routines of both, or of neither.
        let agree = d.not(d.differ(first.in_routines, other.in_routines));
        world.assumptions.push(("both have a routine there, or neither", agree));
    }
    if let Some(EventContext { interrupted, .. }) = &world.event
        && one.hands_on()
    {
        // Code of another size ends elsewhere, too. So the interrupted RIP is in both, or in
        // neither, and at the IRETQ of neither.
        let [first, second] = [one, other].map(|entry| is_in_code(d, entry, interrupted.rip));
        let agree = d.not(d.differ(first, second));
        world.assumptions.push(("it is in both, or in neither", agree));
        let iretq = d.code(other.target.iretq.unwrap_or_default());
        let elsewhere = d.not(d.eq(interrupted.rip, iretq));
        world.assumptions.push(("the other's IRETQ to a guest is not what faults", elsewhere));
    }
    assume(&world.assumptions);
    // Both are proved: what must hold of each was shown.
    let ends = [(one, &mut world), (other, &mut second)].map(|(entry, world)| {
        let mut watch = Watch::new(d, entry, world);
        execute(d, world, &mut watch, &mut Goals::new())
    });
    let [end, second_end] = ends;
    let (end, second_end) = (end?, second_end?);

    let mut goals = Goals::new();
    let in_guest = matches!(end, End::Guest { .. });
    let same_end = match (&end, &second_end) {
        (End::Guest { by_sysretq: a }, End::Guest { by_sysretq: b }) => a == b,
        (End::Host, End::Host) | (End::Stopped, End::Stopped) | (End::HandedOn, End::HandedOn) => {
            true
        }
        (End::Resumed { hooked: a }, End::Resumed { hooked: b }) => a == b,
        _ => false,
    };
    goals.add(obligation::KIND, d.bit(same_end), "kind of end");
    // What is fatal leaves nothing that the specification speaks of.
    if matches!(end, End::Stopped) && one.theorem.is_fatal() {
        return Ok(goals.into_all());
    }
    let same = obligation::UNCHANGED;
    let (a, b) = (&world.machine, &second.machine);
    // What the contract lets host code find there, nobody compares, and what a function may clobber
    // that is no exit.
    let is_any = |register| {
        let is_promised = register == Gpr::Rdi && world.setting.promises(Clauses::ANY_RDI);
        let is_clobbered = one.theorem.hands_on() && CLOBBERED.contains(&register);
        matches!(end, End::Host) && (is_promised || is_clobbered)
    };
    for register in Gpr::ALL.into_iter().filter(|register| !is_any(*register)) {
        goals.equal(d, same, register.name(), a.get(register), b.get(register));
    }
    let flags = |m: &Machine<D>| {
        let flags = m.rflags(d);
        if in_guest { flags } else { d.mask(flags, !ARITHMETIC) }
    };
    // In the host, SS may be null or not, but for AMD.
    let has_ss = !matches!(end, End::Host)
        || world.model.vendor == Vendor::Amd && !world.setting.promises(Clauses::ANY_SS);
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
        goals.equal(d, same, name, a, b);
    }
    let tss = world.setting.block.tss;
    let sp2 = tss + Tss::sp2.bytes() as i64;
    // RSP passes through this field.
    let smod_rsp = world.setting.extra_at(ExtraField::SmodRsp);
    let scratch = smod_rsp.filter(|_| world.setting.revision() == Revision::V2026);
    let is_scratch = |at: i64| scratch.is_some_and(|field| (field..field + 8).contains(&at));
    let frame = -(size_of::<PtRegs>() as i64);
    for (a, b) in a.memory.regions.iter().zip(&b.memory.regions) {
        let is_read = |at: i64| match a.name {
            RegionName::Code => false,
            RegionName::Tss => !(sp2..sp2 + 8).contains(&at),
            RegionName::TssExtra => !is_scratch(at),
            // What an event has left on its stack, nobody reads.
            RegionName::IstStack if theorem.is_of_events() => at >= 0,
            RegionName::Sp0Stack | RegionName::IstStack => !in_guest && at >= frame,
            RegionName::InterruptedStack => at >= -(FarFrame::RED_ZONE as i64),
            RegionName::HostStack => in_guest,
            RegionName::Pvcs
            | RegionName::PerCpu
            | RegionName::Guest
            | RegionName::Stack
            | RegionName::HostData
            | RegionName::MappedData
            | RegionName::HostWord => true,
        };
        for index in (0..a.cells.len()).step_by(4) {
            let at = a.offset(index);
            if is_read(at) {
                let size = (a.cells.len() - index).min(4);
                goals.equal(d, same, a.name.name(), a.read(d, at, size), b.read(d, at, size));
            }
        }
    }
    Ok(goals.into_all())
}

/// Whether two targets leave the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Equivalence {
    /// In everything that can be read.
    Same,
    /// Something differs, or could not be shown not to: what.
    Differs(String),
    /// One of them is code that no theorem can be about.
    Unsupported(BadCode),
}

impl Prover {
    /// Whether two targets, both proved, leave the same in everything that can be read, beyond what
    /// the specification speaks of.
    #[must_use]
    pub fn equivalent(&self, one: &Target, other: &Target) -> Equivalence {
        let d = &self.domain;
        d.reset();
        let points = [one, other].map(EntryPoints::of);
        let saved = [&points[0], &points[1]].map(|points| run::saved(d, points, &mut Unknowns));
        let [Some(first), Some(second)] = saved.map(|saved| saved.ok().flatten()) else {
            return Equivalence::Differs("entering a guest does not lead to one".into());
        };
        let events = if one.gates.is_some() { &Theorem::EVENTS[..] } else { &[] };
        // A fatal event leaves nothing that the specification does not speak of.
        let is_fatal = |theorem: &Theorem| {
            let entries = [points[0].entry(*theorem), points[1].entry(*theorem)];
            entries.into_iter().all(Entry::is_fatal)
        };
        let events = events.iter().copied().filter(|theorem| !is_fatal(theorem));
        for theorem in Theorem::ALL.into_iter().chain(events) {
            d.reset();
            let mut found = Equivalence::Same;
            let run = |d: &Symbolic| {
                let entries = [points[0].entry(theorem), points[1].entry(theorem)];
                compare_runs(d, entries, &mut Unknowns, [&first, &second], assume(d))
            };
            let explored = d.explore_until(run, |_, result| {
                let goals = match result {
                    Ok(goals) => goals,
                    Err(error) => {
                        found = Equivalence::Unsupported(error);
                        return ControlFlow::Break(());
                    }
                };
                let differs =
                    |goal: &&Goal<_>| !matches!(d.check(goal.holds), Answer::Holds { .. });
                match goals.iter().find(differs) {
                    None => ControlFlow::Continue(()),
                    Some(goal) => {
                        let what = format!("{}: {} differs", theorem.name(), goal.about);
                        found = Equivalence::Differs(what);
                        ControlFlow::Break(())
                    }
                }
            });
            match (found, explored) {
                (Equivalence::Same, Ok(_)) => {}
                (Equivalence::Same, Err(error)) => return Equivalence::Differs(error.to_string()),
                (found, _) => return found,
            }
        }
        Equivalence::Same
    }
}
