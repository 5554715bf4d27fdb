//! The case runner: a bare-metal host hypervisor that reports over the serial port.
//!
//! `cargo xtask test --engine qemu-tcg-4level` builds it, boots it and judges its report;
//! `cargo xtask iso` writes an image of it for a real machine.
//!
//! # The order of the modules
//! A module imports only from those above it in this list: `hw-tests/tests/module_order.rs` sees to
//! it.
//!
//! 1. `report`: the lines of the report.
//! 2. `model`: does this CPU do what the model says?
//! 3. `selftest`: is this kernel fit to judge a switcher?
//! 4. `programs`: what guests run here.
//! 5. `case_host`: the engine that shared cases run on.
//! 6. `switchers`: the switchers of this run, and CPUs that they are active on.
//! 7. `others`: the case list on the other CPUs.
//! 8. `setup`: guests of host cases, and what must come of them.
//! 9. `idt`: the switcher's IDT with some gates changed.
//! 10. `paths`: every way through the switcher.
//! 11. `bench`: what host cases are, and what they work on.
//! 12. `boundaries`: an interruption in front of every instruction of a path.
//! 13. `registers`: registers of this CPU.
//! 14. `refusal`: what the runtime says of a state that it should refuse.
//! 15. `painted`: how much of a stack something uses.
//! 16. `cases`: the host cases.

#![no_std]
#![no_main]

extern crate alloc;

mod bench;
mod boundaries;
mod case_host;
mod cases;
mod idt;
mod model;
mod others;
mod painted;
mod paths;
mod programs;
mod refusal;
mod registers;
mod report;
mod selftest;
mod setup;
mod switchers;

use alloc::format;
use alloc::vec::Vec;

use hw_cases::CaseEnd;
use hw_platform::{Platform, boot, cpu, exit};
use hw_protocol::{CPUS, FATAL, Options, PANIC, Suite};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::Selectors;
use switcher_runtime::{Detect, HostFeatures, Variant};

use bench::{Bench, Control};
use others::Others;
use report::Report;
use switchers::{Switchers, fatal, host_on, with_untraining};

hw_platform::kernel_main!(main);

// The runner relies on as many CPUs as the platform starts.
const _: () = assert!(boot::MAX_CPUS == CPUS);
const _: () = assert!(are_equal(exit::PANIC, PANIC) && are_equal(exit::FATAL, FATAL));

const fn are_equal(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

fn main(platform: Platform) -> ! {
    // SAFETY: the platform's CR3 selects PCID 0; the roots made later know whether PCIDs are on.
    unsafe { cpu::enable_pcid(&platform.features) };
    let options: Options = match platform.command_line.parse() {
        Ok(options) => options,
        Err(why) => fatal(&format_args!("the command line: {why}")),
    };
    let cases = match options.suite {
        Suite::All => hw_cases::all(),
        Suite::SelfTest => Vec::new(),
    };
    let host_cases = if cases.is_empty() { 0 } else { cases::count() };
    let mut report = Report::begin(&platform, selftest::TESTS.len() + cases.len() + host_cases);
    selftest::all(&platform, &mut report);
    if !cases.is_empty() {
        run(&cases, options, &mut report);
    }
    report.end()
}

/// Does the host's part: it chooses a variant for this CPU, assembles it here, makes it active on
/// all CPUs, and runs the cases.
fn run(cases: &[hw_cases::Case], options: Options, report: &mut Report) {
    let features = cpu::tracked(HostFeatures::detect);
    let variant = Variant::for_host(&features, Selectors::DEFAULT);
    let variant = variant.unwrap_or_else(|why| fatal(&why)).with_policy(options.policy);
    let variant = with_untraining(variant);
    let switchers = Switchers::assemble(&variant);

    switchers.iter().for_each(|switcher| report.switcher(switcher));
    let before = Control::read();
    let others = Others::start(switchers, options.breakpoints);
    let mut host = host_on(switchers, 0, options.breakpoints);
    for case in cases {
        let (runs, end) = case.run(&mut host);
        let failure = match end {
            CaseEnd::Passed => None,
            CaseEnd::Failed(why) => Some(format!("{}: {why}", Hazard::join(case.rows))),
            // The runner knows for which cases this is allowed.
            CaseEnd::NotHere(why) => {
                report.not_here(case.name, &why);
                continue;
            }
        };
        report.case(case.name, runs, failure.as_deref());
    }
    cases::all(&mut Bench::new(host, others, before), options.breakpoints, report);
}
