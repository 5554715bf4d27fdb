//! The host's untraining of returns.

use alloc::format;

use hw_cases::{CaseHost, place};
use hw_platform::returns;
use switcher_runtime::Mode;
use switcher_runtime::switcher_gen::Hazard;

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::{PROBE, SYSCALL};
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/each_exit_untrains_returns_once_where_the_host_does",
    shown: "Each exit calls the host's untraining once, and direct switches do not.",
    rows: &[Hazard::MitigationOrder],
    cpus: 1,
    needs: &[],
    run: |bench| untraining(bench.host()?),
}];

/// Exits call the host's untraining of returns, direct switches do not (spec/hazards.md, row 29).
/// Only this CPU runs guests now.
fn untraining(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(29);
    let variant = *host.cpu().switcher().variant();
    let each = u64::from(variant.mitigations().untrain);
    let mut entered = 0;
    // smod's SYSCALL is an exit; umod's leads to smod, which faults.
    for code in [PROBE, &[SYSCALL, PROBE].concat()] {
        for mode in [Mode::Smod, Mode::Umod] {
            for _ in 0..100 {
                let before = returns::untrained();
                let setup = setup(host, &mut rng, mode, code);
                let setup = setup.with(Mode::Smod, place::SMOD_ENTRY, PROBE);
                host.run(&setup).map_err(|why| format!("{why:?}"))?;
                let times = returns::untrained() - before;
                if times != each {
                    return Err(format!("{mode:?}: returns were untrained {times} times"));
                }
                entered += 1;
            }
        }
    }
    Ok(entered)
}
