//! Goes through every path of every theorem and shows every goal, or finds the state in which one
//! does not hold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::counterexample::{self, Counterexample};
use super::findings::{Findings, Refused};
use super::shared::{self, Executed, Key, Shared};
use super::target::Target;
use super::theorem::{self, ARMS, BadCode, Extent, Goal, GuestMemory, Run, Theorem, Walk};
use super::world::{Name, Saved, Source};
use switcher_model::symbolic;
use switcher_model::symbolic::{By, ExploreError, Symbolic, Verdict as Answer, Word};
use switcher_model::{Domain, Observer};

/// Proves. One prover can be asked many times: what it has found out about terms it keeps.
#[derive(Debug, Default)]
pub struct Prover {
    domain: Symbolic,
    shared: Option<Arc<Shared>>,
    /// Whether a run of the present theorem did: see [`shared::depends_on_place`].
    depends_on_place: Cell<bool>,
    /// Whether a run of it has touched the PVCS.
    touches_pvcs: Cell<bool>,
    /// Set by whoever wants an end; and whether it came before all was done.
    stop: Option<Arc<AtomicBool>>,
    was_stopped: Cell<bool>,
    /// What the runs of the present theorem have executed.
    executed: RefCell<Executed>,
}

/// What became of a target.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Every goal of every theorem holds.
    Proved(Vec<Report>),
    /// One does not.
    Refuted(Box<Counterexample>),
    /// The solver does not know. That is no proof.
    Unknown(String),
}

/// A state of numbers: what is not named is zero.
pub type Numbers = Vec<(String, u64)>;

/// Whether the proof of a theorem says anything: see [`Prover::substance`].
#[derive(Clone, Debug, Default)]
pub struct Substance {
    /// For each path, a state of numbers that meets all assumptions and takes it, if one was found.
    pub paths: Vec<(GuestMemory, Option<Numbers>)>,
    /// By the name of an obligation: of how many goals the contrary is refuted, and how many there are.
    pub contrary: BTreeMap<&'static str, (usize, usize)>,
}

/// What was shown of one theorem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Which.
    pub theorem: Theorem,
    /// With or without a hostile guest.
    pub guest_memory: GuestMemory,
    /// How many ways there are through the code.
    pub paths: usize,
    /// How many goals were shown, on all of them.
    pub goals: usize,
    /// How many of them by the solver, and not by their normal form.
    pub by_solver: usize,
    /// Goals by the name of their obligation.
    pub obligations: BTreeMap<&'static str, usize>,
}

impl Report {
    const fn new(theorem: Theorem, guest_memory: GuestMemory) -> Self {
        let obligations = BTreeMap::new();
        Self { theorem, guest_memory, paths: 0, goals: 0, by_solver: 0, obligations }
    }

    /// The goals of the same paths that were shown apart.
    fn add_goals(&mut self, other: Self) {
        self.goals += other.goals;
        self.by_solver += other.by_solver;
        for (name, goals) in other.obligations {
            *self.obligations.entry(name).or_default() += goals;
        }
    }
}

/// What became of one theorem: what was shown, or what it ends with.
type Judged = Result<Result<Vec<Report>, Box<Verdict>>, BadCode>;

/// Unknowns.
pub(super) struct Unknowns;

impl Source<Symbolic> for Unknowns {
    fn value(&mut self, d: &Symbolic, name: Name, bits: u32) -> Word {
        d.variable_from(name.to_string(), bits, name.origin())
    }
}

/// Why the paths of a theorem are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unexplored {
    /// There is no telling what the code does.
    #[error(transparent)]
    Code(#[from] BadCode),
    /// Nor how many paths it has.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// The exits return to whoever has entered a guest.
    #[error("entering a guest with nothing unusual in its frame does not lead to one")]
    NoEntry,
}

/// Takes assumptions for granted.
fn assume(d: &Symbolic) -> impl Fn(&[(&'static str, symbolic::Bit)]) {
    |assumptions| assumptions.iter().for_each(|(_, bit)| d.assume(*bit))
}

impl Prover {
    /// One that proves nothing again that was proved of the same code for another target by whoever
    /// has these proofs.
    #[must_use]
    pub fn sharing(shared: &Arc<Shared>) -> Self {
        Self { shared: Some(Arc::clone(shared)), ..Self::default() }
    }

    /// The same, which comes to an end soon after `flag` is set: what was found until then is returned,
    /// and nothing is proved.
    #[must_use]
    pub fn stopped_by(self, flag: Arc<AtomicBool>) -> Self {
        Self { stop: Some(flag), ..self }
    }

    /// Whether that has happened before all was done.
    #[must_use]
    pub fn was_stopped(&self) -> bool {
        self.was_stopped.get()
    }

    /// Whether there is to be an end.
    fn is_to_stop(&self) -> bool {
        let stop = self.stop.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
        self.was_stopped.set(self.was_stopped.get() || stop);
        stop
    }

    /// Proves or refutes all theorems about `target`. The first goal that fails ends it.
    ///
    /// # Errors
    /// If the code is none that a theorem can be about.
    pub fn prove(&self, target: &Target) -> Result<Verdict, BadCode> {
        self.prove_in_order(target, &Theorem::of(target).collect::<Vec<_>>())
    }

    /// The same, theorem by theorem in this order, which has all of them: what is likely to fail first
    /// is found soonest.
    pub(crate) fn prove_in_order(
        &self,
        target: &Target,
        order: &[Theorem],
    ) -> Result<Verdict, BadCode> {
        let d = &self.domain;
        d.reset();
        d.try_again();
        let saved = theorem::saved(d, target, &mut Unknowns)?;
        // The one that says why.
        let order = if saved.is_none() { &[Theorem::EnterGuest] } else { order };
        let whole = if self.shared.is_some() { shared::whole(target) } else { Key::default() };
        let mut reports = Vec::new();
        for &theorem in order {
            match self.shared(target, theorem, saved.as_ref(), whole)? {
                Ok(more) => reports.extend(more),
                Err(verdict) => return Ok(*verdict),
            }
        }
        if saved.is_none() {
            return Ok(Verdict::Unknown("entering a guest does not lead to one".into()));
        }
        Ok(Verdict::Proved(reports))
    }

    /// Everything that is wrong with `target`, as far as it can be told: each with a state of its own
    /// that breaks it. Nothing, if it is proved.
    ///
    /// # Errors
    /// If the code cannot even enter a guest.
    pub fn findings(&self, target: &Target) -> Result<Findings, BadCode> {
        let d = &self.domain;
        d.reset();
        d.try_again();
        let saved = theorem::saved(d, target, &mut Unknowns)?;
        let mut findings = Findings::default();
        for theorem in Theorem::of(target) {
            if self.was_stopped() {
                break;
            }
            // The others return to whoever has entered a guest.
            if saved.is_none() && theorem != Theorem::EnterGuest {
                continue;
            }
            if let Err(code) = self.all_of(target, theorem, saved.as_ref(), &mut findings) {
                let why = code.to_string();
                findings.refused.push(Refused { theorem, why, code });
            }
        }
        if saved.is_none() {
            findings.leave_open(None, "entering a guest does not lead to one".into());
        }
        Ok(findings)
    }

    /// Proves or refutes one theorem, or finds it proved.
    fn shared(
        &self,
        target: &Target,
        theorem: Theorem,
        saved: Option<&Saved<Symbolic>>,
        whole: Key,
    ) -> Judged {
        // What holds at one address is not what holds of the same code anywhere.
        let shared = self.shared.as_ref().filter(|_| !target.program.is_fixed());
        let Some(shared) = shared else { return self.both(target, theorem, saved) };
        let d = &self.domain;
        let host = shared::host(d, target, theorem, saved);
        let proof = shared.proof(shared::key(target, theorem, host, whole));
        let mut own = None;
        let known = proof.get_or_init(|| {
            self.depends_on_place.set(false);
            let (is_proved, result) = self.like(shared, target, theorem, saved, host);
            // Of a proof that is another's, only this is known: it holds of this very image.
            let is_shared = theorem.is_of_events() || is_proved && !self.depends_on_place.get();
            let result = own.insert(result);
            result.as_ref().ok()?.as_ref().ok().filter(|_| is_shared).cloned()
        });
        match (own, known) {
            (Some(own), _) => own,
            (None, Some(found)) => {
                shared.count(true);
                Ok(Ok(found.clone()))
            }
            (None, None) => self.like(shared, target, theorem, saved, host).1,
        }
    }

    /// Finds one theorem proved of code that executes the same, or proves it; and whether it did.
    fn like(
        &self,
        shared: &Shared,
        target: &Target,
        theorem: Theorem,
        saved: Option<&Saved<Symbolic>>,
        host: Key,
    ) -> (bool, Judged) {
        let found = shared.like(host, target, theorem);
        shared.count(found.is_some());
        if let Some(found) = found {
            return (false, Ok(Ok(found)));
        }
        self.executed.take();
        let result = self.both(target, theorem, saved);
        if let Ok(Ok(reports)) = &result {
            shared.keep(host, target, theorem, &self.executed.take(), reports);
        }
        (true, result)
    }

    /// Proves or refutes one theorem, with and without a hostile guest.
    fn both(&self, target: &Target, theorem: Theorem, saved: Option<&Saved<Symbolic>>) -> Judged {
        let mut findings = Findings::first();
        let reports = self.all_of(target, theorem, saved, &mut findings)?;
        let Findings { mut refuted, mut unknown, .. } = findings;
        Ok(match (refuted.pop(), unknown.pop()) {
            (Some(found), _) => Err(Box::new(Verdict::Refuted(Box::new(found)))),
            (None, Some(why)) => Err(Box::new(Verdict::Unknown(why))),
            (None, None) => Ok(reports),
        })
    }

    /// The same, and what is found wrong is added to `findings`.
    fn all_of(
        &self,
        target: &Target,
        theorem: Theorem,
        saved: Option<&Saved<Symbolic>>,
        findings: &mut Findings,
    ) -> Result<Vec<Report>, BadCode> {
        use {Extent::*, GuestMemory::*};
        let mut reports: Vec<Report> = Vec::new();
        // Where jumps may lead, and what other faults of a path break, too: what is wrong with the path says
        // more. Whatever a quiet guest leaves, another may leave, too.
        let mut later = (findings.of_this_kind(), None);
        // What is safe first: the specification makes one path many, and each may break more.
        let hostile = [(Racing, Safety), (Racing, Specified)];
        let routines = [hostile[0], hostile[1], (Stable, Specified), (Stable, Ended)];
        // What another CPU of the guest writes matters to what touches the PVCS. Events do not, as a rule.
        let (always, if_touched) = match theorem.is_of_events() {
            true => (&[(Stable, Everything)][..], &hostile[..]),
            false => (&routines[..], &[][..]),
        };
        self.touches_pvcs.set(false);
        for (i, &how) in always.iter().chain(if_touched).enumerate() {
            if i >= always.len() && !self.touches_pvcs.get() {
                break;
            }
            let report = self.theorem(target, theorem, how, saved, (findings, &mut later))?;
            if findings.are_enough() || self.was_stopped() {
                break;
            }
            // The others repeat one of these.
            if matches!(how, (Racing, Specified) | (Stable, Ended | Everything)) {
                reports.push(report);
            }
        }
        let (found, goals) = later;
        if !findings.are_enough() {
            findings.append(found);
        }
        if let (Some(first), Some(goals)) = (reports.first_mut(), goals) {
            first.add_goals(goals);
        }
        Ok(reports)
    }

    /// Goes every path of `theorem`, the guest being quiet, and `visit`s its end. On each, somebody
    /// new watches. As long as a visit lasts, the domain answers questions about the path.
    ///
    /// # Errors
    /// If the code is none that a theorem can be about, or if there may be paths besides those that
    /// were visited.
    pub fn paths<O: Observer<Symbolic>>(
        &self,
        target: &Target,
        theorem: Theorem,
        mut watcher: impl FnMut() -> O,
        mut visit: impl FnMut(&Symbolic, Walk, O),
    ) -> Result<(), Unexplored> {
        let d = &self.domain;
        d.reset();
        let saved = theorem::saved(d, target, &mut Unknowns)?.ok_or(Unexplored::NoEntry)?;
        d.reset();
        let run = |d: &Symbolic| {
            let (source, mut watcher) = (&mut Unknowns, watcher());
            theorem::walk(d, target, theorem, source, Some(&saved), assume(d), &mut watcher)
                .map(|walk| (walk, watcher))
        };
        let mut bad = None;
        let explored = d.explore_until(run, |_, result| match result {
            Ok((walk, watcher)) => {
                visit(d, walk, watcher);
                ControlFlow::Continue(())
            }
            Err(error) => {
                bad = Some(error);
                ControlFlow::Break(())
            }
        });
        match bad {
            Some(bad) => Err(bad.into()),
            None => Ok(explored.map(drop)?),
        }
    }

    fn theorem(
        &self,
        target: &Target,
        theorem: Theorem,
        (guest_memory, extent): (GuestMemory, Extent),
        saved: Option<&Saved<Symbolic>>,
        (findings, later): (&mut Findings, &mut (Findings, Option<Report>)),
    ) -> Result<Report, BadCode> {
        let d = &self.domain;
        d.reset();
        let mut report = Report::new(theorem, guest_memory);
        let mut bad = None;
        // Also of what turns out to be no path.
        let (executed, in_arms) = (Cell::new(0), Cell::new(0));
        let work = theorem::work(target);
        let run = |d: &Symbolic| {
            let how = (guest_memory, extent);
            let run = theorem::run_to(d, target, theorem, how, &mut Unknowns, saved, assume(d))?;
            executed.set(executed.get() + run.trace.len());
            in_arms.set(in_arms.get() + run.untaken.executed);
            match (run.trace.last(), run.untaken.at.last()) {
                (Some(&at), _) if executed.get() > work => Err(BadCode::Work { at, limit: work }),
                (_, Some(&at)) if in_arms.get() > ARMS => Err(BadCode::Arms { at, limit: ARMS }),
                _ => Ok(run),
            }
        };
        let explored = d.explore_until(run, |_, result| match result {
            Err(error) => {
                bad = Some(error);
                ControlFlow::Break(())
            }
            Ok(run) => {
                self.executed(target, theorem, &run);
                let what = (theorem, guest_memory);
                self.path(target, what, (&run, &run.goals), &mut report, findings);
                let (found, goals) = &mut *later;
                if !run.later.is_empty() && !findings.are_enough() && !found.are_enough() {
                    let goals = goals.get_or_insert_with(|| Report::new(theorem, guest_memory));
                    self.path(target, what, (&run, &run.later), goals, found);
                }
                if self.is_to_stop() {
                    findings.leave_open(None, format!("{}: interrupted", theorem.name()));
                    ControlFlow::Break(())
                } else if findings.are_enough() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            }
        });
        match (bad, explored) {
            (Some(bad), _) => Err(bad),
            (None, Ok(explored)) => {
                report.paths = explored.visited;
                Ok(report)
            }
            (None, Err(error)) => {
                findings.leave_open(None, format!("{}: {error}", theorem.name()));
                Ok(report)
            }
        }
    }

    /// Keeps in mind what a run has executed.
    fn executed(&self, target: &Target, theorem: Theorem, run: &Run<Symbolic>) {
        if run.touches_pvcs {
            self.touches_pvcs.set(true);
        }
        if self.shared.is_some() {
            self.executed.borrow_mut().add(target, theorem, run);
            if !theorem.is_of_events() && shared::depends_on_place(target, theorem, run) {
                self.depends_on_place.set(true);
            }
        }
    }

    /// Shows every one of these goals of one path.
    fn path(
        &self,
        target: &Target,
        (theorem, guest_memory): (Theorem, GuestMemory),
        (run, goals): (&Run<Symbolic>, &[Goal<Symbolic>]),
        report: &mut Report,
        findings: &mut Findings,
    ) {
        let d = &self.domain;
        for goal in goals {
            let key = (theorem, goal.obligation, goal.at);
            match d.check(goal.holds) {
                Answer::Holds { by } => {
                    report.goals += 1;
                    report.by_solver += usize::from(by == By::Solver);
                    *report.obligations.entry(goal.obligation.name).or_default() += 1;
                }
                Answer::Fails(_) | Answer::Unknown(_) if findings.has(key, goal.about) => {}
                Answer::Fails(model) => {
                    let found =
                        Counterexample::new(d, target, theorem, guest_memory, run, goal, &model);
                    match found {
                        Some(found) => findings.refute(key, found),
                        None => findings.leave_open(
                            Some(key),
                            format!(
                                "{}: `{}` ({}) could not be shown, and no state was found in which \
                                 the concrete machine breaks it",
                                theorem.name(),
                                goal.obligation.name,
                                goal.about,
                            ),
                        ),
                    }
                }
                Answer::Unknown(why) => {
                    let why = format!("{}: `{}`: {why}", theorem.name(), goal.obligation.name);
                    findings.leave_open(Some(key), why);
                }
            }
            if findings.are_enough() {
                return;
            }
        }
    }

    /// Whether a proof says anything: for each path of `theorem`, a state that takes it; and for each
    /// goal, whether the contrary is refuted.
    ///
    /// # Errors
    /// If the code is none that a theorem can be about.
    pub fn substance(&self, target: &Target, theorem: Theorem) -> Result<Substance, Unexplored> {
        let d = &self.domain;
        d.reset();
        let saved = theorem::saved(d, target, &mut Unknowns)?.ok_or(Unexplored::NoEntry)?;
        let mut found = Substance::default();
        let guest_memories = [GuestMemory::Racing, GuestMemory::Stable];
        let needed = if theorem.is_of_events() { &guest_memories[1..] } else { &guest_memories };
        for &guest_memory in needed {
            d.reset();
            let mut bad = None;
            let run = |d: &Symbolic| {
                let how = (guest_memory, Extent::Everything);
                theorem::run_to(d, target, theorem, how, &mut Unknowns, Some(&saved), assume(d))
            };
            let explored = d.explore_until(run, |_, result| {
                let run = match result {
                    Ok(run) => run,
                    Err(error) => {
                        bad = Some(error);
                        return ControlFlow::Break(());
                    }
                };
                // That nothing is the case is refuted by whatever is.
                let state = match d.check(d.bit(false)) {
                    Answer::Fails(model) => {
                        counterexample::witness(target, theorem, guest_memory, &run, &model)
                    }
                    Answer::Holds { .. } | Answer::Unknown(_) => None,
                };
                found.paths.push((guest_memory, state));
                for goal in &run.goals {
                    let is_refuted = matches!(d.check(d.not(goal.holds)), Answer::Fails(_));
                    let (refuted, all) = found.contrary.entry(goal.obligation.name).or_default();
                    *refuted += usize::from(is_refuted);
                    *all += 1;
                }
                ControlFlow::Continue(())
            });
            match bad {
                Some(bad) => return Err(bad.into()),
                None => explored.map(drop)?,
            }
        }
        Ok(found)
    }

    /// Whether two targets, both proved, leave the same in everything that can be read, beyond what
    /// the specification speaks of. Says what differs if something does.
    ///
    /// # Errors
    /// If one of them is none that a theorem can be about.
    pub fn equivalent(&self, one: &Target, other: &Target) -> Result<Option<String>, BadCode> {
        let d = &self.domain;
        d.reset();
        let saved = [one, other].map(|target| theorem::saved(d, target, &mut Unknowns));
        let [Some(first), Some(second)] = saved.map(|saved| saved.ok().flatten()) else {
            return Ok(Some("entering a guest does not lead to one".into()));
        };
        let events = if one.gates.is_some() { &Theorem::EVENTS[..] } else { &[] };
        // What is fatal leaves nothing that the specification does not speak of.
        let events = events.iter().copied().filter(|theorem| !theorem.is_fatal());
        for theorem in Theorem::ALL.into_iter().chain(events) {
            d.reset();
            let mut difference = None;
            let mut bad = None;
            let run = |d: &Symbolic| {
                let assume = |assumptions: &[(&'static str, symbolic::Bit)]| {
                    assumptions.iter().for_each(|(_, bit)| d.assume(*bit));
                };
                let saved = [&first, &second];
                theorem::compare_runs(d, [one, other], theorem, &mut Unknowns, saved, assume)
            };
            let explored = d.explore_until(run, |_, result| {
                let goals = match result {
                    Ok(run) => run.goals,
                    Err(error) => {
                        bad = Some(error);
                        return ControlFlow::Break(());
                    }
                };
                let differs = |goal: &super::theorem::Goal<Symbolic>| {
                    !matches!(d.check(goal.holds), Answer::Holds { .. })
                };
                match goals.iter().find(|goal| differs(goal)) {
                    None => ControlFlow::Continue(()),
                    Some(goal) => {
                        difference = Some(format!("{}: {} differs", theorem.name(), goal.about));
                        ControlFlow::Break(())
                    }
                }
            });
            match (bad, difference, explored) {
                (Some(bad), ..) => return Err(bad),
                (None, None, Ok(_)) => {}
                (None, None, Err(error)) => return Ok(Some(error.to_string())),
                (None, difference, _) => return Ok(difference),
            }
        }
        Ok(None)
    }

    /// How questions were answered so far.
    #[must_use]
    pub fn statistics(&self) -> symbolic::Statistics {
        self.domain.statistics()
    }
}
