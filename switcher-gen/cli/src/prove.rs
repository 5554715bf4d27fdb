//! `switcher prove`: whether code does what the specification says, for every state.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;
use switcher_gen::Variant;
use switcher_prove::{Prove as _, Prover, Severity, Shared, SharingProver, Verdict};

use crate::interrupt::{self, Interrupted};
use crate::output::{Failure, conclude, json};
use crate::parallel::{Jobs, note_on_terminal, progress};
use crate::proof::Proof;
use crate::subject::Subject;
use crate::target::TargetArgs;
use crate::verdict::Demands;
use crate::{report, sarif};

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher prove
  switcher prove --all
  switcher prove --variant amd-la57-pcid --format json
  switcher prove --elf theirs.o --variant intel-4level --gs-tss 0x6000 --gs-tss-extra 0x6080
  switcher prove --elf theirs.o --variant intel-4level --require compat --fail-on guest
  switcher prove --elf theirs.o --variant intel-4level --format sarif

A theorem is about one entry point: whatever state the CPU and the memory are in, within what
spec/proofs.md says is assumed, every obligation holds on every path. Each that may access the PVCS is
proved twice: with a guest that leaves it alone, against the whole specification; and with one that
rewrites it at any moment, for what must stay safe even then. What is refuted comes with a state, the
instructions executed from there, and what the concrete machine makes of them. All findings are
shown (`--keep-going`, which need not be said): each is one obligation that one theorem finds broken
at one instruction.

Each finding has a severity, which is that of its obligation (spec/obligations.md): host, the safety
of the host or its secrets; guest, a guest sees or gets something wrong; contract, what callers or
the host's code may rely on; speed, it is right and takes longer than it must. The gravest comes
first and decides the exit code. `--fail-on` lets the less grave ones pass.

What is not judged is said, by area: routines, compat (the 32-bit SYSCALL), windows (where the host's
handlers take RSP for the guest's), root-window (where they take the root for a guest's), events,
iretq-frame, iretq-fault. `--require` makes a failure of it.

A certificate on record means that certificates.txt has the image's fingerprint: whoever maps
code consults it.

Targets share proofs: what was shown of one holds of each that executes the same instructions in the
same order, wherever they lie, for a host that differs in nothing the theorem looks at. Not shared is
what depends on an address: a value that is read back and not only returned to, code read as data.

Ctrl-C ends it: what was proved or found until then is reported.

JSON is one object: `interrupted`, null unless Ctrl-C was pressed, then an object: `after`, so many
targets are in it, `of`, so many there are; `fail_on`, a severity; `missing`, an array of texts: what `--require` wants and
is not judged; `theorems_proved` and `theorems_shared`, how many proofs were made and how many
theorems needed none of their own; `targets`, an array of objects: `name`; `verdict`: \"proved\", \"refuted\" or
\"unknown\"; `severity`, of the gravest finding, or null; `fingerprint` and `certificate`, whether it is on record, both null for code that is
not ours; `not_judged`, what nothing is said about, an array of objects: `area`, `what`, `rows`, `how`, what has to be given;
`assumed`, what is taken for granted of this code
beside what spec/proofs.md lists; `harmless`, what names the code and does not change it; `theorems`, empty unless proved, an array of objects: `theorem`, `guest_memory` (\"stable\"
or \"racing\"), `paths`, `goals`, `by_solver`, and `obligations`, an object: goals by name;
`counterexample`, the first that was found, null unless refuted, an object: `severity`; `symbol`, the nearest one at or before
the instruction, with the distance, or null; `source`, its `file` and `line`, null unless a file has DWARF;
`theorem`, `guest_memory`, `obligation` (an
object: `name`, `rows`, an array of objects, `row` of spec/hazards.md and its `title`, `severity`,
`statement`, and `otherwise`, what happens if it does not hold), `required`, what was required and why, `about`, `at`, `terms`, `state` (an array of names and
values: what is not named is zero), `path` (an array of addresses and instructions), `end`,
`replay` (what should be and what is, or null); `findings`, null if proved or with --first, an object:
`refuted`, an array of all counterexamples, the gravest first; `unknown`, an array of texts; `refused`, an array of
objects, `theorem` and `why`: what there is no telling of; `why`, null unless unknown. Fields may be
added.

SARIF is one run: rules are the obligations, with the level of their severity (host: error; guest: warning; contract and
speed: note); a result for each finding, with the line of its source or its place in the file, its path as a code flow, and
its state among its properties; notifications of what is not judged, assumed or not known.

", exit_codes!()))]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Prove every variant, even if one fails
    #[arg(long, conflicts_with_all = ["variant", "elf"])]
    all: bool,
    #[command(flatten)]
    jobs: Jobs,
    /// Stop at the first finding of a target, and do not look for all; its severity counts, and
    /// others may be graver
    #[arg(long)]
    first: bool,
    /// Look for all findings of a target, as it is done without this
    #[arg(long, conflicts_with = "first")]
    keep_going: bool,
    #[command(flatten)]
    demands: Demands,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How to write a report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// To be read
    Text,
    /// An object, for programs
    Json,
    /// SARIF 2.1.0, for services that show findings beside code
    Sarif,
}

/// What is counted.
const WHAT: &str = "targets";

/// What became of all of them.
#[derive(Serialize)]
struct Whole<'a> {
    interrupted: Option<Interrupted>,
    fail_on: Severity,
    missing: Vec<String>,
    targets: &'a [Proof],
    theorems_proved: usize,
    theorems_shared: usize,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let start = Instant::now();
    let shared = Arc::<Shared>::default();
    // A new prover for each: what it knows of terms does not depend on the others.
    // Of many targets, the last one is finished; one alone is left where it is.
    let stop = (!args.all).then(interrupt::flag);
    let prover = || match &stop {
        Some(flag) => Prover::default().stopped_by(Arc::clone(flag)),
        None => Prover::default(),
    };
    let was_stopped = AtomicBool::new(false);
    let prove = |subject: &Subject| {
        let (first, others) = (SharingProver::around(prover(), &shared), prover());
        let verdict = first.prove(&subject.target);
        let is_all = args.first || matches!(verdict, Verdict::Proved(_));
        // Whatever else is wrong with it, too: the first finding hides the others.
        let findings = (!is_all).then(|| others.findings(&subject.target));
        was_stopped
            .fetch_or(first.prover().was_stopped() || others.was_stopped(), Ordering::Relaxed);
        Proof::new(subject, verdict, findings.and_then(Result::ok))
    };
    let (results, of) = match args.all {
        true => all(&args.jobs, prove)?,
        false => {
            let subjects = args.target.subjects()?;
            interrupt::listen();
            let of = subjects.len() as u64;
            (subjects.iter().map(prove).collect(), of)
        }
    };
    let done = if was_stopped.into_inner() { 0 } else { results.len() as u64 };
    let interrupted = Interrupted::new(done, of);
    let (mut proofs, mut refused) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(proof) => proofs.push(proof),
            Err(why) => refused.push(why),
        }
    }
    let verdict = args.demands.verdict(&proofs, &refused);
    let verdict = interrupt::verdict(interrupted, WHAT, verdict);
    // What is no code has no report; whoever reads SARIF has to find that there.
    if proofs.is_empty() && interrupted.is_none() && args.format != Format::Sarif {
        return verdict;
    }
    let heading = interrupted.map(|interrupted| interrupted.heading(WHAT)).unwrap_or_default();
    let text = || report::text(&proofs, &args.demands);
    let report = match args.format {
        Format::Text if args.all => heading + &text() + &sharing(&shared),
        Format::Text if interrupted.is_some() => {
            String::from("interrupted: this is what was found until then\n") + &text()
        }
        Format::Text => text(),
        Format::Sarif => {
            let end = (interrupted.is_none(), &verdict);
            json(&sarif::report(&proofs, &refused, &args.demands, end))?
        }
        Format::Json => json(&Whole {
            interrupted,
            fail_on: args.demands.fail_on,
            missing: proofs.iter().flat_map(|proof| args.demands.missing(proof)).collect(),
            targets: &proofs,
            theorems_proved: shared.proved(),
            theorems_shared: shared.shared(),
        })?,
    };
    note_on_terminal(&format!("{:.2} s", start.elapsed().as_secs_f64()));
    conclude(report, verdict)
}

/// What `prove` says of every variant. Those that have most in common go to one thread, one after
/// the other: two threads would prove the same at the same time.
fn all(
    jobs: &Jobs,
    prove: impl Fn(&Subject) -> Result<Proof, String> + Sync,
) -> Result<(Vec<Result<Proof, String>>, u64), Failure> {
    /// Variants of a CPU under one policy: mitigations, protection keys, PCIDs.
    const TOGETHER: usize = 48;
    let variants: Vec<Variant> = Variant::all().collect();
    let of = variants.len() as u64;
    interrupt::listen();
    let bar = progress("prove", of, WHAT);
    let parts: Vec<_> = variants.chunks(TOGETHER).collect();
    let results = jobs.each(
        parts.len() as u64,
        || (),
        |(), number| {
            let one = |variant| {
                let proof = prove(&Subject::of_variant(variant)?);
                bar.inc(1);
                Ok(proof)
            };
            let goes_on = |_: &&Variant| !interrupt::requested();
            let part = parts[number as usize].iter().take_while(goes_on);
            ControlFlow::Continue(part.map(one).collect())
        },
    )?;
    bar.finish_and_clear();
    let results = results.into_iter().collect::<Result<Vec<Vec<_>>, Failure>>()?;
    Ok((results.into_iter().flatten().collect(), of))
}

/// How many proofs it took.
fn sharing(shared: &Shared) -> String {
    let (proved, shared) = (shared.proved(), shared.shared());
    format!(
        "{} theorems: {proved} proved, {shared} shared with a target whose code is the same\n",
        proved + shared
    )
}
