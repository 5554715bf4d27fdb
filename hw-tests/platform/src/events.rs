//! The IDT and the stubs that its gates lead to.
//!
//! # What the CPU has done before a stub's first instruction
//! It has taken RSP from the TSS (sp0 from CPL 3; the IST stack if the gate names one; otherwise,
//! at CPL 0, the interrupted RSP rounded down to 16). It has pushed SS, RSP, RFLAGS, CS, RIP, and
//! an error code if the vector has one. IF, TF, NT and RF are clear; AC and DF are whatever they
//! were. CR3 and GS are those of what was interrupted: from CPL 3, the guest's.
//!
//! # How an event is handled
//! While a guest of a switcher runs, the switcher's IDT is loaded, and no event comes here: the
//! switcher calls what [`hooks`](crate::hooks) names. All other events are this kernel's own:
//!
//! * From CPL 3, where the platform's self test enters guests without a switcher: the stub
//!   completes the CPU's frame to a [`PtRegs`], with the vector in the high half of `orig_ax` and
//!   the error code (or -1) in the low half, executes SWAPGS, and jumps to [`RETURN_FROM_GUEST`]
//!   with RSP at the frame.
//! * #NP, #SS or #GP at CPL 0 on the IRETQ at [`GUEST_IRETQ`]: that IRETQ was about to start the
//!   guest, so the event is the guest's. Every register is the guest's by then, GS and CR3 too, and
//!   RSP points to the IRET frame. The `PtRegs` ends with that frame, so it has the state in which
//!   the guest was to start, and it is handled like an event of the guest.
//! * An NMI at CPL 0 is counted.
//! * #CP at CPL 0 for an indirect branch of this kernel's own to its own code: compiled code has no
//!   ENDBR64, and is resumed. [`tracked`](crate::cpu::tracked) needs this.
//! * Any other event at CPL 0 is fatal, unless `catch` is in force. The handler runs on the host's
//!   root and on a stack of its own, and does not use GS, which may be the guest's.
//!
//! The stubs and what they read are in the sections `.entry.text` and `.entry.data`, on pages of
//! their own, which the self test's root maps. The roots of a switcher's guests do not.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use switcher_gen::arch::vector;
use switcher_gen::layout::PtRegs;
use switcher_runtime::{DescriptorTablePointer, Rights};
use x86_64::instructions::port::Port;
use x86_64::registers::control::Cr2;

use crate::exit::{self, ExitStatus, FATAL};
use crate::percpu::Stack;
use crate::regions::Region;
use crate::segments::KERNEL_CS;
use crate::{cpu, high, serial_println};

/// The address to which a stub jumps with a guest's event. RSP is the address of the [`PtRegs`]; GS
/// base is the host's, CR3 the guest's, and AC and DF are the guest's.
///
/// Until it is set, an event from CPL 3 is fatal.
#[unsafe(link_section = ".entry.data")]
pub static RETURN_FROM_GUEST: AtomicU64 = AtomicU64::new(0);

/// The address of the IRETQ that starts the guest; 0 if there is none.
#[unsafe(link_section = ".entry.data")]
pub static GUEST_IRETQ: AtomicU64 = AtomicU64::new(0);

/// The address to which a stub jumps with any other event at CPL 0. RSP is the address of the
/// [`PtRegs`].
#[unsafe(link_section = ".entry.data")]
static CPL0_EVENT: AtomicU64 = AtomicU64::new(0);

// The stubs push a `PtRegs` field by field, in this order.
const _: () = assert!(size_of::<PtRegs>() == 168);
const _: () = assert!(core::mem::offset_of!(PtRegs, orig_ax) == 0x78);
const _: () = assert!(core::mem::offset_of!(PtRegs, rdi) == 0x70);
const _: () = assert!(core::mem::offset_of!(PtRegs, ss) == 0xA0);

/// The number of bytes from one stub to the next.
const STRIDE: u64 = 32;
const VECTORS: usize = 256;
/// The lowest vector of the faults of the IRETQ itself that a guest can cause: #NP, #SS, #GP.
const FIRST_IRETQ_FAULT: u8 = vector::NP;
const LAST_IRETQ_FAULT: u8 = vector::GP;
/// The error code of a #CP for an indirect branch that leads to no ENDBR64 (Intel SDM vol. 3,
/// 6.15).
pub const NO_ENDBRANCH: u32 = 3;

global_asm!(
    r#"
    .section .entry.text, "ax", @progbits

    // There is one stub per vector, of {stride} bytes: .org refuses a longer one, and fills the
    // rest with traps.
    .balign {stride}
    .global hw_platform_event_stubs
hw_platform_event_stubs:
    .set    vector, 0
    .rept   {vectors}
    endbr64
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
    push    -1                          // in place of the error code
    .endif
    .byte   0xC7, 0x44, 0x24, 0x04      // mov dword ptr [rsp + 4], vector
    .long   vector
    jmp     hw_platform_event
    .set    vector, vector + 1
    .org    hw_platform_event_stubs + vector * {stride}, 0xCC
    .endr

    // Pushes the registers of a PtRegs from RSI down, when RDI and all above it have been pushed.
    .macro  hw_push_below_rdi
    push    rsi
    push    rdx
    push    rcx
    push    rax
    push    r8
    push    r9
    push    r10
    push    r11
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    .endm

    // RSP -> orig_ax, then the CPU's frame: RIP, CS, RFLAGS, RSP, SS.
    .global hw_platform_event
hw_platform_event:
    test    byte ptr [rsp + 16], 3      // CS
    jz      1f
    push    rdi
0:  hw_push_below_rdi
    swapgs
    jmp     qword ptr [rip + {return_from_guest}]

1:  push    rax
    push    rcx                         // RSP -> rcx, rax, orig_ax, RIP, CS, RFLAGS, RSP, SS
    // The event is at CPL 0. Is it an NMI? Then the interrupted code is resumed.
    cmp     dword ptr [rsp + 20], {nmi}
    je      5f
    // Is it an indirect branch of the kernel's own?
    cmp     dword ptr [rsp + 20], {cp}
    je      9f
    // Is it a fault of the IRETQ that starts the guest?
    mov     rax, [rsp + 24]
    cmp     rax, [rip + {guest_iretq}]
    jne     2f
    mov     eax, [rsp + 20]             // the vector
    sub     eax, {first_fault}
    cmp     eax, {last_fault} - {first_fault}
    ja      2f
    // The interrupted RSP is the address of the guest's IRET frame; build the PtRegs around it.
    // Its lower part overlaps the CPU's frame and what was pushed above: each store below only
    // hits what has been read.
    mov     rax, [rsp + 48]
    mov     rcx, [rsp + 16]
    mov     [rax - 8], rcx              // orig_ax
    mov     [rax - 16], rdi
    mov     rdi, rax
    pop     rcx
    pop     rax
    lea     rsp, [rdi - 16]
    jmp     0b

2:  pop     rcx
    pop     rax
    push    rdi
    hw_push_below_rdi
    jmp     qword ptr [rip + {cpl0_event}]

5:  lock inc qword ptr [rip + {nmis}]
6:  pop     rcx
    pop     rax
    add     rsp, 8
    iretq

9:  cmp     dword ptr [rsp + 16], {no_endbranch}
    jne     2b
    mov     rax, [rsp + 24]             // the branch's target
    lea     rcx, [rip + __image_start]
    cmp     rax, rcx
    jb      2b
    lea     rcx, [rip + __text_end]
    cmp     rax, rcx
    jb      6b
    jmp     2b

    // Unexpected events of both kinds come here: RETURN_FROM_GUEST points here, too, while no guest
    // is expected.
hw_platform_fatal_event:
    endbr64
    mov     rdi, rsp
    mov     rsi, cr3
    mov     rax, [rip + {host_cr3}]
    test    rax, rax
    jz      4f
    mov     cr3, rax
4:  mov     rsp, [rip + {fatal_stack}]
    push    2
    popfq                               // DF, AC, TF and NT clear
    call    {untrack}
    call    {fatal}
    ud2

"#,
    stride = const STRIDE,
    vectors = const VECTORS,
    first_fault = const FIRST_IRETQ_FAULT,
    last_fault = const LAST_IRETQ_FAULT,
    return_from_guest = sym RETURN_FROM_GUEST,
    guest_iretq = sym GUEST_IRETQ,
    nmi = const vector::NMI,
    cp = const vector::CP,
    no_endbranch = const NO_ENDBRANCH,
    untrack = sym cpu::untrack,
    nmis = sym NMIS,
    cpl0_event = sym CPL0_EVENT,
    fatal_stack = sym FATAL_STACK,
    host_cr3 = sym HOST_CR3,
    fatal = sym fatal_event,
);

unsafe extern "C" {
    static hw_platform_event_stubs: u8;
    static hw_platform_fatal_event: u8;
}

/// The number of NMIs that have interrupted CPL 0, on all CPUs: here and in
/// [`hooks`](crate::hooks).
#[unsafe(link_section = ".entry.data")]
pub(crate) static NMIS: AtomicU64 = AtomicU64::new(0);

/// The number of NMIs that have interrupted CPL 0 so far, on all CPUs.
#[must_use]
pub fn nmis() -> u64 {
    NMIS.load(Ordering::Acquire)
}

/// The host's root, for the stubs; 0 while the boot tables are loaded.
#[unsafe(link_section = ".entry.data")]
static HOST_CR3: AtomicU64 = AtomicU64::new(0);

/// Tells the stubs the host's root.
pub(crate) fn set_host_cr3(cr3: u64) {
    HOST_CR3.store(cr3, Ordering::Relaxed);
}

/// The top of [`Stack::Fatal`] of one CPU, which all CPUs use: none returns from a fatal event.
#[unsafe(link_section = ".entry.data")]
pub(crate) static FATAL_STACK: AtomicU64 = AtomicU64::new(0);

/// Handles an event after which the kernel cannot go on.
///
/// # Safety
/// `frame` is a `PtRegs` that the stubs have built on a stack of the host's. This runs on the fatal
/// stack, at CPL 0, on the host's root, with GS unknown. `cr3` is the root that was interrupted.
pub(crate) unsafe extern "C" fn fatal_event(frame: *const PtRegs, cr3: u64) -> ! {
    // An event in this very function would come back here, so the second time it only ends the run.
    static ENTERED: AtomicU64 = AtomicU64::new(0);
    if ENTERED.swap(1, Ordering::Relaxed) != 0 {
        exit::exit(ExitStatus::Failure)
    }
    // SAFETY: the stubs pass a frame they have just written, which nothing else refers to.
    let regs = unsafe { frame.read() };
    let cr2 = Cr2::read_raw();
    serial_println!(
        "\n{FATAL}vector {} error {:#x} rip {:#x} cs {:#x} rflags {:#x} rsp {:#x} ss {:#x} cr2 {:#x} cr3 {:#x}",
        regs.orig_ax.reason,
        regs.orig_ax.error_code,
        regs.rip,
        regs.cs,
        regs.eflags,
        regs.rsp,
        regs.ss,
        cr2,
        cr3,
    );
    serial_println!("{regs:x?}");
    exit::exit(ExitStatus::Failure)
}

/// An interrupt gate (SDM vol. 3, 6.14.1, figure 6-8).
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    offset_low: u16,
    selector: u16,
    ist: u8,
    kind: u8,
    offset_middle: u16,
    offset_high: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Gate>() == 16);

/// The type byte of a 64-bit interrupt gate that is present.
const INTERRUPT_GATE: u8 = 0x8E;
const DPL3: u8 = 3 << 5;

impl Gate {
    const MISSING: Self = Self {
        offset_low: 0,
        selector: 0,
        ist: 0,
        kind: 0,
        offset_middle: 0,
        offset_high: 0,
        reserved: 0,
    };

    fn new(vector: usize, handler: u64, stack: Stack) -> Self {
        // hazards.md, row 32: INT n reaches INT3, INTO and the guest's INT 0x80, nothing else.
        let privilege = if matches!(vector, 3 | 4 | 0x80) { DPL3 } else { 0 };
        Self {
            offset_low: handler as u16,
            selector: KERNEL_CS,
            ist: stack.ist(),
            kind: INTERRUPT_GATE | privilege,
            offset_middle: (handler >> 16) as u16,
            offset_high: (handler >> 32) as u32,
            reserved: 0,
        }
    }
}

/// An IDT on pages of its own.
#[repr(C, align(4096))]
struct Idt(spin::Once<[Gate; VECTORS]>);

static IDT: Idt = Idt(spin::Once::new());
/// The IDT that is loaded while events at CPL 0 are caught.
static CATCHING: Idt = Idt(spin::Once::new());

/// The stack that the gate of each vector names.
fn usual_stack(vector: usize) -> Stack {
    match vector {
        1 => Stack::Debug,
        2 => Stack::Nmi,
        8 => Stack::DoubleFault,
        18 => Stack::MachineCheck,
        _ => Stack::Sp0,
    }
}

/// An IDT whose gates lead to the stubs.
fn table(stack: impl Fn(usize) -> Stack) -> [Gate; VECTORS] {
    let stubs = (&raw const hw_platform_event_stubs).addr() as u64;
    let mut idt = [Gate::MISSING; VECTORS];
    for (vector, gate) in idt.iter_mut().enumerate() {
        *gate = Gate::new(vector, stubs + vector as u64 * STRIDE, stack(vector));
    }
    idt
}

/// Loads an IDT.
fn load(idt: &'static [Gate; VECTORS]) {
    let base = high::of((&raw const *idt).addr() as u64, high::Half::Lower);
    let limit = (size_of_val(idt) - 1) as u16;
    let Ok(pointer) = DescriptorTablePointer::new(base, limit, high::paging()) else {
        exit::fatal(format_args!("the IDT is at {base:#x}, which is not canonical"))
    };
    // SAFETY: the table lives for ever, and every gate leads to a stub that can take its vector:
    // the stacks of the TSS are in place since segments::init.
    unsafe { pointer.load_idt() }
}

/// Sends every event at CPL 0 to `landing`, with RSP at its [`PtRegs`], from now on. All events
/// take `stack`, which must be one of the IST, so that RSP may have any value.
///
/// # Safety
/// `landing` takes events that way, and does not resume whatever was interrupted.
pub unsafe fn catch(stack: Stack, landing: u64) {
    CPL0_EVENT.store(landing, Ordering::Relaxed);
    load(CATCHING.0.call_once(|| table(|_| stack)));
}

/// Makes events at CPL 0 fatal again.
pub fn no_catch() {
    CPL0_EVENT.store((&raw const hw_platform_fatal_event).addr() as u64, Ordering::Relaxed);
    load(IDT.0.call_once(|| table(usual_stack)));
}

/// Masks the interrupt controllers and loads the IDT.
pub(crate) fn init() {
    mask_interrupts();
    FATAL_STACK.store(Stack::Fatal.top(0), Ordering::Relaxed);
    no_guest();
    no_catch();
}

/// Loads the IDT again, and names the stack of fatal events, at the addresses that they have once
/// the paging mode is final.
pub(crate) fn move_up() {
    FATAL_STACK.store(Stack::Fatal.top(0), Ordering::Relaxed);
    no_catch();
}

/// Loads the IDT on a CPU that has just been started.
pub(crate) fn init_started_cpu() {
    load(IDT.0.call_once(|| table(usual_stack)));
}

unsafe extern "C" {
    static __entry_text: u8;
    static __entry_text_end: u8;
    static __entry_data: u8;
    static __entry_data_end: u8;
}

/// The pages that the stubs need under the root of a guest without a switcher, and that stubs of
/// cases need under any root: their code, and what they read and write.
#[must_use]
pub fn mappings() -> [(Region, Rights); 2] {
    let region =
        |start: *const u8, end: *const u8| Region::new(start.addr() as u64, end.addr() as u64);
    [
        (region(&raw const __entry_text, &raw const __entry_text_end), Rights::ReadExecute),
        (region(&raw const __entry_data, &raw const __entry_data_end), Rights::ReadWrite),
    ]
}

/// Makes every event from CPL 3 fatal again, as no guest is expected.
pub fn no_guest() {
    let fatal = (&raw const hw_platform_fatal_event).addr() as u64;
    RETURN_FROM_GUEST.store(fatal, Ordering::Relaxed);
    GUEST_IRETQ.store(0, Ordering::Relaxed);
}

/// Masks the two 8259s, and moves their vectors away from those of exceptions, in case of a
/// spurious interrupt. Guests run with IF set, and no device is to interrupt them.
fn mask_interrupts() {
    let write = |port: u16, value: u8| {
        // SAFETY: these are the 8259s' ports; with all lines masked, the controllers send nothing.
        unsafe { Port::new(port).write(value) }
    };
    for (command, data, vector, cascade) in [(0x20, 0x21, 0x20, 4), (0xA0, 0xA1, 0x28, 2)] {
        write(command, 0x11);
        write(data, vector);
        write(data, cascade);
        write(data, 0x01);
        write(data, 0xFF);
    }
}
