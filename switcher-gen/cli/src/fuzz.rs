//! `switcher fuzz`: whether code does what the specification says, from many states.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use switcher_engine::fuzz;
use switcher_engine::fuzz::{Coverage, Difference, Engines, NativeCoverage, NativeError};
use switcher_model::Unobserved;
use switcher_prove::{Prover, Target, Theorem};

use crate::emit::number;
use crate::interrupt::{self, Interrupted};
use crate::output::{Failure, Format, conclude, json};
use crate::parallel::{Jobs, note, progress};
use crate::subject::Subject;
use crate::target::TargetArgs;

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher fuzz
  switcher fuzz --variant amd-la57 --cases 10_000_000 --seed 0x5EED
  switcher fuzz --elf theirs.o --variant intel-4level --format json
  switcher fuzz --engine native --cases 100_000

A case is a state that is random, or near a boundary, within what the proofs assume. The code is
run from there, and everything it leaves is compared with the specification. Equal seeds give
equal cases, whatever the number of jobs. The first case that differs is made as small as it can
be: every value of it is zero that may be.

What the proofs say of all states, with terms, this says of many, with numbers. Coverage counts
the paths through the code that cases took, beside those that the proofs find, and classes: paths
by the kind of address that is returned to (lower half, upper half, not canonical) and of flags
(TF, RF, forbidden ones).

With `--engine native` a case is a whole run of one of our images: a guest is entered, makes SYSCALLs
and exits, on this CPU in user mode, on the model and by the specification. All three must say the
same of everything that comes of it.

JSON is one object: `engine`, `target`, `seed`, `cases`, as asked for;
`interrupted`, null unless Ctrl-C was pressed, then an object: `after`, so many cases were tried,
`of`, so many were asked for; `verdict`: \"agree\", \"differ\" or \"interrupted\"; `difference`, null if they agree, an object: `case`, `theorem`, `obligation`, `about`,
`values` (what should be and what is, or null), `state` (an array of names and values: what is not
named is zero); `theorems`, empty unless they agree, an array of objects: `theorem`, `cases`,
`paths`, `paths_proved` (null if the proofs do not find them all), `classes`. Of `--engine native`:
`difference` is a text or null; instead of `theorems` there are `paths` (ways through the switcher),
`classes`, `round_trips`, and `not_here`, cases that only the model ran, because they need the other
paging mode. Fields may be added.

", exit_codes!()))]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// What runs the code
    #[arg(long, value_enum, default_value_t = Engine::Machine)]
    engine: Engine,
    /// How many cases
    #[arg(long, value_name = "N", default_value = "1_000_000", value_parser = cases)]
    cases: NonZeroU64,
    /// Where cases come from: any number
    #[arg(long, value_name = "S", default_value = "1", value_parser = seed)]
    seed: u64,
    #[command(flatten)]
    jobs: Jobs,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
enum Engine {
    /// The model of the CPU that the proofs use, on numbers
    Machine,
    /// This CPU, in user mode, beside the model
    Native,
}

#[derive(Serialize)]
struct Report {
    engine: Engine,
    target: String,
    seed: u64,
    cases: u64,
    interrupted: Option<Interrupted>,
    verdict: &'static str,
    difference: Option<Difference>,
    theorems: Vec<Covered>,
}

/// What was tried of one theorem.
#[derive(Serialize)]
struct Covered {
    theorem: Theorem,
    cases: u64,
    paths: usize,
    paths_proved: Option<usize>,
    classes: usize,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let subject = args.target.subject()?;
    interrupt::listen();
    match args.engine {
        Engine::Machine => run_on_machine(args, subject),
        Engine::Native => run_natively(args, &subject),
    }
}

fn run_on_machine(args: &Args, subject: Subject) -> Result<(), Failure> {
    let cases = args.cases.get();
    let start = Instant::now();
    let (found, tried) = on_machine(&subject, args.seed, cases, &args.jobs)?;
    let (coverage, difference) = match found {
        Found::Agreement(coverage) => (coverage, None),
        Found::Difference(difference) => (Coverage::default(), Some(difference)),
    };
    // What differs differs, however many cases there were to be.
    let interrupted = match difference {
        None => Interrupted::new(tried, cases),
        Some(_) => None,
    };
    if difference.is_none() {
        let rate = coverage.cases() as f64 / start.elapsed().as_secs_f64();
        note(&format!("{rate:.0} cases per second"));
    }
    let verdict = match &difference {
        None => Ok(()),
        Some(_) => Err(Failure::Failed(format!("{} does not do what is specified", subject.name))),
    };
    let report = Report {
        engine: args.engine,
        theorems: match difference {
            None => covered(&subject.target, &coverage),
            Some(_) => Vec::new(),
        },
        target: subject.name,
        seed: args.seed,
        cases,
        interrupted,
        verdict: word(difference.is_some(), interrupted),
        difference,
    };
    let report = match args.format {
        Format::Text => text(&report),
        Format::Json => json(&report)?,
    };
    conclude(report, interrupt::verdict(interrupted, "cases", verdict))
}

/// The verdict in a word: a part that has agreed is no verdict.
fn word(differs: bool, interrupted: Option<Interrupted>) -> &'static str {
    match (differs, interrupted) {
        (true, _) => "differ",
        (false, Some(_)) => "interrupted",
        (false, None) => "agree",
    }
}

enum Found {
    Agreement(Coverage),
    Difference(Difference),
}

/// A part of the cases in steps, between which Ctrl-C is seen.
fn steps(cases: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    const STEP: u64 = 1000;
    let steps = cases.clone().step_by(STEP as usize).take_while(|_| !interrupt::requested());
    steps.map(move |start| start..cases.end.min(start + STEP))
}

/// What was found, and how many cases were tried.
fn on_machine(
    subject: &Subject,
    seed: u64,
    cases: u64,
    jobs: &Jobs,
) -> Result<(Found, u64), Failure> {
    // Few enough to be kept, small enough for every core to have some. Their size must not depend
    // on the number of jobs: where the first difference ends them is part of the result.
    let size = cases.div_ceil(4096).max(1000);
    let bar = progress(&subject.name, cases, "cases");
    // A target decodes as it goes and cannot be shared: each thread has a copy.
    let original = Mutex::new(subject.target.clone());
    let worker = || original.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let tried = AtomicU64::new(0);
    let parts = jobs.each(cases.div_ceil(size), worker, |target, part| {
        let start = part * size;
        let end = start.saturating_add(size).min(cases);
        let mut coverage = Coverage::default();
        for step in steps(start..end) {
            let count = step.end - step.start;
            let found = fuzz::machine(target, seed, step, &mut coverage);
            bar.inc(count);
            tried.fetch_add(count, Ordering::Relaxed);
            match found {
                Ok(None) => {}
                Ok(Some(difference)) => {
                    return ControlFlow::Break(Ok(Found::Difference(difference)));
                }
                Err(error) => return ControlFlow::Break(Err(error)),
            }
        }
        ControlFlow::Continue(Ok(Found::Agreement(coverage)))
    })?;
    bar.finish_and_clear();
    let tried = tried.into_inner();
    let mut all = Coverage::default();
    for part in parts {
        match part.map_err(|error| Failure::Usage(subject.refused(&error)))? {
            Found::Agreement(coverage) => all.add(coverage),
            difference @ Found::Difference(_) => return Ok((difference, tried)),
        }
    }
    Ok((Found::Agreement(all), tried))
}

/// What came of native runs.
#[derive(Serialize)]
struct NativeReport {
    engine: Engine,
    target: String,
    seed: u64,
    cases: u64,
    interrupted: Option<Interrupted>,
    verdict: &'static str,
    difference: Option<String>,
    paths: usize,
    classes: usize,
    round_trips: u64,
    not_here: u64,
}

fn run_natively(args: &Args, subject: &Subject) -> Result<(), Failure> {
    let Some(image) = &subject.image else {
        return Err(Failure::Usage(
            "`--engine native` runs our own images: name a variant, or take `--engine machine`"
                .into(),
        ));
    };
    let (cases, seed) = (args.cases.get(), args.seed);
    let size = cases.div_ceil(4096).max(100);
    let start = Instant::now();
    let bar = progress(&subject.name, cases, "cases");
    let failed = |error: NativeError| Failure::failed("this machine cannot run cases", error);
    // Each thread has a machine of its own, with memory of its own.
    let worker = || Engines::new(image.clone());
    let tried = AtomicU64::new(0);
    let parts = args.jobs.each(cases.div_ceil(size), worker, |engines, part| {
        let first = part * size;
        let end = first.saturating_add(size).min(cases);
        let mut coverage = NativeCoverage::default();
        let engines = match engines {
            Ok(engines) => engines,
            Err(error) => return ControlFlow::Break(Err(Failure::Failed(error.to_string()))),
        };
        for step in steps(first..end) {
            let count = step.end - step.start;
            let found = fuzz::native(engines, seed, step, &mut coverage);
            bar.inc(count);
            tried.fetch_add(count, Ordering::Relaxed);
            match found {
                Ok(None) => {}
                Ok(Some(difference)) => {
                    return ControlFlow::Break(Ok((coverage, Some(difference))));
                }
                Err(error) => return ControlFlow::Break(Err(failed(error))),
            }
        }
        ControlFlow::Continue(Ok((coverage, None)))
    })?;
    bar.finish_and_clear();
    let (mut coverage, mut difference) = (NativeCoverage::default(), None);
    for part in parts {
        let (covered, found) = part?;
        coverage.add(covered);
        difference = difference.or(found);
    }
    let interrupted = match difference {
        None => Interrupted::new(tried.into_inner(), cases),
        Some(_) => None,
    };
    let seconds = start.elapsed().as_secs_f64();
    if difference.is_none() {
        let rate = |count: u64| count as f64 / seconds;
        let (all, trips) = (rate(coverage.cases()), rate(coverage.round_trips));
        note(&format!("{all:.0} cases and {trips:.0} round trips per second"));
    }
    let verdict = match &difference {
        None => Ok(()),
        Some(_) => Err(Failure::Failed(format!("{} differs from what is specified", subject.name))),
    };
    let report = NativeReport {
        engine: args.engine,
        target: subject.name.clone(),
        seed,
        cases,
        interrupted,
        verdict: word(difference.is_some(), interrupted),
        difference: difference.map(|difference| difference.to_string()),
        paths: coverage.paths(),
        classes: coverage.classes.len(),
        round_trips: coverage.round_trips,
        not_here: coverage.not_here,
    };
    let text = match args.format {
        Format::Text => native_text(&report),
        Format::Json => json(&report)?,
    };
    conclude(text, interrupt::verdict(interrupted, "cases", verdict))
}

fn native_text(report: &NativeReport) -> String {
    let NativeReport { target, seed, cases, paths, classes, round_trips, not_here, .. } = report;
    if let Some(difference) = &report.difference {
        return format!("{target}: engines differ, of seed {seed}:\n\n{difference}");
    }
    let heading = report.interrupted.map(|it| it.heading("cases")).unwrap_or_default();
    let cases = report.interrupted.map_or(*cases, |interrupted| interrupted.after);
    heading
        + &format!(
            "{target}: {cases} cases of seed {seed}: this CPU, the model and the specification agree\n\n  \
           {paths} ways through the switcher, {classes} classes of cases, {round_trips} round trips\n  \
           {not_here} cases need the other paging mode: the model and the specification alone\n"
        )
}

/// What of each theorem was tried, and what there is.
fn covered(target: &Target, coverage: &Coverage) -> Vec<Covered> {
    let prover = Prover::default();
    let of = |theorem| {
        let classes = coverage.classes.iter().filter(|((of, ..), _)| *of == theorem);
        let cases = classes.clone().map(|(_, cases)| cases).sum();
        let paths: BTreeSet<_> = classes.clone().map(|((_, path, _), _)| path).collect();
        let mut proved = 0;
        let explored = prover.paths(target, theorem, || Unobserved, |_, _, _| proved += 1);
        Covered {
            theorem,
            cases,
            paths: paths.len(),
            paths_proved: explored.is_ok().then_some(proved),
            classes: classes.count(),
        }
    };
    let has =
        |theorem: &Theorem| *theorem != Theorem::SyscallCompat || target.syscall_compat.is_some();
    Theorem::ALL.into_iter().filter(has).map(of).collect()
}

fn text(report: &Report) -> String {
    let Report { target, seed, cases, .. } = report;
    if let Some(difference) = &report.difference {
        return format!("{target}: code and specification differ, of seed {seed}:\n\n{difference}");
    }
    let mut text = report.interrupted.map(|it| it.heading("cases")).unwrap_or_default();
    let cases = report.interrupted.map_or(*cases, |interrupted| interrupted.after);
    text += &format!(
        "{target}: {cases} cases of seed {seed}: code and specification agree\n\n\
         {:<24} {:>12} {:>6} {:>10} {:>8}\n",
        "theorem", "cases", "paths", "by proofs", "classes"
    );
    for Covered { theorem, cases, paths, paths_proved, classes } in &report.theorems {
        let proved = paths_proved.map_or("?".into(), |paths| paths.to_string());
        text +=
            &format!("{:<24} {cases:>12} {paths:>6} {proved:>10} {classes:>8}\n", theorem.name());
    }
    text
}

/// A number that is not zero, with `_` where it helps.
fn cases(text: &str) -> Result<NonZeroU64, String> {
    number(text).and_then(NonZeroU64::new).ok_or_else(|| "not a number such as 10_000_000".into())
}

fn seed(text: &str) -> Result<u64, String> {
    number(text).ok_or_else(|| "not a 64-bit number such as 42 or 0x5EED".into())
}
