//! A second NMI is sent while the first one is handled: it is blocked until then, and arrives
//! (spec/hazards.md, rows 11 and 39: an NMI's last instruction ends the blocking in ring 0, and the
//! host after an exit).
//!
//! A breakpoint sends the NMIs, at each instruction in turn. Its handler must not return by IRETQ,
//! which would end the blocking in the switcher's place, and it writes to no stack but its own.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc::string::String;
use hw_cases::Expected;
use hw_platform::apic::{COMMAND, COMMAND_NMI};
use hw_platform::memory::{Flags, PAGE, flags_of};
use hw_platform::percpu::Stack;
use hw_platform::smp;
use hw_platform::{cpu, events, hooks};
use hw_protocol::Need;
use switcher_runtime::switcher_gen::GateDescriptor;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{dr7, vector};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{Exit, Mode};

use crate::bench::{Ended, HostCase};
use crate::boundaries::{Interruption, boundaries};
use crate::case_host::{BareMetal, checked_call};
use crate::idt::{IdtCopy, mapping, set_breakpoint};
use crate::paths::Path;
use crate::programs::PROBE;
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/a_second_nmi_arrives_when_the_first_one_is_over",
    shown: "An NMI that is sent while another one is handled arrives when that is over.",
    rows: &[Hazard::NmisStayBlocked, Hazard::EarlyNmi],
    cpus: 1,
    needs: &[Need::LocalApic, Need::Breakpoints],
    run: |bench| {
        let (host, paths) = bench.host_and_paths()?;
        arrives(host, paths)
    },
}];

global_asm!(
    r#"
    .section .entry.text, "ax", @progbits

    // The handler of #DB in ring 0, on a stack of its own, under any root: RSP -> RIP, CS, RFLAGS,
    // RSP, SS. It sends an NMI to this CPU if the interrupted RSP is where the test wants it.
    .global hw_kernel_send_second
hw_kernel_send_second:
    endbr64
    push    rax
    mov     eax, {no_breakpoint}
    mov     dr7, rax
    mov     rax, [rsp + 32]
    sub     rax, [rip + {from}]
    cmp     rax, [rip + {len}]
    jae     0f
    lock inc qword ptr [rip + {sent}]
    movabs  rax, {command}
    mov     dword ptr [rax], {nmi}
    jmp     0f

    // The handler of an NMI in the host. It does not execute IRET, so NMIs stay blocked.
    .global hw_kernel_block_nmis
hw_kernel_block_nmis:
    endbr64
    push    rax
    lock inc qword ptr [rip + {blocked}]

    // It returns without an IRETQ, to no ENDBR64. QEMU's interpreter leaves a null SS on any stack
    // of the IST.
0:  mov     ss, [rsp + 40]
    mov     rax, [rsp + 32]
    mov     [rip + hw_kernel_resume_rsp], rax
    mov     rax, [rsp + 8]
    mov     [rip + hw_kernel_resume_rip], rax
    pop     rax
    add     rsp, 16
    popfq
    mov     rsp, [rip + hw_kernel_resume_rsp]
    notrack jmp qword ptr [rip + hw_kernel_resume_rip]

    .section .entry.data, "aw", @progbits
    .balign 8
hw_kernel_resume_rsp: .quad 0
hw_kernel_resume_rip: .quad 0
    .text
"#,
    no_breakpoint = const dr7::DISABLED,
    from = sym FROM,
    len = sym LEN,
    sent = sym SENT,
    blocked = sym BLOCKED,
    command = const COMMAND,
    nmi = const COMMAND_NMI,
);

unsafe extern "C" {
    static hw_kernel_send_second: u8;
    static hw_kernel_block_nmis: u8;
}

/// The lowest RSP with which the breakpoint sends an NMI.
#[unsafe(link_section = ".entry.data")]
static FROM: AtomicU64 = AtomicU64::new(0);
#[unsafe(link_section = ".entry.data")]
static LEN: AtomicU64 = AtomicU64::new(0);
/// The number of NMIs that the breakpoint has sent.
#[unsafe(link_section = ".entry.data")]
static SENT: AtomicU64 = AtomicU64::new(0);
/// The number of NMIs that have come to the handler that does not end the blocking.
#[unsafe(link_section = ".entry.data")]
static BLOCKED: AtomicU64 = AtomicU64::new(0);
/// Whether an NMI had not arrived when the switcher returned, or too many had.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether a second NMI has arrived before the host has ended the blocking.
static EARLY: AtomicBool = AtomicBool::new(false);

/// Makes the breakpoint send an NMI wherever RSP is, or only on the NMIs' own stack, which is
/// during an NMI.
fn send_where(on_the_stack_of_nmis: bool) {
    let stack = Stack::Nmi.guard(0);
    let (from, len) =
        if on_the_stack_of_nmis { (stack, Stack::Nmi.top(0) - stack) } else { (0, u64::MAX) };
    FROM.store(from, Ordering::Relaxed);
    LEN.store(len, Ordering::Relaxed);
}

/// Waits until as many NMIs have arrived as are wanted. Nothing here ends the blocking.
fn wait_for(wanted: impl Fn() -> u64, arrived: impl Fn() -> u64) {
    const PATIENCE: u64 = 100_000_000;
    if !(0..PATIENCE).any(|_| arrived() >= wanted()) || arrived() != wanted() {
        LOST.store(true, Ordering::Release);
    }
}

/// How many NMIs the breakpoint has sent, if all of them and all second ones have arrived.
fn count() -> Result<u64, String> {
    if LOST.load(Ordering::Acquire) {
        return Err("an NMI was sent, and had not arrived when the switcher returned".into());
    }
    if EARLY.load(Ordering::Acquire) {
        return Err("an NMI came while the one before it was on its way to the host".into());
    }
    Ok(SENT.load(Ordering::Acquire))
}

/// The breakpoint before an instruction of the switcher sends the first NMI, which arrives in the
/// breakpoint's own handler, with the switcher's root and GS base; and the hook of that NMI sends
/// the second.
///
/// # Safety
/// The contract of `checked_call` must hold, and there is an [`IdtCopy`] whose gate of #DB leads to
/// [`hw_kernel_send_second`].
unsafe fn call_with_two(entry: u64) -> *mut PtRegs {
    let (sent, hooked) = (SENT.load(Ordering::Acquire), hooks::hooked_nmis());
    // SAFETY: the caller says that there is a copy.
    unsafe { IdtCopy::load() };
    hooks::set_second(COMMAND);
    set_breakpoint(true);
    // SAFETY: the caller vouches for `entry`. The switcher resumes after what happens at the
    // breakpoint.
    let frame = unsafe { checked_call(entry) };
    set_breakpoint(false);
    wait_for(|| hooked + 2 * (SENT.load(Ordering::Acquire) - sent), hooks::hooked_nmis);
    hooks::set_second(0);
    frame
}

/// The first NMI comes in the host, just before the call, and the breakpoint sends the second while
/// the first is handled.
///
/// # Safety
/// The contract of [`call_with_two`] must hold.
unsafe fn call_after_one(entry: u64) -> *mut PtRegs {
    let (sent, hooked) = (SENT.load(Ordering::Acquire), hooks::hooked_nmis());
    // SAFETY: the caller says that there is a copy.
    unsafe { IdtCopy::load() };
    set_breakpoint(true);
    smp::send_nmi(0);
    wait_for(|| hooked + 1 + SENT.load(Ordering::Acquire) - sent, hooks::hooked_nmis);
    set_breakpoint(false);
    // SAFETY: the caller vouches for `entry`.
    unsafe { checked_call(entry) }
}

/// The first NMI is blocked until the IRETQ that enters the guest, and is the guest's exit; the
/// breakpoint sends the second on the way out. It is still blocked in the host, which executes the
/// IRET that ends this.
///
/// # Safety
/// The contract of [`call_with_two`] must hold, and the guest is entered by IRETQ.
unsafe fn call_with_one_pending(entry: u64) -> *mut PtRegs {
    let (sent, hooked) = (SENT.load(Ordering::Acquire), hooks::hooked_nmis());
    // SAFETY: the caller says that there is a copy, and that the guest is entered by IRETQ.
    unsafe { make_one_wait() };
    set_breakpoint(true);
    // SAFETY: the caller vouches for `entry`.
    let frame = unsafe { checked_call(entry) };
    set_breakpoint(false);
    // All instructions up to here have had their turn: it would have come.
    if hooks::hooked_nmis() != hooked {
        EARLY.store(true, Ordering::Release);
    }
    // SAFETY: the switcher's IDT is loaded, whose hook takes the NMI.
    unsafe { cpu::end_nmi_blocking() };
    wait_for(|| hooked + SENT.load(Ordering::Acquire) - sent, hooks::hooked_nmis);
    frame
}

/// Sends an NMI that waits for the next IRET.
///
/// # Safety
/// There is an [`IdtCopy`], and this is in a call of `enter_with`, whose guest is entered by IRETQ.
pub(super) unsafe fn make_one_wait() {
    let blocked = BLOCKED.load(Ordering::Acquire);
    // SAFETY: the caller says that there is a copy.
    let gate = unsafe { IdtCopy::gate(vector::NMI) };
    // SAFETY: the handler is for this one NMI.
    unsafe { IdtCopy::set_gate(vector::NMI, to(gate, &raw const hw_kernel_block_nmis)) };
    // SAFETY: the caller says that there is a copy, and this is in a call of `enter_with`.
    unsafe { IdtCopy::load() };
    smp::send_nmi(0);
    wait_for(|| blocked + 1, || BLOCKED.load(Ordering::Acquire));
    // SAFETY: this is the gate that the copy was made with.
    unsafe { IdtCopy::set_gate(vector::NMI, gate) };
    smp::send_nmi(0);
}

/// The gate with another handler.
pub(super) fn to(gate: GateDescriptor, handler: *const u8) -> GateDescriptor {
    let address = handler.addr() as u64;
    let kept = gate.low & 0x0000_FFFF_FFFF_0000;
    let low = kept | address & 0xFFFF | (address >> 16 & 0xFFFF) << 48;
    GateDescriptor { low, high: address >> 32 }
}

/// Runs the test in all ways. Returns the number of second NMIs.
fn arrives(host: &mut BareMetal<'_>, paths: &mut [Path]) -> Ended {
    smp::aim_nmis(0);
    let copy = IdtCopy::new(host, |gates| {
        let gate = &mut gates[usize::from(vector::DB)];
        *gate = to(*gate, &raw const hw_kernel_send_second);
    })?;
    // The breakpoint's handler runs under any root, so all roots map it.
    let stubs = events::mappings().into_iter().flat_map(|(region, rights)| {
        let pages = (region.start..region.end).step_by(PAGE as usize);
        pages.map(move |page| (page, flags_of(rights)))
    });
    let pages = stubs.chain([(COMMAND & !(PAGE - 1), Flags::WRITE)]);
    for (page, flags) in pages.clone() {
        host.map_in_both(page, Some(flags)).map_err(mapping)?;
    }
    cpu::set_notrack(true);
    let ended = each(host, paths);
    cpu::set_notrack(false);
    for (page, _) in pages {
        host.map_in_both(page, None).map_err(mapping)?;
    }
    copy.free(host)?;
    ended
}

/// Runs the test in each of the three ways.
fn each(host: &mut BareMetal<'_>, paths: &mut [Path]) -> Ended {
    let mut seconds = 0;
    send_where(false);
    let two = Interruption {
        name: "a second NMI",
        call: call_with_two,
        count,
        is_breakpoint: false,
        may_leave_ss: false,
    };
    for path in paths {
        seconds += boundaries(host, path, &two)?;
    }

    send_where(true);
    let mut rng = fastrand::Rng::with_seed(11);
    // The guest is entered by IRETQ, because RCX is not RIP.
    let setup = setup(host, &mut rng, Mode::Umod, PROBE);
    let exits = [Expected::UD, Exit::Nmi].map(|exit| Expected::unchanged(&setup, exit));
    let [in_host, in_guest] = exits;
    use Label::{EventIstFromGuest, EventNmi, InterruptionHook};
    let by: &[_] = &[(EventNmi, 1), (InterruptionHook, 1)];
    let in_host = Path::of_event("an NMI in the host", setup.clone(), in_host, by);
    let by: &[_] = &[(EventNmi, 1), (EventIstFromGuest, 1)];
    let in_guest = Path::of_event("an NMI in the guest", setup, in_guest, by);
    // It executes no IRETQ.
    let in_guest = Path { executes: (in_guest.executes.0, 0), least: 15, ..in_guest };
    let calls = [call_after_one as unsafe fn(u64) -> *mut PtRegs, call_with_one_pending];
    for (path, call) in [in_host, in_guest].iter_mut().zip(calls) {
        seconds += boundaries(host, path, &Interruption { call, ..two })?;
    }
    Ok(seconds)
}
