//! The report of `switcher prove` as SARIF 2.1.0, for services that show findings beside code.
//!
//! The format is the structs of `format`. A crate that has all of it (`serde-sarif` 0.8) makes them
//! from the schema with 33 more crates, two versions of `syn` among them, for the small part of it
//! that is written here.

mod format;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use switcher_prove::{Obligation, Severity, SourceLine};

use crate::output::Failure;
use crate::places::Place;
use crate::proof::{Finding, Proof};
use crate::verdict::Demands;
use format::{
    Address, Artifact, CodeFlow, Descriptor, DescriptorReference, Driver, Invocation, Level,
    Location, LogicalLocation, Message, Notification, Physical, Region, Run, Sarif, StepLocation,
    ThreadFlow, Tool, Uri,
};

/// What is said beside findings.
#[derive(Clone, Copy)]
enum Said {
    NotJudged,
    Assumed,
    Harmless,
    Unknown,
    Refused,
    Missing,
    Passed,
    Interrupted,
}

impl Said {
    const ALL: [Self; 8] = [
        Self::NotJudged,
        Self::Assumed,
        Self::Harmless,
        Self::Unknown,
        Self::Refused,
        Self::Missing,
        Self::Passed,
        Self::Interrupted,
    ];

    const fn id(self) -> &'static str {
        match self {
            Self::NotJudged => "not-judged",
            Self::Assumed => "assumed",
            Self::Harmless => "harmless",
            Self::Unknown => "unknown",
            Self::Refused => "refused",
            Self::Missing => "missing",
            Self::Passed => "passed",
            Self::Interrupted => "interrupted",
        }
    }

    const fn meaning(self) -> &'static str {
        match self {
            Self::NotJudged => "Nothing is said about a part of the code.",
            Self::Assumed => "Something is taken for granted of this code.",
            Self::Harmless => "Something names the code and was found not to change it.",
            Self::Unknown => "Something could be neither proved nor refuted.",
            Self::Refused => "There is no telling what a part of the code does.",
            Self::Missing => "An area of `--require` is not judged.",
            Self::Passed => "Findings are shown that `--fail-on` lets pass.",
            Self::Interrupted => "Somebody has ended it: the report is of a part.",
        }
    }

    const fn level(self) -> Level {
        match self {
            Self::NotJudged | Self::Unknown | Self::Interrupted => Level::Warning,
            Self::Assumed | Self::Harmless | Self::Passed => Level::Note,
            Self::Refused | Self::Missing => Level::Error,
        }
    }

    fn notification(self, text: String) -> Notification {
        Notification {
            level: self.level(),
            message: Message { text },
            descriptor: DescriptorReference { id: self.id(), index: self as usize },
        }
    }
}

/// How a service shows a severity.
const fn level(severity: Severity) -> Level {
    match severity {
        Severity::Host => Level::Error,
        Severity::Guest => Level::Warning,
        Severity::Contract | Severity::Speed => Level::Note,
    }
}

/// The report of these targets, and how the command ends.
pub(crate) fn report(
    proofs: &[Proof],
    refused: &[String],
    demands: &Demands,
    (is_whole, verdict): (bool, &Result<(), Failure>),
) -> Sarif {
    let exit_code = verdict.as_ref().err().map_or(0, Failure::code);
    let interrupted = (!is_whole).then(|| String::from("interrupted: the report is of a part"));
    let mut said: Vec<_> =
        interrupted.into_iter().map(|text| Said::Interrupted.notification(text)).collect();
    said.extend(refused.iter().map(|why| Said::Refused.notification(why.clone())));
    said.extend(proofs.iter().flat_map(|proof| notifications(proof, demands)));
    let files = proofs.iter().filter(|proof| proof.is_file);
    Sarif::of(Run {
        tool: Tool {
            driver: Driver {
                name: "switcher prove",
                semantic_version: env!("CARGO_PKG_VERSION"),
                rules: Obligation::ALL.iter().map(rule).collect(),
                notifications: Said::ALL.map(descriptor).into(),
            },
        },
        invocations: vec![Invocation {
            execution_successful: is_whole && exit_code != 2,
            exit_code,
            tool_execution_notifications: said,
        }],
        artifacts: files.map(|proof| Artifact { location: artifact(&proof.name) }).collect(),
        results: proofs.iter().flat_map(results).collect(),
        column_kind: "utf16CodeUnits",
        properties: json!({
            "failOn": demands.fail_on,
            "require": demands.require,
            "targets": proofs.iter().map(target).collect::<Vec<_>>(),
        }),
    })
}

/// An obligation as a rule.
fn rule(obligation: &Obligation) -> Descriptor {
    let Obligation { name, rows, severity, statement, otherwise } = obligation;
    let hazards: Vec<_> = rows.iter().map(|row| format!("spec/hazards.md, {row}")).collect();
    let (what, hazards) = (sentence(statement), hazards.join("\n"));
    let help = format!("{what}. Otherwise, {otherwise}.\n{hazards}");
    Descriptor {
        id: name,
        short_description: Message { text: format!("{}.", sentence(statement)) },
        full_description: Some(Message { text: format!("Otherwise, {otherwise}.") }),
        help: Some(Message { text: help }),
        default_configuration: Some(format::Configuration { level: level(*severity) }),
        properties: Some(json!({ "severity": severity, "rows": rows })),
    }
}

/// A statement as a report begins a sentence with it.
fn sentence(statement: &str) -> String {
    let mut rest = statement.chars();
    let first = rest.next().into_iter().flat_map(char::to_uppercase);
    first.chain(rest).collect()
}

fn descriptor(said: Said) -> Descriptor {
    Descriptor {
        id: said.id(),
        short_description: Message { text: said.meaning().into() },
        full_description: None,
        help: None,
        default_configuration: Some(format::Configuration { level: said.level() }),
        properties: None,
    }
}

/// What became of a target, for those of which there is no result.
fn target(proof: &Proof) -> Value {
    let Proof { name, verdict, severity, fingerprint, certificate, .. } = proof;
    json!({
        "name": name,
        "verdict": verdict,
        "severity": severity,
        "fingerprint": fingerprint,
        "certificate": certificate,
        "notJudged": proof.not_judged,
    })
}

fn notifications(proof: &Proof, demands: &Demands) -> Vec<Notification> {
    let name = &proof.name;
    let say =
        |said: Said, what: &dyn std::fmt::Display| said.notification(format!("{name}: {what}"));
    let mut all: Vec<_> = proof.not_judged.iter().map(|what| say(Said::NotJudged, what)).collect();
    all.extend(demands.missing(proof).iter().map(|what| say(Said::Missing, what)));
    all.extend(proof.assumed.iter().map(|what| say(Said::Assumed, what)));
    all.extend(proof.harmless.iter().map(|what| say(Said::Harmless, what)));
    let passes = |finding: &&Finding| !finding.severity.is_at_least(demands.fail_on);
    let passed = proof.all().iter().filter(passes).count();
    if passed > 0 {
        let what = format!("findings below `--fail-on {}`: {passed}", demands.fail_on);
        all.push(say(Said::Passed, &what));
    }
    match &proof.findings {
        Some(findings) => {
            all.extend(findings.unknown.iter().map(|why| say(Said::Unknown, why)));
            let refused = findings.refused.iter();
            let refused = refused.map(|it| format!("{}: {}", it.theorem, it.why));
            all.extend(refused.map(|why| say(Said::Refused, &why)));
        }
        None => all.extend(proof.why.iter().map(|why| say(Said::Unknown, why))),
    }
    all
}

/// The findings of a target. Two that look alike are told apart by which of them comes first.
fn results(proof: &Proof) -> Vec<format::Result> {
    let mut seen = BTreeMap::<String, usize>::new();
    let all = proof.all().iter().map(|finding| {
        let fingerprint = fingerprint(finding);
        let number = seen.entry(fingerprint.clone()).or_default();
        *number += 1;
        result(proof, finding, format!("{fingerprint}/{number}"))
    });
    all.collect()
}

/// What stays the same of a finding if the code is built anew, or other code is changed: no
/// addresses and no numbers of lines.
fn fingerprint(finding: &Finding) -> String {
    let Finding { found, place, .. } = finding;
    let symbol = place.as_ref().and_then(|place| place.symbol.as_ref());
    let symbol = symbol.map_or("", |symbol| &symbol.name);
    let at = found.place();
    let mut path = found.path.iter().chain(&found.predicted);
    let text = path.find(|(address, _)| Some(*address) == at).map_or("", |(_, text)| text);
    format!("{}/{}/{symbol}/{text}", found.theorem, found.obligation.name)
}

fn result(proof: &Proof, finding: &Finding, fingerprint: String) -> format::Result {
    let Finding { severity, found, place, path, .. } = finding;
    let index = Obligation::ALL.iter().position(|it| *it == found.obligation);
    let state =
        found.state.iter().map(|(name, value)| (name.clone(), format!("{value:#x}").into()));
    let state: serde_json::Map<String, Value> = state.collect();
    let step = |(place, (_, text)): (&Place, &(u64, String))| StepLocation {
        location: Location {
            message: Some(Message { text: text.clone() }),
            ..location(proof, place)
        },
    };
    let steps: Vec<_> = path.iter().zip(&found.path).map(step).collect();
    format::Result {
        rule_id: found.obligation.name,
        rule_index: index.unwrap_or_default(),
        kind: "fail",
        level: level(*severity),
        message: Message { text: format!("{}: {}", found.theorem, found.required) },
        locations: place.iter().map(|place| location(proof, place)).collect(),
        code_flows: match steps.is_empty() {
            true => Vec::new(),
            false => vec![CodeFlow { thread_flows: vec![ThreadFlow { locations: steps }] }],
        },
        partial_fingerprints: BTreeMap::from([("switcherFinding/v1", fingerprint)]),
        properties: json!({
            "target": proof.name,
            "severity": severity,
            "theorem": found.theorem,
            "guestMemory": found.guest_memory,
            "about": found.about,
            "required": found.required,
            "address": place.as_ref().map(|place| format!("{:#x}", place.address)),
            "symbol": finding.symbol,
            "state": state,
            "end": found.end,
            "terms": found.terms,
            "replay": found.replay.map(|(one, other)| [one, other].map(|it| format!("{it:#x}"))),
        }),
    }
}

/// A line of a source where that is known, and otherwise a place in the file. An address is beyond
/// what many readers' numbers hold, so that of a kernel is left out there.
fn location(proof: &Proof, place: &Place) -> Location {
    let symbol = place.symbol.as_ref();
    let address = Address {
        absolute_address: i64::try_from(place.address).ok(),
        relative_address: i64::try_from(place.offset).ok(),
        kind: "instruction",
        name: symbol.map(ToString::to_string),
    };
    let physical = match &place.source {
        Some(SourceLine { file, line }) => Some(Physical {
            artifact_location: artifact(file),
            region: Some(Region { start_line: (*line).max(1) }),
            address: Some(address),
        }),
        None if proof.is_file => Some(Physical {
            artifact_location: artifact(&proof.name),
            region: None,
            address: Some(address),
        }),
        None => None,
    };
    Location {
        physical_location: physical,
        logical_locations: symbol
            .map(|symbol| LogicalLocation { name: symbol.name.clone(), kind: "function" })
            .into_iter()
            .collect(),
        message: None,
    }
}

/// A path as a URI: relative ones stay so, for whoever knows the root that they are counted from.
fn artifact(path: &str) -> Uri {
    let mut uri = String::from(if Path::new(path).is_absolute() { "file://" } else { "" });
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                uri.push(char::from(byte));
            }
            other => uri += &format!("%{other:02X}"),
        }
    }
    Uri { uri }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_well_formed_uris() {
        for (path, uri) in [
            ("arch/x86/entry.S", "arch/x86/entry.S"),
            ("/tmp/a b#c?.o", "file:///tmp/a%20b%23c%3F.o"),
            ("C:ä.o", "C%3A%C3%A4.o"),
            ("100%.o", "100%25.o"),
        ] {
            assert_eq!(artifact(path).uri, uri);
        }
    }

    #[test]
    fn what_is_said_beside_findings_has_a_descriptor_at_its_index() {
        for (index, said) in Said::ALL.into_iter().enumerate() {
            assert_eq!(said as usize, index);
            assert_eq!(descriptor(said).id, said.id());
        }
    }
}
