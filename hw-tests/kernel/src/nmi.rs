//! NMIs at every instruction of the switcher, and all the time while it switches (spec/hazards.md, rows
//! 8 to 11).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw_cases::{Expected, Setup, World, place};
use hw_kernel::memory::{Frame, MapError};
use hw_kernel::{events, smp};
use switcher_runtime::switcher_gen::arch::{RFlags, Vendor, vector};
use switcher_runtime::switcher_gen::asm::Label;
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{Exit, Mode};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;

use crate::host::{Ended, PROBE, SYSCALL, setup};
use crate::world::{BareMetal, checked_call};

/// Where the breakpoint is.
static BREAKPOINT: AtomicU64 = AtomicU64::new(0);
/// The IDT whose gate for #DB is that for NMIs.
static IDT: AtomicU64 = AtomicU64::new(0);

/// The call that `enter_with` leaves to the host, with an instruction breakpoint in the switcher. Its
/// #DB takes the entry and the stack of an NMI; the hook sets RF, so that the instruction is executed
/// then, and is met again if the path comes by again.
///
/// # Safety
/// As for `checked_call`. Both roots map the IDT at [`IDT`].
unsafe fn call_with_breakpoint(entry: u64) -> *mut PtRegs {
    /// DR7: breakpoint 0, on execution. And nothing.
    const ENABLED: u64 = 1 << 10 | 1;
    const DISABLED: u64 = 1 << 10;
    let pointer =
        DescriptorTablePointer { limit: 4095, base: VirtAddr::new(IDT.load(Ordering::Relaxed)) };
    // SAFETY: but for #DB, whose gate is another one of it, this is the switcher's own table, which
    // is loaded here. The runtime loads the host's when the call has returned.
    unsafe { lidt(&pointer) };
    let at = BREAKPOINT.load(Ordering::Relaxed);
    events::set_resuming(true);
    // SAFETY: the breakpoint is in the switcher, which comes back from what happens there.
    unsafe { asm!("mov dr0, {}", "mov dr7, {}", in(reg) at, in(reg) ENABLED) };
    // SAFETY: as the caller says.
    let frame = unsafe { checked_call(entry) };
    // SAFETY: no breakpoint from here on.
    unsafe { asm!("mov dr7, {}", in(reg) DISABLED) };
    events::set_resuming(false);
    frame
}

/// A way through the switcher, from the host's call to its return.
struct Path {
    name: &'static str,
    setup: Setup,
    /// What may come of it.
    expected: [Expected; 2],
    /// Where it comes by, and how often at least.
    by: &'static [(Label, u64)],
    /// How many SYSRETQs it executes at least: each variant has its own.
    sysretqs: u64,
}

impl Path {
    fn new(
        name: &'static str,
        setup: Setup,
        expected: Expected,
        by: &'static [(Label, u64)],
        sysretqs: u64,
    ) -> Self {
        Self { name, setup, expected: [expected.clone(), expected], by, sysretqs }
    }
}

/// Every path that there is without a fault of the switcher's.
fn paths(world: &BareMetal<'_>) -> [Path; 7] {
    /// What the stub for 32-bit SYSCALL answers.
    const ENOSYS: u64 = -38_i32 as u32 as u64;

    let platform = world.platform();
    let mut rng = fastrand::Rng::with_seed(8);
    let fixed = RFlags::GUEST_FIXED.bits();

    let to_smod =
        setup(world, &mut rng, Mode::Umod, SYSCALL).with(Mode::Smod, place::SMOD_ENTRY, PROBE);
    let in_smod = Expected::to_smod(&to_smod, &platform, place::UMOD_CODE);

    let mut eretu = || {
        let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
            .with(Mode::Smod, place::ERETU, SYSCALL)
            .with(Mode::Umod, place::UMOD_CODE, PROBE);
        setup.pvcs.eflags = fixed as u32;
        setup
    };
    let by_iretq = eretu();
    let mut by_sysretq = eretu();
    (by_sysretq.pvcs.rcx, by_sysretq.pvcs.r11) = (by_sysretq.pvcs.rip, fixed);
    let umod_by_iretq = Expected::to_umod(&by_iretq, &platform);
    let umod_by_sysretq = Expected::to_umod(&by_sysretq, &platform);

    let hypercall = setup(world, &mut rng, Mode::Smod, SYSCALL);
    let to_host = Expected::syscall_exit(&hypercall, place::UMOD_CODE);

    let mut entered = setup(world, &mut rng, Mode::Umod, PROBE);
    entered.regs.eflags = fixed;
    (entered.regs.rcx, entered.regs.r11) = (entered.regs.rip, fixed);
    let probed = Expected::unchanged(&entered, Expected::UD);

    let mut refused = setup(world, &mut rng, Mode::Umod, PROBE);
    refused.regs.rip = 1 << 63;
    let faulted = Expected::unchanged(&refused, Expected::general_protection(0));

    let mut compat = Setup::random(&mut rng, &platform, Mode::Umod).with(
        Mode::Umod,
        place::TEXT32,
        &[SYSCALL, PROBE].concat(),
    );
    let regs = &mut compat.regs;
    (regs.cs, regs.rip) = (platform.selectors.user32_cs().into(), place::TEXT32);
    for register in [
        &mut regs.rax,
        &mut regs.rbx,
        &mut regs.rcx,
        &mut regs.rdx,
        &mut regs.rsi,
        &mut regs.rdi,
        &mut regs.rbp,
        &mut regs.rsp,
    ] {
        *register &= u64::from(u32::MAX);
    }
    let shut = Expected::unchanged(&compat, Expected::UD);
    let mut answered = shut.clone();
    answered.regs.rax = ENOSYS;
    answered.regs.rip += SYSCALL.len() as u64;
    answered.regs.rcx = answered.regs.rip;
    answered.regs.r11 = answered.regs.eflags;
    // Intel has no SYSCALL in 32-bit mode; QEMU's interpreter has it under either name.
    let shut = if platform.vendor == Vendor::Intel { shut } else { answered.clone() };

    use Label::{EnterGuest, ExitSyscall, Iretq, ReturnFromGuest, Syscall64};
    [
        Path::new(
            "umod's SYSCALL",
            to_smod,
            in_smod,
            &[(EnterGuest, 1), (Syscall64, 1), (ReturnFromGuest, 1)],
            1,
        ),
        Path::new("ERETU by IRETQ", by_iretq, umod_by_iretq, &[(Syscall64, 1), (Iretq, 2)], 0),
        Path::new("ERETU by SYSRETQ", by_sysretq, umod_by_sysretq, &[(Syscall64, 1)], 1),
        Path::new("a hypercall", hypercall, to_host, &[(Syscall64, 1), (ExitSyscall, 1)], 0),
        Path::new("an entry by SYSRETQ", entered, probed, &[(ReturnFromGuest, 1)], 1),
        Path::new("an entry that IRETQ refuses", refused, faulted, &[(Iretq, 1)], 0),
        Path {
            name: "a 32-bit SYSCALL",
            setup: compat,
            expected: [shut, answered],
            by: &[(EnterGuest, 1), (ReturnFromGuest, 1)],
            sysretqs: 0,
        },
    ]
}

/// In front of every instruction of every path, each time that the path comes by it: an NMI, as far
/// as the switcher can tell. What becomes of the guest and of the host is what does without.
pub(crate) fn at_every_boundary(world: &mut BareMetal<'_>) -> Ended {
    let mapping = |why: MapError| format!("the IDT's page: {why}");
    let linked = world.cpu().switcher().linked();
    let mut gates = linked.idt();
    gates[usize::from(vector::DB)] = gates[usize::from(vector::NMI)];
    let mut page = Frame::new().map_err(|why| mapping(why.into()))?;
    for (index, gate) in gates.iter().enumerate() {
        page.write(16 * index, &gate.low.to_le_bytes());
        page.write(16 * index + 8, &gate.high.to_le_bytes());
    }
    IDT.store(page.address(), Ordering::Relaxed);
    world.map_in_both(page.address(), true).map_err(mapping)?;
    let ended = paths(world).iter().map(|path| boundaries(world, path)).sum();
    world.map_in_both(page.address(), false).map_err(mapping)?;
    ended
}

/// The same for one path; the result is how many NMIs there have been.
fn boundaries(world: &mut BareMetal<'_>, path: &Path) -> Ended {
    const SYSRETQ: &[u8] = &[0x48, 0x0F, 0x07];
    /// No entry and exit together have fewer instructions.
    const LEAST: u64 = 80;
    let switcher = world.cpu().switcher();
    let base = switcher.base();
    let stubs = switcher.address(Label::EventStubs);
    // All code that does something, and the stubs of the two exceptions that end these guests.
    let stub = |vector| {
        let at = base + u64::from(switcher.image().gate(vector).offset);
        at..at + 8
    };
    let addresses = (base..stubs).chain(stub(vector::UD)).chain(stub(vector::GP));
    let by = path.by.iter().map(|(label, times)| (switcher.address(*label), *times));
    let by: Vec<_> = by.collect();
    let code = switcher.linked().bytes().windows(SYSRETQ.len());
    let sysretq_at: Vec<_> =
        (base..).zip(code).filter_map(|(at, code)| (code == SYSRETQ).then_some(at)).collect();

    // Without any, first.
    let same = |world: &mut BareMetal<'_>, at: Option<u64>| {
        let outcome = match at {
            None => world.run(&path.setup),
            // SAFETY: `call_with_breakpoint` does what `checked_call` does; the IDT is mapped.
            Some(_) => unsafe { world.run_by(&path.setup, call_with_breakpoint) },
        };
        let outcome = outcome.map_err(|why| format!("{}: {why:?}", path.name))?;
        let [expected, other] = &path.expected;
        let compared = expected.compare(&path.setup, &outcome);
        compared.or_else(|_| other.compare(&path.setup, &outcome)).map_err(|why| {
            format!("{}, an NMI at {:#x}: {}", path.name, at.unwrap_or_default(), why.0)
        })
    };
    same(world, None)?;

    let mut nmis = 0;
    let mut found = 0;
    let mut sysretqs = 0;
    for at in addresses {
        BREAKPOINT.store(at, Ordering::Relaxed);
        let before = events::hooked_nmis();
        same(world, Some(at))?;
        let here = events::hooked_nmis() - before;
        if here != 0 && events::last_interrupted() != at {
            let got = events::last_interrupted();
            return Err(format!("{}: the hook saw {got:#x}, not {at:#x}", path.name));
        }
        if let Some((_, least)) = by.iter().find(|(label, _)| *label == at) {
            if here < *least {
                return Err(format!("{}: only {here} NMIs at {at:#x}", path.name));
            }
            found += 1;
        }
        nmis += here;
        sysretqs += if sysretq_at.contains(&at) { here } else { 0 };
    }
    if sysretqs < path.sysretqs {
        return Err(format!("{}: only {sysretqs} NMIs at a SYSRETQ", path.name));
    }
    if nmis < LEAST {
        return Err(format!("{}: only {nmis} NMIs", path.name));
    }
    if found != by.len() {
        return Err(format!("{}: {found} of {} places are in the code", path.name, by.len()));
    }
    Ok(nmis)
}

/// NMIs from another CPU, one as soon as the last has been handled, during direct switches: each of
/// them arrives, and nothing of the guest changes.
pub(crate) fn flood(world: &mut BareMetal<'static>) -> Ended {
    /// Round trips, two switches each, between two exits for another reason than an NMI.
    const ROUNDS: u64 = 50_000;
    const ENTRIES: u64 = 10;
    /// How long the sender looks for what it has sent.
    const PATIENCE: u64 = 2_000_000_000;
    /// And how long it then waits: an emulator that runs the CPUs in turn would otherwise never let
    /// the guest get from one NMI to the next instruction.
    const PAUSE: u64 = 20_000;
    /// 1: SYSCALL; DEC RBX; JNZ 1b; UD2.
    const LOOP: &[u8] = &[0x0F, 0x05, 0x48, 0xFF, 0xCB, 0x75, 0xF9, 0x0F, 0x0B];

    static STOP: AtomicBool = AtomicBool::new(false);
    static SENT: AtomicU64 = AtomicU64::new(0);
    static LOST: AtomicBool = AtomicBool::new(false);
    /// NMIs that ended a guest's run. The others are counted in events.rs.
    static EXITS: AtomicU64 = AtomicU64::new(0);

    let received = || EXITS.load(Ordering::Acquire) + events::nmis();
    let before = received();
    let hooked_before = events::hooked_nmis();
    let exits_before = EXITS.load(Ordering::Acquire);
    let send = move || {
        let received = || EXITS.load(Ordering::Acquire) + events::nmis();
        while !STOP.load(Ordering::Acquire) {
            let last = received();
            smp::send_nmi(0);
            SENT.fetch_add(1, Ordering::AcqRel);
            let mut patience = PATIENCE;
            while received() == last {
                core::hint::spin_loop();
                patience -= 1;
                if patience == 0 {
                    LOST.store(true, Ordering::Release);
                    return;
                }
            }
            for _ in 0..PAUSE {
                core::hint::spin_loop();
            }
        }
    };
    smp::start(1, Box::new(send)).map_err(|why| format!("{why}"))?;
    let result = switch_under_nmis(world, LOOP, ENTRIES, ROUNDS, &EXITS);
    STOP.store(true, Ordering::Release);
    smp::wait(1);
    let (sent, got) = (SENT.load(Ordering::Acquire), received() - before);
    result?;
    let hooked = events::hooked_nmis() - hooked_before;
    let exits = EXITS.load(Ordering::Acquire) - exits_before;
    if LOST.load(Ordering::Acquire) || sent != got {
        return Err(format!("{sent} NMIs were sent and {got} arrived"));
    }
    if hooked == 0 || exits == 0 {
        return Err(format!("of {sent} NMIs {hooked} came to the switcher and {exits} to a guest"));
    }
    Ok(2 * ENTRIES * ROUNDS)
}

/// Runs guests that make system calls, each until it has made all of them.
fn switch_under_nmis(
    world: &mut BareMetal<'_>,
    code: &[u8],
    entries: u64,
    rounds: u64,
    exits: &AtomicU64,
) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(10);
    for entry in 0..entries {
        let mut setup =
            setup(world, &mut rng, Mode::Umod, code).with(Mode::Smod, place::ERETU, SYSCALL);
        setup.smod_entry = place::ERETU;
        setup.regs.eflags = RFlags::GUEST_FIXED.bits();
        setup.regs.rbx = rounds;
        let first = setup.clone();
        loop {
            let outcome = world.run(&setup).map_err(|why| format!("{why:?}"))?;
            let wrong = |what| Err(format!("entry {entry}: {what}: {outcome:x?}"));
            let (got, was) = (outcome.regs, first.regs);
            if outcome.host.without_arithmetic() != hw_cases::HostAfter::IN_ORDER {
                return wrong("the host is not in order");
            }
            // What neither SYSCALL nor the loop changes.
            let kept = |regs: &PtRegs| {
                [
                    regs.rax, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.r8, regs.r9, regs.r10,
                    regs.r12, regs.r13, regs.r14, regs.r15, regs.cs, regs.ss,
                ]
            };
            if kept(&got) != kept(&was) || got.rbx > setup.regs.rbx {
                return wrong("a register has changed");
            }
            match outcome.exit {
                Exit::Nmi => {
                    exits.fetch_add(1, Ordering::AcqRel);
                    setup.mode = outcome.mode;
                    setup.regs = got;
                    setup.gs_base = outcome.gs_base;
                    setup.pvcs = outcome.pvcs;
                    setup.smod_rsp = outcome.smod_rsp;
                }
                exit if exit == Expected::UD => {
                    let at = place::UMOD_CODE + code.len() as u64 - 2;
                    let gs_kept = outcome.gs_base == first.gs_base;
                    if outcome.mode == Mode::Umod
                        && got.rip == at
                        && got.rbx == 0
                        && gs_kept
                        && got.rsp == was.rsp
                    {
                        break;
                    }
                    return wrong("another end than the loop's");
                }
                _ => return wrong("an exit that nothing leads to"),
            }
        }
    }
    Ok(())
}
