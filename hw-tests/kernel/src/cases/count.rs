//! How many instructions a run of a guest takes, on emulators whose TSC counts them.

use alloc::format;
use core::arch::asm;

use hw_cases::Expected;
use hw_platform::cpu::tsc;
use hw_platform::serial_println;
use hw_protocol::Need;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::layout::PtRegs;
use switcher_runtime::{Exit, Mode};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/what_a_run_takes_besides_the_switcher_is_bounded",
    shown: "What a run repeats stays as short as it is: what is slow is done once, by prepare.",
    // An interrupt that ends a run waits for the rest of it.
    rows: &[Hazard::HandedOn],
    cpus: 1,
    needs: &[Need::CountedInstructions],
    run: |bench| count(bench.host()?),
}];

/// The most instructions that a run takes besides the switcher's and the guest's.
const MOST: u64 = 1500;
/// How many runs are counted: the TSC is not exact to one instruction.
const RUNS: u64 = 64;

/// The instructions from one look at the TSC to the next.
fn around(what: impl FnOnce()) -> u64 {
    let before = tsc();
    what();
    tsc() - before
}

/// Calls the switcher, and says when.
///
/// # Safety
/// The contract of [`enter_with`](switcher_runtime::Cpu::enter_with) must hold.
unsafe fn timed(entry: u64, [before, after]: &mut [u64; 2]) -> *mut PtRegs {
    let frame: *mut PtRegs;
    *before = tsc();
    // SAFETY: the caller vouches for the entry, which keeps to the System V ABI but for MXCSR and
    // the x87 state; the guest has changed neither.
    unsafe { asm!("call {0}", in(reg) entry, lateout("rax") frame, clobber_abi("sysv64")) };
    *after = tsc();
    frame
}

fn count(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(13);
    let setup = setup(host, &mut rng, Mode::Umod, PROBE);
    let guest = |host: &mut BareMetal<'_>| {
        let mut guest = host.prepare(&setup);
        // Most guests have no breakpoints.
        guest.debug = None;
        guest
    };
    let (mut all, mut switcher) = (0, 0);
    for _ in 0..RUNS {
        let mut one = guest(host);
        let mut ended = Ok(Exit::Syscall);
        all += around(|| ended = host.cpu_mut().enter(&mut one));
        let mut two = guest(host);
        let mut times = [0; 2];
        // SAFETY: `timed` calls the switcher once.
        let again = unsafe { host.cpu_mut().enter_with(&mut two, timed, &mut times) };
        switcher += times[1] - times[0];
        if (ended, again) != (Ok(Expected::UD), Ok(Expected::UD)) {
            return Err(format!("the guests have ended by {ended:x?} and {again:x?}"));
        }
    }
    let (all, switcher) = (all / RUNS, switcher / RUNS);
    serial_println!(
        "instructions of a run: {all}, of which {switcher} are the switcher's and the guest's"
    );
    match all - switcher {
        own if own <= MOST => Ok(own),
        own => Err(format!("besides the switcher's, a run takes {own} instructions")),
    }
}
