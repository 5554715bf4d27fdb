//! Programs that this crate starts, and the Debian packages that have them.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use wait_timeout::ChildExt;

/// A program or file that has to be installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// The program's name, looked up in PATH, or the absolute path of a file.
    pub what: &'static str,
    /// The Debian packages to install for it.
    pub packages: &'static [&'static str],
}

/// QEMU for PCs.
pub const QEMU: Tool = Tool { what: "qemu-system-x86_64", packages: &["qemu-system-x86"] };
/// Bochs, with the smallest of its displays: it depends on some display, and prefers wxWidgets.
pub const BOCHS: Tool = Tool { what: "bochs", packages: &["bochs", "bochs-term"] };
/// Bochs's BIOS.
pub const BOCHS_BIOS: Tool =
    Tool { what: "/usr/share/bochs/BIOS-bochs-latest", packages: &["bochsbios"] };
/// The VGA BIOS for Bochs.
pub const VGA_BIOS: Tool = Tool { what: "/usr/share/vgabios/vgabios.bin", packages: &["vgabios"] };
/// The program that makes a bootable ISO.
pub const GRUB_MKRESCUE: Tool = Tool { what: "grub-mkrescue", packages: &["grub-common"] };
/// GRUB for machines that boot by BIOS.
pub const GRUB_PC: Tool =
    Tool { what: "/usr/lib/grub/i386-pc/multiboot.mod", packages: &["grub-pc-bin"] };
/// The program with which `grub-mkrescue` writes the ISO.
pub const XORRISO: Tool = Tool { what: "xorriso", packages: &["xorriso"] };
/// The program with which `grub-mkrescue` makes the EFI image, where GRUB for EFI is installed.
pub const MTOOLS: Tool = Tool { what: "mformat", packages: &["mtools"] };

/// The program that unpacks packages of another release of Debian's into a root of their own.
pub const MMDEBSTRAP: Tool = Tool { what: "mmdebstrap", packages: &["mmdebstrap"] };
/// The program that runs another in such a root.
pub const CHROOT: Tool = Tool { what: "/usr/sbin/chroot", packages: &["coreutils"] };

/// What checks the objects of a Linux kernel, with the headers of that kernel. Another release of
/// Debian's has another version.
pub const OBJTOOL: Tool = Tool {
    what: "/usr/lib/linux-kbuild-6.1/tools/objtool/objtool",
    packages: &["linux-kbuild-6.1", "linux-headers-amd64"],
};

/// The tools with which an ISO is made.
pub const ISO: &[Tool] = &[GRUB_MKRESCUE, GRUB_PC, XORRISO, MTOOLS];

/// All tools.
pub const ALL: &[Tool] = &[
    QEMU,
    BOCHS,
    BOCHS_BIOS,
    VGA_BIOS,
    GRUB_MKRESCUE,
    GRUB_PC,
    XORRISO,
    MTOOLS,
    MMDEBSTRAP,
    CHROOT,
];

/// Tools that are not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("missing: {}; install with: {}", names(.0), install_command(.0))]
pub struct Missing(pub Vec<Tool>);

fn names(tools: &[Tool]) -> String {
    tools.iter().map(|tool| tool.what).collect::<Vec<_>>().join(", ")
}

/// The Debian packages of these tools, each once.
#[must_use]
pub fn packages(tools: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<_> = tools.iter().flat_map(|tool| tool.packages).copied().collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The command that installs these tools.
#[must_use]
pub fn install_command(tools: &[Tool]) -> String {
    format!("apt-get install --no-install-recommends {}", packages(tools).join(" "))
}

/// Whether a tool is installed.
#[must_use]
pub fn is_installed(tool: &Tool) -> bool {
    let path = Path::new(tool.what);
    if path.is_absolute() {
        return path.exists();
    }
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).any(|directory| is_executable(&directory.join(path)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Checks that tools are installed.
///
/// # Errors
/// The error names the tools that are not installed.
pub fn require(tools: &[Tool]) -> Result<(), Missing> {
    let mut missing: Vec<Tool> = Vec::new();
    for tool in tools.iter().filter(|tool| !is_installed(tool)) {
        if !missing.contains(tool) {
            missing.push(*tool);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

/// How a child process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It ended by itself.
    Exited(ExitStatus),
    /// It ran longer than it may, and was killed.
    TimedOut(Duration),
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "{status}"),
            Self::TimedOut(limit) => write!(f, "no end within {} s", limit.as_secs()),
        }
    }
}

/// Runs a command to its end, but no longer than `limit`, with both of its outputs in `output`.
/// Returns how it ended and how long it ran.
///
/// # Errors
/// If it could not be started, waited for, or killed.
pub fn run(command: &mut Command, output: File, limit: Duration) -> io::Result<(Ending, Duration)> {
    let started = Instant::now();
    let mut child = command.stdout(output.try_clone()?).stderr(output).spawn()?;
    let ending = match child.wait_timeout(limit)? {
        Some(status) => Ending::Exited(status),
        None => {
            child.kill()?;
            child.wait()?;
            Ending::TimedOut(limit)
        }
    };
    Ok((ending, started.elapsed()))
}

/// A command without input.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let tool = Tool { what: "no-such-emulator", packages: &["emulators"] };
        let error =
            require(&[Tool { what: "sh", packages: &["dash"] }, tool]).expect_err("missing");
        assert_eq!(error, Missing(vec![tool]));
        assert_eq!(
            error.to_string(),
            "missing: no-such-emulator; install with: \
             apt-get install --no-install-recommends emulators"
        );
        assert_eq!(require(&[Tool { what: "/bin/sh", packages: &["dash"] }]), Ok(()));
    }

    #[test]
    fn a_command_that_does_not_end_is_killed() {
        let output = tempfile::tempfile().expect("a temporary file");
        let limit = Duration::from_millis(50);
        let (ending, took) =
            run(command("sleep").arg("60"), output, limit).expect("sleep can be run");
        assert_eq!(ending, Ending::TimedOut(limit));
        assert!(took < Duration::from_secs(30), "took {took:?}");
    }
}
