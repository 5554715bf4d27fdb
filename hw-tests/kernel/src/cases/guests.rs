//! Guests of several machines, which run by turns.

use alloc::format;

use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::{Barriers, Domain};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::programs::PROBE;
use crate::refusal::{enter, guest};

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/a_barrier_stands_between_two_guests_by_turns",
    shown: "A barrier comes whenever another guest than the last is entered, and nowhere else.",
    rows: &[Hazard::GuestAfterGuest],
    cpus: 1,
    needs: &[],
    run: |bench| two_guests(bench.host()?),
}];

/// Guests of two machines run by turns on one CPU: a barrier comes at each change, and at no other
/// time (spec/hazards.md, row 54).
fn two_guests(host: &mut BareMetal<'_>) -> Ended {
    let mut guests = [guest(host, PROBE), guest(host, PROBE)];
    let [a, b] = [Domain::new(), Domain::new()];
    guests[0].set_domain(a);
    guests[1].set_domain(b);
    let mut entered = 0;
    // Each turn says which guest runs, and whether a barrier comes first. A second virtual CPU of
    // `b` is in the same domain as `b`.
    let turns = [(0, true), (0, false), (1, true), (0, true), (0, false), (1, true), (1, false)];
    for (who, barrier) in turns.into_iter().cycle().take(70).skip(1).chain([(1, false)]) {
        let before = host.cpu().barriers();
        let mut vcpu = guests[who].clone();
        enter(host, &mut vcpu)?;
        let came = host.cpu().barriers() - before;
        // The first turn of all follows the guests of other cases.
        if entered > 0 && came != u64::from(barrier) {
            return Err(format!("turn {entered}, guest {who}: there were {came} barriers"));
        }
        entered += 1;
    }
    // One barrier comes before the host's own user mode, whichever guest has run.
    let before = host.cpu().barriers();
    host.cpu_mut().barrier_before_user_mode().map_err(|why| format!("{why}"))?;
    host.cpu_mut().barrier_before_user_mode().map_err(|why| format!("{why}"))?;
    if host.cpu().barriers() - before != 1 {
        return Err("user mode after a guest has not made exactly one barrier".into());
    }
    // Another barrier comes before the next guest, because user mode has trained predictors, too.
    let before = host.cpu().barriers();
    enter(host, &mut guests[1].clone())?;
    enter(host, &mut guests[1].clone())?;
    entered += 2;
    if host.cpu().barriers() - before != 1 {
        return Err("a guest after user mode has not made exactly one barrier".into());
    }
    // If barriers are left to the host, entering takes none.
    host.cpu_mut().set_barriers(Barriers::Host);
    let before = host.cpu().barriers();
    for who in [0, 1, 0] {
        enter(host, &mut guests[who].clone())?;
        entered += 1;
    }
    host.cpu_mut().set_barriers(Barriers::Enter);
    let came = host.cpu().barriers() - before;
    if came != 0 {
        return Err(format!("there were {came} barriers although they are left to the host"));
    }
    // But the runtime remembers that another guest has run since the last barrier, and user mode's
    // barrier comes all the same.
    enter(host, &mut guests[0].clone())?;
    entered += 1;
    let came = host.cpu().barriers() - before;
    if came != 1 {
        return Err(format!(
            "there were {came} barriers, not one, once they are not left to the host any more"
        ));
    }
    host.cpu_mut().set_barriers(Barriers::Host);
    enter(host, &mut guests[1].clone())?;
    entered += 1;
    host.cpu_mut().barrier_before_user_mode().map_err(|why| format!("{why}"))?;
    host.cpu_mut().set_barriers(Barriers::Enter);
    match host.cpu().barriers() - before {
        2 => Ok(entered),
        came => Err(format!(
            "with barriers left to the host, user mode brought them to {came}, not to two"
        )),
    }
}
