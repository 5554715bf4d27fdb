//! `switcher explain`: what an instruction is for. It is taken away, and whoever objects is asked
//! why.

use serde::Serialize;
use switcher_gen::Hazard;
use switcher_prove::mutate;
use switcher_prove::{Obligation, Prover, Target};

use crate::emit::number;
use crate::output::{Failure, Format, conclude, json};
use crate::subject::Subject;
use crate::target::TargetArgs;

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher explain MODE_TOGGLE
  switcher explain emit/enter_guest.rs:56
  switcher explain 0x16b --variant intel-4level
  switcher explain wrgsbase --variant amd-4level --format json

An instruction is named by the emitter's file and line, by its offset in the image, or by a part of its
text, as a listing has them (`switcher emit`). For each that is meant: where it is written, which text
specifies what it is for, and which obligations the code breaks without it, with their hazards. The
cases that try a hazard on a CPU are in hw-tests/COVERAGE.md, by its row.

JSON is an array of objects, one for each instruction: `offset`; `text`; `source`, the emitter's file
and line, or null; `specified`, an object of `code`, a file in switcher-gen/spec/src, and `section`, one of
spec/switcher.md, or null; `without`, an array of objects: `obligation`, `statement`, `hazards`, an array of
objects, `row` of spec/hazards.md and its `title`, and `theorems`, an array; `refused`, why there is no telling
what the code does without it, an array. Fields may be added.

", exit_codes!()))]
pub(crate) struct Args {
    /// Which instruction: file and line, offset, or a part of its text
    #[arg(value_name = "PLACE")]
    place: String,
    #[command(flatten)]
    target: TargetArgs,
    /// How to write the report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// What specifies a routine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Specified {
    /// A file of switcher-gen/spec/src, if one has it.
    code: Option<&'static str>,
    /// A section of spec/switcher.md.
    section: &'static str,
}

/// The emitters, with what specifies the routine that each one writes.
const EMITTERS: &[(&str, Option<&str>, &str)] = &[
    ("enter_guest", Some("enter_guest.rs"), "Enter guest and common exit"),
    ("event", Some("event.rs"), "Events from the guest"),
    ("event_ist", Some("event.rs"), "Events from the guest"),
    ("event_return", Some("event.rs"), "Events from the guest"),
    ("hand_on", Some("hand_on.rs"), "Handing events on"),
    ("event_stubs", Some("event.rs"), "Events from the guest"),
    ("mitigations", None, "Mitigations"),
    ("mod", None, "Mitigations"),
    ("pkru", None, "Protection keys"),
    ("pt_regs", Some("return_from_guest.rs"), "Enter guest and common exit"),
    ("return_from_guest", Some("return_from_guest.rs"), "Enter guest and common exit"),
    ("return_to_guest", Some("return_to_guest.rs"), "Return to the guest"),
    ("syscall_64", Some("syscall_64.rs"), "SYSCALL entry"),
    ("syscall_compat", Some("syscall_compat.rs"), "32-bit SYSCALL"),
    ("to_smod", Some("to_smod.rs"), "SYSCALL entry"),
    ("to_umod", Some("to_umod.rs"), "SYSCALL entry"),
];

/// What specifies the code that an emitter's file writes: `emit/to_smod.rs:40`.
fn specified(source: &str) -> Option<Specified> {
    let file = source.split(':').next()?.rsplit('/').next()?.strip_suffix(".rs")?;
    let (_, code, section) = EMITTERS.iter().find(|(name, ..)| *name == file)?;
    Some(Specified { code: *code, section })
}

/// An instruction, and what is known of its purpose.
#[derive(Serialize)]
struct Explained {
    offset: String,
    text: String,
    source: Option<String>,
    specified: Option<Specified>,
    without: Vec<Broken>,
    refused: Vec<String>,
}

/// An obligation that is broken without it.
#[derive(Serialize)]
struct Broken {
    obligation: &'static str,
    statement: &'static str,
    hazards: &'static [Hazard],
    theorems: Vec<String>,
}

/// So many instructions are explained at once.
const MOST: usize = 8;

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let subject = args.target.subject()?;
    let places = places(&subject, &args.place);
    if places.is_empty() {
        return Err(Failure::Usage(format!(
            "{} has no instruction `{}`: give what a listing of `switcher emit` has, such as 0x7e, \
             emit/to_smod.rs:40 or wrgsbase",
            subject.name, args.place
        )));
    }
    if places.len() > MOST {
        return Err(Failure::Usage(format!(
            "{} has {} instructions `{}`: name one by its offset or by file and line",
            subject.name,
            places.len(),
            args.place
        )));
    }
    let explained =
        places.into_iter().map(|at| explain(&subject, at)).collect::<Result<Vec<_>, _>>()?;
    let report = match args.format {
        Format::Text => explained.iter().map(Explained::text).collect(),
        Format::Json => json(&explained)?,
    };
    conclude(report, Ok(()))
}

/// The addresses of the instructions that are meant.
fn places(subject: &Subject, place: &str) -> Vec<u64> {
    let Subject { target, .. } = subject;
    let texts = subject.texts();
    let base = target.program.base();
    let offset = number(place).filter(|_| place.starts_with("0x"));
    let is_meant = |at: u64| match offset {
        Some(offset) => at.wrapping_sub(base) == offset,
        None => texts.annotated(at).is_some_and(|text| {
            // A line is meant as a whole: `:4` is not the beginning of `:40`.
            match place.split_once(".rs:") {
                Some(_) => text.split_whitespace().any(|word| word.ends_with(place)),
                None => text.contains(place),
            }
        }),
    };
    let mut all: Vec<_> = mutate::deletions(target).iter().map(|without| without.at).collect();
    all.retain(|at| is_meant(*at));
    all
}

fn explain(subject: &Subject, at: u64) -> Result<Explained, Failure> {
    let Subject { target, .. } = subject;
    let texts = subject.texts();
    let source = texts.source(at);
    let mut explained = Explained {
        offset: format!("{:#x}", at.wrapping_sub(target.program.base())),
        text: texts.annotated(at).or_else(|| target.program.text(at)).unwrap_or_default(),
        specified: source.as_deref().and_then(specified),
        source,
        without: Vec::new(),
        refused: Vec::new(),
    };
    let without = mutate::deletions(target);
    let without = without.iter().find(|mutant| mutant.at == at).and_then(mutate::Mutant::target);
    let without = without
        .ok_or_else(|| Failure::Failed(format!("there is no code without {}", explained.text)))?;
    explained.ask(&without);
    Ok(explained)
}

impl Explained {
    /// Who objects to the code without it?
    fn ask(&mut self, without: &Target) {
        let findings = match Prover::default().findings(without) {
            Ok(findings) => findings,
            Err(bad) => {
                self.refused.push(bad.to_string());
                return;
            }
        };
        for found in &findings.refuted {
            let Obligation { name, rows, statement, .. } = found.obligation;
            let theorem = found.theorem.to_string();
            match self.without.iter_mut().find(|broken| broken.obligation == name) {
                Some(broken) if broken.theorems.contains(&theorem) => {}
                Some(broken) => broken.theorems.push(theorem),
                None => self.without.push(Broken {
                    obligation: name,
                    statement,
                    hazards: rows,
                    theorems: vec![theorem],
                }),
            }
        }
        self.refused
            .extend(findings.refused.iter().map(|it| format!("{}: {}", it.theorem, it.why)));
    }

    fn text(&self) -> String {
        let mut text = format!("{}  {}\n", self.offset, self.text);
        let mut line = |what: std::fmt::Arguments<'_>| {
            text += &what.to_string();
            text.push('\n');
        };
        if let Some(source) = &self.source {
            line(format_args!("  written in    switcher-gen/src/{source}"));
        }
        if let Some(Specified { code, section }) = self.specified {
            line(format_args!("  specified in  switcher-gen/spec/switcher.md, \"{section}\""));
            if let Some(code) = code {
                line(format_args!("                switcher-gen/spec/src/{code}"));
            }
        }
        for Broken { obligation, statement, hazards, theorems } in &self.without {
            line(format_args!("  without it    `{obligation}` is broken: {statement}"));
            line(format_args!("                (in {})", theorems.join("; ")));
            for hazard in *hazards {
                line(format_args!("                {hazard}"));
            }
        }
        for why in &self.refused {
            line(format_args!("  without it    there is no telling what the code does: {why}"));
        }
        if self.without.is_empty() && self.refused.is_empty() {
            line(format_args!(
                "  without it    all obligations hold: a path is longer, or it is filler"
            ));
        }
        let mut rows: Vec<_> = self.without.iter().flat_map(|it| it.hazards).collect();
        rows.sort();
        rows.dedup();
        if !rows.is_empty() {
            let filters: Vec<_> = rows.iter().map(|row| format!("row_{}_", row.number())).collect();
            let filters = filters.join(" ");
            line(format_args!(
                "  tests         cargo test -p switcher-prove --test mutants -- {filters}"
            ));
            line(format_args!("                the cases of these rows in hw-tests/COVERAGE.md"));
        }
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    use switcher_gen::Variant;

    fn folder(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
    }

    #[test]
    fn every_emitter_is_specified_in_a_file_and_a_section_that_are_there() {
        let text = fs::read_to_string(folder("spec/switcher.md")).unwrap();
        let headings: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .map(|line| line.trim_start_matches('#').trim())
            .collect();
        for (name, code, section) in EMITTERS {
            assert!(folder("src/emit").join(format!("{name}.rs")).exists(), "{name}");
            assert!(code.is_none_or(|code| folder("spec/src").join(code).exists()), "{name}");
            assert!(headings.contains(section), "{section}");
        }
        let emitters = fs::read_dir(folder("src/emit")).unwrap();
        for emitter in emitters {
            let name = emitter.unwrap().file_name().into_string().unwrap();
            assert!(specified(&format!("emit/{name}:1")).is_some(), "{name}");
        }
    }

    #[test]
    fn an_instruction_is_found_by_offset_line_and_text() {
        let subject = Subject::of_variant(&Variant::REFERENCE).unwrap();
        let all: Vec<_> = places(&subject, "");
        assert!(all.len() > 200);
        let base = subject.target.program.base();
        let first = all[0];
        assert_eq!(places(&subject, &format!("{:#x}", first - base)), [first]);
        let source = subject.texts().source(all[10]).unwrap();
        let of_line = places(&subject, &source);
        assert!(of_line.contains(&all[10]) && of_line.len() < 20, "{source}: {of_line:?}");
        assert!(!places(&subject, "wrgsbase").is_empty());
        assert!(places(&subject, "0xffffff").is_empty() && places(&subject, "nonsense").is_empty());
    }

    #[test]
    fn what_is_taken_away_is_missed_for_its_reason() {
        let subject = Subject::of_variant(&Variant::REFERENCE).unwrap();
        let at = mutate::deletions(&subject.target)
            .iter()
            .find(|mutant| mutant.original == "sar r11,10h")
            .map(|mutant| mutant.at)
            .unwrap();
        let Ok(explained) = explain(&subject, at) else { panic!("it is not explained") };
        let obligations: Vec<_> = explained.without.iter().map(|it| it.obligation).collect();
        assert!(obligations.contains(&"wrgsbase-canonical"), "{obligations:?}");
        let text = explained.text();
        for part in [
            "emit/to_umod.rs:",
            "mutants -- row_3_ row_5_",
            "\"SYSCALL entry\"",
            "row 5: WRGSBASE faults in ring 0",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
