//! Guests of several machines by turns.

use alloc::format;

use switcher_runtime::{Barriers, Domain};

use crate::bench::{Ended, HostCase};
use crate::programs::PROBE;
use crate::refusal::{enter, guest};
use crate::world::BareMetal;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/a_barrier_stands_between_two_guests_by_turns",
    shown: "A barrier comes whenever another guest than the last is entered, and nowhere else.",
    rows: &[54],
    cpus: 1,
    needs: &[],
    run: |bench| two_guests(bench.world()?),
}];

/// Guests of two machines by turns on one CPU: a barrier at each change, and nowhere else (spec/hazards.md,
/// row 54).
fn two_guests(world: &mut BareMetal<'_>) -> Ended {
    let mut guests = [guest(world, PROBE), guest(world, PROBE)];
    let [a, b] = [Domain::new(), Domain::new()];
    guests[0].set_domain(a);
    guests[1].set_domain(b);
    let mut entered = 0;
    // Who runs, and whether a barrier comes first. A second virtual CPU of `b` is no stranger to it.
    let turns = [(0, true), (0, false), (1, true), (0, true), (0, false), (1, true), (1, false)];
    for (who, barrier) in turns.into_iter().cycle().take(70).skip(1).chain([(1, false)]) {
        let before = world.cpu().barriers();
        let mut vcpu = guests[who].clone();
        enter(world, &mut vcpu)?;
        let came = world.cpu().barriers() - before;
        // The first of all follows the guests of other cases.
        if entered > 0 && came != u64::from(barrier) {
            return Err(format!("turn {entered}, guest {who}: {came} barriers"));
        }
        entered += 1;
    }
    // The host's own user mode comes behind one barrier, whoever has run.
    let before = world.cpu().barriers();
    world.cpu_mut().barrier_before_user_mode().map_err(|why| format!("{why}"))?;
    world.cpu_mut().barrier_before_user_mode().map_err(|why| format!("{why}"))?;
    if world.cpu().barriers() - before != 1 {
        return Err("user mode after a guest: not one barrier".into());
    }
    // And the next guest behind another one: user mode has trained, too.
    let before = world.cpu().barriers();
    enter(world, &mut guests[1].clone())?;
    enter(world, &mut guests[1].clone())?;
    entered += 2;
    if world.cpu().barriers() - before != 1 {
        return Err("a guest after user mode: not one barrier".into());
    }
    // Left to the host, there is none.
    world.cpu_mut().set_barriers(Barriers::Host);
    let before = world.cpu().barriers();
    for who in [0, 1, 0] {
        enter(world, &mut guests[who].clone())?;
        entered += 1;
    }
    world.cpu_mut().set_barriers(Barriers::Enter);
    let came = world.cpu().barriers() - before;
    if came != 0 {
        return Err(format!("left to the host: {came} barriers"));
    }
    // But it is not forgotten that another one has run since the last of them, and user mode's barrier comes
    // all the same.
    enter(world, &mut guests[0].clone())?;
    entered += 1;
    let came = world.cpu().barriers() - before;
    if came != 1 {
        return Err(format!("after barriers of the host's: {came}"));
    }
    world.cpu_mut().set_barriers(Barriers::Host);
    enter(world, &mut guests[1].clone())?;
    entered += 1;
    world.cpu_mut().barrier_before_user_mode().map_err(|why| format!("{why}"))?;
    world.cpu_mut().set_barriers(Barriers::Enter);
    match world.cpu().barriers() - before {
        2 => Ok(entered),
        came => Err(format!("user mode, with barriers of the host's: {came} in all")),
    }
}
