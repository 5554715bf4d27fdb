//! The switchers of this run, and the CPUs on which they are active.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ptr::NonNull;

use hw_platform::code_memory::CodeMemory;
use hw_platform::high::Half;
use hw_platform::memory::code_start;
use hw_platform::{cpu, exit, hooks, percpu, segments, smp};
use switcher_runtime::switcher_gen::arch::Vendor;
use switcher_runtime::switcher_gen::layout::Placement;
use switcher_runtime::switcher_gen::{Config, Mitigations};
use switcher_runtime::{
    Detect, GuestPcids, HostFeatures, PrepareError, Prepared, Switcher, Tables, Variant,
};

use crate::case_host::BareMetal;

/// The first and the last PCID of guests: others than the runtime takes where nobody chooses.
const PCIDS: (u16, u16) = (0x7C0, 0x7DF);

/// The switchers: one for each CPU, where the placement wants that, or one for all CPUs.
#[derive(Clone, Copy)]
pub(crate) struct Switchers(&'static [Switcher]);

impl Switchers {
    /// Assembles the switchers. They live for ever, because the SYSCALL MSRs refer to them.
    pub(crate) fn assemble(variant: &Variant) -> Self {
        let places: Vec<u64> = match variant.placement() {
            // With untraining, all that the switcher calls must be near.
            Placement::Gs if variant.mitigations().untrain => {
                [percpu::code_near_image(0).start].into()
            }
            Placement::Gs => [code_start(Half::Upper)].into(),
            Placement::PerCpu => (0..smp::count()).map(|cpu| percpu::code(cpu).start).collect(),
        };
        let switchers = places.into_iter().map(|place| {
            let memory = Box::leak(Box::new(CodeMemory::at(place)));
            let switcher = Switcher::assemble(variant, &hooks::hooks(), memory);
            let pcids = GuestPcids::new(PCIDS.0, PCIDS.1).unwrap_or_else(|why| fatal(&why));
            switcher.unwrap_or_else(|why| fatal(&why)).with_pcids(pcids)
        });
        Self(Vec::leak(switchers.collect()))
    }

    /// All switchers.
    pub(crate) fn iter(self) -> impl Iterator<Item = &'static Switcher> {
        self.0.iter()
    }

    /// The switcher of a CPU.
    pub(crate) fn of(self, cpu: usize) -> &'static Switcher {
        &self.0[cpu.min(self.0.len() - 1)]
    }
}

/// The variant with untraining on AMD's CPUs, whether this CPU needs it or not, so that it is
/// tested.
pub(crate) fn with_untraining(variant: Variant) -> Variant {
    let config = variant.config();
    let untrain = config.vendor == Vendor::Amd;
    let ibpb = config.mitigations.ibpb && !untrain;
    let mitigations = Mitigations { untrain, ibpb, ..config.mitigations };
    // The mitigations exist for this vendor, so `new` accepts them.
    Variant::new(Config { mitigations, ..config }, variant.selectors()).unwrap_or(variant)
}

/// Makes the switcher active on the CPU on which this runs, and makes guests' memory for it.
pub(crate) fn host_on(switchers: Switchers, cpu: usize, breakpoints: bool) -> BareMetal<'static> {
    host_of(switchers.of(cpu), cpu, breakpoints, Tables::Hosts)
}

/// The same of one switcher, with these tables for guests.
pub(crate) fn host_of(
    switcher: &'static Switcher,
    cpu: usize,
    breakpoints: bool,
    tables: Tables<'_>,
) -> BareMetal<'static> {
    let variant = switcher.variant();
    let prepared = prepared(switcher, cpu, tables).unwrap_or_else(|why| fatal(&why));
    // SAFETY: nothing else writes the SYSCALL MSRs, and CPL 3 has guests only.
    let cpu = unsafe { prepared.activate() }.unwrap_or_else(|refused| fatal(&refused));
    let platform = hw_cases::Platform {
        vendor: variant.vendor(),
        paging: variant.paging(),
        selectors: variant.selectors(),
        aliases: (segments::USER_CS_ALIAS, segments::USER_DS_ALIAS),
        revision: variant.revision(),
        pku: variant.pku(),
    };
    let pcid = HostFeatures::detect().state().pcid_enabled();
    BareMetal::new(cpu, platform, pcid, breakpoints).unwrap_or_else(|why| fatal(&why))
}

/// Prepares the CPU on which this runs for a switcher.
pub(crate) fn prepared<'s>(
    switcher: &'s Switcher,
    cpu: usize,
    tables: Tables<'_>,
) -> Result<Prepared<'s>, PrepareError> {
    let Some(block) = NonNull::new(percpu::block(cpu)) else {
        fatal(&"the per-CPU block is at address 0")
    };
    // SAFETY: the block is this CPU's, its TSS is loaded or will be, and sp0 and IST 1 to 4 are the
    // tops of stacks that nobody else uses, with room for what lies above and for the hooks of
    // hooks.rs, which are as the runtime asks.
    cpu::tracked(|| unsafe { switcher.prepare(block, tables) })
}

/// Ends the run: without a switcher there is nothing to test.
pub(crate) fn fatal(why: &dyn core::fmt::Display) -> ! {
    exit::fatal(format_args!("{why}"))
}
