//! No files of different purpose import each other in a circle, in any package of the workspace.
//!
//! A package's modules are a tree. Of each module with children, the children (each with all that
//! lies in it) must not name each other in a circle. What a child takes from its parent, or a
//! parent from its children, counts as nothing: a module and the files that it is divided into are
//! one purpose. Names are followed through `use` to where a thing is defined, so that a name taken
//! from the root of a package counts as one of the file that defines it. Modules of tests may
//! import what they like.
//!
//! That no package imports from one below it is the business of `layers.rs`, and `module_order.rs`
//! holds those packages to an order whose heads state one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use hw_tests::workspace;

/// A module's place in the tree of its package: `[]` is the root.
type Place = Vec<String>;

/// The modules of a package: what each one's source says, without comments and tests.
#[derive(Default)]
struct Modules(BTreeMap<Place, String>);

/// What a path in a source leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    /// The segments.
    path: Vec<String>,
    /// What it is called where it is imported.
    as_name: String,
}

/// A source without comments, strings in which names stand, and modules of tests.
fn code_of(source: &str) -> String {
    let mut code = String::new();
    for line in source.lines() {
        code += line.split("//").next().unwrap_or_default();
        code.push('\n');
    }
    without_tests(&code)
}

/// A source without the items that only tests have: `#[cfg(test)]` up to the end of the item.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some((before, after)) = rest.split_once("#[cfg(test)]") {
        kept += before;
        let mut depth = 0;
        let end = after.char_indices().find(|(_, letter)| match letter {
            '{' => {
                depth += 1;
                false
            }
            '}' => {
                depth -= 1;
                depth == 0
            }
            ';' => depth == 0,
            _ => false,
        });
        rest = end.map_or("", |(at, _)| &after[at + 1..]);
    }
    kept + rest
}

fn is_of_identifier(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The paths that begin here: one, or one for each member of its braces.
fn paths(text: &str, before: &[String], found: &mut Vec<Named>) {
    let text = text.trim_start();
    let name: String = text.chars().take_while(|letter| is_of_identifier(*letter)).collect();
    let rest = &text[name.len()..];
    if let Some(group) = text.strip_prefix('{') {
        for member in members(group) {
            paths(member, before, found);
        }
        return;
    }
    let mut path = before.to_vec();
    if text.starts_with('*') {
        path.push("*".into());
        found.push(Named { path, as_name: "*".into() });
        return;
    }
    if name.is_empty() {
        return;
    }
    // `use a::{self}` is `use a`.
    if name != "self" || before.is_empty() {
        path.push(name);
    }
    match rest.strip_prefix("::") {
        Some(further) => paths(further, &path, found),
        None => {
            let renamed = rest.trim_start().strip_prefix("as ");
            let renamed = renamed.map(|rest| {
                rest.trim_start().chars().take_while(|it| is_of_identifier(*it)).collect::<String>()
            });
            let own = path.last().cloned().unwrap_or_default();
            found.push(Named { path, as_name: renamed.unwrap_or(own) });
        }
    }
}

/// The members of a group up to its closing brace, each with all that follows it.
fn members(group: &str) -> Vec<&str> {
    let mut members = vec![group];
    let mut depth = 0;
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(&group[at + 1..]),
            _ => {}
        }
    }
    members
}

/// The paths of a source that begin with `crate`, `super` or `self`, wherever they stand.
fn named_in(code: &str) -> Vec<Named> {
    let mut found = Vec::new();
    for beginning in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(beginning) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|letter| is_of_identifier(letter) || letter == ':') {
                paths(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// What a source imports by `use`, whatever it begins with.
fn imported_in(code: &str) -> Vec<Named> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(is_of_identifier) {
            paths(&code[at + 4..], &[], &mut found);
        }
    }
    found
}

impl Modules {
    /// Those of a package whose root is this file.
    fn of_root(root: &Path) -> Self {
        let mut modules = Self::default();
        modules.read(root, Vec::new(), root.parent().unwrap());
        modules
    }

    /// Reads a module from its file, and those that it declares from the folder.
    fn read(&mut self, file: &Path, place: Place, folder: &Path) {
        let code = code_of(&fs::read_to_string(file).unwrap());
        for (at, _) in code.match_indices("mod ") {
            let name: String =
                code[at + 4..].chars().take_while(|it| is_of_identifier(*it)).collect();
            let is_file = code[at + 4 + name.len()..].starts_with(';');
            let before = code[..at].chars().next_back();
            if !is_file || before.is_some_and(is_of_identifier) {
                continue;
            }
            let (flat, nested) =
                (folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs"));
            let child = if flat.exists() { flat } else { nested };
            let place = [&place[..], std::slice::from_ref(&name)].concat();
            self.read(&child, place, &folder.join(name));
        }
        self.0.insert(place, code);
    }

    /// Whether the source of a module defines this name.
    fn defines(&self, place: &Place, name: &str) -> bool {
        let kinds = ["fn", "struct", "enum", "const", "static", "trait", "type", "union", "mod"];
        self.0.get(place).is_some_and(|code| {
            kinds.iter().any(|kind| {
                let definition = format!("{kind} {name}");
                code.match_indices(&definition).any(|(at, _)| {
                    !code[at + definition.len()..].starts_with(is_of_identifier)
                        && !code[..at].ends_with(is_of_identifier)
                })
            })
        })
    }

    /// The module that has what a path in `from` leads to; `None` if that is of another package.
    fn target(&self, from: &Place, path: &[String], depth: usize) -> Option<Place> {
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => (from[..from.len().checked_sub(1)?].to_vec(), &path[1..]),
            first => {
                let child = [&from[..], &[first.to_owned()]].concat();
                (self.0.contains_key(&child).then_some(child)?, &path[1..])
            }
        };
        while let Some(segment) = rest.first() {
            let below = [&at[..], std::slice::from_ref(segment)].concat();
            if segment == "super" {
                at.pop()?;
            } else if self.0.contains_key(&below) {
                at = below;
            } else {
                break;
            }
            rest = &rest[1..];
        }
        match rest.first() {
            Some(item) if item != "*" && depth < 8 => {
                Some(self.definition(&at, item, depth).unwrap_or(at))
            }
            _ => Some(at),
        }
    }

    /// The module from which another one has a name that it does not define itself.
    fn definition(&self, place: &Place, name: &str, depth: usize) -> Option<Place> {
        if self.defines(place, name) {
            return Some(place.clone());
        }
        let imports = imported_in(&self.0[place]);
        if let Some(import) = imports.iter().find(|import| import.as_name == name) {
            return self.target(place, &import.path, depth + 1);
        }
        for import in imports.iter().filter(|import| import.as_name == "*") {
            let from = self.target(place, &import.path, depth + 1)?;
            if from != *place && self.defines(&from, name) {
                return Some(from);
            }
        }
        // A macro that is exported stands at the root, wherever it is defined.
        let exported = format!("macro_rules! {name} ");
        self.0.iter().find(|(_, code)| code.contains(&exported)).map(|(place, _)| place.clone())
    }

    /// Each module with each other one that it takes something from.
    fn imports(&self) -> BTreeSet<(Place, Place)> {
        let mut all = BTreeSet::new();
        for (place, code) in &self.0 {
            for named in named_in(code) {
                if let Some(target) = self.target(place, &named.path, 0) {
                    all.insert((place.clone(), target));
                }
            }
        }
        all
    }

    /// The circles: for each, the module whose children they are and which, and the imports that
    /// make it.
    fn circles(&self) -> BTreeMap<String, Vec<String>> {
        let imports = self.imports();
        let mut circles = BTreeMap::new();
        for parent in self.0.keys() {
            let depth = parent.len();
            let child = |place: &Place| {
                (place.starts_with(parent)).then(|| place.get(depth).cloned()).flatten()
            };
            let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (from, to) in &imports {
                if let (Some(from), Some(to)) = (child(from), child(to))
                    && from != to
                {
                    uses.entry(from).or_default().insert(to);
                }
            }
            let reached: BTreeMap<_, _> =
                uses.keys().map(|from| (from, all_reached(from, &uses))).collect();
            for (from, to) in &reached {
                if to.contains(*from) {
                    let back = |other: &&String| {
                        reached.get(other).is_some_and(|reached| reached.contains(*from))
                    };
                    let circle: Vec<_> = to.iter().filter(back).map(String::as_str).collect();
                    let is_in = |place: &Place| {
                        child(place).is_some_and(|it| circle.contains(&it.as_str()))
                    };
                    let making = imports
                        .iter()
                        .filter(|(from, to)| is_in(from) && is_in(to) && child(from) != child(to));
                    let making = making
                        .map(|(from, to)| format!("{} uses {}", from.join("::"), to.join("::")));
                    let of = if parent.is_empty() { "" } else { "::" };
                    let name = format!("{}{of}{{{}}}", parent.join("::"), circle.join(", "));
                    circles.insert(name, making.collect());
                }
            }
        }
        circles
    }
}

/// All that is used by a module, and by what it uses.
fn all_reached(from: &String, uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(next) = ahead.pop() {
        for used in uses.get(next).into_iter().flatten() {
            if reached.insert(used.clone()) {
                ahead.push(used);
            }
        }
    }
    reached
}

/// Circles that are there and are to go: a package, and what [`Modules::circles`] calls the circle.
/// A line that is no longer true fails, so this list only gets shorter.
const KNOWN: &[(&str, &str)] = &[];

/// The packages of the workspace, each with its root files.
fn packages() -> Vec<(String, Vec<String>)> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let targets = package["targets"].as_array().unwrap().iter();
            let of_kind = targets.filter(|target| {
                ["lib", "bin", "proc-macro"].iter().any(|kind| target["kind"][0] == *kind)
            });
            let roots = of_kind.map(|target| target["src_path"].as_str().unwrap().to_owned());
            (package["name"].as_str().unwrap().to_owned(), roots.collect())
        })
        .collect()
}

#[test]
fn no_files_of_different_purpose_import_each_other_in_a_circle() {
    let mut found = BTreeMap::new();
    let (mut files, mut imports) = (0, 0);
    for (package, roots) in packages() {
        for root in roots {
            let modules = Modules::of_root(Path::new(&root));
            files += modules.0.len();
            imports += modules.imports().len();
            let circles = modules.circles().into_iter();
            found.extend(circles.map(|(circle, making)| ((package.clone(), circle), making)));
        }
    }
    // There is something to be looked at.
    assert!(files > 150 && imports > 300, "{files} files, {imports} imports");
    let is_known = |package: &str, circle: &str| KNOWN.contains(&(package, circle));
    let new = found.iter().filter(|((package, circle), _)| !is_known(package, circle));
    let new: Vec<_> = new
        .map(|((package, circle), making)| {
            format!("(\"{package}\", \"{circle}\"):\n    {}\n", making.join("\n    "))
        })
        .collect();
    assert!(new.is_empty(), "circles:\n{}", new.concat());
    for (package, circle) in KNOWN {
        let is_there = found.contains_key(&((*package).to_owned(), (*circle).to_owned()));
        assert!(is_there, "to be taken out of KNOWN: (\"{package}\", \"{circle}\")");
    }
}

/// Modules made up: their places, and what their sources say.
fn made_up(sources: &[(&str, &str)]) -> Modules {
    let place =
        |path: &str| path.split("::").filter(|it| !it.is_empty()).map(str::to_owned).collect();
    Modules(sources.iter().map(|(path, source)| (place(path), code_of(source))).collect())
}

fn circles(sources: &[(&str, &str)]) -> Vec<String> {
    made_up(sources).circles().into_keys().collect()
}

#[test]
fn circles_are_found_and_what_is_none_is_not() {
    // One way, by each kind of path.
    let straight =
        [("", "pub use a::Item; mod a; mod b;"), ("a", ""), ("b", "use crate::{a::X, Item};")];
    assert_eq!(circles(&straight), [""; 0]);
    for back in [
        "use crate::b;",
        "use super::b::{self, Y};",
        "fn f() { crate::b::g() }",
        "use crate::{c, b as other};",
        "use crate::Other;",
        "use crate::*; use super::b::*;",
    ] {
        let mut sources = vec![
            ("", "pub use a::Item; pub use crate::b::Thing as Other; mod a; mod b; mod c;"),
            ("a", back),
            ("b", "pub struct Thing; use crate::Item;"),
            ("c", ""),
        ];
        assert_eq!(circles(&sources), ["{a, b}"], "{back}");
        // In a test, it is no circle; nor in a comment.
        let tested = format!("#[cfg(test)]\nmod tests {{ {back} }}\n// {back}\nfn f() {{}}");
        sources[1].1 = &tested;
        assert_eq!(circles(&sources), [""; 0], "{tested}");
    }
}

#[test]
fn a_parent_and_its_children_are_no_circle_and_folders_are() {
    let parent = [
        ("", ""),
        ("a", "mod x; mod y; use self::x::X; pub struct P;"),
        ("a::x", "use super::P;"),
        ("a::y", "use crate::a::{P, x};"),
    ];
    assert_eq!(circles(&parent), [""; 0]);
    let children = [("", ""), ("a", ""), ("a::x", "use super::y;"), ("a::y", "use crate::a::x;")];
    assert_eq!(circles(&children), ["a::{x, y}"]);
    // No file imports itself through others, and the folders do.
    let folders =
        [("", ""), ("a", ""), ("a::x", "use crate::b;"), ("a::y", ""), ("b", "use crate::a::y;")];
    assert_eq!(circles(&folders), ["{a, b}"]);
    let three = [("", ""), ("a", "use crate::b;"), ("b", "use crate::c;"), ("c", "use crate::a;")];
    assert_eq!(circles(&three), ["{a, b, c}"]);
}

#[test]
fn an_exported_macro_is_of_the_file_that_defines_it() {
    let sources = [
        ("", "mod a; mod b;"),
        ("a", "macro_rules! shout { () => { $crate::b::c() } }"),
        ("b", "use crate::shout;"),
    ];
    assert_eq!(circles(&sources), ["{a, b}"]);
}
