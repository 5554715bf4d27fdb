//! The state in which the host hands on an event that has ended a guest's run: it has called
//! `switcher_hand_on`, on its own root and stack, with its own IDT loaded.

use crate::entry::Entry;
use crate::theorem::{Start, Theorem};
use crate::world::World;
use crate::world::event::{STACK, value};
use crate::world::fields::registers;
use crate::world::name::{Object, Part, Source};
use switcher_gen::arch::RFlags;
use switcher_model::{ARITHMETIC, Domain, Gpr, Region, RegionName};
use switcher_spec::InterruptedCode;

/// What the host asks for, and what it finds itself in again.
#[derive(Debug)]
pub(crate) struct HandingOn<D: Domain> {
    /// The address of the handler.
    pub(crate) handler: D::Word,
    /// The top of the handler's own stack, which need not be aligned, if it has one.
    pub(crate) top: Option<D::Word>,
    /// Whether RSP is between two multiples of 16.
    pub(crate) is_between: D::Bit,
    /// Whether an NMI has ended the run.
    pub(crate) nmi_blocked: D::Bit,
    /// The caller, with the flags that the handler is to return with.
    pub(crate) caller: InterruptedCode<D::Word>,
    /// Whether the handler was called.
    pub(crate) is_called: bool,
}

/// The state in which `switcher_hand_on` is called.
pub(crate) fn world<D: Domain>(d: &D, entry: Entry<'_>, source: &mut impl Source<D>) -> World<D> {
    let mut world = World::new(d, source, entry.target, Start::Call, None);
    let mut field = |name, bits| value(d, source, Object::Host, Part::Field(name), bits);
    let is_between = d.test(field("rsp_is_between", 1), 0);
    let nmi_blocked = d.test(field("nmi_blocked", 1), 0);
    let is_null = d.test(field("ss_is_null", 1), 0);
    let handler = field("handler", 64);
    let low = field("handler_stack", 4);
    // A host gives the flags that it runs with, and IF if interrupts may come behind this.
    let allowed = RFlags::IF.bits() | ARITHMETIC;
    let chosen = d.mask(field("handler_rflags", 64), allowed);

    let regions = &mut world.machine.memory.regions;
    let at = |regions: &[Region<D>], name| {
        regions.iter().position(|region| region.name == name).unwrap_or_default()
    };
    let host = at(regions, RegionName::HostStack);
    regions[host].base = d.mask(regions[host].base, !0xF);
    let ist = at(regions, RegionName::IstStack);
    let top = d.mask(regions[ist].base, !0xF);
    let mut cells = d.cells(&vec![0; STACK as usize]);
    for (chunk, at) in cells.chunks_mut(8).zip((-STACK..).step_by(8)) {
        d.store(chunk, value(d, source, Object::IstStack, Part::At(at), 64));
    }
    regions[ist] = Region::new(RegionName::IstStack, top, -STACK, cells);
    let machine = &mut world.machine;
    let given = d.or(d.mask(machine.rflags(d), !allowed), chosen);
    machine.set(Gpr::Rdi, handler);
    machine.set(Gpr::Rdx, given);
    machine.ss = d.select(is_null, d.word(0), machine.ss);
    machine.nmi_blocked = nmi_blocked;
    let caller = InterruptedCode {
        registers: registers(&machine.gpr),
        rip: machine.rip,
        rflags: given,
        cs: machine.cs,
        ss: machine.ss,
        gs_base: machine.gs_base,
        inactive_gs_base: machine.inactive_gs_base,
        root: machine.cr3,
    };
    let is_possible = world.model.is_canonical(d, handler);
    world.assumptions.push(("the handler's address is canonical", is_possible));
    let is_another = d.not(d.eq(handler, world.caller.rip));
    world.assumptions.push(("the handler does not begin where its caller goes on", is_another));
    let top = (entry.theorem == Theorem::HandOnStack).then(|| d.or(top, low));
    world.handing_on =
        Some(HandingOn { handler, top, is_between, nmi_blocked, caller, is_called: false });
    world
}

/// The host calls: RSP is one of two from here on.
pub(crate) fn called<D: Domain>(d: &D, world: &mut World<D>) {
    let World { machine, handing_on, before, caller, .. } = world;
    let Some(on) = handing_on else { return };
    let stack = machine.memory.regions.iter_mut().find(|it| it.name == RegionName::HostStack);
    let Some(stack) = stack else { return };
    let below = if d.decide(on.is_between) { -8 } else { 0 };
    stack.write(d, below, 8, caller.rip);
    let rsp = d.plus(stack.base, below);
    machine.set(Gpr::Rsp, rsp);
    if let Some(top) = on.top {
        machine.set(Gpr::Rsi, top);
    }
    on.caller.registers = registers(&machine.gpr);
    *before = machine.memory.clone();
}
