//! What compilers write: DWARF and BTF, of objects and of linked files.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use switcher_offsets::{
    Names, OffsetsError, Options, Scan, Source, merge, read, read_file, read_with,
};

mod tools;
use tools::{Folder, assert_kernel, kernel_header, kernel_source, place};

const DWARF_4: &[&str] = &["-gdwarf-4"];
const DWARF_5: &[&str] = &["-gdwarf-5"];

#[test]
fn dwarf_of_objects_is_read_in_all_its_forms() {
    let folder = Folder::new();
    let forms: [&[&str]; 8] = [
        DWARF_4,
        DWARF_5,
        &["-gdwarf-2"],
        &["-gdwarf-5", "-O2"],
        &["-gdwarf-5", "-gdwarf64"],
        &["-gdwarf-4", "-fdebug-types-section"],
        &["-gdwarf-5", "-fdebug-types-section"],
        &["-gdwarf-5", "-fno-merge-debug-strings"],
    ];
    for options in forms {
        let found = read(&folder.kernel("kernel.o", options)).unwrap();
        assert_eq!(found.source, Source::Dwarf, "{options:?}");
        assert_kernel(&found);
    }
}

/// LLVM numbers the strings of version 5, says nothing of siblings, and has a module around
/// structs.
#[test]
fn dwarf_of_another_compiler_is_read() {
    let folder = Folder::new();
    let source = "
        #[repr(C)] pub struct Root(u64);
        #[repr(C)] pub struct tss_extra { host_cr3: Root, host_rsp: u64, ist: [u64; 7], last: u32 }
        #[repr(C, align(64))] pub struct tss_struct { tss: [u32; 26], extra: tss_extra }
        #[no_mangle] pub static mut CPU_TSS_RW: Option<tss_struct> = None;
        pub fn other(it: &tss_struct) -> u64 { it.extra.host_rsp }";
    std::fs::write(folder.path("host.rs"), source).unwrap();
    for version in ["4", "5"] {
        let version = format!("-Cdwarf-version={version}");
        let options = ["--crate-type=lib", "--emit=obj", "-Cdebuginfo=2", "-Awarnings", &version];
        folder.run("rustc", &[&options[..], &["-o", "host.o", "host.rs"]].concat());
        folder.run("gcc", &["-shared", "-nostdlib", "-o", "host.so", "host.o"]);
        for file in ["host.o", "host.so"] {
            let found = read(&folder.read(file)).unwrap();
            assert_eq!(found.tss_extra_at, Some(104), "{file} {version}");
            assert_eq!(found.tss_extra.as_ref().unwrap().size, Some(80));
            assert_eq!(place(&found.tss_extra, "host_cr3.__0"), (0, Some(8)));
            assert_eq!(place(&found.tss_extra, "ist[6]"), (64, Some(8)));
            assert_eq!(place(&found.tss_extra, "last"), (72, Some(4)));
        }
    }
}

#[test]
fn what_is_static_in_cpp_is_no_field() {
    let folder = Folder::new();
    let source = "
        namespace host { struct tss_extra { long a; static long other; long b; }; }
        long host::tss_extra::other; host::tss_extra it;";
    for version in [DWARF_4, DWARF_5] {
        let options = [version, &["-x", "c++"]].concat();
        std::fs::write(folder.path("host.cc"), source).unwrap();
        folder.run("gcc", &[&["-c", "-o", "host.o"], &options[..], &["host.cc"]].concat());
        let extra = read(&folder.read("host.o")).unwrap().tss_extra.unwrap();
        let names: Vec<_> = extra.fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["a", "b"], "{version:?}");
    }
}

#[test]
fn dwarf_of_linked_files_is_read() {
    let folder = Folder::new();
    let main = "int local(void); int main(void) { return local(); }";
    for version in [DWARF_4, DWARF_5] {
        folder.kernel("kernel.o", version);
        folder.compile(main, "main.o", version);
        folder.run("gcc", &["-o", "linked", "main.o", "kernel.o"]);
        assert_kernel(&read(&folder.read("linked")).unwrap());
        // As vmlinux.o is: several units, still to be relocated.
        folder.run("ld", &["-r", "-o", "joined.o", "main.o", "kernel.o"]);
        assert_kernel(&read(&folder.read("joined.o")).unwrap());
        // Where units refer to each other.
        folder.kernel("lto.o", &[version, &["-flto", "-O1"]].concat());
        folder.compile(main, "lto-main.o", &[version, &["-flto", "-O1"]].concat());
        folder.run("gcc", &[version[0], "-flto", "-O1", "-o", "lto", "lto-main.o", "lto.o"]);
        assert_kernel(&read(&folder.read("lto")).unwrap());
    }
}

#[test]
fn compressed_sections_are_unpacked_and_other_methods_named() {
    let folder = Folder::new();
    for version in [DWARF_4, DWARF_5] {
        folder.kernel("kernel.o", version);
        folder.run("objcopy", &["--compress-debug-sections", "kernel.o", "packed.o"]);
        assert_ne!(folder.read("kernel.o"), folder.read("packed.o"));
        assert_kernel(&read(&folder.read("packed.o")).unwrap());
    }
    // The number of the method is the first word of a section that is compressed.
    let packed = folder.read("packed.o");
    let start = packed.windows(4).position(|it| {
        it == [1, 0, 0, 0].as_slice() && {
            let at = it.as_ptr() as usize - packed.as_ptr() as usize;
            // The bytes after the header of a compressed section begin like this.
            packed.get(at + 24) == Some(&0x78) && packed.get(at + 4..at + 8) == Some(&[0; 4])
        }
    });
    let mut other = packed.clone();
    other[start.unwrap()] = 2;
    let error = read(&other).unwrap_err();
    assert!(matches!(error, OffsetsError::Compressed { .. }), "{error}");
    assert!(error.to_string().contains("objcopy --decompress-debug-sections"), "{error}");
}

#[test]
fn a_file_is_read_as_its_bytes_are_and_keeps_its_position() {
    let folder = Folder::new();
    let bytes = folder.kernel("kernel.o", DWARF_5);
    let mut file = File::open(folder.path("kernel.o")).unwrap();
    file.seek(SeekFrom::Start(7)).unwrap();
    assert_eq!(read_file(&file).unwrap(), read(&bytes).unwrap());
    assert_eq!(file.stream_position().unwrap(), 7);
    let folder = File::open(std::env::temp_dir()).unwrap();
    assert!(matches!(read_file(&folder), Err(OffsetsError::NoFile)));
}

#[test]
fn btf_is_read_from_objects_and_by_itself() {
    let folder = Folder::new();
    let found = read(&folder.kernel("kernel.o", &["-gbtf"])).unwrap();
    assert_eq!(found.source, Source::Btf);
    assert_kernel(&found);
    folder.raw_btf("kernel.o", "kernel.btf");
    let raw = read(&folder.read("kernel.btf")).unwrap();
    assert_eq!(raw, found);
    // All that DWARF says, but for the arrays of arrays, of which GCC 12 swaps the dimensions.
    let mut dwarf = read(&folder.kernel("kernel.o", DWARF_5)).unwrap();
    let mut btf = found;
    for found in [&mut dwarf, &mut btf] {
        let extra = found.tss_extra.as_mut().unwrap();
        extra.fields.retain(|field| !field.name.starts_with("matrix["));
        found.source = Source::Several;
    }
    assert_eq!(dwarf, btf);
    // Where a file has both, what DWARF says counts, if it says anything of the structs.
    let both = |dwarf: &str| {
        folder.compile("struct other { int a; } other;", "none.o", DWARF_5);
        folder.kernel("dwarf.o", DWARF_5);
        let add = ["--add-section", ".BTF=kernel.btf", dwarf, "both.o"];
        folder.run("objcopy", &add);
        read(&folder.read("both.o")).unwrap().source
    };
    assert_eq!((both("dwarf.o"), both("none.o")), (Source::Dwarf, Source::Btf));
}

#[test]
fn btf_of_modules_and_of_several_objects_is_refused() {
    let folder = Folder::new();
    folder.kernel("kernel.o", &["-gbtf"]);
    let module = ["--add-section", ".gnu.linkonce.this_module=kernel.o.c"];
    folder.run("objcopy", &[&module[..], &["kernel.o", "module.ko"]].concat());
    let error = read(&folder.read("module.ko")).unwrap_err();
    assert!(matches!(error, OffsetsError::SplitBtf { .. }), "{error}");
    assert!(error.to_string().contains("vmlinux"), "{error}");
    folder.compile("struct other { int a; } other;", "other.o", &["-gbtf"]);
    folder.run("ld", &["-r", "-o", "both.o", "kernel.o", "other.o"]);
    let error = read(&folder.read("both.o")).unwrap_err();
    assert!(matches!(error, OffsetsError::SeveralBtf), "{error}");
    // A module's BTF in a file by itself shows by strings and types that are not there.
    folder.raw_btf("kernel.o", "kernel.btf");
    let whole = folder.read("kernel.btf");
    let strings = u32::from_le_bytes(whole[20..24].try_into().unwrap());
    let mut short = whole.clone();
    short[20..24].copy_from_slice(&(strings / 2).to_le_bytes());
    assert!(matches!(read(&short), Err(OffsetsError::SplitBtf { .. })));
    let header = u32::from_le_bytes(whole[4..8].try_into().unwrap());
    let first = header + u32::from_le_bytes(whole[16..20].try_into().unwrap());
    let mut unlike = whole.clone();
    unlike[first as usize] = b'x';
    assert!(matches!(read(&unlike), Err(OffsetsError::SplitBtf { .. })));
    let mut swapped = whole;
    swapped[..2].reverse();
    assert!(matches!(read(&swapped), Err(OffsetsError::BigEndian)));
}

#[test]
fn the_compilers_offsets_are_those_of_debug_information() {
    let folder = Folder::new();
    for options in [&[][..], &["-DWITH_HOST_GS"]] {
        let header = kernel_header(&folder);
        let header = match options {
            [] => header,
            _ => {
                let assembly = folder.kernel("gs.s", &["-S", "-DAS_HEADER", options[0]]);
                let assembly = String::from_utf8(assembly).unwrap();
                let lines = assembly.lines().filter_map(|line| line.split_once("->"));
                lines.map(|(_, it)| format!("#define {}\n", it.replace(" offset\"", ""))).collect()
            }
        };
        let by_header = read(header.as_bytes()).unwrap();
        let object = folder.kernel("kernel.o", &[DWARF_5, options].concat());
        let by_dwarf = read(&object).unwrap();
        assert!(!by_header.is_start_known);
        let (start, own) = (by_dwarf.tss_extra_at.unwrap(), by_header.tss_extra_at.unwrap());
        let mut compared = 0;
        for field in &by_header.tss_extra.as_ref().unwrap().fields {
            let (at, _) = place(&by_dwarf.tss_extra, &field.name);
            assert_eq!(own + field.at, start + at, "{}", field.name);
            compared += 1;
        }
        for (header, dwarf) in [(&by_header.tss, &by_dwarf.tss), (&by_header.pvcs, &by_dwarf.pvcs)]
        {
            for field in &header.as_ref().unwrap().fields {
                assert_eq!(field.at, place(dwarf, &field.name).0, "{}", field.name);
                compared += 1;
            }
        }
        assert_eq!(compared, 29);
        // So one completes the other, whichever comes first.
        let named = [("a.h".to_owned(), by_header.clone()), ("a.o".to_owned(), by_dwarf.clone())];
        let merged = merge(named.clone()).unwrap().unwrap();
        assert_eq!(merged.tss_extra, by_dwarf.tss_extra);
        assert!(merged.is_start_known);
        assert_eq!(merge(named.into_iter().rev()).unwrap().unwrap(), merged);
        // Broken on purpose: another place of one field.
        let moved = header.replace("PVCS_rip 96", "PVCS_rip 104");
        assert_ne!(moved, header);
        let moved = read(moved.as_bytes()).unwrap();
        let error = merge([("a.o".into(), by_dwarf), ("b.h".into(), moved)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.o and b.h contradict each other: pvcs.rip is 0x60 and 0x68"
        );
    }
}

#[test]
fn two_definitions_that_differ_name_their_units() {
    let folder = Folder::new();
    let other = "struct tss_extra { long host_rsp; long host_cr3; } other;";
    for version in [DWARF_4, DWARF_5] {
        folder.kernel("first.o", version);
        folder.compile(other, "second.o", version);
        folder.run("ld", &["-r", "-o", "both.o", "first.o", "second.o"]);
        let both = folder.read("both.o");
        let error = read(&both).unwrap_err().to_string();
        assert!(error.contains("first.o.c") && error.contains("second.o.c"), "{error}");
        assert!(error.contains("host_cr3 lies at 0x0 and at 0x8"), "{error}");
        // Whoever stops early does not see it.
        let options = Options { scan: Scan::UntilFound, ..Options::default() };
        assert_kernel(&read_with(&both, &options).unwrap());
        // The same definition twice is one, and a declaration does not count.
        folder.kernel("again.o", version);
        folder.run("objcopy", &["--prefix-symbols=x", "again.o"]);
        folder.compile("struct tss_extra; struct tss_extra *p;", "third.o", version);
        folder.run("ld", &["-r", "-o", "same.o", "third.o", "first.o", "again.o"]);
        assert_kernel(&read(&folder.read("same.o")).unwrap());
    }
}

#[test]
fn other_names_are_looked_for_when_they_are_given() {
    let folder = Folder::new();
    let source = kernel_source().replace("struct tss_extra", "struct my_extra");
    let source = source.replace("pvm_vcpu_struct", "pvm_vcpu_state");
    let object = folder.compile(&source, "other.o", DWARF_5);
    let mut names = Names { tss_extra: "my_extra".into(), ..Names::default() };
    let options = |names: &Names| Options { names: names.clone(), ..Options::default() };
    let found = read_with(&object, &options(&names)).unwrap();
    assert_eq!(found.tss_extra_at, Some(0x80));
    assert_eq!(found.pvcs, None);
    names.pvcs = "pvm_vcpu_state".into();
    assert_kernel(&read_with(&object, &options(&names)).unwrap());
    assert_eq!(read(&object).unwrap().tss_extra, None);
}

#[test]
fn what_has_none_of_the_structs_says_what_was_looked_for() {
    let folder = Folder::new();
    let source = "struct tss_extras { long a; } x; struct rest { long b; } y;";
    for options in [DWARF_4, DWARF_5, &["-gbtf"], &["-gdwarf-5", "-fno-merge-debug-strings"]] {
        let error = read(&folder.compile(source, "none.o", options)).unwrap_err();
        assert!(matches!(error, OffsetsError::NotFound { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains("none of struct tss_struct, struct x86_hw_tss, struct"), "{error}");
        assert!(error.contains("there are struct tss_extras"), "{error}");
        assert!(!error.contains("struct rest"), "{error}");
    }
    let error = read(&folder.compile(source, "none.o", &[])).unwrap_err();
    assert!(matches!(error, OffsetsError::NoTypes), "{error}");
    let error = read(&folder.compile(source, "none.o", &["-g", "-gsplit-dwarf"])).unwrap_err();
    assert!(matches!(error, OffsetsError::Elsewhere { .. }), "{error}");
    let error = read(&folder.compile(source, "none.o", &["-m32", "-g"])).unwrap_err();
    assert!(matches!(error, OffsetsError::NotX86), "{error}");
}

#[test]
fn structs_that_cannot_be_meant_are_refused() {
    let folder = Folder::new();
    let error = |source: &str, options: &[&str]| {
        read(&folder.compile(source, "odd.o", options)).unwrap_err()
    };
    for options in [DWARF_5, &["-gbtf"]] {
        let empty = error("struct tss_extra { } x;", options);
        assert!(matches!(empty, OffsetsError::NoFields { .. }), "{empty}");
        let bits = error("struct tss_extra { int a : 3; int b : 4; } x;", options);
        assert!(matches!(bits, OffsetsError::NoFields { .. }), "{bits}");
        let large = error("struct tss_extra { char a[65537]; } x;", options);
        assert!(matches!(large, OffsetsError::TooLarge { size: 65537, .. }), "{large}");
        let twice = "struct tss_extra { long a; }; struct tss_struct { struct tss_extra a, b; } x;";
        let twice = error(twice, options);
        assert!(matches!(twice, OffsetsError::TwoPlaces { first: 0, second: 8, .. }), "{twice}");
        let mut deep = String::from("struct s0 { long a; };");
        for level in 1..20 {
            deep += &format!("struct s{level} {{ struct s{} a; }};", level - 1);
        }
        let deep = error(&format!("{deep} struct tss_extra {{ struct s19 a; }} x;"), options);
        assert!(matches!(deep, OffsetsError::TooMuch { .. }), "{deep}");
    }
}
