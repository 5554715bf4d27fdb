//! What documents and comments say of the tree is so: the files that they name are there, links
//! lead somewhere, lists of files are whole, and README is short.
//!
//! Each comparison is a function that returns what it objects to, and is itself tried on what is
//! wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use switcher_gen::layout::Placement;
use switcher_gen::{Policy, Variant};

mod tree;
use tree::{files, has_extension, prose, read, root};

/// Documents that tell of the past, when other files were there.
const HISTORY: &[&str] = &["CHANGELOG.md"];

/// All files of the tree, from its root.
fn all_files() -> BTreeSet<PathBuf> {
    files(root()).iter().map(|file| file.strip_prefix(root()).unwrap().to_owned()).collect()
}

#[test]
fn readme_is_at_most_90_lines() {
    let lines = read(&root().join("README.md")).lines().count();
    assert!(lines <= 90, "README.md has {lines} lines");
}

// Names of files.

/// The names of files in a text: runs of the letters of paths that end like a source or a document,
/// and paths that begin with a folder of the tree's root.
fn named_files(text: &str, folders: &BTreeSet<String>) -> BTreeSet<String> {
    const ENDINGS: &[&str] = &[".rs", ".md", ".toml", ".snap", ".stderr", ".ld", ".S", ".txt"];
    let is_of_path = |letter: char| letter.is_ascii_alphanumeric() || "_-./*".contains(letter);
    let words = text.split(|letter: char| !is_of_path(letter));
    let names = words.map(|word| word.trim_end_matches(['.', '-']).trim_start_matches("../"));
    let names = names.filter(|name| {
        let ends = ENDINGS.iter().any(|ending| {
            name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty() && !stem.ends_with('/'))
        });
        let first = name.split_once('/').map(|(first, _)| first);
        ends || first.is_some_and(|first| folders.contains(first))
    });
    names.map(|name| name.trim_end_matches('/').to_owned()).collect()
}

/// Whether a pattern with `*` is this name.
fn is_like(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| is_like(after, rest)))
        }),
    }
}

/// Whether a name is the end of a path of the tree, of a file or of a folder: `emit/to_smod.rs`.
fn is_there(name: &str, tree: &BTreeSet<PathBuf>) -> bool {
    let wanted: Vec<_> = name.split('/').collect();
    let is_end = |path: &Path| {
        let has: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        has.len() >= wanted.len()
            && wanted.iter().rev().zip(has.iter().rev()).all(|(wanted, has)| is_like(wanted, has))
    };
    tree.iter().any(|file| file.ancestors().any(is_end))
}

/// Names that are no files of the tree, in which file they may stand, and why.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    (
        "switcher-gen/spec/README.md",
        "spec/NAME.md",
        "it stands for any page, where the README says how to cite",
    ),
    (
        "switcher-macros/src/expand_tests.rs",
        "tests/expand/NAME.rs",
        "NAME stands for that of a test",
    ),
    (
        "switcher-macros/src/expand_tests.rs",
        "tests/expand/NAME.expanded.rs",
        "NAME stands for that of a test",
    ),
];

fn objections_to_names(
    text: &str,
    folders: &BTreeSet<String>,
    tree: &BTreeSet<PathBuf>,
) -> Vec<String> {
    let names = named_files(text, folders).into_iter();
    names.filter(|name| !is_there(name, tree)).map(|name| format!("there is no {name}")).collect()
}

/// The folders of the root.
fn folders(tree: &BTreeSet<PathBuf>) -> BTreeSet<String> {
    let with_more = tree.iter().filter(|file| file.iter().count() > 1);
    with_more.map(|file| file.iter().next().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_file_that_is_named_is_there() {
    let tree = all_files();
    let folders = folders(&tree);
    let (mut objections, mut named) = (Vec::new(), 0);
    for path in &tree {
        let is_history = HISTORY.iter().any(|name| path == Path::new(name));
        // This one names what is not there, to see it objected to.
        let is_own =
            path.ends_with("tests/documents.rs") || path.ends_with("tests/specification.rs");
        if is_history || is_own || !has_extension(path, &["rs", "md", "toml", "ld", "S"]) {
            continue;
        }
        let text = prose(path, &read(&root().join(path)));
        named += named_files(&text, &folders).len();
        let wrong = objections_to_names(&text, &folders, &tree);
        objections.extend(wrong.into_iter().filter_map(|what| {
            let is_known = |(file, name, _): &(&str, &str, &str)| {
                path == Path::new(file) && what == format!("there is no {name}")
            };
            (!ELSEWHERE.iter().any(is_known)).then(|| format!("{}: {what}", path.display()))
        }));
    }
    assert!(objections.is_empty(), "{}", objections.join("\n"));
    assert!(named > 150, "{named}");
    for (file, name, why) in ELSEWHERE {
        assert!(!why.is_empty());
        let text = prose(Path::new(file), &read(&root().join(file)));
        assert!(text.contains(name), "{file} does not name {name} any more");
        assert!(!is_there(name, &tree), "{name} is there now");
    }
}

#[test]
fn a_file_that_is_not_there_is_objected_to() {
    let tree: BTreeSet<PathBuf> =
        ["a/src/emit/to_smod.rs", "a/src/emit/mod.rs", "README.md", "b/x/one.txt"]
            .map(PathBuf::from)
            .into();
    let folders = folders(&tree);
    assert_eq!(folders, ["a", "b"].map(str::to_owned).into());
    let objections = |text: &str| objections_to_names(text, &folders, &tree);
    for right in [
        "`emit/to_smod.rs`, a/src/emit/to_smod.rs:40, (to_*.rs). README.md.",
        "a/src/emit, `a/src/emit/`, b/x/*.txt; and/or, 1/2, ../README.md, a.rs/b",
        "no file: .rs, x.rst, mod",
    ] {
        assert_eq!(objections(right), [""; 0], "{right}");
    }
    for (wrong, name) in [
        ("see `emit/to_umod.rs`.", "emit/to_umod.rs"),
        ("(emits/to_smod.rs)", "emits/to_smod.rs"),
        ("a/src/emit/too.rs:40", "a/src/emit/too.rs"),
        ("a/lib/", "a/lib"),
        ("to_u*.rs", "to_u*.rs"),
        ("src/to_smod.rs", "src/to_smod.rs"),
        ("SECURITY.md", "SECURITY.md"),
    ] {
        assert_eq!(objections(wrong), [format!("there is no {name}")], "{wrong}");
    }
}

#[test]
fn of_a_source_comments_are_read_and_nothing_else() {
    let source = "//! a.rs\nlet x = \"b.rs\"; // c.rs\nlet url = \"https://d.rs\";\n    /// e.rs\n";
    assert_eq!(
        prose(Path::new("x.rs"), source).split_whitespace().collect::<Vec<_>>(),
        ["a.rs", "c.rs", "e.rs"]
    );
    assert_eq!(prose(Path::new("x.md"), "all\n"), "all\n");
    assert_eq!(prose(Path::new("x.toml"), "# a.rs\npath = \"b.rs\" # c\n").trim(), "a.rs\n c");
}

// Links.

/// The lines of a document that are no code.
fn without_code(text: &str) -> String {
    let mut is_code = false;
    let mut kept = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            kept += line;
        }
        kept.push('\n');
    }
    kept
}

/// Headings as links name them.
fn anchors(text: &str) -> BTreeSet<String> {
    let text = without_code(text);
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let titles = headings.filter_map(|line| line.trim_start_matches('#').strip_prefix(' '));
    let anchor = |title: &str| {
        let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    titles.map(anchor).collect()
}

/// Links of a document that lead nowhere. What is out of the tree is not looked at: that needs a
/// network.
fn objections_to_links(
    path: &Path,
    text: &str,
    documents: &BTreeMap<PathBuf, String>,
    tree: &BTreeSet<PathBuf>,
) -> Vec<String> {
    let text = without_code(text);
    let mut objections = Vec::new();
    for (at, _) in text.match_indices("](") {
        let link = text[at + 2..].split([')', '\n']).next().unwrap_or_default();
        if link.starts_with("https://") {
            continue;
        }
        let (target, anchor) = link.split_once('#').map_or((link, None), |(a, b)| (a, Some(b)));
        let mut place = path.to_owned();
        if !target.is_empty() {
            place.pop();
            for part in Path::new(target) {
                if part == ".." {
                    place.pop();
                } else {
                    place.push(part);
                }
            }
        }
        let is_folder = tree.iter().any(|file| file.starts_with(&place));
        if !is_folder {
            objections.push(format!("{}: the link {link} leads nowhere", path.display()));
        } else if let Some(anchor) = anchor
            && !documents.get(&place).is_some_and(|text| anchors(text).contains(anchor))
        {
            objections.push(format!("{}: {target} has no #{anchor}", path.display()));
        }
    }
    objections
}

fn documents(tree: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, String> {
    let documents = tree.iter().filter(|file| has_extension(file, &["md"]));
    documents.map(|file| (file.clone(), read(&root().join(file)))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let tree = all_files();
    let documents = documents(&tree);
    let links: usize = documents.values().map(|text| text.matches("](").count()).sum();
    assert!(documents.len() > 15 && links > 40, "{} documents, {links} links", documents.len());
    let wrong: Vec<_> = documents
        .iter()
        .flat_map(|(path, text)| objections_to_links(path, text, &documents, &tree))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_link_that_leads_nowhere_is_objected_to() {
    let tree: BTreeSet<PathBuf> =
        ["README.md", "spec/abi.md", "spec/x/y.rs"].map(PathBuf::from).into();
    let documents: BTreeMap<_, _> = [
        ("README.md", "# The front\n\n```text\n# no heading\n[x](nowhere.md)\n```\n"),
        ("spec/abi.md", "## `switch_flags` and more\n"),
    ]
    .map(|(path, text)| (PathBuf::from(path), text.to_owned()))
    .into();
    let objections =
        |text: &str| objections_to_links(Path::new("spec/abi.md"), text, &documents, &tree).len();
    for right in [
        "[a](../README.md) [b](x/y.rs) [c](x) [d](#switch_flags-and-more) [e](https://example.org/x)",
        "[a](../README.md#the-front)",
    ] {
        assert_eq!(objections(right), 0, "{right}");
    }
    for wrong in [
        "[a](README.md)",
        "[a](#flags)",
        "[a](../README.md#no-heading)",
        "[b](x/y.rs#l1)",
        "[c](z)",
    ] {
        assert_eq!(objections(wrong), 1, "{wrong}");
    }
}

// Lists of files.

/// The cells of the table that follows this heading line.
fn table<'t>(text: &'t str, heading: &str) -> Vec<Vec<&'t str>> {
    let mut lines = text.lines().skip_while(|line| line.trim() != heading);
    lines.by_ref().take(2).for_each(drop);
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// What is quoted as code in a text.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The documentation of a module.
fn head(source: &str) -> String {
    let lines = source.lines().take_while(|line| line.starts_with("//!"));
    lines
        .map(|line| line[3..].strip_prefix(' ').unwrap_or(&line[3..]))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The modules that a source declares for more than tests, each in a file of its own.
fn declared(source: &str) -> BTreeSet<String> {
    let mut before = "";
    let mut modules = BTreeSet::new();
    for line in source.lines() {
        let declaration =
            line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub ")).unwrap_or(line);
        if let Some(name) = declaration.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'))
            && before != "#[cfg(test)]"
        {
            modules.insert(name.to_owned());
        }
        before = line;
    }
    modules
}

/// What the table of files in a head has otherwise than the modules that are declared. One of a
/// folder's files, as `theorem/untaken`, may be in it, too.
fn objections_to_head(source: &str) -> Vec<String> {
    let head = head(source);
    let heading =
        head.lines().find(|line| line.starts_with("| file |") || line.starts_with("| module |"));
    let Some(heading) = heading else { return Vec::new() };
    let rows = table(&head, heading);
    let listed: BTreeSet<String> = rows.iter().flat_map(|row| quoted(row[0])).collect();
    let modules = declared(source);
    let unknown = listed.iter().filter(|name| {
        // A type that stands for its module is linked by its own name.
        let first = name.split(['/', ':']).next().unwrap_or_default();
        !modules.contains(first) && !first.starts_with(char::is_uppercase)
    });
    let mut objections: Vec<_> = unknown.map(|name| format!("`{name}` is no module")).collect();
    let has_type = |name: &String| {
        let title = name.replace('_', "").to_lowercase();
        listed.iter().any(|listed| listed.to_lowercase() == title)
    };
    let missing = modules.iter().filter(|name| !listed.contains(*name) && !has_type(name));
    objections.extend(missing.map(|name| format!("`{name}` is not in the table")));
    objections
}

#[test]
fn the_tables_of_files_in_heads_are_whole() {
    let (mut tables, mut wrong) = (0, Vec::new());
    for path in all_files().iter().filter(|path| has_extension(path, &["rs"])) {
        let source = read(&root().join(path));
        tables +=
            usize::from(head(&source).contains("| file |") || head(&source).contains("| module |"));
        wrong.extend(
            objections_to_head(&source)
                .into_iter()
                .map(|what| format!("{}: {what}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tables >= 5, "{tables}");
}

#[test]
fn a_table_of_files_that_is_not_whole_is_objected_to() {
    let source = |rows: &str| {
        format!(
            "//! Head.\n//!\n//! | file | what |\n//! |---|---|\n{rows}\nmod a;\npub mod b;\n#[cfg(test)]\nmod tests;\n"
        )
    };
    assert_eq!(objections_to_head(&source("//! | `a`, `b` | both |")), [""; 0]);
    assert_eq!(
        objections_to_head(&source("//! | `a/x` | x |\n//! | `a` | a |\n//! | [`b`] | b |")),
        [""; 0]
    );
    assert_eq!(objections_to_head(&source("//! | [`A`] | a type |\n//! | `b` | b |")), [""; 0]);
    assert_eq!(objections_to_head(&source("//! | `a` | a |")), ["`b` is not in the table"]);
    assert_eq!(objections_to_head(&source("//! | `a`, `b`, `c` | c |")), ["`c` is no module"]);
    assert_eq!(objections_to_head("//! No table.\nmod a;\n"), [""; 0]);
}

#[test]
fn the_list_of_snapshots_is_the_folder() {
    let text = read(&root().join("snapshots/README.md"));
    let listed: BTreeSet<_> =
        table(&text, "| file | what it shows |").iter().flat_map(|row| quoted(row[0])).collect();
    let tree = all_files();
    let in_folder =
        tree.iter().filter(|file| file.starts_with("snapshots") && has_extension(file, &["snap"]));
    let there: BTreeSet<_> =
        in_folder.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(there.len() > 5);
    assert_eq!(listed, there);
}

/// The dependencies of the workspace's manifest that are of others, and those of the table in
/// ARCHITECTURE.md.
#[test]
fn every_dependency_has_a_reason_in_architecture() {
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let all = manifest["workspace"]["dependencies"].as_table().unwrap();
    let of_others = all.iter().filter(|(_, asked)| asked.get("path").is_none());
    let asked: BTreeSet<String> = of_others.map(|(name, _)| name.clone()).collect();
    let text = read(&root().join("ARCHITECTURE.md"));
    let rows = table(&text, "| crate | why |");
    // What is for tests or for fuzzing alone says so before its name.
    let names =
        rows.iter().flat_map(|row| row[0].rsplit(":*").next().unwrap_or_default().split(','));
    let named: BTreeSet<String> = names.map(|name| name.trim().to_owned()).collect();
    let missing: Vec<_> = asked.difference(&named).collect();
    assert!(missing.is_empty(), "no reason in ARCHITECTURE.md: {missing:?}");
    let lock = read(&root().join("Cargo.lock"));
    let gone = named.iter().filter(|name| !lock.contains(&format!("name = \"{name}\"\n")));
    assert_eq!(gone.collect::<Vec<_>>(), [""; 0], "reasons for what is not depended on");
}

#[test]
fn each_layer_of_architecture_is_in_the_folder_that_it_says() {
    let text = read(&root().join("ARCHITECTURE.md"));
    let mut checked = 0;
    for row in table(&text, "| step | crate | folder | what it is |") {
        let (name, folder) =
            (row[1].trim_matches(['*', '`']), row[2].trim_matches('`').trim_end_matches('/'));
        let folder = folder.strip_suffix("/src").unwrap_or(folder);
        let manifest = read(&root().join(folder).join("Cargo.toml"));
        if name != "examples" {
            assert!(
                manifest.contains(&format!("name = \"{name}\"\n")),
                "{name} is not in {folder}"
            );
        }
        checked += 1;
    }
    assert!(checked > 15, "{checked}");
}

/// What docs.rs and registries show of a package.
#[test]
fn each_package_says_what_it_is() {
    let mut cargo = hw_tests::workspace::cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = cargo.output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 15);
    for package in packages {
        let name = &package["name"];
        let count = |field: &str| package[field].as_array().unwrap().len();
        assert!(package["description"].as_str().is_some_and(|it| it.len() > 20), "{name}");
        assert!((1..=5).contains(&count("keywords")), "{name}: keywords");
        assert!((1..=5).contains(&count("categories")), "{name}: categories");
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let readme = manifest.with_file_name(package["readme"].as_str().unwrap_or("no readme"));
        assert!(readme.exists(), "{name}: {}", readme.display());
        for target in package["targets"].as_array().unwrap() {
            if ["lib", "proc-macro"].iter().any(|kind| target["kind"][0] == *kind) {
                let head = head(&read(Path::new(target["src_path"].as_str().unwrap())));
                // Where nothing runs under an operating system, the example is a program of its
                // own.
                let has_example = head.contains("```\n") || head.contains("examples/");
                assert!(head.len() > 300 && has_example, "{name}: {}", target["src_path"]);
            }
        }
    }
}

// Commits.

/// What is wrong with the subject of a commit: `area: verb what`, at most 72 columns.
fn objection_to_subject(subject: &str) -> Option<&'static str> {
    let Some((area, what)) = subject.split_once(": ") else {
        return Some("it has no area before a colon");
    };
    let is_area = |area: &str| {
        !area.is_empty()
            && area
                .chars()
                .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "-_/, ".contains(it))
    };
    if subject.chars().count() > 72 {
        Some("it has more than 72 columns")
    } else if !is_area(area) {
        Some("its area is not in small letters")
    } else if !what.starts_with(|first: char| first.is_ascii_lowercase()) || !what.contains(' ') {
        Some("it does not go on with a verb in small letters, and an object")
    } else if what.ends_with('.') {
        Some("it ends with a full stop")
    } else {
        None
    }
}

/// Output of git in the tree, if there is git and a history.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root()).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commits that are new against the main branch. On it, or without a history, there are none,
/// and the output says so: what is on record is not to be rewritten.
#[test]
fn subjects_of_new_commits_have_an_area_and_a_verb() {
    let main = ["origin/main", "main"].iter().find_map(|name| git(&["merge-base", "HEAD", name]));
    let Some(main) = main else {
        println!("not checked: git knows no main branch here");
        return;
    };
    let log = git(&["log", "--no-merges", "--format=%s", &format!("{main}..HEAD")]).unwrap();
    println!("{} commits since {main}", log.lines().count());
    let wrong: Vec<_> = log
        .lines()
        .filter_map(|subject| Some(format!("{subject}: {}", objection_to_subject(subject)?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_subject_without_area_or_verb_is_objected_to() {
    for right in [
        "docs: rewrite README",
        "hw-tests, spec: move the tables of cases",
        "prove: take x86's word",
    ] {
        assert_eq!(objection_to_subject(right), None, "{right}");
    }
    let long = format!("docs: {}", "make a long subject ".repeat(5));
    for wrong in [
        "Rewrite README",
        "Docs: rewrite README",
        "docs: Rewrite README",
        "docs: README",
        "docs: end it.",
        &long,
    ] {
        assert!(objection_to_subject(wrong).is_some(), "{wrong}");
    }
}

// Numbers.

/// Of one variant, what costs.txt says of a path: all the numbers of its line.
fn costs(record: &str, variant: &str, path: &str) -> Vec<u32> {
    let blocks = record.split("\n\nvariants: ");
    // The names stand at the end of the block before.
    let mut named = false;
    for block in blocks {
        if named {
            let line = block.lines().find(|line| line.starts_with(path));
            let line = line.unwrap_or_else(|| panic!("{variant} has no {path}"));
            let words = line[path.len()..].split_whitespace();
            let numbers = words.filter_map(|word| word.trim_matches(['(', ')']).parse().ok());
            return numbers.collect();
        }
        let names = block.rsplit("\n\n").next().unwrap_or_default();
        named = names.split_whitespace().any(|name| name == variant);
    }
    panic!("there is no {variant}");
}

/// The table of ARCHITECTURE.md, as costs.txt has it.
fn placements(record: &str) -> Vec<[String; 7]> {
    let mut rows = Vec::new();
    for policy in Policy::ALL {
        let variant = Variant::REFERENCE.with_policy(policy).to_string();
        let of = |path| costs(record, &variant, path);
        let (to_smod, to_umod) = (of("SYSCALL in umod -> smod"), of("ERETU -> umod by SYSRETQ"));
        let both = of("round trip by SYSRETQ");
        let lines = both[both.len() - 2];
        let name = if policy.placement == Placement::Gs { "`gs`" } else { "`percpu`" };
        let numbers = [to_smod[0], to_umod[0], both[0], both[2], lines].map(|it| it.to_string());
        let [there, back, together, swapgs, lines] = numbers;
        let revision = format!("{:?}", policy.revision);
        rows.push([name.into(), revision, there, back, together, swapgs, lines]);
    }
    rows.sort();
    rows
}

#[test]
fn the_counts_in_architecture_are_those_on_record() {
    let record = read(&root().join("switcher-gen/costs.txt"));
    let text = read(&root().join("ARCHITECTURE.md"));
    let heading =
        "| placement | PVCS | SYSCALL -> smod | ERETU -> umod | together | SWAPGS | lines |";
    let said = table(&text, heading);
    assert_eq!(said, placements(&record));
    // One count otherwise, and it would show.
    let other = record.replacen(
        "round trip by SYSRETQ                    66",
        "round trip by SYSRETQ  67",
        1,
    );
    assert_ne!(other, record);
    assert_ne!(said, placements(&other));
}

#[test]
fn the_number_of_variants_is_that_of_those_on_record() {
    let record = read(&root().join("switcher-gen/certificates.txt"));
    let count = Variant::all().count().to_string();
    assert!(record.lines().count() > 100);
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = read(&root().join(document));
        assert!(
            text.split(|it: char| !it.is_ascii_digit()).any(|it| it == count),
            "{document}: {count}"
        );
    }
}
