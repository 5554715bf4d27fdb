//! Building the bare-metal kernel.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace;

/// The part of Cargo's build messages used here: `cargo help build`, `--message-format`.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    reason: String,
    executable: Option<PathBuf>,
}

/// The arguments that name the kernel to Cargo. Its feature keeps workspace-wide builds, whose
/// dependencies have std, away from it.
pub const ARGUMENTS: [&str; 4] = ["--package", "hw-kernel", "--features", "bare-metal"];

/// Builds the kernel, optimised, and returns the path of the image. Cargo's messages for humans go
/// to stderr.
///
/// # Errors
/// Cargo cannot be run, or the build fails.
pub fn build() -> Result<PathBuf> {
    let output = workspace::cargo()
        .args(["build", "--release", "--bin", "hw-kernel"])
        .args(ARGUMENTS)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    if !output.status.success() {
        bail!("building the kernel: cargo ended with {}", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout))
        .context("cargo built the kernel and does not say where")
}

/// The executable named in Cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .find_map(|message| message.executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = "not JSON\n\
            {\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            {\"reason\":\"build-script-executed\"}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/t/release/hw-kernel\"}\n\
            {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/release/hw-kernel")));
        assert_eq!(executable("{\"reason\":\"build-finished\",\"success\":true}"), None);
    }
}
