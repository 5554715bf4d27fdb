//! `switcher diff`, as users and scripts see it.

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// What a run that ends with `code` prints, and what it complains of.
#[track_caller]
fn ends(code: i32, args: &[&str]) -> (String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_switcher")).arg("diff").args(args).output();
    let output = output.unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    (stdout, stderr)
}

#[track_caller]
fn json(code: i32, args: &[&str]) -> Value {
    let (text, _) = ends(code, &[args, &["--format", "json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The lines of a diff that are only in the first, and only in the second.
fn changed(text: &str) -> (Vec<&str>, Vec<&str>) {
    let body = || text.lines().skip_while(|line| !line.starts_with("@@ "));
    let with = |sign: char| body().filter_map(move |line| line.strip_prefix(sign)).collect();
    (with('-'), with('+'))
}

#[test]
fn two_variants_differ_where_one_has_more() {
    let (text, stderr) = ends(1, &["intel-4level", "intel-4level+verw"]);
    // A difference is a result and no complaint.
    assert_eq!(stderr, "");
    assert!(text.starts_with("--- intel-4level  "), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("+++ intel-4level+verw  "), "{text}");
    let (removed, added) = changed(&text);
    assert_eq!(removed, [""; 0], "{text}");
    assert!(added.iter().any(|line| line.contains("verw")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("@@ ") && line.ends_with(':')), "{text}");

    // The other way round, it is the other way round.
    let (back, _) = ends(1, &["intel-4level+verw", "intel-4level"]);
    assert_eq!(changed(&back), (added, removed));
}

#[test]
fn json_and_columns_say_the_same() {
    let args = ["intel-4level", "amd-4level"];
    let (text, _) = ends(1, &args);
    let (removed, added) = changed(&text);
    let report = json(1, &args);
    assert_eq!(report["verdict"], "different");
    assert_eq!(report["removed"], removed.len());
    assert_eq!(report["added"], added.len());
    assert_eq!(report["a"]["name"], "intel-4level");
    assert_eq!(report["b"]["fingerprint"].as_str().unwrap().len(), 64);
    let lines = report["hunks"].as_array().unwrap().iter();
    let lines: Vec<_> = lines.flat_map(|hunk| hunk["lines"].as_array().unwrap()).collect();
    let of = |change: &str| -> Vec<&str> {
        let lines = lines.iter().filter(|line| line["change"] == change);
        lines.map(|line| line["text"].as_str().unwrap()).collect()
    };
    assert_eq!((of("removed"), of("added")), (removed.clone(), added.clone()));

    let (columns, _) = ends(1, &[&args[..], &["-y", "--width", "200"]].concat());
    assert_eq!(
        columns,
        ends(1, &[&args[..], &["--format", "side-by-side", "--width", "200"]].concat()).0
    );
    for line in removed.iter().chain(&added) {
        assert!(columns.contains(line.trim()), "{line} in {columns}");
    }
    assert!(columns.lines().all(|line| line.chars().count() <= 200), "{columns}");
}

#[test]
fn context_is_as_long_as_it_was_asked_to_be() {
    let lines = |context: &str| {
        let (text, _) = ends(1, &["intel-4level", "intel-4level-ibt", "-U", context]);
        let same = text.lines().skip_while(|line| !line.starts_with("@@ "));
        same.filter(|line| line.starts_with(' ')).count()
    };
    assert_eq!(lines("0"), 0);
    assert!(lines("1") < lines("5"));
}

#[test]
fn what_changes_no_instruction_is_equal() {
    // PCIDs change what the runtime puts into the slots.
    for other in ["intel-4level", "4level-intel", "intel-4level-pcid"] {
        let (text, stderr) = ends(0, &["intel-4level", other]);
        assert!(text.ends_with("\nno instruction differs\n"), "{text}");
        assert_eq!(stderr, "");
        assert_eq!(json(0, &["intel-4level", other])["verdict"], "equal");
    }
}

struct Elf(#[expect(dead_code, reason = "lives as long as the file")] tempfile::TempDir, PathBuf);

impl Elf {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("theirs.o");
        std::fs::write(&path, bytes).unwrap();
        Self(dir, path)
    }

    fn path(&self) -> &str {
        self.1.to_str().unwrap()
    }
}

/// The object that `emit` writes is the variant, whichever it is.
#[test]
fn an_object_of_a_variant_is_equal_to_the_variant() {
    for name in
        ["intel-4level", "intel-la57-ibt+ibrs+rsb+bhb", "amd-4level-pku-percpu-current+untrain"]
    {
        let image = switcher_gen::Image::new(&name.parse().unwrap()).unwrap();
        let elf = Elf::new(&switcher_listing::object_file(&image).unwrap());
        let (text, _) = ends(0, &[name, "--elf", elf.path()]);
        assert!(text.contains("no instruction differs"), "{text}");
        assert!(!text.contains("not compared"), "{text}");
        let other = if name == "intel-4level" { "intel-4level-pku" } else { "intel-4level" };
        ends(1, &[other, "--elf", elf.path()]);
    }
}

#[test]
fn somebody_elses_code_differs_where_it_was_changed() {
    let assemble = |replacements: &[(&str, &str)]| {
        Elf::new(&gas::assemble(&gas::replaced(gas::SWITCHER, replacements), &[]))
    };
    let (right, wrong) = (assemble(&[]), assemble(&[("\tja\tentry_IRETQ_switcher\n", "")]));
    let [right, wrong] = [&right, &wrong].map(|elf| {
        let (text, stderr) = ends(1, &["intel-4level", "--elf", elf.path()]);
        assert_eq!(stderr, "");
        text
    });
    // Fields have names on both sides, so that they do not differ.
    assert!(right.contains("gs:[tss_extra."), "{right}");
    assert!(right.contains("not compared: the entries of events: only the first has symbols"));
    // What was taken away is what one diff has more of than the other.
    let (right, wrong) = (changed(&right).1, changed(&wrong).1);
    let jumps = |lines: &[&str]| {
        lines.iter().filter(|line| line.contains("ja ") && line.contains("entry_IRETQ")).count()
    };
    assert_eq!(jumps(&right), jumps(&wrong) + 1, "{right:#?}");
}

/// Where the code has its data is said as `prove` is told, and then it is no difference.
#[test]
fn offsets_of_the_data_are_no_difference_once_they_are_said() {
    let own = Elf::new(&gas::assemble(gas::SWITCHER, &[]));
    let moved = Elf::new(&gas::assemble(gas::SWITCHER, &[("GS_TSS_EXTRA", 0x180)]));
    let added = |args: &[&str]| {
        let report = json(1, &[&["intel-4level", "--elf"], args].concat());
        report["added"].as_u64().unwrap()
    };
    let (plain, unsaid) = (added(&[own.path()]), added(&[moved.path()]));
    assert_eq!(added(&[moved.path(), "--gs-tss-extra", "0x180"]), plain);
    assert!(unsaid > plain, "{unsaid} > {plain}");
}

#[test]
fn wrong_input_is_refused() {
    for args in [
        &[][..],
        &["intel-4level"],
        &["intel-4level", "via-4level"],
        &["intel-4level", "amd-4level", "--elf", "theirs.o"],
        &["intel-4level", "amd-4level", "--gs-tss", "0x80"],
        &["intel-4level", "--elf", "/nonexistent.o"],
        &["intel-4level", "amd-4level", "--format", "yaml"],
        &["intel-4level", "amd-4level", "-y", "--format", "json"],
        &["intel-4level", "amd-4level", "-U", "-1"],
    ] {
        let (text, stderr) = ends(2, args);
        assert_eq!(text, "", "{args:?}");
        assert!(stderr.starts_with("error: "), "{args:?}: {stderr}");
    }
    let garbage = Elf::new(b"not an object");
    let (_, stderr) = ends(2, &["intel-4level", "--elf", garbage.path()]);
    assert!(stderr.contains("theirs.o"), "{stderr}");
}
