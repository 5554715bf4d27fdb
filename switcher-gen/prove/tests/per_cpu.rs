//! Objects as a kernel's build makes them: the TSS and the switcher's data are in a per-CPU
//! variable that another file defines, the IRETQ to a guest is another file's, and symbols have
//! other names.

mod gas;

use std::fmt::Write as _;

use switcher_gen::Variant;
use switcher_gen::layout::TssExtra;
use switcher_prove::elf::{self, Foreign, ReadError, Request};
use switcher_prove::{BlockOffsets, Prover, Setting, Target, Verdict};

/// The variable that holds the TSS, and the switcher's data after it.
const VARIABLE: &str = "cpu_tss_rw";
const EXTRA: i64 = 0x80;

/// How an operand through GS refers to the variable.
#[derive(Clone, Copy)]
enum Form {
    /// By the distance from RIP, as Linux does.
    Relative,
    /// By a displacement of 32 bits.
    Absolute,
}

/// The switcher by hand, of which operand `n` through GS refers to the variable by the form that
/// `form` says.
fn source(form: impl Fn(usize) -> Form) -> String {
    let mut source = String::from("\t.set\tGS_TSS, 0\n\t.set\tGS_TSS_EXTRA, 0x80\n");
    let mut number = 0;
    for line in gas::SWITCHER.lines() {
        let Some((before, after)) = line.split_once("%gs:") else {
            writeln!(source, "{line}").unwrap();
            continue;
        };
        let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let (name, rest) = after.split_at(end.unwrap_or(after.len()));
        let rip = match form(number) {
            Form::Relative => "(%rip)",
            Form::Absolute => "",
        };
        writeln!(source, "{before}%gs:{VARIABLE} + {name}{rip}{rest}").unwrap();
        number += 1;
    }
    assert!(number > 20, "{number}");
    source
}

fn relative() -> String {
    source(|_| Form::Relative)
}

fn request() -> Request {
    Request::default().with_data(VARIABLE)
}

fn target(foreign: &Foreign) -> Target {
    let tss = foreign.data[VARIABLE].cast_signed();
    let block = BlockOffsets { tss, tss_extra: tss.wrapping_add(EXTRA) };
    Target::foreign(foreign, Setting::from(&Variant::REFERENCE).with_block(block)).unwrap()
}

#[track_caller]
fn proved(file: &[u8]) -> Target {
    let target = target(&elf::read_as(file, request()).unwrap());
    let verdict = Prover::default().prove(&target);
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
    target
}

/// The variable itself, in a section of a kernel's name.
const DEFINED: &str = "\n\t.section .data..percpu..page_aligned, \"aw\"\n\t.zero 0x1000\n\
     \t.globl cpu_tss_rw\ncpu_tss_rw:\n\t.zero 0x1000\n";

#[test]
fn a_variable_that_the_object_does_not_have_is_reached_by_either_form() {
    let assumed = |target: &Target| target.assumed.iter().any(|text| text.contains("per-CPU"));
    for form in [Form::Relative, Form::Absolute] {
        assert!(assumed(&proved(&gas::assemble(&source(|_| form), &[]))));
    }
    let mixed = source(|n| if n % 2 == 0 { Form::Relative } else { Form::Absolute });
    assert!(assumed(&proved(&gas::assemble(&mixed, &[]))));
}

#[test]
fn a_variable_in_a_section_of_the_object_is_the_same() {
    let object = gas::assemble(&(relative() + DEFINED), &[]);
    proved(&object);
    proved(&gas::process("ld", &["-r"], &object));
}

/// Before Linux 6.15, per-CPU addresses count from 0, and since then they are addresses like any
/// other: `nm` prints the number that is added to GS base in either case.
#[test]
fn linked_the_variable_is_where_its_symbol_says() {
    let object = gas::assemble(&(relative() + DEFINED), &[]);
    let text = "-Ttext=0xffffffff81000000";
    for (per_cpu, place) in [("0x5000", 0x6000), ("0xffffffff83005000", 0xFFFF_FFFF_8300_6000)] {
        let script = format!(
            "SECTIONS {{ .text 0xffffffff81000000 : {{ *(.text) }} \
             .data..percpu {per_cpu} : {{ *(.data..percpu*) }} }}"
        );
        let script_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(script_file.path(), script).unwrap();
        let path = script_file.path().to_str().unwrap();
        let args = ["-no-pie", "--no-check-sections", "-T", path, "-e", "switcher_enter_guest"];
        let linked = gas::process("ld", &args, &object);
        let foreign = elf::read_as(&linked, request()).unwrap();
        assert_eq!(foreign.data[VARIABLE], place, "{text}");
        proved(&linked);
    }
}

#[test]
fn another_field_of_the_variable_is_another_field() {
    let flags = format!("%gs:{VARIABLE} + SMOD_CR3(%rip)");
    let other = format!("%gs:{VARIABLE} + UMOD_CR3(%rip)");
    let broken = gas::replaced(&relative(), &[(&flags, &other)]);
    let target = target(&elf::read_as(&gas::assemble(&broken, &[]), request()).unwrap());
    let Verdict::Refuted(found) = Prover::default().prove(&target) else { panic!("not refuted") };
    assert_eq!(found.obligation.name, "root-of-mode", "{found}");
    assert!(found.to_string().contains("Replayed"), "{found}");
}

#[test]
fn another_variable_is_no_part_of_the_block() {
    let flags = format!("%gs:{VARIABLE} + SMOD_CR3(%rip)");
    for other in ["%gs:other(%rip)", "%gs:other", "%gs:other + 8(%rax)"] {
        let broken = gas::replaced(&relative(), &[(&flags, other)]);
        let target = target(&elf::read_as(&gas::assemble(&broken, &[]), request()).unwrap());
        match Prover::default().prove(&target) {
            Verdict::Refuted(found) => assert_eq!(found.obligation.name, "memory", "{found}"),
            verdict => panic!("{other}: {verdict:?}"),
        }
    }
}

/// While GS is the guest's, a switcher has the host's GS base in a register.
#[test]
fn a_register_may_hold_gs_base() {
    let flags = format!("\tmovq\t%gs:{VARIABLE} + SMOD_CR3(%rip), %rax\n");
    let read = |code: &str| {
        let object = gas::assemble(&gas::replaced(&relative(), &[(&flags, code)]), &[]);
        elf::read_as(&object, request())
    };
    let based = format!("\trdgsbase\t%rax\n\tmovq\t{VARIABLE} + SMOD_CR3(%rax), %rax\n");
    let verdict = Prover::default().prove(&target(&read(&based).unwrap()));
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
    // Another register holds something else.
    let other = based.replace("SMOD_CR3(%rax)", "SMOD_CR3(%rcx)");
    match Prover::default().prove(&target(&read(&other).unwrap())) {
        Verdict::Refuted(found) => assert_eq!(found.obligation.name, "memory", "{found}"),
        verdict => panic!("{verdict:?}"),
    }
    // Neither an index nor half a register is GS base, and no other variable was asked for.
    for refused in ["SMOD_CR3(,%rax)", "SMOD_CR3(%rax,%rax)", "SMOD_CR3(%eax)"] {
        let error = read(&based.replace("SMOD_CR3(%rax)", refused)).unwrap_err();
        match error {
            ReadError::Undefined { symbol, .. } => assert_eq!(symbol, VARIABLE),
            // An address of 32 bits.
            ReadError::Overflow { bits: 32, .. } => assert!(refused.contains("eax")),
            error => panic!("{error}"),
        }
    }
    let error = read(&based.replace(VARIABLE, "other")).unwrap_err();
    assert!(matches!(&error, ReadError::Undefined { symbol, .. } if symbol == "other"), "{error}");
}

/// Where a variable lies, whoever links the object decides: nothing may know the number.
#[test]
fn no_number_is_the_address_of_a_variable() {
    let object = gas::assemble(&relative(), &[]);
    let place = elf::read_as(&object, request()).unwrap().data[VARIABLE];
    let flags = format!("%gs:{VARIABLE} + SMOD_CR3(%rip)");
    let at = place.wrapping_add_signed(EXTRA) + TssExtra::smod_cr3.bytes() as u64;
    let number = format!("%gs:{:#x}", at as u32 as i32);
    let broken = gas::replaced(&relative(), &[(&flags, &number)]);
    let target = target(&elf::read_as(&gas::assemble(&broken, &[]), request()).unwrap());
    let verdict = Prover::default().prove(&target);
    assert!(matches!(&verdict, Verdict::Refuted(found) if found.obligation.name == "memory"));
}

/// An address is not what GS adds to, and LEA adds nothing.
#[test]
fn without_gs_a_symbol_that_is_not_there_is_refused_by_its_name() {
    let flags = format!("\tmovq\t%gs:{VARIABLE} + SMOD_CR3(%rip), %rax\n");
    for (other, is_section) in [
        ("\tmovq\tother(%rip), %rax\n", false),
        ("\tleaq\tother(%rip), %rax\n", false),
        // LEA with a prefix for GS, of which `as` warns.
        ("\t.byte 0x65\n\tleaq\tother(%rip), %rax\n", false),
        ("\tmovq\t$other, %rax\n", false),
        ("\tmovq\t%fs:other(%rip), %rax\n", false),
        ("\tmovq\t%gs:0x1234, %rax\n\tcall\tother\n", false),
        ("\tmovabsq\t%gs:other, %rax\n", false),
        ("\tmovq\tcpu_tss_rw + 8(%rip), %rax\n", false),
        (
            "\tmovq\tmine(%rip), %rax\n\t.pushsection .data..percpu, \"aw\"\nmine:\t.quad 0\n\t.popsection\n",
            true,
        ),
        (
            "\tmovq\t%gs:mine(%rip), %rax\n\t.pushsection .data, \"aw\"\nmine:\t.quad 0\n\t.popsection\n",
            true,
        ),
    ] {
        let broken = gas::replaced(&relative(), &[(&flags, other)]);
        let error = elf::read_as(&gas::assemble(&broken, &[]), request()).unwrap_err();
        match error {
            ReadError::Undefined { .. } => assert!(!is_section, "{other}"),
            ReadError::Data { .. } => assert!(is_section, "{other}"),
            error => panic!("{other}: {error}"),
        }
    }
}

/// Linux's IRETQ is in a file of its own, and has a name of its own.
#[test]
fn the_iretq_may_be_in_another_file_and_have_another_name() {
    const OURS: &str = "entry_IRETQ_switcher";
    const THEIRS: &str = "native_irq_return_iret";
    let own = format!("\t.globl\t{OURS}\n{OURS}:\n\tiretq\n");
    let source = gas::replaced(&relative(), &[(&own, "")]).replace(OURS, THEIRS);
    let object = gas::assemble(&source, &[]);
    // It is undefined as any other symbol is.
    let error = elf::read_as(&object, request()).unwrap_err();
    assert!(matches!(&error, ReadError::Undefined { symbol, .. } if symbol == THEIRS), "{error}");
    let named = request().with_symbol(OURS, THEIRS).unwrap();
    let foreign = elf::read_as(&object, named.clone()).unwrap();
    assert!(foreign.assumed().iter().any(|text| text.contains(THEIRS)), "{:?}", foreign.assumed());
    let verdict = Prover::default().prove(&target(&foreign));
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
    // What it is given is looked at, and it is no way out for a SYSRETQ's checks.
    let kept = "\torq\t$FLAGS_FORCED, IRET_FLAGS(%rsp)\n\tswapgs\n";
    let broken = gas::replaced(&source, &[(kept, "\tswapgs\n")]);
    let foreign = elf::read_as(&gas::assemble(&broken, &[]), named).unwrap();
    let Verdict::Refuted(found) = Prover::default().prove(&target(&foreign)) else {
        panic!("not refuted")
    };
    assert!(found.to_string().contains("Replayed"), "{found}");
}

#[test]
fn every_symbol_may_have_another_name() {
    let names = [
        ("switcher_enter_guest", "pvm_enter"),
        ("switcher_return_from_guest", "pvm_leave"),
        ("entry_SYSCALL_64_switcher", "pvm_syscall"),
        ("entry_SYSCALL_compat_switcher", "pvm_syscall32"),
        ("entry_IRETQ_switcher", "pvm_iretq"),
    ];
    let renamed = |source: &str, (ours, theirs): &(&str, &str)| source.replace(ours, theirs);
    let source = names.iter().fold(relative(), |source, names| renamed(&source, names));
    let object = gas::assemble(&source, &[]);
    let error = elf::read_as(&object, request()).map(|foreign| {
        let setting = Setting::from(&Variant::REFERENCE);
        Target::foreign(&foreign, setting).unwrap_err().to_string()
    });
    assert!(error.is_ok_and(|error| error.contains("switcher_enter_guest")));
    let all =
        names.iter().fold(request(), |all, (ours, theirs)| all.with_symbol(ours, theirs).unwrap());
    let target = target(&elf::read_as(&object, all).unwrap());
    assert!(target.syscall_compat.is_some() && target.iretq.is_some());
    assert!(matches!(Prover::default().prove(&target), Verdict::Proved(_)));
}
