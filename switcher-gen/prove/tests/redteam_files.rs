//! Files that say in an unusual way that other bytes will run: to linkers that compile anew, to
//! loaders, by tables of other kernels, and by names; and files that use the same means for
//! nothing. Needs binutils.

mod gas;
#[path = "redteam_files/loaders.rs"]
mod loaders;
#[path = "redteam_files/tables.rs"]
mod tables;
#[path = "redteam_files/time.rs"]
mod time;
#[path = "redteam_files/words.rs"]
mod words;

use gas::{SWITCHER, assemble, process, process_all, replaced};
use switcher_gen::Variant;
use switcher_prove::elf::{LinkerError, ReadError, read};
use switcher_prove::{Prover, Setting, Target, TargetError, Verdict};

fn linked(source: &str, args: &[&str]) -> Vec<u8> {
    let args = [&["-e", "switcher_enter_guest", "-Ttext=0x500000"], args].concat();
    process("ld", &args, &assemble(source, &[]))
}

#[track_caller]
fn error(data: &[u8]) -> ReadError {
    let setting = Setting::from(&Variant::REFERENCE);
    match read(data).map(|foreign| Target::foreign(&foreign, setting)) {
        Err(error) | Ok(Err(TargetError::Read(error))) => error,
        Ok(other) => panic!("{other:?}"),
    }
}

#[track_caller]
fn proved(data: &[u8]) -> Target {
    let foreign = read(data).unwrap_or_else(|error| panic!("{error}"));
    let target = Target::foreign(&foreign, Setting::from(&Variant::REFERENCE));
    let target = target.unwrap_or_else(|error| panic!("{error}"));
    match Prover::default().prove(&target) {
        Verdict::Proved(_) => target,
        other => panic!("{other:?}"),
    }
}

// Linkers.

#[test]
fn code_that_rustc_has_compiled_anew_is_refused() {
    for name in [".llvmbc", ".llvmcmd", ".llvm.lto", ".gnu.lto_main", ".gnu_object_only"] {
        for flags in ["e", ""] {
            let source = format!("{SWITCHER}\n\t.section {name}, \"{flags}\"\n\t.byte 1\n");
            match error(&assemble(&source, &[])) {
                ReadError::Lto { section } => assert_eq!(section, name),
                other => panic!("{name}: {other}"),
            }
        }
    }
}

#[test]
fn what_tells_linkers_something_unknown_is_refused() {
    let with = |name: &str, flags: &str| {
        assemble(&format!("{SWITCHER}\n\t.section {name}, \"{flags}\"\n\t.byte 1\n"), &[])
    };
    for name in [".bitcode", "mine", ".llvm.mine", ".text_as_before", ".rustcode", ".debugged"] {
        match error(&with(name, "e")) {
            ReadError::Linker(LinkerError::ForLinkers { section }) => assert_eq!(section, name),
            other => panic!("{name}: {other}"),
        }
        // What is kept in the file that is linked tells the linker nothing.
        proved(&with(name, ""));
    }
    let message = error(&with("mine", "e")).to_string();
    for part in ["`mine`", "SHF_EXCLUDE", "objcopy --remove-section", "link the file"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // What compilers tell linkers is known.
    for name in
        [".llvm_addrsig", ".debug_info.dwo", ".deplibs", ".llvm.call-graph-profile", ".rmeta"]
    {
        proved(&with(name, "e"));
    }
    // Linked, it has been done.
    let args = ["-e", "switcher_enter_guest"];
    proved(&process("ld", &args, &with("mine", "e")));
}

// Names.

#[test]
fn a_local_entry_is_none_of_the_loaders() {
    let globl = "\t.globl\t\\name\n";
    let but_one = "\t.ifnc \\name,switcher_enter_guest\n\t.globl\t\\name\n\t.endif\n";
    let local = assemble(&replaced(SWITCHER, &[(globl, but_one)]), &[]);
    let caller = "\t.globl caller\ncaller:\n\tcall switcher_enter_guest\n\tret\n";
    let caller = assemble(caller, &[]);
    for kind in [&["-shared", "-Bsymbolic"][..], &["-r"]] {
        match error(&process_all("ld", kind, &[&local, &caller])) {
            ReadError::LocalAndUndefined { symbol } => assert_eq!(symbol, "switcher_enter_guest"),
            other => panic!("{kind:?}: {other}"),
        }
    }
    // Nobody asks another file for it, or it is one that others find.
    proved(&process_all("ld", &["-shared", "-Bsymbolic"], &[&local]));
    let global = assemble(SWITCHER, &[]);
    proved(&process_all("ld", &["-shared", "-Bsymbolic"], &[&global, &caller]));
}
