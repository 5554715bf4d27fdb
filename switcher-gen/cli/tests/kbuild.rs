//! `switcher emit --format kbuild`, as whoever builds a kernel sees it: what is written is proved
//! by the same program, and accepted by a kernel's own objtool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROFILE: &str = "linux-pvm-module-2026";

fn switcher(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_switcher")).args(args).current_dir(dir).output().unwrap()
}

/// Emits `variant` to the folder `out` in `dir`.
fn emit(variant: &str, more: &[&str], dir: &Path) -> Output {
    let args = ["emit", "--variant", variant, "--profile", PROFILE, "--format", "kbuild"];
    switcher(&[&args[..], &["-o", "out"], more].concat(), dir)
}

#[track_caller]
fn done(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The object and what GNU as makes of the source are proved, and cost the same.
#[test]
fn what_is_written_is_proved_by_the_profile() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for variant in ["intel-4level", "amd-la57-current+rsb"] {
        let text = done(&emit(variant, &[], dir));
        assert!(text.starts_with(&format!("{variant} for {PROFILE}: proved, ")), "{text}");
        assert!(text.contains("written to out"), "{text}");
        let names: Vec<_> = fs::read_dir(dir.join("out")).unwrap().collect();
        assert_eq!(names.len(), 5, "{names:?}");
        let assembled = Command::new("gcc")
            .args(["-c", "out/switcher.S", "-o", "assembled.o"])
            .current_dir(dir)
            .output()
            .unwrap();
        done(&assembled);
        let of = |command: &str, file: &str| {
            let args = [command, "--elf", file, "--variant", variant, "--profile", PROFILE];
            let args = [&args[..], &["--format", "json"]].concat();
            serde_json::from_str::<serde_json::Value>(&done(&switcher(&args, dir))).unwrap()
        };
        for file in ["out/switcher.o", "assembled.o"] {
            assert_eq!(of("prove", file)["targets"][0]["verdict"], "proved");
        }
        let cost = |file: &str| {
            let paths = of("cost", file)["paths"].as_array().unwrap().clone();
            let one = |path: &serde_json::Value| {
                ["kind", "instructions", "loads", "stores", "code_lines"].map(|it| path[it].clone())
            };
            paths.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(cost("out/switcher.o"), cost("assembled.o"));
        // Both ways of a system call, from umod to smod and back, as of our own variants.
        let instructions = |kind: &str| {
            let all = cost("out/switcher.o");
            let path = all.iter().find(|path| path[0] == kind).unwrap();
            path[1].as_u64().unwrap()
        };
        let back = instructions("ERETU -> umod by SYSRETQ");
        assert_eq!(instructions("SYSCALL in umod -> smod"), 25);
        assert_eq!(back, if variant.contains("current") { 40 } else { 41 });
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let usage = |args: &[&str]| refused(&switcher(&[&["emit"], args].concat(), dir), 2);
    let kbuild = ["--variant", "intel-4level", "--format", "kbuild"];
    let with = |more: &[&str]| usage(&[&kbuild[..], more].concat());
    assert!(with(&["-o", "out"]).contains("`--profile NAME`"));
    assert!(with(&["--profile", PROFILE]).contains("`-o DIR`"));
    assert!(with(&["--profile", PROFILE, "-o", "out", "--base", "0"]).contains("not `--base`"));
    assert!(with(&["--profile", "ours", "-o", "out"]).contains(PROFILE));
    assert!(usage(&["--profile", PROFILE]).contains("`--format kbuild`"));
    assert!(usage(&["--force"]).contains("`--format kbuild`"));
    let percpu = refused(&emit("intel-4level-percpu", &[], dir), 2);
    assert!(percpu.contains("without `percpu`"), "{percpu}");
    let ibrs = refused(&emit("intel-4level+ibrs", &[], dir), 2);
    assert!(ibrs.contains("SPEC_CTRL"), "{ibrs}");
    // Other files are left alone, and nothing is written beside them.
    fs::create_dir(dir.join("out")).unwrap();
    fs::write(dir.join("out/theirs.c"), "").unwrap();
    let others = refused(&emit("intel-4level", &[], dir), 2);
    assert!(others.contains("`theirs.c`") && others.contains("`--force`"), "{others}");
    assert_eq!(fs::read_dir(dir.join("out")).unwrap().count(), 1);
    done(&emit("intel-4level", &["--force"], dir));
    assert_eq!(fs::read_dir(dir.join("out")).unwrap().count(), 6);
}

/// objtool, and the headers of the kernel that it is of, where Debian has them. Another place is
/// said by `SWITCHER_KBUILD_ROOT`.
struct Kernel {
    objtool: PathBuf,
    common: PathBuf,
    own: PathBuf,
}

impl Kernel {
    fn find() -> Option<Self> {
        let root =
            std::env::var_os("SWITCHER_KBUILD_ROOT").map_or_else(|| "/".into(), PathBuf::from);
        let within = |folder: &str, ends: &str, starts: &str| {
            let entries = fs::read_dir(root.join(folder)).ok()?;
            let mut found = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(starts) && name.ends_with(ends)
            });
            found.next()
        };
        let objtool = within("usr/lib", "", "linux-kbuild-6.1")?.join("tools/objtool/objtool");
        let common = within("usr/src", "-common", "linux-headers-6.1")?;
        let own = within("usr/src", "-amd64", "linux-headers-6.1")?;
        objtool.exists().then_some(Self { objtool, common, own })
    }

    /// Assembles `source` as a build of this kernel does.
    fn assemble(&self, source: &Path, object: &Path) -> Output {
        let mut gcc = Command::new("gcc");
        gcc.args(["-nostdinc", "-D__KERNEL__", "-D__ASSEMBLY__", "-m64"]);
        for (root, folder) in [
            (&self.common, "arch/x86/include"),
            (&self.own, "arch/x86/include/generated"),
            (&self.common, "include"),
            (&self.own, "include"),
            (&self.common, "arch/x86/include/uapi"),
            (&self.own, "arch/x86/include/generated/uapi"),
            (&self.common, "include/uapi"),
            (&self.own, "include/generated/uapi"),
        ] {
            gcc.arg("-I").arg(root.join(folder));
        }
        gcc.arg("-include").arg(self.common.join("include/linux/kconfig.h"));
        gcc.arg("-c").arg(source).arg("-o").arg(object).output().unwrap()
    }

    /// Has objtool make unwinding tables for the object, with every check that it has for objects,
    /// or for a whole kernel.
    fn objtool(&self, object: &Path, of_kernel: bool) -> Output {
        let mut objtool = Command::new(&self.objtool);
        objtool.args(["--orc", "--retpoline", "--rethunk", "--sls", "--static-call", "--uaccess"]);
        match of_kernel {
            false => objtool.args(["--hacks=jump_label", "--hacks=noinstr", "--stackval"]),
            true => objtool.args(["--link", "--noinstr", "--unret", "--ibt"]),
        };
        objtool.arg(object).output().unwrap()
    }
}

/// The kernel's build finds nothing to warn of, makes unwinding tables, and what it made is proved.
#[test]
fn objtool_accepts_what_a_kernel_assembles() {
    let Some(kernel) = Kernel::find() else {
        eprintln!(
            "skipped: there is no objtool with the headers of its kernel; install linux-kbuild-6.1 \
             and linux-headers-amd64 of Debian 12"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for variant in [
        "intel-4level",
        "intel-la57-ibt-pcid+rsb+verw+bhb",
        "intel-4level+rsblite+bhblong",
        "amd-4level-current+ibpb+untrain",
    ] {
        done(&emit(variant, &[], dir));
        let object = dir.join("kernel.o");
        for of_kernel in [true, false] {
            done(&kernel.assemble(&dir.join("out/switcher.S"), &object));
            done(&kernel.objtool(&object, of_kernel));
        }
        let bytes = fs::read(&object).unwrap();
        let has = |name: &str| bytes.windows(name.len()).any(|part| part == name.as_bytes());
        assert!(has(".orc_unwind_ip"), "{variant}");
        let args = ["prove", "--elf", "kernel.o", "--variant", variant, "--profile", PROFILE];
        let text = done(&switcher(&args, dir));
        assert!(text.contains("proved"), "{text}");
    }
    // Without the hints, it objects: they are looked at.
    let source = fs::read_to_string(dir.join("out/switcher.S")).unwrap();
    let without = source.replace("\tSWITCHER_UNWIND_END\n", "");
    assert_ne!(without, source);
    fs::write(dir.join("without.S"), without).unwrap();
    let object = dir.join("without.o");
    done(&kernel.assemble(&dir.join("without.S"), &object));
    let output = kernel.objtool(&object, false);
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(warned.contains("unreachable instruction"), "{warned}");
}
