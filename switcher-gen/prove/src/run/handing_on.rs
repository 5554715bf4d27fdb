//! What must hold where the host's handler of an event is called that has ended a guest's run, and
//! where its caller goes on.

use crate::goal::Goals;
use crate::obligation;
use crate::run::unchanged::{unchanged, untouched};
use crate::run::watch::Watch;
use crate::world::World;
use crate::world::fields::{by_number, registers};
use crate::world::handing_on::HandingOn;
use switcher_gen::arch::RFlags;
use switcher_gen::layout::IretFrame;
use switcher_model::{ARITHMETIC, Domain, Flags, Gpr, RegionName};
use switcher_spec as spec;
use switcher_spec::InterruptedCode;

/// The name of what the handler leaves on stacks.
const LEFT: &str = "what a handler leaves on a stack";

/// Control has left the code. If that was to the handler, it must find what the CPU would have
/// delivered, and returns by IRET with all registers as it has found them. Whether it was.
pub(crate) fn to_handler<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) -> bool {
    let is_there = |on: &HandingOn<D>| on.handler == world.machine.rip;
    if !world.handing_on.as_ref().is_some_and(is_there) {
        return false;
    }
    // What is not in the frame is as it was, too: that it is put back later is no use to a handler.
    as_before(d, world, watch, goals);
    let World { machine, handing_on, .. } = world;
    let Some(on) = handing_on.as_mut() else { return false };
    goals.add(obligation::HAND_ON, d.bit(!on.is_called), "how often");
    on.is_called = true;
    let rsp = machine.get(Gpr::Rsp);
    let slot = |at: i64| {
        let place = machine.memory.locate(d, d.plus(rsp, at), 8, machine.cr3);
        place.map(|place| machine.memory.load(d, place))
    };
    let frame = [IretFrame::rip, IretFrame::cs, IretFrame::eflags, IretFrame::rsp, IretFrame::ss]
        .map(|field| slot(field.bytes() as i64));
    let [Some(rip), Some(cs), Some(rflags), Some(old_rsp), Some(ss)] = frame else {
        goals.add(obligation::HAND_ON, d.bit(false), "RSP");
        return false;
    };
    let is_code = d.code_at(rip).is_some_and(|at| watch.entry.target.program.contains(at));
    goals.add(obligation::HAND_ON, d.bit(is_code), "rip");
    // It may have interrupted the code where the frame says, with the caller's RSP and flags.
    let own = registers(&machine.gpr);
    let registers = spec::Registers { rsp: on.caller.registers.rsp, ..own };
    let interrupted = InterruptedCode { registers, rip, ..on.caller };
    let spec::Delivered { rsp: expected, rflags: flags, interrupted } =
        spec::delivered(d, &interrupted, on.top);
    for (name, expected, got) in [
        ("RSP", expected, rsp),
        ("cs", interrupted.cs, cs),
        ("rflags", interrupted.rflags, rflags),
        ("rsp", interrupted.registers.rsp, old_rsp),
        ("ss", interrupted.ss, ss),
        ("RFLAGS", flags, d.mask(machine.rflags(d), !ARITHMETIC)),
        ("CS", interrupted.cs, machine.cs),
        ("SS", interrupted.ss, machine.ss),
        ("CR3", interrupted.root, machine.cr3),
        ("GS base", interrupted.gs_base, machine.gs_base),
        ("inactive GS base", interrupted.inactive_gs_base, machine.inactive_gs_base),
    ] {
        goals.equal(d, obligation::HAND_ON, name, expected, got);
    }
    let (before, now) = (on.nmi_blocked, machine.nmi_blocked);
    let is_kept = d.both(d.either(d.not(before), now), d.either(before, d.not(now)));
    goals.add(obligation::NMI_KEPT, is_kept, "NMIs");

    machine.rip = rip;
    machine.set(Gpr::Rsp, old_rsp);
    (machine.cs, machine.ss) = (cs, ss);
    machine.flags = Flags::new(d, rflags);
    machine.nmi_blocked = d.bit(false);
    // Other handlers come on the same stacks.
    let kept = machine.memory.locate(d, old_rsp, 8, machine.cr3);
    for (index, stack) in machine.memory.regions.iter_mut().enumerate() {
        let end = match stack.name {
            RegionName::IstStack => stack.cells.len(),
            _ => kept.filter(|kept| kept.region == index).map_or(0, |kept| kept.index),
        };
        for chunk in stack.cells[..end].chunks_mut(8) {
            let left = d.anew(LEFT, chunk.len());
            d.store(chunk, left);
        }
    }
    watch.has_hosts_code_run = true;
    true
}

/// What must hold where the caller goes on.
pub(crate) fn returned<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) -> String {
    let World { machine, handing_on, .. } = world;
    let end = String::from("to whoever hands the event on");
    let Some(on) = handing_on else { return end };
    goals.add(obligation::HAND_ON, d.bit(on.is_called), "how often");
    let before = &on.caller;
    let expected = by_number(&before.registers);
    let kept = [Gpr::Rbx, Gpr::Rbp, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15];
    for register in kept {
        let (expected, got) = (expected[register as usize], machine.get(register));
        goals.equal(d, obligation::HANDED_BACK, register.name(), expected, got);
    }
    let unwanted = RFlags::DF | RFlags::AC | RFlags::NT | RFlags::TF | RFlags::IF | RFlags::IOPL;
    for (name, expected, got) in [
        ("RIP", world.caller.rip, machine.rip),
        ("RSP", d.plus(before.registers.rsp, 8), machine.get(Gpr::Rsp)),
        ("flags", d.word(0), d.mask(machine.rflags(d), unwanted.bits())),
        ("CS", before.cs, machine.cs),
        ("SS", before.ss, machine.ss),
        ("CR3", before.root, machine.cr3),
        ("GS base", before.gs_base, machine.gs_base),
        ("inactive GS base", before.inactive_gs_base, machine.inactive_gs_base),
    ] {
        goals.equal(d, obligation::HANDED_BACK, name, expected, got);
    }
    goals.add(obligation::NMI_UNBLOCKED, d.not(machine.nmi_blocked), "NMIs");
    as_before(d, world, watch, goals);
    end
}

/// What neither a handler nor its caller may find changed: memory, MSRs and what else no frame has.
fn as_before<D: Domain>(d: &D, world: &World<D>, watch: &mut Watch<'_, D>, goals: &mut Goals<D>) {
    untouched(d, world, watch, goals, &world.spec);
    for name in [RegionName::Tss, RegionName::TssExtra, RegionName::Pvcs, RegionName::Sp0Stack] {
        unchanged(d, world, goals, name, i64::MIN..i64::MAX);
    }
    unchanged(d, world, goals, RegionName::HostStack, 0..i64::MAX);
}
