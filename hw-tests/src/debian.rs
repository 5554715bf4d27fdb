//! Programs of another release of Debian than this machine's, in a root directory of their own.
//!
//! `mmdebstrap` unpacks their packages and all their dependencies below the build's target
//! directory. Nothing of the machine's own system changes, and only what is asked for is started
//! there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::tools::{self, BOCHS_BIOS, CHROOT, Ending, MMDEBSTRAP, Tool, VGA_BIOS};
use crate::workspace;

/// The tools with which a root is made and entered.
pub const TOOLS: &[Tool] = &[MMDEBSTRAP, CHROOT];

/// A root with a program that this machine's own release does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// The name of the directory, in the target directory.
    pub directory: &'static str,
    /// The release of Debian. No mirror is named: see [`make`](Self::make).
    pub suite: &'static str,
    /// The packages to unpack, besides their dependencies.
    pub packages: &'static [&'static str],
    /// Files that must exist besides what the probe needs, by their paths in the root.
    pub files: &'static [&'static str],
    /// A command that ends by itself, by its path in the root, and the text that it must print.
    pub probe: (&'static [&'static str], &'static str),
}

/// Bochs 3, which knows more CPUs than 2.7.
pub const BOCHS3: Root = Root {
    directory: "bochs3-root",
    suite: "trixie",
    packages: &["bochs", "bochs-term", "bochsbios", "vgabios"],
    files: &[
        BOCHS_BIOS.what,
        VGA_BIOS.what,
        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_rfb_gui.so",
    ],
    probe: (&["/usr/bin/bochs-bin", "--help", "cpu"], "sapphire_rapids"),
};

/// A root that does not exist, or whose program does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("missing: {path}, packages of Debian's {suite}; make it as root with: {command}: {why}")]
pub struct NoRoot {
    path: String,
    suite: &'static str,
    command: String,
    why: String,
}

/// How long making a root may take: the packages may have to be fetched over a slow line.
const MAKING: Duration = Duration::from_secs(600);
/// How long the probe may take, which only prints.
const PROBING: Duration = Duration::from_secs(30);

impl Root {
    /// The directory of the root.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        workspace::target().join(self.directory)
    }

    /// A command in the root, without input. Only the user root may run it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        command_in(&self.path(), program)
    }

    /// Checks that the root exists, and that its program runs.
    ///
    /// # Errors
    /// The error says what is wrong, and how to make the root.
    pub fn require(&self) -> Result<(), NoRoot> {
        let probed = match self.path().exists() && !is_root() {
            true => Err("it is there, but this is not root, who alone may enter it".into()),
            false => self.probe(&self.path()),
        };
        probed.map_err(|why| self.no_root(why))
    }

    /// Makes the root, unless it exists and its program runs. A broken root is made anew.
    ///
    /// The mirror is the default of `mmdebstrap` for the suite. A machine that does not reach it
    /// has others in its own apt configuration, so each archive of Debian's there is tried next.
    ///
    /// # Errors
    /// The error says what went wrong, and how to make the root by hand.
    pub fn make(&self) -> Result<(), NoRoot> {
        if self.require().is_ok() {
            return Ok(());
        }
        self.make_anew().map_err(|why| self.no_root(why))?;
        self.require()
    }

    fn make_anew(&self) -> Result<(), String> {
        if !is_root() {
            return Err("this is not root".into());
        }
        tools::require(TOOLS).map_err(|why| why.to_string())?;
        println!("making {}", self.path().display());
        let text = |why: io::Error| why.to_string();
        let target = workspace::target();
        fs::create_dir_all(&target).map_err(text)?;
        // It is made beside its final place, so that an incomplete root is never taken for a root.
        let new = tempfile::Builder::new().prefix(self.directory).tempdir_in(&target);
        let new = new.map_err(text)?;
        fs::set_permissions(new.path(), fs::Permissions::from_mode(0o755)).map_err(text)?;

        let mut why = self.unpack(new.path(), None);
        for mirror in if why.is_err() { mirrors() } else { BTreeSet::new() } {
            if let Err(first) = why {
                why = self.unpack(new.path(), Some(&mirror)).map_err(|why| first + "\n" + &why);
            }
        }
        why?;
        // Older versions of mmdebstrap make no such links, but the packages of newer releases rely
        // on them.
        for link in ["bin", "sbin", "lib", "lib64"] {
            let place = new.path().join(link);
            if place.symlink_metadata().is_err() {
                symlink(Path::new("usr").join(link), place).map_err(text)?;
            }
        }
        self.probe(new.path())?;
        let path = self.path();
        match fs::remove_dir_all(&path) {
            Err(why) if why.kind() != io::ErrorKind::NotFound => Err(text(why)),
            _ => fs::rename(new.keep(), &path).map_err(text),
        }
    }

    /// The arguments of `mmdebstrap`. Recommended packages are left out: they are graphical
    /// displays.
    fn arguments(&self, directory: &Path, mirror: Option<&str>) -> Vec<String> {
        let mut arguments = vec![
            "--mode=root".into(),
            "--variant=extract".into(),
            "--aptopt=APT::Install-Recommends \"false\"".into(),
            format!("--include={}", self.packages.join(",")),
            self.suite.into(),
            directory.display().to_string(),
        ];
        arguments.extend(mirror.map(str::to_owned));
        arguments
    }

    fn unpack(&self, directory: &Path, mirror: Option<&str>) -> Result<(), String> {
        for entry in fs::read_dir(directory).map_err(|why| why.to_string())? {
            // This removes what an attempt has left, because mmdebstrap wants an empty directory.
            let path = entry.map_err(|why| why.to_string())?.path();
            let is_directory = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
            let removed =
                if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.map_err(|why| why.to_string())?;
        }
        let mut command = tools::command(MMDEBSTRAP.what);
        command.args(self.arguments(directory, mirror));
        match output(&mut command, MAKING)? {
            (Ending::Exited(status), _) if status.success() => Ok(()),
            (ending, text) => Err(format!("{}: {ending}\n{}", MMDEBSTRAP.what, last_lines(&text))),
        }
    }

    fn probe(&self, directory: &Path) -> Result<(), String> {
        let ([program, arguments @ ..], wanted) = self.probe else {
            return Err("there is no program to try".into());
        };
        // Whether a link leads to a file can only be seen from within the root.
        let is_there =
            |file: &str| directory.join(file.trim_start_matches('/')).symlink_metadata().is_ok();
        if let Some(file) = [program].into_iter().chain(self.files).find(|file| !is_there(file)) {
            return Err(format!("there is no {file} in it"));
        }
        let mut command = command_in(directory, program);
        let (ending, text) = output(command.args(arguments), PROBING)?;
        if text.contains(wanted) {
            return Ok(());
        }
        let text = last_lines(&text);
        Err(format!("{program} does not print `{wanted}`: {ending}\n{text}"))
    }

    fn no_root(&self, why: String) -> NoRoot {
        let path = self.path();
        let arguments = self.arguments(&path, None);
        let quoted = arguments.iter().map(|argument| match argument.contains(['"', ' ']) {
            true => format!("'{argument}'"),
            false => argument.clone(),
        });
        let command =
            [MMDEBSTRAP.what.to_owned()].into_iter().chain(quoted).collect::<Vec<_>>().join(" ");
        NoRoot { path: path.display().to_string(), suite: self.suite, command, why }
    }
}

fn command_in(directory: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = tools::command(CHROOT.what);
    command.arg(directory).arg(program);
    command
}

/// Whether this process may enter a root.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Runs a command to its end, and returns how it ended, with both of its outputs as text.
/// What a command prints, and how it has ended.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<(Ending, String), String> {
    let mut run = || {
        let file = tempfile::NamedTempFile::new()?;
        let (ending, _) = tools::run(command, File::create(file.path())?, limit)?;
        let bytes = fs::read(file.path())?;
        Ok((ending, String::from_utf8_lossy(&bytes).into_owned()))
    };
    run().map_err(|why: io::Error| why.to_string())
}

/// The end of a long text.
pub(crate) fn last_lines(text: &str) -> String {
    const SHOWN: usize = 8;
    let lines: Vec<_> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// The archives of Debian's that this machine's own apt is configured to use, without those that
/// only have updates for one release.
fn mirrors() -> BTreeSet<String> {
    let mut command = tools::command("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]);
    let (_, text) = output(&mut command, PROBING).unwrap_or((Ending::TimedOut(PROBING), "".into()));
    debians(&text)
}

fn debians(targets: &str) -> BTreeSet<String> {
    let of_debian = targets.lines().filter_map(|line| line.strip_prefix("Debian "));
    of_debian.filter(|archive| !archive.contains("security")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_is_missing_is_named_with_the_command_that_makes_it() {
        let root = Root { directory: "no-such-root", ..BOCHS3 };
        let why = root.require().expect_err("there is none").to_string();
        let path = root.path();
        let path = path.display();
        assert_eq!(
            why,
            format!(
                "missing: {path}, packages of Debian's trixie; make it as root with: mmdebstrap \
                 --mode=root --variant=extract '--aptopt=APT::Install-Recommends \"false\"' \
                 --include=bochs,bochs-term,bochsbios,vgabios trixie {path}: \
                 there is no /usr/bin/bochs-bin in it"
            )
        );
    }

    #[test]
    fn a_root_whose_program_does_not_run_is_none() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let program = directory.path().join(BOCHS3.probe.0[0].trim_start_matches('/'));
        fs::create_dir_all(program.parent().expect("a directory")).expect("writing");
        fs::write(&program, "").expect("writing");
        let why = BOCHS3.probe(directory.path()).expect_err("files are missing");
        assert_eq!(why, format!("there is no {} in it", BOCHS_BIOS.what));
        let root = Root { files: &[], ..BOCHS3 };
        let why = root.probe(directory.path()).expect_err("it is no program");
        assert!(why.starts_with("/usr/bin/bochs-bin does not print `sapphire_rapids`"), "{why}");
    }

    #[test]
    fn the_machines_own_archives_of_debian_are_found_once_each() {
        let targets = "Debian http://first/debian/\nDebian http://first/debian/\n\
                       Debian http://second/debian-security/\nOther http://third/\n http://none/\n";
        assert_eq!(debians(targets), BTreeSet::from(["http://first/debian/".to_owned()]));
    }
}
