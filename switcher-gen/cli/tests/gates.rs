//! `--gate` through the command: what a user says of an IDT, and what is answered. Needs binutils.

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::process::Command;

use serde_json::Value;
use switcher_gen::{Image, Variant};

/// One of our objects, whose event stubs have a name of somebody else's.
struct Elf {
    dir: tempfile::TempDir,
    stride: u32,
}

/// What a run of `switcher` prints that ends with `code`, and what it says beside.
#[track_caller]
fn run(code: i32, args: &[&str]) -> [String; 2] {
    let output = Command::new(env!("CARGO_BIN_EXE_switcher")).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text:?}");
    text
}

impl Elf {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs.o");
        let name = path.to_str().unwrap();
        run(0, &["emit", "--variant", "intel-4level", "--format", "elf", "-o", name]);
        let emitted = std::fs::read(&path).unwrap();
        let named = gas::process("ld", &["-r", "--defsym=entries=switcher_event_stubs"], &emitted);
        let without = ["switcher_event_stubs", "switcher_event_stubs_end"];
        let without = without.map(|name| format!("--strip-symbol={name}"));
        let renamed = gas::process("strip", &without.each_ref().map(String::as_str), &named);
        std::fs::write(&path, renamed).unwrap();
        let image = Image::new(&Variant::REFERENCE).unwrap();
        Self { dir, stride: image.gate(1).offset - image.gate(0).offset }
    }

    /// What a command about it prints that ends with `code`.
    #[track_caller]
    fn run(&self, code: i32, command: &str, args: &[&str]) -> [String; 2] {
        let path = self.dir.path().join("theirs.o");
        let all = [command, "--variant", "intel-4level", "--elf", path.to_str().unwrap()];
        run(code, &[&all[..], args].concat())
    }

    /// The same as one text.
    #[track_caller]
    fn ends(&self, code: i32, command: &str, args: &[&str]) -> String {
        self.run(code, command, args).concat()
    }

    /// What a command about it prints as JSON.
    #[track_caller]
    fn json(&self, command: &str, args: &[&str]) -> Value {
        let [stdout, _] = self.run(0, command, &[args, &["--format", "json"]].concat());
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    /// The gates of all vectors, as they are right.
    fn all(&self) -> String {
        format!("0-255=entries,stride={}", self.stride)
    }

    /// Arguments with one gate that is wrong.
    fn with(&self, vector: u8, how: &str) -> [String; 3] {
        let place = |vector: u32| format!("entries+{:#x}", vector * self.stride);
        let after = u32::from(vector) + 1;
        [
            format!("{vector}={}{how}", place(vector.into())),
            format!("0-{}=entries,stride={}", vector - 1, self.stride),
            format!("{after}-255={},stride={}", place(after), self.stride),
        ]
    }
}

#[test]
fn an_idt_of_symbols_is_judged() {
    let elf = Elf::new();
    let unsaid = elf.ends(3, "prove", &["--require", "events"]);
    assert!(unsaid.contains("--gate"), "{unsaid}");

    let all = elf.all();
    let args = ["--require", "events,iretq-frame", "--gate", &all];
    let text = elf.ends(0, "prove", &args);
    assert!(text.contains("theirs.o: proved"), "{text}");
    let sentence =
        "the IDT leads, as `--gate` says, vectors 0 to 255 to every 8 bytes from `entries`";
    assert!(text.contains(sentence), "{text}");
    let json = elf.json("prove", &args);
    assert!(json.to_string().contains("the IDT leads"), "{json}");
}

#[test]
fn a_wrong_gate_is_refuted_by_name() {
    let elf = Elf::new();
    for (vector, how, obligation) in
        [(2, ",ist=0", "gate-ist"), (14, ",dpl=3", "gate-dpl"), (3, ",dpl=0", "gate-dpl")]
    {
        let gates = elf.with(vector, how);
        let args = gates.each_ref().map(|gate| ["--gate", gate.as_str()]);
        let text = elf.ends(1, "prove", args.as_flattened());
        assert!(text.contains(obligation), "{how}: {text}");
    }
    let gates = elf.with(2, ",ist=6,dpl=0");
    let args = gates.each_ref().map(|gate| ["--gate", gate.as_str()]);
    let text = elf.ends(0, "prove", args.as_flattened());
    assert!(text.contains("with IST 6 with DPL 0"), "{text}");
}

#[test]
fn what_is_no_idt_is_wrong_usage() {
    let elf = Elf::new();
    let all = elf.all();
    for (gates, why) in [
        (&["256=entries"][..], "no vector 256"),
        (&["x"], "write a vector"),
        (&["32-255=entries"], "need a stride"),
        (&["33-32=entries,stride=8"], "are none"),
        (&["14=entries,stride=8"], "one alone"),
        (&["14=entries,ist=8"], "no stack of the IST"),
        (&["14=entries,dpl=4"], "no privilege level"),
        (&[&all, "14=entries"], "vector 14 has a gate already"),
        (&["14=entries"], "any of vectors 0 to 13 or any of vectors 15 to 255 leads"),
        (&["0-255=entry,stride=8"], "`entries`"),
        (&["0-255=entries,stride=0x10_0000"], "where the file has no code"),
        (&["0-255=entries+0xffff_ffff_ffff_ffff,stride=0"], "beyond all addresses"),
    ] {
        let args: Vec<_> = gates.iter().flat_map(|gate| ["--gate", gate]).collect();
        let text = elf.ends(2, "prove", &args);
        assert!(text.contains(why), "{gates:?}: {text}");
    }
    // Without a file, there is nothing that it could be said of.
    run(2, &["prove", "--variant", "intel-4level", "--gate", &all]);
}

/// The other commands about a file take it as well.
#[test]
fn every_command_about_a_file_knows_its_idt() {
    let elf = Elf::new();
    let all = elf.all();
    let mutants = |gates: &[&str]| {
        let json = elf.json("mutate", &[gates, &["--every", "1000"]].concat());
        json["variants"][0]["changes"].as_u64().unwrap()
    };
    // Event entries are more code.
    assert!(mutants(&["--gate", &all]) > mutants(&[]));
    let text = elf.ends(2, "cost", &["--gate", "0-3=entries"]);
    assert!(text.contains("need a stride"), "{text}");
}
