//! The case runner: a bare-metal host hypervisor that reports over the serial port.

#![no_std]
#![no_main]

extern crate alloc;

mod cpu_state;
mod host;
mod nmi;
mod second_nmi;
mod tracking;
mod unexpected;
mod world;

use core::ptr::NonNull;

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use hw_cases::End;
use hw_kernel::code_memory::CodeMemory;
use hw_kernel::high::Half;
use hw_kernel::memory::code_start;
use hw_kernel::report::Report;
use hw_kernel::{Platform, cpu, events, exit, percpu, returns, segments, selftest, smp};
use hw_protocol::{HOST_CASES, Options, SELFTESTS, Suite};
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::Selectors;
use switcher_runtime::switcher_gen::layout::Placement;
use switcher_runtime::{Detect, HostFeatures, Switcher, Variant};

use host::Others;
use world::BareMetal;

hw_kernel::kernel_main!(main);

fn main(platform: Platform) -> ! {
    // SAFETY: the platform's CR3 selects PCID 0; the roots made later know whether PCIDs are on.
    unsafe { cpu::enable_pcid(&platform.features) };
    let cases = match platform.options.suite {
        Suite::All => hw_cases::all(),
        Suite::SelfTest => Vec::new(),
    };
    let host_cases = if cases.is_empty() { 0 } else { HOST_CASES.len() };
    let mut report = Report::begin(&platform, SELFTESTS.len() + cases.len() + host_cases);
    selftest::all(&platform, &mut report);
    if !cases.is_empty() {
        run(&cases, platform.options, &mut report);
    }
    report.end()
}

/// The switchers: each CPU's own, where placement wants that, or one for all CPUs.
#[derive(Clone, Copy)]
pub(crate) struct Switchers(&'static [Switcher]);

impl Switchers {
    /// Assembles them. The SYSCALL MSRs refer to them for ever.
    fn assemble(variant: &Variant) -> Self {
        let places: Vec<u64> = match variant.axes().policy.placement {
            // Of an untraining host, all that the switcher calls is near.
            Placement::Gs if variant.axes().mitigations.untrain => {
                [percpu::code_near_image(0).start].into()
            }
            Placement::Gs => [code_start(Half::Upper)].into(),
            Placement::PerCpu => (0..smp::count()).map(|cpu| percpu::code(cpu).start).collect(),
        };
        let switchers = places.into_iter().map(|place| {
            let memory = Box::leak(Box::new(CodeMemory::at(place)));
            let switcher = Switcher::assemble(variant, &events::hooks(), memory);
            switcher.unwrap_or_else(|why| fatal(&why))
        });
        Self(Vec::leak(switchers.collect()))
    }

    /// A CPU's.
    pub(crate) fn of(self, cpu: usize) -> &'static Switcher {
        &self.0[cpu.min(self.0.len() - 1)]
    }
}

/// The host's part: choose a variant for this CPU, assemble it here, install it on all CPUs, run the
/// cases.
fn run(cases: &[hw_cases::Case], options: Options, report: &mut Report) {
    let features = cpu::tracked(HostFeatures::detect);
    let variant = Variant::for_host(&features, Selectors::DEFAULT);
    let variant = variant.unwrap_or_else(|why| fatal(&why)).with_policy(options.policy);
    let variant = returns::with_untraining(variant);
    let switchers = Switchers::assemble(&variant);

    switchers.0.iter().for_each(|switcher| report.switcher(switcher));
    let before = host::Control::read();
    let others = Others::start(switchers, options.breakpoints);
    let mut world = world_on(switchers, 0, options.breakpoints);
    for case in cases {
        let (runs, end) = case.run(&mut world);
        let failure = match end {
            End::Passed => None,
            End::Failed(why) => Some(format!("{}: {why}", Hazard::join(case.rows))),
            // The runner knows which cases may say so.
            End::NotHere(why) => {
                report.not_here(case.name, &why);
                continue;
            }
        };
        report.case(case.name, runs, failure.as_deref());
    }
    host::all(world, others, before, options.breakpoints, report);
}

/// Installs the switcher on the CPU that this runs on, and makes guests' memory for it.
fn world_on(switchers: Switchers, cpu: usize, breakpoints: bool) -> BareMetal<'static> {
    let switcher = switchers.of(cpu);
    let variant = switcher.image().variant();
    let Some(block) = NonNull::new(percpu::block(cpu)) else {
        fatal(&"the per-CPU block is at address 0")
    };
    // SAFETY: the block is this CPU's, its TSS is loaded, and sp0 and IST 1 to 4 are the tops of stacks
    // nobody else uses, with room for what lies above and for the hooks of events.rs, which are as the runtime
    // asks; and nothing else writes the SYSCALL MSRs or GS base.
    let cpu = cpu::tracked(|| unsafe { switcher.install(block) });
    let cpu = cpu.unwrap_or_else(|why| fatal(&why));
    let platform = hw_cases::Platform {
        vendor: variant.axes().vendor,
        paging: variant.axes().paging,
        selectors: variant.selectors(),
        aliases: (segments::USER_CS_ALIAS, segments::USER_DS_ALIAS),
        revision: variant.axes().policy.revision,
        pku: variant.axes().pku,
    };
    let pcid = HostFeatures::detect().state().pcid_enabled();
    BareMetal::new(cpu, platform, pcid, breakpoints).unwrap_or_else(|why| fatal(&why))
}

/// Ends the run: without a switcher there is nothing to report on.
pub(crate) fn fatal(why: &dyn core::fmt::Display) -> ! {
    exit::fatal(format_args!("{why}"))
}
