//! The names of the cases that a run must report.

use hw_protocol::{HOST_CASES, SELFTESTS};

/// The platform self tests, the case list and the host cases, in the order in which the kernel runs
/// them.
#[must_use]
pub fn names() -> Vec<&'static str> {
    self_tests()
        .into_iter()
        .chain(shared())
        .chain(HOST_CASES.iter().map(|case| case.name))
        .collect()
}

/// The platform self tests.
#[must_use]
pub fn self_tests() -> Vec<&'static str> {
    SELFTESTS.iter().map(|test| test.name).collect()
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

    #[test]
    fn the_kernels_own_cases_are_said_to_show_something() {
        for test in SELFTESTS {
            assert!(test.name.starts_with("selftest/") && test.shown.ends_with('.'), "{test:?}");
        }
        for case in HOST_CASES {
            assert!(case.name.starts_with("host/") && case.shown.ends_with('.'), "{case:?}");
            assert!((1..=hw_protocol::CPUS).contains(&case.cpus), "{case:?}");
            assert!(!case.rows.is_empty(), "{case:?}");
        }
    }
}
