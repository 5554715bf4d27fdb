//! The one loop: from the first instruction of a routine, or from the event that an entry is for,
//! to wherever that ends.

use std::ops::Range;

use crate::bad_code::BadCode;
use crate::contract::Clauses;
use crate::entry::Entry;
use crate::goal::Goals;
use crate::obligation;
use crate::run::end::{End, bad, wild};
use crate::run::events::{call, deliver, gates, hand_on, is_any, which};
use crate::run::handing_on;
use crate::run::host_return;
use crate::run::host_return::HostReturn;
use crate::run::transfer::iretq;
use crate::run::watch::{Observed, Watch};
use crate::stubs::Alike;
use crate::theorem::{Theorem, Whose};
use crate::world::event::pushed_rsp;
use crate::world::{World, entries, handing_on as handing};
use switcher_gen::arch::{Vendor, vector};
use switcher_gen::asm::HostSymbol;
use switcher_model::program::Op;
use switcher_model::{CpuModel, Domain, Fault, Msrs, Step, Stuck};

/// How far an event's entry has come.
struct Entered<'a> {
    /// The stubs that the executed one stands for.
    stubs: &'a Alike,
    /// Where that pushes its number, unless it has.
    push_at: Option<u64>,
    /// Whether a hook of the host's was called.
    hooked: bool,
}

/// What the CPU or the host does before the first instruction.
enum Begun<'a, W> {
    /// A routine is called, or reached by SYSCALL.
    Routine,
    /// An event was delivered.
    Event(Entered<'a>),
    /// Nothing is executed.
    Ended(End<W>),
}

/// Executes the code of the theorem that is watched to its end. What must hold on the way is added
/// to `goals`.
///
/// # Errors
/// If no theorem can be about the code.
pub(crate) fn execute<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
) -> Result<End<D::Word>, BadCode> {
    let Entry { target, theorem, .. } = watch.entry;
    let mut entered = match begin(d, watch.entry, world, goals) {
        Begun::Routine => None,
        Begun::Event(entered) => Some(entered),
        Begun::Ended(end) => return Ok(end),
    };
    loop {
        watch.is_bounded()?;
        let at = d.code_at(world.machine.rip).unwrap_or_default();
        let op = target.program.at(at).and_then(Result::ok);
        watch.lost.lose(d, watch.entry, &mut world.machine, at);
        if op.is_some() && watch.entry.is_confined() && !watch.entry.code().contains(&at) {
            let Range { start, end } = watch.entry.code();
            let text = format!(
                "at {at:#x}, which no direct jump leads to and which lies outside of the code that event entries tell \
                 from the host's: {start:#x} to {end:#x}"
            );
            return Ok(End::broken(obligation::HANDED_ON, text, "RIP"));
        }
        // The IRETQ of a routine leads to a guest. That of an event, or to a handler of the host's,
        // stays in ring 0, and is executed like any instruction.
        let is_routine = entered.is_none() && !theorem.hands_on();
        if is_routine && op.is_some_and(Op::is_iretq) {
            return Ok(iretq(d, &mut world.machine, watch, goals, at));
        }
        let World { machine, model, .. } = &mut *world;
        let stepped = machine.step(d, model, &target.program, &mut Observed { watch, goals });
        if target.setting.variant.ibt() && target.is_indirect(at) {
            let to = d.code_at(machine.rip).unwrap_or_default();
            goals.add(obligation::ENDBR, d.bit(target.is_endbr(to)), "indirect jump");
        }
        let ended = match stepped {
            Ok(Step::Next | Step::Left) if is_back(theorem, world, op) => {
                Some(End::Resumed { hooked: entered.as_ref().is_some_and(|event| event.hooked) })
            }
            Ok(Step::Next) => {
                if let Some(entered) = &mut entered
                    && entered.push_at.take_if(|push_at| *push_at == at).is_some()
                {
                    is_any(d, world, entered.stubs);
                }
                None
            }
            Ok(Step::Left) => left(d, world, watch, goals, (at, entered.as_mut()))?,
            Ok(Step::Guest { by_sysretq }) if entered.is_none() => Some(End::Guest { by_sysretq }),
            Ok(Step::Guest { .. }) => {
                let text = format!("at CPL 3, by the IRETQ at {at:#x}");
                Some(End::broken(obligation::KIND, text, "CPL"))
            }
            Ok(Step::Halted) => {
                Some(End::broken(obligation::NO_TRAP, format!("HLT at {at:#x}"), "RIP"))
            }
            Ok(Step::Fault(fault)) => {
                // An event's entry may interrupt itself by INT.
                let next =
                    op.filter(|op| entered.is_some() && op.is_trap(&fault)).map(|op| op.next);
                match next.filter(|_| fault.vector == vector::SEGMENT_OVERRUN) {
                    Some(next) => interrupt(d, world, watch, goals, (next, &fault)),
                    None => {
                        let (obligation, text, about) = watch.fault(at, &fault);
                        Some(End::broken(obligation, text, about))
                    }
                }
            }
            Err(Stuck::Wild { at, address, size, store }) => Some(wild(at, address, size, store)),
            Err(stuck) => return Err(bad(stuck, at)),
        };
        if let Some(end) = ended {
            return Ok(end);
        }
    }
}

/// What the CPU or the host does before the first instruction.
fn begin<'a, D: Domain>(
    d: &D,
    entry: Entry<'a>,
    world: &mut World<D>,
    goals: &mut Goals<D>,
) -> Begun<'a, D::Word> {
    let Entry { target, theorem, .. } = entry;
    if theorem == Theorem::Gates {
        gates(d, target, goals);
        return Begun::Ended(End::Stopped);
    }
    if let Some(error_code) = world.event.as_ref().map(|context| context.event.error_code) {
        let stubs = which(d, entry, world);
        if let Some(end) = deliver(d, entry, world, goals, stubs.first(), error_code) {
            return Begun::Ended(end);
        }
        if matches!(theorem.event(), Some((_, Whose::Elsewhere))) {
            pushed_rsp(d, world);
        }
        let push_at = stubs.push_at().filter(|_| stubs.has_others());
        return Begun::Event(Entered { stubs, push_at, hooked: false });
    }
    if theorem.hands_on() {
        handing::called(d, world);
    }
    let machine = &mut world.machine;
    let Msrs { spec_ctrl, efer, .. } = machine.msrs;
    machine.msrs = Msrs { spec_ctrl, efer, ..entries(d, target, &world.setting) };
    match theorem {
        Theorem::EnterGuest => machine.rip = d.code(target.enter_guest),
        Theorem::HandOn | Theorem::HandOnStack => {
            let [here, on_stack] = target.hand_on.map(Option::unwrap_or_default);
            machine.rip = d.code(if theorem == Theorem::HandOn { here } else { on_stack });
        }
        // 64-bit code's SYSCALL goes to LSTAR on every CPU.
        Theorem::Syscall64 => {
            let _ = machine.syscall(d, &world.model, switcher_model::SyscallKind::Long);
        }
        // On Intel it is #UD; emulators that play Intel go to CSTAR all the same.
        Theorem::SyscallCompat => {
            let amd = CpuModel { vendor: Vendor::Amd, ..world.model };
            let _ = machine.syscall(d, &amd, switcher_model::SyscallKind::Compatibility);
        }
        _ => machine.rip = d.code(target.return_from_guest),
    }
    let is_called = matches!(
        theorem,
        Theorem::EnterGuest
            | Theorem::HandOn
            | Theorem::HandOnStack
            | Theorem::ReturnFromGuest
            | Theorem::ReturnFromGuestIst
    );
    let is_direct = is_called && target.setting.promises(Clauses::DIRECT_CALLS);
    if target.setting.variant.ibt() && !is_direct {
        let entry = d.code_at(machine.rip).unwrap_or_default();
        goals.add(obligation::ENDBR, d.bit(target.is_endbr(entry)), "entry point");
    }
    Begun::Routine
}

/// Whether what ring 0 was interrupted in goes on. Its address is a number that may be one of the
/// code's own, and what is executed there no longer matters.
fn is_back<D: Domain>(theorem: Theorem, world: &World<D>, op: Option<&Op>) -> bool {
    let interrupted = world.event.as_ref().map(|context| context.interrupted.rip);
    theorem.is_in_ring_0()
        && interrupted == Some(world.machine.rip)
        && op.is_some_and(Op::is_return_of_event)
}

/// The instruction at `at` has led out of the code. `None` if the host returns to it.
fn left<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    (at, entered): (u64, Option<&mut Entered<'_>>),
) -> Result<Option<End<D::Word>>, BadCode> {
    let target = watch.entry.target;
    let rip = d.code_at(world.machine.rip);
    let hook = rip.and_then(|rip| target.hook(rip));
    let hooked = entered.as_ref().is_some_and(|event| event.hooked);
    if handing_on::to_handler(d, world, watch, goals) {
        return Ok(None);
    }
    let elsewhere = match host_return::left(d, world, watch, goals) {
        HostReturn::Back => return Ok(None),
        HostReturn::Broken(end) => return Ok(Some(end)),
        HostReturn::Returned => false,
        HostReturn::Elsewhere => true,
    };
    if elsewhere {
        if let (Some(entered), Some(hook)) = (entered, hook) {
            goals.add(obligation::HOOK, d.bit(!entered.hooked), "how often");
            entered.hooked = true;
            if hook == HostSymbol::EXCEPTION {
                hand_on(d, world, watch, goals);
                return Ok(Some(End::HandedOn));
            }
            let is_over = call(d, world, watch, goals, (at, hook));
            return Ok(is_over.then_some(End::Stopped));
        }
        // The code names the address itself, and it does not know the caller's.
        if let Some(rip) = rip.filter(|_| target.leaves(at)) {
            return Err(BadCode::Leaves { at, target: rip });
        }
    }
    let is_in_ring_0 = watch.entry.theorem.is_in_ring_0();
    Ok(Some(if is_in_ring_0 { End::Resumed { hooked } } else { End::Host }))
}

/// An event's entry interrupts itself by INT, whose return address is `next`.
fn interrupt<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    (next, fault): (u64, &Fault<D::Word>),
) -> Option<End<D::Word>> {
    world.machine.rip = d.code(next);
    let end = deliver(d, watch.entry, world, goals, fault.vector, None);
    if end.is_none() {
        watch.pushed.interrupt(d, &world.machine);
    }
    end
}
