//! Goes through every path of every theorem and shows every goal, or finds the state in which one
//! does not hold.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bad_code::BadCode;
use crate::counterexample::Counterexample;
use crate::entry::{Entry, EntryPoints};
use crate::findings::{Findings, Refused};
use crate::goal::Goal;
use crate::run;
use crate::run::arms::ARMS;
use crate::run::limits::work;
use crate::run::{Extent, Run, Walk};
use crate::target::Target;
use crate::theorem::{GuestMemory, Theorem};
use crate::verdict::{Report, Verdict};
use crate::world::Saved;
use crate::world::name::{Name, Source};
use switcher_model::symbolic::{By, ExploreError, Symbolic, Validity as Answer, Word};
use switcher_model::{Observer, symbolic};

/// Proves or refutes theorems about targets. One prover can be asked many times: it keeps what it
/// has found out about terms.
#[derive(Debug, Default)]
pub struct Prover {
    /// What it knows of terms.
    pub(crate) domain: Symbolic,
    /// Set by whoever wants an end.
    stop: Option<Arc<AtomicBool>>,
    /// Whether an end was wanted before all was done.
    was_stopped: Cell<bool>,
}

/// Whatever gives verdicts: a [`Prover`], or one that looks up what others have proved.
pub trait Prove {
    /// The prover that is asked where nothing is known.
    fn prover(&self) -> &Prover;

    /// Proves or refutes the theorems in `order`, which has all of them: what is likely to fail
    /// first is found soonest.
    fn prove_in_order(&self, target: &Target, order: &[Theorem]) -> Verdict;

    /// Proves or refutes all theorems about `target`. The first that is not proved ends it.
    fn prove(&self, target: &Target) -> Verdict {
        self.prove_in_order(target, &Theorem::of(target).collect::<Vec<_>>())
    }
}

impl Prove for Prover {
    fn prover(&self) -> &Prover {
        self
    }

    fn prove_in_order(&self, target: &Target, order: &[Theorem]) -> Verdict {
        let points = EntryPoints::of(target);
        self.all(&points, order, |entry, saved| self.theorem(entry, saved, &|_| ()))
    }
}

/// A source whose values are unknowns.
pub(crate) struct Unknowns;

impl Source<Symbolic> for Unknowns {
    fn value(&mut self, d: &Symbolic, name: Name, bits: u32) -> Word {
        d.variable_from(name.to_string(), bits, name.origin())
    }
}

/// Why the paths of a theorem are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unexplored {
    /// No theorem can be about the code.
    #[error(transparent)]
    Code(#[from] BadCode),
    /// The solver does not know how many paths the code has.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// Entering a guest does not lead to one, and exits return to whoever has entered it.
    #[error("entering a guest with nothing unusual in its frame does not lead to one")]
    NoEntry,
}

/// Takes assumptions for granted.
pub(crate) fn assume(d: &Symbolic) -> impl Fn(&[(&'static str, symbolic::Bit)]) {
    |assumptions| assumptions.iter().for_each(|(_, bit)| d.assume(*bit))
}

impl Prover {
    /// This prover, which comes to an end soon after `flag` is set: nothing is proved then.
    #[must_use]
    pub fn stopped_by(self, flag: Arc<AtomicBool>) -> Self {
        Self { stop: Some(flag), ..self }
    }

    /// Whether that has happened before all was done.
    #[must_use]
    pub fn was_stopped(&self) -> bool {
        self.was_stopped.get()
    }

    /// Whether somebody wants an end now.
    fn is_to_stop(&self) -> bool {
        let stop = self.stop.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
        self.was_stopped.set(self.was_stopped.get() || stop);
        stop
    }

    /// Proves or refutes all theorems about `target`. The first goal that fails ends it.
    #[must_use]
    pub fn prove(&self, target: &Target) -> Verdict {
        Prove::prove(self, target)
    }

    /// What becomes of the theorems in `order`, which has all of them, if `theorem` says what
    /// becomes of each. The first that is not proved ends it.
    pub(crate) fn all(
        &self,
        points: &EntryPoints<'_>,
        order: &[Theorem],
        mut theorem: impl FnMut(Entry<'_>, Option<&Saved<Symbolic>>) -> Verdict,
    ) -> Verdict {
        let d = &self.domain;
        d.reset();
        d.try_again();
        let saved = match run::saved(d, points, &mut Unknowns) {
            Ok(saved) => saved,
            Err(code) => return Verdict::Unsupported(code),
        };
        // This theorem says why.
        let order = if saved.is_none() { &[Theorem::EnterGuest] } else { order };
        let mut reports = Vec::new();
        for &each in order {
            match theorem(points.entry(each), saved.as_ref()) {
                Verdict::Proved(more) => reports.extend(more),
                ended => return ended,
            }
        }
        if saved.is_none() {
            return Verdict::Unknown("entering a guest does not lead to one".into());
        }
        Verdict::Proved(reports)
    }

    /// Proves or refutes one theorem, with and without a guest that writes its memory meanwhile.
    /// `see` sees each run.
    pub(crate) fn theorem(
        &self,
        entry: Entry<'_>,
        saved: Option<&Saved<Symbolic>>,
        see: &dyn Fn(&Run<Symbolic>),
    ) -> Verdict {
        let mut findings = Findings::first();
        match self.all_of(entry, saved, see, &mut findings) {
            Ok(reports) => findings.into_verdict(reports),
            Err(code) => Verdict::Unsupported(code),
        }
    }

    /// Everything that is wrong with `target`, as far as it can be told: each with a state of its
    /// own that breaks it. Nothing, if it is proved.
    ///
    /// # Errors
    /// If the theorem about entering a guest cannot be about the code.
    pub fn findings(&self, target: &Target) -> Result<Findings, BadCode> {
        let d = &self.domain;
        d.reset();
        d.try_again();
        let points = EntryPoints::of(target);
        let saved = run::saved(d, &points, &mut Unknowns)?;
        let mut findings = Findings::default();
        for theorem in Theorem::of(target) {
            if self.was_stopped() {
                break;
            }
            // Other theorems are about what returns to whoever has entered a guest.
            if saved.is_none() && theorem != Theorem::EnterGuest {
                continue;
            }
            if let Err(code) =
                self.all_of(points.entry(theorem), saved.as_ref(), &|_| (), &mut findings)
            {
                let why = code.to_string();
                findings.refused.push(Refused { theorem, why, code });
            }
        }
        if saved.is_none() {
            findings.leave_open(None, "entering a guest does not lead to one".into());
        }
        Ok(findings)
    }

    /// Goes every path of one theorem in every way that matters. What is found wrong is added to
    /// `findings`, and `see` sees each run.
    fn all_of(
        &self,
        entry: Entry<'_>,
        saved: Option<&Saved<Symbolic>>,
        see: &dyn Fn(&Run<Symbolic>),
        findings: &mut Findings,
    ) -> Result<Vec<Report>, BadCode> {
        use {Extent::*, GuestMemory::*};
        let mut reports: Vec<Report> = Vec::new();
        // Arms, and what most faults break, are judged apart and come last: what else is wrong with
        // a path says more. Racing guest memory has all states that stable memory has.
        let mut later = (findings.of_this_kind(), None);
        // Safety comes first: the specification makes many paths of one, and each may break more.
        let racing = [(Racing, Safety), (Racing, Specified)];
        let routines = [racing[0], racing[1], (Stable, Specified), (Stable, Ended)];
        // What another CPU of the guest writes matters to code that touches the PVCS. Events do
        // not, as a rule.
        let (always, if_touched) = match entry.theorem.is_of_events() {
            true => (&[(Stable, Everything)][..], &racing[..]),
            false => (&routines[..], &[][..]),
        };
        let touches_pvcs = Cell::new(false);
        let see = |run: &Run<Symbolic>| {
            touches_pvcs.set(touches_pvcs.get() || run.touches_pvcs);
            see(run);
        };
        for (i, &how) in always.iter().chain(if_touched).enumerate() {
            if i >= always.len() && !touches_pvcs.get() {
                break;
            }
            let report = self.extent(entry, how, saved, &see, (findings, &mut later))?;
            if findings.are_enough() || self.was_stopped() {
                break;
            }
            // The other ways repeat one of these.
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

    /// Goes every path of one theorem in one way, and shows what that asks for.
    fn extent(
        &self,
        entry: Entry<'_>,
        (guest_memory, extent): (GuestMemory, Extent),
        saved: Option<&Saved<Symbolic>>,
        see: &dyn Fn(&Run<Symbolic>),
        (findings, later): (&mut Findings, &mut (Findings, Option<Report>)),
    ) -> Result<Report, BadCode> {
        let (d, theorem) = (&self.domain, entry.theorem);
        d.reset();
        let mut report = Report::new(theorem, guest_memory);
        let mut bad = None;
        // This counts what turns out to be no path, too.
        let (executed, in_arms) = (Cell::new(0), Cell::new(0));
        let work = work(entry.target);
        let run = |d: &Symbolic| {
            let how = (guest_memory, extent);
            let run = run::run_to(d, entry, how, &mut Unknowns, saved, assume(d))?;
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
                see(&run);
                self.path(entry, guest_memory, (&run, &run.goals), &mut report, findings);
                let (found, goals) = &mut *later;
                if !run.later.is_empty() && !findings.are_enough() && !found.are_enough() {
                    let goals = goals.get_or_insert_with(|| Report::new(theorem, guest_memory));
                    self.path(entry, guest_memory, (&run, &run.later), goals, found);
                }
                let is_wrong = findings.are_of(theorem) || found.are_of(theorem);
                if let Some(error) = run.given_up.filter(|_| !is_wrong) {
                    bad = Some(error);
                    ControlFlow::Break(())
                } else if self.is_to_stop() {
                    findings.interrupt(theorem);
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

    /// Shows every one of these goals of one path.
    fn path(
        &self,
        entry: Entry<'_>,
        guest_memory: GuestMemory,
        (run, goals): (&Run<Symbolic>, &[Goal<Symbolic>]),
        report: &mut Report,
        findings: &mut Findings,
    ) {
        let (d, theorem) = (&self.domain, entry.theorem);
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
                    let found = Counterexample::new(d, entry, guest_memory, run, goal, &model);
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

    /// Goes every path of `theorem` with stable guest memory, and `visit`s its end. Each path has
    /// an observer of its own. As long as a visit lasts, the domain answers questions about the
    /// path.
    ///
    /// # Errors
    /// If no theorem can be about the code, or if there may be paths besides those that
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
        let points = EntryPoints::of(target);
        let saved = run::saved(d, &points, &mut Unknowns)?.ok_or(Unexplored::NoEntry)?;
        d.reset();
        let run = |d: &Symbolic| {
            let (source, mut watcher) = (&mut Unknowns, watcher());
            run::walk(d, points.entry(theorem), source, Some(&saved), assume(d), &mut watcher)
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

    /// How questions were answered so far.
    #[must_use]
    pub fn statistics(&self) -> symbolic::Statistics {
        self.domain.statistics()
    }
}
