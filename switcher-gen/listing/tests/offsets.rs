//! The exported offsets are accepted by those they are for: the C compiler, which compares them
//! with its own layout of the structs, the assembler, rustc. Needs a C compiler and binutils.

use std::path::Path;
use std::process::Command;

use switcher_gen::layout::{LAYOUTS, PerCpu, Pvcs, SwitchFlags, TssExtra};
use switcher_listing::offsets;

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn write(dir: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_c_header_compiles_so_c_lays_the_structs_out_alike() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "switcher.h", &offsets::c());
    let user = write(
        dir.path(),
        "user.c",
        "#include \"switcher.h\"\n#include \"switcher.h\"\n\
         _Static_assert(SWITCHER_PER_CPU_TSS_EXTRA + SWITCHER_TSS_EXTRA_SWITCH_FLAGS == 0xC0, \"\");\n\
         _Static_assert(SWITCHER_SWITCH_FLAGS_NO_DS_TO_SMOD == ~UINT64_C(2), \"\");\n\
         _Static_assert(_Alignof(struct switcher_per_cpu) == 256, \"\");\n",
    );
    succeed(
        Command::new("cc")
            .args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"])
            .arg(user),
    );
}

#[test]
fn a_header_that_disagrees_with_c_does_not_compile() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = offsets::c().replace("SWITCHER_PVCS_RIP 0x60", "SWITCHER_PVCS_RIP 0x58");
    assert_ne!(wrong, offsets::c());
    let wrong = write(dir.path(), "wrong.h", &wrong);
    let output = Command::new("cc").arg("-fsyntax-only").arg(wrong).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("SWITCHER_PVCS_RIP"));
}

#[test]
fn the_assembler_takes_the_symbols() {
    let dir = tempfile::tempdir().unwrap();
    let user = format!(
        "{}\ntestb $SWITCHER_SWITCH_FLAGS_MODE_TOGGLE, \
         %gs:(SWITCHER_PER_CPU_TSS_EXTRA + SWITCHER_TSS_EXTRA_SWITCH_FLAGS)\n",
        offsets::gas()
    );
    let user = write(dir.path(), "user.s", &user);
    let object = dir.path().join("user.o");
    succeed(Command::new("as").args(["--fatal-warnings", "-o"]).arg(&object).arg(&user));
    let disassembly = succeed(Command::new("objdump").arg("-d").arg(&object));
    assert!(disassembly.contains("testb  $0x3,%gs:0xc0"), "{disassembly}");
}

#[test]
fn the_rust_module_compiles() {
    let dir = tempfile::tempdir().unwrap();
    let flags = (PerCpu::tss_extra + TssExtra::switch_flags).bytes();
    let rip = Pvcs::rip.bytes();
    let smod = SwitchFlags::SMOD.bits();
    let user = format!(
        "{}\nconst _: () = assert!(per_cpu::TSS_EXTRA + tss_extra::SWITCH_FLAGS == {flags});\n\
         const _: () = assert!(pvcs::RIP == {rip} && switch_flags::SMOD == {smod});\n\
         const _: () = assert!(exit_reason::FAILED_ENTRY == 1025);\n",
        offsets::rust()
    );
    let user = write(dir.path(), "user.rs", &user);
    succeed(
        Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into()))
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "-Dwarnings"])
            .arg("--out-dir")
            .arg(dir.path())
            .arg(user),
    );
}

#[test]
fn the_json_holds_every_field() {
    let json: serde_json::Value = serde_json::from_str(&offsets::json().unwrap()).unwrap();
    for (layout, exported) in LAYOUTS.iter().zip(json["layouts"].as_array().unwrap()) {
        assert_eq!(exported["name"], layout.name);
        assert_eq!(exported["size"], layout.size);
        for (field, exported) in layout.fields.iter().zip(exported["fields"].as_array().unwrap()) {
            assert_eq!(exported["name"], field.name);
            assert_eq!(exported["offset"], field.offset);
            assert_eq!(exported["size"], field.size);
        }
    }
    let flags = json["constants"].as_array().unwrap();
    assert!(flags.iter().any(|c| c["name"] == "PVCS_INVALID" && c["value"] == 1 << 11));
}
