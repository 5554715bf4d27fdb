//! The project's tasks: `cargo xtask test`, `check`, `fuzz`, `compare`, `iso`, `install`.
//!
//! Exit codes: 0, all is well; 1, something failed; 2, wrong usage, or a tool is missing that could
//! not be installed.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};
use hw_protocol::Options;
use hw_tests::bare_metal::{BareMetal, KERNEL, MINIMAL_HOST};
use hw_tests::compare;
use hw_tests::debian::NoRoot;
use hw_tests::distribution;
use hw_tests::engine::qemu::Qemu;
use hw_tests::engine::{self, Engine, EngineEnd, Runs, hosted};
use hw_tests::fuzzing::{self, Verdict};
use hw_tests::iso::{self, MenuEntry};
use hw_tests::run::RunEnd;
use hw_tests::summary::{Row, Summary, count_tests};
use hw_tests::tools::{self, Missing, Tool};
use hw_tests::workspace;
use switcher_gen::arch::PagingMode;

/// The number of lines of the log that are shown of a failed run.
const TAIL: usize = 25;
/// The number of failures that are shown of one run.
const SHOWN: usize = 25;

/// The tasks of the switcher toolkit.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every check, every test, and the bare-metal kernel on every engine
    ///
    /// Installs what is missing where it may (apt as root), and says what to install otherwise.
    Test {
        /// Only run the cases, and only on these engines
        #[arg(long, value_name = "NAME", num_args = 1.., value_parser = engine_names())]
        engine: Vec<String>,
        /// Seconds after which a run of the kernel counts as hanging
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout: u64,
    },
    /// Check the format, the lints and what is tested in seconds: before each commit
    ///
    /// Two minutes at most, once everything has been built. Not run are the proofs of all variants,
    /// the mutants and attacks on them, the other integration tests, documentation and its
    /// examples, benchmarks, fuzzing, and all that boots: `cargo xtask test` runs these.
    Check,
    /// Run the fuzz targets for a bounded time, and see whether they find a planted defect
    ///
    /// With stable Rust and a C++ compiler. An input that is found lies in target/fuzz/artifacts.
    Fuzz {
        /// Seconds for each target; what a planted defect takes comes on top
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        time: u64,
    },
    /// Compare this tree with an earlier revision: the time of proofs, and what paths cost
    ///
    /// Both are built and run by turns on this machine: only the ratio counts.
    Compare {
        /// The earlier revision, as git names it
        revision: String,
        /// The variants to compare
        #[arg(
            long,
            value_name = "NAME",
            num_args = 1..,
            default_values = ["intel-4level", "intel-la57-pcid+ibrs+rsb+bhb+verw", "amd-4level+untrain"]
        )]
        variant: Vec<String>,
    },
    /// Write a bootable image of the kernel for a real machine
    Iso {
        /// Where to write it
        #[arg(short, long, value_name = "FILE", default_value = "switcher-tests.iso")]
        output: PathBuf,
    },
    /// Install the emulators and tools that the other tasks need
    Install,
    /// Run the cases in this process and report as the kernel does: what `test` starts
    #[command(hide = true)]
    Cases {
        /// The engine to run them on
        engine: String,
    },
}

fn engine_names() -> PossibleValuesParser {
    engine::all().iter().map(|engine| engine.name()).collect::<Vec<_>>().into()
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Test { engine, timeout } => test(&engine, Duration::from_secs(timeout)),
        Task::Check => check(),
        Task::Fuzz { time } => fuzz(Duration::from_secs(time)),
        Task::Compare { revision, variant } => compare::run(&revision, &variant).map(|()| true),
        Task::Iso { output } => write_iso(&output),
        Task::Install => install(tools::ALL)
            .and_then(|()| install(&[fuzzing::CXX]))
            .and_then(|()| make_roots(&engine::all()))
            .map(|()| true),
        Task::Cases { engine } => engine::hosted(&engine)
            .with_context(|| format!("there is no engine {engine} that runs in a process"))
            .and_then(hosted::report)
            .map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("error: {why:#}");
            ExitCode::from(if why.is::<Missing>() || why.is::<NoRoot>() { 2 } else { 1 })
        }
    }
}

/// Does what the second command of the README does. If engines are named, only those are run.
fn test(names: &[String], limit: Duration) -> Result<bool> {
    let mut engines = engine::all();
    if !names.is_empty() {
        engines.retain(|engine| names.iter().any(|name| name == engine.name()));
    }
    // The path is taken now, while the file exists: the tests of this package build the program
    // anew.
    let xtask = env::current_exe().context("the path of this program")?;
    let mut needed: Vec<Tool> = engines.iter().flat_map(|engine| engine.tools()).copied().collect();
    if names.is_empty() {
        needed.push(fuzzing::CXX);
    }
    install(&needed)?;
    make_roots(&engines)?;

    let mut summary = Summary::default();
    if names.is_empty() {
        checks(&mut summary)?;
    }
    let (kernel, hosted): (Vec<&dyn Engine>, Vec<_>) =
        engines.iter().map(Box::as_ref).partition(|engine| engine.runs() == Runs::Kernel);
    // Engines that take seconds and need nothing come first.
    for engine in hosted {
        let (row, said) = run_named(engine, &xtask, limit, names)?;
        heading(engine.name());
        print!("{said}");
        summary.0.push(row);
    }
    if !kernel.is_empty() {
        heading("kernel");
        let started = Instant::now();
        match KERNEL.build() {
            Ok(image) => {
                summary.0.push(row("kernel", (1, 0), started.elapsed(), ""));
                summary.0.extend(run_at_once(&kernel, &image, limit, names)?);
            }
            Err(why) => {
                eprintln!("error: {why:#}");
                let note = "not built; no emulator run";
                summary.0.push(row("kernel", (0, 1), started.elapsed(), note));
            }
        }
    }
    if names.is_empty() {
        summary.0.push(minimal_host(limit)?);
    }
    println!("\n{summary}");
    Ok(summary.success())
}

/// Makes the roots that engines need and that do not exist.
fn make_roots(engines: &[Box<dyn Engine>]) -> Result<()> {
    for root in engines.iter().filter_map(|engine| engine.root()) {
        root.make()?;
    }
    Ok(())
}

/// Boots the kernel on all these engines, on as many at once as there are CPUs: most emulators use
/// one. What was seen on an engine is shown when it has ended, and the rows are in the engines'
/// order.
fn run_at_once(
    engines: &[&dyn Engine],
    image: &Path,
    limit: Duration,
    names: &[String],
) -> Result<Vec<Row>> {
    let next = AtomicUsize::new(0);
    let ended = Mutex::new(());
    let work = || -> Result<Vec<(usize, Row)>> {
        let mut rows = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(engine) = engines.get(index) else { return Ok(rows) };
            let (row, said) = run_named(*engine, image, limit, names)?;
            // One engine's lines belong together.
            let _alone = ended.lock();
            heading(engine.name());
            print!("{said}");
            rows.push((index, row));
        }
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(engines.len());
    let mut rows = thread::scope(|scope| -> Result<Vec<(usize, Row)>> {
        let started: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let mut rows = Vec::new();
        for worker in started {
            rows.extend(worker.join().map_err(|_| anyhow!("running an engine panicked"))??);
        }
        Ok(rows)
    })?;
    rows.sort_by_key(|(index, _)| *index);
    Ok(rows.into_iter().map(|(_, row)| row).collect())
}

/// Runs one engine. If it was asked for by name and cannot be used, that is a failure.
fn run_named(
    engine: &dyn Engine,
    program: &Path,
    limit: Duration,
    names: &[String],
) -> Result<(Row, String)> {
    let (mut row, said) = run(engine, program, limit)?;
    if !names.is_empty() && row.passed + row.failed == 0 {
        row.failed = 1;
    }
    Ok((row, said))
}

/// Boots the last of the examples, in both paging modes, and looks for the result of its guest.
fn minimal_host(limit: Duration) -> Result<Row> {
    const RESULT: &str = "41 + 1 = 42";
    heading(MINIMAL_HOST.name());
    let started = Instant::now();
    let image = MINIMAL_HOST.build()?;
    let mut counts = (0, 0);
    for engine in [Qemu::TCG_4LEVEL, Qemu::TCG_LA57] {
        let options = Options { paging: engine.paging(), ..Options::default() };
        let run = engine.boot(&image, options, limit)?;
        print!("{}", run.log);
        if run.end == RunEnd::ByItself && run.log.contains(RESULT) {
            counts.0 += 1;
        } else {
            println!("FAILED `{RESULT}` is not in the log: {:?}", run.end);
            counts.1 += 1;
        }
    }
    Ok(row(MINIMAL_HOST.name(), counts, started.elapsed(), ""))
}

fn heading(name: &str) {
    println!("\n== {name}");
}

fn row(name: &str, (passed, failed): (u64, u64), took: Duration, note: &str) -> Row {
    Row { name: name.into(), passed, failed, took, note: note.into(), not_here: Vec::new() }
}

/// The arguments that make lints errors.
const DENY: [&str; 3] = ["--", "-D", "warnings"];

/// The command that checks whether every file is formatted.
fn formatted() -> Command {
    let mut fmt = workspace::cargo();
    fmt.args(["fmt", "--all", "--check"]);
    fmt
}

/// The command that checks the lints of everything except what boots.
fn linted() -> Command {
    let mut clippy = workspace::cargo();
    clippy.args(["clippy", "--workspace", "--all-targets"]).args(DENY);
    clippy
}

/// Runs a command, and adds a row with its success to the summary.
fn step(summary: &mut Summary, name: &str, command: &mut Command) -> Result<()> {
    heading(name);
    let started = Instant::now();
    let status = command.status().with_context(|| format!("running {command:?}"))?;
    let counts = if status.success() { (1, 0) } else { (0, 1) };
    summary.0.push(row(name, counts, started.elapsed(), ""));
    Ok(())
}

/// Runs tests, and adds a row with their numbers to the summary.
fn tests(summary: &mut Summary, command: &mut Command) -> Result<()> {
    heading("tests");
    let started = Instant::now();
    let (success, output) = tee(command)?;
    let (passed, failed) = count_tests(&output);
    // A test that does not compile, or that kills its process, is not in the counts.
    let failed = if success { failed } else { failed.max(1) };
    summary.0.push(row("tests", (passed, failed), started.elapsed(), ""));
    Ok(())
}

/// Checks what a commit should not break, as far as that is possible in two minutes.
fn check() -> Result<bool> {
    /// Tests of a whole package that take seconds: what is emitted, what is printed, and how the
    /// crates depend on each other.
    const QUICK: [&str; 9] = [
        "allocations",
        "cli",
        "diff",
        "layers",
        "mitigations",
        "module_order",
        "snapshots",
        "specification",
        "words",
    ];
    components()?;
    let mut summary = Summary::default();
    step(&mut summary, "format", &mut formatted())?;
    step(&mut summary, "clippy", &mut linted())?;
    let mut quick = workspace::cargo();
    quick.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    quick.args(QUICK.iter().flat_map(|name| ["--test", name]));
    tests(&mut summary, &mut quick)?;
    println!("\n{summary}");
    Ok(summary.success())
}

fn fuzz(time: Duration) -> Result<bool> {
    install(&[fuzzing::CXX])?;
    let mut summary = Summary::default();
    fuzz_targets(&mut summary, time)?;
    println!("\n{summary}");
    Ok(summary.success())
}

/// Fuzzes all targets, for `time` each.
fn fuzz_targets(summary: &mut Summary, time: Duration) -> Result<()> {
    heading("fuzz targets");
    let started = Instant::now();
    let targets = match fuzzing::build() {
        Ok(targets) => targets,
        Err(why) => {
            eprintln!("error: {why:#}");
            summary.0.push(row("fuzz targets", (0, 1), started.elapsed(), "not built"));
            return Ok(());
        }
    };
    summary.0.push(row("fuzz targets", (1, 0), started.elapsed(), ""));
    for target in targets {
        let name = format!("fuzz {}", target.name());
        heading(&name);
        let started = Instant::now();
        let (counts, note) = match target.run(time)? {
            Verdict::Clean(note) => ((1, 0), note),
            Verdict::Found(said) => {
                println!("{said}");
                ((0, 1), "found something: see target/fuzz/artifacts".into())
            }
            Verdict::Blind(said) => {
                println!("{said}");
                ((0, 1), "did not find a planted defect as it should".into())
            }
        };
        println!("{note}");
        summary.0.push(row(&name, counts, started.elapsed(), ""));
    }
    Ok(())
}

/// Checks format, lints, documentation and tests, runs each benchmark once, and fuzzes: what is
/// never run breaks unnoticed.
fn checks(summary: &mut Summary) -> Result<()> {
    /// The time for each fuzz target: enough to see that it runs, and to find what is easy to find.
    const FUZZING: Duration = Duration::from_secs(10);
    components()?;
    let bare_metal = |image: BareMetal| {
        let mut clippy = workspace::cargo();
        // Of the two profiles, this is the one without unwinding, for which they are built.
        clippy.args(["clippy", "--release", "--all-targets"]).args(image.arguments()).args(DENY);
        clippy
    };
    let mut doc = workspace::cargo();
    doc.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings");
    let mut benches = workspace::cargo();
    // `--benches` would also run the unit tests, which `tests` does.
    benches.args(["test", "--workspace", "--bench", "*"]);
    for (name, command) in [
        ("format", &mut formatted()),
        ("clippy", &mut linted()),
        ("clippy kernel", &mut bare_metal(KERNEL)),
        ("clippy minimal host", &mut bare_metal(MINIMAL_HOST)),
        ("docs", &mut doc),
        ("benches", &mut benches),
    ] {
        step(summary, name, command)?;
    }
    summary.0.push(dependencies()?);
    summary.0.push(kernel_tools());
    summary.0.push(distribution_kernel());
    let mut all = workspace::cargo();
    // All tests are run, also after one has failed.
    all.args(["test", "--workspace", "--no-fail-fast"]);
    tests(summary, &mut all)?;
    fuzz_targets(summary, FUZZING)
}

/// The tools of a kernel's build, with which the objects for kernels are checked. They are of one
/// release of Debian's: where that is another, the test of them says so, and so does the summary.
fn kernel_tools() -> Row {
    let started = Instant::now();
    match install(&[tools::OBJTOOL]) {
        Ok(()) => {
            row("objtool", (1, 0), started.elapsed(), "objects for kernels are checked by it")
        }
        Err(_) => {
            let note = "linux-kbuild-6.1 is not here; objects for kernels are proved, and no more";
            row("objtool", (0, 0), started.elapsed(), note)
        }
    }
}

/// A kernel of Debian's, which has no switcher, for the test of what is answered to that. A machine
/// that does not reach an archive has none: the test says so, and so does the summary.
fn distribution_kernel() -> Row {
    let started = Instant::now();
    let made = match install(distribution::TOOLS) {
        Ok(()) => distribution::make(),
        Err(why) => Err(why.to_string()),
    };
    match made {
        Ok(_) => {
            row("kernel", (1, 0), started.elapsed(), "Debian's is answered, without a switcher")
        }
        Err(why) => {
            println!("{why}");
            let note = "Debian's kernel is not here: what is answered to it is not tested";
            row("kernel", (0, 0), started.elapsed(), note)
        }
    }
}

/// The version of cargo-deny that deny.toml was written for.
const CARGO_DENY: &str = "0.20.2";

/// Checks licences, versions and sources of all packages against deny.toml. If cargo-deny does not
/// exist and cannot be installed, only the test `dependencies` reads deny.toml, and the summary
/// says so. Known vulnerabilities are not checked, because that needs a network.
fn dependencies() -> Result<Row> {
    heading("deny");
    let started = Instant::now();
    let is_there = || -> Result<bool> {
        let mut version = workspace::cargo();
        version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(version.status().context("running cargo")?.success())
    };
    if !is_there()? {
        // Without optimisation, it is built in a minute.
        let mut install = workspace::cargo();
        install.args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--debug"]);
        let installed = install.status().context("running cargo install")?;
        if !installed.success() || !is_there()? {
            let note = "cargo-deny is not here; the test `dependencies` reads deny.toml";
            return Ok(row("deny", (0, 0), started.elapsed(), note));
        }
    }
    let mut check = workspace::cargo();
    check.args(["deny", "--locked", "check", "licenses", "bans", "sources"]);
    let success = check.status().context("running cargo deny")?.success();
    Ok(row("deny", if success { (1, 0) } else { (0, 1) }, started.elapsed(), ""))
}

/// Runs a command, shows its output, and returns it.
fn tee(command: &mut Command) -> Result<(bool, String)> {
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("running {command:?}"))?;
    let mut output = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("reading a command's output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            output.push_str(&line);
            output.push('\n');
        }
    }
    Ok((child.wait().context("waiting for a command")?.success(), output))
}

/// Runs the cases on one engine. Returns its row of the summary, and the lines to show of it.
fn run(engine: &dyn Engine, program: &Path, limit: Duration) -> Result<(Row, String)> {
    let started = Instant::now();
    let (judgement, run) = match engine::run(engine, program, limit)? {
        EngineEnd::Judged(judgement, run) => (judgement, run),
        EngineEnd::Unavailable(why) => {
            let note = format!("unavailable: {why}");
            let row = row(engine.name(), (0, 0), started.elapsed(), &note);
            return Ok((row, format!("{note}\n")));
        }
    };
    let mut said = Vec::new();
    said.extend(judgement.failures.iter().take(SHOWN).map(|failure| format!("FAILED {failure}")));
    said.extend(judgement.notes.iter().map(|(case, note)| format!("{case}: {note}")));
    match judgement.failures.len() {
        0 => said.push(format!("{} cases, {} runs", judgement.passed, judgement.runs)),
        count => {
            if count > SHOWN {
                said.push(format!("... and {} more", count - SHOWN));
            }
            said.push(format!("--- the end of the log ---\n{}", run.tail(TAIL)));
        }
    }
    let counts = (judgement.passed, judgement.failures.len() as u64);
    let mut row = row(engine.name(), counts, run.took, &judgement.machine);
    row.not_here = judgement.not_here;
    Ok((row, said.join("\n") + "\n"))
}

fn write_iso(output: &Path) -> Result<bool> {
    install(tools::ISO)?;
    let image = KERNEL.build()?;
    let entry =
        |title, paging| MenuEntry { title, options: Options { paging, ..Options::default() } };
    let entries = [
        entry("switcher tests, four-level paging", PagingMode::FourLevel),
        entry("switcher tests, five-level paging (LA57)", PagingMode::FiveLevel),
    ];
    // No difference of a real machine from the model is known.
    iso::write(&image, &hw_vectors::table(""), &entries, 5, output)?;
    println!("{}", output.display());
    Ok(true)
}

/// Installs missing tools with apt, as root. Otherwise a missing tool is an error.
fn install(needed: &[Tool]) -> Result<()> {
    let Err(missing) = tools::require(needed) else {
        return Ok(());
    };
    let root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let apt = Tool { what: "apt-get", packages: &[] };
    if !root || !tools::is_installed(&apt) {
        return Err(missing.into());
    }
    println!("{missing}");
    // The package lists of a fresh container are empty, and then the first attempt fails at once.
    if !apt_get(&missing.0)? {
        let status = Command::new("apt-get").arg("update").status().context("running apt-get")?;
        if !status.success() || !apt_get(&missing.0)? {
            return Err(missing.into());
        }
    }
    tools::require(needed).map_err(Into::into)
}

fn apt_get(tools: &[Tool]) -> Result<bool> {
    Command::new("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(tools::packages(tools))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .map(|status| status.success())
        .context("running apt-get")
}

/// Adds rustfmt and clippy to a minimal toolchain.
fn components() -> Result<()> {
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let present = workspace::cargo()
            .args([subcommand, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("running cargo")?
            .success();
        if !present {
            let added = Command::new("rustup").args(["component", "add", component]).status();
            if !added.is_ok_and(|status| status.success()) {
                bail!(
                    "cargo has no {subcommand}; install it with: rustup component add {component}"
                );
            }
        }
    }
    Ok(())
}
