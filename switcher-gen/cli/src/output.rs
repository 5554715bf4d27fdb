//! Where results go, and what can become of them.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;
use switcher_prove::Severity;

/// What exit codes mean, as a literal for the help of commands.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0  done; proved; no hole; no difference
  1  failed; refuted, and the host is at stake; a hole; a difference
  2  a wrong command line, or an input that is not what it should be
  3  neither proved nor refuted; an area of `--require` is not judged
  4  refuted, and a guest is at stake, not the host
  5  refuted, and a contract with other code is at stake, no guest
  6  refuted, and nothing but speed is at stake
  130  interrupted: the report, if there is one, is of a part"
    };
}

/// Why a command ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asked for something that makes no sense.
    Usage(String),
    /// It could not be done.
    Failed(String),
    /// Code does not do what is specified.
    Refuted {
        /// Of the gravest finding.
        severity: Severity,
        /// Which code.
        message: String,
    },
    /// It is not known, and that is no success.
    Unknown(String),
    /// Somebody has ended it.
    Interrupted(String),
    /// What was compared differs, as the report says.
    Different,
    /// Nobody reads the output any more.
    PipeClosed,
}

impl Failure {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The number of the exit code.
    pub(crate) const fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) | Self::Different => 1,
            Self::Refuted { severity, .. } => match severity {
                Severity::Host => 1,
                Severity::Guest => 4,
                Severity::Contract => 5,
                Severity::Speed => 6,
            },
            Self::Unknown(_) => 3,
            // As shells say of what SIGINT has ended.
            Self::Interrupted(_) => 130,
            Self::PipeClosed => 0,
        }
    }

    /// What went wrong, with what was being done.
    pub(crate) fn failed(context: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::Failed(format!("{context}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message)
            | Self::Failed(message)
            | Self::Refuted { message, .. }
            | Self::Unknown(message)
            | Self::Interrupted(message) => f.write_str(message),
            Self::Different => f.write_str("what was compared differs"),
            Self::PipeClosed => f.write_str("the output is closed"),
        }
    }
}

/// Writes to standard output and flushes it.
pub(crate) fn print(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes.as_ref()).and_then(|()| stdout.flush()).map_err(|error| {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::PipeClosed,
            _ => Failure::failed("cannot write to standard output", error),
        }
    })
}

/// What a result is written as.
pub(crate) enum Content {
    Text(String),
    Binary(Vec<u8>),
}

/// Writes `content` to the file `to`, or to standard output.
///
/// A file is either written whole or left as it was.
pub(crate) fn write(to: Option<&Path>, content: &Content) -> Result<(), Failure> {
    let bytes = match content {
        Content::Text(text) => text.as_bytes(),
        Content::Binary(bytes) => bytes,
    };
    match to {
        Some(path) => write_file(path, bytes)
            .map_err(|error| Failure::failed(format!("cannot write {}", path.display()), error)),
        None => {
            refuse_binary(content, io::stdout().is_terminal())?;
            print(bytes)
        }
    }
}

/// Prints a report and ends as `verdict` says, even if nobody has read the report to its end.
pub(crate) fn conclude(report: String, verdict: Result<(), Failure>) -> Result<(), Failure> {
    match (write(None, &Content::Text(report)), verdict) {
        (Err(Failure::PipeClosed), Err(verdict)) => Err(verdict),
        (written, verdict) => written.and(verdict),
    }
}

/// How to write a report.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// To be read
    Text,
    /// An object, for programs
    Json,
}

/// `value` as JSON, to be read by people as well.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|json| json + "\n")
        .map_err(|error| Failure::failed("cannot write JSON", error))
}

fn refuse_binary(content: &Content, is_terminal: bool) -> Result<(), Failure> {
    match content {
        Content::Binary(_) if is_terminal => Err(Failure::Usage(
            "this format is binary and would garble the terminal: \
             name a file with `-o FILE`, or redirect the output"
                .into(),
        )),
        _ => Ok(()),
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let existing = fs::metadata(path).ok();
    if existing.as_ref().is_some_and(|file| !file.is_file()) {
        // A device or a pipe: it is written to and not replaced. A directory is an error.
        return OpenOptions::new().write(true).open(path)?.write_all(bytes);
    }
    // The file that a link leads to is what is to be replaced.
    let path = if existing.is_some() { fs::canonicalize(path)? } else { path.to_owned() };
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = (|| {
        OpenOptions::new().write(true).create_new(true).open(&part)?.write_all(bytes)?;
        if let Some(existing) = existing {
            fs::set_permissions(&part, existing.permissions())?;
        }
        fs::rename(&part, &path)
    })();
    if written.is_err() {
        // What is reported is why it could not be written, not what became of the rest.
        let _ = fs::remove_file(&part);
    }
    written
}

/// Where to, as an argument.
#[derive(clap::Args)]
pub(crate) struct Destination {
    /// Write to FILE, as a whole or not at all, instead of to standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_exit_code() {
        // ExitCode can only be looked at.
        let shown = |failure: Failure| format!("{:?}", failure.exit_code());
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(shown(Failure::PipeClosed), code(0));
        assert_eq!(shown(Failure::Failed(String::new())), code(1));
        assert_eq!(shown(Failure::Different), code(1));
        for (severity, number) in Severity::ALL.into_iter().zip([1, 4, 5, 6]) {
            assert_eq!(shown(Failure::Refuted { severity, message: String::new() }), code(number));
        }
        assert_eq!(shown(Failure::Usage(String::new())), code(2));
        assert_eq!(shown(Failure::Unknown(String::new())), code(3));
        assert_eq!(shown(Failure::Interrupted(String::new())), code(130));
    }

    #[test]
    fn a_terminal_is_spared_binaries() {
        let binary = Content::Binary(vec![0x0F, 0x07]);
        assert!(matches!(refuse_binary(&binary, true), Err(Failure::Usage(_))));
        assert!(refuse_binary(&binary, false).is_ok());
        assert!(refuse_binary(&Content::Text("sysret".into()), true).is_ok());
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        write_file(&path, b"first, and longer").unwrap();
        write_file(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_followed_and_a_device_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("out"), dir.path().join("link"));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_file(&link, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write_file(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(write_file(dir.path(), b"").is_err());
    }
}
