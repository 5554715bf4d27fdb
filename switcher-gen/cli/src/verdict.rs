//! What makes a verdict a failure, and of which exit code: severities, and areas that have to be
//! judged.

use switcher_prove::{Area, Severity};

use crate::output::Failure;
use crate::proof::Proof;

/// To be flattened into a command's arguments.
#[derive(clap::Args)]
pub(crate) struct Demands {
    /// Findings that are less grave are shown and do not fail: host, guest, contract or speed, the
    /// gravest first
    #[arg(long, value_name = "SEVERITY", default_value = "speed")]
    pub(crate) fail_on: Severity,
    /// Fail with exit code 3 if an area is not judged: routines, compat, windows, root-window,
    /// events, iretq-frame, iretq-fault
    #[arg(long, value_name = "AREA,...", value_delimiter = ',')]
    pub(crate) require: Vec<Area>,
}

impl Demands {
    /// What of `proof` was asked for and is not there, each with the way to give it.
    pub(crate) fn missing(&self, proof: &Proof) -> Vec<String> {
        let mut missing: Vec<String> = proof
            .not_judged
            .iter()
            .filter(|it| self.require.contains(&it.area))
            .map(|it| format!("`{}` is required and not judged: {}; {}", it.area, it.what, it.how))
            .collect();
        let refused = proof.findings.iter().flat_map(|findings| &findings.refused);
        missing.extend(refused.filter_map(|it| {
            let area = Area::of(it.theorem);
            let is_required = self.require.contains(&area);
            is_required.then(|| {
                let (theorem, why) = (it.theorem, &it.why);
                format!("`{area}` is required and not all of it is judged: {theorem}: {why}")
            })
        }));
        missing
    }

    /// The gravest finding of a proof that fails.
    fn fails(&self, proof: &Proof) -> Option<Severity> {
        proof.severity.filter(|severity| severity.is_at_least(self.fail_on))
    }

    /// The worst there is: of what was refuted, of what is no code, and of what is not known.
    pub(crate) fn verdict(&self, proofs: &[Proof], refused: &[String]) -> Result<(), Failure> {
        let names = |is: &dyn Fn(&Proof) -> bool| {
            let proofs = proofs.iter().filter(|proof| is(proof));
            listed(&proofs.map(|proof| proof.name.as_str()).collect::<Vec<_>>())
        };
        let refuted = names(&|proof| self.fails(proof).is_some());
        let unknown = names(&|proof| self.fails(proof).is_none() && proof.has_unknown());
        let severity = proofs.iter().filter_map(|proof| self.fails(proof)).min();
        let mut messages = refused.to_vec();
        if !refuted.is_empty() {
            messages.insert(0, format!("refuted: {refuted}"));
        }
        if !unknown.is_empty() {
            messages.push(format!("neither proved nor refuted: {unknown}"));
        }
        for proof in proofs {
            let missing = self.missing(proof);
            messages.extend(missing.into_iter().map(|what| format!("{}: {what}", proof.name)));
        }
        let message = messages.join("\n");
        match severity {
            _ if message.is_empty() => Ok(()),
            Some(severity) => Err(Failure::Refuted { severity, message }),
            None if !refused.is_empty() => Err(Failure::Usage(message)),
            None => Err(Failure::Unknown(message)),
        }
    }
}

/// How many names one line of an error lists.
const LISTED: usize = 8;

/// Names for one line, and how many more there are.
fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(LISTED);
    let listed = names[..names.len() - more].join(", ");
    if more == 0 { listed } else { format!("{listed}, and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn names_are_listed_as_long_as_they_fit() {
        assert_eq!(listed(&[]), "");
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert_eq!(listed(&["a"; 8]), "a, a, a, a, a, a, a, a");
        assert_eq!(listed(&["a"; 11]), "a, a, a, a, a, a, a, a, and 3 more");
    }
}
