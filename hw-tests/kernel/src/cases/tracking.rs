//! Indirect branch tracking is enforced here: a branch into the switcher that leads to no ENDBR64
//! is a #CP (Intel SDM vol. 1, 17.3). Other cases that run with tracking on show something only
//! where this holds.

use core::arch::global_asm;

use alloc::format;
use alloc::string::String;
use hw_platform::cpu;
use hw_platform::events::{self, NO_ENDBRANCH};
use hw_platform::percpu::Stack;
use hw_platform::segments::KERNEL_DS;
use hw_protocol::Need;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::vector;
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::PtRegs;

use super::unexpected;
use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::ENDBR64;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/an_indirect_branch_to_no_endbr64_is_refused",
    shown: "The switcher has an ENDBR64 at its entries and nowhere else, and the CPU insists on it.",
    rows: &[Hazard::FredAndIbt],
    cpus: 1,
    needs: &[Need::BranchTracking],
    run: |bench| enforced(bench.host()?),
}];

global_asm!(
    r#"
    .text
    // extern "C" fn(target: u64, tracked: bool) -> *const PtRegs
    // Jumps there, with branches tracked or not; returns what the event left that ended it.
    .global hw_kernel_branch
hw_kernel_branch:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    mov     [rip + hw_kernel_branch_rsp], rsp
    test    sil, sil
    jz      0f
    call    {track}
0:  jmp     rdi

    // An event at CPL 0: RSP = the PtRegs, on the stack that the IDT names.
    .global hw_kernel_branch_landing
hw_kernel_branch_landing:
    endbr64
    mov     rbx, rsp
    mov     ecx, {kernel_ds}
    mov     ss, ecx
    mov     rsp, [rip + hw_kernel_branch_rsp]
    call    {untrack}
    mov     rax, rbx
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    .section .bss.branch, "aw", @nobits
    .balign 8
hw_kernel_branch_rsp: .skip 8
    .text
"#,
    track = sym cpu::track,
    untrack = sym cpu::untrack,
    kernel_ds = const KERNEL_DS,
);

unsafe extern "C" {
    fn hw_kernel_branch(target: u64, tracked: bool) -> *const PtRegs;
    static hw_kernel_branch_landing: u8;
}

const INT3: u8 = 0xCC;

/// Jumps to an address that raises an exception; returns its vector, error code and RIP.
///
/// # Safety
/// The code at `target`, if any of it is executed, changes nothing before the exception.
unsafe fn branch(target: u64, tracked: bool) -> (u32, u32, u64) {
    let landing = (&raw const hw_kernel_branch_landing).addr() as u64;
    // SAFETY: the landing takes a `PtRegs` at RSP, wherever it is; until `no_catch` there is no
    // other event than the branch's.
    unsafe { events::catch(Stack::DoubleFault, landing) }
    // SAFETY: the caller says that there is an exception; it comes back by the landing, which
    // restores the stack and all callee-saved registers.
    let frame = unsafe { hw_kernel_branch(target, tracked) };
    events::no_catch();
    // SAFETY: the landing returns the frame that the stub built, which stays until the next event.
    let regs = unsafe { frame.read() };
    (regs.orig_ax.reason, regs.orig_ax.error_code, regs.rip)
}

/// Branches from ring 0 to every byte of the switcher at which no ENDBR64 begins, and executes
/// SYSCALLs that lead to the instruction after the ENDBR64 of their entry.
fn enforced(host: &mut BareMetal<'_>) -> Ended {
    let switcher = host.cpu().switcher();
    if !switcher.variant().ibt() {
        return Err("branches are tracked, but the variant is not for tracked branches".into());
    }
    let refused = |at: u64| (u32::from(vector::CP), NO_ENDBRANCH, at);
    let wrong = |at: u64, got: (u32, u32, u64)| -> Result<(), String> {
        Err(format!("a branch to {at:#x}: vector {}, error {:#x}, RIP {:#x}", got.0, got.1, got.2))
    };
    // A UD2 is at this address, so that one can safely jump there to find out.
    let trap = switcher.address(Label::NoHook);
    // SAFETY: the UD2 is an exception before anything changes.
    let got = unsafe { branch(trap, false) };
    if (got.0, got.2) != (u32::from(vector::UD), trap) {
        wrong(trap, got)?;
    }
    // SAFETY: the UD2 is an exception before anything changes, and so is a #CP.
    let got = unsafe { branch(trap, true) };
    if got != refused(trap) {
        wrong(trap, got)?;
    }

    let mut branches = 2;
    let code = switcher.linked();
    for (at, bytes) in (switcher.base()..).zip(code.bytes().windows(ENDBR64.len())) {
        if bytes != ENDBR64 {
            // SAFETY: no instruction is executed there, as has just been seen.
            let got = unsafe { branch(at, true) };
            // INT3 may stand in the place of any instruction: a debugger's INT3 is no #CP.
            let expected = match bytes[0] {
                INT3 => (u32::from(vector::BP), u32::MAX, at + 1),
                _ => refused(at),
            };
            if got != expected {
                wrong(at, got)?;
            }
            branches += 1;
        }
    }
    Ok(branches + unexpected::syscalls_after_the_endbr64(host)?)
}
