//! The names of the cases that a run must report.

use hw_protocol::{HOST_CASES, SELFTESTS};

/// The platform self tests, the case list and the host cases, in the order the kernel runs them.
#[must_use]
pub fn names() -> Vec<&'static str> {
    SELFTESTS.iter().copied().chain(shared()).chain(HOST_CASES.iter().copied()).collect()
}

/// The case list, which every engine runs.
#[must_use]
pub fn shared() -> Vec<&'static str> {
    hw_cases::all().iter().map(|case| case.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_cases_share_a_name() {
        let names = names();
        let different: BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
    }
}
