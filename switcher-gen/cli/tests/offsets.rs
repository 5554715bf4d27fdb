//! `switcher offsets --from`: the structs of somebody else beside ours.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with files that were written or compiled.
struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            fs::write(folder.path(name), text).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the program in the folder.
    fn switcher(&self, arguments: &[&str]) -> Output {
        let mut program = Command::new(env!("CARGO_BIN_EXE_switcher"));
        program.arg("offsets").args(arguments).current_dir(self.0.path()).output().unwrap()
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let output = self.switcher(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is said of a wrong command line or input.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.switcher(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        stderr
    }

    fn compile(&self, source: &str, to: &str) {
        let arguments = ["-g", "-c", "-o", to, source];
        let output =
            Command::new("gcc").args(arguments).current_dir(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A kernel with another struct, of the PVCS of 2026.
const TOML: &str = "
[tss]
fields = { sp0 = 4, sp2 = 20, ist = 36 }
[tss_extra]
at = 0x68
size = 0x80
[tss_extra.fields]
host_cr3 = 0
host_rsp = { at = 8, size = 4 }
host_gs_base = { at = 0x10, size = 8 }
enter_cr3 = { at = 0x18, size = 8 }
[pvcs.fields]
rip = 0x58
rcx = 0x60
r11 = 0x68
";

#[test]
fn a_table_marks_what_differs() {
    let folder = Folder::new(&[("layout.toml", TOML)]);
    let text = folder.stdout(&["--from", "layout.toml"]);
    let words: Vec<Vec<_>> = text.lines().map(|it| it.split_whitespace().collect()).collect();
    let row = |line: &str| {
        let line: Vec<_> = line.split_whitespace().collect();
        assert!(words.contains(&line), "{line:?}: {text}");
    };
    row("layout.toml: TOML");
    row("tss_extra: ours 128 bytes at +0x80 of the block; theirs 128 bytes at +0x68 of the block");
    row("host_cr3 0x0000 8 0x0000 ?");
    row("host_rsp 0x0008 8 0x0008 4 resized");
    row("host_gs_base 0x0010 8 only theirs");
    row("enter_cr3 0x0010 8 0x0018 8 moved");
    row("smod_rsp 0x0078 8 only ours");
    row("ist1 = ist 0x0024 8 0x0024 ?");
    row("ist2 0x002c 8 only ours");
    row("ours is of 2026");
    row("rip 0x0058 8 0x0058 ?");
    assert!(!text.contains("_line0"), "{text}");
    let older = folder.stdout(&["--from", "layout.toml", "--pvcs", "v2024"]);
    assert!(older.contains("ours is of 2024") && older.contains("0x0060 8"), "{older}");
}

#[test]
fn json_has_the_same() {
    let folder = Folder::new(&[("layout.toml", TOML)]);
    let json = folder.stdout(&["--from", "layout.toml", "--format", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["files"][0]["source"], "toml");
    assert_eq!(json["pvcs_revision"], "v2026");
    let extra = &json["structs"][1];
    assert_eq!((&extra["name"], &extra["theirs"]["at"]), (&"tss_extra".into(), &0x68.into()));
    let fields = extra["fields"].as_array().unwrap();
    let of = |name: &str| {
        let is_it = |row: &&Value| row["ours"]["name"] == name || row["theirs"]["name"] == name;
        fields.iter().find(is_it).unwrap()
    };
    assert_eq!(of("enter_cr3")["difference"], "moved");
    assert_eq!(of("enter_cr3")["theirs"]["at"], 0x18);
    assert_eq!(of("host_cr3")["difference"], Value::Null);
    assert_eq!(of("host_gs_base")["ours"], Value::Null);
    // Written to a file, it is the same.
    folder.stdout(&["--from", "layout.toml", "--format", "json", "-o", "out.json"]);
    let written: Value =
        serde_json::from_slice(&fs::read(folder.path("out.json")).unwrap()).unwrap();
    assert_eq!(written, json);
}

#[test]
fn our_own_header_compiled_differs_from_ours_in_nothing() {
    let folder = Folder::new(&[]);
    folder.stdout(&["--format", "c", "-o", "switcher.h"]);
    let source = "#include \"switcher.h\"\nstruct switcher_per_cpu a; struct switcher_PVCS b;\n";
    for (pvcs, revision) in [("switcher_pvcs", "v2024"), ("switcher_pvcs_v2026", "v2026")] {
        fs::write(folder.path("ours.c"), source.replace("switcher_PVCS", pvcs)).unwrap();
        folder.compile("ours.c", "ours.o");
        let pvcs = format!("pvcs={pvcs}");
        let structs = ["tss_struct=switcher_per_cpu", "tss=switcher_tss"];
        let structs = [&structs[..], &["tss_extra=switcher_tss_extra", &pvcs]].concat();
        let mut arguments = vec!["--from", "ours.o", "--format", "json"];
        arguments.extend(structs.iter().flat_map(|it| ["--struct", it]));
        let json: Value = serde_json::from_str(&folder.stdout(&arguments)).unwrap();
        assert_eq!(json["pvcs_revision"], revision);
        for compared in json["structs"].as_array().unwrap() {
            assert_eq!(compared["ours"], compared["theirs"], "{compared}");
            for row in compared["fields"].as_array().unwrap() {
                // The header has what is reserved, and the halves of split numbers.
                let name = row["theirs"]["name"].as_str().unwrap();
                let is_part = name.starts_with('_') || name.contains('[');
                assert!(row["difference"].is_null() || is_part, "{row}");
            }
        }
    }
}

#[test]
fn files_complete_each_other_or_are_named() {
    let header = "#define TSS_EX_host_cr3 0x68\n#define TSS_EX_smod_rsp 0xE0\n";
    let wrong = "#define TSS_EX_host_cr3 0x68\n#define TSS_EX_enter_cr3 0x78\n";
    let folder = Folder::new(&[("a.toml", TOML), ("b.h", header), ("c.h", wrong)]);
    let text = folder.stdout(&["--from", "a.toml", "--from", "b.h"]);
    assert!(text.contains("smod_rsp") && !text.contains("does not say"), "{text}");
    let alone = folder.stdout(&["--from", "b.h"]);
    assert!(alone.contains("a header does not say where the struct begins"), "{alone}");
    assert!(alone.contains("pvcs: in none of the files"), "{alone}");
    let error = folder.refused(&["--from", "a.toml", "--from", "b.h", "--from", "c.h"]);
    assert!(error.contains("a.toml and c.h contradict each other: tss_extra.enter_cr3"), "{error}");
}

#[test]
fn wrong_inputs_and_command_lines_are_refused() {
    let folder = Folder::new(&[("a.toml", TOML), ("b.toml", "[tss_ectra]\nsize = 1\n")]);
    for language in ["rust", "c", "gas"] {
        let error = folder.refused(&["--from", "a.toml", "--format", language]);
        assert!(error.contains("--format json"), "{error}");
    }
    for (arguments, expected) in [
        (&["--from", "b.toml"][..], "cannot use b.toml: "),
        (&["--from", "b.toml"], "do you mean `tss_extra`?"),
        (&["--from", "none"], "cannot use none: No such file"),
        (&["--from", "."], "it is not a file"),
        (&["--from", "a.toml", "--struct", "extra=a"], "no struct `extra`"),
        (&["--from", "a.toml", "--struct", "tss_exta=a"], "maybe it is `tss_extra`"),
        (&["--from", "a.toml", "--struct", "tss_extra"], "write it as tss_extra=NAME"),
        (&["--from", "a.toml", "--struct", "tss=a b"], "no name of a struct in C"),
        (&["--from", "a.toml", "--struct", "tss=a", "--struct", "tss=b"], "given twice"),
        (&["--struct", "tss=a"], "--from <FILE>"),
        (&["--pvcs", "v2024"], "--from <FILE>"),
    ] {
        let error = folder.refused(arguments);
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}
