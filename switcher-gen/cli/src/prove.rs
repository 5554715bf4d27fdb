//! `switcher prove`: whether code does what the specification says, for every state.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use switcher_gen::{Variant, certificate};
use switcher_prove::{
    Counterexample, Findings, GuestMemory, Obligation, Prove as _, Prover, Refused, Report, Shared,
    SharingProver, Verdict,
};

use crate::interrupt::{self, Interrupted};
use crate::output::{Failure, Format, conclude, json};
use crate::parallel::{Jobs, note_on_terminal, progress};
use crate::target::{Subject, TargetArgs};

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher prove
  switcher prove --all
  switcher prove --variant amd-la57-pcid --format json
  switcher prove --elf theirs.o --variant intel-4level --gs-tss 0x6000 --gs-tss-extra 0x6080

A theorem is about one entry point: whatever state the CPU and the memory are in, within what
spec/proofs.md says is assumed, every obligation holds on every path. Each that may access the PVCS is
proved twice: with a guest that leaves it alone, against the whole specification; and with one that
rewrites it at any moment, for what must stay safe even then. What is refuted comes with a state, the
instructions executed from there, and what the concrete machine makes of them. All findings are
shown: each is one obligation that one theorem finds broken at one instruction.

A certificate on record means that certificates.txt has the image's fingerprint: whoever maps
code consults it.

Targets share proofs: what was shown of one holds of each that executes the same instructions in the
same order, wherever they lie, for a host that differs in nothing the theorem looks at. Not shared is
what depends on an address: a value that is read back and not only returned to, code read as data.

Ctrl-C ends it: what was proved or found until then is reported.

JSON is one object: `interrupted`, null unless Ctrl-C was pressed, then an object: `after`, so many
targets are in it, `of`, so many there are; `theorems_proved` and `theorems_shared`, how many proofs were made and how many
theorems needed none of their own; `targets`, an array of objects: `name`; `verdict`: \"proved\", \"refuted\" or
\"unknown\"; `fingerprint` and `certificate`, whether it is on record, both null for code that is
not ours; `not_judged`, what nothing is said about; `assumed`, what is taken for granted of this code
beside what spec/proofs.md lists; `harmless`, what names the code and does not change it; `theorems`, empty unless proved, an array of objects: `theorem`, `guest_memory` (\"stable\"
or \"racing\"), `paths`, `goals`, `by_solver`, and `obligations`, an object: goals by name;
`counterexample`, null unless refuted, an object: `theorem`, `guest_memory`, `obligation` (an
object: `name`, `rows`, an array of objects, `row` of spec/hazards.md and its `title`, and
`statement`), `about`, `at`, `terms`, `state` (an array of names and
values: what is not named is zero), `path` (an array of addresses and instructions), `end`,
`replay` (what should be and what is, or null); `findings`, null if proved or with --first, an object:
`refuted`, an array of all counterexamples; `unknown`, an array of texts; `refused`, an array of
objects, `theorem` and `why`: what there is no telling of; `why`, null unless unknown. Fields may be
added.

", exit_codes!()))]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// Prove every variant, even if one fails
    #[arg(long, conflicts_with_all = ["variant", "elf"])]
    all: bool,
    #[command(flatten)]
    jobs: Jobs,
    /// Stop at the first finding of a target, and do not look for all
    #[arg(long)]
    first: bool,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What is counted.
const WHAT: &str = "targets";

/// What became of one target.
#[derive(Serialize)]
struct Proof {
    name: String,
    verdict: &'static str,
    fingerprint: Option<String>,
    certificate: Option<bool>,
    not_judged: Vec<String>,
    assumed: Vec<String>,
    harmless: Vec<String>,
    theorems: Vec<Report>,
    counterexample: Option<Counterexample>,
    findings: Option<Findings>,
    /// Every counterexample, with the instructions as they are listed.
    #[serde(skip)]
    annotated: Vec<Counterexample>,
    why: Option<String>,
}

/// What became of all of them.
#[derive(Serialize)]
struct Whole<'a> {
    interrupted: Option<Interrupted>,
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
        let findings = findings.and_then(Result::ok);
        let verdict = match (verdict, &findings) {
            // Other theorems may be about the code, and refuted.
            (Verdict::Unsupported(code), Some(findings)) => match findings.refuted.first() {
                Some(found) => Verdict::Refuted(Box::new(found.clone())),
                None => Verdict::Unsupported(code),
            },
            (verdict, _) => verdict,
        };
        Ok(Proof::new(subject, verdict)?.with(subject, findings))
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
    let verdict = interrupt::verdict(interrupted, WHAT, verdict(&proofs, &refused));
    if proofs.is_empty() && interrupted.is_none() {
        return verdict;
    }
    let heading = interrupted.map(|interrupted| interrupted.heading(WHAT)).unwrap_or_default();
    let report = match args.format {
        Format::Text if args.all => heading + &text(&proofs) + &sharing(&shared),
        Format::Text if interrupted.is_some() => {
            String::from("interrupted: this is what was found until then\n") + &text(&proofs)
        }
        Format::Text => text(&proofs),
        Format::Json => json(&Whole {
            interrupted,
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

/// The worst there is.
fn verdict(proofs: &[Proof], refused: &[String]) -> Result<(), Failure> {
    let names = |verdict: &str| {
        let proofs = proofs.iter().filter(|proof| proof.verdict == verdict);
        proofs.map(|proof| proof.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (refuted, unknown) = (names("refuted"), names("unknown"));
    let mut messages = refused.to_vec();
    if !refuted.is_empty() {
        messages.insert(0, format!("refuted: {refuted}"));
    }
    if !unknown.is_empty() {
        messages.push(format!("neither proved nor refuted: {unknown}"));
    }
    let message = messages.join("\n");
    match () {
        () if message.is_empty() => Ok(()),
        () if !refuted.is_empty() => Err(Failure::Failed(message)),
        () if !refused.is_empty() => Err(Failure::Usage(message)),
        () => Err(Failure::Unknown(message)),
    }
}

impl Proof {
    /// What is reported of a verdict; why there is none, if no theorem can be about the code.
    fn new(subject: &Subject, verdict: Verdict) -> Result<Self, String> {
        let image = subject.image.as_ref();
        let proof = Self {
            name: subject.name.clone(),
            verdict: "proved",
            fingerprint: image.map(|image| image.fingerprint().to_string()),
            certificate: image.map(certificate::is_proved),
            not_judged: subject.target.not_judged(),
            assumed: subject.target.assumed.clone(),
            harmless: subject.target.harmless.clone(),
            theorems: Vec::new(),
            counterexample: None,
            findings: None,
            annotated: Vec::new(),
            why: None,
        };
        Ok(match verdict {
            Verdict::Proved(theorems) => Self { theorems, ..proof },
            Verdict::Refuted(found) => {
                let annotated = vec![annotated(subject, &found)];
                Self { verdict: "refuted", counterexample: Some(*found), annotated, ..proof }
            }
            Verdict::Unknown(why) => Self { verdict: "unknown", why: Some(why), ..proof },
            Verdict::Interrupted(theorem) => {
                let why = format!("{theorem}: interrupted");
                Self { verdict: "unknown", why: Some(why), ..proof }
            }
            Verdict::Unsupported(code) => return Err(subject.refused(&code)),
        })
    }

    /// The same with all that is wrong.
    fn with(mut self, subject: &Subject, findings: Option<Findings>) -> Self {
        if let Some(findings) = &findings {
            self.annotated =
                findings.refuted.iter().map(|found| annotated(subject, found)).collect();
        }
        Self { findings, ..self }
    }

    fn heading(&self) -> String {
        let Self { name, verdict, .. } = self;
        let mut parts = Vec::new();
        if *verdict == "proved" {
            let sum = |count: fn(&Report) -> usize| self.theorems.iter().map(count).sum::<usize>();
            parts.push(format!("{} paths", sum(|report| report.paths)));
            let (goals, by_solver) = (sum(|report| report.goals), sum(|report| report.by_solver));
            parts.push(format!("{goals} goals ({by_solver} by the solver)"));
        }
        parts.extend(self.why.clone());
        parts.extend(self.fingerprint.as_ref().map(|all| format!("fingerprint {}", &all[..16])));
        parts.extend(self.certificate.map(|is_proved| {
            format!("certificate on record: {}", if is_proved { "yes" } else { "no" })
        }));
        let mut text = match parts.as_slice() {
            [] => format!("{name}: {verdict}\n"),
            parts => format!("{name}: {verdict}: {}\n", parts.join(", ")),
        };
        for what in &self.not_judged {
            text += &format!("  not judged: {what}\n");
        }
        for what in &self.assumed {
            text += &format!("  assumed: {what}\n");
        }
        for what in &self.harmless {
            text += &format!("  harmless: {what}\n");
        }
        text
    }
}

fn text(proofs: &[Proof]) -> String {
    let mut text = String::new();
    for proof in proofs {
        text += &proof.heading();
        let count = proof.annotated.len();
        for (number, counterexample) in proof.annotated.iter().enumerate() {
            if count > 1 {
                text += &format!("\nFinding {} of {count}: ", number + 1);
            } else {
                text += "\n";
            }
            text += &format!("{counterexample}\n");
        }
        if let Some(findings) = &proof.findings {
            for why in &findings.unknown {
                text += &format!("\nneither proved nor refuted: {why}\n");
            }
            for Refused { theorem, why, .. } in &findings.refused {
                text += &format!("\nnot judged: {theorem}: {why}\n");
            }
        }
    }
    if let [proof] = proofs
        && !proof.theorems.is_empty()
    {
        text += &theorems(&proof.theorems);
        text += &obligations(&proof.theorems);
    }
    text
}

/// With the instructions as they are listed.
fn annotated(subject: &Subject, counterexample: &Counterexample) -> Counterexample {
    let texts = subject.texts();
    let mut counterexample = counterexample.clone();
    for (at, text) in &mut counterexample.path {
        if let Some(annotated) = texts.annotated(*at) {
            *text = annotated;
        }
    }
    counterexample
}

fn theorems(reports: &[Report]) -> String {
    let mut text = format!(
        "\n{:<24} {:<8} {:>6} {:>7} {:>10}\n",
        "theorem", "PVCS", "paths", "goals", "by solver"
    );
    for Report { theorem, guest_memory, paths, goals, by_solver, .. } in reports {
        let guest_memory = match guest_memory {
            GuestMemory::Stable => "stable",
            GuestMemory::Racing => "racing",
        };
        text += &format!(
            "{:<24} {guest_memory:<8} {paths:>6} {goals:>7} {by_solver:>10}\n",
            theorem.name()
        );
    }
    text
}

fn obligations(reports: &[Report]) -> String {
    let mut text =
        format!("\n{:<20} {:>7}  what holds, and which hazards it is for\n", "obligation", "goals");
    for Obligation { name, rows, statement } in Obligation::ALL {
        let goals: usize = reports.iter().filter_map(|report| report.obligations.get(name)).sum();
        text += &format!("{name:<20} {goals:>7}  {statement}\n");
        text.extend(rows.iter().map(|row| format!("{:<28}  {row}\n", "")));
    }
    text + "\nRows are those of spec/hazards.md. Where there are 0 goals, no path had occasion for one.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our images are all proved, so one is told a label that is wrong.
    #[test]
    fn the_path_of_our_own_image_is_shown_as_it_is_listed() {
        let mut subject = Subject::of_variant(&Variant::REFERENCE).unwrap();
        subject.target.iretq = subject.target.iretq.map(|at| at + 2);
        let proof = Proof::new(&subject, Prover::default().prove(&subject.target)).unwrap();
        let proofs = [proof];
        let text = text(&proofs);
        assert!(text.starts_with("intel-4level: refuted: fingerprint "), "{text}");
        assert!(text.contains("`iretq-label` does not hold"), "{text}");
        assert!(text.contains("gs:[tss_extra.host_rsp], rsp"), "{text}");
        let blamed = text.lines().find(|line| line.ends_with("  <--")).unwrap();
        assert!(blamed.contains("iretq") && blamed.contains("emit/"), "{blamed}");
        assert!(matches!(verdict(&proofs, &[]), Err(Failure::Failed(_))));
        // What is no code weighs less than what is refuted, and more than what is not known.
        assert!(matches!(verdict(&proofs, &["bad".into()]), Err(Failure::Failed(_))));
        assert!(matches!(verdict(&[], &["bad".into()]), Err(Failure::Usage(_))));
    }
}
