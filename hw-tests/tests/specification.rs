//! The specification of `switcher-gen/spec/` is what the code has: its tables are the structs', its
//! hazards are the enum's, each hazard has somebody who sees to it, and what comments cite is
//! there.
//!
//! Each comparison is a function of texts that returns what it objects to. So the tests that follow
//! it can show that it objects to a page in which one thing is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use switcher_gen::Hazard;
use switcher_gen::arch::{RFlags, Selectors};
use switcher_gen::layout::{
    AsmLayout, EventFrame, EventOnIst, ExitReason, FarFrame, IstEntry, IstFrame, IstTop, LAYOUTS,
    Layout, LeavingIst, RefusedIretq, ResumingRing0, Sp0, SwitchFlags,
};
use switcher_prove::Obligation;
use switcher_runtime::{CPU_STATE, Care};

mod tree;
use tree::{files, has_extension, read};

/// The pages' folder.
fn pages() -> PathBuf {
    tree::root().join("switcher-gen/spec")
}

fn page(name: &str) -> String {
    read(&pages().join(name))
}

/// A page's part from a heading up to the next one of the same level or above.
fn section<'t>(text: &'t str, heading: &str) -> &'t str {
    let Some(start) = text.find(&format!("\n{heading}\n")) else { panic!("no `{heading}`") };
    let rest = &text[start + 1..];
    let level = heading.bytes().take_while(|byte| *byte == b'#').count();
    let is_end = |line: &str| {
        let own = line.bytes().take_while(|byte| *byte == b'#').count();
        (1..=level).contains(&own) && line[own..].starts_with(' ')
    };
    let mut at = heading.len() + 1;
    for line in rest[at..].lines() {
        if is_end(line) {
            return &rest[..at];
        }
        at += line.len() + 1;
    }
    rest
}

/// The cells of the tables in a text, but for headings and rules.
fn cells(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let is_row = |line: &str| line.starts_with('|');
    let is_rule = |line: &str| is_row(line) && line.chars().all(|c| "|-: ".contains(c));
    let body = lines.iter().enumerate().filter(|(at, line)| {
        is_row(line) && !is_rule(line) && !lines.get(at + 1).is_some_and(|next| is_rule(next))
    });
    body.map(|(_, line)| line.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

fn number(text: &str) -> Option<usize> {
    match text.strip_prefix("0x") {
        Some(hexadecimal) => usize::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    }
}

/// The structs of abi.md: those that exports have, and the frames of events.
fn layouts() -> Vec<&'static Layout> {
    let events = [
        EventFrame::LAYOUT,
        RefusedIretq::LAYOUT,
        IstFrame::LAYOUT,
        IstEntry::LAYOUT,
        EventOnIst::LAYOUT,
        LeavingIst::LAYOUT,
        FarFrame::LAYOUT,
        ResumingRing0::LAYOUT,
    ];
    LAYOUTS.iter().copied().chain(events).collect()
}

/// What abi.md has otherwise than the structs.
fn objections_to_layouts(text: &str) -> Vec<String> {
    let mut objections = Vec::new();
    let mut documented = BTreeSet::new();
    for heading in text.lines().filter(|line| line.starts_with("### `")) {
        let Some((name, sizes)) = heading[5..].split_once("`: ") else { continue };
        let Some(layout) = layouts().into_iter().find(|layout| layout.name == name) else {
            objections.push(format!("`{name}` is no struct that emitted code uses"));
            continue;
        };
        documented.insert(name);
        let is = format!("{:#X} bytes, aligned to {:#X}", layout.size, layout.align);
        let is = is.replace("0X", "0x");
        if sizes != is {
            objections.push(format!("`{name}` has {is}, not {sizes}"));
        }
        let has: Vec<_> = layout
            .fields
            .iter()
            .filter(|field| !field.name.starts_with('_'))
            .map(|field| (field.name, Some(field.offset), Some(field.size)))
            .collect();
        let rows = cells(section(text, heading));
        let says: Vec<_> =
            rows.iter().map(|row| (row[0], number(row[1]), number(row[2]))).collect();
        if says != has {
            objections.push(format!("`{name}`: the table says {says:x?}, the struct has {has:x?}"));
        }
    }
    let missing = layouts().into_iter().filter(|layout| !documented.contains(layout.name));
    objections.extend(missing.map(|layout| format!("there is no table of `{}`", layout.name)));
    objections
}

#[test]
fn each_table_of_the_abi_is_its_structs_layout_and_each_struct_has_one() {
    assert_eq!(objections_to_layouts(&page("abi.md")), Vec::<String>::new());
}

#[test]
fn a_table_with_one_wrong_offset_size_name_or_row_is_objected_to() {
    let right = page("abi.md");
    for (is, other) in [
        ("| host_rsp | 0x08 | 8 |", "| host_rsp | 0x10 | 8 |"),
        ("| user_cs | 0x40 | 2 |", "| user_cs | 0x40 | 4 |"),
        ("| smod_entry | 0x68 |", "| smod_entries | 0x68 |"),
        ("`IretFrame`: 0x28 bytes", "`IretFrame`: 0x30 bytes"),
        ("### `FarFrame`: ", "### `NearFrame`: "),
        ("| rip | 0x08 | 8 | RIP |\n", ""),
    ] {
        assert!(right.contains(is), "{is}");
        let wrong = right.replacen(is, other, 1);
        assert_ne!(objections_to_layouts(&wrong), Vec::<String>::new(), "{other}");
    }
}

/// A struct that gets a layout gets a table: those of `layout/` are all known here.
#[test]
fn no_struct_of_the_layouts_is_left_out() {
    let mut derived = BTreeSet::new();
    let folder = tree::root().join("switcher-gen/abi/src/layout");
    for file in files(&folder).iter().filter(|file| has_extension(file, &["rs"])) {
        let text = read(file);
        let after = text.split("#[derive(").skip(1);
        let derives = after.filter(|after| {
            after.split_once(")]").is_some_and(|(list, _)| list.contains("AsmLayout"))
        });
        derived.extend(derives.filter_map(|after| {
            let (_, name) = after.split_once("pub struct ")?;
            Some(name.split(|c: char| !c.is_alphanumeric()).next()?.to_owned())
        }));
    }
    let known: BTreeSet<_> = layouts().iter().map(|layout| layout.name.to_owned()).collect();
    assert_eq!(derived, known);
}

#[test]
fn the_numbers_of_the_abi_are_the_codes() {
    let text = page("abi.md");
    let own = section(&text, "## switch_flags");
    let said: Vec<_> = cells(own).iter().map(|row| (number(row[0]), row[1].to_owned())).collect();
    let all = SwitchFlags::all();
    let flags = all.iter_names().filter(|(_, flag)| flag.bits().is_power_of_two());
    let has: Vec<_> = flags
        .map(|(name, flag)| (Some(flag.bits().trailing_zeros() as usize), name.to_owned()))
        .collect();
    assert_eq!(said, has);

    let selectors = Selectors::DEFAULT;
    let said: Vec<_> = cells(section(&text, "## Selectors"))
        .iter()
        .map(|row| (row[0].to_owned(), number(row[1])))
        .collect();
    let has = [
        ("KERNEL_CS", selectors.kernel_cs()),
        ("KERNEL_DS", selectors.kernel_ds()),
        ("USER32_CS", selectors.user32_cs()),
        ("USER_DS", selectors.user_ds()),
        ("USER_CS", selectors.user_cs()),
    ]
    .map(|(name, value)| (name.to_owned(), Some(value.into())));
    assert_eq!(said, has);

    let rooms = section(&text, "### Room on the stacks");
    let flags = section(&text, "## RFLAGS");
    let frame = section(&text, "## The exit frame");
    for (part, words) in [
        (rooms, format!("(`Sp0::LEAST`) | {} |", Sp0::LEAST)),
        (rooms, format!("(`IstTop::LEAST`) | {} |", IstTop::LEAST)),
        (rooms, format!("{} bytes that the switcher uses itself", IstTop::USED)),
        (rooms, format!("twice {} bytes (`FarFrame::ROOM`)", FarFrame::ROOM)),
        (flags, format!("0x{:X}", RFlags::GUEST_ALLOWED.bits())),
        (flags, format!("0x{:X}", RFlags::GUEST_FIXED.bits())),
        (frame, format!("{}: SYSCALL", ExitReason::Syscall as u32)),
        (frame, format!("{}: the guest's state", ExitReason::FailedEntry as u32)),
    ] {
        assert!(part.contains(&words), "`{words}` is not in {part}");
    }
}

/// What hazards.md has otherwise than the enum.
fn objections_to_hazards(text: &str) -> Vec<String> {
    let headings = text.lines().filter_map(|line| line.strip_prefix("## Row "));
    let says: Vec<_> = headings.map(|heading| format!("row {heading}")).collect();
    let has: Vec<_> = Hazard::ALL.iter().map(ToString::to_string).collect();
    let mut objections = Vec::new();
    let of_both = says.iter().map(Some).chain(std::iter::repeat(None));
    let of_both = of_both.zip(has.iter().map(Some).chain(std::iter::repeat(None)));
    for (says, has) in of_both.take(says.len().max(has.len())).filter(|(says, has)| says != has) {
        objections.push(format!("the page says {says:?}, the enum {has:?}"));
    }
    for heading in text.lines().filter(|line| line.starts_with("## Row ")) {
        let row = section(text, heading);
        for part in ["**Must hold** (", "**Broken by**: "] {
            if !row.contains(part) {
                objections.push(format!("{heading}: there is no {part}"));
            }
        }
    }
    objections
}

#[test]
fn each_row_of_the_hazards_is_the_enums_and_the_reverse() {
    assert_eq!(objections_to_hazards(&page("hazards.md")), Vec::<String>::new());
}

#[test]
fn a_row_that_is_missing_added_or_worded_otherwise_is_objected_to() {
    let right = page("hazards.md");
    let row = section(&right, "## Row 39: NMI blocking ends too early");
    let more = right.replace("## On FRED", "## Row 61: something new\n\n## On FRED");
    for wrong in [
        right.replacen(row, "", 1),
        right.replacen("## Row 6: stale GS base", "## Row 6: a stale GS base", 1),
        right.replacen("## Row 45:", "## Row 54:", 1),
        right.replacen(row, &row.replace("**Broken by**", "Broken by"), 1),
        more,
    ] {
        assert_ne!(objections_to_hazards(&wrong), Vec::<String>::new());
    }
}

/// Those who see to hazards, by hazard.
fn served() -> BTreeMap<Hazard, Vec<String>> {
    let mut served: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut serve = |rows: &[Hazard], by: String| {
        rows.iter().for_each(|row| served.entry(*row).or_default().push(by.clone()));
    };
    for obligation in Obligation::ALL {
        serve(obligation.rows, format!("obligation {}", obligation.name));
    }
    for case in hw_cases::all() {
        serve(case.rows, format!("case {}", case.name));
    }
    // What a host may have as it likes keeps nothing away.
    let states = CPU_STATE.iter();
    for state in states.filter(|it| it.care.iter().any(|care| !matches!(care, Care::Choice(_)))) {
        serve(state.rows, format!("state {}", state.registers));
    }
    served
}

/// Hazards that nobody sees to, and lines of CAVEATS for what somebody else does.
fn objections_to_service(
    served: &BTreeMap<Hazard, Vec<String>>,
    hazards: &[Hazard],
    caveats: &str,
) -> Vec<String> {
    const HEADING: &str = "## Hazards that no obligation, case or state is for";
    let mut named = BTreeMap::new();
    let mut objections = Vec::new();
    for line in cells(section(caveats, HEADING)) {
        match hazards.iter().find(|hazard| hazard.to_string() == line[0]) {
            Some(hazard) if !line[1].is_empty() => {
                named.insert(*hazard, line[1].to_owned());
            }
            _ => objections.push(format!("CAVEATS.md: `{}` is no hazard, or has nobody", line[0])),
        }
    }
    for hazard in hazards {
        match (served.get(hazard), named.get(hazard)) {
            (None, None) => objections.push(format!("nobody sees to {hazard}")),
            (Some(by), Some(_)) => {
                objections.push(format!("CAVEATS.md names {hazard}, which has {}", by.join(", ")));
            }
            _ => {}
        }
    }
    objections
}

fn caveats() -> String {
    read(&tree::root().join("switcher-gen/CAVEATS.md"))
}

#[test]
fn somebody_sees_to_each_hazard() {
    let objections = objections_to_service(&served(), Hazard::ALL, &caveats());
    assert_eq!(objections, Vec::<String>::new());
}

#[test]
fn a_hazard_that_nobody_sees_to_is_objected_to() {
    let (served, caveats) = (served(), caveats());
    // Row 53 is CAVEATS' own; row 18 has an obligation.
    let line = caveats.lines().find(|line| line.starts_with("| row 53: ")).unwrap();
    let without = caveats.replacen(line, "", 1);
    let objections = objections_to_service(&served, Hazard::ALL, &without);
    assert_eq!(objections, ["nobody sees to row 53: a tag outlives what it named"]);
    let worded = caveats.replacen("| row 53: a tag", "| row 53: the tag", 1);
    assert_eq!(objections_to_service(&served, Hazard::ALL, &worded).len(), 2);
    let twice = caveats.replacen(line, &format!("{line}\n| {} | x |", Hazard::SysretSs), 1);
    assert_eq!(objections_to_service(&served, Hazard::ALL, &twice).len(), 1);
    let mut fewer = served.clone();
    fewer.remove(&Hazard::SysretSs);
    assert_eq!(objections_to_service(&fewer, Hazard::ALL, &caveats).len(), 1);
}

/// A text in one line, without what begins the lines of comments and ends those of long strings.
fn in_one_line(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.trim();
        let comment = ["//!", "///", "//", "#"].iter().find_map(|start| line.strip_prefix(start));
        let line = comment.filter(|_| !line.starts_with("##")).unwrap_or(line);
        line.trim().trim_end_matches('\\').trim_end()
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// The documents of the tree, for what cites them.
struct Documents {
    /// Of the specification, by name.
    pages: BTreeMap<String, String>,
    /// The paths of all, from the workspace's root.
    all: BTreeSet<PathBuf>,
}

/// What was found to be cited.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cited {
    pages: usize,
    rows: usize,
    sections: usize,
}

/// The headings of a page, without their `#`.
fn headings(page: &str) -> impl Iterator<Item = &str> {
    page.lines().filter_map(|line| {
        line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
    })
}

/// A heading as links name it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

impl Documents {
    fn of_tree() -> Self {
        let root = tree::root();
        let documents = files(root).into_iter().filter(|file| has_extension(file, &["md"]));
        let all = documents.filter_map(|file| Some(file.strip_prefix(root).ok()?.to_owned()));
        let pages = files(&pages()).into_iter().filter(|file| has_extension(file, &["md"]));
        let pages = pages.map(|file| {
            (file.file_name().unwrap_or_default().to_string_lossy().into_owned(), read(&file))
        });
        Self { pages: pages.collect(), all: all.collect() }
    }

    /// Whether there is a document that a file in this folder can mean by this name.
    fn has(&self, name: &str, folder: &Path) -> bool {
        if let Some(page) = name.strip_prefix("spec/") {
            return self.pages.contains_key(page);
        }
        if !name.contains('/') {
            let mut all = self.all.iter();
            return all.any(|document| document.file_name().is_some_and(|own| own == name));
        }
        folder.ancestors().any(|ancestor| {
            let mut path = PathBuf::new();
            for part in ancestor.join(name).iter() {
                if part == ".." {
                    path.pop();
                } else {
                    path.push(part);
                }
            }
            self.all.contains(&path)
        })
    }

    /// What a text that lies in `folder` cites and is not there.
    fn objections(&self, folder: &Path, text: &str, cited: &mut Cited) -> Vec<String> {
        let text = in_one_line(text);
        let mut objections = Vec::new();
        let is_of_name = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
        for (end, _) in text.match_indices(".md") {
            let (before, after) = (&text[..end], &text[end + 3..]);
            if after.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            let start = before
                .rfind(|c| !is_of_name(c))
                .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
            let name = format!("{}.md", &before[start..]);
            let name = name.trim_start_matches('/').to_owned();
            // Code about names of documents, and what says how to cite them.
            if name == ".md" || name == "spec/NAME.md" {
                continue;
            }
            if !self.has(&name, folder) {
                objections.push(format!("there is no {name}"));
                continue;
            }
            let Some(page) = self.pages.get(name.rsplit('/').next().unwrap_or(&name)) else {
                continue;
            };
            cited.pages += 1;
            let mut object = |what: String| objections.push(format!("{name} has no {what}"));
            if let Some(link) = after.strip_prefix('#') {
                let link = link.split([')', ' ']).next().unwrap_or_default();
                cited.sections += 1;
                if !headings(page).any(|heading| anchor(heading) == link) {
                    object(format!("#{link}"));
                }
            }
            let after = after.trim_start_matches(['`', ')']);
            let Some(after) = after.strip_prefix(", ") else { continue };
            if let Some(rows) = after.strip_prefix("row") {
                let rows = rows.strip_prefix('s').unwrap_or(rows).trim_start();
                let is_of_rows = |c: char| c.is_ascii_digit() || ", andto".contains(c);
                let rows = rows.split(|c| !is_of_rows(c)).next().unwrap_or_default();
                let rows = rows.split(|c: char| !c.is_ascii_digit()).filter(|row| !row.is_empty());
                for row in rows {
                    cited.rows += 1;
                    if row.parse().ok().and_then(Hazard::from_number).is_none() {
                        object(format!("row {row}"));
                    }
                }
            } else if let Some(number) = after.strip_prefix("section ") {
                let number: String = number.chars().take_while(char::is_ascii_digit).collect();
                cited.sections += 1;
                if !headings(page).any(|heading| heading.starts_with(&format!("{number}. "))) {
                    object(format!("section {number}"));
                }
            } else {
                let mut rest = after;
                while let Some(quote @ ('"' | '`')) = rest.chars().next() {
                    let Some((title, next)) = rest[1..].split_once(quote) else { break };
                    // The next page, and no section.
                    if title.ends_with(".md") {
                        break;
                    }
                    cited.sections += 1;
                    let is_there = headings(page).any(|heading| match quote {
                        '"' => heading == title,
                        _ => heading.starts_with(&format!("`{title}`")),
                    });
                    if !is_there {
                        object(format!("{quote}{title}{quote}"));
                    }
                    let Some(next) = next.strip_prefix(" and ").or(next.strip_prefix(", ")) else {
                        break;
                    };
                    rest = next;
                }
            }
        }
        objections
    }
}

#[test]
fn what_the_tree_cites_is_there() {
    let root = tree::root();
    let documents = Documents::of_tree();
    let mut cited = Cited::default();
    let mut objections = Vec::new();
    for file in files(root) {
        let Ok(path) = file.strip_prefix(root) else { continue };
        // These have what is wrong, to see it objected to.
        let is_own =
            path.ends_with("tests/specification.rs") || path.ends_with("tests/documents.rs");
        if is_own || !has_extension(path, &["rs", "md", "toml", "S", "ld"]) {
            continue;
        }
        let folder = path.parent().unwrap_or(path);
        let found = documents.objections(folder, &read(&file), &mut cited);
        objections.extend(found.into_iter().map(|what| format!("{}: {what}", path.display())));
    }
    assert_eq!(objections, Vec::<String>::new());
    // There is something to be looked at.
    assert!(cited.pages > 100 && cited.rows > 50 && cited.sections > 25, "{cited:?}");
}

#[test]
fn a_citation_of_what_is_not_there_is_objected_to() {
    let documents = Documents::of_tree();
    let objections =
        |text: &str| documents.objections(Path::new("runtime/src"), text, &mut Cited::default());
    for right in [
        "//! (spec/hazards.md, rows 8, 10 to 12 and\n//! 32), and\n",
        "/// (spec/switcher.md, \"Return to\n    /// the guest\"; hazards.md, row 29)",
        "// spec/abi.md, `TssExtra` and \"PVCS\": 0x254FD7",
        "// spec/hypervisor.md, section 9, and CAVEATS.md, runtime/CPU-STATE.md, ../CPU-STATE.md",
        "[flags](abi.md#rflags)",
        "`spec/abi.md`, `spec/switcher.md` and `spec/hazards.md`",
        "include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/CPU-STATE.md\"))",
    ] {
        assert_eq!(objections(right), Vec::<String>::new(), "{right}");
    }
    for (wrong, what) in [
        ("(spec/hazards.md, row 98)", "spec/hazards.md has no row 98"),
        ("//! (hazards.md, rows 8,\n//! 10 to 99)", "hazards.md has no row 99"),
        ("spec/switcher.md, \"Return\"", "spec/switcher.md has no \"Return\""),
        ("spec/abi.md, \"PVCS\" and \"flags\"", "spec/abi.md has no \"flags\""),
        ("spec/hypervisor.md, section 77", "spec/hypervisor.md has no section 77"),
        ("see spec/fred.md", "there is no spec/fred.md"),
        ("see docs/README.md", "there is no docs/README.md"),
        ("see NOTHING.md", "there is no NOTHING.md"),
        ("[flags](abi.md#eflags)", "abi.md has no #eflags"),
    ] {
        assert_eq!(objections(wrong), [what]);
    }
}

#[test]
fn the_list_of_pages_is_the_folder() {
    let readme = page("README.md");
    let rows = cells(&readme);
    let listed: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| Some(row[0].strip_prefix('[')?.split_once(']')?.0.to_owned()))
        .collect();
    let documents = Documents::of_tree();
    let there = documents.pages.keys().filter(|name| *name != "README.md").cloned().collect();
    assert_eq!(listed, there);
}

#[test]
fn the_glossary_is_sorted() {
    let text = page("glossary.md");
    let words: Vec<_> =
        cells(&text).iter().map(|row| row[0].trim_matches('`').to_lowercase()).collect();
    assert!(words.len() > 40 && words.is_sorted(), "{words:?}");
}
