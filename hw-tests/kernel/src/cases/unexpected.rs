//! A fault in ring 0 that no right host lets happen ends the switcher, but not the host's control
//! (spec/hazards.md, row 30). The hook is told which fault it was, on a stack of its own, with the
//! host's root and GS; and a hook that returns, which no hook may, meets the trap after its call.

use alloc::format;
use alloc::string::String;
use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use hw_cases::{CaseHost, Expected, Setup, place};
use hw_platform::memory::{self, HIGH_BASE, PAGE};
use hw_platform::percpu::{self, Stack};
use hw_platform::{cpu, events, hooks};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{Msr as MsrName, vector};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::{AsmLayout, OrigAx, PtRegs, Pvcs};
use switcher_runtime::{Detail, Exit, Mode};
use x86_64::registers::control::Cr3;
use x86_64::registers::model_specific::Msr;

use crate::bench::{Ended, HostCase};
use crate::case_host::{BareMetal, checked_call};
use crate::programs::{ENDBR64, PROBE, SYSCALL};
use crate::setup::{check, setup};

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/an_unexpected_fault_in_the_switcher_ends_in_the_hosts_hook",
        shown: "A fault of the switcher's is the host's to know, and nothing after it is executed.",
        rows: &[Hazard::PastTrap],
        cpus: 1,
        needs: &[],
        run: |bench| ends_in_the_hook(bench.host()?),
    },
    HostCase {
        name: "host/an_exception_of_the_hosts_own_code_goes_to_its_handler",
        shown: "While the switcher's IDT is loaded, the host's own code may raise an exception, and \
                goes on where the host's handler returns to.",
        rows: &[Hazard::VectorUnlikeOthers, Hazard::RspAtNmiStack],
        cpus: 1,
        needs: &[],
        run: |bench| goes_to_the_handler(bench.host()?),
    },
];

global_asm!(
    r#"
    .text
    // unsafe extern "C" fn(entry: u64) -> *mut PtRegs
    // Calls checked_call, which does not return if a fatal event ends it: RAX has no meaning then.
    .global hw_kernel_ended_call
hw_kernel_ended_call:
    push    rbx
    push    rbp
    push    r12
    push    r13
    push    r14
    push    r15
    sub     rsp, 8
    mov     [rip + {stack}], rsp
    call    {checked_call}
0:  add     rsp, 8
    pop     r15
    pop     r14
    pop     r13
    pop     r12
    pop     rbp
    pop     rbx
    ret

    // The hook, with RDI = PtRegs. It stores the first two frames, and returns as often as it is
    // told to.
    .global hw_kernel_end_call
hw_kernel_end_call:
    endbr64
    mov     rsi, rdi
    mov     rdi, [rip + {calls}]
    cmp     rdi, 2
    jae     1f
    imul    rdi, rdi, {record_size}
    lea     rax, [rip + {records}]
    add     rdi, rax
    mov     rax, cr3
    mov     [rdi + {cr3}], rax
    rdgsbase rax
    mov     [rdi + {gs_base}], rax
    mov     [rdi + {rsp}], rsp
    mov     ecx, {regs_words}
    rep movsq
1:  inc     qword ptr [rip + {calls}]
    cmp     qword ptr [rip + {returns}], 0
    je      2f
    dec     qword ptr [rip + {returns}]
    ret
2:  mov     rsp, [rip + {stack}]
    call    {untrack}
    jmp     0b

    // unsafe extern "C" fn(landing: *mut u64, kind: u64, below: u64) -> u64
    // Raises #UD if `kind` is 0, and #GP otherwise, with RSP by so many bytes lower. Says whether
    // RSP and the other registers are as they were where the handler goes on.
    .global hw_kernel_raise
hw_kernel_raise:
    push    rbx
    push    rbp
    sub     rsp, rdx
    mov     rbp, rsp
    movabs  rbx, 0xB0B1B2B3B4B5B6B7
    mov     r9, rbx
    lea     rcx, [rip + 4f]
    mov     [rdi], rcx
    xor     eax, eax
    test    rsi, rsi
    jnz     3f
    ud2
3:  movabs  r8, 0x8000000000000000
    mov     r8, [r8]
    ud2
4:  lea     r8, [rip + 4b]
    cmp     rcx, r8
    jne     5f
    cmp     rbx, r9
    jne     5f
    cmp     rsp, rbp
    jne     5f
    inc     eax
5:  lea     rsp, [rbp + rdx]
    pop     rbp
    pop     rbx
    ret
"#,
    checked_call = sym checked_call_for_assembly,
    stack = sym STACK,
    untrack = sym cpu::untrack,
    calls = sym CALLS,
    returns = sym RETURNS,
    records = sym RECORDS,
    record_size = const size_of::<Record>(),
    regs_words = const size_of::<PtRegs>() / 8,
    cr3 = const core::mem::offset_of!(Record, cr3),
    gs_base = const core::mem::offset_of!(Record, gs_base),
    rsp = const core::mem::offset_of!(Record, rsp),
);

unsafe extern "C" {
    fn hw_kernel_ended_call(entry: u64) -> *mut PtRegs;
    static hw_kernel_end_call: u8;
    fn hw_kernel_raise(landing: *mut u64, kind: u64, below: u64) -> u64;
}

/// [`checked_call`], as assembly calls it.
unsafe extern "C" fn checked_call_for_assembly(entry: u64) -> *mut PtRegs {
    // SAFETY: the caller of `hw_kernel_ended_call` vouches for `entry`.
    unsafe { checked_call(entry) }
}

/// A record of what the hook has found.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Record {
    regs: PtRegs,
    rsp: u64,
    cr3: u64,
    gs_base: u64,
}

/// The records of the first two calls. Only assembly writes them.
#[repr(transparent)]
struct Records(UnsafeCell<[Record; 2]>);

// SAFETY: one CPU runs these cases, and reads them when nothing writes there.
unsafe impl Sync for Records {}

static RECORDS: Records =
    Records(UnsafeCell::new([Record { regs: PtRegs::ZERO, rsp: 0, cr3: 0, gs_base: 0 }; 2]));
/// How often the hook has been called.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// How often the hook is still to return.
static RETURNS: AtomicU64 = AtomicU64::new(0);
/// The stack with which the call is resumed.
static STACK: AtomicU64 = AtomicU64::new(0);

/// The number of bytes of an ENDBR64.
const ENDBR64_LEN: u64 = ENDBR64.len() as u64;

/// An address at which no root maps a page.
const NOWHERE: u64 = HIGH_BASE + 300 * PAGE;

/// Calls the switcher once the per-CPU block says that the PVCS is at an address where no page is
/// mapped.
///
/// # Safety
/// The contract of `checked_call` must hold.
unsafe fn call_without_pvcs(entry: u64) -> *mut PtRegs {
    // SAFETY: the block is a static, and this CPU's; the place of one of its fields is within it.
    let pvcs = unsafe { &raw mut (*percpu::block(0)).tss_extra.pvcs };
    // SAFETY: the field is within the block, which is this CPU's; the switcher has not been entered
    // yet.
    unsafe { pvcs.write(NOWHERE) };
    // SAFETY: the caller vouches for the contract of `checked_call`.
    unsafe { call_that_may_end(entry) }
}

/// Calls the switcher while LSTAR points to the instruction after the ENDBR64 of the entry.
///
/// # Safety
/// The contract of `checked_call` must hold.
unsafe fn call_with_lstar_after_the_endbr64(entry: u64) -> *mut PtRegs {
    let mut lstar = Msr::new(MsrName::Lstar.address());
    // SAFETY: every CPU with SYSCALL has the MSR; reading it changes nothing.
    let before = unsafe { lstar.read() };
    // SAFETY: where branches are tracked, a SYSCALL that leads there raises #CP; where they are
    // not, the instruction is as good an entry as the ENDBR64 before it.
    unsafe { lstar.write(before + ENDBR64_LEN) };
    // SAFETY: the caller vouches for the contract of `checked_call`.
    let frame = unsafe { call_that_may_end(entry) };
    // SAFETY: this is the value that the MSR had before.
    unsafe { lstar.write(before) };
    frame
}

/// Does what `checked_call` does, or returns what the hook has found, if a fatal event ends the
/// call.
///
/// # Safety
/// The contract of `checked_call` must hold.
unsafe fn call_that_may_end(entry: u64) -> *mut PtRegs {
    CALLS.store(0, Ordering::Relaxed);
    hooks::set_fatal_landing((&raw const hw_kernel_end_call).addr() as u64);
    // SAFETY: the caller vouches for `entry`; what does not return to `checked_call` returns here.
    let frame = unsafe { hw_kernel_ended_call(entry) };
    hooks::set_fatal_landing(0);
    match CALLS.load(Ordering::Relaxed) {
        0 => frame,
        // SAFETY: the records are in a static, and the hook has returned.
        _ => unsafe { &raw mut (*RECORDS.0.get())[0].regs },
    }
}

/// How many exceptions have been raised, and how many of them have gone on as they should.
static RAISED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Raises exceptions of each kind, on stacks that are aligned and that are not.
fn raise_exceptions() {
    for (kind, expected) in [(0, [vector::UD.into(), u64::MAX]), (1, [vector::GP.into(), 0])] {
        for below in [0, 8, 16, 24] {
            // SAFETY: the handler goes on at the landing, which the function sets; it keeps what
            // every function keeps.
            let is_right = unsafe { hw_kernel_raise(hooks::landing(), kind, below) } == 1;
            let [raised, right] = &RAISED;
            raised.fetch_add(1, Ordering::Relaxed);
            right.fetch_add((is_right && hooks::handled() == expected).into(), Ordering::Relaxed);
        }
    }
}

/// Calls the switcher, and raises exceptions before and after that.
///
/// # Safety
/// The contract of `checked_call` must hold.
unsafe fn call_among_exceptions(entry: u64) -> *mut PtRegs {
    raise_exceptions();
    // SAFETY: the caller vouches for `entry`.
    let frame = unsafe { checked_call(entry) };
    raise_exceptions();
    frame
}

/// The host's own code raises exceptions right before it enters a guest, and right after that.
fn goes_to_the_handler(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(38);
    let mut entered = 0;
    for mode in [Mode::Smod, Mode::Umod] {
        let setup = setup(host, &mut rng, mode, PROBE);
        for count in &RAISED {
            count.store(0, Ordering::Relaxed);
        }
        // SAFETY: the call does what `checked_call` does; what it raises besides goes to the
        // handler, which returns to it.
        let outcome = unsafe { host.run_by(&setup, call_among_exceptions) };
        outcome.map_err(|why| format!("{mode:?}: {why:?}"))?;
        let [raised, right] = RAISED.each_ref().map(|count| count.load(Ordering::Relaxed));
        if (raised, right) != (16, 16) {
            let last = hooks::handled();
            return Err(format!("{mode:?}: {right} of {raised} went on; the last: {last:x?}"));
        }
        entered += 1;
    }
    Ok(entered)
}

/// Guests make direct switches while their PVCS is not mapped: the fault has a stack where the
/// guest has put RSP on one of the host's, and is a double fault where it has not.
fn ends_in_the_hook(host: &mut BareMetal<'_>) -> Ended {
    if memory::host_flags(NOWHERE).is_some() {
        return Err(format!("something is mapped at {NOWHERE:#x}"));
    }
    let mut rng = fastrand::Rng::with_seed(30);
    let mut entered = 0;
    for mode in [Mode::Smod, Mode::Umod] {
        for rsp in [place::NOWHERE, Stack::MachineCheck.top(0)] {
            for returns in [0, 1] {
                let what = |why| format!("{mode:?}, RSP {rsp:#x}, {returns} returns: {why}");
                let mut setup = match mode {
                    Mode::Smod => Setup::random(&mut rng, &host.platform(), mode).with(
                        mode,
                        place::ERETU,
                        SYSCALL,
                    ),
                    Mode::Umod => setup(host, &mut rng, mode, SYSCALL),
                };
                setup.regs.rsp = rsp;
                one(host, &setup, returns).map_err(what)?;
                // The CPU still works afterwards.
                let next = self::setup(host, &mut rng, Mode::Umod, SYSCALL).with(
                    Mode::Smod,
                    place::SMOD_ENTRY,
                    PROBE,
                );
                let expected = Expected::to_smod(&next, &host.platform(), place::UMOD_CODE);
                check(host, &next, &expected).map_err(what)?;
                entered += 2;
            }
        }
    }
    Ok(entered)
}

/// SYSCALLs land on the instruction after the ENDBR64 of their entry, where branches are tracked:
/// this is a #CP in ring 0, before anything is executed there. It has a stack where the guest has
/// put RSP on one.
pub(super) fn syscalls_after_the_endbr64(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(33);
    let mut entered = 0;
    let behind = host.cpu().switcher().address(Label::Syscall64) + ENDBR64_LEN;
    for mode in [Mode::Smod, Mode::Umod] {
        for (rsp, event) in [
            (place::NOWHERE, u32::from(vector::DF)),
            (Stack::MachineCheck.top(0), u32::from(vector::CP)),
        ] {
            let mut setup = setup(host, &mut rng, mode, SYSCALL);
            setup.regs.rsp = rsp;
            RETURNS.store(0, Ordering::Relaxed);
            // SAFETY: the call does what `checked_call` does, unless a fatal event ends it: then
            // the hook has been called on the host's root and GS base, and the runtime clears the
            // block.
            let outcome = unsafe { host.run_by(&setup, call_with_lstar_after_the_endbr64) };
            let outcome = outcome.map_err(|why| format!("{why:?}"))?;
            let calls = CALLS.load(Ordering::Relaxed);
            if calls != 1 {
                return Err(format!("{mode:?}: the hook was called {calls} times: {outcome:x?}"));
            }
            // SAFETY: the records are in a static, and the hook has returned.
            let [Record { regs, .. }, _] = unsafe { RECORDS.0.get().read() };
            let OrigAx { reason, error_code } = regs.orig_ax;
            let is_cp = event == u32::from(vector::CP);
            if reason != event
                || (regs.rip, regs.rsp) != (behind, rsp)
                || is_cp && error_code != events::NO_ENDBRANCH
            {
                return Err(format!("{mode:?}, RSP {rsp:#x}: not a #CP at {behind:#x}: {regs:x?}"));
            }
            let next = self::setup(host, &mut rng, Mode::Umod, SYSCALL).with(
                Mode::Smod,
                place::SMOD_ENTRY,
                PROBE,
            );
            check(host, &next, &Expected::to_smod(&next, &host.platform(), place::UMOD_CODE))?;
            entered += 2;
        }
    }
    Ok(entered)
}

/// Runs one guest with a hook that returns `returns` times.
fn one(host: &mut BareMetal<'_>, setup: &Setup, returns: u64) -> Result<(), String> {
    RETURNS.store(returns, Ordering::Relaxed);
    let host_cr3 = Cr3::read_raw();
    // SAFETY: `call_without_pvcs` does what `checked_call` does, unless a fatal event ends it: then
    // the hook has been called on the host's root and GS base, and the runtime clears the block.
    let outcome = unsafe { host.run_by(setup, call_without_pvcs) };
    let outcome = outcome.map_err(|why| format!("{why:?}"))?;
    let calls = CALLS.load(Ordering::Relaxed);
    if calls != 1 + returns {
        return Err(format!("the hook was called {calls} times: {outcome:x?}"));
    }
    // SAFETY: the records are in a static, and the hook has returned.
    let records = unsafe { RECORDS.0.get().read() };
    let linked = host.cpu().switcher().linked();
    let code = linked.address(Label::EnterGuest)..linked.address(Label::EventStubs);
    let [fault, trap] = records;
    let wrong = |what: &str| Err(format!("{what}: {records:x?}"));
    for record in &records[..calls as usize] {
        let stack = Stack::DoubleFault.guard(0)..Stack::DoubleFault.top(0);
        let root = host_cr3.0.start_address().as_u64();
        if !stack.contains(&record.rsp) {
            return wrong("the hook does not run on the stack of #DF");
        }
        if record.cr3 & !(PAGE - 1) != root || record.gs_base != percpu::block(0).addr() as u64 {
            return wrong("the hook does not run with the host's root and GS base");
        }
    }

    // Everything that the switcher has not touched by the time of the fault is the guest's.
    let kept = |regs: &PtRegs| {
        let PtRegs { rax, rbx, rdx, rsi, rbp, r8, r9, r10, r12, r13, r14, r15, .. } = *regs;
        [rax, rbx, rdx, rsi, rbp, r8, r9, r10, r12, r13, r14, r15]
    };
    if kept(&fault.regs) != kept(&setup.regs) || !code.contains(&fault.regs.rip) {
        return wrong("these are not the registers of a direct switch");
    }
    let is_on_a_stack = setup.regs.rsp != place::NOWHERE;
    let expected: &[u8] = match (setup.mode, is_on_a_stack) {
        (Mode::Smod, true) => &[vector::PF],
        (Mode::Smod, false) => &[vector::DF],
        // The variant decides what RSP is by then.
        (Mode::Umod, _) => &[vector::PF, vector::DF],
    };
    let OrigAx { reason, error_code } = fault.regs.orig_ax;
    if !expected.iter().any(|vector| u32::from(*vector) == reason) {
        return wrong("the event is not the expected one");
    }
    if setup.mode == Mode::Smod && fault.regs.rsp != setup.regs.rsp {
        return wrong("RSP is not the guest's");
    }
    if reason == u32::from(vector::PF) {
        let pvcs = NOWHERE..NOWHERE + Pvcs::LAYOUT.size as u64;
        // The page is not present: the access is a read of ERETU's, or a write.
        let wanted = if setup.mode == Mode::Smod { 0 } else { 2 };
        let address = match outcome.exit {
            Exit::Exception(exception) => exception.detail,
            _ => Detail::None,
        };
        if error_code != wanted || !matches!(address, Detail::Cr2(at) if pvcs.contains(&at)) {
            return wrong("the page fault is not that of the PVCS");
        }
    }
    // After the call there is only a trap.
    if returns != 0 {
        let OrigAx { reason, .. } = trap.regs.orig_ax;
        if reason != u32::from(vector::UD) || trap.regs.rip != linked.address(Label::NoHook) {
            return wrong("the hook returned, but not to a trap");
        }
    }
    Ok(())
}
