//! The hooks that a switcher's event entries call, for NMIs, for machine checks, and for faults
//! after which the host cannot go on; and the handler of what this kernel's own code raises.
//!
//! The hooks of a hypervisor would handle the event. These count it, and do what a test has asked
//! for: send another NMI, set RF so that a breakpoint's instruction is executed, or end a call.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use switcher_gen::arch::{RFlags, dr7};
use switcher_gen::layout::{EventFrame, PtRegs};
use switcher_runtime::Hooks;

use crate::apic::COMMAND_NMI;
use crate::events::{FATAL_STACK, NMIS, fatal_event};
use crate::{cpu, returns};

global_asm!(
    r#"
    // These are the switcher's hooks: RDI points to the PtRegs of what was interrupted. They count,
    // and overwrite every register that a function may change. They use no vector registers, so
    // they need not preserve any. Where a switcher is further than 2 GiB away, an indirect branch
    // leads here.
    .text
    .macro  hw_hook_clobbers
    mov     rax, 0x5A5A5A5A5A5A5A5A
    mov     rcx, rax
    mov     rdx, rax
    mov     rsi, rax
    mov     rdi, rax
    mov     r8, rax
    mov     r9, rax
    mov     r10, rax
    mov     r11, rax
    .endm
    .global hw_platform_hook_nmi
hw_platform_hook_nmi:
    endbr64
    lock inc qword ptr [rip + {hooked}]
    lock inc qword ptr [rip + {nmis}]
    xor     eax, eax
    xchg    rax, [rip + {second}]
    test    rax, rax
    jz      6f
    mov     dword ptr [rax], {nmi_command}
6:  jmp     7f
    .global hw_platform_hook_machine_check
hw_platform_hook_machine_check:
    endbr64
    lock inc qword ptr [rip + {machine_checks}]
    // Outside of the routines, it returns without RF: a breakpoint would be met once more.
    mov     rax, [rdi + {rip_of_regs}]
    cmp     rax, [rip + {no_rf_from}]
    jb      7f
    mov     eax, {no_breakpoint}
    mov     dr7, rax
7:  mov     rax, [rdi + {rip_of_regs}]
    mov     [rip + {interrupted}], rax
    mov     rax, [rip + {resuming}]
    or      [rdi + {eflags_of_regs}], rax
    hw_hook_clobbers
    ret
    .global hw_platform_hook_fatal
hw_platform_hook_fatal:
    endbr64
    mov     rax, [rip + {fatal_landing}]
    test    rax, rax
    jz      8f
    jmp     rax
8:  mov     rsi, cr3
    mov     rsp, [rip + {fatal_stack}]
    call    {untrack}
    call    {fatal}
    ud2
    // The handler of what this kernel's own code raises: RSP points to an EventFrame. It goes on
    // where a case has said, with the vector and the error code noted, or ends the run.
    .global hw_platform_handler
hw_platform_handler:
    push    rax
    xor     eax, eax
    xchg    rax, [rip + {landing}]
    test    rax, rax
    jz      9f
    mov     [rsp + 8 + {rip_of_event}], rax
    movzx   eax, byte ptr [rsp + 8 + {vector_of_event}]
    mov     [rip + {handled}], rax
    mov     rax, [rsp + 8 + {error_code_of_event}]
    mov     [rip + {handled} + 8], rax
    pop     rax
    add     rsp, {iret_of_event}
    iretq
    // As a stub of this kernel's own would have pushed it: the vector above the error code.
9:  movzx   eax, byte ptr [rsp + 8 + {vector_of_event}]
    mov     [rsp + 8 + {error_code_of_event} + 4], eax
    pop     rax
    lea     rsp, [rsp + {error_code_of_event}]
    jmp     hw_platform_event
"#,
    landing = sym LANDING,
    handled = sym HANDLED,
    vector_of_event = const core::mem::offset_of!(EventFrame, vector),
    error_code_of_event = const core::mem::offset_of!(EventFrame, error_code),
    iret_of_event = const core::mem::offset_of!(EventFrame, iret),
    rip_of_event = const core::mem::offset_of!(EventFrame, iret.rip),
    nmis = sym NMIS,
    fatal_stack = sym FATAL_STACK,
    untrack = sym cpu::untrack,
    fatal = sym fatal_event,
    hooked = sym HOOKED,
    machine_checks = sym MACHINE_CHECKS,
    second = sym SECOND,
    nmi_command = const COMMAND_NMI,
    interrupted = sym INTERRUPTED,
    resuming = sym RESUMING,
    no_rf_from = sym NO_RF_FROM,
    no_breakpoint = const dr7::DISABLED,
    rip_of_regs = const core::mem::offset_of!(PtRegs, rip),
    eflags_of_regs = const core::mem::offset_of!(PtRegs, eflags),
    fatal_landing = sym FATAL_LANDING,
);

unsafe extern "C" {
    fn hw_platform_hook_nmi(regs: *mut PtRegs);
    fn hw_platform_hook_machine_check(regs: *mut PtRegs);
    fn hw_platform_hook_fatal(regs: *mut PtRegs) -> !;
    fn hw_platform_handler();
}

/// The number of NMIs that have interrupted a switcher, on all CPUs.
static HOOKED: AtomicU64 = AtomicU64::new(0);
/// The number of machine checks that have interrupted a switcher.
static MACHINE_CHECKS: AtomicU64 = AtomicU64::new(0);
/// The address at which the last NMI or machine check has interrupted a switcher.
static INTERRUPTED: AtomicU64 = AtomicU64::new(0);
/// The register to which the NMI's hook writes to send another NMI, once; 0 if it sends none.
static SECOND: AtomicU64 = AtomicU64::new(0);
/// The function that a case has in place of the fatal hook; 0 if it has none.
static FATAL_LANDING: AtomicU64 = AtomicU64::new(0);
/// Where the next exception of this kernel's own code goes on; 0 if it ends the run.
static LANDING: AtomicU64 = AtomicU64::new(0);
/// The vector and the error code of the last one that went on. Assembly writes them.
static HANDLED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// The flags that a hook sets in what it returns to: none, or RF.
static RESUMING: AtomicU64 = AtomicU64::new(0);

/// The address from which on a machine check's hook disarms the breakpoint that stands for a
/// machine check.
static NO_RF_FROM: AtomicU64 = AtomicU64::new(u64::MAX);

/// The number of NMIs that have come through a switcher's IDT, on all CPUs.
#[must_use]
pub fn hooked_nmis() -> u64 {
    HOOKED.load(Ordering::Acquire)
}

/// The number of events that have interrupted CPL 0 and that a switcher has taken for machine
/// checks.
#[must_use]
pub fn hooked_machine_checks() -> u64 {
    MACHINE_CHECKS.load(Ordering::Acquire)
}

/// The address at which the last NMI or machine check that came through a switcher's IDT has
/// interrupted CPL 0.
#[must_use]
pub fn last_interrupted() -> u64 {
    INTERRUPTED.load(Ordering::Acquire)
}

/// Makes the next NMI's hook send another NMI to its CPU, by writing to this register of its APIC:
/// [`smp::aim_nmis`](crate::smp::aim_nmis).
pub fn set_second(register: u64) {
    SECOND.store(register, Ordering::Release);
}

/// Gives a switcher's fatal events to a hook of a case's. With 0, they come to this kernel again,
/// and end the run.
pub fn set_fatal_landing(hook: u64) {
    FATAL_LANDING.store(hook, Ordering::Release);
}

/// Where the address is to be stored at which the next exception of this kernel's own code goes on,
/// once; without one, the exception ends the run.
#[must_use]
pub fn landing() -> *mut u64 {
    LANDING.as_ptr()
}

/// The vector and the error code of the last exception that went on at the [`landing`].
#[must_use]
pub fn handled() -> [u64; 2] {
    HANDLED.each_ref().map(|word| word.load(Ordering::Acquire))
}

/// Sets whether hooks set RF in what they return to: for a breakpoint that stands for an NMI or a
/// machine check, and whose instruction is to be executed afterwards.
pub fn set_resuming(resuming: bool) {
    let flags = if resuming { RFlags::RF } else { RFlags::empty() };
    RESUMING.store(flags.bits(), Ordering::Release);
}

/// Sets the end of a switcher's routines: from this address on, its machine checks return without
/// RF, so a breakpoint there is met only once.
pub fn set_no_rf_from(address: u64) {
    NO_RF_FROM.store(address, Ordering::Release);
}

/// The hooks for a switcher's event entries.
#[must_use]
pub fn hooks() -> Hooks {
    Hooks {
        nmi: hw_platform_hook_nmi,
        machine_check: hw_platform_hook_machine_check,
        fatal: hw_platform_hook_fatal,
        exception: Some(hw_platform_handler),
        returns: Some(returns::thunk()),
    }
}
