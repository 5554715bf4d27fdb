//! What compilers and linkers make of C.

#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use switcher_offsets::{Found, Source, Struct};
use tempfile::TempDir;

/// A folder for what is built.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Runs a tool in the folder.
    pub(crate) fn run(&self, tool: &str, arguments: &[&str]) {
        let output =
            Command::new(tool).args(arguments).current_dir(self.0.path()).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{tool} {arguments:?}: {why}");
    }

    /// Compiles `source` to the object `to`.
    pub(crate) fn compile(&self, source: &str, to: &str, options: &[&str]) -> Vec<u8> {
        let name = format!("{to}.c");
        fs::write(self.path(&name), source).unwrap();
        self.run("gcc", &[&["-c", "-o", to, &name], options].concat());
        self.read(to)
    }

    /// The structs of tests/kernel.c, compiled.
    pub(crate) fn kernel(&self, to: &str, options: &[&str]) -> Vec<u8> {
        self.compile(&kernel_source(), to, options)
    }

    /// Writes the BTF of the object `from` to `to`, by itself.
    pub(crate) fn raw_btf(&self, from: &str, to: &str) {
        let options = ["-O", "binary", "--only-section=.BTF", "--set-section-flags", ".BTF=alloc"];
        self.run("objcopy", &[&options[..], &[from, to]].concat());
    }
}

pub(crate) fn kernel_source() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel.c")).unwrap()
}

/// The header that a kernel's build makes of tests/kernel.c: by the compiler's own offsetof.
pub(crate) fn kernel_header(folder: &Folder) -> String {
    let options = ["-S", "-DAS_HEADER"];
    let assembly = String::from_utf8(folder.kernel("offsets.s", &options)).unwrap();
    let mut header =
        String::from("#ifndef __ASM_OFFSETS_H__\n#define __ASM_OFFSETS_H__\n/* no */\n");
    for line in assembly.lines().filter_map(|line| line.split_once("->")) {
        let mut words = line.1.split(' ');
        let (name, value) = (words.next().unwrap(), words.next().unwrap());
        header += &format!("#define {name} {value} /* offsetof of {name} */\n");
    }
    header + "\n#endif\n"
}

/// A field as `at, size`, which must be there.
pub(crate) fn place(layout: &Option<Struct>, name: &str) -> (u64, Option<u64>) {
    let layout = layout.as_ref().unwrap();
    let field = layout.field(name).unwrap_or_else(|| panic!("{name} is not among {layout:#?}"));
    (field.at, field.size)
}

/// What must hold of all that was read from tests/kernel.c with sizes.
pub(crate) fn assert_kernel(found: &Found) {
    assert_eq!((found.tss_at, found.tss_extra_at), (Some(0), Some(0x80)));
    assert!(found.is_start_known);
    assert_eq!(found.tss.as_ref().unwrap().size, Some(104));
    for (name, expected) in [
        ("sp0", (4, Some(8))),
        ("sp2", (20, Some(8))),
        ("ist", (36, Some(56))),
        ("ist[0]", (36, Some(8))),
        ("ist[6]", (84, Some(8))),
        ("io_bitmap_base", (102, Some(2))),
    ] {
        assert_eq!(place(&found.tss, name), expected, "{name}");
    }
    let extra = found.tss_extra.as_ref().unwrap();
    assert_eq!(extra.size, Some(0x100));
    assert_eq!(extra.bit_fields, ["is_first", "number"]);
    for (name, expected) in [
        ("host_cr3", (0, Some(8))),
        ("enter_cr3", (0x10, Some(8))),
        ("switch_flags", (0x18, Some(8))),
        ("switch_low", (0x18, Some(4))),
        ("switch_high", (0x1C, Some(4))),
        ("pvcs", (0x30, Some(8))),
        ("smod_pkru", (0x5C, Some(4))),
        ("pgtbl", (0x60, Some(96))),
        ("pgtbl[0]", (0x60, Some(24))),
        ("pgtbl[3].umod_cr3", (0xB8, Some(8))),
        ("matrix", (0xC0, Some(12))),
        ("kind", (0xCC, Some(4))),
        ("name", (0xD2, Some(16))),
        ("callback", (0xE8, Some(8))),
    ] {
        assert_eq!(place(&found.tss_extra, name), expected, "{name}");
    }
    assert_eq!(extra.field("name[0]"), None, "bytes are no elements");
    // GCC 12 swaps the dimensions in BTF.
    if found.source == Source::Dwarf {
        assert_eq!(place(&found.tss_extra, "matrix[1]"), (0xC6, Some(6)));
        assert_eq!(place(&found.tss_extra, "matrix[1][2]"), (0xCA, Some(2)));
    }
    let pvcs = found.pvcs.as_ref().unwrap();
    assert_eq!(pvcs.size, Some(128));
    assert_eq!(pvcs.field("other"), None, "that is a struct within a function");
    assert_eq!(place(&found.pvcs, "user_ss"), (0x42, Some(2)));
    assert_eq!(place(&found.pvcs, "r11"), (0x78, Some(8)));
    assert_eq!(place(&found.pvcs, "rest"), (128, Some(0)));
    for layout in [&found.tss, &found.tss_extra, &found.pvcs] {
        let places: Vec<_> = layout.as_ref().unwrap().fields.iter().map(|it| it.at).collect();
        assert!(places.is_sorted(), "{places:?}");
    }
}
