//! Kernels' switchers through the command: what a user says of a file, and what is answered.

#[path = "../../prove/tests/gas/mod.rs"]
mod gas;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const KERNEL: &str = include_str!("../../prove/tests/gas/kernel.S");

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn kernel(&self, name: &str, symbols: &[(&str, i64)]) -> String {
        self.write(name, gas::assemble(KERNEL, symbols))
    }
}

/// What a run prints that ends with `code`.
#[track_caller]
fn ends(code: i32, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_switcher")).args(args).output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stdout}{stderr}");
    stdout + &stderr
}

/// What a run of `prove` about a file prints that ends with `code`.
#[track_caller]
fn prove(code: i32, file: &str, args: &[&str]) -> String {
    let all = ["prove", "--elf", file, "--variant", "intel-4level", "--profile", "linux-pvm-2024"];
    ends(code, &[&all[..], args].concat())
}

#[test]
fn a_profile_is_all_that_a_kernels_object_needs() {
    let files = Files::new();
    let object = files.kernel("kernel.o", &[]);
    let text = prove(0, &object, &[]);
    assert!(text.contains("kernel.o: proved"), "{text}");
    for clause in ["clause `entry-flags`", "clause `any-rdi`", "native_irq_return_iret", "4096"] {
        assert!(text.contains(clause), "{clause}: {text}");
    }
    // Without it, what is missing is named.
    let plain = ends(2, &["prove", "--elf", &object, "--variant", "intel-4level"]);
    assert!(plain.contains("`native_irq_return_iret`"), "{plain}");
    let unknown =
        ends(2, &["prove", "--elf", &object, "--variant", "intel-4level", "--profile", "linux"]);
    assert!(unknown.contains("linux-pvm-2024"), "{unknown}");
}

#[test]
fn what_a_profile_says_can_be_said_by_hand() {
    let files = Files::new();
    let object = files.kernel("kernel.o", &[]);
    let by_hand = [
        "prove",
        "--elf",
        &object,
        "--variant",
        "intel-4level",
        "--symbol",
        "entry_IRETQ_switcher=native_irq_return_iret",
        "--gs-tss",
        "cpu_tss_rw",
        "--gs-tss-extra",
        "cpu_tss_rw+0x80",
        "--assume",
        "entry-registers",
        "--assume",
        "entry-flags",
        "--assume",
        "frame-flags",
        "--assume",
        "any-rdi",
        "--entry-stack",
        "4096",
        "--caller-stack",
        "0x1000",
        "--window",
        "unsafe-stack=entry_SYSCALL_64_switcher..entry_SYSCALL_64_switcher_safe_stack",
        "--window",
        "unsafe-stack=entry_SYSRETQ_switcher_unsafe_stack",
        "--window",
        "unsafe-stack=entry_SYSCALL_compat_switcher..entry_SYSCALL_compat_switcher+8",
        "--require",
        "windows,compat,routines",
    ];
    ends(0, &by_hand);
    let without = |option: &str| {
        let at = by_hand.iter().position(|one| *one == option).unwrap();
        [&by_hand[..at], &by_hand[at + 2..]].concat()
    };
    assert!(ends(5, &without("--assume")).contains("`exit-scratch`"));
    assert!(ends(2, &without("--symbol")).contains("native_irq_return_iret"));
}

/// Handlers cannot go by a label that another file may define, too.
#[test]
fn a_window_is_known_by_labels_that_nobody_overrides() {
    let label = "entry_SYSRETQ_switcher_unsafe_stack";
    let weak = KERNEL.replacen(&format!(".globl\t{label}"), &format!(".weak\t{label}"), 1);
    let files = Files::new();
    let object = files.write("weak.o", gas::assemble(&weak, &[]));
    let message = format!("`{label}` is weak");
    let by_profile = prove(2, &object, &[]);
    assert!(by_profile.contains(&message), "{by_profile}");
    let own = ["prove", "--elf", &object, "--variant", "intel-4level", "--symbol"];
    let own = [&own[..], &["entry_IRETQ_switcher=native_irq_return_iret"]].concat();
    let said = format!("guest-root={label}");
    let by_hand = ends(2, &[&own[..], &["--window", &said]].concat());
    assert!(by_hand.contains(&message), "{by_hand}");
}

#[test]
fn clauses_are_added_and_waived_by_name() {
    let files = Files::new();
    let (right, broken) =
        (files.kernel("kernel.o", &[]), files.kernel("broken.o", &[("BROKEN", 2)]));
    let text = prove(4, &broken, &[]);
    assert!(text.contains("must be by IRETQ") && text.contains("USER_CS"), "{text}");
    prove(0, &broken, &["--assume", "frame-64-bit"]);
    prove(0, &broken, &["--fail-on", "host"]);
    let waived = prove(1, &right, &["--waive", "entry-flags"]);
    assert!(
        waived.contains("`exit-flags`") && !waived.contains("clause `entry-flags`"),
        "{waived}"
    );
    for (arguments, part) in [
        (["--waive", "frame-64-bit"].as_slice(), "has no such clause"),
        (&["--waive", "nothing"], "`entry-flags`"),
        (&["--assume", "any-ss", "--waive", "any-ss"], "both assumed and waived"),
        (&["--entry-stack", "100"], "multiple of 8"),
        (&["--window", "unsafe-stack=nowhere"], "no symbol `nowhere`"),
        (&["--window", "stack=a..b"], "unsafe-stack"),
        (&["--window", "unsafe-stack=8..8"], "holds nothing"),
        (&["--gs-tss", "other"], "`cpu_tss_rw`"),
        (&["--symbol", "switcher_enter=x"], "`switcher_enter_guest`"),
        (&["--symbol", "x"], "entry_IRETQ_switcher=native_irq_return_iret"),
        (&["--boot", "la57"], "on or off"),
        (&["--boot", "la58=on"], "7*32+11"),
        (&["--boot", "fineibt=on", "--boot", "fineibt=on"], "is said twice"),
        (&["--boot", "la57=on"], "is otherwise on the variant's hosts"),
        (&["--boot", "1*32+29=off"], "is otherwise on the variant's hosts"),
        (&["--boot", "linux-6.5=off", "--boot", "linux-6.10=on"], "contradicts what else is said"),
        (&["--boot", "linux-6.10=on", "--boot", "linux-6.5=off"], "contradicts what else is said"),
        (&["--feature", "smap", "--boot", "smap=off"], "contradicts what else is said"),
        (&["--layout", "/nonexistent"], "/nonexistent"),
    ] {
        let text = prove(2, &right, arguments);
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

#[test]
fn a_layout_is_taken_from_a_file_and_its_names_are_spoken() {
    let files = Files::new();
    let moved =
        KERNEL.replace("EXTRA + 0x10", "EXTRA + 0x18").replace("EXTRA + 0x78", "EXTRA + 0x88");
    let moved = files.write("moved.o", gas::assemble(&moved, &[("EXTRA", 0x100)]));
    let fields = "at = 0x100\nsize = 0x90\n[tss_extra.fields]\nhost_cr3 = 0\nhost_rsp = 8\n\
         host_gs_base = 0x10\nenter_cr3 = 0x18\nswitch_flags = 0x40\nsmod_cr3 = 0x48\n\
         umod_cr3 = 0x50\npvcs = 0x58\nretu_rip = 0x60\nsmod_entry = 0x68\nsmod_gsbase = 0x70\n\
         smod_rsp = 0x88\n";
    let toml = files.write("layout.toml", format!("[tss_extra]\n{fields}"));
    prove(0, &moved, &["--layout", &toml]);
    prove(1, &moved, &[]);
    let header: String = fields
        .lines()
        .filter_map(|line| line.split_once(" = "))
        .filter(|(name, _)| !matches!(*name, "at" | "size"))
        .map(|(name, at)| {
            let at = at.strip_prefix("0x").map_or_else(
                || at.parse::<u64>().unwrap(),
                |digits| u64::from_str_radix(digits, 16).unwrap(),
            );
            format!("#define TSS_EX_{name} {} /* offsetof */\n", 0x100 + at)
        })
        .collect();
    let header = files.write("asm-offsets.h", header);
    prove(0, &moved, &["--layout", &header]);
    // A field that only they have is the host's.
    let leaking = KERNEL
        .replace("EXTRA + 0x10", "EXTRA + 0x18")
        .replace("EXTRA + 0x78", "EXTRA + 0x88")
        .replace(
            "\tswapgs\n\t.if\tBROKEN != NO_SELECTORS\n",
            "\tv\tmov, EXTRA + 0x10, %r8\n\tswapgs\n\t.if\tBROKEN != NO_SELECTORS\n",
        );
    let leaking = files.write("leaking.o", gas::assemble(&leaking, &[("EXTRA", 0x100)]));
    let text = prove(1, &leaking, &["--layout", &toml]);
    assert!(text.contains("tss_extra.host_gs_base"), "{text}");
    assert!(text.contains("gs:[tss_extra.enter_cr3]"), "{text}");
    // What the variant needs and is not there is named.
    let without = files
        .write("without.toml", format!("[tss_extra]\n{}", fields.replace("pvcs = 0x58\n", "")));
    assert!(prove(2, &moved, &["--layout", &without]).contains("no field `pvcs`"));
}

#[test]
fn each_image_of_a_file_has_a_verdict_of_its_own() {
    let files = Files::new();
    let clac = KERNEL.replace(
        "switcher_return_from_guest:\n\torc\n",
        "switcher_return_from_guest:\n881:\tnop\n\tnop\n\tnop\n882:\n\
         \t.pushsection .altinstructions, \"a\"\n\t.long 881b - ., 883f - .\n\
         \t.short 9 * 32 + 20, 0\n\t.byte 882b - 881b, 884f - 883f\n\t.popsection\n\
         \t.pushsection .altinstr_replacement, \"ax\"\n883:\tclac\n884:\n\t.popsection\n\torc\n",
    );
    let object = files.write("clac.o", gas::assemble(&clac, &[]));
    let text = prove(0, &object, &["--format", "json"]);
    let report: Value = serde_json::from_str(text.trim()).unwrap();
    let names: Vec<_> = report["targets"].as_array().unwrap().iter().map(|t| &t["name"]).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().any(|name| name.as_str().unwrap().ends_with("clac.o (smap=on)")));
    let one = prove(0, &object, &["--boot", "smap=off"]);
    assert!(one.contains("clac.o: proved"), "{one}");
    prove(0, &object, &["--feature", "smap"]);
    // What judges one image asks for the choice.
    let cost = |args: &[&str], code| {
        let all =
            ["cost", "--elf", &object, "--variant", "intel-4level", "--profile", "linux-pvm-2024"];
        ends(code, &[&all[..], args].concat())
    };
    assert!(cost(&[], 2).contains("--boot"));
    let text = cost(&["--boot", "smap=off"], 0);
    assert!(text.contains("SYSCALL in umod -> smod"), "{text}");
}

#[test]
fn the_profiles_are_shown_with_every_clause() {
    let text = ends(0, &["profiles"]);
    for part in ["linux-pvm-2024", "aledbf-2026", "clause entry-registers", "host_gs_base 0x10"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json: Value = serde_json::from_str(&ends(0, &["profiles", "--format", "json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 4);
    assert_eq!(json[0]["clauses"].as_array().unwrap().len(), 0);
    assert!(ends(2, &["profiles", "other"]).contains("linux-pvm-2024"));
}

/// The proofs object to changes of anybody's code as they do to changes of ours.
#[test]
fn a_kernels_switcher_is_broken_on_purpose() {
    let files = Files::new();
    let object = files.kernel("kernel.o", &[]);
    let mutate = |code, file: &str| {
        let all = ["mutate", "--elf", file, "--variant", "intel-4level", "--every", "97"];
        ends(code, &[&all[..], &["--profile", "linux-pvm-2024"]].concat())
    };
    let text = mutate(0, &object);
    let killed = text.lines().find(|line| line.trim_start().starts_with("killed ")).unwrap();
    let killed: usize = killed.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(killed > 30 && text.contains("holes           0"), "{text}");
    let broken = files.kernel("broken.o", &[("BROKEN", 3)]);
    assert!(mutate(1, &broken).contains("itself is not proved"));
}

/// Data of the kernel's besides the switcher's own.
#[test]
fn data_of_the_kernels_is_named() {
    let files = Files::new();
    let marker = "\tclear_all ecx, edx, esi, edi, r8d, r9d, r10d, r11d\n";
    let code =
        format!("\tmovq\t$-1, %gs:pcpu_hot+16(%rip)\n\tcmpw\t$0x18, selector(%rip)\n{marker}");
    let source = gas::replaced(gas::SWITCHER, &[(marker, &code)]);
    let object = files.write("data.o", gas::assemble(&source, &[]));
    let judged = |code, args: &[&str]| {
        ends(code, &[&["prove", "--elf", &object, "--variant", "intel-4level"], args].concat())
    };
    let depth = "pcpu_hot+0x10:8,written";
    let text = judged(2, &["--per-cpu", depth]);
    assert!(text.contains("`selector`") && text.contains("--read-only selector:BYTES"), "{text}");
    let text = judged(0, &["--per-cpu", depth, "--read-only", "selector:2=0x18"]);
    for said in ["each CPU has `pcpu_hot+0x10`, 8 bytes at GS", "`selector`, 2 bytes, lies at"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let text = judged(1, &["--per-cpu", "pcpu_hot+0x10:8", "--read-only", "selector:2"]);
    assert!(text.contains("`kept` does not hold"), "{text}");
    for (wrong, what) in [
        ("pcpu_hot:0", "`pcpu_hot` has 0 bytes"),
        ("pcpu_hot:1=0x100", "cannot hold 0x100"),
        ("pcpu_hot", "write a place"),
        ("other:8", "no data called `other`"),
        ("0x80:8", "overlap"),
    ] {
        let text = judged(2, &["--read-only", "selector:2", "--per-cpu", wrong]);
        assert!(text.contains(what), "{wrong}: {text}");
    }
}

/// A kernel of a distribution's, which has no switcher: what is missing is said at once.
#[test]
fn a_distributions_kernel_is_answered_with_what_is_missing() {
    let target = Path::new(env!("CARGO_BIN_EXE_switcher")).ancestors().nth(2).unwrap();
    let kernel = target.join("debian-kernel/vmlinux");
    if !kernel.exists() {
        eprintln!("skipped: there is no {}; `cargo xtask test` fetches it", kernel.display());
        return;
    }
    let kernel = kernel.to_str().unwrap();
    // It is stripped.
    let text = prove(2, kernel, &[]);
    assert!(
        text.contains("has no symbol table") && text.contains("before it was stripped"),
        "{text}"
    );
    // With symbols, but none of a switcher's: of 50 MiB, next to nothing is read.
    let files = Files::new();
    let named = files.path("named");
    let added = ["--add-symbol", "start_kernel=.text:0,function,global", kernel];
    let objcopy = Command::new("objcopy").args(added).arg(&named).status().unwrap();
    assert!(objcopy.success());
    let text = prove(2, named.to_str().unwrap(), &[]);
    assert!(text.contains("no code is called `switcher_enter_guest`"), "{text}");
}
