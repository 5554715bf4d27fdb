//! The costs of paths: what the model counts is what this CPU counts, and foreign code is counted
//! too. Needs binutils, and a machine that runs emitted bytes.

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::LazyLock;

use switcher_engine::native;
use switcher_gen::layout::{Placement, Revision};
use switcher_gen::{Image, Policy, Variant};
use switcher_prove::cost::{KERNEL_2024, PathCost, compare, paths};
use switcher_prove::elf;
use switcher_prove::{BlockOffsets, Setting, Target};

use gas::{SWITCHER, assemble, process, replaced};

/// Where a SYSCALL begins in [`SWITCHER`].
const ENTRY: &str = "\nroutine entry_SYSCALL_64_switcher\n";

/// The paths of every variant, the reference first.
static OURS: LazyLock<Vec<(Variant, Vec<PathCost>)>> = LazyLock::new(|| {
    let of_variant = |variant| {
        let image = Image::new(&variant).unwrap();
        let paths = paths(&Target::image(&image));
        (variant, paths.unwrap_or_else(|error| panic!("{variant}: {error}")))
    };
    Variant::unmitigated().map(of_variant).collect()
});

fn of_reference() -> &'static [PathCost] {
    &OURS[0].1
}

/// The paths of a source for GNU as.
#[track_caller]
fn of_source(source: &str) -> Vec<PathCost> {
    of_object(&assemble(source, &[]), BlockOffsets::default())
}

#[track_caller]
fn of_object(object: &[u8], block: BlockOffsets) -> Vec<PathCost> {
    let setting = Setting::from(&Variant::REFERENCE).with_block(block);
    let target = Target::foreign(&elf::read(object).unwrap(), setting).unwrap();
    paths(&target).unwrap_or_else(|error| panic!("{error}"))
}

/// The only path of a kind.
#[track_caller]
fn path<'a>(paths: &'a [PathCost], kind: &str) -> &'a PathCost {
    let mut of_kind = paths.iter().filter(|path| path.kind == kind);
    let path = of_kind.next().unwrap_or_else(|| panic!("no `{kind}` in {:?}", names(paths)));
    assert!(of_kind.next().is_none(), "{kind}");
    path
}

fn names(paths: &[PathCost]) -> Vec<String> {
    paths.iter().map(PathCost::to_string).collect()
}

#[test]
fn the_model_counts_what_this_cpu_executes() {
    for (variant, paths) in OURS.iter().filter(|(variant, _)| !variant.pku()) {
        let tour = native::tour(variant).unwrap_or_else(|error| panic!("{variant}: {error}"));
        assert_eq!(tour.paths.len(), KERNEL_2024.len());
        for counted in tour.paths {
            let mut of_kind = paths.iter().filter(|path| path.kind == counted.kind);
            let path = of_kind.find(|path| path.instructions as u64 == counted.executed);
            let path = path.unwrap_or_else(|| panic!("{variant}: {counted:?}"));
            assert_eq!(path.kernel_2024, Some(counted.kernel_2024), "{variant}: {path}");
        }
    }
}

/// A SYSCALL of umod and the ERETU that returns from it: instructions, SWAPGS and distinct lines of
/// the host's data, both ways together. Its RIP is in the lower half, as user mode's is.
#[test]
fn round_trips_cost_what_they_are_said_to() {
    let expected = [
        ("intel-4level", [25, 41], 4, [2, 3]),
        ("intel-4level-percpu", [22, 32], 0, [2, 1]),
        ("intel-4level-current", [25, 40], 4, [2, 3]),
        ("intel-4level-percpu-current", [20, 31], 0, [1, 1]),
        // Of guests that use no protection keys.
        ("intel-4level-pku", [36, 52], 4, [3, 3]),
        ("intel-4level-pku-percpu", [33, 43], 0, [3, 1]),
    ];
    for (name, instructions, swapgs, lines) in expected {
        let (_, paths) = OURS.iter().find(|(variant, _)| variant.to_string() == name).unwrap();
        let first = |kind| paths.iter().find(|path| path.kind == kind).unwrap();
        let trip = ["SYSCALL in umod -> smod", "ERETU -> umod by SYSRETQ"].map(first);
        assert_eq!(trip.map(|path| path.instructions), instructions, "{name}");
        assert_eq!(trip.iter().map(|path| path.swapgs).sum::<usize>(), swapgs, "{name}");
        assert_eq!(trip.map(|path| path.data_lines.hosts()), lines, "{name}");
        assert!(trip.iter().all(|path| path.cr3_writes == 1 && path.data_lines.pvcs == 1));
    }
}

#[test]
fn the_reference_costs_what_it_is_said_to() {
    let paths = of_reference();
    assert_eq!(path(paths, "enter -> guest by SYSRETQ").instructions, 43);
    // By hand, from the listing.
    let to_smod = path(paths, "SYSCALL in umod -> smod");
    assert_eq!((to_smod.instructions, to_smod.kernel_2024), (25, Some(37)));
    assert_eq!((to_smod.loads, to_smod.stores), (8, 9));
    assert_eq!((to_smod.serialising, to_smod.cr3_writes, to_smod.swapgs), (1, 1, 2));
    assert_eq!((to_smod.branches, to_smod.taken.as_slice()), (1, [].as_slice()));
    // sp2; the second line of TssExtra; no stack.
    let lines = to_smod.data_lines;
    assert_eq!((lines.per_cpu, lines.sp0_stack, lines.pvcs), (2, 0, 1));
    assert_eq!(lines.hosts(), 2);
}

/// Of per-CPU code, which checks in more than one place, several paths have the same reason.
#[test]
fn our_paths_have_names_that_depend_on_placement_and_protection_keys_alone() {
    let [gs, per_cpu] = [Placement::Gs, Placement::PerCpu];
    for (placement, pku) in [(gs, false), (gs, true), (per_cpu, false), (per_cpu, true)] {
        let is_placed = |(variant, _): &&(Variant, Vec<PathCost>)| {
            variant.placement() == placement && variant.pku() == pku
        };
        let mut of_placement = OURS.iter().filter(is_placed);
        let (_, reference) = of_placement.next().unwrap();
        let reference = names(reference);
        assert_eq!(BTreeSet::from_iter(&reference).len(), reference.len());
        for (variant, paths) in of_placement {
            assert_eq!(names(paths), reference, "{variant}");
            let is_only = paths.iter().all(|path| path.of == 1);
            assert_eq!(is_only, placement == Placement::Gs, "{variant}");
        }
    }
}

#[test]
fn an_iretq_serialises_and_loads_its_frame_but_is_no_instruction() {
    let [before, after] =
        [SWITCHER.into(), replaced(SWITCHER, &[("\tiretq\n", "\tcld\n\tiretq\n")])]
            .map(|source: String| of_source(&source));
    for (before, after) in before.iter().zip(&after) {
        let is_iretq = after.kind.contains("IRETQ");
        assert_eq!(after.serialising, after.cr3_writes + usize::from(is_iretq), "{after}");
        assert_eq!(after.instructions, before.instructions + usize::from(is_iretq), "{after}");
    }
}

#[test]
fn what_serialises_is_told_from_what_does_not() {
    let with = |instructions: &str| {
        let source = replaced(SWITCHER, &[(ENTRY, &format!("{ENTRY}{instructions}\n"))]);
        path(&of_source(&source), "SYSCALL in umod -> smod").clone()
    };
    let plain = with("");
    for (instruction, serialises) in
        [("lfence", true), ("mfence", true), ("sfence", false), ("cld", false)]
    {
        let path = with(instruction);
        assert_eq!(path.instructions, plain.instructions + 1, "{instruction}");
        let more = path.serialising - plain.serialising;
        assert_eq!(more, usize::from(serialises), "{instruction}");
    }
}

#[test]
fn paths_that_nothing_tells_apart_are_numbered_by_their_jumps() {
    let twice = format!("{ENTRY}\ttestq %r15, %r15\n\tjz 1f\n\tcld\n1:\n");
    let paths = of_source(&replaced(SWITCHER, &[(ENTRY, &twice)]));
    let to_smod: Vec<_> =
        paths.iter().filter(|path| path.kind == "SYSCALL in umod -> smod").collect();
    let [straight, jumps] = to_smod[..] else { panic!("{:?}", names(&paths)) };
    assert_eq!(straight.to_string(), "SYSCALL in umod -> smod, 1 of 2");
    assert_eq!(jumps.to_string(), "SYSCALL in umod -> smod, 2 of 2");
    assert_eq!((straight.taken.len(), jumps.taken.len()), (0, 1));
    assert_eq!(straight.instructions, jumps.instructions + 1);
}

/// The switcher is not for this revision: what it does is not what is specified.
#[test]
fn the_specification_adds_no_paths() {
    let policy = Policy { revision: Revision::V2026, ..Policy::DEFAULT };
    let setting = Setting::from(&Variant::REFERENCE.with_policy(policy));
    let object = elf::read(&assemble(SWITCHER, &[])).unwrap();
    let current = paths(&Target::foreign(&object, setting).unwrap()).unwrap();
    assert_eq!(current, of_source(SWITCHER));
}

#[test]
fn a_path_that_breaks_is_named_by_how() {
    let canonical = "\tshlq\t$63 - SIGN_BIT, %rcx\n\tsarq\t$63 - SIGN_BIT, %rcx\n";
    let paths = of_source(&replaced(SWITCHER, &[(canonical, "")]));
    let broken =
        paths.iter().filter(|path| path.kind.starts_with("ERETU -> exception 13 in ring 0"));
    assert_eq!(broken.count(), 1, "{:?}", names(&paths));
}

#[test]
fn where_per_cpu_data_lies_changes_lines_only() {
    let at = |tss: i64, tss_extra: i64| {
        let symbols = [("GS_TSS", tss), ("GS_TSS_EXTRA", tss_extra)];
        of_object(&assemble(SWITCHER, &symbols), BlockOffsets { tss, tss_extra })
    };
    let usual = of_source(SWITCHER);
    assert_eq!(at(0x6000, 0x6080), usual);
    assert_eq!(at(-0x1000, -0x80), usual);
    // All that a direct switch needs of TssExtra lies in one line, if that is aligned.
    let split = at(0, 0xA0);
    let lines = |paths| path(paths, "SYSCALL in umod -> smod").data_lines.per_cpu;
    assert_eq!((lines(&usual), lines(&split)), (2, 3));
}

/// The output of `switcher cost`.
fn cost(code: i32, args: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_switcher")).arg("cost").args(args).output().unwrap();
    let (shown, hidden) = match code {
        0 => (output.stdout, output.stderr),
        _ => (output.stderr, output.stdout),
    };
    let shown = String::from_utf8(shown).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {shown}");
    assert!(hidden.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&hidden));
    shown
}

#[test]
fn the_command_shows_the_same_as_text_and_as_json() {
    let paths = of_reference();
    let text = cost(0, &["--variant", "intel-4level"]);
    let json = cost(0, &["--variant", "intel-4level", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["target"], "intel-4level");
    assert_eq!(json["paths"], serde_json::to_value(paths).unwrap());
    for path in paths {
        let line = text.lines().find(|line| line.starts_with(&format!("{path}  "))).unwrap();
        let figures: Vec<_> = line[path.to_string().len()..].split_whitespace().collect();
        assert_eq!(figures[0], path.instructions.to_string(), "{text}");
        if let Some(kernel) = path.kernel_2024 {
            assert_eq!(figures[1], format!("({kernel})"), "{text}");
        }
        assert_eq!(figures.last().unwrap(), &path.branches_taken.to_string(), "{text}");
    }
}

/// Counts, not times: a change of them is to be seen in review.
#[test]
fn the_table_beside_the_kernels_counts_is_the_one_on_record() {
    let table = cost(0, &["--compare"]);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../costs.txt"), &table).unwrap();
    } else {
        assert_eq!(
            include_str!("../../costs.txt"),
            table,
            "costs.txt is stale: run `BLESS=1 cargo test -p switcher-cli --test cost`"
        );
    }
}

#[test]
fn variants_that_cost_the_same_are_compared_once_and_the_round_trip_is_the_sum() {
    let target = |variant: &Variant| Target::image(&Image::new(variant).unwrap());
    let some = ["intel-4level", "intel-4level-ibt", "intel-la57"];
    let some = some.map(|name| (name.to_owned(), target(&name.parse().unwrap())));
    let families = compare(some).unwrap();
    let names: Vec<_> = families.iter().map(|family| family.variants.join(" ")).collect();
    assert_eq!(names, ["intel-4level intel-la57", "intel-4level-ibt"]);
    let rows = &families[0].rows;
    assert_eq!(rows.len(), 6);
    let paths = of_reference();
    for row in rows.iter().filter(|row| row.path != "round trip by SYSRETQ") {
        let path = path(paths, &row.path);
        assert_eq!((row.instructions, row.kernel_2024), (path.instructions, path.kernel_2024));
        assert_eq!((row.swapgs, row.cr3_writes), (path.swapgs, path.cr3_writes));
        assert_eq!(row.accesses, path.loads + path.stores);
        assert_eq!(row.data_lines, path.data_lines.hosts());
    }
    let [there, back, both] = &rows[..3] else { unreachable!() };
    assert_eq!(both.instructions, there.instructions + back.instructions);
    assert_eq!((both.kernel_2024, both.kernel_2024_swapgs), (Some(89), Some(4)));
    assert_eq!(both.serialising, there.serialising + back.serialising);
    // What both touch counts once.
    assert!(both.data_lines < there.data_lines + back.data_lines, "{both:?}");
    assert_eq!(both.pvcs_lines, 1);
    let json = serde_json::to_value(&families).unwrap();
    let all: serde_json::Value =
        serde_json::from_str(&cost(0, &["--compare", "--format", "json"])).unwrap();
    assert_eq!(all["families"][0]["rows"], json[0]["rows"]);
}

#[test]
fn the_command_takes_foreign_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("theirs");
    let object = assemble(SWITCHER, &[("GS_TSS", 64), ("GS_TSS_EXTRA", 0x1000)]);
    let place = ["-Ttext=0xffffffff81000000", "-e", "switcher_enter_guest"];
    std::fs::write(&file, process("ld", &place, &object)).unwrap();
    let file = file.to_str().unwrap();
    let elf = ["--elf", file, "--variant", "intel-4level"];
    let placed = ["--pvcs", "v2024", "--gs-tss", "64", "--gs-tss-extra", "0x1000"];
    let text = cost(0, &[&elf[..], &placed].concat());
    assert!(text.contains("\nSYSCALL in umod -> smod "), "{text}");
    // The usual places are not this code's.
    assert!(cost(2, &elf).contains(file));
}

#[test]
fn what_cannot_be_counted_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let elf = |file: &str, more: &[&str]| {
        let message = cost(2, &[&["--elf", file, "--variant", "intel-4level"], more].concat());
        assert!(message.contains(file) || !more.is_empty(), "{message}");
        message
    };
    let good = file("good.o", &assemble(SWITCHER, &[]));
    assert!(cost(2, &["--elf", &good]).contains("--variant"));
    assert!(cost(2, &["--compare", "--elf", &good]).contains("--compare"));
    assert!(cost(2, &["--gs-tss", "0"]).contains("--elf"));
    assert!(elf(&good, &["--gs-tss", "0xhere"]).contains("relative to GS base"));
    assert!(elf(&good, &["--gs-tss", "here"]).contains("no data called `here`"));
    assert!(elf(&good, &["--pvcs", "newest"]).contains("v2026"));
    assert!(elf(&good, &["--gs-tss", "0x20"]).contains("overlap"));
    assert!(elf("/nonexistent/file.o", &[]).contains("No such file"));
    assert!(elf("/dev/zero", &[]).contains("not a file"));
    assert!(elf(&file("text", b"int main() {}"), &[]).contains("not an ELF file"));
    let nameless = file("other.o", &assemble("other: ret", &[]));
    assert!(elf(&nameless, &[]).contains("no code is called `switcher_enter_guest`"));
    let unknown = replaced(SWITCHER, &[("\tsysretl\n", "\tcpuid\n\tsysretl\n")]);
    assert!(
        elf(&file("cpuid.o", &assemble(&unknown, &[])), &[]).contains("`cpuid` is not modelled")
    );
    let endless = replaced(SWITCHER, &[("\tsysretl\n", "1:\tjmp 1b\n")]);
    let endless = file("endless.o", &assemble(&endless, &[]));
    assert!(elf(&endless, &[]).contains("a loop without a bound, or of more rounds"));
}
