//! How much of a stack the runtime's functions need that a test on this CPU's user mode cannot
//! call.

use alloc::format;
use alloc::string::String;

use hw_cases::Expected;
use hw_platform::{serial_println, smp};
use hw_protocol::Need;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::{Exit, HostHandler, Mode};

use super::hand_on::{HostIdt, begin, send_interrupt};
use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::painted::on_painted;
use crate::programs::PROBE;
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/each_function_needs_no_more_of_a_stack_than_it_says",
    shown: "The stack that a function of the runtime needs is what its documentation says.",
    // A kernel's stack has a few pages, and what lies below it is somebody's.
    rows: &[Hazard::MappedSet],
    cpus: 1,
    needs: &[Need::LocalApic],
    run: |bench| needed(bench.host()?),
}];

/// Compares what a function has used with what its documentation says, in bytes.
pub(super) fn is_within(name: &str, used: usize, most: usize) -> Result<(), String> {
    serial_println!("stack: {name} uses {used} bytes");
    match used <= most {
        true => Ok(()),
        false => Err(format!("{name} uses {used} bytes of stack, not {most} at most")),
    }
}

fn needed(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(14);
    let setup = setup(host, &mut rng, Mode::Umod, PROBE);
    let mut guest = host.prepare(&setup);
    let (ended, used) = on_painted(|| host.cpu_mut().enter(&mut guest));
    if ended != Ok(Expected::UD) {
        return Err(format!("the guest has ended by {ended:x?}"));
    }
    is_within("enter", used, 1536)?;

    smp::aim_nmis(0);
    let idt = HostIdt::load()?;
    begin(0);
    send_interrupt();
    guest = host.prepare(&setup);
    let exit = host.cpu_mut().enter(&mut guest);
    let event = exit.ok().and_then(Exit::host_event).ok_or("the guest has met no interrupt")?;
    // SAFETY: this host's IDT is loaded, whose handler keeps all registers.
    let (handed, used) = on_painted(|| unsafe { host.cpu_mut().hand_on(event, HostHandler::Gate) });
    idt.restore();
    handed.map_err(|why| format!("{why}"))?;
    // The handler of this kernel uses 104 bytes itself.
    is_within("hand_on", used, 512 + 104)?;

    let (_, used) = on_painted(|| host.cpu().mappings().into_iter().count());
    is_within("mappings", used, 2048)?;
    let (_, used) = on_painted(|| host.cpu().assess().map(|_| ()));
    is_within("assess", used, 2048)?;
    let (barrier, used) = on_painted(|| host.cpu_mut().barrier_before_user_mode());
    barrier.map_err(|why| format!("{why}"))?;
    is_within("barrier_before_user_mode", used, 512)?;
    Ok(5)
}
