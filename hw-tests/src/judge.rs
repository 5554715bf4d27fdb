//! Judges a run.
//!
//! A run passes if the kernel has reported exactly the expected cases, each once and as passed,
//! between a beginning and an end that agree with them, in the paging mode that was asked for, and
//! has then ended by itself. Everything else is a failure with a name: silence is never a pass.

use std::collections::BTreeMap;

use hw_protocol::{CaseVerdict, FATAL, PANIC, ReportLine};
use switcher_gen::arch::PagingMode;

use switcher_gen::{Image, Policy, Variant};
use switcher_listing::{Line, Listing, ListingOptions};

use crate::run::{EngineRun, RunEnd};

/// A case that an engine cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHere {
    /// The case.
    pub case: &'static str,
    /// What the engine lacks.
    pub why: &'static str,
    /// Whether it lacks that on every machine. If it depends on the machine, the case may be run
    /// after all.
    pub always: bool,
}

/// What the report of a run must contain.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The paging mode that was asked for.
    pub paging: PagingMode,
    /// The policy of the switchers that was asked for.
    pub policy: Policy,
    /// The names of all cases.
    pub cases: &'a [&'a str],
    /// How many switchers are to be assembled, all of one variant.
    pub switchers: usize,
    /// The cases that the engine cannot run.
    pub not_here: &'a [NotHere],
}

/// One reason why a run has not passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The kernel died, with these last words.
    #[error("the kernel died: {0}")]
    Died(String),
    /// The emulator did not end because the kernel asked it to.
    #[error("{0}")]
    Ended(String),
    /// A line that is marked as a report and cannot be read.
    #[error("malformed line: {0}")]
    Malformed(String),
    /// A report line at a place where no line of its kind belongs.
    #[error("out of place: {0}")]
    OutOfPlace(String),
    /// The run never began.
    #[error("no begin line")]
    NoBegin,
    /// The run never came to its end.
    #[error("no end line")]
    NoEnd,
    /// The kernel uses another paging mode than was asked for.
    #[error("the kernel uses {got} paging, not {asked}")]
    Paging {
        /// The paging mode that was asked for.
        asked: &'static str,
        /// The paging mode in the begin line.
        got: String,
    },
    /// The begin line announced another number of cases than there are expected ones.
    #[error("{announced} cases announced, {expected} expected")]
    Announced {
        /// The number in the begin line.
        announced: u64,
        /// The number of cases that are expected.
        expected: u64,
    },
    /// The switcher that was assembled in the run is not the one that is assembled, listed and
    /// reviewed here.
    #[error("switcher {0}")]
    Switcher(String),
    /// The end line does not agree with the case lines.
    #[error("the end line counts {0}, the case lines {1} (passed + failed)")]
    Totals(String, String),
    /// An expected case was not reported.
    #[error("{0}: not reported")]
    Missing(String),
    /// A case was reported that nobody expects.
    #[error("{0}: not in the case list")]
    Extra(String),
    /// A case was reported more than once.
    #[error("{0}: reported more than once")]
    Duplicate(String),
    /// An engine could not run a case, and the case is not listed as impossible there.
    #[error("{name}: not run, and not known to be impossible there: {detail}")]
    NotRun {
        /// The case.
        name: String,
        /// What the engine says about it.
        detail: String,
    },
    /// A case was run although it is listed as impossible.
    #[error("{0}: listed as impossible on this engine, but it was run")]
    Possible(String),
    /// A case did not pass.
    #[error("{name}: {detail}")]
    Failed {
        /// The case.
        name: String,
        /// What the kernel says about it.
        detail: String,
    },
}

/// The verdict on a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Judgement {
    /// The number of expected cases that were reported once, as passed.
    pub passed: u64,
    /// How often those cases were run, in total.
    pub runs: u64,
    /// Expected cases that this engine cannot run: their names, and the reasons. They have neither
    /// passed nor failed.
    pub not_here: Vec<(String, String)>,
    /// The names of passed cases that report a detail, and the detail.
    pub notes: Vec<(String, String)>,
    /// Everything that is wrong. The run has passed if this is empty.
    pub failures: Vec<Failure>,
    /// CPU vendor, brand and PCID, for the summary; empty if the kernel did not say.
    pub machine: String,
}

/// The part of the report to which a line belongs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LinePlace {
    Before,
    Between,
    After,
}

/// What was reported about one case.
#[derive(Default)]
struct Reported {
    times: u32,
    runs: u64,
    failed: bool,
    not_here: bool,
}

/// Judges a run.
#[must_use]
pub fn judge(run: &EngineRun, expected: &Expected<'_>) -> Judgement {
    let mut judgement = Judgement::default();
    let failures = &mut judgement.failures;
    let mut place = LinePlace::Before;
    let mut brand = String::new();
    let mut switchers = 0;
    let mut loaded: Vec<(Image, u64)> = Vec::new();
    let mut reported: BTreeMap<String, Reported> = BTreeMap::new();
    let (mut passed, mut failed) = (0, 0);

    for line in run.log.lines() {
        let event = match ReportLine::parse(line) {
            Ok(Some(event)) => event,
            Ok(None) => {
                if let Some(last_words) = died(line) {
                    let place = loaded.iter().find_map(|(image, base)| {
                        instruction_at(image, last_words.split("rip ").nth(1)?, *base)
                    });
                    let place = place.map_or(String::new(), |place| format!("; {place}"));
                    failures.push(Failure::Died(format!("{last_words}{place}")));
                }
                continue;
            }
            Err(why) => {
                failures.push(Failure::Malformed(format!("{} ({why})", line.trim())));
                continue;
            }
        };
        match (event, place) {
            (ReportLine::Machine { brand: name, .. }, LinePlace::Before) => {
                brand = name.into_owned()
            }
            (ReportLine::Begin { vendor, paging, pcid, cases }, LinePlace::Before) => {
                place = LinePlace::Between;
                let pcid = if pcid { ", PCID" } else { "" };
                judgement.machine = format!("{vendor}, {brand}{pcid}");
                if paging != expected.paging.name() {
                    let asked = expected.paging.name();
                    failures.push(Failure::Paging { asked, got: paging.into_owned() });
                }
                let count = expected.cases.len() as u64;
                if cases != count {
                    failures.push(Failure::Announced { announced: cases, expected: count });
                }
            }
            (ReportLine::Switcher { variant, fingerprint, base }, LinePlace::Between) => {
                switchers += 1;
                if switchers == 1 {
                    judgement.machine = format!("{variant} on {}", judgement.machine);
                }
                match same_switcher(&variant, &fingerprint, expected.policy) {
                    Ok(image) => match loaded
                        .iter()
                        .find(|(other, at)| *at == base || other.variant() != image.variant())
                    {
                        Some((other, at)) => failures.push(Failure::Switcher(format!(
                            "{variant} at {base:#x} does not go with {} at {at:#x}",
                            other.variant()
                        ))),
                        None => loaded.push((image, base)),
                    },
                    Err(why) => failures.push(Failure::Switcher(why)),
                }
            }
            (ReportLine::Case { name, verdict, runs, detail }, LinePlace::Between) => {
                let name = name.into_owned();
                let case = reported.entry(name.clone()).or_default();
                case.times += 1;
                case.runs += runs;
                if case.times == 2 {
                    failures.push(Failure::Duplicate(name.clone()));
                }
                if case.times == 1 && !expected.cases.contains(&name.as_str()) {
                    failures.push(Failure::Extra(name.clone()));
                }
                let impossible = expected.not_here.iter().find(|listed| listed.case == name);
                if impossible.is_some_and(|listed| listed.always) && verdict != CaseVerdict::NotHere
                {
                    failures.push(Failure::Possible(name.clone()));
                }
                match verdict {
                    CaseVerdict::Pass => {
                        passed += 1;
                        if !detail.is_empty() {
                            judgement.notes.push((name, detail.into_owned()));
                        }
                    }
                    CaseVerdict::NotHere => {
                        case.not_here = true;
                        match impossible {
                            Some(listed) => judgement.not_here.push((name, listed.why.into())),
                            None => {
                                failures.push(Failure::NotRun { name, detail: detail.into_owned() })
                            }
                        }
                    }
                    CaseVerdict::Fail => {
                        failed += 1;
                        case.failed = true;
                        failures.push(Failure::Failed { name, detail: detail.into_owned() });
                    }
                }
            }
            (ReportLine::End { passed: said_passed, failed: said_failed }, LinePlace::Between) => {
                place = LinePlace::After;
                if (said_passed, said_failed) != (passed, failed) {
                    failures.push(Failure::Totals(
                        format!("{said_passed} + {said_failed}"),
                        format!("{passed} + {failed}"),
                    ));
                }
            }
            (_, _) => failures.push(Failure::OutOfPlace(line.trim().into())),
        }
    }

    match place {
        LinePlace::Before => failures.push(Failure::NoBegin),
        LinePlace::Between => failures.push(Failure::NoEnd),
        LinePlace::After => {}
    }
    if switchers != expected.switchers {
        let why = format!("reported {switchers} times, not {}", expected.switchers);
        failures.push(Failure::Switcher(why));
    }
    if let RunEnd::Otherwise(why) = &run.end {
        failures.push(Failure::Ended(why.clone()));
    }
    for name in expected.cases {
        match reported.get(*name) {
            None => failures.push(Failure::Missing((*name).into())),
            Some(Reported { times: 1, runs, failed: false, not_here: false }) => {
                judgement.passed += 1;
                judgement.runs += runs;
            }
            Some(_) => {}
        }
    }
    judgement
}

/// Checks that the code assembled inside the kernel is, to the byte, what this program assembles
/// for the same variant, so that what was run is what the snapshots show; and that the policy is
/// the one that was asked for.
fn same_switcher(variant: &str, fingerprint: &str, policy: Policy) -> Result<Image, String> {
    let known: Variant = variant.parse().map_err(|why| format!("{why}"))?;
    if known.policy() != policy {
        return Err(format!("{variant} has not the policy that was asked for, `{policy}`"));
    }
    let image = Image::new(&known).map_err(|why| format!("{variant}: {why}"))?;
    let here = image.fingerprint().to_string();
    if here == fingerprint {
        return Ok(image);
    }
    Err(format!("{variant} has fingerprint {fingerprint} there and {here} here"))
}

/// The instruction of the switcher at the address with which `text` begins, with the line that has
/// emitted it.
fn instruction_at(image: &Image, text: &str, base: u64) -> Option<String> {
    let digits = text.strip_prefix("0x")?.split(|c: char| !c.is_ascii_hexdigit()).next()?;
    let rip = u64::from_str_radix(digits, 16).ok()?;
    let base = image.variant().paging().address(base).ok()?;
    let options = ListingOptions { base: Some(base), source: true };
    let listing = Listing::new(image, &options).ok()?;
    let mut routine = "";
    for line in &listing.lines {
        match line {
            Line::Label { name } => routine = name,
            Line::Instruction(instruction) if instruction.address == rip => {
                let source = instruction.source.as_ref()?;
                let text = format!("{} {}", instruction.mnemonic, instruction.operands.join(", "));
                let text = text.trim_end();
                return Some(format!(
                    "that is `{text}` in {routine}, {}:{}",
                    source.file, source.line
                ));
            }
            _ => {}
        }
    }
    None
}

/// The kernel's last words, if this line has them. GRUB may have left something before them.
fn died(line: &str) -> Option<&str> {
    [PANIC, FATAL].iter().find_map(|mark| line.find(mark).map(|at| line[at..].trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use switcher_gen::asm::Label;

    const BEGIN: &str =
        r#"@@ {"event":"begin","vendor":"AuthenticAMD","paging":"4level","pcid":false,"cases":2}"#;
    const A: &str = r#"@@ {"event":"case","name":"a","verdict":"pass","runs":10,"detail":""}"#;
    const B: &str = r#"@@ {"event":"case","name":"b","verdict":"pass","runs":5,"detail":""}"#;
    const END: &str = r#"@@ {"event":"end","passed":2,"failed":0}"#;

    const EXPECTED: Expected<'static> = Expected {
        paging: PagingMode::FourLevel,
        policy: Policy::DEFAULT,
        cases: &["a", "b"],
        switchers: 0,
        not_here: &[],
    };

    fn judge_run(lines: &[&str], end: RunEnd) -> Judgement {
        let run = EngineRun {
            log: lines.join("\n"),
            emulator: String::new(),
            end,
            took: Duration::from_secs(1),
        };
        judge(&run, &EXPECTED)
    }

    fn failures(lines: &[&str]) -> Vec<Failure> {
        judge_run(lines, RunEnd::ByItself).failures
    }

    #[test]
    fn a_complete_report_passes_whatever_noise_is_around_it() {
        let machine = r#"@@ {"event":"machine","brand":"X","features":["nx"],"memory":1}"#;
        let log = ["SeaBIOS", "", machine, BEGIN, "hello", A, B, END, "bye"];
        let judgement = judge_run(&log, RunEnd::ByItself);
        assert_eq!(
            judgement,
            Judgement {
                passed: 2,
                runs: 15,
                not_here: vec![],
                notes: vec![],
                failures: vec![],
                machine: "AuthenticAMD, X".into()
            }
        );
    }

    #[test]
    fn what_a_passed_case_has_to_say_is_kept() {
        let a = A.replace(r#""detail":"""#, r#""detail":"one known to differ""#);
        let run = EngineRun {
            log: [BEGIN, &a, B, END].join("\n"),
            emulator: String::new(),
            end: RunEnd::ByItself,
            took: Duration::ZERO,
        };
        assert_eq!(judge(&run, &EXPECTED).notes, [("a".into(), "one known to differ".into())]);
    }

    /// A line of a report about a switcher.
    fn switcher(variant: &str, fingerprint: &str, base: u64) -> String {
        format!(
            r#"@@ {{"event":"switcher","variant":"{variant}","fingerprint":"{fingerprint}","base":{base}}}"#
        )
    }

    /// The failures of a run with these lines.
    fn judge_switchers(lines: &[String], expected: &Expected<'_>) -> Vec<Failure> {
        let log = [BEGIN, &lines.join("\n"), A, B, END].join("\n");
        let run =
            EngineRun { log, emulator: String::new(), end: RunEnd::ByItself, took: Duration::ZERO };
        judge(&run, expected).failures
    }

    fn fingerprint(variant: &str) -> String {
        Image::new(&variant.parse().unwrap()).unwrap().fingerprint().to_string()
    }

    #[test]
    fn a_switcher_is_compared_with_the_one_assembled_here() {
        let expected = Expected { switchers: 1, ..EXPECTED };
        let judged = |fingerprint: &str| {
            judge_switchers(&[switcher("amd-la57", fingerprint, 4096)], &expected)
        };
        assert_eq!(judged(&fingerprint("amd-la57")), []);
        let failures = judged("00ff");
        assert!(
            matches!(&failures[..], [Failure::Switcher(why)] if why.contains("00ff there")),
            "{failures:?}"
        );
    }

    #[test]
    fn each_cpus_own_switcher_is_there_and_of_the_policy_that_was_asked_for() {
        let (name, other) = ("amd-la57-percpu", "amd-4level-percpu");
        let policy = name.parse::<Variant>().unwrap().policy();
        let expected = Expected { switchers: 2, policy, ..EXPECTED };
        let lines = |two: [(&str, u64); 2]| two.map(|(it, at)| switcher(it, &fingerprint(it), at));
        let judged = |two| judge_switchers(&lines(two), &expected);
        assert_eq!(judged([(name, 0x1000), (name, 0x9000)]), []);
        let default = judge_switchers(
            &lines([(name, 0x1000), (name, 0x9000)]),
            &Expected { policy: Policy::DEFAULT, ..expected },
        );
        for (failures, why) in [
            (judged([(name, 0x1000), (name, 0x1000)]), "does not go with"),
            (judged([(name, 0x1000), (other, 0x9000)]), "does not go with"),
            (default, "has not the policy"),
            (judge_switchers(&lines([(name, 0x1000); 2])[..1], &expected), "1 times, not 2"),
        ] {
            let named = |it: &Failure| matches!(it, Failure::Switcher(text) if text.contains(why));
            assert!(!failures.is_empty() && failures.iter().all(named), "{why}: {failures:?}");
        }
    }

    #[test]
    fn a_death_inside_the_switcher_names_the_instruction() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let rip = 0x1000 + u64::from(image.offset(Label::SysretqUnsafeStack));
        let switcher = switcher("intel-4level", &image.fingerprint().to_string(), 4096);
        let death = format!("fatal: vector 8 error 0x0 rip {rip:#x} cs 0x10");
        let failures = failures(&[BEGIN, &switcher, &death]);
        let named = |failure: &Failure| {
            matches!(failure, Failure::Died(why) if why.contains(
                "`sysretq` in entry_SYSRETQ_switcher_unsafe_stack, emit/syscall_64.rs:"
            ))
        };
        assert!(failures.iter().any(named), "{failures:?}");
    }

    #[test]
    fn a_switcher_that_is_not_reported_is_a_failure() {
        let expected = Expected { switchers: 1, ..EXPECTED };
        let reported = Failure::Switcher("reported 0 times, not 1".into());
        assert_eq!(judge_switchers(&[], &expected), [reported]);
    }

    #[test]
    fn a_hang_is_a_failure_although_every_line_is_there() {
        let end = RunEnd::Otherwise("the kernel hangs".into());
        let judgement = judge_run(&[BEGIN, A, B, END], end);
        assert_eq!(judgement.failures, [Failure::Ended("the kernel hangs".into())]);
    }

    #[test]
    fn a_triple_fault_leaves_no_end_and_missing_cases() {
        let judgement = judge_run(&[BEGIN, A], RunEnd::Otherwise("reset".into()));
        assert_eq!(
            judgement.failures,
            [Failure::NoEnd, Failure::Ended("reset".into()), Failure::Missing("b".into())]
        );
        assert_eq!(judgement.passed, 1);
    }

    #[test]
    fn silence_is_a_failure_for_every_case() {
        assert_eq!(
            failures(&[]),
            [Failure::NoBegin, Failure::Missing("a".into()), Failure::Missing("b".into())]
        );
    }

    #[test]
    fn a_missing_case_is_named() {
        let end = r#"@@ {"event":"end","passed":1,"failed":0}"#;
        assert_eq!(failures(&[BEGIN, A, end]), [Failure::Missing("b".into())]);
    }

    #[test]
    fn an_extra_case_is_named() {
        let c = r#"@@ {"event":"case","name":"c","verdict":"pass","runs":1,"detail":""}"#;
        let end = r#"@@ {"event":"end","passed":3,"failed":0}"#;
        assert_eq!(failures(&[BEGIN, A, B, c, end]), [Failure::Extra("c".into())]);
    }

    #[test]
    fn a_duplicate_does_not_count_as_passed() {
        let end = r#"@@ {"event":"end","passed":4,"failed":0}"#;
        let judgement = judge_run(&[BEGIN, A, B, B, B, end], RunEnd::ByItself);
        assert_eq!(judgement.failures, [Failure::Duplicate("b".into())]);
        assert_eq!(judgement.passed, 1);
    }

    #[test]
    fn a_failed_case_comes_with_its_detail() {
        let b = r#"@@ {"event":"case","name":"b","verdict":"fail","runs":5,"detail":"rcx 1"}"#;
        let end = r#"@@ {"event":"end","passed":1,"failed":1}"#;
        let failed = Failure::Failed { name: "b".into(), detail: "rcx 1".into() };
        assert_eq!(failures(&[BEGIN, A, b, end]), [failed]);
    }

    #[test]
    fn a_case_that_cannot_be_run_counts_neither_way_if_that_is_known() {
        let begin = BEGIN.replace("\"cases\":2", "\"cases\":3");
        let judged_if = |always, verdict: &str, passed: u64, name: &str| {
            let c = format!(
                r#"@@ {{"event":"case","name":"{name}","verdict":"{verdict}","runs":1,"detail":"x"}}"#
            );
            let end = format!(r#"@@ {{"event":"end","passed":{passed},"failed":0}}"#);
            let log = [&begin, A, B, &c, &end].join("\n");
            let run = EngineRun {
                log,
                emulator: String::new(),
                end: RunEnd::ByItself,
                took: Duration::ZERO,
            };
            let not_here = &[NotHere { case: "c", why: "because", always }];
            let cases = &["a", "b", name];
            judge(&run, &Expected { cases, not_here, ..EXPECTED })
        };
        let judged = |verdict, passed, name| judged_if(true, verdict, passed, name);
        let judgement = judged("nothere", 2, "c");
        assert_eq!((judgement.passed, judgement.failures), (2, vec![]));
        assert_eq!(judgement.not_here, [("c".into(), "because".into())]);
        assert_eq!(judged("pass", 3, "c").failures, [Failure::Possible("c".into())]);
        // If it depends on the machine, both are right.
        for (verdict, passed) in [("nothere", 2), ("pass", 3)] {
            let judgement = judged_if(false, verdict, passed, "c");
            assert_eq!((judgement.passed, judgement.failures), (passed, vec![]));
        }
        let unknown = Failure::NotRun { name: "d".into(), detail: "x".into() };
        assert_eq!(judged("nothere", 2, "d").failures, [unknown]);
    }

    #[test]
    fn a_malformed_line_is_a_failure_even_if_all_else_is_there() {
        let failures = failures(&[BEGIN, A, B, "@@ {\"event\":\"ca", END]);
        assert!(
            matches!(&failures[..], [Failure::Malformed(line)] if line.contains("\"ca")),
            "{failures:?}"
        );
    }

    #[test]
    fn a_panic_is_a_failure_with_its_message() {
        let panic = "\u{1b}[Hpanic: src/main.rs:1:2: index out of bounds";
        assert_eq!(
            failures(&[BEGIN, A, B, panic, END]),
            [Failure::Died("panic: src/main.rs:1:2: index out of bounds".into())]
        );
        assert_eq!(failures(&["fatal: no LA57"])[0], Failure::Died("fatal: no LA57".into()));
    }

    #[test]
    fn the_words_panic_and_fatal_in_a_case_are_only_words() {
        let b = r#"@@ {"event":"case","name":"b","verdict":"pass","runs":5,"detail":"fatal: x"}"#;
        assert_eq!(failures(&[BEGIN, A, b, END]), []);
    }

    #[test]
    fn an_end_that_miscounts_is_a_failure() {
        let end = r#"@@ {"event":"end","passed":3,"failed":0}"#;
        assert_eq!(
            failures(&[BEGIN, A, B, end]),
            [Failure::Totals("3 + 0".into(), "2 + 0".into())]
        );
    }

    #[test]
    fn another_paging_mode_than_asked_is_a_failure() {
        let begin = BEGIN.replace("4level", "la57");
        assert_eq!(
            failures(&[&begin, A, B, END]),
            [Failure::Paging { asked: "4level", got: "la57".into() }]
        );
    }

    #[test]
    fn another_number_of_cases_than_expected_is_a_failure() {
        let begin = BEGIN.replace("\"cases\":2", "\"cases\":3");
        assert_eq!(
            failures(&[&begin, A, B, END]),
            [Failure::Announced { announced: 3, expected: 2 }]
        );
    }

    #[test]
    fn lines_outside_the_run_are_out_of_place() {
        assert_eq!(
            failures(&[A, BEGIN, A, B, END, END]),
            [Failure::OutOfPlace(A.into()), Failure::OutOfPlace(END.into())]
        );
        let again = failures(&[BEGIN, A, BEGIN, B, END]);
        assert_eq!(again, [Failure::OutOfPlace(BEGIN.into())], "a reboot begins anew");
    }
}
