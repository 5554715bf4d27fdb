//! The `switcher` binary, as users and scripts see it: what it prints where, and its exit codes.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use switcher_gen::arch::HostFeatures;
use switcher_gen::{Image, Variant};

fn switcher(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_switcher")).args(args).output().unwrap()
}

/// Standard output of a run that must succeed and have nothing to complain of.
fn stdout(args: &[&str]) -> String {
    let output = switcher(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that must fail with `code` and print nothing else.
fn refused(code: i32, args: &[&str]) -> String {
    let output = switcher(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    stderr
}

#[test]
fn help_is_everywhere_and_has_examples() {
    for command in [&[][..], &["variants"], &["emit"], &["offsets"], &["cost"], &["diff"]] {
        for help in ["--help", "-h"] {
            let text = stdout(&[command, &[help]].concat());
            assert!(text.contains("Usage: switcher"), "{text}");
            assert!(text.contains("Examples:"), "{text}");
        }
    }
    assert_eq!(stdout(&["--version"]), concat!("switcher ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn variants_lists_all_in_both_formats() {
    let text = stdout(&["variants"]);
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&["variants", "--format", "json"])).unwrap();
    let entries = json.as_array().unwrap();
    // And the one for this host, if it has mitigations.
    let count = Variant::unmitigated().count();
    assert!((count..=count + 1).contains(&entries.len()));
    for (variant, entry) in Variant::unmitigated().zip(entries) {
        assert!(text.lines().any(|line| line.starts_with(&format!("{variant} "))), "{text}");
        let image = Image::new(&variant).unwrap();
        assert_eq!(entry["name"], variant.to_string());
        assert_eq!(entry["fingerprint"], image.fingerprint().to_string());
        assert_eq!(entry["size"], image.bytes().len());
    }
}

#[test]
fn a_listing_names_fields_constants_and_sources() {
    let text = stdout(&["emit", "--variant", "intel-4level"]);
    for expected in [
        "; switcher intel-4level: ",
        "entry_SYSCALL_64_switcher:",
        "gs:[tss_extra.switch_flags], SwitchFlags::UMOD",
        "mov     [pvcs.rip], rcx",
        "  emit/to_smod.rs:",
    ] {
        assert!(text.contains(expected), "`{expected}` in {text}");
    }
    assert_eq!(text, stdout(&["emit", "--variant", "intel-4level", "--format", "listing"]));
}

#[test]
fn a_base_moves_every_address() {
    let base = "0xffff_fe80_0000_0000";
    let text = stdout(&["emit", "--variant", "intel-4level", "--base", base]);
    assert!(text.contains(";   fffffe8000000000  switcher_enter_guest"), "{text}");
    assert!(text.contains("\n    fffffe8000000000  55"), "{text}");
}

#[test]
fn bin_is_the_image_and_elf_is_an_object() {
    let image = Image::new(&"amd-la57-pcid".parse().unwrap()).unwrap();
    let variant = ["emit", "--variant", "amd-la57-pcid", "--format"];
    let bin = switcher(&[&variant[..], &["bin"]].concat());
    assert!(bin.status.success());
    assert_eq!(bin.stdout, image.bytes());
    let elf = switcher(&[&variant[..], &["elf"]].concat());
    assert!(elf.stdout.starts_with(b"\x7fELF"));
}

#[test]
fn json_holds_the_image_and_its_lines() {
    let image = Image::new(&Variant::REFERENCE).unwrap();
    let json = stdout(&["emit", "--variant", "intel-4level", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["variant"], "intel-4level");
    assert_eq!(json["fingerprint"], image.fingerprint().to_string());
    assert_eq!(json["bytes"].as_str().unwrap().len(), image.bytes().len() * 2);
    assert_eq!(json["windows"].as_array().unwrap().len(), image.windows().len());
    let lines = json["lines"].as_array().unwrap();
    let mut bytes = String::new();
    for line in lines.iter().filter(|line| line["kind"] == "instruction") {
        assert_eq!(line["address"], bytes.len() / 2 + filler_before(lines, line));
        bytes += line["bytes"].as_str().unwrap();
        assert!(line["source"]["file"].as_str().unwrap().starts_with("emit/"));
    }
}

/// How many bytes of filler lie in front of an instruction.
fn filler_before(lines: &[serde_json::Value], instruction: &serde_json::Value) -> usize {
    let filler = lines.iter().filter(|line| {
        line["kind"] == "filler" && line["address"].as_u64() < instruction["address"].as_u64()
    });
    filler.map(|line| line["count"].as_u64().unwrap() as usize).sum()
}

#[test]
fn without_a_variant_the_hosts_own_is_taken() {
    let json = stdout(&["variants", "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let entries = json.as_array().unwrap();
    let host = entries.iter().find(|entry| entry["this_host"] == true);
    let expected = host.map_or("intel-4level", |entry| entry["name"].as_str().unwrap());
    let listing = stdout(&["emit"]);
    assert!(listing.starts_with(&format!("; switcher {expected}: ")), "{listing}");
}

#[test]
fn offsets_come_in_all_formats() {
    assert!(stdout(&["offsets"]).contains("pub const SWITCH_FLAGS: usize = 0x40;"));
    assert_eq!(stdout(&["offsets"]), stdout(&["offsets", "--format", "rust"]));
    let c = stdout(&["offsets", "--format", "c"]);
    assert!(c.contains("#define SWITCHER_TSS_EXTRA_SWITCH_FLAGS 0x40"));
    let gas = stdout(&["offsets", "--format", "gas"]);
    assert!(gas.contains(".equ SWITCHER_TSS_EXTRA_SWITCH_FLAGS, 0x40"));
    let json = stdout(&["offsets", "--format", "json"]);
    assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["layouts"].is_array());
}

#[test]
fn an_unknown_variant_is_refused_with_the_nearest_ones_and_the_grammar() {
    for command in ["emit", "prove", "mutate", "redundancy", "cost", "fuzz"] {
        let stderr = refused(2, &[command, "--variant", "intel-4levle-pcid"]);
        assert!(stderr.contains("unknown variant `intel-4levle-pcid`"), "{stderr}");
        assert!(stderr.contains("maybe it is `intel-4level-pcid`, `"), "{stderr}");
        assert!(stderr.contains(Variant::GRAMMAR), "{stderr}");
        // Not hundreds of names.
        assert!(stderr.lines().count() < 16, "{stderr}");
    }
}

#[test]
fn a_name_is_typed_in_any_order_and_printed_in_one() {
    let canonical = stdout(&["emit", "--variant", "intel-la57-ibt-pcid+rsb+verw"]);
    assert!(canonical.starts_with("; switcher intel-la57-ibt-pcid+rsb+verw: "), "{canonical}");
    assert_eq!(canonical, stdout(&["emit", "--variant", "LA57-pcid-intel-ibt+verw+rsb"]));
}

/// The names that `variants` lists with these options.
fn listed(options: &[&str]) -> Vec<String> {
    let text = stdout(&[&["variants"], options].concat());
    let names = text.lines().skip(1).filter_map(|line| line.split(' ').next());
    let names: Vec<_> = names.map(str::to_owned).collect();
    let json = stdout(&[&["variants", "--format", "json"], options].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let in_json: Vec<_> =
        json.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, in_json);
    names
}

#[test]
fn variants_are_filtered() {
    // What the names say, and nothing of how the filter works.
    let has = |name: &str, word: &str| name.split(['-', '+']).any(|part| part == word);
    let all: Vec<_> = Variant::all().map(|variant| variant.to_string()).collect();
    let those = |wanted: &dyn Fn(&str) -> bool| -> Vec<String> {
        all.iter().filter(|name| wanted(name)).cloned().collect()
    };
    let check = |options: &[&str], wanted: &dyn Fn(&str) -> bool| {
        let expected = those(wanted);
        assert!(!expected.is_empty() && expected.len() < all.len(), "{options:?}");
        assert_eq!(listed(options), expected, "{options:?}");
    };
    check(&["--with", "rsb"], &|name| has(name, "rsb"));
    check(&["--vendor", "amd", "--with", "rsb"], &|name| has(name, "amd") && has(name, "rsb"));
    check(&["--mitigations", "--paging", "la57"], &|name| has(name, "la57"));
    check(&["--mitigations", "--placement", "gs"], &|name| !has(name, "percpu"));
    check(&["--mitigations", "--placement", "percpu"], &|name| has(name, "percpu"));
    check(&["--mitigations", "--pvcs", "v2026"], &|name| has(name, "current"));
    check(&["--mitigations", "--pvcs", "v2024", "--without", "bhb,bhblong"], &|name| {
        !has(name, "current") && !has(name, "bhb") && !has(name, "bhblong")
    });
    check(
        &["--with", "ibt,verw", "--without", "pcid", "--without", "rsb", "--vendor", "intel"],
        &|name| has(name, "ibt") && has(name, "verw") && !has(name, "pcid") && !has(name, "rsb"),
    );
    assert_eq!(listed(&["--mitigations"]), all);

    // Without a mitigation asked for: those without, and this host's if it is like that.
    let unmitigated: Vec<_> = those(&|name| has(name, "pku") && !name.contains('+'));
    let found = listed(&["--with", "pku"]);
    assert!(found.starts_with(&unmitigated) && found.len() <= unmitigated.len() + 1, "{found:?}");

    let none = refused(1, &["variants", "--vendor", "amd", "--with", "ibt"]);
    assert!(none.contains("no variant is like that"), "{none}");
    refused(1, &["variants", "--with", "rsb,rsblite"]);
    for wrong in [["--vendor", "via"], ["--with", "magic"], ["--pvcs", "v2025"], ["--paging", "5"]]
    {
        let stderr = refused(2, &[&["variants"], &wrong[..]].concat());
        assert!(stderr.contains("possible values"), "{stderr}");
    }
}

/// A terminal, as a program sees it, and the side of it that shows what the program writes.
fn terminal() -> (std::fs::File, std::fs::File) {
    use std::os::fd::FromRawFd;
    let (mut shown, mut program) = (-1, -1);
    // SAFETY: two places for the descriptors; no name, settings or size are asked for.
    let opened = unsafe {
        libc::openpty(
            &raw mut shown,
            &raw mut program,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: `openpty` has just opened it, and nobody else closes it.
    let shown = unsafe { std::fs::File::from_raw_fd(shown) };
    // SAFETY: as above.
    (shown, unsafe { std::fs::File::from_raw_fd(program) })
}

#[test]
fn a_terminal_is_not_garbled() {
    for format in ["elf", "bin"] {
        let (_shown, program) = terminal();
        let emit = ["emit", "--variant", "intel-4level", "--format", format];
        let run = |stdout: Stdio, more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_switcher"));
            command.args(emit).args(more).stdin(Stdio::null());
            command.stdout(stdout).stderr(Stdio::piped()).output().unwrap()
        };
        let output = run(program.try_clone().unwrap().into(), &[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("`-o FILE`"), "{stderr}");
        // To a file, it is written from a terminal as well.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("switcher");
        let output = run(program.into(), &["-o", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0));
        assert!(std::fs::metadata(path).unwrap().len() > 0);
    }
}

#[test]
fn an_unknown_format_is_refused_with_the_known_ones() {
    for (command, formats) in [
        ("emit", &["listing", "bin", "elf", "json"][..]),
        ("offsets", &["rust", "c", "gas", "json"]),
        ("variants", &["text", "json"]),
        ("cost", &["text", "json"]),
    ] {
        let stderr = refused(2, &[command, "--format", "yaml"]);
        for format in formats {
            assert!(stderr.contains(format), "{stderr}");
        }
    }
}

#[test]
fn a_bad_command_line_is_refused() {
    let stderr = refused(2, &["emti"]);
    assert!(stderr.contains("variants") || stderr.contains("emit"), "{stderr}");
    refused(2, &["emit", "--variant"]);
    refused(2, &["emit", "stray"]);
    refused(2, &["offsets", "--output"]);
}

#[test]
fn a_bad_address_is_refused() {
    let emit = |base| refused(2, &["emit", "--variant", "intel-4level", "--base", base]);
    assert!(emit("here").contains("64-bit address"));
    assert!(emit("0x10000000000000000").contains("64-bit address"));
    assert!(emit("0x800000000000").contains("not canonical under 4level paging"));
    assert!(emit("0x1008").contains("multiple of 64"));
    assert!(emit("0xfffffffffffffff0").contains("beyond the last address"));
    // The same address is one under LA57.
    stdout(&["emit", "--variant", "intel-la57", "--base", "0x800000000000"]);
    let elf = ["emit", "--variant", "intel-4level", "--format", "elf", "--base", "0x1000"];
    assert!(refused(2, &elf).contains("relocatable"));
}

#[test]
fn a_file_is_written_as_a_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("switcher.bin");
    let path_text = path.to_str().unwrap();
    let emit = ["emit", "--variant", "intel-4level", "--format", "bin", "-o", path_text];
    assert_eq!(stdout(&emit), "");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes, Image::new(&Variant::REFERENCE).unwrap().bytes());

    refused(2, &[&emit[..], &["--base", "0x1008"]].concat());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);

    let nowhere = dir.path().join("missing/switcher.bin");
    let nowhere = nowhere.to_str().unwrap();
    let stderr = refused(1, &["emit", "--format", "bin", "-o", nowhere]);
    assert!(stderr.contains(nowhere), "{stderr}");
    let stderr = refused(1, &["offsets", "-o", dir.path().to_str().unwrap()]);
    assert!(stderr.contains("cannot write"), "{stderr}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_switcher"))
        .args(["emit", "--variant", "intel-4level", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds, and nobody reads it.
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

#[test]
fn a_full_disk_is_an_error() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let full = std::fs::File::create("/dev/full").unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_switcher")).arg("offsets").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
}

#[test]
fn the_tour_makes_the_whole_journey_or_says_what_this_host_lacks() {
    let output = switcher(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("1. This CPU\n"), "{text}");
    let state = switcher_gen::arch::HostState::PLAIN;
    match HostFeatures::from_cpuid(raw_cpuid::CpuIdReaderNative, state).fit() {
        Ok(_) => {
            assert_eq!(output.status.code(), Some(0), "{stderr}");
            for heading in
                ["2. Its variant", "3. The code", "5. Proved", "6. Run", "7. Where to go"]
            {
                assert!(text.contains(heading), "{heading} in {text}");
            }
            assert!(text.contains("gs:[tss_extra.switch_flags], SwitchFlags::UMOD"));
            let has_run = text.contains("round trips") || text.contains("Not run: ");
            assert!(has_run, "{text}");
        }
        Err(unfit) => {
            assert_eq!(output.status.code(), Some(1));
            for feature in unfit.missing {
                assert!(stderr.contains(feature.name()), "{stderr}");
            }
        }
    }
}

/// Options that would do nothing are refused, and so are numbers that no terminal or path has.
#[test]
fn options_that_say_nothing_are_refused() {
    let refused = [
        (&["diff", "intel-4level", "amd-4level", "--width", "100"][..], "`--side-by-side`"),
        (&["diff", "intel-4level", "amd-4level", "-y", "--width", "200000"], "200000"),
        (&["diff", "intel-4level", "amd-4level", "-y", "--width", "0"], "0 is not in"),
        (&["cost", "--compare", "--assume-unpatched"], "`--elf`"),
        (&["variants", "--with", "rsb", "--without", "rsb"], "in both"),
        (
            &["prove", "--elf", "x.o", "--variant", "intel-4level", "--instructions", "0"],
            "instructions",
        ),
    ];
    for (arguments, why) in refused {
        let output = Command::new(env!("CARGO_BIN_EXE_switcher")).args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(stderr.contains(why), "{arguments:?}: {stderr}");
    }
}
