//! What guests' roots map, and for how long: the host is isolated, and translations are flushed.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

use hw_cases::{CaseHost, Expected, Setup, place};
use hw_platform::boot;
use hw_platform::memory::{self, HIGH_BASE, PAGE, flags_of};
use hw_platform::percpu::{self, Scratch, Stack};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::RFlags;
use switcher_runtime::{Mode, Purpose};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::others::RUNNING;
use crate::programs::{LOAD, PROBE, STORE, SYSCALL};
use crate::setup::{check, setup};

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/a_guests_root_has_what_is_listed_and_nothing_else",
        shown: "A guest's root maps the listed pages of the host, as listed, and no other.",
        rows: &[Hazard::MappedSet],
        cpus: 1,
        needs: &[],
        run: |bench| roots(bench.host()?),
    },
    HostCase {
        name: "host/a_guest_that_probes_the_host_faults",
        shown: "A guest can read, write and execute nothing of the host's.",
        rows: &[Hazard::GlobalEntries, Hazard::MappedSet],
        cpus: 1,
        needs: &[],
        run: |bench| probes(bench.host()?),
    },
    HostCase {
        name: "host/what_was_unmapped_faults_after_a_direct_switch",
        shown: "No translation outlives an unmapping by a direct switch.",
        rows: &[Hazard::StaleTranslations],
        cpus: 1,
        needs: &[],
        run: |bench| unmapped(bench.host()?),
    },
    HostCase {
        name: "host/a_root_on_a_dead_ones_page_has_none_of_its_translations",
        shown: "A new root on a former one's page is a new identity.",
        rows: &[Hazard::RecycledTag],
        cpus: 1,
        needs: &[],
        run: |bench| recycled_root(bench.host()?),
    },
];

/// Checks every leaf of both roots. A page that is not for users is on the list, with the rights
/// and the frame that the host's root has there, and every page on the list is mapped.
fn roots(host: &BareMetal<'_>) -> Ended {
    let listed = host.listed();
    for (mode, space) in host.spaces() {
        let mut found = 0;
        for leaf in space.leaves() {
            let at = format!("{mode:?}, {:#x}: {:?}", leaf.virt, leaf.flags);
            let Some(rights) = listed.iter().find(|(page, _)| *page == leaf.virt).map(|it| it.1)
            else {
                if leaf.flags.contains(memory::Flags::USER) && !leaf.global && leaf.size == PAGE {
                    continue;
                }
                return Err(format!("{at}: neither a page of the guest's nor on the list"));
            };
            found += 1;
            if leaf.flags != flags_of(rights) || leaf.global || leaf.size != PAGE {
                return Err(format!("{at}: listed as {rights:?}"));
            }
            if memory::host_address(leaf.virt) != Some(leaf.phys) {
                return Err(format!("{at}: maps {:#x}, which the host does not", leaf.phys));
            }
        }
        if found != listed.len() {
            return Err(format!("{mode:?} maps {found} of {} pages on the list", listed.len()));
        }
    }
    // The list itself names what a switch needs, and each of these is on pages of its own.
    let list = host.cpu().mappings();
    for purpose in [Purpose::Code, Purpose::PerCpuBlock, Purpose::EntryStack, Purpose::IstStack(1)]
        .into_iter()
        .chain([Purpose::IstStack(4), Purpose::Idt, Purpose::Gdt])
    {
        if list.iter().filter(|mapping| mapping.purpose == purpose).count() != 1 {
            return Err(format!("{purpose:?} is not listed exactly once"));
        }
    }
    // This case enters no guest; it has looked at this many pages.
    Ok(2 * listed.len() as u64)
}

/// A guest reads, writes and jumps to host addresses, in both modes.
fn probes(host: &mut BareMetal<'_>) -> Ended {
    /// Bits of a page fault's error code: present, write, user, fetch.
    const P: u32 = 1;
    const W: u32 = 2;
    const U: u32 = 4;
    const F: u32 = 16;

    let listed: Vec<u64> = host.listed().into_iter().map(|(page, _)| page).collect();
    let heap = Box::new(0_u8);
    let elsewhere = [
        (&raw const *heap).addr() as u64,
        // These are code, constants, variables and stacks of the host's.
        probes as *const () as u64,
        CASES.as_ptr().addr() as u64,
        (&raw const RUNNING).addr() as u64,
        boot::stack_top() - 64,
        Stack::Fatal.top(0) - 8,
        Stack::Sp0.top(0) - 2 * PAGE,
        // These are in memory that belongs to this CPU and is not for the guest, and in another
        // CPU's.
        percpu::block(0).addr() as u64 + Scratch::OFFSET as u64,
        percpu::block(1).addr() as u64,
        Stack::Sp0.top(1) - 8,
        // These are page tables, firmware, the page after the switcher, and places within both
        // halves.
        memory::host_cr3(),
        host.spaces()[0].1.cr3(),
        0x1000,
        0xF_FFF0,
        HIGH_BASE - 8,
        HIGH_BASE + 256 * PAGE,
        0xFFFF_8000_0000_0000,
    ];
    let mut rng = fastrand::Rng::with_seed(22);
    let mut entered = 0;
    let inside = listed.iter().map(|page| page + rng.u64(..PAGE)).collect::<Vec<_>>();
    for address in inside.into_iter().chain(elsewhere) {
        let is_present = listed.contains(&(address & !(PAGE - 1)));
        let present = if is_present { P } else { 0 };
        for mode in [Mode::Smod, Mode::Umod] {
            for (code, error) in [(LOAD, U), (STORE, U | W), (PROBE, U | F)] {
                let mut setup = setup(host, &mut rng, mode, code);
                setup.regs.rdi = address;
                if error & F != 0 {
                    setup.regs.rip = address;
                }
                let exit = Expected::page_fault(present | error, address);
                check(host, &setup, &Expected::unchanged(&setup, exit))
                    .map_err(|why| format!("{mode:?} at {address:#x}, {error:#x}: {why}"))?;
                entered += 1;
            }
        }
    }
    // The addresses outside the list must be mapped by the host, or the case would show nothing.
    let hosts = elsewhere.iter().filter(|at| memory::host_flags(**at).is_some()).count();
    if hosts < 12 || elsewhere.iter().any(|at| listed.contains(&(at & !(PAGE - 1)))) {
        return Err(format!("only {hosts} of the addresses are the host's and unlisted"));
    }
    Ok(entered)
}

/// Direct switches lead to umod, which loads from its stack: while that is mapped, and after it was
/// unmapped with no flush but the runtime's (spec/hazards.md, row 20).
fn unmapped(host: &mut BareMetal<'_>) -> Ended {
    const USER: u32 = 4;
    let platform = host.platform();
    let mut rng = fastrand::Rng::with_seed(20);
    let mapping = |why: memory::MapError| format!("umod's stack: {why}");
    let mut entered = 0;
    for _ in 0..50 {
        for mapped in [true, false] {
            if !mapped {
                host.set_stack_mapped(false).map_err(mapping)?;
            }
            let mut setup = Setup::random(&mut rng, &platform, Mode::Smod)
                .with(Mode::Smod, place::ERETU, SYSCALL)
                .with(Mode::Umod, place::UMOD_CODE, &[LOAD, PROBE].concat());
            setup.regs.rdi = place::STACK + 8;
            setup.pvcs.eflags = RFlags::GUEST_FIXED.bits() as u32;
            let mut expected = Expected::to_umod(&setup, &platform);
            if mapped {
                expected.regs.rax &= !0xFF;
                expected.regs.rip += LOAD.len() as u64;
            } else {
                expected.exit = Expected::page_fault(USER, setup.regs.rdi);
            }
            // The guest is entered in umod first, so that its translations are kept across direct
            // switches.
            if mapped {
                let mut first = setup.clone();
                first.mode = Mode::Umod;
                first.regs.rip = place::UMOD_CODE;
                first.regs.eflags = RFlags::GUEST_FIXED.bits();
                let mut there = Expected::unchanged(&first, Expected::UD);
                there.regs.rax &= !0xFF;
                there.regs.rip += LOAD.len() as u64;
                check(host, &first, &there).map_err(|why| format!("in umod: {why}"))?;
            }
            let result = check(host, &setup, &expected);
            if !mapped {
                host.set_stack_mapped(true).map_err(mapping)?;
            }
            result.map_err(|why| format!("mapped {mapped}: {why}"))?;
            entered += 2;
        }
    }
    Ok(entered)
}

/// A root is made on the page of a dead one, under the same PCID, and the case flushes nothing: its
/// guest has its own memory (spec/hazards.md, row 53). No emulator here keeps translations under
/// PCIDs, so a runtime that takes a root for its address passes there, too. The unit tests of
/// `runtime/src/pcid.rs` would find it.
fn recycled_root(host: &mut BareMetal<'_>) -> Ended {
    let platform = host.platform();
    let mut rng = fastrand::Rng::with_seed(53);
    let mut entered = 0;
    for round in 0..20_u8 {
        let secret = 0x80 | round;
        host.recycle_umod(secret).map_err(|why| format!("umod's stack: {why}"))?;
        // The guest is entered in umod, and comes to umod by a direct switch.
        for mode in [Mode::Umod, Mode::Smod] {
            let code = [LOAD, PROBE].concat();
            let mut setup = Setup::random(&mut rng, &platform, mode)
                .with(Mode::Smod, place::ERETU, SYSCALL)
                .with(Mode::Umod, place::UMOD_CODE, &code);
            setup.regs.rdi = place::STACK + 8;
            setup.regs.eflags = RFlags::GUEST_FIXED.bits();
            setup.pvcs.eflags = RFlags::GUEST_FIXED.bits() as u32;
            if mode == Mode::Umod {
                setup.regs.rip = place::UMOD_CODE;
            }
            let outcome = host.run(&setup).map_err(|why| format!("{why:?}"))?;
            if outcome.exit != Expected::UD || outcome.regs.rax as u8 != secret {
                return Err(format!(
                    "round {round}, from {mode:?}: {:?}, {:#x}, not {secret:#x}",
                    outcome.exit, outcome.regs.rax
                ));
            }
            entered += 1;
        }
    }
    Ok(entered)
}
