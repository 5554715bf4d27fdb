//! `switcher redundancy`: whether each instruction is needed.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;
use switcher_gen::Variant;
use switcher_prove::redundancy::{Purpose, Search};
use switcher_prove::{Shared, SharingProver, Verdict};

use crate::interrupt::{self, Interrupted};
use crate::output::{Failure, Format, conclude, json};
use crate::parallel::{Jobs, note_on_terminal, progress};
use crate::subject::Subject;
use crate::target::TargetArgs;

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher redundancy
  switcher redundancy --variant amd-la57-pcid --format json
  switcher redundancy --all
  switcher redundancy --elf theirs.o --variant intel-4level

Each instruction that the theorems' entry points lead to is taken away by itself, and all theorems
are tried on the rest. One of them must fail, or a path must be longer, or the instruction is
redundant.

Ctrl-C ends it: what was found until then is reported.

JSON is one object: `interrupted`, null unless Ctrl-C was pressed, then an object: `after`, so many
targets are done, `of`, so many there are; `targets`, an array of objects: `name`; `interrupted`, the
same of instructions; `instructions`, how many there are;
`unneeded`, those without which all theorems hold, an array of objects: `at`, the address in
hexadecimal if the code lies at 0xfffffe8000000000; `text`, the instruction; `source`, the
emitter's file and line, null for code that is not ours; `purpose`: \"none\" if it is redundant;
an object `speed`: `path`, which path is longer without it, `with` and `without`, its executed
instructions; or `unknown`, why the solver does not know. Fields may be added.

", exit_codes!()))]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Every variant
    #[arg(long, conflicts_with_all = ["variant", "elf"])]
    all: bool,
    #[command(flatten)]
    jobs: Jobs,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What was found in all of them.
#[derive(Serialize)]
struct Report<'a> {
    interrupted: Option<Interrupted>,
    targets: &'a [Survey],
}

/// What was found in one target.
#[derive(Serialize)]
struct Survey {
    name: String,
    interrupted: Option<Interrupted>,
    instructions: usize,
    unneeded: Vec<Found>,
}

/// An instruction that no theorem needs.
#[derive(Serialize)]
struct Found {
    at: String,
    text: String,
    source: Option<String>,
    purpose: Purpose,
}

/// So many trials share a prover.
const BLOCK: usize = 16;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let subjects: Vec<Subject> = match args.all {
        true => Variant::representative()
            .map(|variant| Subject::of_variant(&variant))
            .collect::<Result<_, _>>()?,
        false => vec![args.target.subject()?],
    };
    let start = Instant::now();
    interrupt::listen();
    let surveys: Vec<Survey> = subjects
        .iter()
        .take_while(|_| !interrupt::requested())
        .map(|subject| survey(subject, &args.jobs))
        .collect::<Result<_, _>>()?;
    let whole = surveys.iter().filter(|survey| survey.interrupted.is_none()).count();
    let interrupted = Interrupted::new(whole as u64, subjects.len() as u64);
    note_on_terminal(&format!("{:.2} s", start.elapsed().as_secs_f64()));
    let report = match args.format {
        Format::Text => {
            let several = interrupted.filter(|_| subjects.len() > 1);
            let heading = several.map(|interrupted| interrupted.heading("targets"));
            heading.unwrap_or_default() + &surveys.iter().map(Survey::text).collect::<String>()
        }
        Format::Json => json(&Report { interrupted, targets: &surveys })?,
    };
    // Of one target, how many instructions says more.
    match surveys.as_slice() {
        [only] if subjects.len() == 1 => conclude(
            report,
            interrupt::verdict(only.interrupted, "instructions", verdict(&surveys)),
        ),
        _ => conclude(report, interrupt::verdict(interrupted, "targets", verdict(&surveys))),
    }
}

fn verdict(surveys: &[Survey]) -> Result<(), Failure> {
    let unknown = |purpose: &Purpose| matches!(purpose, Purpose::Unknown(_));
    let count = |is: &dyn Fn(&Purpose) -> bool| {
        let unneeded = surveys.iter().flat_map(|survey| &survey.unneeded);
        unneeded.filter(|found| is(&found.purpose)).count()
    };
    match (count(&|purpose| *purpose == Purpose::None), count(&unknown)) {
        (0, 0) => Ok(()),
        (0, unknown) => Err(Failure::Unknown(format!("not known of {unknown}, whether redundant"))),
        (redundant, _) => Err(Failure::Failed(format!("redundant: {redundant}"))),
    }
}

fn survey(subject: &Subject, jobs: &Jobs) -> Result<Survey, Failure> {
    let Subject { name, target, .. } = subject;
    // What does not come to an instruction does not lack it.
    let shared = Arc::<Shared>::default();
    match SharingProver::new(&shared).prove(target) {
        Verdict::Proved(_) => {}
        Verdict::Unsupported(code) => return Err(Failure::Usage(subject.refused(&code))),
        Verdict::Refuted(_) | Verdict::Unknown(_) | Verdict::Interrupted(_) => {
            let hint = format!("{name} itself is not proved: `switcher prove` says why");
            return Err(Failure::Failed(hint));
        }
    }
    let instructions = Search::new(target).len();
    let bar = progress(name, instructions as u64, "instructions");
    // Trials do not go from thread to thread: each thread makes its own.
    let original = Mutex::new(target.clone());
    let worker = || Search::new(&original.lock().unwrap_or_else(PoisonError::into_inner));
    let blocks = instructions.div_ceil(BLOCK) as u64;
    let found = jobs.each(blocks, worker, |search, block| {
        let prover = SharingProver::new(&shared.fork());
        let first = block as usize * BLOCK;
        let numbers = first..instructions.min(first + BLOCK);
        let found = numbers.take_while(|_| !interrupt::requested()).map(|number| {
            let unneeded = search.unneeded(&prover, number);
            bar.inc(1);
            unneeded
        });
        ControlFlow::Continue(found.collect::<Vec<_>>())
    })?;
    let tried: usize = found.iter().map(Vec::len).sum();
    let interrupted = Interrupted::new(tried as u64, instructions as u64);
    bar.finish_and_clear();
    let texts = subject.texts();
    let found = found.into_iter().flatten().flatten().map(|found| Found {
        at: format!("{:#x}", found.at),
        text: found.text,
        source: texts.source(found.at),
        purpose: found.purpose,
    });
    Ok(Survey { name: name.clone(), interrupted, instructions, unneeded: found.collect() })
}

impl Survey {
    fn text(&self) -> String {
        let Self { name, interrupted, instructions, unneeded } = self;
        let redundant = unneeded.iter().filter(|found| found.purpose == Purpose::None).count();
        let mut text = interrupted.map(|it| it.heading("instructions")).unwrap_or_default();
        text += &format!("{name}: {instructions} instructions, {redundant} redundant\n");
        for Found { at, text: instruction, source, purpose } in unneeded {
            let source = source.as_deref().unwrap_or_default();
            text += format!("  {at}  {instruction:<32}  {source}").trim_end();
            text += &match purpose {
                Purpose::None => "\n    redundant\n".into(),
                Purpose::Speed { path, with, without } => {
                    format!("\n    for speed: {path} takes {with} instructions, not {without}\n")
                }
                Purpose::Unknown(why) => format!("\n    not known: {why}\n"),
            };
        }
        text
    }
}
