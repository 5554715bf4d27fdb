//! The names of the cases that every run must report.

use hw_protocol::SELFTESTS;

/// The platform self tests, then the case list, in the order the kernel runs them.
#[must_use]
pub fn names() -> Vec<&'static str> {
    SELFTESTS.to_vec()
}
