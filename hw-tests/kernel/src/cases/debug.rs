//! Breakpoints of guests: on their own addresses, and on an operand of MOV SS.

use alloc::format;
use alloc::vec::Vec;

use hw_cases::{CaseHost, Expected, place};
use hw_platform::memory;
use hw_platform::percpu::Stack;
use switcher_gen::program;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::{dr7, vector};
use switcher_runtime::{Access, DebugError, Exit, GuestDebug, Mode, Width};
use x86_64::registers::debug::Dr7;

use crate::bench::{Ended, HostCase};
use crate::case_host::{BareMetal, GUESTS};
use crate::programs::{MOV_SS, PROBE, STORE, SYSCALL, SYSENTER};
use crate::setup::{check, setup};

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/a_guests_watchpoint_is_live_on_its_own_addresses_alone",
        shown: "A watchpoint is set on addresses of the guest's alone, and armed for it alone.",
        rows: &[Hazard::GuestBreakpoints],
        cpus: 1,
        needs: &[],
        run: |bench| watchpoints(bench.host()?),
    },
    HostCase {
        name: "host/mov_ss_on_a_watched_operand_and_syscall_is_no_event_of_the_host",
        shown: "A #DB that MOV SS holds off until ring 0 changes nothing there.",
        rows: &[Hazard::MovSsSyscall],
        cpus: 1,
        needs: &[],
        run: |bench| mov_ss(bench.host()?),
    },
];

/// Watchpoints on a guest's data and on addresses of the host's (spec/hazards.md, row 31).
fn watchpoints(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(31);
    let mut entered = 0;
    for (number, width) in
        [Width::One, Width::Two, Width::Four, Width::Eight].into_iter().enumerate()
    {
        let at = place::STACK + 8 * number as u64;
        let set = host.debug().set(number, Some((at, Access::Write(width))));
        set.map_err(|why| format!("{width:?}: {why}"))?;
        for (offset, hits) in [(0, true), (width.bytes() - 1, true), (width.bytes(), false)] {
            for mode in [Mode::Smod, Mode::Umod] {
                let mut setup = setup(host, &mut rng, mode, &[STORE, PROBE].concat());
                setup.regs.rdi = at + offset;
                let causes = 1 << number;
                let exit = if hits { Expected::debug(causes) } else { Expected::UD };
                let mut expected = Expected::unchanged(&setup, exit);
                expected.regs.rip += STORE.len() as u64;
                check(host, &setup, &expected)
                    .map_err(|why| format!("{width:?}, {offset} bytes after it: {why}"))?;
                entered += 1;
            }
        }
        let cleared = host.debug().set(number, None);
        cleared.map_err(|why| format!("{width:?}: {why}"))?;
    }
    // A watchpoint that straddles the end of the guest's range is refused, and so is one on an
    // address of the host's.
    let end = GUESTS.end - 4;
    let hosts = host.cpu().mappings().into_iter().map(|mapping| mapping.start & !7);
    for address in hosts.chain([GUESTS.end, memory::host_cr3(), 0x10_0000]).collect::<Vec<_>>() {
        for access in [Access::Execute, Access::ReadWrite(Width::Eight)] {
            if host.debug().set(0, Some((address, access))).is_ok() {
                return Err(format!("a breakpoint on {address:#x} was set"));
            }
        }
    }
    // SAFETY: the range is a part of the guests' own, and no breakpoint in it is ever enabled.
    let mut straddling = unsafe { GuestDebug::new(place::TEXT..end) };
    let eight = Access::Write(Width::Eight);
    match straddling.set(0, Some((end & !7, eight))) {
        Err(DebugError::NotTheGuests { .. }) => {}
        other => return Err(format!("a watchpoint beyond the end of the range: {other:?}")),
    }
    // A watchpoint that was enabled when the guest exited is not enabled in the host.
    if Dr7::read_raw() & (dr7::ARMED | dr7::GD) != 0 {
        return Err(format!("DR7 is {:#x} in the host", Dr7::read_raw()));
    }
    Ok(entered)
}

/// A guest executes MOV SS from a watched word, and SYSCALL, with an RSP that points to no stack:
/// the #DB of the watchpoint is held off until the SYSCALL has been executed, and comes at the
/// SYSCALL's entry, in ring 0 (spec/hazards.md, row 12: CVE-2018-8897). It is ignored there.
fn mov_ss(host: &mut BareMetal<'_>) -> Ended {
    const STORE_SS: &[u8] = program!(; mov WORD [rdi], ss);

    let platform = host.platform();
    let mut rng = fastrand::Rng::with_seed(12);
    let at = place::STACK + 0x40;
    let set = host.debug().set(1, Some((at, Access::ReadWrite(Width::Two))));
    set.map_err(|why| format!("{why}"))?;
    let mut entered = 0;
    for rsp in [1 << 63, place::first_non_canonical(platform.paging), 0, Stack::Nmi.top(0), 8] {
        for watched in [false, true] {
            // The watched word is written by the guest, too: this is the only access that traps.
            let mut setup = setup(host, &mut rng, Mode::Umod, &[STORE_SS, PROBE].concat());
            setup.regs.rdi = at;
            setup.regs.rsp = rsp;
            let mut expected = Expected::unchanged(&setup, Expected::debug(1 << 1));
            expected.regs.rip += STORE_SS.len() as u64;
            check(host, &setup, &expected).map_err(|why| format!("storing SS: {why}"))?;

            let mut setup = self::setup(host, &mut rng, Mode::Umod, &[MOV_SS, SYSCALL].concat())
                .with(Mode::Smod, place::SMOD_ENTRY, PROBE);
            setup.regs.rdi = if watched { at } else { at + 0x40 };
            setup.regs.rsp = rsp;
            if !watched {
                // The unwatched word holds SS as well, because 0 would be a null selector.
                let store = [STORE_SS, PROBE].concat();
                let mut first = self::setup(host, &mut rng, Mode::Umod, &store);
                first.regs.rdi = at + 0x40;
                let mut stored = Expected::unchanged(&first, Expected::UD);
                stored.regs.rip += STORE_SS.len() as u64;
                check(host, &first, &stored).map_err(|why| format!("storing SS: {why}"))?;
                entered += 1;
            }
            let syscall = place::UMOD_CODE + MOV_SS.len() as u64;
            let outcome = host.run(&setup).map_err(|why| format!("{why:?}"))?;
            // QEMU's interpreter does not hold data breakpoints off.
            let at_once = Expected::debug(1 << 1);
            let expected = if watched && outcome.exit == at_once {
                let mut expected = Expected::unchanged(&setup, at_once);
                expected.regs.rip = syscall;
                expected
            } else {
                Expected::to_smod(&setup, &platform, syscall)
            };
            expected
                .compare(&setup, &outcome)
                .map_err(|why| format!("RSP {rsp:#x}, watched: {watched}: {why}"))?;
            entered += 2;
        }
    }
    entered += events_after_mov_ss(host, &mut rng, at)?;
    host.debug().set(1, None).map_err(|why| format!("{why}"))?;
    Ok(entered)
}

/// The #DB of MOV SS can be held off by other instructions as well: each that leaves CPL 3 by an
/// event. The guest gets that event, and the host does not notice the #DB. `watched` is in umod's
/// memory, and holds SS.
fn events_after_mov_ss(host: &mut BareMetal<'_>, rng: &mut fastrand::Rng, watched: u64) -> Ended {
    /// The error code of a page fault from CPL 3.
    const U: u32 = 4;

    let gp = Expected::general_protection;
    // Each row has the instruction, whether it is a trap, and the two exits that are right: QEMU
    // 7.2 has another error code for INT n, and whether SYSENTER is refused depends on the vendor.
    let behind: [(&[u8], bool, [Exit; 2]); 7] = [
        (program!(; int3), true, [Expected::exception(vector::BP); 2]),
        (
            program!(; int BYTE vector::SYSTEM_CALL.cast_signed()),
            true,
            [Exit::Interrupt { vector: vector::SYSTEM_CALL }; 2],
        ),
        (program!(; int 0x21), false, [gp(0x21 * 8 + 2), gp(0x21 * 16 + 2)]),
        (program!(; cli), false, [gp(0); 2]),
        (program!(; mov al, BYTE [rsi]), false, [Expected::page_fault(U, place::NOWHERE); 2]),
        (SYSENTER, false, [gp(0), Expected::UD]),
        (program!(; int1), true, [Expected::debug(0), Expected::debug(1 << 1)]),
    ];
    let mut entered = 0;
    for (code, is_trap, exits) in behind {
        for rsp in [1 << 63, 0, Stack::Nmi.top(0)] {
            let mut setup = setup(host, rng, Mode::Umod, &[MOV_SS, code].concat());
            (setup.regs.rdi, setup.regs.rsi, setup.regs.rsp) = (watched, place::NOWHERE, rsp);
            let outcome = host.run(&setup).map_err(|why| format!("{why:?}"))?;
            // QEMU's interpreter does not hold data breakpoints off.
            let at_once = Expected::debug(1 << 1);
            let is_early = outcome.exit == at_once
                && outcome.regs.rip == place::UMOD_CODE + MOV_SS.len() as u64;
            let known = exits.into_iter().find(|exit| *exit == outcome.exit).unwrap_or(exits[0]);
            let mut expected = Expected::unchanged(&setup, if is_early { at_once } else { known });
            let executed = if is_trap && !is_early { code.len() } else { 0 };
            expected.regs.rip += (MOV_SS.len() + executed) as u64;
            expected
                .compare(&setup, &outcome)
                .map_err(|why| format!("MOV SS, {code:x?}, RSP {rsp:#x}: {why}"))?;
            entered += 1;
        }
    }
    Ok(entered)
}
