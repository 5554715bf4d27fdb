//! `switcher mutate`: whether the proofs object to code that was broken on purpose.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use switcher_gen::{Hazard, Variant};
use switcher_prove::mutate;
use switcher_prove::mutate::{Fate, Mutant};
use switcher_prove::{Obligation, Prove as _, Shared, SharingProver, Verdict};

use crate::interrupt::{self, Interrupted};
use crate::output::{Failure, Format, conclude, json};
use crate::parallel::{Jobs, note, progress};
use crate::subject::{Subject, Texts};
use crate::target::TargetArgs;

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher mutate --variant intel-4level
  switcher mutate --all --every 50              a sample
  switcher mutate --elf theirs.o --variant intel-4level --every 50
  switcher mutate --all --json > mutants.json

A mutant is a variant, or the code of a file, with one change: an instruction deleted, doubled, swapped with the next,
another condition, constant, displacement, size or register, one more prefix, an instruction
that not every CPU has, a jump to elsewhere, or a store of the host's in front of a store. It is proved like any code. Killed is one that an obligation refutes; refused, one that no theorem can
be about, such as a jump out of the code; equivalent, one that is proved, and proved to leave
everything as the original does. Anything else is a hole in the proofs: there must be none.

A variant has thousands of mutants, and each takes some milliseconds.

Ctrl-C ends it: what was found until then is reported.

JSON is one object: `interrupted`, null unless Ctrl-C was pressed, then an object: `after`, so many
variants are done, `of`, so many there are; `every`; and `variants`, an array of objects: `name`;
`interrupted`, the same of mutants; `changes`, how many
there are; `mutants`, how many were proved; `holes` and `equivalent`, arrays of objects:
`operator`, `at`, the address in hexadecimal if the code lies at 0xfffffe8000000000, `original`,
`changed`, `source`, the emitter's file and line or null, and `why`, null unless it is a hole;
`killed`, an array of objects: `obligation`, `rows`, an array of objects, `row` of spec/hazards.md and
its `title`, and `mutants`; `refused`, how many. Fields may be added.

", exit_codes!()))]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Every variant
    #[arg(long, conflicts_with_all = ["variant", "elf"])]
    all: bool,
    /// Only every Nth mutant: a sample
    #[arg(long, value_name = "N", default_value = "1")]
    every: NonZeroUsize,
    #[command(flatten)]
    jobs: Jobs,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// So many mutants share a prover, which remembers what it has found out. Their number is fixed:
/// which obligation is found broken first can depend on what was asked before.
const BLOCK: usize = 64;
/// A prover that has so many terms is replaced.
const TERMS: usize = 1_000_000;

/// What became of a variant's mutants.
#[derive(Default, Serialize)]
struct Survey {
    name: String,
    interrupted: Option<Interrupted>,
    changes: usize,
    mutants: usize,
    holes: Vec<Change>,
    killed: Vec<Killed>,
    refused: usize,
    equivalent: Vec<Change>,
}

#[derive(Serialize)]
struct Killed {
    obligation: &'static str,
    rows: &'static [Hazard],
    mutants: usize,
}

/// A mutant, in words.
#[derive(Serialize)]
struct Change {
    operator: &'static str,
    at: String,
    original: String,
    changed: String,
    source: Option<String>,
    why: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let variants: Vec<Subject> = match args.all {
        true => {
            let all = Variant::unmitigated().map(|variant| Subject::of_variant(&variant));
            all.collect::<Result<_, _>>()?
        }
        false => vec![args.target.subject()?],
    };
    let start = Instant::now();
    interrupt::listen();
    let surveys: Vec<Survey> = variants
        .iter()
        .take_while(|_| !interrupt::requested())
        .map(|subject| survey(subject, args.every.get(), &args.jobs))
        .collect::<Result<_, _>>()?;
    let whole = surveys.iter().filter(|survey| survey.interrupted.is_none()).count();
    let interrupted = Interrupted::new(whole as u64, variants.len() as u64);
    let mutants: usize = surveys.iter().map(|survey| survey.mutants).sum();
    let seconds = start.elapsed().as_secs_f64();
    note(&format!(
        "{mutants} mutants in {seconds:.1} s: {:.1} per second",
        mutants as f64 / seconds
    ));
    let report = match args.json || args.format == Format::Json {
        true => {
            #[derive(Serialize)]
            struct Report<'a> {
                interrupted: Option<Interrupted>,
                every: usize,
                variants: &'a [Survey],
            }
            json(&Report { interrupted, every: args.every.get(), variants: &surveys })?
        }
        false => {
            let several = interrupted.filter(|_| variants.len() > 1);
            let heading = several.map(|interrupted| interrupted.heading("variants"));
            heading.unwrap_or_default() + &text(args.every.get(), &surveys)
        }
    };
    let holes: usize = surveys.iter().map(|survey| survey.holes.len()).sum();
    let verdict = match holes {
        0 => Ok(()),
        1 => {
            Err(Failure::Failed("the proofs have a hole: a mutant is proved, or not known".into()))
        }
        holes => Err(Failure::Failed(format!("the proofs have holes: {holes} mutants"))),
    };
    // Of one variant, how many mutants says more.
    match surveys.as_slice() {
        [only] if variants.len() == 1 => {
            conclude(report, interrupt::verdict(only.interrupted, "mutants", verdict))
        }
        _ => conclude(report, interrupt::verdict(interrupted, "variants", verdict)),
    }
}

/// Proves every `every`th mutant.
fn survey(subject: &Subject, every: usize, jobs: &Jobs) -> Result<Survey, Failure> {
    let Subject { name, target, .. } = subject;
    // What a mutant has in common with the original is proved once.
    let shared = Arc::<Shared>::default();
    let proved = SharingProver::new(&shared).prove(target);
    if !matches!(proved, Verdict::Proved(_)) {
        let hint = match subject.image {
            Some(_) => {
                format!("{name} itself is not proved: see `switcher prove --variant {name}`")
            }
            None => {
                format!("{name} itself is not proved: see `switcher prove` with these arguments")
            }
        };
        return Err(Failure::Failed(hint));
    }
    let all = mutate::mutants(target);
    let chosen: Vec<usize> = (0..all.len()).step_by(every).collect();
    let blocks: Vec<&[usize]> = chosen.chunks(BLOCK).collect();
    let bar = progress(name, chosen.len() as u64, "mutants");
    // Mutants do not go from thread to thread: each thread makes its own.
    let original = Mutex::new(target.clone());
    let worker = || {
        let target = original.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mutants = mutate::mutants(&target);
        (target, mutants)
    };
    let fates = jobs.each(blocks.len() as u64, worker, |(target, mutants), block| {
        let mut prover = SharingProver::new(&shared.fork());
        ControlFlow::Continue(
            blocks[block as usize]
                .iter()
                .take_while(|_| !interrupt::requested())
                .map(|&index| {
                    if prover.prover().statistics().terms > TERMS {
                        prover = SharingProver::new(&shared.fork());
                    }
                    let fate = mutate::judge(&prover, target, &mutants[index]);
                    bar.inc(1);
                    (index, fate)
                })
                .collect::<Vec<_>>(),
        )
    })?;
    bar.finish_and_clear();
    let texts = subject.texts();
    let mut survey = Survey { name: name.clone(), changes: all.len(), ..Survey::default() };
    let mut killed = BTreeMap::<_, usize>::new();
    let judged = fates.iter().map(Vec::len).sum::<usize>();
    survey.interrupted = Interrupted::new(judged as u64, chosen.len() as u64);
    for (index, fate) in fates.into_iter().flatten() {
        let change = |why| Change::new(&all[index], &texts, why);
        survey.mutants += 1;
        match fate {
            Fate::Killed(obligation, _) => *killed.entry(obligation).or_default() += 1,
            Fate::Refused(_) => survey.refused += 1,
            Fate::Equivalent => survey.equivalent.push(change(None)),
            Fate::Hole(why) => survey.holes.push(change(Some(why))),
            // There is no such instruction after all.
            Fate::NoCode => survey.mutants -= 1,
        }
    }
    survey.killed = by_count(&killed);
    Ok(survey)
}

/// Most first, and otherwise in the order of obligations.
fn by_count(killed: &BTreeMap<&'static str, usize>) -> Vec<Killed> {
    let of = |obligation: &Obligation| {
        let mutants = *killed.get(obligation.name)?;
        Some(Killed { obligation: obligation.name, rows: obligation.rows, mutants })
    };
    let mut all: Vec<_> = Obligation::ALL.iter().filter_map(of).collect();
    all.sort_by_key(|killed| std::cmp::Reverse(killed.mutants));
    all
}

impl Change {
    fn new(mutant: &Mutant, texts: &Texts<'_>, why: Option<String>) -> Self {
        Self {
            operator: mutant.operator.name(),
            at: format!("{:#x}", mutant.at),
            original: mutant.original.clone(),
            changed: mutant.changed.clone(),
            source: texts.source(mutant.at),
            why,
        }
    }

    fn line(&self) -> String {
        let Self { operator, at, original, changed, source, why } = self;
        let what = format!("{original} -> {changed}");
        let source = source.as_deref().unwrap_or_default();
        let line = format!("    {at}  {operator:<12} {what:<64}  {source}");
        let mut line = format!("{}\n", line.trim_end());
        if let Some(why) = why {
            line += &format!("      {why}\n");
        }
        line
    }
}

fn text(every: usize, surveys: &[Survey]) -> String {
    let mut text = String::new();
    for survey in surveys {
        let Survey { name, interrupted, changes, mutants, holes, killed, refused, equivalent } =
            survey;
        if !text.is_empty() {
            text.push('\n');
        }
        text += &interrupted.map(|it| it.heading("mutants")).unwrap_or_default();
        text += &match every {
            1 => format!("{name}: {mutants} mutants\n"),
            _ => {
                format!("{name}: {mutants} mutants (a sample: 1 of {every} of {changes} changes)\n")
            }
        };
        let all: usize = killed.iter().map(|killed| killed.mutants).sum();
        text += &format!(
            "\n  {:<10} {:>6}  proved, and not the same, or not known\n",
            "holes",
            holes.len()
        );
        text.extend(holes.iter().map(Change::line));
        text += &format!("  {:<10} {all:>6}  refuted\n", "killed");
        text += &format!("  {:<10} {refused:>6}  no code that a theorem can be about\n", "refused");
        text += &format!(
            "  {:<10} {:>6}  proved, and proved to be the same\n",
            "equivalent",
            equivalent.len()
        );
        text.extend(equivalent.iter().map(Change::line));
        text += &format!("\n  {:<20} {:>7}  hazards\n", "killed by", "mutants");
        for Killed { obligation, rows, mutants } in killed {
            text += &format!("  {obligation:<20} {mutants:>7}");
            for (at, row) in rows.iter().enumerate() {
                // The first one is in the same line.
                let indent = if at == 0 { 0 } else { 30 };
                text += &format!("{:indent$}  {row}\n", "");
            }
        }
    }
    text + "\nRows are those of spec/hazards.md.\n"
}
