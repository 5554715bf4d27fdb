//! The loop of a host around a guest.

use alloc::format;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::ControlFlow;

use hw_cases::Expected;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::{Cpu, Exit, ExitWork, Guest};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::refusal::guest;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/work_that_comes_up_goes_before_the_guest",
    shown: "The loop asks for work right before each entry, and the guest does not notice.",
    rows: &[Hazard::HandedOn],
    cpus: 1,
    needs: &[],
    run: |bench| work_goes_first(bench.host()?),
}];

/// What the loop has done, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Asked,
    Worked,
    Handled(Exit),
}

/// A host that has work as often as `pending` says, entry by entry.
struct Host {
    pending: RefCell<Vec<bool>>,
    done: RefCell<Vec<Done>>,
    exits: usize,
}

impl ExitWork for Host {
    type End = ();

    fn handle(&mut self, _: &mut Cpu<'_>, guest: &mut Guest, exit: Exit) -> ControlFlow<()> {
        self.done.borrow_mut().push(Done::Handled(exit));
        self.exits -= 1;
        // The guest goes on where it was, and ends there once more.
        guest.regs.rax += 1;
        if self.exits == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_pending(&self) -> bool {
        self.done.borrow_mut().push(Done::Asked);
        self.pending.borrow_mut().pop().unwrap_or(false)
    }

    fn work(&mut self, _: &mut Guest) -> ControlFlow<()> {
        self.done.borrow_mut().push(Done::Worked);
        ControlFlow::Continue(())
    }
}

fn work_goes_first(host: &mut BareMetal<'_>) -> Ended {
    use Done::{Asked, Handled, Worked};
    let mut one = guest(host, PROBE);
    let before = one.regs;
    // The last of them is asked for first.
    let pending = RefCell::new(Vec::from([false, true, false, true, true]));
    let mut around = Host { pending, done: RefCell::default(), exits: 3 };
    host.cpu_mut().run_guest(&mut one, &mut around).map_err(|why| format!("{why}"))?;
    let end = Handled(Expected::UD);
    let wanted = [Asked, Worked, Asked, Worked, Asked, end, Asked, Worked, Asked, end, Asked, end];
    let done = around.done.into_inner();
    if done != wanted {
        return Err(format!("{done:?}"));
    }
    let (rip, rax) = (one.regs.rip, one.regs.rax);
    if (rip, rax) != (before.rip, before.rax.wrapping_add(3)) {
        return Err(format!("the guest is at {rip:#x} with RAX {rax:#x}, not as {before:x?}"));
    }
    // Work that is there is done, and the guest has not run.
    let answer = host.cpu_mut().enter_unless(&mut one, || true);
    match answer {
        Ok(None) if one.regs.rip == rip && one.regs.rax == rax => Ok(3),
        other => Err(format!("with work to do, the guest came to {other:?}")),
    }
}
