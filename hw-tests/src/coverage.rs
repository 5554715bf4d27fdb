//! Which hazard is tried on which engine: `hw-tests/COVERAGE.md`, written from the cases' hazards
//! and from the lists of what engines cannot run ([`not_here`]) or cannot show ([`blind`]).
//!
//! `hw-tests/tests/coverage.rs` compares the document with [`document`], and rewrites it on
//! request.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use hw_protocol::HOST_CASES;
use switcher_gen::Hazard;
use switcher_prove::Obligation;
use switcher_runtime::{CPU_STATE, Care};

use crate::engine::{self, Engine, Runs, blind, not_here};
use crate::workspace;

/// A column of the matrix: engines that differ only in paging mode and policy. They are found by
/// the beginning of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// The heading of the column.
    pub title: &'static str,
    /// The beginning of the names of its engines.
    pub beginning: &'static str,
}

/// The columns of the matrix.
pub const COLUMNS: &[Column] = &[
    Column { title: "model", beginning: "machine-" },
    Column { title: "this CPU, CPL 3", beginning: "native" },
    Column { title: "QEMU (TCG)", beginning: "qemu-tcg-" },
    Column { title: "KVM", beginning: "qemu-kvm" },
    Column { title: "Bochs 2.7", beginning: "bochs-" },
    Column { title: "Bochs 3.0", beginning: "bochs3-" },
];

/// A case with its hazards, and whether every engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The name of the case, as reports have it.
    pub name: &'static str,
    /// The hazards that the case tries.
    pub hazards: Vec<Hazard>,
    /// Whether only the kernel has the case.
    pub is_host_case: bool,
}

/// All cases but the kernel's self tests, which try no hazard.
#[must_use]
pub fn cases() -> Vec<Case> {
    let shared = hw_cases::all().into_iter().map(|case| Case {
        name: case.name,
        hazards: case.rows.to_vec(),
        is_host_case: false,
    });
    let of_host = HOST_CASES.iter().map(|case| Case {
        name: case.name,
        hazards: case.rows.to_vec(),
        is_host_case: true,
    });
    shared.chain(of_host).collect()
}

/// Whether a case can fail for this hazard on an engine; if not, the error says why.
fn tries(engine: &dyn Engine, case: &Case, hazard: Hazard) -> Result<(), &'static str> {
    if case.is_host_case && engine.runs() == Runs::Xtask {
        return Err("the kernel's alone");
    }
    if let Some(lacking) = not_here::of(engine).iter().find(|it| it.case == case.name) {
        return Err(lacking.why);
    }
    blind::why(case.name, hazard, engine.name()).map_or(Ok(()), Err)
}

/// The engines of a column.
fn of_column<'e>(engines: &'e [Box<dyn Engine>], column: &Column) -> Vec<&'e dyn Engine> {
    let all = engines.iter().map(AsRef::as_ref);
    all.filter(|engine| engine.name().starts_with(column.beginning)).collect()
}

/// The text of a cell: how many of the cases can fail on at least one of the engines.
fn cell(engines: &[&dyn Engine], cases: &[&Case], hazard: Hazard) -> String {
    let tried = |case: &&&Case| engines.iter().any(|engine| tries(*engine, case, hazard).is_ok());
    match (cases.iter().filter(tried).count(), cases.len()) {
        (_, 0) => String::new(),
        (0, _) => "no".into(),
        (tried, all) if tried == all => format!("{all}"),
        (tried, all) => format!("{tried} of {all}"),
    }
}

/// The file with a case's entry, as a path from the workspace's root.
fn file_of(case: &Case, sources: &BTreeMap<String, String>) -> Result<String> {
    let entry = format!("name: \"{}\"", case.name);
    let mut files = sources.iter().filter(|(_, source)| source.contains(&entry));
    match (files.next(), files.next()) {
        (Some((file, _)), None) => Ok(file.clone()),
        (None, _) => bail!("no file has the case {}", case.name),
        (Some(_), Some(_)) => bail!("several files have the case {}", case.name),
    }
}

/// The sources that have entries of cases.
fn sources() -> Result<BTreeMap<String, String>> {
    let mut sources = BTreeMap::new();
    for folder in ["hw-tests/cases/src/list", "hw-tests/kernel/src/cases"] {
        let path = workspace::root().join(folder);
        for entry in fs::read_dir(&path).with_context(|| format!("reading {folder}"))? {
            let file = entry?.path();
            if file.extension().is_some_and(|it| it == "rs") {
                let name = file.file_name().map(Path::new).context("a file's name")?;
                sources.insert(format!("{folder}/{}", name.display()), fs::read_to_string(&file)?);
            }
        }
    }
    Ok(sources)
}

/// A line of a table.
fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// A list of names, each as code.
fn names<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let quoted: Vec<_> = names.into_iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

const HEAD: &str = "\
# Which hazard is tried on which engine

This page is written from the code: `BLESS=1 cargo test -p hw-tests --test coverage` writes it anew, and the
same test fails while it is out of date. [ENGINES.md](ENGINES.md) says in words what the engines are and how they
differ from CPUs; [hazards.md](../switcher-gen/spec/hazards.md) says what each hazard is. An engine's name ends with the
policy of its switchers, unless that is the default one.

";

const MATRIX: &str = "
## The matrix

A number is how many cases of the hazard can fail on at least one engine of the column: `2 of 3` says that one of
three is not run there, or would pass whatever the switcher did; `no` says that all are. A hazard without a number has no
case, and the table after this one says who sees to it.

";

const SERVED: &str = "
## Who sees to each hazard

Obligations are what `switcher prove` shows of every image (`switcher-gen/prove/src/obligation.rs`); states are entries of
the table of [CPU-STATE.md](../runtime/CPU-STATE.md). A hazard for which there is nothing here is in
[CAVEATS.md](../switcher-gen/CAVEATS.md) with those who see to it.

";

const LACKING: &str = "
## Cases that an engine cannot run

The engine refuses each of them itself, and the run fails if one that is listed could be run after all
(`hw-tests/src/engine/not_here.rs`). The engines in user mode have no host cases.

";

const BLIND: &str = "
## Cases that show nothing of their hazard on an engine

They are run there, for their other hazards, and pass whatever the switcher does about this one (`hw-tests/src/engine/blind.rs`).

";

const FILES: &str = "
## Where the cases are

";

/// Writes the document.
///
/// # Errors
/// If a case has no file, or a hazard that does not exist, or if an engine is in no column, or in
/// two.
pub fn document() -> Result<String> {
    let (engines, cases, sources) = (engine::all(), cases(), sources()?);
    let mut text = HEAD.to_owned();

    text += &row(&["engine", "column", "runs", "paging", "CPUs"].map(String::from));
    text += "|---|---|---|---|---|\n";
    for engine in &engines {
        let mut columns = COLUMNS.iter().filter(|it| engine.name().starts_with(it.beginning));
        let (Some(column), None) = (columns.next(), columns.next()) else {
            bail!("{} is in no column, or in two", engine.name());
        };
        // An engine that runs on this CPU is for this CPU's variant.
        let is_of_this_cpu = column.beginning == "native";
        let paging = if is_of_this_cpu { "this CPU's" } else { engine.paging().name() };
        let (runs, cpus) = match engine.runs() {
            Runs::Kernel => ("all cases, in the kernel", engine.cpus()),
            Runs::Xtask => ("the shared cases", 1),
        };
        text += &row(&[
            format!("`{}`", engine.name()),
            column.title.into(),
            runs.into(),
            paging.into(),
            cpus.to_string(),
        ]);
    }

    text += MATRIX;
    let titles = COLUMNS.iter().map(|column| column.title.to_owned());
    text += &row(&[vec!["hazard".to_owned()], titles.collect()].concat());
    text += &format!("|---|{}\n", "---|".repeat(COLUMNS.len()));
    for hazard in Hazard::ALL {
        let of_hazard: Vec<_> = cases.iter().filter(|case| case.hazards.contains(hazard)).collect();
        let cells =
            COLUMNS.iter().map(|column| cell(&of_column(&engines, column), &of_hazard, *hazard));
        text += &row(&[vec![hazard.to_string()], cells.collect()].concat());
    }

    text += SERVED;
    text += "| hazard | obligations | states | cases |\n|---|---|---|---|\n";
    for hazard in Hazard::ALL {
        let obligations = Obligation::ALL.iter().filter(|it| it.rows.contains(hazard));
        let states = CPU_STATE.iter().filter(|it| it.rows.contains(hazard));
        // A state that is the host's choice does not keep a hazard away.
        let kept = states.filter(|it| it.care.iter().any(|care| !matches!(care, Care::Choice(_))));
        let registers: Vec<_> = kept.map(|it| it.registers).collect();
        let tried = cases.iter().filter(|case| case.hazards.contains(hazard));
        text += &row(&[
            hazard.to_string(),
            names(obligations.map(|it| it.name)),
            registers.join("; "),
            names(tried.map(|case| case.name)),
        ]);
    }

    text += LACKING;
    text += "| case | engines | why |\n|---|---|---|\n";
    let mut lacking: Vec<((&str, String), Vec<&str>)> = Vec::new();
    for engine in &engines {
        for it in not_here::of(engine.as_ref()) {
            let always = if it.always { "" } else { ", as a rule" };
            let key = (it.case, format!("{}{always}", it.why));
            match lacking.iter_mut().find(|(known, _)| *known == key) {
                Some((_, engines)) => engines.push(engine.name()),
                None => lacking.push((key, vec![engine.name()])),
            }
        }
    }
    for ((case, why), engines) in lacking {
        text += &row(&[format!("`{case}`"), names(engines), why]);
    }

    text += BLIND;
    text += "| hazard | case | engines | why |\n|---|---|---|---|\n";
    for it in blind::ALL {
        let of_name = Column { title: "", beginning: it.engines };
        let of_name = of_column(&engines, &of_name).into_iter().map(Engine::name);
        text +=
            &row(&[it.hazard.to_string(), format!("`{}`", it.case), names(of_name), it.why.into()]);
    }

    text += FILES;
    let mut by_file: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for case in &cases {
        by_file.entry(file_of(case, &sources)?).or_default().push(case.name);
    }
    for (file, cases) in by_file {
        writeln!(text, "* `{file}`: {}", names(cases)).context("writing to a string")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Vec<Box<dyn Engine>> {
        engine::all().into_iter().filter(|engine| engine.name() == name).collect()
    }

    #[test]
    fn a_cell_counts_the_cases_that_can_fail() {
        let cases = cases();
        let case = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
        let shared = case("entering_with_bad_selectors_is_a_fault_of_the_guest");
        let sysenter = case("sysenter_is_shut");
        let unmapped = case("host/what_was_unmapped_faults_after_a_direct_switch");
        let cell = |engine: &str, cases: &[&Case]| {
            let engines = named(engine);
            assert!(!engines.is_empty(), "{engine}");
            let engines: Vec<_> = engines.iter().map(AsRef::as_ref).collect();
            super::cell(&engines, cases, Hazard::StaleTranslations)
        };
        assert_eq!(cell("native", &[shared]), "1");
        assert_eq!(cell("native", &[shared, sysenter, unmapped]), "1 of 3");
        assert_eq!(cell("native", &[unmapped]), "no");
        // The case is run on QEMU, but shows nothing there.
        assert_eq!(cell("qemu-tcg-4level", &[unmapped, sysenter]), "1 of 2");
        assert_eq!(cell("qemu-kvm", &[unmapped, sysenter]), "2");
        assert_eq!(cell("qemu-kvm", &[]), "");
    }

    #[test]
    fn a_case_without_a_file_or_with_two_is_an_error() {
        let (cases, mut sources) = (cases(), sources().unwrap());
        let file = file_of(&cases[0], &sources).unwrap();
        let source = sources[&file].clone();
        sources.insert("a copy".into(), source);
        assert!(file_of(&cases[0], &sources).is_err());
        sources.clear();
        assert!(file_of(&cases[0], &sources).is_err());
    }
}
