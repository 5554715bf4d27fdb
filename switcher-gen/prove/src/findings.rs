//! What was found wrong with a target: the first of it, or all.
//!
//! A finding is one obligation that one theorem finds broken at one instruction. That it is broken
//! on other paths too, or of other registers, is the same finding.

use std::collections::HashMap;

use serde::Serialize;

use crate::bad_code::BadCode;
use crate::counterexample::Counterexample;
use crate::obligation::Obligation;
use crate::severity::Severity;
use crate::theorem::Theorem;
use crate::verdict::{Report, Verdict};

/// All that is wrong with a target, as far as it can be told.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// Each with a state of its own that breaks it.
    pub refuted: Vec<Counterexample>,
    /// What could not be shown, and was not refuted either.
    pub unknown: Vec<String>,
    /// Theorems that cannot be about the code, and why.
    pub refused: Vec<Refused>,
    /// The theorem in the middle of which somebody wanted an end.
    #[serde(skip)]
    interrupted: Option<Theorem>,
    /// Whether the first finding is enough.
    #[serde(skip)]
    ends_with_the_first: bool,
    /// For each finding, its place among `refuted`; `None` if it is not refuted.
    #[serde(skip)]
    known: HashMap<Key, Option<usize>>,
}

/// What makes two broken goals one finding.
type Key = (Theorem, Obligation, Option<u64>);

/// A theorem that cannot be about the code.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// The theorem.
    pub theorem: Theorem,
    /// Why, in words.
    pub why: String,
    /// Why, as the code that it is.
    #[serde(skip)]
    pub code: BadCode,
}

impl Findings {
    /// No finding yet, for somebody who needs one.
    pub(crate) fn first() -> Self {
        Self { ends_with_the_first: true, ..Self::default() }
    }

    /// No finding yet, for somebody who needs as many as of these.
    pub(crate) fn of_this_kind(&self) -> Self {
        Self { ends_with_the_first: self.ends_with_the_first, ..Self::default() }
    }

    /// Adds other findings, except those that are known.
    pub(crate) fn append(&mut self, others: Self) {
        let Self { refuted, unknown, refused, known, .. } = others;
        let places = known.iter().filter_map(|(key, place)| Some(((*place)?, *key)));
        let keys: HashMap<usize, Key> = places.collect();
        for (place, found) in refuted.into_iter().enumerate() {
            if let Some(key) = keys.get(&place).filter(|key| !self.known.contains_key(key)) {
                self.refute(*key, found);
            }
        }
        for (key, _) in known.into_iter().filter(|(_, place)| place.is_none()) {
            self.known.entry(key).or_insert(None);
        }
        self.unknown.extend(unknown);
        self.refused.extend(refused);
    }

    /// How many there are of each severity, the gravest first.
    #[must_use]
    pub fn by_severity(&self) -> [(Severity, usize); Severity::ALL.len()] {
        Severity::ALL.map(|severity| {
            let of = self.refuted.iter().filter(|found| found.obligation.severity == severity);
            (severity, of.count())
        })
    }

    /// Whether there is nothing more to be looked for.
    pub(crate) fn are_enough(&self) -> bool {
        self.ends_with_the_first && !(self.refuted.is_empty() && self.unknown.is_empty())
    }

    /// Whether something was found of this theorem.
    pub(crate) fn are_of(&self, theorem: Theorem) -> bool {
        self.known.keys().any(|(of, ..)| *of == theorem)
    }

    /// Somebody wants an end in the middle of `theorem`.
    pub(crate) fn interrupt(&mut self, theorem: Theorem) {
        self.interrupted = Some(theorem);
        self.unknown.push(format!("{}: interrupted", theorem.name()));
    }

    /// What became of the theorem that was looked at, of which this was shown if nothing was found.
    pub(crate) fn into_verdict(mut self, reports: Vec<Report>) -> Verdict {
        if let Some(found) = self.refuted.pop() {
            return Verdict::Refuted(Box::new(found));
        }
        match (self.interrupted, self.unknown.pop()) {
            (Some(theorem), _) => Verdict::Interrupted(theorem),
            (None, Some(why)) => Verdict::Unknown(why),
            (None, None) => Verdict::Proved(reports),
        }
    }

    /// Whether a finding is known already. If so, it is noted to be `about` this, too.
    pub(crate) fn has(&mut self, key: Key, about: &'static str) -> bool {
        let Some(place) = self.known.get(&key) else { return false };
        if let Some(found) = place.and_then(|place| self.refuted.get_mut(place))
            && found.about != about
            && !found.also.contains(&about)
        {
            found.also.push(about);
        }
        true
    }

    pub(crate) fn refute(&mut self, key: Key, found: Counterexample) {
        self.known.insert(key, Some(self.refuted.len()));
        self.refuted.push(found);
    }

    pub(crate) fn leave_open(&mut self, key: Option<Key>, why: String) {
        if let Some(key) = key {
            self.known.insert(key, None);
        }
        self.unknown.push(why);
    }
}
