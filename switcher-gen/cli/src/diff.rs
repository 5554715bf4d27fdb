//! `switcher diff`: where two switchers differ, by their listings.

use clap::ValueEnum;
use serde::Serialize;
use similar::{DiffOp, DiffTag, TextDiff};
use switcher_gen::Variant;
use switcher_listing::{Listing, ListingOptions};

use crate::foreign::ForeignArgs;
use crate::names;
use crate::outline;
use crate::output::{self, Failure, conclude};
use crate::subject::Subject;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  switcher diff intel-4level amd-4level
  switcher diff intel-4level intel-4level-percpu --side-by-side
  switcher diff intel-4level intel-4level+rsb --format json
  switcher diff intel-4level --elf theirs.o --gs-tss 0x6000 --gs-tss-extra 0x6080

Two variants are compared by their listings: instructions with the names of their fields, labels,
windows, comments. With a file, both sides are listed as anybody's code is: entry point by entry
point, in one order, what is executed from there, with the names of the fields that GS reaches and
of the routines that are called; other jumps are shown with how many instructions they skip.
Addresses, encodings and what fills gaps do not count, on either side.

JSON is one object: `verdict`: \"equal\" or \"different\"; `a` and `b`, objects: `name`, `size` in
bytes, `fingerprint`, null for code that is not ours; `not_compared`, an array of texts: what only
one of them has a symbol for; `removed` and `added`, how many lines; `hunks`, an array of objects:
`under`, the label that the hunk is under; `lines`, an array of objects: `change`: \"same\", \"removed\"
or \"added\"; `text`. Fields may be added.

Exit codes:
  0  nothing differs
  1  something differs, or it could not be done
  2  a wrong command line, or an input that is not what it should be")]
pub(crate) struct Args {
    /// One variant; with `--elf`, also the host that the file is meant for
    #[arg(value_name = "A", value_parser = names::variant)]
    variant: Variant,
    /// Another one
    #[arg(value_name = "B", value_parser = names::variant, required_unless_present = "elf", conflicts_with = "elf")]
    other: Option<Variant>,
    #[command(flatten)]
    foreign: ForeignArgs,
    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Unified)]
    format: Format,
    /// In two columns: the same as `--format side-by-side`
    #[arg(short = 'y', long, conflicts_with = "format")]
    side_by_side: bool,
    /// How many lines around a difference are shown
    #[arg(short = 'U', long, value_name = "N", default_value_t = 3)]
    context: usize,
    /// How wide two columns are, together [default: 160]
    #[arg(long, value_name = "COLUMNS", value_parser = clap::value_parser!(u16).range(1..=1000))]
    width: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Lines of both, one below the other
    Unified,
    /// Lines of both, one beside the other
    SideBySide,
    /// An object, for programs
    Json,
}

/// One of the two.
#[derive(Serialize)]
struct Side {
    name: String,
    /// In bytes.
    size: usize,
    fingerprint: Option<String>,
    #[serde(skip)]
    listing: String,
}

/// What the comparison comes to.
#[derive(Serialize)]
struct Report<'a> {
    verdict: &'static str,
    a: &'a Side,
    b: &'a Side,
    not_compared: &'a [String],
    removed: usize,
    added: usize,
    hunks: Vec<Hunk<'a>>,
}

/// Lines that differ, with those around them.
#[derive(Serialize)]
struct Hunk<'a> {
    under: &'a str,
    lines: Vec<Line<'a>>,
    /// Which lines of `lines` face each other, in columns.
    #[serde(skip)]
    facing: Vec<(Option<usize>, Option<usize>)>,
}

#[derive(Serialize)]
struct Line<'a> {
    change: Change,
    text: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Same,
    Removed,
    Added,
}

impl Change {
    const fn sign(self) -> char {
        match self {
            Self::Same => ' ',
            Self::Removed => '-',
            Self::Added => '+',
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let format = if args.side_by_side { Format::SideBySide } else { args.format };
    if args.width.is_some() && format != Format::SideBySide {
        let message = "`--width` is about two columns: they are written with `--side-by-side`";
        return Err(Failure::Usage(message.into()));
    }
    let a = Subject::of_variant(&args.variant)?;
    let (a, b, not_compared) = match (args.other, args.foreign.subject(&args.variant)?) {
        (Some(_), _) if args.foreign.is_used() => {
            let message = "options about a file need `--elf`, which takes the place of B";
            return Err(Failure::Usage(message.into()));
        }
        (Some(other), _) => {
            let b = Subject::of_variant(&other)?;
            let texts = [listing(&a)?, listing(&b)?];
            let [a, b] = sides([a, b], texts);
            (a, b, Vec::new())
        }
        (None, Some(b)) => {
            let outline::Outlines { texts, not_compared } = outline::of(&a.target, &b.target);
            let [a, b] = sides([a, b], texts);
            (a, b, not_compared)
        }
        (None, None) => return Err(Failure::Usage("name a second variant, or a file".into())),
    };
    let report = Report::new(&a, &b, &not_compared, args.context);
    let text = match format {
        Format::Unified => report.unified(),
        Format::SideBySide => report.side_by_side(args.width.unwrap_or(160).into()),
        Format::Json => output::json(&report)?,
    };
    let verdict = if report.is_equal() { Ok(()) } else { Err(Failure::Different) };
    conclude(text, verdict)
}

fn sides(subjects: [Subject; 2], texts: [String; 2]) -> [Side; 2] {
    let [one, other] = subjects;
    let [first, second] = texts;
    let side = |subject: Subject, listing| Side {
        name: subject.name,
        size: subject.target.program.pieces().map(|(_, bytes)| bytes.len()).sum(),
        fingerprint: subject.image.map(|image| image.fingerprint().to_string()),
        listing,
    };
    [side(one, first), side(other, second)]
}

/// The listing of one of our own, without what every other variant has elsewhere.
fn listing(subject: &Subject) -> Result<String, Failure> {
    let Some(image) = &subject.image else { return Ok(String::new()) };
    Listing::new(image, &ListingOptions::default())
        .map(|listing| listing.outline())
        .map_err(|error| Failure::failed(format!("cannot list {}", subject.name), error))
}

impl<'a> Report<'a> {
    fn new(a: &'a Side, b: &'a Side, not_compared: &'a [String], context: usize) -> Self {
        let diff = TextDiff::from_lines(&*a.listing, &*b.listing);
        let lines: Vec<&str> = a.listing.lines().collect();
        let groups = diff.grouped_ops(context);
        let hunks: Vec<_> = groups.iter().map(|ops| Hunk::new(a, b, &lines, ops)).collect();
        let count = |change| {
            let all = hunks.iter().flat_map(|hunk| &hunk.lines);
            all.filter(|line| line.change == change).count()
        };
        let (removed, added) = (count(Change::Removed), count(Change::Added));
        let verdict = if removed + added == 0 { "equal" } else { "different" };
        Self { verdict, a, b, not_compared, removed, added, hunks }
    }

    const fn is_equal(&self) -> bool {
        self.removed + self.added == 0
    }

    /// What stands below both names.
    fn summary(&self) -> String {
        let mut text = String::new();
        for what in self.not_compared {
            text += &format!("not compared: {what}\n");
        }
        if self.is_equal() {
            text += "\nno instruction differs\n";
        }
        text
    }

    fn unified(&self) -> String {
        let (a, b) = (self.a, self.b);
        let mut text =
            format!("--- {}  {} bytes\n+++ {}  {} bytes\n", a.name, a.size, b.name, b.size);
        text += &self.summary();
        for hunk in &self.hunks {
            text += &format!("\n@@ {}\n", hunk.under);
            for Line { change, text: line } in &hunk.lines {
                text += format!("{}{line}", change.sign()).trim_end();
                text.push('\n');
            }
        }
        text
    }

    fn side_by_side(&self, width: usize) -> String {
        /// What stands between the columns.
        const BETWEEN: usize = 3;
        let column = (width.saturating_sub(BETWEEN) / 2).max(20);
        let row = |left: &str, sign: char, right: &str| {
            let row = format!("{:<column$} {sign} {}", cut(left, column), cut(right, column));
            row.trim_end().to_owned() + "\n"
        };
        let heading = |side: &Side| format!("{}  {} bytes", side.name, side.size);
        let mut text = row(&heading(self.a), ' ', &heading(self.b));
        text += &self.summary();
        for hunk in &self.hunks {
            text += &format!("\n@@ {}\n", hunk.under);
            for facing in &hunk.facing {
                let of = |index: Option<usize>| index.map(|index| &hunk.lines[index]);
                text += &match (of(facing.0), of(facing.1)) {
                    (Some(left), Some(right)) if left.change == Change::Same => {
                        row(left.text, ' ', right.text)
                    }
                    (Some(left), Some(right)) => row(left.text, '|', right.text),
                    (Some(left), None) => row(left.text, '<', ""),
                    (None, Some(right)) => row("", '>', right.text),
                    (None, None) => String::new(),
                };
            }
        }
        text
    }
}

impl<'a> Hunk<'a> {
    fn new(a: &'a Side, b: &'a Side, lines: &[&'a str], ops: &[DiffOp]) -> Self {
        let first = ops.first().map_or(0, |op| op.old_range().start);
        let is_heading = |line: &&&str| line.ends_with(':') || line.starts_with("; ----");
        // A change elsewhere moves line numbers, and not the label that a hunk is under.
        let under = lines[..first].iter().rfind(is_heading).copied().unwrap_or("start");
        let (old, new): (Vec<_>, Vec<_>) =
            (a.listing.lines().collect(), b.listing.lines().collect());
        let mut hunk = Self { under, lines: Vec::new(), facing: Vec::new() };
        for op in ops {
            let mut add = |change, texts: &[&'a str]| {
                let from = hunk.lines.len();
                hunk.lines.extend(texts.iter().map(|text| Line { change, text }));
                from..hunk.lines.len()
            };
            let (before, after) = (&old[op.old_range()], &new[op.new_range()]);
            if op.tag() == DiffTag::Equal {
                let same = add(Change::Same, before);
                hunk.facing.extend(same.map(|at| (Some(at), Some(at))));
                continue;
            }
            let mut removed = add(Change::Removed, before);
            let mut added = add(Change::Added, after);
            while !(removed.is_empty() && added.is_empty()) {
                hunk.facing.push((removed.next(), added.next()));
            }
        }
        hunk
    }
}

/// At most so many characters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most - 1).chain(['~']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(listing: &str) -> Side {
        Side { name: "name".into(), size: 1, fingerprint: None, listing: listing.into() }
    }

    #[test]
    fn columns_face_what_takes_each_others_place() {
        let (a, b) =
            (side("f:\n same\n one\n two\n end\n"), side("f:\n same\n three\n end\n new\n"));
        let report = Report::new(&a, &b, &[], 1);
        assert_eq!((report.removed, report.added, report.verdict), (2, 2, "different"));
        let text = report.side_by_side(60);
        let rows: Vec<_> = text.lines().collect();
        assert!(rows.contains(&"@@ f:"), "{text}");
        let has = |left: &str, sign: char, right: &str| {
            rows.contains(&format!("{left:<28} {sign} {right}").trim_end())
        };
        assert!(has(" same", ' ', " same") && has(" one", '|', " three"), "{text}");
        assert!(has(" two", '<', "") && has("", '>', " new"), "{text}");
        // Nothing is wider than it was asked to be.
        assert_eq!(cut("0123456789", 5), "0123~");
        assert_eq!(cut("01234", 5), "01234");
    }

    #[test]
    fn what_is_equal_is_said_to_be() {
        let (a, b) = (side("f:\n one\n"), side("f:\n one\n"));
        let only_one_has = ["what only one has".to_owned()];
        let report = Report::new(&a, &b, &only_one_has, 3);
        assert!(report.is_equal() && report.hunks.is_empty());
        for text in [report.unified(), report.side_by_side(80)] {
            assert!(text.contains("no instruction differs"), "{text}");
            assert!(text.contains("not compared: what only one has"), "{text}");
        }
    }
}
