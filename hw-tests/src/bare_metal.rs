//! Building the bare-metal images.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::workspace;

/// The part of Cargo's build messages that is used here: `cargo help build`, `--message-format`.
#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    reason: String,
    executable: Option<PathBuf>,
}

/// A package whose binary, of the same name, boots without an operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BareMetal(&'static str);

/// The host that runs the cases.
pub const KERNEL: BareMetal = BareMetal("hw-kernel");
/// The last of the examples, a minimal hypervisor.
pub const MINIMAL_HOST: BareMetal = BareMetal("minimal-host");

impl BareMetal {
    /// The package's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// The arguments that name the package to Cargo. Its feature keeps workspace-wide builds, whose
    /// dependencies have std, away from the binary.
    #[must_use]
    pub const fn arguments(self) -> [&'static str; 4] {
        ["--package", self.0, "--features", "bare-metal"]
    }

    /// Builds the image, optimised, and returns its path. Cargo's messages for humans go to stderr.
    ///
    /// # Errors
    /// If Cargo cannot be run, or the build fails.
    pub fn build(self) -> Result<PathBuf> {
        let output = workspace::cargo()
            .args(["build", "--release", "--bin", self.0])
            .args(self.arguments())
            .arg("--message-format=json-render-diagnostics")
            .stderr(Stdio::inherit())
            .output()
            .context("running cargo")?;
        if !output.status.success() {
            bail!("building {}: cargo ended with {}", self.0, output.status);
        }
        executable(&String::from_utf8_lossy(&output.stdout), self.0)
            .with_context(|| format!("cargo built {} and does not say where", self.0))
    }
}

/// The path of the executable with this name, from Cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter_map(|message| message.executable)
        .find(|path| path.file_name().is_some_and(|file| file == name))
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
        assert_eq!(executable(messages, "hw-kernel"), Some(PathBuf::from("/t/release/hw-kernel")));
        assert_eq!(executable(messages, "minimal-host"), None);
    }
}
