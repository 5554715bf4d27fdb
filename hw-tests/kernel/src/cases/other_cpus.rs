//! Several CPUs at once: each runs guests, and one writes what another reads.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hw_cases::{CaseHost, Expected, HostAfter, Setup, place};
use hw_platform::smp;
use switcher_gen::program;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::RFlags;
use switcher_runtime::switcher_gen::layout::{Pvcs, PvcsLayout, PvcsV2026, Revision};
use switcher_runtime::{DebugCauses, Detail, Exit, Mode};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::others::Others;
use crate::programs::SYSCALL;

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/four_cpus_run_guests_at_once",
        shown: "The case list passes on four CPUs at the same time.",
        // Each CPU has its own block: what one of them holds of its guest is visible to no other
        // guest.
        rows: &[Hazard::Registers],
        cpus: 4,
        needs: &[],
        run: |bench| {
            bench.take_others().map_or_else(|| Err("the case was run twice".into()), Others::end)
        },
    },
    HostCase {
        name: "host/the_pvcs_flips_while_guests_switch",
        shown: "A PVCS that another CPU changes all the time leads to the guest's own faults alone.",
        rows: &[Hazard::DoubleFetch],
        cpus: 2,
        needs: &[],
        run: |bench| flipping_pvcs(bench.host()?),
    },
];

/// Another CPU writes to the PVCS all the time, while this one makes direct switches through it:
/// whatever the switcher reads, and however often, the only result is faults of the guest's own
/// (spec/hazards.md, row 24).
fn flipping_pvcs(host: &mut BareMetal<'static>) -> Ended {
    /// The number of entries. Each makes direct switches until one of them leads to an exit.
    const ENTRIES: u64 = 2000;
    static STOP: AtomicBool = AtomicBool::new(false);
    static WRITTEN: AtomicU64 = AtomicU64::new(0);

    let platform = host.platform();
    let selectors = platform.selectors;
    let behind = place::first_non_canonical(platform.paging);
    let rips = [place::UMOD_CODE, place::UMOD_CODE + 0x40, behind, 1 << 63, place::NOWHERE];
    let flags = [0x202_u64, 0x202 | RFlags::TF.bits(), 0x202 | RFlags::RF.bits(), 0x3_7FFF_FFFF];
    let pairs = [
        u64::from(selectors.user_cs()) | u64::from(selectors.user_ds()) << 16,
        u64::from(selectors.kernel_cs()) | u64::from(selectors.kernel_ds()) << 16,
        0,
    ];
    STOP.store(false, Ordering::Release);
    WRITTEN.store(0, Ordering::Release);
    let pvcs = host.pvcs_address() as usize;
    let words = match platform.revision {
        Revision::V2024 => words_of::<Pvcs>(),
        Revision::V2026 => words_of::<PvcsV2026>(),
    };
    let flip = move || {
        let mut rng = fastrand::Rng::with_seed(24);
        let word = |at: usize| core::ptr::with_exposed_provenance_mut::<u64>(pvcs + at);
        while !STOP.load(Ordering::Acquire) {
            let rip = rips[rng.usize(..rips.len())];
            let eflags = flags[rng.usize(..flags.len())];
            // Most of the time, a value is written with which ERETU succeeds, so that it is tried
            // again at once.
            let usual = rng.u8(..) < 200;
            let pair = pairs[if usual { 0 } else { rng.usize(..pairs.len()) }];
            let rip = if usual { rips[rng.usize(..2)] } else { rip };
            // Bochs 2.7 applies the bits of key 0 to the supervisor's pages as well.
            let pkru = u64::from(rng.u32(..) & Setup::PKRU);
            let values = [
                pair,
                rng.u64(..),
                eflags & 0xFFFF_FFFF | pkru << 32,
                rip,
                if rng.bool() { rip } else { rng.u64(..) },
                if rng.bool() { eflags } else { rng.u64(..) },
                rng.u64(..),
            ];
            for (&at, value) in words.iter().zip(values) {
                // SAFETY: the PVCS's frame is in the identity map, and nothing has a reference into
                // it; the words are aligned and within its 128 bytes. Whoever reads them expects
                // any value.
                unsafe { word(at).write_volatile(value) }
            }
            WRITTEN.fetch_add(1, Ordering::Relaxed);
        }
    };
    smp::start(1, Box::new(flip)).map_err(|why| format!("{why}"))?;
    let result = switch_for(host, ENTRIES, &rips);
    STOP.store(true, Ordering::Release);
    smp::wait(1);
    let written = WRITTEN.load(Ordering::Acquire);
    if written < ENTRIES {
        return Err(format!("the other CPU has written only {written} times"));
    }
    result
}

/// The offsets of the words that a switcher reads in a PVCS: both selectors, GS base, flags and
/// protection keys, RIP, RCX, R11, and RSP, if the revision has it.
fn words_of<P: PvcsLayout>() -> Vec<usize> {
    [
        P::USER_CS.bytes(),
        P::USER_GSBASE.bytes(),
        P::EFLAGS.bytes(),
        P::RIP.bytes(),
        P::RCX.bytes(),
        P::R11.bytes(),
    ]
    .into_iter()
    .chain(P::RSP.map(|rsp| rsp.bytes()))
    .collect()
}

/// Enters guests that make direct switches for as long as the PVCS lets them.
fn switch_for(host: &mut BareMetal<'_>, entries: u64, rips: &[u64]) -> Ended {
    const AGAIN: &[u8] = program!(; again: ; syscall ; jmp BYTE <again);
    let platform = host.platform();
    let mut rng = fastrand::Rng::with_seed(25);
    let mut in_umod = 0;
    for entry in 0..entries {
        // smod executes ERETU. umod, at both of its addresses, executes SYSCALL, which leads to
        // ERETU again.
        let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
            .with(Mode::Smod, place::ERETU, SYSCALL)
            .with(Mode::Umod, place::UMOD_CODE, AGAIN)
            .with(Mode::Umod, place::UMOD_CODE + 0x40, AGAIN);
        setup.smod_entry = place::ERETU;
        setup.regs.eflags = RFlags::GUEST_FIXED.bits();
        let outcome = host.run(&setup).map_err(|why| format!("entry {entry}: {why:?}"))?;
        let wrong = |what: &str| Err(format!("entry {entry}: {what}: {outcome:x?}"));
        // Everything except what the PVCS gives is the guest's own, whatever was read from the
        // PVCS.
        let Expected { mut regs, .. } = Expected::unchanged(&setup, outcome.exit);
        let got = outcome.regs;
        (regs.rip, regs.rcx, regs.r11) = (got.rip, got.rcx, got.r11);
        (regs.eflags, regs.orig_ax) = (got.eflags, got.orig_ax);
        if platform.revision == Revision::V2024 {
            regs.rsp = got.rsp;
        }
        if got != regs {
            return wrong("a register has changed");
        }
        let flags = RFlags::from_bits_retain(got.eflags) - RFlags::RF;
        if flags != flags.sanitised() - RFlags::RF {
            return wrong("the guest has forbidden flags");
        }
        if !platform.paging.is_canonical(outcome.gs_base) {
            return wrong("GS base is not canonical");
        }
        if outcome.host.without_arithmetic() != HostAfter::IN_ORDER {
            return wrong("the host is not in order");
        }
        let is_right = match (outcome.exit, outcome.mode) {
            // Other selectors are left to the host; no SYSCALL of umod exits.
            (Exit::Syscall, Mode::Smod) => got.rip == place::RETU_RIP,
            (Exit::Exception(exception), Mode::Umod) => {
                in_umod += 1;
                match exception.detail {
                    // The fault is at an address where no page is mapped.
                    Detail::Cr2(address) => address == got.rip && rips.contains(&address),
                    // The cause is TF.
                    Detail::Dr6(causes) => causes == DebugCauses::SINGLE_STEP,
                    Detail::None => exception.vector == 13 && rips.contains(&got.rip),
                }
            }
            // This is an emulator's #DB after a SYSCALL with TF.
            (Exit::Exception(exception), Mode::Smod) => exception.vector == 1,
            _ => false,
        };
        if !is_right {
            return wrong("nothing in the PVCS leads to this exit");
        }
    }
    match in_umod {
        0 => Err("no guest came to umod".into()),
        _ => Ok(entries),
    }
}
