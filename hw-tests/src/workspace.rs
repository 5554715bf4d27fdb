//! The workspace and the Cargo that builds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root directory: the parent of the directory from which this package was
/// compiled.
#[must_use]
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The directory into which cargo builds: in the workspace, unless it was told otherwise.
#[must_use]
pub fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The Cargo that runs this program, or the one in PATH, in the workspace's root.
#[must_use]
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
