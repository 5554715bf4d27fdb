//! The report of `switcher prove` as text, for somebody who reads it.

use switcher_prove::{GuestMemory, Obligation, Refused, Report, Severity};

use crate::proof::Proof;
use crate::verdict::Demands;

/// A report of these targets.
pub(crate) fn text(proofs: &[Proof], demands: &Demands) -> String {
    let mut text = String::new();
    for proof in proofs {
        text += &heading(proof, demands);
        text += &findings(proof);
    }
    if let [proof] = proofs
        && !proof.theorems.is_empty()
    {
        text += &theorems(&proof.theorems);
        text += &obligations(&proof.theorems);
    }
    text
}

/// What became of a target, in a few lines.
fn heading(proof: &Proof, demands: &Demands) -> String {
    let Proof { name, verdict, .. } = proof;
    let mut parts = Vec::new();
    if *verdict == "proved" {
        let sum = |count: fn(&Report) -> usize| proof.theorems.iter().map(count).sum::<usize>();
        parts.push(format!("{} paths", sum(|report| report.paths)));
        let (goals, by_solver) = (sum(|report| report.goals), sum(|report| report.by_solver));
        parts.push(format!("{goals} goals ({by_solver} by the solver)"));
    }
    parts.extend(proof.why.clone());
    parts.extend(counted(proof));
    parts.extend(proof.fingerprint.as_ref().map(|all| format!("fingerprint {}", &all[..16])));
    parts.extend(proof.certificate.map(|is_proved| {
        format!("certificate on record: {}", if is_proved { "yes" } else { "no" })
    }));
    let mut text = match parts.as_slice() {
        [] => format!("{name}: {verdict}\n"),
        parts => format!("{name}: {verdict}: {}\n", parts.join(", ")),
    };
    let fail_on = demands.fail_on;
    let passed = proof.all().iter().filter(|it| !it.severity.is_at_least(fail_on)).count();
    if passed > 0 {
        text += &format!(
            "  does not fail: {}, below `--fail-on {fail_on}`\n",
            plural(passed, "finding")
        );
    }
    for what in &proof.not_judged {
        text += &format!("  not judged: {what}\n");
    }
    for what in demands.missing(proof) {
        text += &format!("  missing: {what}\n");
    }
    for what in &proof.assumed {
        text += &format!("  assumed: {what}\n");
    }
    for what in &proof.harmless {
        text += &format!("  harmless: {what}\n");
    }
    if let Some(why) = &proof.no_lines {
        text += &format!("  no lines of sources: {why}\n");
    }
    text
}

/// How many findings there are, by severity.
fn counted(proof: &Proof) -> Option<String> {
    let counts = proof.counts();
    let each: Vec<_> =
        counts.iter().map(|(severity, count)| format!("{count} {severity}")).collect();
    // Others were not looked for.
    let what = if proof.findings.is_some() { "finding" } else { "first finding" };
    let count = plural(proof.all().len(), what);
    (!counts.is_empty()).then(|| format!("{count} ({})", each.join(", ")))
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// All that is wrong, the gravest first.
fn findings(proof: &Proof) -> String {
    let (mut text, mut number) = (String::new(), 0);
    let count = proof.all().len();
    for severity in Severity::ALL {
        let mut of = proof.all().iter().filter(|it| it.severity == severity).peekable();
        if of.peek().is_some() {
            text += &format!("\nSeverity {severity}. {}.\n", severity.meaning());
        }
        for finding in of {
            number += 1;
            text += &format!("\nFinding {number} of {count} ({severity})");
            if let Some(place) = &finding.place {
                text += &format!(", at {place}");
            }
            text += &format!("\n{}\n", finding.annotated);
        }
    }
    if let Some(findings) = &proof.findings {
        for why in &findings.unknown {
            text += &format!("\nneither proved nor refuted: {why}\n");
        }
        for Refused { theorem, why, .. } in &findings.refused {
            text += &format!("\nnot judged: {theorem}: {why}\n");
        }
    }
    text
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
    let mut text = format!(
        "\n{:<20} {:>7}  {:<8}  what holds, and which hazards it is for\n",
        "obligation", "goals", "severity"
    );
    for Obligation { name, rows, severity, statement, .. } in Obligation::ALL {
        let goals: usize = reports.iter().filter_map(|report| report.obligations.get(name)).sum();
        text += &format!("{name:<20} {goals:>7}  {:<8}  {statement}\n", severity.name());
        text.extend(rows.iter().map(|row| format!("{:<38}  {row}\n", "")));
    }
    text + "\nRows are those of spec/hazards.md. Where there are 0 goals, no path had occasion for one.\n"
}

#[cfg(test)]
mod tests {
    use switcher_gen::Variant;
    use switcher_prove::{Prover, Verdict};

    use super::*;
    use crate::output::Failure;
    use crate::subject::Subject;

    const ALL: Demands = Demands { fail_on: Severity::Speed, require: Vec::new() };

    /// Our images are all proved, so one is told a label that is wrong.
    #[test]
    fn the_path_of_our_own_image_is_shown_as_it_is_listed() {
        let mut subject = Subject::of_variant(&Variant::REFERENCE).unwrap();
        subject.target.iretq = subject.target.iretq.map(|at| at + 2);
        let verdict = Prover::default().prove(&subject.target);
        assert!(matches!(verdict, Verdict::Refuted(_)));
        let proofs = [Proof::new(&subject, verdict, None).unwrap()];
        let text = text(&proofs, &ALL);
        let start = "intel-4level: refuted: 1 first finding (1 host), fingerprint ";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("`iretq-label` does not hold"), "{text}");
        assert!(text.contains("gs:[tss_extra.host_rsp], rsp"), "{text}");
        let blamed = text.lines().find(|line| line.ends_with("  <--")).unwrap();
        assert!(blamed.contains("iretq") && blamed.contains("emit/"), "{blamed}");
        let place =
            text.lines().find(|line| line.starts_with("Finding 1 of 1 (host), at ")).unwrap();
        assert!(place.contains(" entry_IRETQ_switcher (0x"), "{place}");
        assert!(place.contains(", switcher-gen/src/emit/"), "{place}");
        // What is no code weighs less than what is refuted, and more than what is not known.
        let host =
            |verdict| matches!(verdict, Err(Failure::Refuted { severity: Severity::Host, .. }));
        assert!(host(ALL.verdict(&proofs, &[])));
        assert!(host(ALL.verdict(&proofs, &["bad".into()])));
        assert!(matches!(ALL.verdict(&[], &["bad".into()]), Err(Failure::Usage(_))));
    }
}
