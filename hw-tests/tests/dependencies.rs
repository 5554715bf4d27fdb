//! What is built is what deny.toml allows: licences, one version of each package, sources, exact
//! versions where a proof rests on them. This is read from `cargo metadata` without network, so
//! that CI can check it everywhere; known vulnerabilities need the network, and
//! `cargo deny check advisories`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use hw_tests::workspace;
use serde_json::Value;
use toml::Table;

/// A package that is built.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    /// As its manifest has it.
    licence: String,
    /// Where it comes from, if it is not of this workspace.
    source: Option<String>,
    /// What its manifest asks for: packages, and their versions.
    asks: Vec<(String, String)>,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// All packages of the lock file that are built for a target of deny.toml.
fn packages(policy: &Table) -> Vec<Package> {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--format-version", "1", "--offline"]);
    for target in policy["graph"]["targets"].as_array().unwrap() {
        cargo.args(["--filter-platform", target.as_str().unwrap()]);
    }
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let built: BTreeSet<_> = nodes.iter().map(|node| text(&node["id"])).collect();
    let all = metadata["packages"].as_array().unwrap().iter();
    all.filter(|it| built.contains(&text(&it["id"])))
        .map(|it| Package {
            name: text(&it["name"]),
            version: text(&it["version"]),
            licence: text(&it["license"]),
            source: it["source"].as_str().map(str::to_owned),
            asks: it["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                // A path has no version to name.
                .filter(|asked| asked["path"].is_null())
                .map(|asked| (text(&asked["name"]), text(&asked["req"])))
                .collect(),
        })
        .collect()
}

/// Whether a licence expression can be met with the allowed ones: AND binds closer than OR,
/// parentheses closer than both, and the old `/` means OR.
fn is_met(expression: &str, allowed: &BTreeSet<&str>) -> Result<bool, String> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = &words[..];
    let met = any(&mut rest, allowed)?;
    if rest.is_empty() { Ok(met) } else { Err(format!("`{expression}` goes on with {rest:?}")) }
}

fn any(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> Result<bool, String> {
    let mut met = all(rest, allowed)?;
    while let ["OR", after @ ..] = rest {
        *rest = after;
        met |= all(rest, allowed)?;
    }
    Ok(met)
}

fn all(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> Result<bool, String> {
    let mut met = one(rest, allowed)?;
    while let ["AND", after @ ..] = rest {
        *rest = after;
        met &= one(rest, allowed)?;
    }
    Ok(met)
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<&str>) -> Result<bool, String> {
    match rest {
        ["(", after @ ..] => {
            *rest = after;
            let met = any(rest, allowed)?;
            match rest {
                [")", after @ ..] => *rest = after,
                _ => return Err("a parenthesis is not closed".into()),
            }
            Ok(met)
        }
        [licence, "WITH", exception, after @ ..] => {
            *rest = after;
            Ok(allowed.contains(format!("{licence} WITH {exception}").as_str()))
        }
        [licence, after @ ..] if !["OR", "AND", "WITH", ")"].contains(licence) => {
            *rest = after;
            Ok(allowed.contains(licence))
        }
        _ => Err(format!("a licence is missing before {rest:?}")),
    }
}

/// The strings of a list.
fn strings(value: &toml::Value) -> BTreeSet<&str> {
    value.as_array().unwrap().iter().filter_map(toml::Value::as_str).collect()
}

/// The names, and versions if there are any, that a list of tables says of crates.
fn crates(value: &toml::Value) -> Vec<(&str, Option<&str>)> {
    let all = value.as_array().unwrap().iter();
    all.map(|it| {
        let reason = it["reason"].as_str().unwrap_or_default();
        assert!(!reason.is_empty(), "{it:?} has no reason");
        let name = it["crate"].as_str().unwrap();
        name.split_once('@').map_or((name, None), |(name, version)| (name, Some(version)))
    })
    .collect()
}

/// What is against deny.toml, in words.
fn objections(policy: &Table, packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    let allowed = strings(&policy["licenses"]["allow"]);
    let mut used = BTreeSet::new();
    let bans = &policy["bans"];
    let (skipped, denied) = (crates(&bans["skip"]), crates(&bans["deny"]));
    let mut registries = BTreeSet::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Package { name, version, licence, source, asks } in packages {
        let of = format!("{name} {version}");
        match is_met(licence, &allowed) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{of}: the licence {licence} is not allowed")),
            Err(why) => wrong.push(format!("{of}: {why}")),
        }
        used.extend(allowed.iter().filter(|it| licence.contains(**it)));
        if denied.iter().any(|(denied, _)| denied == name) {
            wrong.push(format!("{of} is denied"));
        }
        if let Some(source) = source {
            if source.starts_with("registry+") {
                registries.insert(source);
            } else {
                wrong.push(format!("{of} comes from {source}"));
            }
        } else {
            let any = asks.iter().filter(|(_, version)| version == "*");
            wrong.extend(any.map(|(asked, _)| format!("{of} asks for any version of {asked}")));
        }
        let is_skipped = skipped.iter().any(|(skipped, of)| {
            skipped == name && of.is_none_or(|of| version.split('.').next() == Some(of))
        });
        if !is_skipped {
            versions.entry(name).or_default().insert(version);
        }
    }
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        wrong.push(format!("{name} is built in several versions: {versions:?}"));
    }
    // Which registry is the public one, cargo knows; here, there must be no second one.
    if registries.len() > 1 {
        wrong.push(format!("packages come from several registries: {registries:?}"));
    }
    for (name, version) in &skipped {
        let count = packages.iter().filter(|package| package.name == *name).count();
        if count < 2 {
            wrong.push(format!("{name}@{version:?} is skipped, and there is one version alone"));
        }
    }
    let unused: Vec<_> = allowed.difference(&used).collect();
    if !unused.is_empty() {
        wrong.push(format!("no package has the licences {unused:?}"));
    }
    wrong
}

fn policy() -> Table {
    let text = fs::read_to_string(workspace::root().join("deny.toml")).unwrap();
    text.parse().unwrap()
}

#[test]
fn what_is_built_is_what_deny_toml_allows() {
    let policy = policy();
    let packages = packages(&policy);
    assert!(packages.len() > 100, "{}", packages.len());
    assert_eq!(objections(&policy, &packages), Vec::<String>::new());
}

#[test]
fn what_deny_toml_does_not_allow_is_objected_to() {
    let policy = policy();
    let right = packages(&policy);
    let at = |name: &str| right.iter().position(|package| package.name == name).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut Package)| {
        let mut packages = right.clone();
        change(&mut packages[at(name)]);
        objections(&policy, &packages)
    };
    let libc = &right[at("libc")].version;
    assert_eq!(
        changed("libc", &|package| package.licence = "GPL-3.0-only".into()),
        [format!("libc {libc}: the licence GPL-3.0-only is not allowed")]
    );
    assert_eq!(
        changed("libc", &|package| package.source = Some("git+https://example.org/libc".into())),
        [format!("libc {libc} comes from git+https://example.org/libc")]
    );
    let other =
        |package: &mut Package| package.source = Some("registry+https://example.org".into());
    assert_eq!(changed("libc", &other).len(), 1);
    assert_eq!(changed("libc", &|package| package.name = "ring".into()).len(), 1);
    assert_eq!(
        changed("switcher-cli", &|package| package.asks.push(("libc".into(), "*".into()))),
        ["switcher-cli 0.1.0 asks for any version of libc"]
    );
    let mut twice = right.clone();
    twice.push(Package { version: "0.1.9".into(), ..right[at("libc")].clone() });
    assert_eq!(objections(&policy, &twice).len(), 1);
    // And the other way round: what is excepted must be there.
    let fewer: Vec<_> = right
        .iter()
        .filter(|it| it.name != "syn" || it.version.starts_with('2'))
        .cloned()
        .collect();
    assert_eq!(objections(&policy, &fewer).len(), 1);
}

#[test]
fn licence_expressions_are_read_as_spdx_reads_them() {
    let allowed = BTreeSet::from(["MIT", "Zlib"]);
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("GPL-3.0-only/MIT", true),
        ("GPL-3.0-only AND MIT", false),
        ("MIT OR GPL-3.0-only AND Zlib", true),
        ("(MIT OR GPL-3.0-only) AND Unicode-3.0", false),
        ("(GPL-3.0-only OR MIT) AND Zlib", true),
        ("MIT WITH LLVM-exception", false),
    ] {
        assert_eq!(is_met(expression, &allowed), Ok(met), "{expression}");
    }
    for wrong in ["", "MIT OR", "(MIT", "MIT)", "MIT Zlib", "AND MIT"] {
        assert!(is_met(wrong, &allowed).is_err(), "{wrong}");
    }
}

/// Proofs rest on what the decoders read, on what the solver decides, and on nothing newer.
const EXACT: [&str; 4] = ["iced-x86", "ordeal", "yaxpeax-arch", "yaxpeax-x86"];

/// Which of these packages is not asked for in exactly one version.
fn inexact(manifest: &str) -> Vec<&'static str> {
    let table: Table = manifest.parse().unwrap();
    let dependencies = &table["workspace"]["dependencies"];
    let version = |name: &str| {
        let asked = dependencies.get(name)?;
        let version = asked.as_str().or_else(|| asked.get("version")?.as_str())?;
        // Three numbers: `=1.2` would let the last one change.
        let exact = version.strip_prefix('=')?;
        (exact.split('.').count() == 3).then_some(())
    };
    EXACT.into_iter().filter(|name| version(name).is_none()).collect()
}

#[test]
fn what_proofs_rest_on_is_asked_for_in_one_version() {
    let manifest = fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
    assert_eq!(inexact(&manifest), [""; 0]);
    for name in EXACT {
        let line = manifest.lines().find(|line| line.starts_with(&format!("{name} = "))).unwrap();
        let loose = manifest.replacen(line, &line.replace("\"=", "\""), 1);
        assert_eq!(inexact(&loose), [name]);
    }
}
