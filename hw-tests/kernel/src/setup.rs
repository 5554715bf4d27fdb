//! Guests of host cases, and the check of their outcomes.

use alloc::format;
use alloc::string::String;

use hw_cases::{CaseHost, Expected, Setup, place};
use switcher_runtime::Mode;
use switcher_runtime::switcher_gen::arch::RFlags;

use crate::case_host::BareMetal;

/// A guest in `mode` that runs `code`.
pub(crate) fn setup(
    host: &BareMetal<'_>,
    rng: &mut fastrand::Rng,
    mode: Mode,
    code: &[u8],
) -> Setup {
    let mut setup = Setup::random(rng, &host.platform(), mode).with(mode, place::UMOD_CODE, code);
    setup.regs.rip = place::UMOD_CODE;
    setup.regs.eflags &= !RFlags::AC.bits();
    setup
}

/// Runs a guest and compares its outcome with what is expected.
pub(crate) fn check(
    host: &mut BareMetal<'_>,
    setup: &Setup,
    expected: &Expected,
) -> Result<(), String> {
    match host.run(setup) {
        Ok(outcome) => expected.compare(setup, &outcome).map_err(|why| why.0),
        Err(why) => Err(format!("{why:?}")),
    }
}
