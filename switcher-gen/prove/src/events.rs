//! Theorems about event entries: from a state of a guest, or from **any** state of ring 0.
//!
//! An NMI or #MC may come between any two instructions of the switcher. There is one theorem for all
//! of these places: from a ring 0 whose registers, flags, CR3 and GS bases are anything at all, the
//! entry calls the hook as it should be called and leaves everything as it was, whatever a callee
//! may clobber. What #DB and #MC assume of NMIs and of RSP there is in `blocking`. What holds of any state holds of those that the other routines pass through, so
//! each of these comes to its end as if nothing had happened.

use iced_x86::Mnemonic;

use super::blocking::ROOM;
use super::boundary;
use super::mitigations::is_steered;
use super::obligation;
use super::returns::{self, Left};
use super::target::{Target, TargetGate};
use super::theorem::{BadCode, End, Theorem, Watch, entries, region_of, unchanged, untouched};
use super::vectors::{self, Part as Alike, Vectors};
use super::world::{
    FRAME, FRAME_REST, Name, Object, Part, Saved, Source, Start, World, by_number, held_base,
    in_frame, read_extra, registers,
};
use switcher_gen::arch::{RFlags, vector};
use switcher_gen::asm::HostSymbol;
use switcher_gen::layout::{AsmLayout, FarFrame, IstTop, Tss, TssExtra};
use switcher_model::RegionName;
use switcher_model::program::Op;
use switcher_model::{
    ARITHMETIC, Arrival, Domain, Flags, Gate, Gpr, Region, State as Machine, Step, Stuck, WRITABLE,
};
use switcher_spec as spec;
use switcher_spec::{Event, Guest, InterruptedCode, Outcome};

/// What happens in a theorem.
#[derive(Debug)]
pub(super) struct EventContext<D: Domain> {
    pub(super) event: Event<D::Word>,
    /// Whose event it is, if it is a guest's.
    guest: Guest<D::Word>,
    /// What it interrupts, if that is ring 0.
    pub(super) interrupted: InterruptedCode<D::Word>,
    /// What a hook leaves in the registers that are not its caller's, by number, and in the flags.
    clobbered: [D::Word; 16],
    flags: D::Word,
    /// And below its stack.
    below: Vec<D::Cell>,
    /// Whether NMIs are blocked in what is interrupted, if that is to stay so.
    pub(super) nmi_blocked: Option<D::Bit>,
    /// Whether that is one of the routines.
    pub(super) in_routines: D::Bit,
}

/// What is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// CPL 3.
    Guest,
    /// The IRETQ to a guest, which has refused its frame.
    Iretq,
    /// Ring 0, anywhere.
    Ring0,
    /// Ring 0 on the host's stack, but not at that IRETQ.
    Elsewhere,
    /// Ring 0 at that IRETQ, by what it is not to blame for.
    AtIretq,
}

impl Theorem {
    /// The vectors and what they interrupt; `None` of those that are not about one event.
    pub(super) const fn event(self) -> Option<(Vectors, Whose)> {
        Some(match self {
            Self::Event => (Vectors::Plain, Whose::Guest),
            Self::EventError => (Vectors::Coded, Whose::Guest),
            Self::EventDb => (Vectors::One(vector::DB), Whose::Guest),
            Self::EventNmi => (Vectors::One(vector::NMI), Whose::Guest),
            Self::EventMc => (Vectors::One(vector::MC), Whose::Guest),
            Self::EventDf => (Vectors::One(vector::DF), Whose::Guest),
            Self::Iretq => (Vectors::OfIretq, Whose::Iretq),
            Self::DbInRing0 => (Vectors::One(vector::DB), Whose::Ring0),
            Self::NmiInRing0 => (Vectors::One(vector::NMI), Whose::Ring0),
            Self::McInRing0 => (Vectors::One(vector::MC), Whose::Ring0),
            Self::DfInRing0 => (Vectors::One(vector::DF), Whose::Ring0),
            Self::FatalInRing0 => (Vectors::Plain, Whose::Elsewhere),
            Self::FatalErrorInRing0 => (Vectors::Coded, Whose::Elsewhere),
            Self::FatalAtIretq => (Vectors::Plain, Whose::AtIretq),
            Self::FatalErrorAtIretq => (Vectors::NotOfIretq, Whose::AtIretq),
            _ => return None,
        })
    }

    /// Whether something happens at the IRETQ to a guest, or elsewhere: its address is a value.
    pub(super) const fn is_of_iretq(self) -> bool {
        matches!(self.event(), Some((_, Whose::Iretq | Whose::Elsewhere | Whose::AtIretq)))
    }

    /// Whether it is about event entries.
    pub(crate) const fn is_of_events(self) -> bool {
        matches!(self, Self::Gates) || self.event().is_some()
    }

    /// Whether ring 0 is interrupted, in a state that may be any.
    pub(super) const fn is_in_ring_0(self) -> bool {
        matches!(self.event(), Some((_, Whose::Ring0 | Whose::Elsewhere | Whose::AtIretq)))
    }

    /// Whether it calls a hook that returns.
    pub(super) const fn has_hook(self) -> bool {
        matches!(self, Self::NmiInRing0 | Self::McInRing0)
    }

    /// Whether it ends in a hook that does not return.
    pub(super) const fn is_fatal(self) -> bool {
        matches!(
            self,
            Self::DfInRing0
                | Self::FatalInRing0
                | Self::FatalErrorInRing0
                | Self::FatalAtIretq
                | Self::FatalErrorAtIretq
        )
    }

    /// Whether it is about what must leave the blocking of NMIs as it is.
    pub(super) const fn keeps_blocking(self) -> bool {
        matches!(self, Self::DbInRing0 | Self::McInRing0)
    }

    /// Whether it is about NMIs, which no other interrupts before an IRET.
    pub(super) const fn is_of_nmis(self) -> bool {
        matches!(self, Self::EventNmi | Self::NmiInRing0)
    }

    /// Whether a stack of the IST is the event's.
    pub(super) const fn is_on_ist(self) -> bool {
        matches!(self.event(), Some((Vectors::One(_), _)))
    }
}

/// How much of its stack an event may use.
const STACK: i64 = IstTop::USED as i64;
/// How much of the stack that it has interrupted.
const INTERRUPTED: i64 = 256;
/// In an operand for CR3: it is not kept there.
const NOFLUSH: u64 = 1 << 63;
const TOP: i64 = size_of::<IstTop>() as i64;

/// The state in which the event of `theorem` comes.
pub(super) fn world<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
) -> World<D> {
    let mut world = target.world(d, source, Start::Guest, saved);
    let Some((vectors, whose)) = theorem.event() else { return world };
    let selectors = world.model.selectors;
    let field =
        |source: &mut _, of: Object, field, bits| value(d, source, of, Part::Field(field), bits);

    // Stacks are aligned, and the IST's have the host's GS base above them.
    let cells = |source: &mut _, of: Object| {
        let mut cells = d.cells(&vec![0; (STACK + TOP) as usize]);
        for (chunk, at) in cells.chunks_mut(8).zip((-STACK..).step_by(8)) {
            d.store(chunk, value(d, source, of, Part::At(at), 64));
        }
        cells
    };
    let host_gs = world.host_gs;
    let memory = &mut world.machine.memory;
    let base = |d: &D, region: &Region<D>| d.mask(region.base, !0xF);
    let index = |name| move |region: &Region<D>| region.name == name;
    let at = |regions: &[Region<D>], name| regions.iter().position(index(name)).unwrap_or_default();
    // What is saved of the caller's stack is by its true address.
    let callers = (whose == Whose::Elsewhere).then_some(RegionName::HostStack);
    for name in [RegionName::Sp0Stack].into_iter().chain(callers) {
        let stack = at(&memory.regions, name);
        memory.regions[stack].base = base(d, &memory.regions[stack]);
    }
    let ist = at(&memory.regions, RegionName::IstStack);
    let top = base(d, &memory.regions[ist]);
    let mut stack = Region::new(RegionName::IstStack, top, -STACK, cells(source, Object::IstStack));
    stack.write(d, IstTop::gs_base.bytes() as i64, 8, host_gs);
    memory.regions[ist] = stack;
    let sp0 = memory.regions[at(&memory.regions, RegionName::Sp0Stack)].base;
    let host = memory.regions[at(&memory.regions, RegionName::HostStack)].base;
    let tss = at(&memory.regions, RegionName::Tss);
    let place = |field: usize| world.setting.block.tss + field as i64;
    memory.regions[tss].write(d, place(Tss::sp0.bytes()), 8, sp0);
    for gate in target.gates.iter().flatten().filter(|gate| gate.ist != 0) {
        let is_its = match vectors {
            Vectors::One(number) => gate.vector == number,
            _ => gate.vector == vector::SEGMENT_OVERRUN,
        };
        if is_its {
            memory.regions[tss].write(d, place(ist_slot(gate.ist)), 8, top);
        }
    }
    world.frame_at = d.plus(sp0, -FRAME);

    // What is interrupted.
    let machine = &mut world.machine;
    machine.msrs = switcher_model::Msrs {
        spec_ctrl: machine.msrs.spec_ctrl,
        efer: machine.msrs.efer,
        ..entries(d, target, &world.setting)
    };
    let mut guest = world.spec.guest;
    match whose {
        Whose::Guest => {}
        _ => {
            machine.cpl = 0;
            machine.cs = d.word(selectors.kernel_cs().into());
            // An event from CPL 3 leaves a null SS, and CPUs are content with it.
            let is_null = d.test(field(source, Object::Interrupted, "ss", 1), 0);
            let usual = d.word(selectors.kernel_ds().into());
            machine.ss = d.select(is_null, d.word(0), usual);
        }
    }
    let iretq = d.code(target.iretq.unwrap_or_default());
    match whose {
        Whose::Guest => {}
        Whose::Iretq => {
            // The guest's registers are loaded but for those in the frame, which ends at sp0.
            machine.rip = iretq;
            let gate = RFlags::TF | RFlags::NT | RFlags::RF | RFlags::VM | RFlags::IF;
            let flags = d.mask(machine.rflags(d), !gate.bits());
            machine.flags = Flags::new(d, flags);
            let [rip, cs, rflags, rsp, ss] = ["rip", "cs", "rflags", "rsp", "ss"]
                .map(|name| field(source, Object::Frame, name, 64));
            let regions = &mut machine.memory.regions;
            let stack = at(regions, RegionName::Sp0Stack);
            for (slot, word) in [rip, cs, rflags, rsp, ss].into_iter().enumerate() {
                regions[stack].write(d, 8 * slot as i64 - 40, 8, word);
            }
            machine.set(Gpr::Rsp, d.plus(sp0, -40));
            guest = Guest { rip, rflags, cs, ss, ..guest };
            guest.registers.rsp = rsp;
        }
        Whose::Ring0 | Whose::Elsewhere | Whose::AtIretq => {
            // There is no VM in long mode, and nobody is allowed VIF or VIP.
            let there = WRITABLE & !(RFlags::VM | RFlags::VIF | RFlags::VIP).bits();
            let flags = d.mask(field(source, Object::Interrupted, "rflags", 64), there);
            machine.flags = Flags::new(d, d.or(flags, d.word(RFlags::FIXED.bits())));
            let base = |source: &mut _, name| {
                value(d, source, Object::Interrupted, Part::GsBase(name), 64)
            };
            machine.gs_base = base(source, "gs_base");
            machine.inactive_gs_base = held_base(d, base(source, "inactive_gs_base"));
            machine.cr3 = d.mask(field(source, Object::Interrupted, "cr3", 64), !NOFLUSH);
            machine.rip = field(source, Object::Interrupted, "rip", 64);
            let host_rsp = field(source, Object::Interrupted, "host_rsp", 64);
            let extra = at(&machine.memory.regions, RegionName::TssExtra);
            let slot = world.setting.block.tss_extra + TssExtra::host_rsp.bytes() as i64;
            machine.memory.regions[extra].write(d, slot, 8, host_rsp);
            if whose != Whose::AtIretq {
                // Anybody's. At the IRETQ, they are the guest's.
                for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
                    let own = Part::Register(register);
                    machine.set(register, value(d, source, Object::Interrupted, own, 64));
                }
            }
            match whose {
                Whose::Elsewhere => {
                    machine.set(Gpr::Rsp, host);
                    // No other root has this stack.
                    machine.cr3 = world.spec.tss_extra.host_cr3;
                }
                Whose::AtIretq => {
                    machine.set(Gpr::Rsp, d.plus(sp0, -40));
                    machine.rip = iretq;
                }
                _ if theorem.keeps_blocking() => {
                    // Wherever there is a stack at all.
                    let own = Part::Register(Gpr::Rsp);
                    let rsp = value(d, source, Object::Interrupted, own, 64);
                    machine.set(Gpr::Rsp, rsp);
                    let mut cells = d.cells(&vec![0; INTERRUPTED as usize]);
                    for (chunk, at) in cells.chunks_mut(8).zip((-INTERRUPTED..).step_by(8)) {
                        d.store(
                            chunk,
                            value(d, source, Object::InterruptedStack, Part::At(at), 64),
                        );
                    }
                    let stack = Region::new(RegionName::InterruptedStack, rsp, -INTERRUPTED, cells);
                    machine.memory.regions.push(stack);
                }
                _ => {}
            }
        }
    }
    let in_routines = target.routines.as_ref().map_or(d.bit(false), |routines| {
        let is_before = |end: u64| d.lt(machine.rip, d.code(end));
        d.both(d.not(is_before(routines.start)), is_before(routines.end))
    });
    let blocked = |source: &mut _| field(source, Object::Interrupted, "nmi_blocked", 1);
    let nmi_blocked = theorem.keeps_blocking().then(|| d.test(blocked(source), 0));
    machine.nmi_blocked = nmi_blocked.unwrap_or(d.bit(false));
    let interrupted = InterruptedCode {
        registers: registers(&machine.gpr),
        rip: machine.rip,
        rflags: machine.rflags(d),
        cs: machine.cs,
        ss: machine.ss,
        gs_base: machine.gs_base,
        inactive_gs_base: machine.inactive_gs_base,
        root: machine.cr3,
    };
    let vector = match vectors {
        Vectors::One(number) => d.word(number.into()),
        _ => field(source, Object::Event, "vector", 8),
    };
    let has_code = vectors.have_error_code();
    let error_code = has_code.then(|| field(source, Object::Event, "error_code", 64));
    let clobbered =
        Gpr::ALL.map(|register| value(d, source, Object::Hook, Part::Register(register), 64));
    let flags = d.mask(field(source, Object::Hook, "rflags", 64), ARITHMETIC);
    let below = cells(source, Object::HookStack);
    let extra = region_of(&world, RegionName::TssExtra);
    world.spec.tss_extra = read_extra(d, extra, &world.setting);
    world.before = world.machine.memory.clone();
    let canonical = |address| world.model.is_canonical(d, address);
    if theorem.is_in_ring_0() {
        let rip = canonical(interrupted.rip);
        world.assumptions.push(("what ring 0 has as its RIP is canonical", rip));
        let (model, setting) = (world.model, world.setting);
        let all = boundary::conditions(d, &model, &setting, &world.machine, in_routines);
        // An NMI's entry, and what cannot be gone on from, assume less.
        let needed = |condition: &boundary::Condition<D>| {
            theorem.keeps_blocking() || condition.about != "IF, TF"
        };
        let needed = all.into_iter().filter(needed);
        world.assumptions.extend(needed.map(|condition| (condition.text, condition.holds)));
    }
    if whose == Whose::Elsewhere {
        let elsewhere = d.not(d.eq(interrupted.rip, iretq));
        world.assumptions.push(("the IRETQ to a guest is not what faults", elsewhere));
    }
    if !matches!(vectors, Vectors::One(_)) {
        world.assumptions.push(("hardware delivers this vector there", vectors.hold(d, vector)));
    }
    let event = Event { vector, error_code };
    world.event = Some(EventContext {
        event,
        guest,
        interrupted,
        clobbered,
        flags,
        below,
        nmi_blocked,
        in_routines,
    });
    world
}

fn value<D: Domain>(
    d: &D,
    source: &mut impl Source<D>,
    of: Object,
    part: Part,
    bits: u32,
) -> D::Word {
    source.value(d, Name { of, part, at_entry: false }, bits)
}

/// Where the TSS has the stack of an IST index, which lie one behind the other.
fn ist_slot(index: u8) -> usize {
    Tss::ist1.bytes() + 8 * (usize::from(index) - 1)
}

/// What the specification makes of a guest's event.
pub(super) fn specified<D: Domain>(
    d: &D,
    world: &World<D>,
    state: &mut spec::State<D>,
) -> Outcome<D::Word> {
    let host = world.setting.host();
    match &world.event {
        Some(EventContext { event, guest, .. }) => {
            spec::event(d, &host, &world.caller, event, guest, world.frame_at, state)
        }
        None => spec::return_from_guest(d, &host, &world.caller, None, world.frame_at, state),
    }
}

/// From the event to wherever its entry leads.
pub(super) fn execute<D: Domain>(
    d: &D,
    target: &Target,
    theorem: Theorem,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
) -> Result<End<D::Word>, BadCode> {
    let broken = |obligation, text, about| End::Broken { obligation, text, about, values: None };
    let Some(Event { error_code, .. }) = world.event.as_ref().map(|h| h.event) else {
        gates(d, target, watch);
        return Ok(End::Stopped);
    };
    let part = which(d, target, theorem, world);
    if let Some(end) = deliver(d, target, world, watch, part.first(), error_code) {
        return Ok(end);
    }
    let mut push_at = part.push_at().filter(|_| part.has_others());
    let mut hooked = false;
    loop {
        watch.is_bounded()?;
        let at = d.code_at(world.machine.rip).unwrap_or_default();
        let World { machine, model, event, .. } = world;
        watch.lose(d, machine, at);
        let stepped = machine.step(d, model, &target.program, watch);
        // A number may be an address in the code itself, and what is executed there no longer matters.
        let interrupted = event.as_ref().map(|happening| happening.interrupted.rip);
        let is_back = theorem.is_in_ring_0()
            && interrupted == Some(machine.rip)
            && target.program.at(at).and_then(Result::ok).is_some_and(Op::is_return_of_event);
        match stepped {
            Ok(Step::Next | Step::Left) if is_back => return Ok(End::Resumed { hooked }),
            Ok(Step::Next) if push_at == Some(at) => {
                push_at = None;
                is_any(d, world, &part);
            }
            Ok(Step::Next) => {}
            Ok(Step::Left) => {
                let rip = d.code_at(machine.rip);
                let hook = rip.and_then(|rip| target.hook(rip));
                match (returns::left(d, target, world, watch), hook, rip) {
                    (Left::Back, ..) => {}
                    (Left::Broken(end), ..) => return Ok(end),
                    (Left::Elsewhere, Some(hook), _) => {
                        watch.goal(obligation::HOOK, d.bit(!hooked), "how often");
                        hooked = true;
                        if call(d, target, world, watch, at, hook) {
                            return Ok(End::Stopped);
                        }
                    }
                    (Left::Elsewhere, None, Some(rip)) if target.leaves(at) => {
                        return Err(BadCode::Leaves { at, target: rip });
                    }
                    _ if theorem.is_in_ring_0() => {
                        return Ok(End::Resumed { hooked });
                    }
                    _ => return Ok(End::Host),
                }
            }
            Ok(Step::Guest { .. }) => {
                let text = format!("at CPL 3, by the IRETQ at {at:#x}");
                return Ok(broken(obligation::KIND, text, "CPL"));
            }
            Ok(Step::Halted) => {
                return Ok(broken(obligation::NO_TRAP, format!("HLT at {at:#x}"), "RIP"));
            }
            Ok(Step::Fault(fault)) => {
                let op = target.program.at(at).and_then(Result::ok);
                let next = op.filter(|op| op.is_trap(&fault)).map(|op| op.next);
                // INT, by ring 0 itself.
                if let Some(next) = next.filter(|_| fault.vector == vector::SEGMENT_OVERRUN) {
                    machine.rip = d.code(next);
                    match deliver(d, target, world, watch, fault.vector, None) {
                        Some(end) => return Ok(end),
                        None => {
                            watch.interrupted(d, &world.machine);
                            continue;
                        }
                    }
                }
                let (obligation, text, about) = watch.fault(at, &fault);
                return Ok(broken(obligation, text, about));
            }
            Err(Stuck::Wild { at, address, size, store }) => {
                return Ok(super::theorem::wild(at, address, size, store));
            }
            Err(stuck) => return Err(super::theorem::bad(stuck, at)),
        }
    }
}

/// Which of the stubs is executed: the one that stands for the vector's. If that is like no other, the
/// vector is a number from here on.
fn which<D: Domain>(d: &D, target: &Target, theorem: Theorem, world: &mut World<D>) -> Alike {
    let mut parts = vectors::partition(target, theorem);
    let Some(EventContext { event, .. }) = &mut world.event else {
        unreachable!("only what is about an event is executed");
    };
    // One of them it is.
    let last = parts.len() - 1;
    let chosen = parts[..last].iter().position(|part| d.decide(part.holds(d, event.vector)));
    let part = parts.swap_remove(chosen.unwrap_or(last));
    if !part.has_others() {
        event.vector = d.word(part.first().into());
    }
    part
}

/// The stub has pushed its number. Each of those that are alike pushes its own.
fn is_any<D: Domain>(d: &D, world: &mut World<D>, part: &Alike) {
    let World { machine, event, .. } = world;
    let place = machine.memory.locate(d, machine.get(Gpr::Rsp), 8, machine.cr3);
    if let (Some(place), Some(EventContext { event, .. })) = (place, event) {
        machine.memory.store(d, place, part.pushed(d, event.vector));
    }
}

/// The CPU delivers `vector`. Where it cannot, that is the end.
fn deliver<D: Domain>(
    d: &D,
    target: &Target,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    vector: u8,
    error_code: Option<D::Word>,
) -> Option<End<D::Word>> {
    let tss = d.plus(region_of(world, RegionName::Tss).base, world.setting.block.tss);
    let World { machine, model, .. } = world;
    let mut gates = target.gates.iter().flatten();
    let gate = gates.find(|gate| gate.vector == vector);
    let arrived = gate.is_some_and(|gate| {
        if target.setting.variant.ibt() {
            let is_endbr = d.bit(target.is_endbr(gate.address));
            watch.goal(obligation::ENDBR, is_endbr, "event entry");
        }
        // A fault's frame has RF set, whatever it was. It may have been set: that is no other case.
        let is_nmi = vector == vector::NMI;
        let arrival = Arrival { error_code, is_fault: false, is_nmi };
        let gate = Gate { handler: d.code(gate.address), ist: gate.ist };
        machine.deliver(d, model, tss, gate, arrival).is_ok()
    });
    let (obligation, about) = (obligation::GATE_IST, "RSP");
    let text = format!("with vector {vector}, for which there is no known stack");
    (!arrived).then_some(End::Broken { obligation, text, about, values: None })
}

/// A call of the host's: what it finds, and what it leaves. Whether it does not return.
fn call<D: Domain>(
    d: &D,
    target: &Target,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    at: u64,
    hook: HostSymbol,
) -> bool {
    let Some(happening) = &world.event else { return true };
    let EventContext { event, interrupted, clobbered, flags, below, .. } = happening;
    let machine = &mut world.machine;
    let expected = match watch.theorem {
        Theorem::NmiInRing0 => HostSymbol::NMI,
        Theorem::McInRing0 => HostSymbol::MACHINE_CHECK,
        _ => HostSymbol::FATAL,
    };
    let is_fatal = hook == HostSymbol::FATAL;
    if !watch.theorem.is_in_ring_0() {
        // A guest's event exits. That of the IRETQ must have been taken for the host's.
        let is_iretqs = matches!(watch.theorem.event(), Some((_, Whose::Iretq)));
        let missed = if is_iretqs { obligation::IRETQ_LABEL } else { obligation::HOOK };
        watch.goal(missed, d.bit(false), "which hook");
        return true;
    }
    watch.goal(obligation::HOOK, d.bit(hook == expected), "which hook");
    let host = world.setting.host();
    let spec::Hook { root, spec_ctrl, orig_ax, .. } =
        spec::hook(d, &host, event, interrupted, &world.spec);
    watch.equal(d, obligation::HOOK_ROOT, "CR3", root, machine.cr3);
    watch.equal(d, obligation::HOOK_GS, "GS base", world.host_gs, machine.gs_base);
    let rsp = machine.get(Gpr::Rsp);
    let ist = machine.memory.region(RegionName::IstStack).map_or(rsp, |stack| stack.base);
    let depth = d.distance(rsp, ist);
    // The return address is on it.
    let is_known = depth.is_some_and(|depth| (-STACK..0).contains(&depth) && depth % 16 == -8);
    watch.goal(obligation::HOOK_STACK, d.bit(is_known), "RSP");
    let unwanted = RFlags::DF | RFlags::AC | RFlags::NT | RFlags::TF | RFlags::IF;
    let host_flags = d.mask(machine.rflags(d), unwanted.bits());
    watch.equal(d, obligation::HOOK_FLAGS, "DF, AC, NT, TF, IF", d.word(0), host_flags);
    frame(d, machine, watch, interrupted, orig_ax);
    if is_fatal {
        untold(d, machine, watch);
        let is_trap = target.around(at).trap == Some(Mnemonic::Ud2);
        watch.goal(obligation::FATAL_TRAP, d.bit(is_trap), "the next instruction");
        return true;
    }
    // Its first RET that is not of a call of its own is to the code.
    let to = machine.memory.locate(d, rsp, 8, machine.cr3);
    let to = to.and_then(|place| d.code_at(machine.memory.load(d, place)));
    let within = usize::from(watch.is_predicted(to));
    watch.at_return(d, machine, false, true, within);
    watch.returned();
    watch.equal(d, obligation::SPEC_CTRL, "SPEC_CTRL", spec_ctrl, machine.msrs.spec_ctrl);
    untold(d, machine, watch);
    let (Some(depth), Some(place)) = (depth, machine.memory.locate(d, rsp, 8, machine.cr3)) else {
        return true;
    };
    machine.rip = machine.memory.load(d, place);
    machine.set(Gpr::Rsp, d.plus(rsp, 8));
    for register in
        [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi, Gpr::Rdi, Gpr::R8, Gpr::R9, Gpr::R10, Gpr::R11]
    {
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

/// Nothing but the frame says what was interrupted: what a guest has left in registers would be there
/// for whatever the host's code does speculatively.
pub(super) fn untold<D: Domain>(d: &D, machine: &Machine<D>, watch: &mut Watch<'_, D>) {
    let told = |register| matches!(register, Gpr::Rdi | Gpr::Rsp);
    for register in Gpr::ALL.into_iter().filter(|register| !told(*register)) {
        let is_free = !is_steered(d, machine.get(register));
        watch.goal(obligation::HOOK_REGISTERS, d.bit(is_free), register.name());
    }
    let is_free = !is_steered(d, d.mask(machine.rflags(d), ARITHMETIC));
    watch.goal(obligation::HOOK_REGISTERS, d.bit(is_free), "RFLAGS");
}

/// The `PtRegs` that RDI points to.
fn frame<D: Domain>(
    d: &D,
    machine: &Machine<D>,
    watch: &mut Watch<'_, D>,
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
                watch.equal(d, obligation::HOOK_FRAME, name, expected, got);
            }
            None => watch.goal(obligation::HOOK_FRAME, d.bit(false), name),
        }
    }
}

/// What was interrupted goes on.
pub(super) fn resumed<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    hooked: bool,
) -> String {
    let end = String::from("where it was interrupted");
    let Some(EventContext { interrupted, in_routines, .. }) = &world.event else { return end };
    let is_debug = watch.theorem == Theorem::DbInRing0;
    watch.goal(obligation::HOOK, d.bit(hooked != is_debug), "whether it is called");
    let expected = &match watch.theorem {
        Theorem::DbInRing0 => spec::debug_in_ring_0(d, interrupted, *in_routines),
        Theorem::McInRing0 => spec::machine_check_in_ring_0(d, interrupted, *in_routines),
        _ => *interrupted,
    };
    let machine = &world.machine;
    watch.resumed(d, machine);
    // What is read from CR3 has no NOFLUSH, and there it counts for nothing.
    let root = d.mask(machine.cr3, !NOFLUSH);
    watch.equal(d, obligation::RESUMED_ROOT, "CR3", expected.root, root);
    watch.equal(d, obligation::RESUMED_GS, "GS base", expected.gs_base, machine.gs_base);
    let inactive = ("inactive GS base", expected.inactive_gs_base, machine.inactive_gs_base);
    watch.equal(d, obligation::RESUMED_GS, inactive.0, inactive.1, inactive.2);
    let rest = [
        ("RIP", expected.rip, machine.rip),
        ("RFLAGS", expected.rflags, machine.rflags(d)),
        ("CS", expected.cs, machine.cs),
        ("SS", expected.ss, machine.ss),
    ];
    for (name, expected, got) in rest {
        watch.equal(d, obligation::RESUMED, name, expected, got);
    }
    for (register, expected) in Gpr::ALL.into_iter().zip(by_number(&expected.registers)) {
        let got = machine.get(register);
        watch.equal(d, obligation::RESUMED_REGISTERS, register.name(), expected, got);
    }
    untouched(d, world, watch, &world.spec);
    let all = i64::MIN..i64::MAX;
    for name in [
        RegionName::Tss,
        RegionName::TssExtra,
        RegionName::Pvcs,
        RegionName::Sp0Stack,
        RegionName::HostStack,
    ] {
        unchanged(d, world, watch, name, all.clone());
    }
    unchanged(d, world, watch, RegionName::IstStack, 0..TOP);
    if watch.theorem.keeps_blocking() {
        let red_zone = -(FarFrame::RED_ZONE as i64);
        unchanged(d, world, watch, RegionName::InterruptedStack, red_zone..0);
    }
    end
}

/// What is known by looking at the IDT and its stubs.
fn gates<D: Domain>(d: &D, target: &Target, watch: &mut Watch<'_, D>) {
    let gates = target.gates.as_deref().unwrap_or_default();
    for gate in gates {
        let may_be_guests = matches!(gate.vector, vector::BP | vector::OF | vector::SYSTEM_CALL);
        let dpl = if may_be_guests { 3 } else { 0 };
        watch.goal_at(obligation::GATE_DPL, d.bit(gate.dpl == dpl), "DPL", gate.address);
        let same = gates.iter().filter(|other| other.vector == gate.vector);
        watch.goal_at(obligation::GATE_ONCE, d.bit(same.count() == 1), "vector", gate.address);
        let is_apart = match gate.vector {
            vector::DB | vector::NMI | vector::MC | vector::DF => {
                let same = gates.iter().filter(|other| other.ist == gate.ist);
                let mut others = same.filter(|other| other.vector != gate.vector);
                // What cannot happen but for the code's own INT.
                let is_fatal = |other: &TargetGate| {
                    gate.vector == vector::DF && other.vector == vector::SEGMENT_OVERRUN
                };
                (1..=7).contains(&gate.ist) && others.all(is_fatal)
            }
            vector::SEGMENT_OVERRUN => (1..=7).contains(&gate.ist),
            _ => gate.ist == 0,
        };
        watch.goal_at(obligation::GATE_IST, d.bit(is_apart), "IST", gate.address);
    }
}

const _: () = assert!(IstTop::LAYOUT.size == TOP as usize);
const _: () = assert!(ROOM <= INTERRUPTED);
