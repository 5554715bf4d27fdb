//! The page of what was found in public switchers: each finding has an input of our own that shows
//! it, and the page says what the command makes of that.

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const KERNEL: &str = include_str!("../../prove/tests/gas/kernel.S");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../spec/findings.md");

/// A finding that was made in public switchers.
struct Known {
    /// Where, and what.
    title: &'static str,
    /// What it means there, and how it was confirmed.
    text: &'static str,
    /// The fault of the input, as `kernel.S` calls it; none if it is in the right one, too.
    fault: Option<&'static str>,
    /// The other arguments.
    arguments: &'static [&'static str],
    /// The theorem and the obligation that must be among what is found.
    found: (&'static str, &'static str),
}

const INTEL: &str = "intel-4level";
const PROFILE: &str = "linux-pvm-2024";

const KNOWN: [Known; 9] = [
    Known {
        title: "SYSRETQ without a look at the selectors",
        text: "All that switch directly, `switcher_enter_guest`: a frame of 32-bit user code with RCX = \
               RIP and R11 = flags comes back in 64-bit mode. It harms the guest alone. Read in the \
               sources, and refuted in a copy that was typed anew.",
        fault: Some("NO_SELECTORS"),
        arguments: &["--variant", INTEL, "--profile", PROFILE],
        found: ("enter_guest", "iretq-return"),
    },
    Known {
        title: "RDI of the guest reaches host code",
        text: "All: the macro that clears registers leaves RDI, as C code overwrites it. The profiles \
               say that it does no harm (`any-rdi`); without that clause it is found.",
        fault: Some("KEEPS_RDI"),
        arguments: &["--variant", INTEL, "--profile", PROFILE, "--waive", "any-rdi"],
        found: ("return_from_guest", "exit-scratch"),
    },
    Known {
        title: "SS stays null after the exit of an interrupt",
        text: "All, on AMD: an event from CPL 3 leaves a null SS, the exit does not load it, and SYSRET \
               does not repair it there.",
        fault: None,
        arguments: &["--variant", "amd-4level", "--profile", PROFILE],
        found: ("return_from_guest", "exit-ss"),
    },
    Known {
        title: "`user_cs` and `user_ss` are not stored",
        text: "v2, the first version with direct switches: the PVCS keeps what the guest's kernel wrote \
               there last. Later versions store both.",
        fault: Some("NOT_STORED"),
        arguments: &["--variant", INTEL, "--profile", PROFILE],
        found: ("syscall_64", "pvcs"),
    },
    Known {
        title: "A register of the guest decides whether the host's root is loaded",
        text: "v6: the exit looks for its reason in the wrong slot, which holds a register of the guest's, \
               and the host goes on on the guest's root. It is a takeover of the host.",
        fault: Some("WRONG_SLOT"),
        arguments: &["--variant", INTEL, "--profile", PROFILE],
        found: ("return_from_guest", "exit-root"),
    },
    Known {
        title: "The GS base of umod is loaded as it is",
        text: "v6: an address that is not canonical makes WRGSBASE fault in ring 0, with the guest's GS.",
        fault: Some("WILD_GS"),
        arguments: &["--variant", INTEL, "--profile", PROFILE],
        found: ("syscall_64", "wrgsbase-canonical"),
    },
    Known {
        title: "An IRETQ without a label",
        text: "v6: whoever handles the fault of an IRETQ to a guest does not find this one.",
        fault: Some("BARE_IRETQ"),
        arguments: &["--variant", INTEL, "--profile", PROFILE],
        found: ("enter_guest", "iretq-label"),
    },
    Known {
        title: "RSP is the guest's outside of the window",
        text: "The module of 2026: its handlers of NMIs do not know of its answer to a 32-bit SYSCALL. An \
               NMI there leaves the host's CR3, and SYSRETL returns to CPL 3 on it. Read, not run.",
        fault: None,
        arguments: &[
            "--variant",
            INTEL,
            "--profile",
            PROFILE,
            "--window",
            "unsafe-stack=entry_SYSCALL_64_switcher..entry_SYSCALL_64_switcher_safe_stack",
            "--window",
            "unsafe-stack=entry_SYSRETQ_switcher_unsafe_stack",
        ],
        found: ("syscall_compat", "window-unsafe-stack"),
    },
    Known {
        title: "A read above the top of the entry stack",
        text: "v9: what lies there is nobody's, and need not be mapped.",
        fault: Some("ABOVE_TOP"),
        arguments: &["--variant", INTEL, "--profile", PROFILE],
        found: ("return_from_guest", "memory"),
    },
];

/// The number of a fault in the source.
fn number(fault: &str) -> i64 {
    let line = KERNEL.lines().find_map(|line| line.strip_prefix(&format!("\t.set\t{fault}, ")));
    line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{fault} is unknown"))
}

/// What the command finds in an object.
fn findings(object: &Path, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = Command::new(env!("CARGO_BIN_EXE_switcher"))
        .args(["prove", "--format", "json", "--elf"])
        .arg(object)
        .args(arguments)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let found = &report["targets"][0]["findings"]["refuted"];
    (output.status.code(), found.as_array().cloned().unwrap_or_default())
}

fn text<'a>(found: &'a Value, path: &[&str]) -> &'a str {
    let value = path.iter().fold(found, |value, key| &value[*key]);
    value.as_str().unwrap_or_else(|| panic!("no {path:?}: {found}"))
}

fn page() -> String {
    let dir = tempfile::tempdir().unwrap();
    let assembled = |name: &str, number: i64| {
        let path = dir.path().join(name);
        std::fs::write(&path, gas::assemble(KERNEL, &[("BROKEN", number)])).unwrap();
        path
    };
    let mut page = String::from(
        "<!-- Written by `BLESS=1 cargo test -p switcher-cli --test findings`; do not edit. -->\n\n\
         # What was found in public switchers\n\n\
         Each finding has an input of our own that shows it: the switcher by hand in\n\
         [`kernel.S`](../prove/tests/gas/kernel.S), which is in the shape of a kernel's build, with one\n\
         fault. What the command says of it is from a run, and the state of each finding was replayed on\n\
         the concrete machine. [foreign.md](foreign.md) says which kernels are meant, and how files are\n\
         judged. Without a fault, the input is proved:\n\n",
    );
    let right = assembled("kernel.o", 0);
    let (code, found) = findings(&right, &["--variant", INTEL, "--profile", PROFILE]);
    assert_eq!((code, found.len()), (Some(0), 0), "{found:?}");
    writeln!(
        page,
        "```text\nas -o kernel.o kernel.S\nswitcher prove --elf kernel.o --variant {INTEL} --profile {PROFILE}\n```"
    )
    .unwrap();
    for Known { title, text: about, fault, arguments, found: (theorem, obligation) } in &KNOWN {
        let number = fault.map_or(0, number);
        let object = assembled("broken.o", number);
        let (code, all) = findings(&object, arguments);
        let is_it = |found: &&Value| {
            text(found, &["obligation", "name"]) == *obligation
                && text(found, &["theorem"]).replace('_', "") == theorem.replace('_', "")
        };
        let it = all.iter().find(is_it);
        let it = it.unwrap_or_else(|| panic!("{title}: {obligation} is not among {all:#?}"));
        assert!(!it["replay"].is_null() || !it["path"].is_null(), "{title}: {it}");
        // Nothing else is wrong with the input than what is meant.
        let others: Vec<_> = all.iter().map(|found| text(found, &["obligation", "name"])).collect();
        let severity = text(it, &["severity"]);
        let expected = match severity {
            "host" => 1,
            "guest" => 4,
            "contract" => 5,
            _ => 6,
        };
        assert_eq!(code, Some(expected), "{title}: {others:?}");
        let symbols = fault.map_or_else(String::new, |_| format!("--defsym BROKEN={number} "));
        let rows = it["obligation"]["rows"].as_array().unwrap();
        let hazards =
            rows.iter().map(|row| format!("row {}: {}", row["row"], text(row, &["title"])));
        let hazards = hazards.collect::<Vec<_>>().join("; ");
        writeln!(page, "\n## {title}\n\n{}\n", wrapped(about)).unwrap();
        writeln!(
            page,
            "```text\nas {symbols}-o broken.o kernel.S\nswitcher prove --elf broken.o {}\n```\n",
            arguments.join(" ")
        )
        .unwrap();
        writeln!(page, "| | |\n|---|---|").unwrap();
        writeln!(page, "| found | `{obligation}` in {theorem} |").unwrap();
        writeln!(page, "| severity | {severity}: exit code {expected} |").unwrap();
        writeln!(page, "| hazards | {hazards} |").unwrap();
        let required = text(it, &["required"]).replace('|', "\\|");
        writeln!(page, "| required | {required} |").unwrap();
    }
    page
}

/// A text in lines of at most 100 columns.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().unwrap();
        if !last.is_empty() && last.len() + word.len() >= 100 {
            lines.push(word.to_owned());
            continue;
        }
        if !last.is_empty() {
            last.push(' ');
        }
        last.push_str(word);
    }
    lines.join("\n")
}

#[test]
fn the_page_of_findings_is_what_the_command_finds() {
    let page = page();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let recorded = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(
        page == recorded,
        "spec/findings.md is stale: run `BLESS=1 cargo test -p switcher-cli --test findings`\n{page}"
    );
}
