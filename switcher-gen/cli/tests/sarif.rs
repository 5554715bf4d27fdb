//! `prove --format sarif`: what services need of a log in SARIF 2.1.0, by its standard and schema.

mod by_hand;

use std::collections::BTreeSet;

use by_hand::{Elf, UNCHECKED, UNCLEARED, UNSELECTED, ends, gas, json};
use serde_json::Value;
use switcher_prove::Obligation;

/// A log of one run, of a command that ends with `code`.
#[track_caller]
fn sarif(code: i32, args: &[&str]) -> Value {
    let (text, _) = ends(code, &[args, &["--format", "sarif"]].concat());
    let log = json(&text);
    assert_eq!(objections(&log), Vec::<String>::new(), "{text}");
    assert_eq!(log["runs"][0]["invocations"][0]["exitCode"], code);
    log
}

fn text(value: &Value) -> bool {
    value["text"].as_str().is_some_and(|text| !text.is_empty())
}

/// Whether it is a URI reference of the characters that RFC 3986 allows: with a scheme only if that
/// is `file`.
fn is_uri(value: &Value) -> bool {
    let Some(uri) = value.as_str() else { return false };
    let mut bytes = uri.bytes();
    while let Some(byte) = bytes.next() {
        let is_escaped = byte == b'%'
            && bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit())
            && bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        if !(is_escaped || byte.is_ascii_alphanumeric() || b"/-._~:".contains(&byte)) {
            return false;
        }
    }
    let path = uri.strip_prefix("file:///").unwrap_or(uri);
    !path.is_empty() && !path.contains(':') && !path.starts_with('/')
}

/// What the schema would object to, of what is written.
fn objections(log: &Value) -> Vec<String> {
    let mut objections = Vec::new();
    let mut must = |holds: bool, what: &str, value: &Value| {
        if !holds {
            objections.push(format!("{what}: {value}"));
        }
    };
    must(log["version"] == "2.1.0", "the version", &log["version"]);
    let schema = log["$schema"].as_str().unwrap_or_default();
    let is_schema = schema.starts_with("https://") && schema.ends_with("/sarif-schema-2.1.0.json");
    must(is_schema, "the schema", &log["$schema"]);
    let none = Vec::new();
    let array = |value: &Value| value.as_array().unwrap_or(&none).clone();
    must(array(&log["runs"]).len() == 1, "one run", &log["runs"]);
    let run = &log["runs"][0];
    let driver = &run["tool"]["driver"];
    must(driver["name"].is_string(), "the driver's name", driver);
    let is_level =
        |level: &Value| ["none", "note", "warning", "error"].iter().any(|it| level == it);
    let (rules, said) = (array(&driver["rules"]), array(&driver["notifications"]));
    for descriptor in rules.iter().chain(&said) {
        must(descriptor["id"].is_string(), "an id", descriptor);
        must(text(&descriptor["shortDescription"]), "a short description", descriptor);
        must(is_level(&descriptor["defaultConfiguration"]["level"]), "a level", descriptor);
    }
    let ids: BTreeSet<_> = rules.iter().map(|rule| rule["id"].to_string()).collect();
    must(ids.len() == rules.len(), "rules with ids of their own", &driver["rules"]);
    must(array(&run["invocations"]).len() == 1, "one invocation", run);
    let invocation = &run["invocations"][0];
    must(invocation["executionSuccessful"].is_boolean(), "success", invocation);
    must(invocation["exitCode"].is_i64(), "an exit code", invocation);
    for notification in array(&invocation["toolExecutionNotifications"]) {
        must(is_level(&notification["level"]), "a level", &notification);
        must(text(&notification["message"]), "a message", &notification);
        let index = notification["descriptor"]["index"].as_u64().unwrap_or(u64::MAX);
        let descriptor = said.get(usize::try_from(index).unwrap_or(usize::MAX));
        let is_known = descriptor.is_some_and(|it| it["id"] == notification["descriptor"]["id"]);
        must(is_known, "a descriptor at its index", &notification);
    }
    for artifact in array(&run["artifacts"]) {
        must(is_uri(&artifact["location"]["uri"]), "a URI", &artifact);
    }
    let mut fingerprints = BTreeSet::new();
    for result in array(&run["results"]) {
        let index = result["ruleIndex"].as_u64().unwrap_or(u64::MAX);
        let rule = rules.get(usize::try_from(index).unwrap_or(usize::MAX));
        must(
            rule.is_some_and(|rule| rule["id"] == result["ruleId"]),
            "a rule at its index",
            &result,
        );
        must(is_level(&result["level"]) && result["kind"] == "fail", "a level", &result);
        must(text(&result["message"]), "a message", &result);
        must(array(&result["locations"]).len() == 1, "a location", &result);
        let flows = array(&result["codeFlows"]);
        let threads = flows.iter().flat_map(|flow| array(&flow["threadFlows"]));
        let steps: Vec<_> = threads.flat_map(|thread| array(&thread["locations"])).collect();
        must(flows.is_empty() || !steps.is_empty(), "a path", &result);
        let steps = steps.iter().map(|step| step["location"].clone());
        for location in array(&result["locations"]).into_iter().chain(steps) {
            let physical = &location["physicalLocation"];
            must(is_uri(&physical["artifactLocation"]["uri"]), "a URI", &location);
            let line = &physical["region"]["startLine"];
            must(line.is_null() || line.as_u64().is_some_and(|line| line > 0), "a line", &location);
            let address = &physical["address"]["absoluteAddress"];
            must(address.is_null() || address.is_i64(), "an address of 63 bits", &location);
        }
        let prints = result["partialFingerprints"].as_object().into_iter().flatten();
        for (_, print) in prints {
            must(print.is_string(), "a fingerprint", &result);
            must(fingerprints.insert(print.to_string()), "a fingerprint of its own", &result);
        }
    }
    objections
}

fn notifications<'a>(log: &'a Value, id: &str) -> Vec<&'a str> {
    let invocation = &log["runs"][0]["invocations"][0];
    let all = invocation["toolExecutionNotifications"].as_array().unwrap();
    let all = all.iter().filter(|it| it["descriptor"]["id"] == id);
    all.map(|it| it["message"]["text"].as_str().unwrap()).collect()
}

fn results(log: &Value) -> &Vec<Value> {
    log["runs"][0]["results"].as_array().unwrap()
}

#[test]
fn a_proved_target_has_rules_and_no_results() {
    let elf = Elf::new(&[]);
    let log = sarif(0, &elf.args(&["prove"]));
    assert_eq!(results(&log).len(), 0);
    let run = &log["runs"][0];
    assert_eq!(run["tool"]["driver"]["rules"].as_array().unwrap().len(), Obligation::ALL.len());
    assert_eq!(run["invocations"][0]["executionSuccessful"], true);
    assert_eq!(notifications(&log, "not-judged").len(), 4);
    let uri = run["artifacts"][0]["location"]["uri"].as_str().unwrap();
    assert_eq!(uri, format!("file://{}", elf.path()));
    let ours = sarif(0, &["prove", "--variant", "intel-4level"]);
    assert_eq!(notifications(&ours, "not-judged"), [""; 0]);
    assert_eq!(ours["runs"][0]["properties"]["targets"][0]["verdict"], "proved");
}

#[test]
fn each_finding_is_a_result_with_level_place_path_and_state() {
    let elf = Elf::new(&[UNCLEARED, UNSELECTED, UNCHECKED]);
    let log = sarif(1, &elf.args(&["prove"]));
    let results = results(&log);
    let levels: Vec<_> = results.iter().map(|it| it["level"].as_str().unwrap()).collect();
    assert_eq!(levels, ["error", "error", "warning", "note", "note", "note"]);
    let first = &results[0];
    assert_eq!(first["ruleId"], "sysretq-canonical");
    assert!(
        first["properties"]["state"]["frame.rcx"].as_str().unwrap().starts_with("0x"),
        "{first}"
    );
    assert_eq!(first["properties"]["severity"], "host");
    let location = &first["locations"][0];
    assert_eq!(location["logicalLocations"][0]["name"], "switcher_enter_guest");
    let physical = &location["physicalLocation"];
    assert!(physical["address"]["name"].as_str().unwrap().starts_with("switcher_enter_guest+0x"));
    let uri = physical["artifactLocation"]["uri"].as_str().unwrap();
    assert!(uri.starts_with("file:///") && uri.ends_with("/theirs.o"), "{uri}");
    // The address of a kernel has 64 bits, which many readers' numbers do not hold.
    assert!(physical["address"]["absoluteAddress"].is_null(), "{physical}");
    assert!(physical["address"]["relativeAddress"].as_u64().unwrap() > 0, "{physical}");
    let steps = &first["codeFlows"][0]["threadFlows"][0]["locations"];
    let last = steps.as_array().unwrap().last().unwrap();
    assert_eq!(last["location"]["message"]["text"], "sysretq");
}

#[test]
fn with_dwarf_locations_are_lines_of_sources() {
    let source = gas::replaced(gas::SWITCHER, &[UNCHECKED]);
    let line = 1 + source.lines().position(|line| line == "\tsysretq").unwrap();
    let elf = Elf::of(&gas::assemble_with(&source, &[], &["-g"]));
    let log = sarif(1, &elf.args(&["prove"]));
    let physical = &results(&log)[0]["locations"][0]["physicalLocation"];
    assert_eq!(physical["artifactLocation"]["uri"], gas::SOURCE);
    assert_eq!(physical["region"]["startLine"], line);
}

/// The same finding has the same fingerprint in another run, and where other code has moved it.
#[test]
fn fingerprints_are_stable() {
    let prints = |replacements: &[(&str, &str)]| {
        let log = sarif(1, &Elf::new(replacements).args(&["prove"]));
        let all = results(&log).iter().map(|it| it["partialFingerprints"].clone());
        all.collect::<Vec<_>>()
    };
    let one = prints(&[UNCHECKED]);
    assert_eq!(one, prints(&[UNCHECKED]));
    let moved = (
        "\tandq\t$FLAGS_ALLOWED, IRET_FLAGS(%rsp)\n",
        "\tnop\n\tandq\t$FLAGS_ALLOWED, IRET_FLAGS(%rsp)\n",
    );
    assert_eq!(one, prints(&[UNCHECKED, moved]));
    assert_ne!(one, prints(&[UNCHECKED, UNCLEARED]));
}

#[test]
fn what_is_missing_passed_or_refused_is_notified() {
    let elf = Elf::new(&[UNCLEARED]);
    let log = sarif(3, &elf.args(&["prove", "--fail-on", "guest", "--require", "events"]));
    let [missing] = notifications(&log, "missing")[..] else { panic!("{log}") };
    assert!(missing.contains("`events` is required and not judged"), "{missing}");
    let [passed] = notifications(&log, "passed")[..] else { panic!("{log}") };
    assert!(passed.contains("below `--fail-on guest`: 3"), "{passed}");
    let unmodelled = Elf::new(&[("\tswapgs\n\tmovq\t%rsp, %gs:TSS_SP2\n", "\tcpuid\n")]);
    let log = sarif(2, &unmodelled.args(&["prove"]));
    let [refused] = notifications(&log, "refused")[..] else { panic!("{log}") };
    assert!(refused.contains("`cpuid` is not modelled"), "{refused}");
    assert_eq!(log["runs"][0]["invocations"][0]["executionSuccessful"], false);
}

/// The checks above are worth something only if they object.
#[test]
fn a_log_with_one_thing_wrong_is_objected_to() {
    let elf = Elf::new(&[UNCLEARED, UNSELECTED]);
    let right = sarif(4, &elf.args(&["prove"]));
    let result = "/runs/0/results/0";
    for (at, wrong) in [
        (String::from("/version"), Value::from("2.0.0")),
        (String::from("/$schema"), Value::from("sarif")),
        (format!("{result}/ruleIndex"), Value::from(1000)),
        (format!("{result}/ruleId"), Value::from("memory")),
        (format!("{result}/level"), Value::from("grave")),
        (format!("{result}/message/text"), Value::from("")),
        (format!("{result}/locations/0/physicalLocation/artifactLocation/uri"), Value::from("a b")),
        (String::from("/runs/0/artifacts/0/location/uri"), Value::from("/tmp/theirs.o")),
        (
            format!(
                "{result}/codeFlows/0/threadFlows/0/locations/0/location/physicalLocation/artifactLocation/uri"
            ),
            Value::from("100%"),
        ),
        (
            String::from("/runs/0/invocations/0/toolExecutionNotifications/0/descriptor/index"),
            Value::from(7),
        ),
        (String::from("/runs/0/tool/driver/rules/3/id"), Value::from("memory")),
    ] {
        let mut log = right.clone();
        *log.pointer_mut(&at).unwrap_or_else(|| panic!("there is no {at}")) = wrong;
        assert_ne!(objections(&log), Vec::<String>::new(), "{at}");
    }
    let mut twice = right;
    let results = twice["runs"][0]["results"].as_array_mut().unwrap();
    results.push(results[0].clone());
    assert_eq!(objections(&twice).len(), 1, "the same fingerprint twice");
}
