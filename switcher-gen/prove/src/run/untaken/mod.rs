//! Where a CPU may go on that a path does not: predictors do not ask what the operands say, nor
//! whether they can.
//!
//! From each conditional jump, with the registers and the memory that the path has there, the other
//! arm is executed on the same machine, and from there both arms of each further jump, up to an
//! instruction after which nothing is executed before the jump is certain: one that serialises,
//! LFENCE, a trap, INT. Three more things are executed like this. One is what follows a call, where
//! a RET leads elsewhere although it is predicted to return from that call: the return stack buffer
//! has the latest call on top. Another is what follows the calls that are still there where the
//! code is left, with nothing known of what a RET of somebody else's then has in registers and
//! memory. The third is each place whose address the code makes a value, or that the target may be
//! by its conditions, where a jump through a register or memory leads elsewhere. On an arm
//!
//! * a RET, an indirect branch and a hook of the host's need the mitigations that they need on a
//!   path: a sequence that the arm jumps over was not executed. Where the arm leaves for the host
//!   or a guest, registers hold nothing that would steer the host, or tell the guest; nor do the
//!   bases and PKRU tell the guest anything;
//! * GS is the host's at each access (hazards.md, row 28), by whatever register its base got into
//!   the address, and in the host;
//! * what lies elsewhere may be loaded from where a guest says, but what was found there, and what
//!   no guest may learn, is not the address of another access, decides no jump that the path does
//!   not decide in the same way, and is not the target of a jump: each of these would tell it;
//! * where a store has gone to where a guest says, loads may find what was stored, wherever they
//!   go;
//! * nothing is read but the frame that is returned to, if the path has no VERW to come;
//! * the arm leads to code that is known, to the host's symbols, or back to the caller.
//!
//! All of this is judged of the path's own states, and after the path: that no path gets there is
//! no excuse. An arm is not followed again from where another has come in the same state, or in one
//! of which less is known: states at one place whose registers point to the same regions after the
//! same mitigations are joined. What they differ in is forgotten, except where it comes from
//! ([`Domain::forgotten`]), so that the next such state is covered.

mod eye;
mod judge;
mod later;
mod predict;
mod tells;

use std::ops::ControlFlow;
use std::rc::Rc;

use crate::bad_code::BadCode;
use crate::goal::{Goal, Goals};
use crate::obligation;
use crate::run::arms::seen::{STATES, Seen};
use crate::run::arms::{ARMS, Arm, Arms, SoFar, Untaken, copy};
use crate::run::events::CLOBBERED;
use crate::run::host_return;
use crate::run::host_return::HostReturn;
use crate::run::origins::is_steered;
use crate::run::untaken::eye::Eye;
use crate::run::untaken::judge::{at_caller, at_guest, at_hook, at_sysretq, is_a_guests};
use crate::run::untaken::predict::arms_of;
use crate::run::watch::Watch;
use crate::world::World;
use switcher_gen::asm::HostSymbol;
use switcher_model::program::Operation;
use switcher_model::{
    Domain, Effect, Elsewhere, Flags, Gpr, Observer, Origin, Place, State as Machine, Step, Stuck,
};

/// Follows all arms that a path has not taken. Says which instructions they have come to, what must
/// hold of them, and why they were not all followed to their ends, if they were not.
pub(crate) fn follow<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
) -> (Untaken, Vec<Goal<D>>, Option<BadCode>) {
    let Some(mut arms) = watch.arms.take() else { return Default::default() };
    watch.close(d, &mut arms, None);
    watch.leave(d, &mut arms, (&world.machine, &watch.barriers), 0);
    let path = std::mem::take(&mut watch.trace);
    let barriers = std::mem::take(&mut watch.barriers);
    let (mut goals, mut given_up) = (Goals::new(), None);
    while let Some(arm) = arms.ahead.pop() {
        if let Some(at) = arms.crowded {
            given_up = Some(BadCode::States { at, limit: STATES });
            break;
        }
        // If it is not there, something was forgotten of it meanwhile, and the joined state is
        // followed.
        let is_it = |seen: &Seen<D>| Rc::ptr_eq(&seen.state, &arm.state);
        if !arms.seen.get(&arm.to).is_some_and(|seen| seen.iter().any(is_it)) {
            continue;
        }
        given_up = one(d, world, watch, &mut goals, &mut arms, arm).err();
        if given_up.is_some() {
            break;
        }
        arms.reached.lines.extend(watch.barriers.lines());
    }
    (watch.trace, watch.barriers) = (path, barriers);
    (arms.reached, goals.into_all(), given_up)
}

/// Follows one arm to its end, or to where it splits.
fn one<D: Domain>(
    d: &D,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    arms: &mut Arms<D>,
    arm: Arm<D>,
) -> Result<(), BadCode> {
    let target = watch.entry.target;
    let Arm { to, state, barriers, mut so_far } = arm;
    world.machine = copy(&state);
    drop(state);
    world.machine.rip = d.code(to);
    watch.barriers = barriers;
    let mut is_first = true;
    // Whether it comes after the path's last VERW.
    let is_last = so_far.overwritten != 0 && so_far.overwritten == arms.verws;
    let interrupted = world.event.as_ref().map(|event| event.interrupted.rip);
    loop {
        let at = d.code_at(world.machine.rip).unwrap_or_default();
        if !std::mem::take(&mut is_first) && arms.seen.contains_key(&at) {
            // Other arms have come here by a jump.
            watch.go_later(d, arms, at, &world.machine, &watch.barriers, so_far);
            return Ok(());
        }
        watch.trace.clear();
        watch.trace.push(at);
        goals.execute(at);
        if watch.is_thunk(at) {
            // A jump by a condition has led there.
            let here = (&world.machine, &watch.barriers, so_far);
            watch.predict_return(d, arms, here, 0, at);
            match left(d, world, (watch, goals), (arms, so_far), (at, false)) {
                true => continue,
                false => return Ok(()),
            }
        }
        let code = target.program.at(at).and_then(Result::ok).copied();
        let Some(op) = code else {
            goals.broken(d, obligation::UNTAKEN_CODE, "instruction", None);
            return Ok(());
        };
        arms.reached.executed += 1;
        if arms.reached.executed > ARMS {
            return Err(BadCode::Arms { at, limit: ARMS });
        }
        if arms.reached.at.insert(at) {
            watch.name(d, arms, at);
        }
        watch.speculation(d, goals, &world.machine, at);
        let is_return = op.is_return();
        match op.kind {
            Operation::Fence(fence) if fence.stops_dispatch() => return Ok(()),
            Operation::Int3 | Operation::Ud2 | Operation::Int(_) | Operation::WriteCr3 => {
                return Ok(());
            }
            Operation::Iretq => {
                let eye = Eye::new(op, (watch, goals), (&mut arms.told, &mut so_far.strayed));
                if far_frame(d, &world.machine, eye, &IRETQ_FRAME).is_break() {
                    return Ok(());
                }
                at_guest(d, &world.machine, watch, goals);
                watch.leave(d, arms, (&world.machine, &watch.barriers), 0);
                return Ok(());
            }
            // It is not known what is executed after these, or instead of them.
            Operation::Syscall | Operation::Sysenter => {
                goals.broken(d, obligation::UNTAKEN_CODE, "instruction", None);
                return Ok(());
            }
            // What one of these returns to might be executed.
            Operation::Sysretq | Operation::Sysretl => {
                at_sysretq(d, &world.machine, watch, goals, &so_far.strayed);
                watch.leave(d, arms, (&world.machine, &watch.barriers), 0);
                return Ok(());
            }
            Operation::ReturnFar(_) => {
                watch.verw(d, goals);
                let eye = Eye::new(op, (watch, goals), (&mut arms.told, &mut so_far.strayed));
                if far_frame(d, &world.machine, eye, &FAR_FRAME).is_break() {
                    return Ok(());
                }
                at_guest(d, &world.machine, watch, goals);
                watch.leave(d, arms, (&world.machine, &watch.barriers), 0);
                return Ok(());
            }
            Operation::JumpIf(_) | Operation::Loop(_) | Operation::JumpIfZero => {
                let holds = world.machine.jumps_if(d, op.kind).unwrap_or(d.bit(true));
                world.machine.count_down(d, op.kind);
                let condition = d.number(holds);
                let is_excused = || watch.is_of_places(d, &world.machine, interrupted, condition);
                if arms.tells(d, watch, &world.machine, condition) && !is_excused() {
                    goals.broken(d, obligation::UNTAKEN_MEMORY, "flags", None);
                    return Ok(());
                }
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
                for (is_taken, to) in arms_of(target, at).into_iter().enumerate() {
                    let mut barriers = watch.barriers.clone();
                    if is_taken != 0 && matches!(op.kind, Operation::JumpIf(_)) {
                        barriers.branch(at, Some(to));
                    }
                    watch.go_later(d, arms, to, &world.machine, &barriers, so_far);
                }
                return Ok(());
            }
            _ => {}
        }
        watch.predict(d, arms, (&world.machine, &watch.barriers, so_far), &op, at);
        let World { machine, model, .. } = &mut *world;
        if is_return {
            let place = machine.memory.locate(d, machine.get(Gpr::Rsp), 8, machine.cr3);
            let to = place.and_then(|place| d.code_at(machine.memory.load(d, place)));
            arms.reached.of_place |= to.is_some() && !watch.is_predicted(to);
        }
        // By which ring 0 goes on where an event has interrupted it.
        let next = target.program.at(op.next).and_then(Result::ok);
        let is_frame = op.kind == Operation::PopFlags
            && next.is_some_and(|next| matches!(next.kind, Operation::ReturnFar(_)));
        let places = eye::places(d, machine, &op);
        let mut eye = Eye {
            is_last,
            is_frame,
            places,
            ..Eye::new(op, (watch, goals), (&mut arms.told, &mut so_far.strayed))
        };
        let stepped = machine.step(d, model, &target.program, &mut eye);
        if eye::sets_rsp(&op) {
            eye.strayed.set_rsp();
        }
        let (is_over, settled_by) = (eye.is_over, std::mem::take(&mut eye.settled_by));
        arms.reached.have_met |= eye.places > 1;
        if is_over {
            return Ok(());
        }
        if settled_by.into_iter().any(|condition| arms.tells(d, watch, machine, condition)) {
            goals.broken(d, obligation::UNTAKEN_MEMORY, "RIP", None);
            return Ok(());
        }
        let is_transfer = matches!(op.kind, Operation::Jump | Operation::Call) || is_return;
        let by_value = is_return || op.is_indirect();
        match stepped {
            Ok(Step::Next | Step::Left)
                if by_value && (so_far.strayed.is_elsewhere() || is_a_guests(d, machine.rip)) =>
            {
                goals.broken(d, obligation::UNTAKEN_TARGET, "RIP", None);
                return Ok(());
            }
            Ok(Step::Next) if is_transfer => {
                let to = d.code_at(machine.rip).unwrap_or_default();
                watch.go_later(d, arms, to, machine, &watch.barriers, so_far);
                return Ok(());
            }
            // The next round is executed, or what comes after the last one, which it may be taken
            // for.
            Ok(Step::Next) if op.repeats() && d.code_at(machine.rip) == Some(at) => {
                is_first = true;
                watch.go_later(d, arms, op.next, machine, &watch.barriers, so_far);
            }
            // HLT does not stop speculation.
            Ok(Step::Next | Step::Halted) => {}
            Ok(Step::Left) => {
                if !left(d, world, (watch, goals), (arms, so_far), (op.next, by_value)) {
                    return Ok(());
                }
            }
            Ok(Step::Guest { .. } | Step::Fault(_)) => return Ok(()),
            // All that is loaded or stored has an answer.
            Err(Stuck::Wild { .. }) => {
                goals.broken(d, obligation::UNTAKEN_MEMORY, "address", None);
                return Ok(());
            }
            // Which of several addresses it is, is not known.
            Err(Stuck::Several { .. }) => {
                goals.broken(d, obligation::UNTAKEN_TARGET, "RIP", None);
                return Ok(());
            }
            Err(Stuck::SelfModifying { .. }) => {
                goals.broken(d, obligation::UNTAKEN_MEMORY, "address", None);
                return Ok(());
            }
            Err(
                Stuck::Program(_) | Stuck::Msr { .. } | Stuck::Count { .. } | Stuck::NoCode { .. },
            ) => {
                goals.broken(d, obligation::UNTAKEN_CODE, "instruction", None);
                return Ok(());
            }
        }
    }
}

/// The selectors among the words that IRETQ and a far RET pop, of how many.
const IRETQ_FRAME: ([i64; 2], i64) = ([1, 4], 5);
const FAR_FRAME: ([i64; 2], i64) = ([1, 1], 2);

/// What a far return reads on an arm: its frame, and the descriptors of what that says.
fn far_frame<D: Domain>(
    d: &D,
    machine: &Machine<D>,
    mut eye: Eye<'_, '_, D>,
    &(selectors, words): &([i64; 2], i64),
) -> ControlFlow<()> {
    for word in 0..words {
        let address = d.plus(machine.get(Gpr::Rsp), 8 * word);
        let place = machine.memory.locate(d, address, 8, machine.cr3);
        let found = match place {
            Some(place) => Some(eye.loaded(d, machine, place, machine.memory.load(d, place))),
            None => eye.found(d, machine, Elsewhere { address, size: 8, gs: false }),
        };
        let Some(found) = found else { return ControlFlow::Break(()) };
        if selectors.contains(&word) {
            let selector = d.truncate(found, 2);
            eye.observe(d, machine, Effect::Descriptor { selector, by_return: true });
        }
        if eye.is_over {
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}

/// A hook of the host's has returned, and has left what it likes in the registers that are its own
/// to change, and below the stack.
fn after_hook<D: Domain>(d: &D, machine: &mut Machine<D>) {
    let any = || d.any_of("hook", 8, &[Origin::Stale]);
    let rsp = machine.get(Gpr::Rsp);
    let place = machine.memory.locate(d, rsp, 8, machine.cr3);
    machine.set(Gpr::Rsp, d.plus(rsp, 8));
    for register in CLOBBERED {
        machine.set(register, any());
    }
    machine.flags = Flags::new(d, any());
    if let Some(Place { region, index, size }) = place {
        let cells = &mut machine.memory.regions[region].cells[..index + size];
        cells.chunks_mut(8).for_each(|cells| d.store(cells, any()));
    }
}

/// The arm has left the code; before `next`, by what a register or memory says or not. Says whether
/// the host returns to it.
fn left<D: Domain>(
    d: &D,
    world: &mut World<D>,
    (watch, goals): (&mut Watch<'_, D>, &mut Goals<D>),
    (arms, so_far): (&mut Arms<D>, SoFar),
    (next, by_value): (u64, bool),
) -> bool {
    let (target, machine) = (watch.entry.target, &world.machine);
    let rip = d.code_at(machine.rip);
    if let Some(hook) = rip.and_then(|rip| target.hook(rip)) {
        let within = usize::from(watch.is_predicted(Some(next)));
        if hook == HostSymbol::EXCEPTION {
            // Whose stack and GS base it would have, nobody knows yet.
            goals.broken(d, obligation::UNTAKEN_CODE, "RIP", None);
            return false;
        }
        // The hook of fatal events needs no mitigation.
        if hook != HostSymbol::FATAL {
            watch.at_return(d, goals, machine, false, true, within);
        }
        at_hook(d, world, watch, goals, &so_far.strayed);
        watch.leave(d, arms, (&world.machine, &watch.barriers), within);
        if within == 1 {
            // The hook's RET is predicted to lead there, and may be executed.
            watch.returned();
            after_hook(d, &mut world.machine);
            watch.go_later(d, arms, next, &world.machine, &watch.barriers, so_far);
        }
        return false;
    }
    let rsp = machine.get(Gpr::Rsp);
    let place = machine.memory.locate(d, rsp, 8, machine.cr3);
    let is_of_host = rip
        .is_some_and(|rip| target.returns.iter().any(|of_host| *of_host != 0 && *of_host == rip));
    if is_of_host && place.is_some_and(|place| so_far.strayed.is_open(place.region)) {
        goals.broken(d, obligation::UNTAKEN_TARGET, "RIP", None);
        return false;
    }
    match host_return::left(d, world, watch, goals) {
        HostReturn::Back => return true,
        HostReturn::Broken(_) => goals.broken(d, obligation::UNTAKEN_MEMORY, "address", None),
        HostReturn::Elsewhere if !by_value => {
            goals.broken(d, obligation::UNTAKEN_CODE, "RIP", None);
        }
        // It returns to the caller.
        HostReturn::Returned | HostReturn::Elsewhere => {
            at_caller(d, world, watch, goals, &so_far.strayed);
            watch.leave(d, arms, (&world.machine, &watch.barriers), 0);
        }
    }
    false
}
