//! Compares this tree with an earlier revision of it, side by side in one run: how long a proof
//! takes, and what each path of the emitted code costs. Machines are noisy, so only the ratio
//! counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace;

/// How often each revision is timed, by turns. The shortest time counts, because noise only adds.
const ROUNDS: usize = 5;

/// The output of `switcher cost --format json`.
#[derive(Deserialize)]
struct Costs {
    paths: Vec<PathCost>,
}

#[derive(Deserialize)]
struct PathCost {
    kind: String,
    number: usize,
    instructions: u64,
    code_bytes: u64,
}

/// The shortest time of a proof, and the instructions and bytes of each path.
struct Measured {
    proof: Duration,
    paths: Paths,
}

/// Builds both revisions, measures both, and prints the differences.
///
/// # Errors
/// If there is no such revision, if it cannot be built, or if one of the variants is not proved.
pub fn run(revision: &str, variants: &[String]) -> Result<()> {
    let place = tempfile::tempdir().context("making a directory for the earlier revision")?;
    let tree = place.path().join("tree");
    let commit = git(&["rev-parse", "--verify", &format!("{revision}^{{commit}}")])?;
    git(&["worktree", "add", "--detach", &tree.display().to_string(), commit.trim()])?;
    let earlier = build(&tree, &workspace::target().join("compare"));
    // The revision is removed whether it could be built or not.
    let removed = git(&["worktree", "remove", "--force", &tree.display().to_string()]);
    let tools = [earlier?, build(workspace::root(), &workspace::target())?];
    removed?;
    for variant in variants {
        let [before, after] = measure(&tools, variant)?;
        println!("{variant}");
        println!(
            "  proof: {:.0} ms before, {:.0} ms now: {:.2} of it (the shortest of {ROUNDS}, by turns)",
            before.proof.as_secs_f64() * 1e3,
            after.proof.as_secs_f64() * 1e3,
            after.proof.as_secs_f64() / before.proof.as_secs_f64()
        );
        for line in differences(&before.paths, &after.paths) {
            println!("  {line}");
        }
    }
    Ok(())
}

/// A path's name and number, and how many instructions and bytes it has.
type Paths = BTreeMap<(String, usize), (u64, u64)>;

/// The differences between paths, one per line, and the number of paths without any.
fn differences(before: &Paths, after: &Paths) -> Vec<String> {
    let mut lines = Vec::new();
    let mut same = 0;
    for (path, now) in after {
        let (name, number) = path;
        match before.get(path) {
            Some(was) if was == now => same += 1,
            Some(was) => lines.push(format!(
                "{name} ({number}): {} instructions before, {} now; {} bytes before, {} now",
                was.0, now.0, was.1, now.1
            )),
            None => lines.push(format!("{name} ({number}): {} instructions, new", now.0)),
        }
    }
    for ((name, number), was) in before.iter().filter(|(path, _)| !after.contains_key(*path)) {
        lines.push(format!("{name} ({number}): {} instructions before, gone", was.0));
    }
    lines.push(format!("{same} paths cost what they did"));
    lines
}

/// Times the tools of both revisions by turns.
fn measure(tools: &[PathBuf; 2], variant: &str) -> Result<[Measured; 2]> {
    let mut measured = [costs(&tools[0], variant)?, costs(&tools[1], variant)?];
    for _ in 0..ROUNDS {
        for (tool, measured) in tools.iter().zip(&mut measured) {
            let started = Instant::now();
            let proved = Command::new(tool)
                .args(["prove", "--variant", variant])
                .stdout(Stdio::null())
                .status()
                .with_context(|| format!("running {}", tool.display()))?;
            if !proved.success() {
                bail!("{} does not prove {variant}", tool.display());
            }
            measured.proof = measured.proof.min(started.elapsed());
        }
    }
    Ok(measured)
}

/// The costs of the paths. Nothing is timed yet.
fn costs(tool: &Path, variant: &str) -> Result<Measured> {
    let output = Command::new(tool)
        .args(["cost", "--variant", variant, "--format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", tool.display()))?;
    if !output.status.success() {
        bail!("{} has no costs of {variant}", tool.display());
    }
    let costs: Costs = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("reading what {} says of {variant}", tool.display()))?;
    let paths = costs.paths.into_iter();
    let paths = paths.map(|path| ((path.kind, path.number), (path.instructions, path.code_bytes)));
    Ok(Measured { proof: Duration::MAX, paths: paths.collect() })
}

/// Builds the tool of a tree, optimised. Its package is the default one, whatever its name in that
/// tree.
fn build(tree: &Path, target: &Path) -> Result<PathBuf> {
    let status = workspace::cargo()
        .current_dir(tree)
        .args(["build", "--release", "--bin", "switcher"])
        .env("CARGO_TARGET_DIR", target)
        .status()
        .context("running cargo")?;
    if !status.success() {
        bail!("the tool of {} could not be built", tree.display());
    }
    Ok(target.join("release/switcher"))
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(workspace::root())
        .args(arguments)
        .output()
        .context("running git")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("git {}: {}", arguments.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_cost_more_are_new_or_gone_are_told_and_the_others_counted() {
        let paths = |all: &[(&str, (u64, u64))]| {
            all.iter().map(|(name, cost)| (((*name).to_owned(), 1), *cost)).collect::<Paths>()
        };
        let before = paths(&[("as it was", (1, 2)), ("gone", (3, 4)), ("other", (5, 6))]);
        let after = paths(&[("as it was", (1, 2)), ("new", (7, 8)), ("other", (5, 9))]);
        assert_eq!(
            differences(&before, &after),
            [
                "new (1): 7 instructions, new",
                "other (1): 5 instructions before, 5 now; 6 bytes before, 9 now",
                "gone (1): 3 instructions before, gone",
                "1 paths cost what they did",
            ]
        );
    }
}
