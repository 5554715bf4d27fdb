//! NMIs all the time while guests switch: none is lost (spec/hazards.md, rows 10, 11 and 23).

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw_cases::{CaseHost, Expected, place};
use hw_platform::memory::PAGE;
use hw_platform::percpu::{self, Stack};
use hw_platform::{events, hooks, smp};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::RFlags;
use switcher_runtime::switcher_gen::layout::{IstTop, PerCpu, PtRegs, Tss};
use switcher_runtime::{Exit, Mode};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::{PROBE, SYSCALL, UNEVEN_SYSCALLS};
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/no_nmi_is_lost_during_a_million_switches",
        shown: "Every NMI that is sent during direct switches arrives.",
        rows: &[Hazard::NmiRoot, Hazard::NmisStayBlocked],
        cpus: 2,
        needs: &[],
        run: |bench| flood(bench.host()?, 10, 50_000, &[]),
    },
    HostCase {
        name: "host/no_nmi_is_lost_while_rsp_is_an_address_of_the_hosts",
        shown: "Every NMI arrives also while RSP points into the host.",
        rows: &[Hazard::RspAtNmiStack, Hazard::RspToSysret],
        cpus: 2,
        needs: &[],
        run: |bench| flood_with_host_rsp(bench.host()?),
    },
];

/// The bytes of the host's memory that no event and no SYSCALL writes to.
pub(super) fn untouched_memory() -> Vec<u8> {
    let block = percpu::block(0).addr();
    let sp2 = block + PerCpu::tss.bytes() + Tss::sp2.bytes();
    let tops = [Stack::DoubleFault, Stack::Nmi, Stack::Debug, Stack::MachineCheck].map(|stack| {
        let top = stack.top(0) as usize;
        top..top + size_of::<IstTop>()
    });
    let unused = [Stack::DoubleFault, Stack::MachineCheck].map(|stack| {
        let top = stack.top(0) as usize;
        top - PAGE as usize..top
    });
    // This is the TSS without the switcher's scratch.
    let tss = [block..sp2, sp2 + 8..block + size_of::<Tss>()];
    let ranges = tss.into_iter().chain(tops).chain(unused);
    // SAFETY: the bytes are those of a block and of stacks, which are statics, and nothing has a
    // reference into them.
    let read = |at: usize| unsafe { core::ptr::with_exposed_provenance::<u8>(at).read_volatile() };
    ranges.flatten().map(read).collect()
}

/// NMIs come all the time while RSP has such an address: none of them is lost, either.
fn flood_with_host_rsp(host: &mut BareMetal<'static>) -> Ended {
    let block = percpu::block(0).addr() as u64;
    let stack = Stack::Nmi.top(0);
    let addresses = [
        stack,
        // These are addresses in an NMI's frame, in the TSS, and in what the switcher knows of the
        // guest.
        stack - 24,
        block + 0x60,
        block + 0xC0,
        Stack::MachineCheck.top(0),
        Stack::Sp0.top(0),
        host.pvcs_address() + 0x80,
    ];
    let before = untouched_memory();
    let flooded = flood(host, addresses.len() as u64, 10_000, &addresses)?;
    unless_touched(&before, flooded)
}

pub(super) fn unless_touched(before: &[u8], entered: u64) -> Ended {
    if untouched_memory() == before {
        Ok(entered)
    } else {
        Err("the host's memory has changed".into())
    }
}

/// Another CPU sends NMIs during direct switches, each as soon as the last one has been handled:
/// all of them arrive, and nothing of the guest changes. RSP is one of `rsps`, if there are any.
/// `entries` guests make `rounds` round trips each, of two switches, between which only an NMI is
/// an exit.
fn flood(host: &mut BareMetal<'static>, entries: u64, rounds: u64, rsps: &[u64]) -> Ended {
    /// How often the sender looks whether its NMI has arrived.
    const PATIENCE: u64 = 2_000_000_000;
    /// How long the sender then waits. Without the wait, an emulator that runs the CPUs in turn
    /// would never let the guest get from one NMI to the next instruction.
    const PAUSE: u64 = 20_000;
    static STOP: AtomicBool = AtomicBool::new(false);
    static SENT: AtomicU64 = AtomicU64::new(0);
    static LOST: AtomicBool = AtomicBool::new(false);
    /// The number of NMIs that ended a guest's run. The others are counted in events.rs.
    static EXITS: AtomicU64 = AtomicU64::new(0);

    let received = || EXITS.load(Ordering::Acquire) + events::nmis();
    let before = received();
    let hooked_before = hooks::hooked_nmis();
    let exits_before = EXITS.load(Ordering::Acquire);
    let sent_before = SENT.load(Ordering::Acquire);
    STOP.store(false, Ordering::Release);
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
    let result = switch_under_nmis(host, entries, rounds, rsps, &EXITS);
    STOP.store(true, Ordering::Release);
    smp::wait(1);
    let (sent, got) = (SENT.load(Ordering::Acquire) - sent_before, received() - before);
    result?;
    let hooked = hooks::hooked_nmis() - hooked_before;
    let exits = EXITS.load(Ordering::Acquire) - exits_before;
    if LOST.load(Ordering::Acquire) || sent != got {
        return Err(format!("{sent} NMIs were sent and {got} arrived"));
    }
    if hooked == 0 || exits == 0 {
        return Err(format!(
            "of {sent} NMIs, {hooked} came in the switcher and {exits} in a guest"
        ));
    }
    Ok(2 * entries * rounds)
}

/// Runs guests that make system calls, each until it has made all of them.
fn switch_under_nmis(
    host: &mut BareMetal<'_>,
    entries: u64,
    rounds: u64,
    rsps: &[u64],
    exits: &AtomicU64,
) -> Result<(), String> {
    let mut rng = fastrand::Rng::with_seed(10);
    for entry in 0..entries {
        let mut setup = setup(host, &mut rng, Mode::Umod, UNEVEN_SYSCALLS).with(
            Mode::Smod,
            place::ERETU,
            SYSCALL,
        );
        setup.smod_entry = place::ERETU;
        setup.regs.eflags = RFlags::GUEST_FIXED.bits();
        setup.regs.rbx = rounds;
        setup.regs.rcx = 1;
        if !rsps.is_empty() {
            setup.regs.rsp = rsps[entry as usize % rsps.len()];
            setup.smod_rsp = rsps[(entry as usize + 1) % rsps.len()];
        }
        let first = setup.clone();
        loop {
            let outcome = host.run(&setup).map_err(|why| format!("{why:?}"))?;
            let wrong = |what| Err(format!("entry {entry}: {what}: {outcome:x?}"));
            let (got, was) = (outcome.regs, first.regs);
            if outcome.host.without_arithmetic() != hw_cases::HostAfter::IN_ORDER {
                return wrong("the host is not in order");
            }
            // These registers are changed neither by SYSCALL nor by the loop.
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
                    setup.pkru = outcome.pkru;
                    setup.pvcs = outcome.pvcs;
                    setup.smod_rsp = outcome.smod_rsp;
                }
                exit if exit == Expected::UD => {
                    let at = place::UMOD_CODE + (UNEVEN_SYSCALLS.len() - PROBE.len()) as u64;
                    let gs_kept = outcome.gs_base == first.gs_base;
                    let pkru_kept = outcome.pkru == first.pkru;
                    if outcome.mode == Mode::Umod
                        && got.rip == at
                        && got.rbx == 0
                        && gs_kept
                        && pkru_kept
                        && got.rsp == was.rsp
                    {
                        break;
                    }
                    return wrong("the guest has not ended as its loop does");
                }
                _ => return wrong("nothing in the guest leads to this exit"),
            }
        }
    }
    Ok(())
}
