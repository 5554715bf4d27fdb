//! The table at the end of `cargo xtask test`.

use std::fmt;
use std::time::Duration;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was checked.
    pub name: String,
    /// The number of checks, tests or cases that passed.
    pub passed: u64,
    /// The number of those that did not.
    pub failed: u64,
    /// How long the checks took.
    pub took: Duration,
    /// Anything else that is worth knowing.
    pub note: String,
    /// The cases that cannot be run there, and the reasons. They have neither passed nor failed.
    pub not_here: Vec<(String, String)>,
}

/// All lines of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary(pub Vec<Row>);

impl Summary {
    /// Whether nothing failed, and something was checked at all.
    #[must_use]
    pub fn success(&self) -> bool {
        let (passed, failed) = self.totals();
        passed > 0 && failed == 0
    }

    fn totals(&self) -> (u64, u64) {
        self.0
            .iter()
            .fold((0, 0), |(passed, failed), row| (passed + row.passed, failed + row.failed))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|row| row.name.len()).max().unwrap_or(0);
        writeln!(f, "{:width$}  {:>6}  {:>6}  {:>7}", "", "passed", "failed", "time")?;
        for Row { name, passed, failed, took, note, .. } in &self.0 {
            let took = took.as_secs_f64();
            let line = format!("{name:width$}  {passed:>6}  {failed:>6}  {took:>5.1} s  {note}");
            writeln!(f, "{}", line.trim_end())?;
        }
        for Row { name, not_here, .. } in &self.0 {
            for (case, why) in not_here {
                writeln!(f, "not run on {name}: {case}: {why}")?;
            }
        }
        let (passed, failed) = self.totals();
        write!(f, "{passed} passed, {failed} failed")
    }
}

/// Adds up the `test result:` lines of `cargo test`: passed and failed tests.
#[must_use]
pub fn count_tests(output: &str) -> (u64, u64) {
    let number = |line: &str, word: &str| {
        let before = line.split(word).next().unwrap_or_default();
        before.trim_end().rsplit(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    output.lines().filter(|line| line.starts_with("test result:")).fold(
        (0, 0),
        |(passed, failed), line| {
            (
                passed + number(line, " passed;"),
                failed + number(line, " failed;") + number(line, " ignored;"),
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_total() {
        let row = |name: &str, passed, failed, note: &str| Row {
            name: name.into(),
            passed,
            failed,
            took: Duration::from_millis(1234),
            note: note.into(),
            not_here: vec![],
        };
        let mut bochs = row("bochs-amd", 20, 2, "AuthenticAMD");
        bochs.not_here = vec![("la57".into(), "no LA57".into())];
        let summary = Summary(vec![row("fmt", 1, 0, ""), bochs]);
        assert_eq!(
            summary.to_string(),
            "           passed  failed     time\n\
             fmt             1       0    1.2 s\n\
             bochs-amd      20       2    1.2 s  AuthenticAMD\n\
             not run on bochs-amd: la57: no LA57\n\
             21 passed, 2 failed"
        );
        assert!(!summary.success());
        assert!(Summary(vec![row("fmt", 1, 0, "")]).success());
    }

    #[test]
    fn nothing_checked_is_no_success() {
        assert!(!Summary::default().success());
    }

    #[test]
    fn the_results_of_all_test_binaries_are_added() {
        let output = "running 2 tests\n\
            test result: ok. 20 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
            test passed; x ... ok\n\
            test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count_tests(output), (23, 1));
        assert_eq!(count_tests("error: could not compile"), (0, 0));
    }
}
