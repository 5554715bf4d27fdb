//! The lines the kernel reports with.

use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Opens every report line.
pub const PREFIX: &str = "@@ ";
/// Opens the line of a Rust panic in the kernel.
pub const PANIC: &str = "panic: ";
/// Opens the line of a CPU event the kernel cannot go on after, or of a machine it cannot use.
pub const FATAL: &str = "fatal: ";

/// How a case ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CaseVerdict {
    /// Everything was as expected.
    Pass,
    /// Something was not as expected; the case's `detail` says what.
    Fail,
    /// The engine cannot run the case; its `detail` says why.
    NotHere,
}

/// One report line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase", deny_unknown_fields)]
pub enum ReportLine<'a> {
    /// What the CPU says of itself.
    Machine {
        /// CPUID's brand string, or empty.
        brand: Cow<'a, str>,
        /// The features this project cares about that the CPU has, in lower case.
        features: Vec<Cow<'a, str>>,
        /// Bytes of memory the kernel may use.
        memory: u64,
    },
    /// The tests are about to start.
    Begin {
        /// CPUID's vendor string.
        vendor: Cow<'a, str>,
        /// The paging mode in force: [`PagingMode::name`](switcher_gen::arch::PagingMode::name).
        paging: Cow<'a, str>,
        /// Whether CR4.PCIDE is set.
        pcid: bool,
        /// How many case lines will follow.
        cases: u64,
    },
    /// A switcher that the cases after these lines are about: there are several if each CPU has its
    /// own.
    Switcher {
        /// The variant's name.
        variant: Cow<'a, str>,
        /// SHA-256 of what was assembled on this CPU.
        fingerprint: Cow<'a, str>,
        /// Where it lies.
        base: u64,
    },
    /// A case has run.
    Case {
        /// Its name in the case list.
        name: Cow<'a, str>,
        /// How it ended.
        verdict: CaseVerdict,
        /// How many times it was run.
        runs: u64,
        /// Why it failed or was not run, or what else is worth knowing; may be empty.
        detail: Cow<'a, str>,
    },
    /// All is done.
    End {
        /// Case lines that passed.
        passed: u64,
        /// Case lines that failed.
        failed: u64,
    },
}

/// A line that opens with [`PREFIX`] and is not a report line.
#[derive(Debug)]
pub struct ReportLineError(serde_json::Error);

impl fmt::Display for ReportLineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed report line: {}", self.0)
    }
}

impl core::error::Error for ReportLineError {}

impl<'a> ReportLine<'a> {
    /// The report in this line of output, if it has one. The prefix may stand after other text: an
    /// emulator's prompt, an escape sequence of GRUB's.
    ///
    /// # Errors
    /// The prefix is there, and what follows is not a report.
    pub fn parse(line: &'a str) -> Result<Option<Self>, ReportLineError> {
        let Some((_, json)) = line.split_once(PREFIX) else {
            return Ok(None);
        };
        serde_json::from_str(json.trim_end()).map(Some).map_err(ReportLineError)
    }

    /// The report as a line of output, without the line's end.
    ///
    /// # Errors
    /// It never fails today: no report has a map with keys that are not strings.
    pub fn to_line(&self) -> Result<String, ReportLineError> {
        let json = serde_json::to_string(self).map_err(ReportLineError)?;
        let mut line = String::with_capacity(PREFIX.len() + json.len());
        line.push_str(PREFIX);
        line.push_str(&json);
        Ok(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn events_survive_the_wire() {
        let events = [
            ReportLine::Machine {
                brand: "a \"quoted\" CPU".into(),
                features: vec!["la57".into(), "smap".into()],
                memory: 1 << 29,
            },
            ReportLine::Begin {
                vendor: "AuthenticAMD".into(),
                paging: "4level".into(),
                pcid: false,
                cases: 3,
            },
            ReportLine::Switcher {
                variant: "amd-la57".into(),
                fingerprint: "00ff".into(),
                base: 1 << 63,
            },
            ReportLine::Case {
                name: "sysret/rf".into(),
                verdict: CaseVerdict::Fail,
                runs: 1000,
                detail: "got \\ and \n and \u{1}".into(),
            },
            ReportLine::End { passed: 2, failed: 1 },
        ];
        for event in events {
            let line = event.to_line().expect("no event fails to serialise");
            assert!(!line.contains('\n'), "one event, one line: {line}");
            assert_eq!(ReportLine::parse(&line).expect("parses"), Some(event));
        }
    }

    #[test]
    fn the_case_line_is_as_documented() {
        let event = ReportLine::Case {
            name: "a".into(),
            verdict: CaseVerdict::Pass,
            runs: 1000,
            detail: "".into(),
        };
        assert_eq!(
            event.to_line().expect("serialises"),
            r#"@@ {"event":"case","name":"a","verdict":"pass","runs":1000,"detail":""}"#
        );
    }

    #[test]
    fn a_prompt_before_the_prefix_is_skipped() {
        let line = "<bochs:1> @@ {\"event\":\"end\",\"passed\":1,\"failed\":0}\r";
        assert_eq!(
            ReportLine::parse(line).expect("parses"),
            Some(ReportLine::End { passed: 1, failed: 0 })
        );
    }

    #[test]
    fn other_text_is_no_event_and_a_torn_event_is_an_error() {
        assert!(matches!(ReportLine::parse("SeaBIOS (version 1.16)"), Ok(None)));
        assert!(ReportLine::parse("@@ {\"event\":\"end\",\"passed\":1").is_err());
        assert!(
            ReportLine::parse("@@ {\"event\":\"end\",\"passed\":1,\"failed\":0,\"x\":1}").is_err()
        );
    }
}
