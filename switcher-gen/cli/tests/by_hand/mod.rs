//! The program on files that somebody has assembled: the switcher written by hand, right or broken.

#![allow(dead_code, reason = "each test uses some of it")]

#[path = "../../../prove/tests/gas/mod.rs"]
pub(crate) mod gas;

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

pub(crate) const REFERENCE: [&str; 2] = ["--variant", "intel-4level"];

pub(crate) fn switcher(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_switcher")).args(args).output().unwrap()
}

/// What a run that ends with `code` prints, and what it complains of.
#[track_caller]
pub(crate) fn ends(code: i32, args: &[&str]) -> (String, String) {
    let output = switcher(args);
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    (stdout, stderr)
}

#[track_caller]
pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// An object file of [`gas::SWITCHER`] with these replacements.
pub(crate) struct Elf(tempfile::TempDir, PathBuf);

impl Elf {
    #[track_caller]
    pub(crate) fn new(replacements: &[(&str, &str)]) -> Self {
        let source = gas::replaced(gas::SWITCHER, replacements);
        Self::of(&gas::assemble(&source, &[]))
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs.o");
        std::fs::write(&path, bytes).unwrap();
        Self(dir, path)
    }

    pub(crate) fn path(&self) -> &str {
        self.1.to_str().unwrap()
    }

    pub(crate) fn args<'a>(&'a self, command: &[&'a str]) -> Vec<&'a str> {
        [command, &REFERENCE, &["--elf", self.path()]].concat()
    }
}

/// What does not check an address before SYSRETQ: the host is at stake.
pub(crate) const UNCHECKED: (&str, &str) = ("\tja\tentry_IRETQ_switcher\n", "");
/// What does not look at CS and SS of the frame before SYSRETQ: a guest is at stake.
pub(crate) const UNSELECTED: (&str, &str) = (
    "\tcmpl\t$USER_CS, IRET_CS(%rsp)\n\tjne\tentry_IRETQ_switcher\n\
     \tcmpl\t$USER_DS, IRET_SS(%rsp)\n\tjne\tentry_IRETQ_switcher\n",
    "",
);
/// What leaves RDI of the guest in a register of the host's: a contract is at stake.
pub(crate) const UNCLEARED: (&str, &str) =
    ("\tclear_all ecx, edx, esi, edi, r8d,", "\tclear_all ecx, edx, esi, r8d,");
/// What never returns by SYSRETQ where it may choose: speed is at stake.
pub(crate) const UNHURRIED: (&str, &str) =
    ("\tmovq\tIRET_RSP(%rsp), %rsp\n\tsysretq\n\t/*", "\tjmp\tentry_IRETQ_switcher\n\t/*");
