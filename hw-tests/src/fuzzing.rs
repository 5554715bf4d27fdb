//! Runs the fuzz targets of `switcher-gen/fuzz` for a bounded time, with stable Rust. It does what
//! cargo-fuzz does with a nightly compiler and `--sanitizer none`.
//!
//! A fuzzer that finds nothing may be blind, so a defect is planted in each target as well, and
//! must be found.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::tools::Tool;
use crate::workspace;

/// The compiler for libFuzzer.
pub const CXX: Tool = Tool { what: "c++", packages: &["g++"] };

/// The names of the targets.
pub const TARGETS: [&str; 2] = ["reader", "step"];

/// The only platform. The host's tools and macros are built for the same platform, and are told
/// apart from the instrumented code by this name.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// The flags that make code tell libFuzzer which branches it has taken, as cargo-fuzz sets them.
const INSTRUMENTED: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// The variable that plants a defect: `switcher_fuzz::PLANTED`.
const PLANTED: &str = "SWITCHER_FUZZ_PLANTED";
/// How long a planted defect may stay unfound.
const UNTIL_FOUND: Duration = Duration::from_secs(300);

/// The result of fuzzing a target.
#[derive(Debug)]
pub enum Verdict {
    /// No input was found that the target handles wrongly, and a planted defect was found. The text
    /// is libFuzzer's last line.
    Clean(String),
    /// An input was found. The text is what libFuzzer says about it, and where the input is.
    Found(String),
    /// The planted defect was not found, or was already in the inputs with which fuzzing begins.
    Blind(String),
}

/// A target that has been compiled.
#[derive(Debug)]
pub struct Fuzzer {
    name: &'static str,
    program: PathBuf,
}

/// Compiles the targets, in a directory apart from other builds.
///
/// # Errors
/// If they do not compile.
pub fn build() -> Result<Vec<Fuzzer>> {
    let target = workspace::target().join("fuzz");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--package", "switcher-fuzz", "--features", "libfuzzer", "--bins"]);
    cargo.args(["--target", PLATFORM, "--target-dir"]).arg(&target);
    cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").env("RUSTFLAGS", INSTRUMENTED.join(" "));
    let status = cargo.status().context("running cargo")?;
    ensure!(status.success(), "the fuzz targets do not compile");
    let programs = target.join(PLATFORM).join("debug");
    Ok(TARGETS.map(|name| Fuzzer { name, program: programs.join(name) }).into())
}

impl Fuzzer {
    /// The target's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Fuzzes for `time`, and then looks for a planted defect.
    ///
    /// # Errors
    /// If the target cannot be started.
    pub fn run(&self, time: Duration) -> Result<Verdict> {
        let output = self.fuzz(time, false)?;
        if !output.status.success() {
            return Ok(Verdict::Found(said(&output)));
        }
        // Only fuzzing must find the defect: the inputs with which it begins must not.
        let begun = self.start(&["-runs=0"], true, None)?;
        if !begun.status.success() {
            return Ok(Verdict::Blind(said(&begun)));
        }
        let planted = self.fuzz(UNTIL_FOUND, true)?;
        let is_found = !planted.status.success() && said(&planted).contains("planted: ");
        Ok(if is_found {
            Verdict::Clean(last_line(&output))
        } else {
            Verdict::Blind(said(&planted))
        })
    }

    fn fuzz(&self, time: Duration, plant: bool) -> Result<Output> {
        let time = format!("-max_total_time={}", time.as_secs().max(1));
        // The inputs that are found are kept out of the corpus in the tree.
        let found = tempfile::tempdir().context("a temporary directory")?;
        let limits = ["-timeout=120", "-rss_limit_mb=2048", "-malloc_limit_mb=256"];
        let arguments = [&[&*time, "-max_len=32768", "-print_final_stats=1"], &limits[..]].concat();
        self.start(&arguments, plant, Some(found.path()))
    }

    fn start(&self, arguments: &[&str], plant: bool, found: Option<&Path>) -> Result<Output> {
        let corpus = workspace::root().join("switcher-gen/fuzz/corpus").join(self.name);
        let kept = workspace::target().join("fuzz/artifacts").join(self.name);
        fs::create_dir_all(&kept).context("a directory for what is found")?;
        let mut command = Command::new(&self.program);
        command.args(arguments).args(found).arg(corpus);
        // The input that finds a planted defect is not kept.
        let prefix =
            if plant { env::temp_dir().join("switcher-fuzz-planted-") } else { kept.join("") };
        command.arg(format!("-artifact_prefix={}", prefix.display()));
        match plant {
            true => command.env(PLANTED, "1"),
            false => command.env_remove(PLANTED),
        };
        command.output().with_context(|| format!("running {}", self.program.display()))
    }
}

/// The output of libFuzzer, which writes everything to standard error, as panics do.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of the output: how many inputs were tried, and what they have reached.
fn last_line(output: &Output) -> String {
    let text = said(output);
    let is_last = |line: &&str| line.starts_with('#') && line.contains("\tDONE ");
    text.lines().rfind(is_last).unwrap_or_default().replace('\t', " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_and_their_seeds_are_those_of_the_package() {
        let package = workspace::root().join("switcher-gen/fuzz");
        let names = |folder: &str| {
            let files = fs::read_dir(package.join(folder)).unwrap();
            let name = |file: std::io::Result<fs::DirEntry>| {
                file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()
            };
            let mut names: Vec<_> = files.map(name).collect();
            names.sort();
            names
        };
        assert_eq!(names("fuzz_targets"), TARGETS);
        assert_eq!(names("corpus"), TARGETS);
        let source = fs::read_to_string(package.join("src/lib.rs")).unwrap();
        assert!(source.contains(&format!("PLANTED: &str = \"{PLANTED}\"")), "{source}");
    }

    #[test]
    fn the_last_word_is_libfuzzers() {
        use std::os::unix::process::ExitStatusExt;
        let stderr =
            "#2\tINITED cov: 3\n#9\tDONE   cov: 12 ft: 20 corp: 3/9b exec/s: 1\nDone 9 runs\n";
        let status = std::process::ExitStatus::from_raw(0);
        let output = Output { status, stdout: Vec::new(), stderr: stderr.into() };
        assert_eq!(last_line(&output), "#9 DONE   cov: 12 ft: 20 corp: 3/9b exec/s: 1");
    }
}
