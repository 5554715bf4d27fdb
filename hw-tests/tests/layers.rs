//! The layers of ARCHITECTURE.md are those of the manifests: no package depends on one below it,
//! and who links the runtime compiles what a hypervisor needs and nothing else.

use std::collections::BTreeSet;
use std::fs;

use hw_tests::workspace;
use serde_json::Value;

/// The packages of the table, from the first layer to the last.
fn order(document: &str) -> Vec<String> {
    let rows = document.lines().filter_map(|line| line.strip_prefix('|'));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let layers = cells.filter(|cells| cells.len() == 5 && cells[2].ends_with("/`"));
    let names = layers.map(|cells| cells[1].trim_matches(['*', '`']).to_owned());
    names.filter(|name| name != "examples").collect()
}

/// What cargo says of the workspace.
fn metadata() -> Value {
    let mut cargo = workspace::cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Each package of the workspace, and those of the workspace that it is built from.
fn dependencies(metadata: &Value) -> Vec<(String, Vec<String>)> {
    let packages = metadata["packages"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of = |package: &Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        let built = all.filter(|it| it["kind"] != "dev" && !it["path"].is_null());
        (text(&package["name"]), built.map(|it| text(&it["name"])).collect())
    };
    packages.iter().map(of).collect()
}

/// What is against the order, in words.
fn against(order: &[String], dependencies: &[(String, Vec<String>)]) -> Vec<String> {
    let place = |name: &str| order.iter().position(|it| it == name);
    let mut wrong = Vec::new();
    for (name, uses) in dependencies {
        // What teaches is used by nobody, and uses what it likes but the harness.
        let is_example = ["switcher-examples", "minimal-host"].contains(&name.as_str());
        for used in uses {
            match (place(name), place(used)) {
                (_, None) => wrong.push(format!("{name} uses {used}, which has no layer")),
                (None, Some(_)) if is_example => {
                    if ["hw-kernel", "hw-tests", "hw-cases", "hw-vectors"].contains(&&**used) {
                        wrong.push(format!("{name} is an example and uses {used}, a test harness"));
                    }
                }
                (None, _) => wrong.push(format!("{name} has no layer")),
                (Some(own), Some(its)) if its >= own => {
                    wrong.push(format!("{name} uses {used}, which is below it"));
                }
                (Some(_), Some(_)) => {}
            }
        }
    }
    wrong
}

#[test]
fn no_package_uses_one_below_it() {
    let document = fs::read_to_string(workspace::root().join("ARCHITECTURE.md")).unwrap();
    let (order, dependencies) = (order(&document), dependencies(&metadata()));
    assert!(order.len() > 10, "the table of layers: {order:?}");
    let packages: BTreeSet<_> = dependencies.iter().map(|(name, _)| name).collect();
    let unknown: Vec<_> = order.iter().filter(|name| !packages.contains(name)).collect();
    assert!(unknown.is_empty(), "layers that are no packages: {unknown:?}");
    let wrong = against(&order, &dependencies);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Broken on purpose: the other way round, it is wrong nearly everywhere.
    let reversed: Vec<_> = order.iter().rev().cloned().collect();
    assert!(against(&reversed, &dependencies).len() > 20);
    let harness = [("minimal-host".to_owned(), vec!["hw-kernel".to_owned()])];
    assert_eq!(against(&order, &harness).len(), 1);
}

/// Everything that is compiled for `package`.
fn compiled_for(package: &str) -> BTreeSet<String> {
    let mut cargo = workspace::cargo();
    cargo.args([
        "tree",
        "--offline",
        "--package",
        package,
        "--edges",
        "normal",
        "--prefix",
        "none",
    ]);
    cargo.args(["--format", "{p}"]);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn who_links_the_runtime_compiles_nothing_of_the_proofs() {
    let compiled = compiled_for("switcher-runtime");
    for needed in ["switcher-gen", "switcher-abi", "switcher-asm", "dynasm", "raw-cpuid", "x86_64"]
    {
        assert!(compiled.contains(needed), "{needed}: {compiled:?}");
    }
    let others = ["model", "listing", "offsets", "spec", "prove", "engine", "cli"]
        .map(|it| format!("switcher-{it}"));
    let libraries = [
        "iced-x86",
        "yaxpeax-x86",
        "ordeal",
        "object",
        "gimli",
        "toml",
        "clap",
        "indicatif",
        "serde_json",
        "libc",
    ];
    let unwanted = others.iter().map(String::as_str).chain(libraries);
    let found: Vec<_> = unwanted.filter(|it| compiled.contains(*it)).collect();
    assert!(found.is_empty(), "{found:?}");
    // The command has them all.
    assert!(libraries.iter().all(|it| compiled_for("switcher-cli").contains(*it)));
}
