//! The source is assembled by GNU as, and the header is compiled by GCC.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use object::read::{Object as _, ObjectSection as _, ObjectSymbol as _};
use object::{RelocationFlags, RelocationTarget};
use switcher_gen::kernels::{ModuleBlock, ModuleExtra};
use switcher_gen::layout::{AsmLayout, PerCpu};
use switcher_gen::{Policy, Variant};

use super::{DropIn, DropInError};

const NAMES: [(&str, &str); 2] = [
    ("entry_IRETQ_switcher", "entry_IRETQ_switcher_rip"),
    ("entry_SYSCALL_compat_switcher", "entry_pvm_SYSCALL32_ignore"),
];

fn drop_in(variant: &Variant) -> DropIn {
    DropIn::new::<ModuleBlock>(variant, &NAMES).unwrap()
}

/// The variants that a kernel of this kind can have.
fn variants() -> Vec<Variant> {
    let all = Variant::representative().filter(|variant| {
        let policy = Policy { revision: variant.revision(), ..Policy::DEFAULT };
        variant.policy() == policy && !variant.pku() && !variant.mitigations().ibrs
    });
    all.collect()
}

/// Runs `program` in `dir` with `source` as its input; its messages if it fails.
fn run(program: &str, args: &[&str], dir: &Path, source: &str) -> Result<(), String> {
    let mut child = Command::new(program)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(messages) }
}

/// What an object's code is: bytes, symbols and references.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    bytes: Vec<u8>,
    align: u64,
    symbols: Vec<(String, u64, u64)>,
    refers: Vec<(u64, String, i64, RelocationFlags)>,
}

fn parts(file: &[u8]) -> Parts {
    let file = object::File::parse(file).unwrap();
    let text = file.section_by_name(".entry.text").unwrap();
    let own = file.symbols().filter(|it| it.section_index() == Some(text.index()));
    let own = own.filter(|it| it.is_global());
    let mut symbols: Vec<_> =
        own.map(|it| (it.name().unwrap().to_owned(), it.address(), it.size())).collect();
    symbols.sort();
    let mut refers: Vec<_> = text
        .relocations()
        .map(|(at, relocation)| {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { panic!("no symbol") };
            let name = file.symbol_by_index(symbol).unwrap().name().unwrap().to_owned();
            (at, name, relocation.addend(), relocation.flags())
        })
        .collect();
    refers.sort_by_key(|(at, ..)| *at);
    Parts { bytes: text.data().unwrap().to_vec(), align: text.align(), symbols, refers }
}

#[test]
fn the_source_is_assembled_to_what_the_object_has() {
    let dir = tempfile::tempdir().unwrap();
    let variants = variants();
    assert!(variants.len() > 10, "{}", variants.len());
    for variant in variants {
        let drop_in = drop_in(&variant);
        let args = ["-c", "-x", "assembler-with-cpp", "-", "-o", "switcher.o"];
        let source = drop_in.source().unwrap();
        run("gcc", &args, dir.path(), &source).unwrap_or_else(|why| panic!("{why}\n{source}"));
        let assembled = parts(&std::fs::read(dir.path().join("switcher.o")).unwrap());
        let own = parts(&drop_in.object().unwrap());
        if let Some(at) = assembled.bytes.iter().zip(&own.bytes).position(|(a, b)| a != b) {
            let line = source.lines().take(400).collect::<Vec<_>>().join("\n");
            panic!("{variant} differs at {at:#x}\n{line}");
        }
        assert_eq!(assembled, own, "{variant}");
    }
}

#[test]
fn each_symbol_is_there_by_the_kernels_name() {
    let parts = parts(&drop_in(&Variant::REFERENCE).object().unwrap());
    let names: Vec<_> = parts.symbols.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "entry_IRETQ_switcher_rip",
            "entry_SYSCALL_64_switcher",
            "entry_SYSCALL_64_switcher_safe_stack",
            "entry_SYSRETQ_switcher_unsafe_stack",
            "entry_pvm_SYSCALL32_ignore",
            "switcher_enter_guest",
            "switcher_return_from_guest",
        ]
    );
    assert!(parts.refers.iter().all(|(_, name, ..)| name == "cpu_tss_rw"), "{:?}", parts.refers);
    assert!(parts.refers.len() > 20, "{}", parts.refers.len());
    // enter_cr3 lies where the kernel has it.
    assert!(parts.refers.iter().any(|(_, _, addend, _)| *addend == 0x98));
    assert!(!parts.refers.iter().any(|(_, _, addend, _)| *addend == 0x90));
}

#[test]
fn what_the_kernel_has_no_place_for_is_refused() {
    let refuse = |name: &str| {
        let variant = name.parse::<Variant>().unwrap();
        DropIn::new::<ModuleBlock>(&variant, &NAMES).err().unwrap().to_string()
    };
    assert!(refuse("intel-4level-percpu").contains("without `percpu`"));
    assert!(refuse("intel-4level+ibrs").contains("no field for the host's SPEC_CTRL"));
    assert!(refuse("intel-4level-pku").contains("no field for smod's PKRU"));
    let ours = DropIn::new::<PerCpu>(&Variant::REFERENCE, &NAMES);
    assert!(matches!(ours, Err(DropInError::NoVariable { layout: "PerCpu" })));
}

/// The kernel's structs, with `fields` in the switcher's data.
fn structs(fields: &str) -> String {
    format!(
        "struct tss_extra {{ {fields} }};\n\
         struct tss_struct {{ char tss[0x80]; struct tss_extra tss_ex; }};\n\
         #include \"switcher.h\"\n\
         struct pt_regs *enter(void) {{ return switcher_enter_guest(); }}\n"
    )
}

const FIELDS: &str = "unsigned long host_cr3, host_rsp, host_gs_base, enter_cr3, reserved[4],\n\
     switch_flags, smod_cr3, umod_cr3, pvcs, retu_rip, smod_entry, smod_gsbase, smod_rsp;";

#[test]
fn the_header_compiles_for_the_struct_that_the_code_is_for_and_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("switcher.h"), drop_in(&Variant::REFERENCE).header()).unwrap();
    let args = ["-std=gnu11", "-Wall", "-Werror", "-c", "-x", "c", "-", "-o", "check.o"];
    let compile = |source: &str| run("gcc", &args, dir.path(), source);
    compile(&structs(FIELDS)).unwrap();
    let ours = FIELDS.replace("host_gs_base, enter_cr3", "enter_cr3, host_gs_base");
    let error = compile(&structs(&ours)).unwrap_err();
    assert!(error.contains("enter_cr3 lies elsewhere"), "{error}");
    let elsewhere = structs(FIELDS).replace("tss[0x80]", "tss[0x88]");
    let error = compile(&elsewhere).unwrap_err();
    assert!(error.contains("the data of the switcher lies elsewhere"), "{error}");
    let narrow = FIELDS.replace("smod_gsbase, smod_rsp;", "smod_gsbase; unsigned smod_rsp;");
    let error = compile(&structs(&narrow)).unwrap_err();
    assert!(error.contains("smod_rsp has another size"), "{error}");
}

#[test]
fn the_header_has_each_field_and_constant() {
    let header = drop_in(&Variant::REFERENCE).header();
    assert!(header.contains("#define SWITCHER_SWITCH_FLAGS_UMOD 0x2ULL\n"), "{header}");
    for field in ModuleExtra::LAYOUT.fields {
        let constant =
            format!("SWITCHER_EXTRA_{} {:#x}\n", field.name.to_uppercase(), field.offset);
        assert_eq!(header.contains(&constant), !field.name.starts_with('_'), "{constant}");
    }
}
