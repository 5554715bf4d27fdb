//! What became of one target: what a report says of it, in whatever format.

use serde::Serialize;
use switcher_gen::certificate;
use switcher_prove::{
    Counterexample, Findings, NotJudged, Refused, Report, Severity, SourceLine, Verdict,
};

use crate::places::{Place, Places};
use crate::subject::Subject;

/// What became of one target.
#[derive(Serialize)]
pub(crate) struct Proof {
    pub(crate) name: String,
    pub(crate) verdict: &'static str,
    /// Of the gravest finding.
    pub(crate) severity: Option<Severity>,
    pub(crate) fingerprint: Option<String>,
    pub(crate) certificate: Option<bool>,
    pub(crate) not_judged: Vec<NotJudged>,
    pub(crate) assumed: Vec<String>,
    pub(crate) harmless: Vec<String>,
    pub(crate) theorems: Vec<Report>,
    pub(crate) counterexample: Option<Finding>,
    pub(crate) findings: Option<All>,
    pub(crate) why: Option<String>,
    /// Why there are no lines of sources, if they were looked for.
    #[serde(skip)]
    pub(crate) no_lines: Option<String>,
    /// Whether it is a file of somebody's.
    #[serde(skip)]
    pub(crate) is_file: bool,
}

/// A counterexample, with where it is.
#[derive(Clone, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) symbol: Option<String>,
    pub(crate) source: Option<SourceLine>,
    #[serde(flatten)]
    pub(crate) found: Counterexample,
    /// The same with the instructions as they are listed.
    #[serde(skip)]
    pub(crate) annotated: Counterexample,
    /// Where it is; whatever has no instruction to blame is where the path ends.
    #[serde(skip)]
    pub(crate) place: Option<Place>,
    /// Where the path goes.
    #[serde(skip)]
    pub(crate) path: Vec<Place>,
}

/// All that is wrong, the gravest first.
#[derive(Serialize)]
pub(crate) struct All {
    pub(crate) refuted: Vec<Finding>,
    pub(crate) unknown: Vec<String>,
    pub(crate) refused: Vec<Refused>,
}

impl Finding {
    fn new(found: Counterexample, places: &Places<'_>) -> Self {
        let found = places.named(found);
        let place = found.place().map(|at| places.at(at));
        let symbol =
            place.as_ref().and_then(|place| place.symbol.as_ref()).map(ToString::to_string);
        let mut annotated = found.clone();
        for (at, text) in annotated.path.iter_mut().chain(&mut annotated.predicted) {
            if let Some(annotated) = places.text(*at) {
                *text = annotated;
            }
        }
        Self {
            severity: found.obligation.severity,
            symbol,
            source: place.as_ref().and_then(|place| place.source.clone()),
            path: found.path.iter().map(|(at, _)| places.at(*at)).collect(),
            found,
            annotated,
            place,
        }
    }
}

impl Proof {
    /// What is reported of a verdict and of all that is wrong, if that was looked for; why there is
    /// none, if no theorem can be about the code.
    pub(crate) fn new(
        subject: &Subject,
        verdict: Verdict,
        findings: Option<Findings>,
    ) -> Result<Self, String> {
        let image = subject.image.as_ref();
        let proof = Self {
            name: subject.name.clone(),
            verdict: "proved",
            severity: None,
            fingerprint: image.map(|image| image.fingerprint().to_string()),
            certificate: image.map(certificate::is_proved),
            not_judged: subject.target.not_judged(),
            assumed: subject.target.assumed.clone(),
            harmless: subject.target.harmless.clone(),
            theorems: Vec::new(),
            counterexample: None,
            findings: None,
            why: None,
            no_lines: None,
            is_file: image.is_none(),
        };
        // Other theorems may be refuted, whatever became of the first one.
        let also = findings.as_ref().and_then(|findings| findings.refuted.first());
        let (first, why) = match (verdict, also) {
            (Verdict::Proved(theorems), _) => return Ok(Self { theorems, ..proof }),
            (Verdict::Refuted(found), _) => (Some(*found), None),
            (_, Some(found)) => (Some(found.clone()), None),
            (Verdict::Unknown(why), None) => (None, Some(why)),
            (Verdict::Interrupted(theorem), None) => {
                (None, Some(format!("{theorem}: interrupted")))
            }
            (Verdict::Unsupported(code), None) => return Err(subject.refused(&code)),
        };
        let places = first.is_some().then(|| Places::of(subject));
        let finding = |found| places.as_ref().map(|places| Finding::new(found, places));
        let counterexample = first.and_then(finding);
        let findings = findings.map(|Findings { refuted, unknown, refused, .. }| {
            let mut refuted: Vec<_> = refuted.into_iter().filter_map(finding).collect();
            refuted.sort_by_key(|finding| finding.severity);
            All { refuted, unknown, refused }
        });
        let no_lines = places.as_ref().and_then(Places::why_no_lines).map(ToString::to_string);
        let verdict = if counterexample.is_some() { "refuted" } else { "unknown" };
        let proof = Self { verdict, counterexample, findings, why, no_lines, ..proof };
        let severity = proof.all().iter().map(|finding| finding.severity).min();
        Ok(Self { severity, ..proof })
    }

    /// Whether there is something of which it is not known whether it holds.
    pub(crate) fn has_unknown(&self) -> bool {
        let all = self.findings.as_ref();
        self.verdict == "unknown"
            || all.is_some_and(|all| !all.unknown.is_empty() || !all.refused.is_empty())
    }

    /// What is to be shown, the gravest first.
    pub(crate) fn all(&self) -> &[Finding] {
        match (&self.findings, &self.counterexample) {
            (Some(all), _) => &all.refuted,
            (None, Some(first)) => std::slice::from_ref(first),
            (None, None) => &[],
        }
    }

    /// How many findings there are of each severity, of those that have some.
    pub(crate) fn counts(&self) -> Vec<(Severity, usize)> {
        let count = |of| self.all().iter().filter(|finding| finding.severity == of).count();
        let counts = Severity::ALL.map(|severity| (severity, count(severity)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}
