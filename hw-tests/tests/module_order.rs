//! The modules of the bare-metal packages stand in an order, which each package's head states as a
//! numbered list, and import only from modules above them in it: so there is no circle. And what is
//! not a test depends on no package that is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hw_tests::workspace;

/// The modules of a folder, each a file or a folder of its own.
struct Modules {
    /// In the order that the folder's head states.
    order: Vec<String>,
    /// The source of each, without comments.
    sources: BTreeMap<String, String>,
    /// How they name each other: `crate::` or `super::`.
    beginning: &'static str,
}

/// The names in the numbered list of a head: ``//! 1. `name`: what it is for``.
fn listed(head: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in head.lines().filter_map(|line| line.strip_prefix("//! ")) {
        if let Some((number, text)) = line.split_once(". `")
            && number.parse() == Ok(names.len() + 1)
            && let Some((name, _)) = text.split_once('`')
        {
            names.push(name.to_owned());
        }
    }
    names
}

/// The names that stand in a source after the beginning of a path, also those in braces.
fn named_after(source: &str, beginning: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in source.match_indices(beginning) {
        let before = source[..at].chars().next_back();
        if before.is_some_and(|letter| letter.is_alphanumeric() || "_:".contains(letter)) {
            continue;
        }
        let rest = &source[at + beginning.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(members(group).into_iter().map(identifier)),
            None => names.push(identifier(rest)),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// The members of a group up to its closing brace, each with all that follows it.
fn members(group: &str) -> Vec<&str> {
    let mut members = vec![group.trim_start()];
    let mut depth = 0;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(group[at + 1..].trim_start()),
            _ => {}
        }
    }
    members
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// A source without its comments, whose links may lead anywhere.
fn without_comments(source: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    source.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// The Rust files of a folder and of those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry of a folder of sources").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

impl Modules {
    fn read(folder: &str, head: &str) -> Self {
        let folder = workspace::root().join(folder);
        let order = listed(&fs::read_to_string(folder.join(head)).expect("the folder's head"));
        let mut sources = BTreeMap::<String, String>::new();
        for path in files(&folder) {
            let within = path.strip_prefix(&folder).expect("a path in the folder");
            if within == Path::new(head) {
                continue;
            }
            let first = within.iter().next().map(Path::new).and_then(Path::file_stem);
            let name = first.expect("a module's name").to_string_lossy().into_owned();
            let source = fs::read_to_string(&path).expect("a source");
            *sources.entry(name).or_default() += &without_comments(&source);
        }
        let beginning = if head == "mod.rs" { "super::" } else { "crate::" };
        Self { order, sources, beginning }
    }

    /// Each module, and what it names of the others.
    fn imports(&self) -> BTreeSet<(&str, String)> {
        let mut imports = BTreeSet::new();
        for (module, source) in &self.sources {
            let names = named_after(source, self.beginning);
            imports.extend(names.into_iter().map(|name| (module.as_str(), name)));
        }
        imports
    }

    /// The module that a name after `crate::` leads to: itself, or where a macro is that it
    /// exports.
    fn module_of<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let exported = format!("macro_rules! {name} ");
        let mut sources = self.sources.iter();
        match self.sources.contains_key(name) {
            true => Some(name),
            false => sources
                .find_map(|(module, source)| source.contains(&exported).then_some(module.as_str())),
        }
    }

    /// What is wrong with the order, and against it.
    fn violations(&self) -> Vec<String> {
        let place = |name: &str| self.order.iter().position(|listed| listed == name);
        let mut wrong = Vec::new();
        for name in self.sources.keys().filter(|name| place(name).is_none()) {
            wrong.push(format!("`{name}` has no place in the order"));
        }
        for name in self.order.iter().filter(|name| !self.sources.contains_key(*name)) {
            wrong.push(format!("`{name}` has a place in the order, and no file"));
        }
        for (module, name) in self.imports() {
            match self.module_of(&name) {
                None => wrong.push(format!("`{module}` imports `{name}`, which is no module")),
                Some(other) if other == module || place(other) < place(module) => {}
                Some(other) => wrong.push(format!("`{module}` imports `{other}`, from below")),
            }
        }
        wrong
    }
}

fn check(folder: &str, head: &str) {
    let modules = Modules::read(folder, head);
    assert!(!modules.imports().is_empty(), "no import is found in {folder}");
    let wrong = modules.violations();
    assert!(wrong.is_empty(), "{folder}:\n{}", wrong.join("\n"));
}

/// The packages of `hw-tests` that a manifest depends on.
fn of_hw_tests(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(workspace::root().join(manifest)).expect("a manifest");
    let names = text.lines().filter(|line| line.starts_with("hw-")).map(|line| {
        line.split(|letter: char| ".= ".contains(letter)).next().unwrap_or_default().to_owned()
    });
    names.collect()
}

#[test]
fn no_example_and_no_platform_depends_on_the_test_harness() {
    assert_eq!(of_hw_tests("examples/minimal-host/Cargo.toml"), ["hw-platform"]);
    assert_eq!(of_hw_tests("examples/Cargo.toml"), [""; 0]);
    assert_eq!(of_hw_tests("hw-tests/platform/Cargo.toml"), [""; 0]);
    // What is read is what is there.
    assert!(of_hw_tests("hw-tests/kernel/Cargo.toml").contains(&"hw-protocol".to_owned()));
}

#[test]
fn the_platforms_modules_import_only_from_above() {
    check("hw-tests/platform/src", "lib.rs");
}

#[test]
fn the_files_of_the_platforms_memory_import_only_from_above() {
    check("hw-tests/platform/src/memory", "mod.rs");
}

#[test]
fn the_kernels_modules_import_only_from_above() {
    check("hw-tests/kernel/src", "main.rs");
}

#[test]
fn the_files_of_the_kernels_cases_import_only_from_above() {
    check("hw-tests/kernel/src/cases", "mod.rs");
}

#[test]
fn every_way_to_name_a_module_is_an_import() {
    let source = "use crate::{a, b::{c, d}, e};\nuse crate::f;\nlet x = crate::g::h(); // crate::i\n\
        $crate::j::k!();\nother_crate::l();";
    assert_eq!(named_after(&without_comments(source), "crate::"), ["a", "b", "e", "f", "g", "j"]);
}

#[test]
fn a_circle_and_what_the_order_does_not_know_are_found() {
    let sources = [
        ("a", "use crate::b;"),
        ("b", "use crate::a; macro_rules! shout { () => { $crate::b::c() } }"),
        ("c", "use crate::{Item, c, shout};"),
    ];
    let modules = Modules {
        order: listed("//! 1. `a`: one.\n//! 2. `b`: two.\n//! 3. `gone`: three.\nmod a;\n"),
        sources: sources.map(|(name, source)| (name.to_owned(), source.to_owned())).into(),
        beginning: "crate::",
    };
    assert_eq!(
        modules.violations(),
        [
            "`c` has no place in the order",
            "`gone` has a place in the order, and no file",
            "`a` imports `b`, from below",
            "`c` imports `Item`, which is no module",
            "`c` imports `b`, from below",
        ]
    );
}
