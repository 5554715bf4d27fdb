//! The host cases. Each subject has a file, and each file a table of its cases.
//!
//! `hw-protocol` reads these tables at build time, and so has the names that the runner expects.
//!
//! # The order of the files
//! A file imports only from those above it in this list: `hw-tests/tests/module_order.rs` sees to
//! it.
//!
//! 1. `other_cpus`: several CPUs at once.
//! 2. `roots`: what guests' roots map, and for how long.
//! 3. `debug`: breakpoints of guests.
//! 4. `gates`: INT n.
//! 5. `unexpected`: faults of the switcher's own.
//! 6. `tracking`: indirect branches.
//! 7. `returns`: the untraining of returns.
//! 8. `compat`: 32-bit code.
//! 9. `flood`: NMIs all the time.
//! 10. `nmi`: NMIs and machine checks at every instruction.
//! 11. `second_nmi`: an NMI during another one.
//! 12. `hand_on`: an event that ends a run reaches the host's own handler.
//! 13. `descriptors`: LDT and GDT.
//! 14. `control`: control bits.
//! 15. `debug_registers`: the host's own breakpoints and DEBUGCTL.
//! 16. `segments`: segment registers and FS base.
//! 17. `guests`: guests of several machines.
//! 18. `tables`: a GDT and a TSS that are not the host's.
//! 19. `work`: the loop of a host around a guest.
//! 20. `count`: how long a run is.
//! 21. `stack`: how much of a stack functions need.
//! 22. `teardown`: the switcher is taken away.

mod compat;
mod control;
mod count;
mod debug;
mod debug_registers;
mod descriptors;
mod flood;
mod gates;
mod guests;
mod hand_on;
mod nmi;
mod other_cpus;
mod returns;
mod roots;
mod second_nmi;
mod segments;
mod stack;
mod tables;
mod teardown;
mod tracking;
mod unexpected;
mod work;

use hw_platform::{apic, cpu, smp};
use hw_protocol::Need;

use crate::bench::{Bench, Ended, HostCase};
use crate::others::Others;
use crate::report::Report;

/// The tables, in the order in which they are run. While the case of the first entry has not ended,
/// other CPUs run guests as well; the last one takes the switcher away.
pub(crate) const TABLES: &[&[HostCase]] = &[
    other_cpus::CASES,
    roots::CASES,
    debug::CASES,
    gates::CASES,
    tracking::CASES,
    returns::CASES,
    compat::CASES,
    nmi::CASES,
    second_nmi::CASES,
    hand_on::CASES,
    flood::CASES,
    unexpected::CASES,
    descriptors::CASES,
    control::CASES,
    debug_registers::CASES,
    segments::CASES,
    guests::CASES,
    tables::CASES,
    work::CASES,
    count::CASES,
    stack::CASES,
    teardown::CASES,
];

/// The number of cases.
pub(crate) fn count() -> usize {
    TABLES.iter().map(|table| table.len()).sum()
}

/// Runs every case.
pub(crate) fn all(bench: &mut Bench, breakpoints: bool, report: &mut Report) {
    for case in TABLES.iter().copied().flatten() {
        let ended = match lacking(case, breakpoints) {
            None => (case.run)(bench),
            // Counters of all CPUs are right only if no other CPU runs a guest afterwards.
            Some(lacking) => match bench.take_others().map_or(Ok(0), Others::wait) {
                Ok(_) => {
                    report.not_here(case.name, lacking);
                    continue;
                }
                Err(why) => Err(why),
            },
        };
        report_one(report, case.name, &ended);
    }
}

/// The reason why this machine cannot run a case, if there is one.
fn lacking(case: &HostCase, breakpoints: bool) -> Option<&'static str> {
    if smp::count() < case.cpus {
        return Some(if case.cpus > 2 {
            "there are not four CPUs"
        } else {
            "there is no other CPU"
        });
    }
    case.needs.iter().find_map(|need| {
        let (has, lacking) = match need {
            Need::LocalApic => (apic::is_there(), "there is no local APIC"),
            Need::Breakpoints => (breakpoints, "a breakpoint on execution hangs this CPU"),
            Need::BranchTracking => {
                (cpu::is_tracking(), "the CPU does not track indirect branches")
            }
            Need::CountedInstructions => {
                (cpu::counts_instructions(), "the TSC counts no instructions")
            }
        };
        (!has).then_some(lacking)
    })
}

fn report_one(report: &mut Report, name: &str, ended: &Ended) {
    let (entered, failure) = match ended {
        Ok(entered) => (*entered, None),
        Err(why) => (0, Some(why.as_str())),
    };
    report.case(name, entered, failure);
}
