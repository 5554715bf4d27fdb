//! Compares the model of a CPU with this CPU.
//!
//! The table of [`vectors`](hw_protocol::vectors), which the engine runner has made from the model,
//! is executed instruction by instruction in ring 0. Each program ends with an exception, its own
//! or that of a last UD2. Whatever its stack and its GS are by then, the event goes to a stack of
//! this kernel's, and leaves a `PtRegs`.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::fmt::Write;

use hw_protocol::vectors::{
    CODE, DATA, DATA_LEN, NONE, Needs, Platforms, Registers, Vector, VectorEnd, VectorTable, filler,
};
use switcher_gen::arch::{Msr as MsrName, RFlags, Vendor};
use switcher_gen::layout::PtRegs;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::model_specific::Msr;

use hw_platform::cpu::{self, Features};
use hw_platform::memory::{self, Flags, Frame, PAGE};
use hw_platform::percpu::Stack;
use hw_platform::segments::{KERNEL_CS, KERNEL_DS};
use hw_platform::{Platform, events};

global_asm!(
    r#"
    .section .text.model, "ax", @progbits

    // extern "C" fn(state: *const PtRegs) -> *const PtRegs
    // Loads that state, which is of CPL 0, and runs it; returns the PtRegs that an event has left.
    .global hw_kernel_model_enter
hw_kernel_model_enter:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    mov     [rip + hw_kernel_model_rsp], rsp
    mov     rsp, rdi
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    pop     r11
    pop     r10
    pop     r9
    pop     r8
    pop     rax
    pop     rcx
    pop     rdx
    pop     rsi
    pop     rdi
    add     rsp, 8                      // orig_ax
    iretq

    // The landing of an event at CPL 0: RSP = the PtRegs, on the stack that the IDT names. Every
    // other register is the program's.
    .global hw_kernel_model_landing
hw_kernel_model_landing:
    mov     rax, rsp
    mov     ecx, {kernel_ds}
    mov     ss, ecx                     // the program's may be null
    mov     rsp, [rip + hw_kernel_model_rsp]
    push    2
    popfq                               // DF and AC clear
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    .section .bss.model, "aw", @nobits
    .balign 8
hw_kernel_model_rsp: .skip 8
    .text
"#,
    kernel_ds = const KERNEL_DS,
);

unsafe extern "C" {
    fn hw_kernel_model_enter(state: *const PtRegs) -> *const PtRegs;
    static hw_kernel_model_landing: u8;
}

/// The number of vectors that are described when they fail.
const DESCRIBED: usize = 4;
/// The number of instructions that are named when they fail.
const NAMED: usize = 40;

/// The MSRs that programs write: STAR, LSTAR, CSTAR, SFMASK and the bases.
const WRITTEN: [MsrName; 7] = [
    MsrName::Star,
    MsrName::Lstar,
    MsrName::Cstar,
    MsrName::Sfmask,
    MsrName::FsBase,
    MsrName::GsBase,
    MsrName::KernelGsBase,
];

/// The MSRs of bases, which programs change.
const BASES: [MsrName; 3] = [MsrName::FsBase, MsrName::GsBase, MsrName::KernelGsBase];

/// The results of a table.
#[derive(Debug, Default)]
struct Counts {
    executed: u64,
    /// The vectors for other vendors and paging modes.
    elsewhere: u64,
    /// The vectors that need something this CPU lacks, by what they need.
    lacking: BTreeMap<&'static str, u64>,
    /// The vectors that fail as known, by known difference.
    known: BTreeMap<u16, u64>,
    failed: u64,
    /// The vectors that fail, by program.
    failures: BTreeMap<u16, u64>,
    described: Vec<String>,
}

/// Executes a table. Returns how many vectors were executed, what is worth knowing about them, and
/// whether all had the right results.
pub(crate) fn run(platform: &Platform) -> (u64, Result<String, String>) {
    if platform.module.is_empty() {
        return (0, Err("no table of vectors was loaded".into()));
    }
    let table = match VectorTable::parse(platform.module) {
        Ok(table) => table,
        Err(why) => return (0, Err(why.to_string())),
    };
    let machine = match Machine::new(table.code, &platform.features) {
        Ok(machine) => machine,
        Err(why) => return (0, Err(why)),
    };
    let mut counts = Counts::default();
    let result = all(&table, &machine, platform, &mut counts);
    drop(machine);
    let summary = summary(&table, &counts);
    let result = match result {
        Err(why) => Err(why),
        Ok(()) if counts.executed == 0 => Err(format!("no vector is for this CPU; {summary}")),
        Ok(()) if counts.failed == 0 => Ok(summary),
        Ok(()) => Err(failures(&table, &counts) + &summary),
    };
    (counts.executed, result)
}

fn all(
    table: &VectorTable<'_>,
    machine: &Machine,
    platform: &Platform,
    counts: &mut Counts,
) -> Result<(), String> {
    let vendor = match platform.features.vendor.as_str() {
        "GenuineIntel" => Vendor::Intel,
        "AuthenticAMD" | "HygonGenuine" => Vendor::Amd,
        other => return Err(format!("there is no model of a CPU by `{other}`")),
    };
    let here = Platforms::of(vendor, memory::paging());
    for vector in table.vectors() {
        let vector = vector.map_err(|why| why.to_string())?;
        let program = table.programs.get(usize::from(vector.program));
        let program = program.ok_or("a vector of no program")?;
        if !vector.platforms.contains(here) {
            counts.elsewhere += 1;
            continue;
        }
        if let Some(lacking) = lacking(vector.needs, &platform.features) {
            *counts.lacking.entry(lacking).or_default() += 1;
            continue;
        }
        counts.executed += 1;
        let got = machine.run(&vector.before);
        let different = differences(&got, &vector.after, program.undefined);
        let is_as_expected = different.is_empty() == (vector.known == NONE);
        if vector.known != NONE {
            *counts.known.entry(vector.known).or_default() += 1;
        }
        if !is_as_expected {
            counts.failed += 1;
            let of_program = counts.failures.entry(vector.program).or_default();
            *of_program += 1;
            if *of_program == 1 && counts.described.len() < DESCRIBED {
                counts.described.push(describe(program.name, &vector, &different));
            }
        }
    }
    Ok(())
}

/// The feature that a vector needs and this CPU lacks, if there is one.
fn lacking(needs: Needs, features: &Features) -> Option<&'static str> {
    [
        (Needs::SMAP, features.smap, "there is no SMAP"),
        (Needs::PCID, cpu::pcid_enabled(), "there are no PCIDs"),
        (Needs::NO_LA57, !features.la57, "with LA57, any CPU takes bases of 57 bits"),
        (Needs::PKU, features.pku, "there are no protection keys"),
    ]
    .into_iter()
    .find_map(|(need, has, name)| (needs.contains(need) && !has).then_some(name))
}

/// Describes what is not as the model says; empty if everything is.
fn differences(got: &VectorEnd, expected: &VectorEnd, undefined: u64) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let mut differ = |name: &str, got: u64, expected: u64| {
        if got != expected {
            let _ = write!(text, "{name} {got:#x}, expected {expected:#x}; ");
        }
    };
    if (got.vector, got.error_code) != (expected.vector, expected.error_code) {
        differ("vector", got.vector.into(), expected.vector.into());
        differ("error code", got.error_code.into(), expected.error_code.into());
    }
    let (mut registers, mut wanted) = (got.registers, expected.registers);
    registers.rflags &= !(undefined | RFlags::RF.bits());
    wanted.rflags &= !(undefined | RFlags::RF.bits());
    if registers != wanted {
        let both = registers.words().into_iter().zip(wanted.words());
        for (name, (got, expected)) in Registers::NAMES.iter().zip(both) {
            differ(name, got, expected);
        }
    }
    if got.memory != expected.memory {
        let _ = write!(text, "memory {:x?}, expected {:x?}; ", got.memory, expected.memory);
    }
    text
}

fn describe(name: &str, vector: &Vector, different: &str) -> String {
    let mut text = if vector.known == NONE {
        format!("{name}: {different}from")
    } else {
        format!("{name}: as the model says, which was not to be expected, from")
    };
    for (name, value) in Registers::NAMES.iter().zip(vector.before.words()) {
        let _ = write!(text, " {name}={value:#x}");
    }
    text
}

/// Names the programs that failed, and describes how the first of them did.
fn failures(table: &VectorTable<'_>, counts: &Counts) -> String {
    let mut text = format!("{} of {} failed: ", counts.failed, counts.executed);
    for (program, count) in counts.failures.iter().take(NAMED) {
        let _ = write!(text, "`{}` x {count}, ", table.programs[usize::from(*program)].name);
    }
    if counts.failures.len() > NAMED {
        let _ = write!(text, "and {} more, ", counts.failures.len() - NAMED);
    }
    for described in &counts.described {
        let _ = write!(text, "| {described} ");
    }
    text + "| "
}

/// Says how many vectors were executed, and which were not.
fn summary(table: &VectorTable<'_>, counts: &Counts) -> String {
    let mut text = format!("{} vectors of {} instructions", counts.executed, table.programs.len());
    if counts.elsewhere > 0 {
        let _ = write!(text, "; {} are for other CPUs", counts.elsewhere);
    }
    for (lacking, count) in &counts.lacking {
        let _ = write!(text, "; {count} not run here: {lacking}");
    }
    for (known, count) in &counts.known {
        let why = table.known.get(usize::from(*known)).unwrap_or(&"?");
        let _ = write!(text, "; {count} known to differ: {why}");
    }
    text
}

/// Ring 0 with the programs' code and their page of data.
struct Machine {
    data: Frame,
    // The frames stay mapped until `drop` has run, which comes before the fields are dropped.
    code: Vec<Frame>,
    control: Cr4Flags,
    msrs: [(MsrName, u64); WRITTEN.len()],
}

impl Machine {
    /// Maps code and data, enables the instructions for the bases, and stores what programs change.
    fn new(code: &[u8], features: &Features) -> Result<Self, String> {
        if !features.fsgsbase {
            return Err("this CPU has no FSGSBASE".into());
        }
        let mapping = |why: memory::MapError| format!("mapping the programs: {why}");
        let frame = || Frame::new().map_err(|why| mapping(why.into()));
        let control = Cr4::read();
        let msrs = WRITTEN.map(|name| (name, read_msr(name)));
        let mut machine = Self { data: frame()?, code: Vec::new(), control, msrs };
        let data = machine.data.address();
        memory::map_host(DATA, data, Flags::WRITE).map_err(mapping)?;
        for (page, bytes) in (CODE..).step_by(PAGE as usize).zip(code.chunks(PAGE as usize)) {
            let mut frame = frame()?;
            frame.write(0, bytes);
            let address = frame.address();
            machine.code.push(frame);
            memory::map_host(page, address, Flags::EXECUTE).map_err(mapping)?;
        }
        // SAFETY: the CPU has FSGSBASE; the bit only allows instructions.
        unsafe { Cr4::write(control | Cr4Flags::FSGSBASE) }
        if features.pku {
            // SAFETY: the CPU has the feature, and nothing here accesses a user page.
            unsafe { Cr4::update(|control| control.insert(Cr4Flags::PROTECTION_KEY_USER)) }
        }
        Ok(machine)
    }

    /// Runs a program from a state to its exception.
    fn run(&self, before: &Registers) -> VectorEnd {
        let page = core::ptr::with_exposed_provenance_mut::<u64>(DATA as usize);
        for word in 0..DATA_LEN / 8 {
            // SAFETY: the page is mapped at this address, and nothing refers to it.
            unsafe { page.wrapping_add(word).write_volatile(filler(word)) }
        }
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
            before.gpr;
        let start = PtRegs {
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            rip: before.rip,
            cs: KERNEL_CS.into(),
            eflags: before.rflags,
            rsp,
            ss: before.ss,
            ..PtRegs::default()
        };
        let landing = (&raw const hw_kernel_model_landing).addr() as u64;
        write_msr(MsrName::FsBase, before.fs_base);
        write_msr(MsrName::GsBase, before.gs_base);
        write_msr(MsrName::KernelGsBase, before.kernel_gs_base);
        // SAFETY: the landing takes a `PtRegs` at RSP, wherever it is; before `no_catch`, only the
        // program is executed.
        unsafe { events::catch(Stack::DoubleFault, landing) }
        // SAFETY: the state is of CPL 0, at a program that was written to end with an exception, on
        // a page of its own. All that it changes is restored: registers and flags by the landing,
        // the rest below. Interrupts that it may allow are masked at their controllers.
        let frame = unsafe { hw_kernel_model_enter(&raw const start) };
        events::no_catch();
        let [fs_base, gs_base, kernel_gs_base] = BASES.map(read_msr);
        for (name, value) in self.msrs {
            write_msr(name, value);
        }
        // SAFETY: the landing returns the frame that the stub built, which stays until the next
        // event.
        let frame = unsafe { frame.read() };
        let changed = |word| {
            // SAFETY: the page is mapped at this address, and the program has ended.
            let value = unsafe { page.wrapping_add(word).read_volatile() };
            (value != filler(word)).then_some((word as u16, value))
        };
        VectorEnd {
            registers: Registers {
                gpr: [
                    frame.rax, frame.rcx, frame.rdx, frame.rbx, frame.rsp, frame.rbp, frame.rsi,
                    frame.rdi, frame.r8, frame.r9, frame.r10, frame.r11, frame.r12, frame.r13,
                    frame.r14, frame.r15,
                ],
                rip: frame.rip,
                rflags: frame.eflags,
                ss: frame.ss,
                gs_base,
                kernel_gs_base,
                fs_base,
            },
            vector: frame.orig_ax.reason as u8,
            error_code: frame.orig_ax.error_code,
            memory: (0..DATA_LEN / 8).filter_map(changed).collect(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if Cr4::read().contains(Cr4Flags::PROTECTION_KEY_USER) {
            // SAFETY: the CPU has WRPKRU, and this is the value after reset.
            unsafe { asm!("wrpkru", in("eax") 0, in("ecx") 0, in("edx") 0) }
        }
        // SAFETY: this is the value that CR4 had before.
        unsafe { Cr4::write(self.control) }
        let pages = (CODE..).step_by(PAGE as usize).take(self.code.len());
        for page in pages.chain([DATA]) {
            // SAFETY: no program runs any more. A page that `new` did not map needs no unmapping.
            let _ = unsafe { memory::unmap_host(page) };
        }
    }
}

fn read_msr(name: MsrName) -> u64 {
    // SAFETY: the MSR is one of WRITTEN, which every CPU with long mode has.
    unsafe { Msr::new(name.address()).read() }
}

fn write_msr(name: MsrName, value: u64) {
    // SAFETY: the MSR is one of WRITTEN, and gets the value that it had or a canonical base;
    // nothing here uses either base, and no SYSCALL is executed before they are restored.
    unsafe { Msr::new(name.address()).write(value) }
}
