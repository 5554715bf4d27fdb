//! Names that lead linkers and loaders elsewhere than they lead a reader: versions, local symbols
//! beside another file's, relocations of every kind, code that is compiled anew, and entries of
//! tables that change more bytes than one.

use gas::{SWITCHER, assemble, process_all, replaced};
use switcher_prove::elf::{ReadError, Request, read_as};
use switcher_prove::{Profile, TargetError};

use super::{error, gas, linked, proved, target, with};

/// A switcher in the shape of a kernel's build, with the labels by which handlers know a window.
const KERNEL: &str = include_str!("../gas/kernel.S");

/// The switcher, one of whose entries is local.
fn with_local_entry(more: &str) -> String {
    let globl = "\t.globl\t\\name\n";
    let but_one = "\t.ifnc \\name,switcher_enter_guest\n\t.globl\t\\name\n\t.endif\n";
    format!("{}\n{more}\n", replaced(SWITCHER, &[(globl, but_one)]))
}

/// What a linker makes of several objects for another linker.
fn partially_linked(sources: &[&str]) -> Vec<u8> {
    let objects: Vec<_> = sources.iter().map(|source| assemble(source, &[])).collect();
    process_all("ld", &["-r"], &objects)
}

#[test]
fn an_entry_is_what_linkers_find_by_its_name() {
    let other = ".globl other\nother:\n\tret\n\tint3\n";
    for version in ["@@V1", "@V1"] {
        let more = format!("{other}\t.symver other, switcher_enter_guest{version}\n");
        let found = error(&assemble(&with_local_entry(&more), &[]));
        assert!(found.to_string().contains("enter_guest"), "{version}: {found}");
    }
    // Alone, a local name is no other's.
    proved(&assemble(&with_local_entry(""), &[]));
}

#[test]
fn a_local_entry_is_not_the_one_that_another_file_is_asked_for() {
    let caller = "\t.globl caller\ncaller:\n\tcall switcher_enter_guest\n\tret\n";
    let local = with_local_entry("");
    let found = error(&partially_linked(&[&local, caller]));
    let is_named = |symbol: &str| symbol == "switcher_enter_guest";
    assert!(
        matches!(&found, ReadError::LocalAndUndefined { symbol } if is_named(symbol)),
        "{found}"
    );
    // A global one is.
    proved(&partially_linked(&[SWITCHER, caller]));
}

/// Handlers look for a window where its labels are, so that nobody may move these.
#[test]
fn a_label_of_a_window_is_no_other_files() {
    let request = || Profile::named("linux-pvm-2024").unwrap().request();
    let read = |source: &str, request: Request| read_as(&assemble(source, &[]), request);
    for label in ["entry_SYSRETQ_switcher_unsafe_stack", "entry_SYSCALL_64_switcher_safe_stack"] {
        let [global, weak] = [".globl", ".weak"].map(|how| format!("\t{how}\t{label}\n"));
        let weak = replaced(KERNEL, &[(&global, &weak)]);
        let found = read(&weak, request()).unwrap_err();
        let is_label = |symbol: &str| symbol == label;
        assert!(matches!(&found, ReadError::Weak { symbol } if is_label(symbol)), "{found}");
        // Nobody goes by it, unless somebody says so.
        let alone = Request::default()
            .with_symbol("entry_IRETQ_switcher", "native_irq_return_iret")
            .unwrap()
            .with_data("cpu_tss_rw");
        assert!(read(&weak, alone.clone()).is_ok(), "{label}");
        let found = read(&weak, alone.with_label(label)).unwrap_err();
        assert!(matches!(&found, ReadError::Weak { symbol } if is_label(symbol)), "{found}");
        // A local one is as good as a global one, and two are not.
        let local = replaced(KERNEL, &[(&global, "")]);
        assert!(read(&local, request()).is_ok(), "{label}");
        let other = format!("\t.text\n{label}:\n\tud2\n\tud2\n");
        let both = [assemble(&local, &[]), assemble(&other, &[])];
        let both = process_all("ld", &["-r"], &both);
        let found = read_as(&both, request()).unwrap_err();
        let is_ambiguous =
            matches!(&found, ReadError::Ambiguous { symbol, .. } if is_label(symbol));
        assert!(is_ambiguous, "{found}");
    }
}

/// A label that somebody goes by is where nobody enters the code: nothing else changes by that.
#[test]
fn a_label_of_a_window_is_no_entry() {
    let asked = |source: &str, label: &str| {
        read_as(&assemble(source, &[]), Request::default().with_label(label))
    };
    // It may end a section, or lie elsewhere.
    let ends = asked(&format!("{SWITCHER}\n\t.text\n\t.globl\tends\nends:\n"), "ends");
    assert!(ends.is_ok(), "{ends:?}");
    let other = format!("{SWITCHER}\n\t.section .two, \"ax\"\n\t.globl\tother\nother:\n\tret\n");
    let found = asked(&other, "other").unwrap();
    assert!(!found.symbols.contains_key("other"));
    assert!(asked(SWITCHER, "nowhere").is_ok());
    // What points to it does not point to a function.
    let table = with("\t.data\n\t.p2align 3\n\t.quad inside");
    let found = error(&assemble(&table, &[]));
    let known = target(&asked(&table, "inside").unwrap());
    assert_eq!(known.unwrap_err(), TargetError::Read(found));
}

#[test]
fn a_loaders_relocation_names_its_symbol_whatever_its_kind() {
    let with_global = |table: &str| with(&format!("\t.globl inside\n{table}"));
    for entry in [".long inside - .", ".quad inside - .", ".quad inside"] {
        let table = format!("\t.section __jump_table, \"aw\"\n\t.p2align 3\n\t{entry}");
        let file = linked(&with_global(&table), &["-shared", "-z", "notext"]);
        let found = error(&file);
        assert!(matches!(found, ReadError::Patched { .. }), "{entry}: {found}");
        let table = format!("\t.section mine, \"aw\"\n\t.p2align 3\n\t{entry}");
        let file = linked(&with_global(&table), &["-shared", "-z", "notext"]);
        let found = error(&file);
        assert!(matches!(found, ReadError::MaybePatched { .. }), "{entry}: {found}");
    }
}

#[test]
fn code_that_linkers_compile_anew_is_refused() {
    for section in [".gnu.lto_.inline.1a2b", ".llvm.lto"] {
        let source = format!("{SWITCHER}\n\t.section {section}, \"e\"\n\t.byte 1\n");
        match error(&assemble(&source, &[])) {
            ReadError::Lto { section: found } => assert_eq!(found, section),
            other => panic!("{section}: {other}"),
        }
    }
    // Symbols of linkers that can do so are no code.
    proved(&assemble(
        &format!("{SWITCHER}\n\t.section .gnu.build.attributes, \"\"\n\t.byte 1\n"),
        &[],
    ));
}

#[test]
fn an_entry_of_a_table_changes_as_many_bytes_as_its_kind_does() {
    // Code in front of the first routine, which is aligned and which nobody reaches.
    let before = |by: usize, table: &str| {
        let nops = format!("\t.skip {}, 0x90\nbefore:\n\t.skip {by}, 0x90\n", 32 - by);
        let first = "\t.text\n";
        let at = SWITCHER.find(first).unwrap() + first.len();
        let (head, rest) = SWITCHER.split_at(at);
        format!("{head}{nops}{rest}\n{table}\n")
    };
    for (name, bytes, entry) in [
        (".parainstructions", 16, ".quad before\n\t.byte 0, 16\n\t.p2align 3"),
        (".codepatch", 16, ".quad before\n\t.short 16, 1"),
        ("runtime_ptr_x", 8, ".long before - ."),
        ("__jump_table", 5, ".long before - ., 0\n\t.quad 0"),
    ] {
        let table = format!("\t.section {name}, \"a\"\n\t{entry}");
        let found = error(&assemble(&before(bytes - 1, &table), &[]));
        assert!(matches!(found, ReadError::Patched { .. }), "{name}: {found}");
        proved(&assemble(&before(bytes, &table), &[]));
    }
}
