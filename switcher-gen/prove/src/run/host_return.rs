//! What a switcher finds of a host whose RETs are those of a return thunk: its untraining and the
//! thunk itself ([`HostSymbol::RETURNS`](switcher_gen::asm::HostSymbol::RETURNS)), as far as their
//! contract goes.

use crate::goal::Goals;
use crate::run::end::{End, wild};
use crate::run::watch::Watch;
use crate::world::event::EventContext;
use crate::world::{Untraining, World};
use switcher_model::{ARITHMETIC, Access, Domain, Flags, Gpr};
use switcher_spec as spec;

/// Where control has gone that has left the code, if the host has a return thunk.
pub(crate) enum HostReturn<W> {
    /// It has gone neither to the untraining nor to the thunk.
    Elsewhere,
    /// The host has returned to the code.
    Back,
    /// A RET of the host's thunk has led out of the code.
    Returned,
    /// There was no return address.
    Broken(End<W>),
}

/// The root on which code of the host's runs that the switcher calls: its own, or the one that was
/// interrupted if no guest is being run.
pub(crate) fn root<D: Domain>(d: &D, world: &World<D>, watch: &Watch<'_, D>) -> D::Word {
    let World { setting, event, spec, .. } = world;
    match event {
        Some(EventContext { event, interrupted, .. }) if watch.entry.theorem.is_in_ring_0() => {
            spec::hook(d, &setting.host(), event, interrupted, spec).root
        }
        _ => spec.tss_extra.host_cr3,
    }
}

/// Control has left the code. If it has gone to the host's untraining or thunk, that is executed.
pub(crate) fn left<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) -> HostReturn<D::Word> {
    let target = watch.entry.target;
    let rip = d.code_at(world.machine.rip);
    let [untrain, thunk] = target.returns.map(|of_host| rip == Some(of_host) && of_host != 0);
    let root = untrain.then(|| root(d, world, watch));
    let World { machine, untraining, host_gs, .. } = world;
    // Other hosts have neither of the two.
    let Some(untraining) = untraining else { return HostReturn::Elsewhere };
    if !untrain && !thunk {
        return HostReturn::Elsewhere;
    }
    let rsp = machine.get(Gpr::Rsp);
    let Some(place) = machine.memory.locate(d, rsp, 8, machine.cr3) else {
        let at = watch.trace.last().copied().unwrap_or_default();
        return HostReturn::Broken(wild(at, rsp, 8, false));
    };
    let value = machine.memory.load(d, place);
    watch.pushed.popped(d, &target.program, &Access { place, value, gs: false, store: false });
    machine.rip = value;
    machine.set(Gpr::Rsp, d.plus(rsp, 8));
    let is_back = d.code_at(value).is_some_and(|rip| target.program.contains(rip));
    if let Some(root) = root {
        watch.untrain(d, goals, machine, [root, *host_gs]);
        let Untraining { registers: [rax, rcx, rdx], flags, below } = untraining;
        for (register, word) in [(Gpr::Rax, rax), (Gpr::Rcx, rcx), (Gpr::Rdx, rdx)] {
            machine.set(register, *word);
        }
        let kept = d.mask(machine.rflags(d), !ARITHMETIC);
        machine.flags = Flags::new(d, d.or(kept, d.mask(*flags, ARITHMETIC)));
        // Its own calls overwrite the stack, and so may be the address that it has returned to.
        let stack = &mut machine.memory.regions[place.region];
        let end = place.index + place.size;
        for (cell, other) in stack.cells[..end].iter_mut().rev().zip(below) {
            *cell = *other;
        }
    }
    // Both end with a RET of the thunk's.
    let is_own = watch.is_predicted(d.code_at(value));
    watch.at_return(d, goals, machine, is_own, true, 0);
    watch.returned();
    match is_back {
        true => HostReturn::Back,
        false => HostReturn::Returned,
    }
}
