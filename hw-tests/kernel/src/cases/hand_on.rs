//! An event that has ended a guest's run is handed on to this host's own handler, which finds what
//! it finds when hardware calls it (spec/hazards.md, row 60).
//!
//! Each handler writes down what it finds, sends the same event once more if it is told to, and
//! writes down whether that one has come before the first was over.

use alloc::format;
use alloc::string::String;
use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

use hw_platform::apic::{COMMAND, COMMAND_NMI, COMMAND_SELF, END_OF_INTERRUPT};
use hw_platform::memory::{self, Frame};
use hw_platform::{gs, smp};
use hw_protocol::Need;
use switcher_runtime::switcher_gen::GateDescriptor;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{RFlags, vector};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{
    DescriptorTablePointer, EnterError, Exit, Guest, HandOnError, HostEvent, HostHandler, Mode,
};
use x86_64::registers::control::Cr3;

use super::second_nmi::{make_one_wait, to};
use crate::bench::{Ended, HostCase};
use crate::case_host::{BareMetal, checked_call};
use crate::idt::IdtCopy;
use crate::programs::PROBE;
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/an_event_is_handed_on_as_hardware_delivers_it",
    shown: "An event that ends a run reaches the host's own handler, as if it had interrupted the host.",
    rows: &[Hazard::HandedOn, Hazard::NmisStayBlocked],
    cpus: 1,
    needs: &[Need::LocalApic],
    run: |bench| handed_on(bench.host()?),
}];

/// The interrupt that is sent.
const VECTOR: u8 = 0x51;

/// What a handler has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
struct Found {
    rsp: u64,
    rflags: u64,
    /// RIP, CS, RFLAGS, RSP and SS.
    frame: [u64; 5],
    root: u64,
    gs_base: u64,
}

/// How many are kept.
const KEPT: usize = 4;

/// What the handlers have found, and do.
#[repr(C)]
struct Handled {
    found: [Found; KEPT],
    /// How many have come.
    count: u64,
    /// How many had come when the first was about to end.
    by_end: u64,
    /// The command by which the next handler sends another event, if it is not 0.
    again: u64,
}

static mut HANDLED: Handled = Handled {
    found: [Found { rsp: 0, rflags: 0, frame: [0; 5], root: 0, gs_base: 0 }; KEPT],
    count: 0,
    by_end: 0,
    again: 0,
};

global_asm!(
    r#"
    .section .entry.text, "ax", @progbits

    // Handlers of the host's own. RSP -> RIP, CS, RFLAGS, RSP, SS.
    .global hw_kernel_handle_interrupt
hw_kernel_handle_interrupt:
    endbr64
    push    rax
    push    rcx
    push    rdx
    pushfq
    mov     ecx, 1
    jmp     0f
    .global hw_kernel_handle_nmi
hw_kernel_handle_nmi:
    endbr64
    push    rax
    push    rcx
    push    rdx
    pushfq
    xor     ecx, ecx
0:  push    rbx
    push    rcx                         // RSP -> rcx, rbx, rflags, rdx, rcx, rax, RIP
    mov     rbx, [rip + {handled}]
    mov     rax, [rbx + {count}]
    and     eax, {kept} - 1
    imul    eax, eax, {size}
    lea     rdx, [rbx + rax]
    lea     rax, [rsp + 48]
    mov     [rdx + {rsp_}], rax
    mov     rax, [rsp + 16]
    mov     [rdx + {rflags}], rax
    .set    slot, 0
    .rept   5
    mov     rax, [rsp + 48 + 8 * slot]
    mov     [rdx + {frame} + 8 * slot], rax
    .set    slot, slot + 1
    .endr
    mov     rax, cr3
    mov     [rdx + {root}], rax
    rdgsbase rax
    mov     [rdx + {gs_base}], rax
    lock inc qword ptr [rbx + {count}]
    xor     eax, eax
    xchg    rax, [rbx + {again}]
    test    eax, eax
    jz      2f
    movabs  rdx, {command}
    mov     dword ptr [rdx], eax
    mov     eax, 10000
1:  pause
    dec     eax
    jnz     1b
    mov     rax, [rbx + {count}]
    mov     [rbx + {by_end}], rax
2:  pop     rcx
    test    ecx, ecx
    jz      3f
    movabs  rdx, {end_of_interrupt}
    mov     dword ptr [rdx], 0
3:  pop     rbx
    popfq
    pop     rdx
    pop     rcx
    pop     rax
    iretq
    .text
"#,
    handled = sym PLACE,
    count = const offset_of!(Handled, count),
    by_end = const offset_of!(Handled, by_end),
    again = const offset_of!(Handled, again),
    kept = const KEPT,
    size = const size_of::<Found>(),
    rsp_ = const offset_of!(Found, rsp),
    rflags = const offset_of!(Found, rflags),
    frame = const offset_of!(Found, frame),
    root = const offset_of!(Found, root),
    gs_base = const offset_of!(Found, gs_base),
    command = const COMMAND,
    end_of_interrupt = const END_OF_INTERRUPT,
);

unsafe extern "C" {
    static hw_kernel_handle_interrupt: u8;
    static hw_kernel_handle_nmi: u8;
}

/// The address of [`HANDLED`].
#[unsafe(link_section = ".entry.data")]
static PLACE: AtomicU64 = AtomicU64::new(0);

/// Starts anew: the next handler sends another event by this command, if it is not 0.
pub(super) fn begin(again: u32) {
    let place = &raw mut HANDLED;
    PLACE.store(place.addr() as u64, Ordering::Release);
    let anew =
        Handled { found: [Found::default(); KEPT], count: 0, by_end: 0, again: again.into() };
    // SAFETY: the handlers alone use it, and none runs: nothing was sent.
    unsafe { place.write_volatile(anew) }
}

/// What the handlers have found since: how many there were, how many by the end of the first if
/// that has sent another, and what it has found.
fn found() -> (u64, u64, [Found; KEPT]) {
    let place = &raw const HANDLED;
    // SAFETY: as in `begin`.
    let Handled { found, count, by_end, .. } = unsafe { place.read_volatile() };
    (count, by_end, found)
}

/// A copy of this host's IDT, with the handlers above.
pub(super) struct HostIdt {
    _page: Frame,
    former: DescriptorTablePointer,
}

impl HostIdt {
    pub(super) fn load() -> Result<Self, String> {
        let former = DescriptorTablePointer::idtr();
        let mut page = Frame::new().map_err(|why| format!("an IDT: {why}"))?;
        let own = [
            (VECTOR, &raw const hw_kernel_handle_interrupt),
            (vector::NMI, &raw const hw_kernel_handle_nmi),
        ];
        for number in 0..=u8::MAX {
            let at = size_of::<GateDescriptor>() * usize::from(number);
            let gate =
                core::ptr::with_exposed_provenance::<GateDescriptor>(former.base() as usize + at);
            // SAFETY: this kernel's IDT has 256 gates, which nobody changes now.
            let gate = unsafe { gate.read() };
            let handler = own.iter().find(|(vector, _)| *vector == number);
            let gate = handler.map_or(gate, |(_, handler)| to(gate, *handler));
            page.write(at, &gate.low.to_le_bytes());
            page.write(at + 8, &gate.high.to_le_bytes());
        }
        let pointer = DescriptorTablePointer::new(page.address(), 4095, memory::paging());
        let pointer = pointer.map_err(|why| format!("an IDT: {why}"))?;
        // SAFETY: the gates are this kernel's but for two, whose handlers take what comes.
        unsafe { pointer.load_idt() };
        Ok(Self { _page: page, former })
    }

    pub(super) fn restore(self) {
        // SAFETY: this kernel has loaded it before.
        unsafe { self.former.load_idt() };
    }
}

/// Sends an interrupt to this CPU, which waits while interrupts are off.
pub(super) fn send_interrupt() {
    let place = core::ptr::with_exposed_provenance_mut::<u32>(COMMAND as usize);
    // SAFETY: the APIC's register is mapped there, and reaches no memory.
    unsafe { place.write_volatile(COMMAND_SELF | u32::from(VECTOR)) }
}

/// Lets an interrupt that waits come, as hardware delivers it.
fn let_interrupts_come() {
    // SAFETY: every gate of this host's leads to a handler.
    unsafe { asm!("sti", "nop", "cli") };
}

fn stack_segment() -> u64 {
    let ss: u64;
    // SAFETY: the instruction only stores the selector.
    unsafe { asm!("mov {0:e}, ss", out(reg) ss, options(nomem, nostack, preserves_flags)) };
    ss
}

fn interrupts_are_off() -> bool {
    let flags: u64;
    // SAFETY: the instructions only read RFLAGS.
    unsafe { asm!("pushfq", "pop {0}", out(reg) flags, options(preserves_flags)) };
    flags & RFlags::IF.bits() == 0
}

/// What is compared of a handler's finds: all but addresses, and the flags that no CPU defines.
fn compare(got: &Found, by_hardware: &Found, ss: u64) -> Result<(), String> {
    const STATUS: u64 = 0x8D5;
    let [_, cs, rflags, rsp, frame_ss] = got.frame;
    let [_, hardware_cs, hardware_rflags, ..] = by_hardware.frame;
    let of = |what: &str, got: u64, wanted: u64| match got == wanted {
        true => Ok(()),
        false => Err(format!("{what} is {got:#x}, not {wanted:#x}")),
    };
    of("CS", cs, hardware_cs)?;
    of("RFLAGS in the frame", rflags & !STATUS, hardware_rflags & !STATUS)?;
    of("SS", frame_ss, ss)?;
    of("RFLAGS", got.rflags & !STATUS, by_hardware.rflags & !STATUS)?;
    of("CR3", got.root, Cr3::read_raw().0.start_address().as_u64() | u64::from(Cr3::read_raw().1))?;
    of("GS base", got.gs_base, gs::base())?;
    // A stack of the IST has one top; otherwise it is the interrupted stack, aligned.
    let is_on_ist = by_hardware.rsp != (by_hardware.frame[3] & !15) - 40;
    of("RSP", got.rsp, if is_on_ist { by_hardware.rsp } else { (rsp & !15) - 40 })
}

/// A guest that ends by an event which waits already.
fn guest(host: &mut BareMetal<'_>) -> Guest {
    let mut rng = fastrand::Rng::with_seed(60);
    // It is entered by IRETQ, because RCX is not RIP.
    let setup = setup(host, &mut rng, Mode::Umod, PROBE);
    host.prepare(&setup)
}

/// Runs a guest until an event that waits, and hands that on.
fn handed_on(host: &mut BareMetal<'_>) -> Ended {
    smp::aim_nmis(0);
    let idt = HostIdt::load()?;
    let ended = interrupts(host).and_then(|runs| Ok(runs + nmis(host)?));
    idt.restore();
    ended
}

/// Enters a guest with an interrupt waiting.
fn interrupted(host: &mut BareMetal<'_>) -> Result<HostEvent, String> {
    let mut one = guest(host);
    send_interrupt();
    let exit = host.cpu_mut().enter(&mut one).map_err(|why| format!("{why}"))?;
    match (exit, exit.host_event()) {
        (Exit::Interrupt { vector: VECTOR }, Some(event)) => Ok(event),
        (other, _) => Err(format!("the guest's run has ended by {other:x?}, not by an interrupt")),
    }
}

fn interrupts(host: &mut BareMetal<'_>) -> Ended {
    let again = COMMAND_SELF | u32::from(VECTOR);
    begin(0);
    send_interrupt();
    let_interrupts_come();
    let (1, _, [by_hardware, ..]) = found() else {
        return Err(format!("hardware has delivered {} interrupts, not 1", found().0));
    };
    // Behind STI, the handler returns to interrupts on.
    let event = interrupted(host)?;
    begin(again);
    let ss = stack_segment();
    // SAFETY: this host's IDT is loaded, whose handler keeps all registers.
    unsafe { host.cpu_mut().hand_on(event, HostHandler::Gate) }.map_err(|why| format!("{why}"))?;
    let (count, by_end, [first, second, ..]) = found();
    if (count, by_end) != (2, 1) || !interrupts_are_off() {
        return Err(format!(
            "{count} interrupts have come, {by_end} by the end of the first, where 2 and 1 were due"
        ));
    }
    for got in [first, second] {
        compare(&got, &by_hardware, ss).map_err(|why| format!("an interrupt: {why}"))?;
    }
    // What is wrong is noticed: without IF, the second one waits, and the frame says so.
    let event = interrupted(host)?;
    begin(again);
    let entry = host.cpu().switcher().address(Label::HandOn);
    // SAFETY: the address is that of such a function.
    let hand_on: extern "C" fn(*const u8, u64, u64) = unsafe { core::mem::transmute(entry) };
    hand_on(&raw const hw_kernel_handle_interrupt, 0, by_hardware.frame[2] & !RFlags::IF.bits());
    let (count, _, [wrong, ..]) = found();
    if count != 1 || compare(&wrong, &by_hardware, ss).is_ok() {
        return Err(format!("IF is clear in the frame, and {count} interrupts have come"));
    }
    let_interrupts_come();
    // And what has no handler is refused.
    let mut refused = |event, handler| {
        // SAFETY: nothing is called.
        unsafe { host.cpu_mut().hand_on(event, handler) }
    };
    let own = HostEvent::Interrupt { vector: vector::SYSTEM_CALL };
    let none = HandOnError::NoInterrupt { vector: vector::SYSTEM_CALL };
    let nowhere = HandOnError::Address { what: "handler", vector: VECTOR, address: 1 << 63 };
    for (event, handler, wanted) in [
        (own, HostHandler::Gate, none),
        (event, HostHandler::At(1 << 63), nowhere),
        (HostEvent::Nmi, HostHandler::Gate, HandOnError::NmisNotBlocked),
    ] {
        let said = refused(event, handler);
        if said != Err(wanted) {
            return Err(format!("{event:?} to {handler:x?}: {said:?}"));
        }
    }
    Ok(3)
}

/// Enters a guest with an NMI waiting for the IRETQ that does so.
///
/// # Safety
/// The contract of `checked_call` must hold, and there is an [`IdtCopy`].
unsafe fn call_with_an_nmi(entry: u64, (): &mut ()) -> *mut PtRegs {
    // SAFETY: the caller says that there is a copy, and the guest is entered by IRETQ.
    unsafe { make_one_wait() };
    // SAFETY: the caller vouches for it.
    unsafe { checked_call(entry) }
}

fn nmis(host: &mut BareMetal<'_>) -> Ended {
    begin(0);
    smp::send_nmi(0);
    let (1, _, [by_hardware, ..]) = found() else {
        return Err(format!("hardware has delivered {} NMIs, not 1", found().0));
    };
    let copy = IdtCopy::new(host, |_| ())?;
    let ended = handed_on_nmis(host, &by_hardware);
    copy.free(host)?;
    ended
}

fn handed_on_nmis(host: &mut BareMetal<'_>, by_hardware: &Found) -> Ended {
    let here = &raw const hw_kernel_handle_nmi;
    for handler in [HostHandler::Gate, HostHandler::At(here.addr() as u64)] {
        let mut one = guest(host);
        begin(0);
        // SAFETY: the call does what `checked_call` does; there is a copy.
        let exit = unsafe { host.cpu_mut().enter_with(&mut one, call_with_an_nmi, &mut ()) };
        if exit != Ok(Exit::Nmi) {
            return Err(format!("the guest's run has ended by {exit:x?}, not by an NMI"));
        }
        // Another one waits, and nothing comes before it.
        smp::send_nmi(0);
        let entered = host.cpu_mut().enter(&mut one);
        let early = HostEvent::Interrupt { vector: VECTOR };
        // SAFETY: nothing is called.
        let interrupt = unsafe { host.cpu_mut().hand_on(early, HostHandler::Gate) };
        if entered != Err(EnterError::NmisBlocked) || interrupt != Err(HandOnError::NmiFirst) {
            return Err(format!("before the NMI: {entered:?}, {interrupt:?}"));
        }
        if found().0 != 0 {
            return Err("an NMI has come before the first one was handed on".into());
        }
        begin(COMMAND_NMI);
        let ss = stack_segment();
        // SAFETY: this host's IDT is loaded, whose handler keeps all registers.
        unsafe { host.cpu_mut().hand_on(HostEvent::Nmi, handler) }
            .map_err(|why| format!("{why}"))?;
        let (count, by_end, [first, second, ..]) = found();
        // Two were sent, and CPUs keep one of them waiting.
        if (count, by_end) != (2, 1) || host.cpu().are_nmis_blocked() {
            return Err(format!(
                "{handler:x?}: {count} NMIs have come, {by_end} by the end of the first, where 2 and 1 were due"
            ));
        }
        compare(&second, by_hardware, ss).map_err(|why| format!("the next NMI: {why}"))?;
        let wanted = match handler {
            HostHandler::Gate => *by_hardware,
            // It begins on this stack.
            HostHandler::At(_) => {
                let [rip, cs, rflags, _, ss] = by_hardware.frame;
                let rsp = first.frame[3];
                let frame = [rip, cs, rflags, rsp, ss];
                Found { rsp: (rsp & !15) - 40, frame, ..*by_hardware }
            }
        };
        compare(&first, &wanted, ss).map_err(|why| format!("{handler:x?}: {why}"))?;
    }
    Ok(2)
}
