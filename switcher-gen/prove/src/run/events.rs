//! Events in a run: which stub is executed, how the CPU delivers them, and what a hook of the
//! host's finds and leaves.

use crate::goal::Goals;
use iced_x86::Mnemonic;
use std::ops::Range;

use crate::entry::Entry;
use crate::gate::TargetGate;
use crate::obligation;
use crate::run::end::End;
use crate::run::origins::{is_steered, steers_the_host};
use crate::run::unchanged::{unchanged, untouched};
use crate::run::watch::Watch;
use crate::stubs::Alike;
use crate::target::Target;
use crate::theorem::{Theorem, Whose};
use crate::world::event::{EventContext, NOFLUSH, STACK};
use crate::world::fields::{FRAME_REST, by_number, in_frame};
use crate::world::{World, region_of};
use switcher_gen::arch::{RFlags, vector};
use switcher_gen::asm::HostSymbol;
use switcher_gen::layout::{EventFrame, IretFrame};
use switcher_model::{ARITHMETIC, Arrival, Domain, Flags, Gate, Gpr, RegionName, State as Machine};
use switcher_spec as spec;
use switcher_spec::InterruptedCode;

/// The stubs of which one is executed: those of the vector. If the stub is like no other, the
/// vector is a number from here on.
pub(crate) fn which<'a, D: Domain>(d: &D, entry: Entry<'a>, world: &mut World<D>) -> &'a Alike {
    let Some(EventContext { event, .. }) = &mut world.event else {
        unreachable!("only what is about an event is executed");
    };
    let mut last = None;
    let mut parts = entry.stubs().iter().peekable();
    while let Some(part) = parts.next() {
        // It must be the last if it is not one of the others.
        if parts.peek().is_none() || d.decide(part.holds(d, event.vector)) {
            last = Some(part);
            break;
        }
    }
    let part = last.expect("an event has a vector");
    if !part.has_others() {
        event.vector = d.word(part.first().into());
    }
    part
}

/// The stub has pushed its number. Each of those that are alike pushes its own.
pub(crate) fn is_any<D: Domain>(d: &D, world: &mut World<D>, part: &Alike) {
    let World { machine, event, .. } = world;
    let place = machine.memory.locate(d, machine.get(Gpr::Rsp), 8, machine.cr3);
    if let (Some(place), Some(EventContext { event, .. })) = (place, event) {
        machine.memory.store(d, place, part.pushed(d, event.vector));
    }
}

/// The CPU delivers `vector`. If it cannot, the run ends.
pub(crate) fn deliver<D: Domain>(
    d: &D,
    entry: Entry<'_>,
    world: &mut World<D>,
    goals: &mut Goals<D>,
    vector: u8,
    error_code: Option<D::Word>,
) -> Option<End<D::Word>> {
    let tss = d.plus(region_of(world, RegionName::Tss).base, world.setting.block.tss);
    let World { machine, model, .. } = world;
    let target = entry.target;
    let arrived = entry.gate(vector).is_some_and(|gate| {
        if target.setting.variant.ibt() {
            let is_endbr = d.bit(target.is_endbr(gate.address));
            goals.add(obligation::ENDBR, is_endbr, "event entry");
        }
        // The frame of a fault has RF set, whatever it was before. RF may be set in the interrupted
        // flags, too: so that is no case of its own.
        let is_nmi = vector == vector::NMI;
        let arrival = Arrival { error_code, is_fault: false, is_nmi };
        let gate = Gate { handler: d.code(gate.address), ist: gate.ist };
        machine.deliver(d, model, tss, gate, arrival).is_ok()
    });
    let (obligation, about) = (obligation::GATE_IST, "RSP");
    let text = format!("with vector {vector}, for which there is no known stack");
    (!arrived).then_some(End::Broken { obligation, text, about, values: None })
}

/// The registers that code of C may change.
pub(crate) const CLOBBERED: [Gpr; 9] =
    [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi, Gpr::Rdi, Gpr::R8, Gpr::R9, Gpr::R10, Gpr::R11];

/// A hook of the host's is called: what it must find, and what it leaves. Says whether it does not
/// return.
pub(crate) fn call<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    (at, hook): (u64, HostSymbol),
) -> bool {
    let Some(happening) = &world.event else { return true };
    let EventContext { event, interrupted, clobbered, flags, below, .. } = happening;
    let machine = &mut world.machine;
    let expected = match watch.entry.theorem {
        Theorem::NmiInRing0 => HostSymbol::NMI,
        Theorem::McInRing0 => HostSymbol::MACHINE_CHECK,
        _ => HostSymbol::FATAL,
    };
    let is_fatal = hook == HostSymbol::FATAL;
    if !watch.entry.theorem.is_in_ring_0() {
        // An event of a guest ends in an exit and calls no hook. The fault of an IRETQ to a guest
        // must have been taken for one of the host's.
        let is_iretqs = matches!(watch.entry.theorem.event(), Some((_, Whose::Iretq)));
        let missed = if is_iretqs { obligation::IRETQ_LABEL } else { obligation::HOOK };
        goals.add(missed, d.bit(false), "which hook");
        return true;
    }
    goals.add(obligation::HOOK, d.bit(hook == expected), "which hook");
    if watch.entry.hands_on() && watch.entry.target.extent.is_some() {
        // What the host's own code has raised has a handler.
        let is_codes = is_in_code(d, watch.entry, interrupted.rip);
        goals.add(obligation::HOOK, is_codes, "which hook");
    }
    let host = world.setting.host();
    let spec::Hook { root, spec_ctrl, orig_ax, .. } =
        spec::hook(d, &host, event, interrupted, &world.spec);
    goals.equal(d, obligation::HOOK_ROOT, "CR3", root, machine.cr3);
    goals.equal(d, obligation::HOOK_GS, "GS base", world.host_gs, machine.gs_base);
    let rsp = machine.get(Gpr::Rsp);
    let ist = machine.memory.region(RegionName::IstStack).map_or(rsp, |stack| stack.base);
    let depth = d.distance(rsp, ist);
    // The return address lies there, so that the stack was aligned before the call.
    let is_known = depth.is_some_and(|depth| (-STACK..0).contains(&depth) && depth % 16 == -8);
    goals.add(obligation::HOOK_STACK, d.bit(is_known), "RSP");
    let unwanted = RFlags::DF | RFlags::AC | RFlags::NT | RFlags::TF | RFlags::IF;
    let host_flags = d.mask(machine.rflags(d), unwanted.bits());
    goals.equal(d, obligation::HOOK_FLAGS, "DF, AC, NT, TF, IF", d.word(0), host_flags);
    frame(d, machine, goals, interrupted, orig_ax);
    if is_fatal {
        untold(d, machine, goals);
        let is_trap = watch.entry.target.around(at).trap == Some(Mnemonic::Ud2);
        goals.add(obligation::FATAL_TRAP, d.bit(is_trap), "the next instruction");
        return true;
    }
    // The first RET of the hook that is not of a call of its own leads to the code.
    let to = machine.memory.locate(d, rsp, 8, machine.cr3);
    let to = to.and_then(|place| d.code_at(machine.memory.load(d, place)));
    let within = usize::from(watch.is_predicted(to));
    watch.at_return(d, goals, machine, false, true, within);
    watch.returned();
    goals.equal(d, obligation::SPEC_CTRL, "SPEC_CTRL", spec_ctrl, machine.msrs.spec_ctrl);
    untold(d, machine, goals);
    let (Some(depth), Some(place)) = (depth, machine.memory.locate(d, rsp, 8, machine.cr3)) else {
        return true;
    };
    machine.rip = machine.memory.load(d, place);
    machine.set(Gpr::Rsp, d.plus(rsp, 8));
    for register in CLOBBERED {
        machine.set(register, clobbered[register as usize]);
    }
    machine.flags = Flags::new(d, d.or(*flags, d.word(RFlags::FIXED.bits())));
    let regions = &mut machine.memory.regions;
    if let Some(stack) = regions.iter_mut().find(|stack| stack.name == RegionName::IstStack)
        && let Some(end) = stack.index(depth + 8)
    {
        stack.cells[..end].copy_from_slice(&below[..end]);
    }
    false
}

/// Whether an address is one of the code's.
pub(crate) fn is_in_code<D: Domain>(d: &D, entry: Entry<'_>, address: D::Word) -> D::Bit {
    let Range { start, end } = entry.code();
    let is_before = |end: &u64| d.lt(address, d.code(*end));
    d.both(d.not(is_before(start)), is_before(end))
}

/// The host's own handler takes over: it finds what the CPU has delivered, and an [`EventFrame`] on
/// the interrupted stack.
pub(crate) fn hand_on<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) {
    let Some(EventContext { event, interrupted, .. }) = &world.event else { return };
    goals.add(obligation::HOOK, d.bit(watch.entry.hands_on()), "which hook");
    let machine = &world.machine;
    // In the code, RSP, root and GS base may be a guest's.
    let is_hosts = d.not(is_in_code(d, watch.entry, interrupted.rip));
    goals.add(obligation::HANDED_ON, is_hosts, "RIP");
    let spec::HandedOn { vector, error_code, state } =
        spec::exception_in_host(d, event, interrupted);
    for (name, at, size, expected) in [
        ("vector", EventFrame::vector, 1, vector),
        ("error code", EventFrame::error_code, 8, error_code),
        ("rip", EventFrame::iret + IretFrame::rip, 8, interrupted.rip),
        ("cs", EventFrame::iret + IretFrame::cs, 8, interrupted.cs),
        ("rflags", EventFrame::iret + IretFrame::eflags, 8, interrupted.rflags),
        ("rsp", EventFrame::iret + IretFrame::rsp, 8, interrupted.registers.rsp),
        ("ss", EventFrame::iret + IretFrame::ss, 8, interrupted.ss),
    ] {
        let address = d.plus(machine.get(Gpr::Rsp), at.bytes() as i64);
        let place = machine.memory.locate(d, address, size, machine.cr3);
        match place {
            Some(place) => {
                let got = machine.memory.load(d, place);
                goals.equal(d, obligation::HANDED_ON, name, expected, got);
            }
            None => goals.add(obligation::HANDED_ON, d.bit(false), name),
        }
    }
    for (register, expected) in Gpr::ALL.into_iter().zip(by_number(&state.registers)) {
        goals.equal(d, obligation::HANDED_ON, register.name(), expected, machine.get(register));
    }
    for (name, expected, got) in [
        ("RFLAGS", state.rflags, d.mask(machine.rflags(d), !ARITHMETIC)),
        ("CS", state.cs, machine.cs),
        ("SS", state.ss, machine.ss),
        // CR3 does not keep NOFLUSH.
        ("CR3", d.mask(state.root, !NOFLUSH), d.mask(machine.cr3, !NOFLUSH)),
        ("GS base", state.gs_base, machine.gs_base),
        ("inactive GS base", state.inactive_gs_base, machine.inactive_gs_base),
    ] {
        goals.equal(d, obligation::HANDED_ON, name, expected, got);
    }
    untouched(d, world, watch, goals, &world.spec);
    for name in [RegionName::Tss, RegionName::TssExtra, RegionName::Pvcs, RegionName::Sp0Stack] {
        unchanged(d, world, goals, name, i64::MIN..i64::MAX);
    }
    unchanged(d, world, goals, RegionName::HostStack, 0..i64::MAX);
    unchanged(d, world, goals, RegionName::IstStack, i64::MIN..i64::MAX);
}

/// Nothing but the frame tells a hook what was interrupted: the host's code could use speculatively
/// what a guest has left in registers.
pub(crate) fn untold<D: Domain>(d: &D, machine: &Machine<D>, goals: &mut Goals<D>) {
    let told = |register| matches!(register, Gpr::Rdi | Gpr::Rsp);
    for register in Gpr::ALL.into_iter().filter(|register| !told(*register)) {
        let word = machine.get(register);
        let is_free = !steers_the_host(d, word);
        goals.add(obligation::HOOK_REGISTERS, d.bit(is_free), register.name());
    }
    let is_free = !is_steered(d, d.mask(machine.rflags(d), ARITHMETIC));
    goals.add(obligation::HOOK_REGISTERS, d.bit(is_free), "RFLAGS");
}

/// The `PtRegs` that RDI points to holds what was interrupted.
fn frame<D: Domain>(
    d: &D,
    machine: &Machine<D>,
    goals: &mut Goals<D>,
    interrupted: &InterruptedCode<D::Word>,
    orig_ax: D::Word,
) {
    let InterruptedCode { rip, cs, rflags, ss, .. } = *interrupted;
    let gpr = by_number(&interrupted.registers);
    let rest = [orig_ax, rip, cs, rflags, ss];
    let slots = Gpr::ALL.iter().map(|r| (r.name(), in_frame(*r), gpr[*r as usize]));
    let rest = FRAME_REST.iter().zip(rest).map(|((name, at, _), value)| (*name, *at, value));
    for (name, at, expected) in slots.chain(rest) {
        let address = d.plus(machine.get(Gpr::Rdi), at);
        match machine.memory.locate(d, address, 8, machine.cr3) {
            Some(place) => {
                let got = machine.memory.load(d, place);
                goals.equal(d, obligation::HOOK_FRAME, name, expected, got);
            }
            None => goals.add(obligation::HOOK_FRAME, d.bit(false), name),
        }
    }
}

/// What must hold of the IDT and its stubs, without executing anything.
pub(crate) fn gates<D: Domain>(d: &D, target: &Target, goals: &mut Goals<D>) {
    let gates = target.gates.as_deref().unwrap_or_default();
    for gate in gates {
        let may_be_guests = matches!(gate.vector, vector::BP | vector::OF | vector::SYSTEM_CALL);
        let dpl = if may_be_guests { 3 } else { 0 };
        goals.add_at(obligation::GATE_DPL, d.bit(gate.dpl == dpl), "DPL", gate.address);
        let same = gates.iter().filter(|other| other.vector == gate.vector);
        goals.add_at(obligation::GATE_ONCE, d.bit(same.count() == 1), "vector", gate.address);
        let is_apart = match gate.vector {
            vector::DB | vector::NMI | vector::MC | vector::DF => {
                let same = gates.iter().filter(|other| other.ist == gate.ist);
                let mut others = same.filter(|other| other.vector != gate.vector);
                // This vector comes from nothing but the code's own INT.
                let is_fatal = |other: &TargetGate| {
                    gate.vector == vector::DF && other.vector == vector::SEGMENT_OVERRUN
                };
                (1..=7).contains(&gate.ist) && others.all(is_fatal)
            }
            vector::SEGMENT_OVERRUN => (1..=7).contains(&gate.ist),
            _ => gate.ist == 0,
        };
        goals.add_at(obligation::GATE_IST, d.bit(is_apart), "IST", gate.address);
    }
}
