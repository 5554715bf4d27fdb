//! The state in which an event comes: a guest, the IRETQ to a guest, or **any** state of ring 0.
//!
//! An NMI or #MC may come between any two instructions of the switcher. There is one theorem for
//! all of these places: from a ring 0 whose registers, flags, CR3 and GS bases are anything at all,
//! the entry calls the hook as it should be called and leaves everything as it was, whatever a
//! callee may clobber. What #DB and #MC assume of NMIs and of RSP there is in `run/blocking.rs`.
//! What holds of any state holds of those that the other routines pass through, so each of these
//! comes to its end as if nothing had happened.

use crate::boundary;
use crate::entry::Entry;
use crate::layouts::ExtraField;
use crate::theorem::Start;
use crate::theorem::Whose;
use crate::vectors::Vectors;
use crate::world::build::held_base;
use crate::world::entries;
use crate::world::fields::{FRAME, read_extra, registers};
use crate::world::name::{Name, Object, Part, Source};
use crate::world::{Saved, World, region_of};
use switcher_gen::arch::{RFlags, vector};
use switcher_gen::layout::AsmLayout;
use switcher_gen::layout::{IretFrame, IstTop, Tss};
use switcher_model::{ARITHMETIC, Domain, Flags, Gpr, Region, RegionName, WRITABLE};
use switcher_spec::{Event, Guest, InterruptedCode};

/// The event that a theorem is about, and what it finds.
#[derive(Debug)]
pub(crate) struct EventContext<D: Domain> {
    pub(crate) event: Event<D::Word>,
    /// The guest whose event it is, if it is a guest's.
    pub(crate) guest: Guest<D::Word>,
    /// The code that it interrupts, if that is ring 0.
    pub(crate) interrupted: InterruptedCode<D::Word>,
    /// What a hook leaves in the registers that are not its caller's, by number, and in the flags.
    pub(crate) clobbered: [D::Word; 16],
    pub(crate) flags: D::Word,
    /// What a hook leaves below its stack.
    pub(crate) below: Vec<D::Cell>,
    /// Whether NMIs are blocked in the code that is interrupted, if they must stay so.
    pub(crate) nmi_blocked: Option<D::Bit>,
    /// Whether the interrupted code is one of the routines.
    pub(crate) in_routines: D::Bit,
}

/// How many bytes of its stack an event may use.
pub(crate) const STACK: i64 = IstTop::USED as i64;

/// How many bytes an event may use of the stack that it has interrupted.
pub(crate) const INTERRUPTED: i64 = 256;

/// A bit of an operand for CR3, which CR3 does not keep.
pub(crate) const NOFLUSH: u64 = 1 << 63;

pub(crate) const TOP: i64 = size_of::<IstTop>() as i64;

/// The state in which the event of `theorem` comes.
pub(crate) fn world<D: Domain>(
    d: &D,
    entry: Entry<'_>,
    source: &mut impl Source<D>,
    saved: Option<&Saved<D>>,
) -> World<D> {
    let Entry { target, theorem, .. } = entry;
    let mut world = World::new(d, source, target, Start::Guest, saved);
    let Some((vectors, whose)) = theorem.event() else { return world };
    let selectors = world.model.selectors;
    let field =
        |source: &mut _, of: Object, field, bits| value(d, source, of, Part::Field(field), bits);

    // Stacks are aligned, and those of the IST have the host's GS base above them.
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
    // What is saved of the caller's stack depends on the stack's address, which is as it is.
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

    // The code that is interrupted.
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
            let slot = world.setting.own_extra_at(ExtraField::HostRsp);
            machine.memory.regions[extra].write(d, slot, 8, host_rsp);
            if whose != Whose::AtIretq {
                // These are anybody's. At the IRETQ, registers are the guest's.
                for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
                    let own = Part::Register(register);
                    machine.set(register, value(d, source, Object::Interrupted, own, 64));
                }
            }
            match whose {
                Whose::Elsewhere => {
                    machine.set(Gpr::Rsp, host);
                    // No other root maps this stack.
                    machine.cr3 = world.spec.tss_extra.host_cr3;
                }
                Whose::AtIretq => {
                    machine.set(Gpr::Rsp, d.plus(sp0, -40));
                    machine.rip = iretq;
                }
                _ if theorem.keeps_blocking() => {
                    // RSP points to a stack, wherever that is.
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
    let mut registers = registers(&machine.gpr);
    if whose == Whose::Elsewhere {
        // The stack is taken from where the CPU has aligned it: see `pushed_rsp`.
        registers.rsp = d.or(registers.rsp, field(source, Object::Interrupted, "rsp", 4));
    }
    let interrupted = InterruptedCode {
        registers,
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
        // Entries of NMIs, and entries from which nothing goes on, assume less.
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

/// The CPU has aligned RSP before it has pushed a frame on the interrupted stack, and has pushed
/// what RSP was.
pub(crate) fn pushed_rsp<D: Domain>(d: &D, world: &mut World<D>) {
    let World { machine, event, .. } = world;
    let Some(EventContext { interrupted, .. }) = event else { return };
    let regions = &mut machine.memory.regions;
    let slot = IretFrame::rsp.bytes() as i64 - size_of::<IretFrame>() as i64;
    if let Some(stack) = regions.iter_mut().find(|it| it.name == RegionName::HostStack) {
        stack.write(d, slot, 8, interrupted.registers.rsp);
    }
}

pub(crate) fn value<D: Domain>(
    d: &D,
    source: &mut impl Source<D>,
    of: Object,
    part: Part,
    bits: u32,
) -> D::Word {
    source.value(d, Name { of, part, at_entry: false }, bits)
}

/// Where the TSS has the stack of an IST index, which lie one after the other.
fn ist_slot(index: u8) -> usize {
    Tss::ist1.bytes() + 8 * (usize::from(index) - 1)
}

const _: () = assert!(IstTop::LAYOUT.size == TOP as usize);
