//! NMIs and machine checks at every instruction of the switcher (spec/hazards.md, rows 8 to 11).

use alloc::format;

use hw_cases::Expected;
use hw_platform::percpu::Stack;
use hw_protocol::Need;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::vector;
use switcher_runtime::{Exit, Mode};

use super::flood::{unless_touched, untouched_memory};
use crate::bench::{Ended, HostCase};
use crate::boundaries::{boundaries, taken_for};
use crate::case_host::BareMetal;
use crate::idt::{IdtCopy, call_under_copy, set_breakpoint};
use crate::paths::Path;
use crate::programs::PROBE;
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[
    HostCase {
        name: "host/an_nmi_at_every_instruction_of_every_path_changes_nothing",
        shown: "An NMI may come in front of any instruction of the switcher.",
        rows: &[Hazard::NmiRoot, Hazard::WindowGap],
        cpus: 1,
        needs: &[Need::Breakpoints],
        run: |bench| {
            let (host, paths) = bench.host_and_paths()?;
            at_every_boundary(host, paths, vector::NMI)
        },
    },
    HostCase {
        name: "host/a_machine_check_at_every_instruction_of_every_path_changes_nothing",
        shown: "A machine check may come in front of any instruction of the switcher.",
        rows: &[Hazard::NmiRoot, Hazard::WindowGap],
        cpus: 1,
        needs: &[Need::Breakpoints],
        run: |bench| {
            let (host, paths) = bench.host_and_paths()?;
            at_every_boundary(host, paths, vector::MC)
        },
    },
    HostCase {
        name: "host/an_nmi_at_every_instruction_writes_nowhere_while_rsp_is_the_hosts",
        shown: "No event is handled on an RSP that a guest has chosen.",
        rows: &[Hazard::RspAtNmiStack, Hazard::RspToSysret],
        cpus: 1,
        needs: &[Need::Breakpoints],
        run: |bench| {
            let (host, paths) = bench.host_and_paths()?;
            boundaries_with_host_rsp(host, paths)
        },
    },
];

/// What the switcher takes for an NMI or a machine check comes before every instruction of every
/// path, each time that the path passes it. The guest and the host end up as they do without it.
fn at_every_boundary(host: &mut BareMetal<'_>, paths: &mut [Path], event: u8) -> Ended {
    let interruption = match event {
        vector::NMI => taken_for("an NMI", false),
        _ => taken_for("a machine check", true),
    };
    let copy = IdtCopy::new(host, |gates| {
        gates[usize::from(vector::DB)] = gates[usize::from(event)];
    })?;
    let ended = paths.iter_mut().map(|path| boundaries(host, path, &interruption)).sum::<Ended>();
    let ended = ended.and_then(|count| Ok(count + in_the_guest(host, event)?));
    copy.free(host)?;
    ended
}

/// The same interruption before a guest's instruction is the guest's exit.
fn in_the_guest(host: &mut BareMetal<'_>, event: u8) -> Ended {
    let exit = if event == vector::NMI { Exit::Nmi } else { Exit::MachineCheck };
    let mut rng = fastrand::Rng::with_seed(9);
    for mode in [Mode::Smod, Mode::Umod] {
        let mut setup = setup(host, &mut rng, mode, PROBE);
        setup.breakpoint = Some(setup.regs.rip);
        // SAFETY: `call_under_copy` does what `checked_call` does; a copy of the IDT exists.
        let outcome = unsafe { host.run_by(&setup, call_under_copy) };
        set_breakpoint(false);
        let outcome = outcome.map_err(|why| format!("in {mode:?}: {why:?}"))?;
        let compared = Expected::unchanged(&setup, exit).compare(&setup, &outcome);
        compared.map_err(|why| format!("in {mode:?}: {}", why.0))?;
    }
    Ok(2)
}

/// NMIs come at every instruction of the paths that return by SYSRETQ, while RSP is an address of
/// the host's wherever a guest can choose it: no decision rests on RSP, no NMI comes between its
/// load and SYSRETQ, and nothing is pushed there (rows 10 and 23).
fn boundaries_with_host_rsp(host: &mut BareMetal<'_>, paths: &[Path]) -> Ended {
    let before = untouched_memory();
    let copy = IdtCopy::new(host, |gates| {
        gates[usize::from(vector::DB)] = gates[usize::from(vector::NMI)];
    })?;
    let paths = paths.iter().filter(|path| path.executes.1 != 0);
    let interruption = taken_for("an NMI", false);
    let rsp = Stack::Nmi.top(0);
    let ended = paths.map(|path| boundaries(host, &mut path.with_rsp(rsp), &interruption));
    let ended = ended.sum::<Ended>();
    copy.free(host)?;
    unless_touched(&before, ended?)
}
