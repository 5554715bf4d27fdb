//! Makes the snapshots beside this file and compares them with what was reviewed: see README.md.
//!
//! A test of `switcher-listing`. It lies here and not in `switcher-gen/listing/tests` because
//! `cargo insta` looks for pending snapshots in packages and in the directories of their targets,
//! and nowhere else.

use std::collections::BTreeSet;
use std::path::Path;

use similar::{ChangeTag, TextDiff};
use switcher_gen::arch::{PagingMode, Selectors, Vendor};
use switcher_gen::layout::{LAYOUTS, Placement, Revision};
use switcher_gen::{Config, Image, Policy, Variant};
use switcher_listing::{Listing, ListingOptions};

/// Every snapshot there is, one test each.
const SNAPSHOTS: [&str; 14] = [
    "diff_amd",
    "diff_amd_mitigations",
    "diff_current",
    "diff_ibt",
    "diff_la57",
    "diff_mitigations",
    "diff_pcid",
    "diff_percpu_current",
    "diff_percpu_pku",
    "diff_pku",
    "listing_intel-4level",
    "listing_intel-4level-percpu",
    "offsets",
    "variants",
];

fn assert_snapshot(name: &str, text: &str) {
    assert!(SNAPSHOTS.contains(&name), "add `{name}` to SNAPSHOTS");
    let mut settings = insta::Settings::new();
    settings.set_snapshot_path(".");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

fn listing(variant: &Variant) -> Listing {
    let image = Image::new(variant).unwrap();
    // Sources would change with every line added to an emitter.
    Listing::new(&image, &ListingOptions { base: None, source: false }).unwrap()
}

#[test]
fn offsets() {
    let mut table = String::new();
    for layout in LAYOUTS {
        let (name, size, align) = (layout.name, layout.size, layout.align);
        table += &format!("{name}: {size:#x} bytes, aligned to {align:#x}\n");
        for field in layout.fields {
            let (offset, size, name, ty) = (field.offset, field.size, field.name, field.ty);
            table += &format!("  {offset:02x}  {size:>4}  {name:<14} {ty}\n");
        }
        table.push('\n');
    }
    assert_snapshot("offsets", table.trim_end());
}

#[test]
fn variants() {
    let mut table = format!("{:<37} bytes  fingerprint\n", "variant");
    for variant in Variant::representative() {
        let image = Image::new(&variant).unwrap();
        let (size, fingerprint) = (image.bytes().len(), image.fingerprint());
        table += &format!("{:<37} {size:>5}  {fingerprint}\n", variant.to_string());
    }
    assert_snapshot("variants", &table);
}

#[test]
fn the_reference_in_full() {
    in_full(Placement::Gs);
}

#[test]
fn per_cpu_code_in_full() {
    in_full(Placement::PerCpu);
}

fn in_full(placement: Placement) {
    let policy = Policy { placement, ..Policy::DEFAULT };
    let listing = listing(&Variant::REFERENCE.with_policy(policy));
    assert_snapshot(&format!("listing_{}", listing.variant), &listing.to_string());
}

#[test]
fn what_vendor_amd_changes() {
    diff("diff_amd", Placement::Gs, |config| config.vendor = Vendor::Amd);
}

#[test]
fn what_la57_changes() {
    diff("diff_la57", Placement::Gs, |config| config.paging = PagingMode::FiveLevel);
}

#[test]
fn what_ibt_changes() {
    diff("diff_ibt", Placement::Gs, |config| config.ibt = true);
}

#[test]
fn what_pcid_changes() {
    diff("diff_pcid", Placement::Gs, |config| config.pcid = true);
}

#[test]
fn what_mitigations_change() {
    diff("diff_mitigations", Placement::Gs, |config| {
        config.mitigations = "+ibrs+rsb+bhb+verw".parse().unwrap();
    });
}

#[test]
fn what_amds_mitigations_change() {
    diff("diff_amd_mitigations", Placement::Gs, |config| {
        config.vendor = Vendor::Amd;
        config.mitigations = "+ibrs+ibpb+untrain+rsblite".parse().unwrap();
    });
}

#[test]
fn what_the_current_pvcs_changes() {
    diff("diff_current", Placement::Gs, |config| config.policy.revision = Revision::V2026);
}

#[test]
fn what_the_current_pvcs_changes_in_per_cpu_code() {
    let name = "diff_percpu_current";
    diff(name, Placement::PerCpu, |config| config.policy.revision = Revision::V2026);
}

#[test]
fn what_protection_keys_change() {
    diff("diff_pku", Placement::Gs, |config| config.pku = true);
}

#[test]
fn what_protection_keys_change_in_per_cpu_code() {
    diff("diff_percpu_pku", Placement::PerCpu, |config| config.pku = true);
}

/// The snapshot of how the code changes if `change` is made to the config of the reference with
/// that placement.
fn diff(name: &str, placement: Placement, change: impl FnOnce(&mut Config)) {
    let old = Variant::REFERENCE.with_policy(Policy { placement, ..Policy::DEFAULT });
    let mut config = old.config();
    change(&mut config);
    let old = listing(&old);
    let new = listing(&Variant::new(config, Selectors::DEFAULT).unwrap());
    let text = format!(
        "--- {}  {} bytes\n+++ {}  {} bytes\n{}",
        old.variant,
        old.size,
        new.variant,
        new.size,
        changes(&old.outline(), &new.outline())
    );
    assert_snapshot(name, &text);
}

/// A unified diff whose hunks are headed by the label they are under instead of line numbers: a
/// change elsewhere does not change it.
fn changes(old: &str, new: &str) -> String {
    const CONTEXT: usize = 3;
    let diff = TextDiff::from_lines(old, new);
    let groups = diff.grouped_ops(CONTEXT);
    if groups.is_empty() {
        return "\nno instruction changes\n".into();
    }
    let lines: Vec<&str> = old.lines().collect();
    let mut text = String::new();
    for ops in groups {
        let before = &lines[..ops[0].old_range().start];
        let is_heading = |line: &&&str| line.ends_with(':') || line.starts_with("; ----");
        let heading = before.iter().rfind(is_heading).unwrap_or(&"start");
        text += &format!("\n@@ {heading}\n");
        for change in ops.iter().flat_map(|op| diff.iter_changes(op)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            text += format!("{sign}{}", change.value()).trim_end();
            text.push('\n');
        }
    }
    text
}

#[test]
fn no_snapshot_is_stale_or_pending() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../snapshots");
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().expect("file names are UTF-8"));
    let found: BTreeSet<String> =
        names.filter(|name| name != "README.md" && name != "snapshots.rs").collect();
    let made: BTreeSet<String> = SNAPSHOTS.iter().map(|name| format!("{name}.snap")).collect();

    let pending: Vec<_> = found.iter().filter(|name| !name.ends_with(".snap")).collect();
    assert!(pending.is_empty(), "to be reviewed, or not to be here at all: {pending:?}");
    let stale: Vec<_> = found.difference(&made).collect();
    assert!(stale.is_empty(), "no test makes them any more, remove them: {stale:?}");
    let missing: Vec<_> = made.difference(&found).collect();
    assert!(missing.is_empty(), "never accepted: {missing:?}");
}
