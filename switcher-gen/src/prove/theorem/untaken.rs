//! Arms of conditional jumps that a path does not take, and a CPU may take all the same: predictors
//! do not ask what the operands say, nor whether they can.
//!
//! From each such jump, with the registers and the memory that the path has there, the other arm is
//! executed on the same machine, and from there both arms of each further jump, up to what nothing is
//! executed behind before the jump is certain: what serialises, LFENCE, a trap, INT. On it
//!
//! * a RET, an indirect branch and a hook of the host's want of mitigations what they want on a path:
//!   a sequence that the arm jumps over was not executed;
//! * GS is the host's at each access (hazards.md, row 28), by whatever register its base got into the
//!   address;
//! * what lies elsewhere may be loaded from where a guest says, but what was found there, and what the
//!   host keeps to itself, is no address of another access and decides no jump: either would tell it;
//! * what it leads to is code, and known.
//!
//! All of this is judged of the path's own states, and after the path: that nobody can be there is no
//! excuse. An arm is not followed again from where another has come with registers that point to the
//! same things and with the same mitigations done.

use std::collections::{BTreeSet, HashSet};

use iced_x86::{OpKind, Register};

use super::Watch;
use crate::asm::HostSymbol;
use crate::machine::program::Kind;
use crate::machine::{
    ARITHMETIC, Domain, Event, Flags, Gpr, Held, Msrs, Observer, Op, Origin, State as Machine,
    Step, Stuck,
};
use crate::prove::mitigations::{Barriers, Done, is_steered};
use crate::prove::obligation::{self, Obligation};
use crate::prove::returns::{self, Left};
use crate::prove::target::Target;
use crate::prove::world::World;

/// More instructions than all arms of a path have.
const LIMIT: usize = 50_000;
/// How far beyond a region an address is still one of it: what is there is the host's.
const NEAR: i64 = 4096;

/// Where an arm begins, or comes to.
#[derive(Debug)]
struct Arm<D: Domain> {
    to: u64,
    state: Machine<D>,
    barriers: Barriers,
    /// Whether it has stored to where a guest says: what a RET takes may be from there.
    has_stored: bool,
}

/// All that matters to what an arm comes to, as far as it is told apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct View {
    to: u64,
    /// The regions that registers and FS base point to.
    pointers: [Option<usize>; 17],
    /// Whether either GS base is the host's.
    gs: [bool; 2],
    has_host_spec_ctrl: bool,
    has_stored: bool,
    done: Done,
}

/// A conditional jump of which it is not known yet which arm is taken.
#[derive(Debug)]
struct Jump<D: Domain> {
    arms: [u64; 2],
    state: Machine<D>,
    barriers: Barriers,
}

/// The arms of a path.
#[derive(Debug)]
pub(super) struct Arms<D: Domain> {
    seen: HashSet<View>,
    open: Option<Jump<D>>,
    ahead: Vec<Arm<D>>,
    reached: Untaken,
}

/// Where the arms of a path have led.
#[derive(Clone, Debug, Default)]
pub struct Untaken {
    /// The instructions that were come to.
    pub at: BTreeSet<u64>,
    /// Whether a RET has led to what no call of the code's has pushed: what an address is matters.
    pub by_value: bool,
}

impl<D: Domain> Default for Arms<D> {
    fn default() -> Self {
        let (seen, reached) = (HashSet::new(), Untaken::default());
        Self { seen, open: None, ahead: Vec::new(), reached }
    }
}

fn arms_of(target: &Target, at: u64) -> [u64; 2] {
    let jump = target.program.instruction(at);
    [jump.next_ip(), jump.near_branch_target()]
}

/// The region that `address` points to, or right behind.
fn region<D: Domain>(d: &D, state: &Machine<D>, address: D::Word, near: i64) -> Option<usize> {
    state.memory.regions.iter().position(|region| {
        let end = region.offset(region.cells.len());
        let around = region.start.saturating_sub(near)..=end.saturating_add(near);
        d.distance(address, region.base).is_some_and(|at| around.contains(&at))
    })
}

impl<D: Domain> Watch<'_, D> {
    fn view(&self, d: &D, arm: &Arm<D>) -> View {
        let Arm { to, state, barriers, has_stored } = arm;
        let point = |word| region(d, state, word, 0);
        let mut pointers = [point(state.fs_base); 17];
        for (slot, word) in pointers.iter_mut().zip(&state.gpr) {
            *slot = point(*word);
        }
        let is = |a, b| d.distance(a, b) == Some(0);
        View {
            to: *to,
            pointers,
            gs: [state.gs_base, state.inactive_gs_base].map(|base| is(base, self.host_gs)),
            has_host_spec_ctrl: is(state.msrs.spec_ctrl, self.roots.host_spec_ctrl),
            has_stored: *has_stored,
            done: barriers.done(self.target.setting.variant.axes().mitigations),
        }
    }

    /// Goes there later, unless that was done.
    fn go_later(&mut self, d: &D, arms: &mut Arms<D>, arm: Arm<D>) {
        if arms.seen.insert(self.view(d, &arm)) {
            arms.ahead.push(arm);
        }
    }

    /// Before each instruction of the path.
    pub(super) fn pass(&mut self, d: &D, state: &Machine<D>, at: u64) {
        let Some(mut arms) = self.arms.take() else { return };
        self.close(d, &mut arms, Some(at));
        if let Some(Ok(op)) = self.target.program.at(at)
            && let Kind::JumpIf(condition) = op.kind
        {
            let [next, to] = arms_of(self.target, at);
            // A loop's is a number.
            let holds = d.known(d.number(state.flags.holds(d, condition)));
            let jump =
                Jump { arms: [next, to], state: copy(state), barriers: self.barriers.clone() };
            match holds {
                Some(holds) => {
                    arms.open = Some(jump);
                    self.close(d, &mut arms, Some(if holds == 0 { next } else { to }));
                }
                None => arms.open = Some(jump),
            }
        }
        self.arms = Some(arms);
    }

    /// The path has gone on at `taken`, or has left the code.
    fn close(&mut self, d: &D, arms: &mut Arms<D>, taken: Option<u64>) {
        let Some(Jump { arms: [next, to], state, barriers }) = arms.open.take() else { return };
        let is_next = taken == Some(next) || taken.is_none() && self.target.program.contains(to);
        let to = if is_next { to } else { next };
        self.go_later(d, arms, Arm { to, state, barriers, has_stored: false });
    }

    fn broken(&mut self, d: &D, obligation: Obligation, about: &'static str) {
        self.goal(obligation, d.bit(false), about);
    }
}

fn copy<D: Domain>(state: &Machine<D>) -> Machine<D> {
    let Machine { msrs, memory, .. } = state;
    Machine { msrs: Msrs { ..*msrs }, memory: memory.clone(), ..*state }
}

/// Follows all arms that a path has left. Says which instructions they have come to.
pub(super) fn follow<D: Domain>(
    d: &D,
    target: &Target,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
) -> Untaken {
    let Some(mut arms) = watch.arms.take() else { return Untaken::default() };
    watch.close(d, &mut arms, None);
    let path = std::mem::take(&mut watch.trace);
    let goals = std::mem::take(&mut watch.goals);
    let barriers = std::mem::take(&mut watch.barriers);
    let mut left = LIMIT;
    while let Some(arm) = arms.ahead.pop() {
        one(d, target, world, watch, &mut arms, arm, &mut left);
    }
    // Where the host's untraining runs is for paths to show.
    watch.goals.retain(|goal| goal.obligation != obligation::UNTRAINED || goal.about == "RIP");
    let found = std::mem::replace(&mut watch.goals, goals);
    watch.goals.extend(found);
    (watch.trace, watch.barriers) = (path, barriers);
    arms.reached
}

/// Follows one arm to its end, or to where it splits.
fn one<D: Domain>(
    d: &D,
    target: &Target,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    arms: &mut Arms<D>,
    arm: Arm<D>,
    left: &mut usize,
) {
    let Arm { to, state, barriers, mut has_stored } = arm;
    world.machine = state;
    world.machine.rip = d.code(to);
    watch.barriers = barriers;
    loop {
        let at = d.code_at(world.machine.rip).unwrap_or_default();
        watch.trace.clear();
        watch.trace.push(at);
        let code = target.program.at(at).and_then(Result::ok).copied();
        let Some(op) = code.filter(|_| *left > 0) else {
            return watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
        };
        *left -= 1;
        arms.reached.at.insert(at);
        watch.speculation(d, &world.machine, at);
        let is_return = op.is_return();
        match op.kind {
            Kind::Fence(fence) if fence.stops_dispatch() => return,
            Kind::Int3 | Kind::Ud2 | Kind::Int(_) | Kind::WriteCr3 | Kind::Iretq => return,
            // Nobody says what is executed behind these, or instead.
            Kind::Syscall | Kind::Sysenter => {
                return watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
            }
            // What is returned to by one of these might be executed.
            Kind::Sysretq | Kind::Sysretl | Kind::ReturnFar(_) => return watch.verw(d),
            Kind::JumpIf(condition) => {
                let condition = d.number(world.machine.flags.holds(d, condition));
                if is_found(d, condition) {
                    return watch.broken(d, obligation::UNTAKEN_MEMORY, "flags");
                }
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
                for (is_taken, to) in arms_of(target, at).into_iter().enumerate() {
                    let mut barriers = watch.barriers.clone();
                    if is_taken != 0 {
                        barriers.branch(at, Some(to));
                    }
                    let state = copy(&world.machine);
                    watch.go_later(d, arms, Arm { to, state, barriers, has_stored });
                }
                return;
            }
            _ => {}
        }
        let World { machine, model, .. } = &mut *world;
        if is_return {
            let place = machine.memory.locate(d, machine.get(Gpr::Rsp), 8, machine.cr3);
            let to = place.and_then(|place| d.code_at(machine.memory.load(d, place)));
            arms.reached.by_value |= to.is_some() && !watch.is_predicted(to);
        }
        let stepped = machine.step(d, model, &target.program, &mut Eye(watch));
        let is_transfer = matches!(op.kind, Kind::Jump | Kind::Call) || is_return;
        let by_value = is_return || op.is_indirect();
        match stepped {
            Ok(Step::Next | Step::Left)
                if by_value && (has_stored || is_a_guests(d, machine.rip)) =>
            {
                return watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
            }
            Ok(Step::Next) if is_transfer => {
                let to = d.code_at(machine.rip).unwrap_or_default();
                let (state, barriers) = (copy(machine), watch.barriers.clone());
                return watch.go_later(d, arms, Arm { to, state, barriers, has_stored });
            }
            // HLT stops nothing that is ahead of it.
            Ok(Step::Next | Step::Halted) => {}
            Ok(Step::Left) => {
                let hook = d.code_at(machine.rip).and_then(|rip| target.hook(rip));
                match hook {
                    // Has none of the mitigations anywhere.
                    Some(HostSymbol::FATAL) => return,
                    Some(_) => {
                        let within = usize::from(watch.is_predicted(Some(op.next)));
                        return watch.at_return(d, machine, false, true, within);
                    }
                    None => {}
                }
                match returns::left(d, target, world, watch) {
                    Left::Back => {}
                    Left::Returned => return,
                    Left::Broken(_) => {
                        return watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
                    }
                    // The caller's.
                    Left::Elsewhere if by_value => return,
                    Left::Elsewhere => {
                        return watch.broken(d, obligation::UNTAKEN_CODE, "RIP");
                    }
                }
            }
            Ok(Step::Guest { .. } | Step::Fault(_)) => return,
            Err(Stuck::Wild { address, store, .. }) => {
                let machine = &mut world.machine;
                let instruction = target.program.instruction(at);
                let is_near = region(d, machine, address, NEAR).is_some();
                let bases = [machine.gs_base, machine.inactive_gs_base];
                // Numbers may be close by chance.
                let is_term = d.mentions(address, |_| true);
                let by_gs = |base| {
                    let distance = d.distance(address, base).filter(|_| is_term);
                    distance.is_some_and(|at| i32::try_from(at).is_ok())
                };
                if !is_near
                    && (instruction.memory_segment() == Register::GS
                        || bases.into_iter().any(by_gs))
                {
                    return watch.broken(d, obligation::SWAPGS_FENCED, "GS base");
                }
                let tells = is_found(d, address) || d.mentions(address, Origin::is_the_hosts);
                if tells && !is_near || is_transfer {
                    return watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
                }
                has_stored |= store && !is_near;
                let value = match is_near {
                    // Of the host's, and no pointer.
                    true => watch.roots.host_cr3,
                    false => {
                        let found = d.undefined("what only speculation finds", &[]);
                        d.select(found, d.word(u64::MAX), d.word(0))
                    }
                };
                if op.kind == Kind::Verw {
                    watch.barriers.overwritten = true;
                }
                skip(d, machine, &op, &instruction, value);
            }
            // Which of them it is, nobody knows.
            Err(Stuck::Several { .. }) => {
                return watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
            }
            Err(Stuck::SelfModifying { .. }) => {
                return watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
            }
            Err(Stuck::Program(_) | Stuck::Msr { .. } | Stuck::NoCode { .. }) => {
                return watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
            }
        }
    }
}

/// Whether it depends on what was loaded from where the path loads nothing.
fn is_found<D: Domain>(d: &D, word: D::Word) -> bool {
    d.mentions(word, |origin| origin == Origin::Cpu)
}

/// Whether a guest has a hand in where this leads.
fn is_a_guests<D: Domain>(d: &D, rip: D::Word) -> bool {
    d.mentions(rip, |origin| origin.is_a_guests_choice() || origin == Origin::Cpu)
}

/// The instruction has accessed memory of which nothing is known: `value` is what it finds.
fn skip<D: Domain>(
    d: &D,
    machine: &mut Machine<D>,
    op: &Op,
    instruction: &iced_x86::Instruction,
    value: D::Word,
) {
    machine.rip = d.code(op.next);
    let rsp = machine.get(Gpr::Rsp);
    match op.kind {
        Kind::Push | Kind::PushFlags => machine.set(Gpr::Rsp, d.plus(rsp, -8)),
        Kind::Pop | Kind::PopFlags => machine.set(Gpr::Rsp, d.plus(rsp, 8)),
        _ => {}
    }
    let only_reads = matches!(op.kind, Kind::Cmp | Kind::Test | Kind::Bt | Kind::Push | Kind::Verw);
    let is_register = |n| instruction.op_count() > n && instruction.op_kind(n) == OpKind::Register;
    for n in 0..2 {
        let is_written = n == 0 || op.kind == Kind::Xchg;
        if is_written && !only_reads && is_register(n) && instruction.op_register(n).is_gpr() {
            machine.gpr[instruction.op_register(n).full_register().number()] = value;
        }
    }
    if !matches!(op.kind, Kind::Mov | Kind::Push | Kind::Pop | Kind::PushFlags | Kind::Verw) {
        let bit = d.mask(value, 1);
        let set = (0..64).filter(|bit| ARITHMETIC >> bit & 1 != 0);
        let kept = d.mask(machine.rflags(d), !ARITHMETIC);
        let flags = set.fold(kept, |flags, at| d.or(flags, d.shl(bit, at)));
        machine.flags = Flags::new(d, flags);
    }
}

/// Sees of an arm what mitigations are judged by.
struct Eye<'a, 'b, D: Domain>(&'a mut Watch<'b, D>);

impl<D: Domain> Observer<D> for Eye<'_, '_, D> {
    fn held(&self, what: Held) -> &[D::Word] {
        self.0.held(what)
    }

    fn observe(&mut self, d: &D, state: &Machine<D>, event: Event<D::Word>) {
        let watch = &mut *self.0;
        match event {
            Event::Depends(condition) if is_steered(d, condition) => watch.barriers.poison(),
            Event::Access(access) => {
                let name = state.memory.regions[access.place.region].name;
                let is_frame =
                    watch.is_of_frame(name) && !d.mentions(access.value, Origin::is_the_hosts);
                watch.barriers.overwritten &= is_frame;
                if access.gs {
                    let ours = d.eq(state.gs_base, watch.host_gs);
                    watch.goal(obligation::SWAPGS_FENCED, ours, "GS base");
                }
            }
            Event::ReadMsr(_) => watch.barriers.overwritten = false,
            Event::WriteMsr { number, value } => watch.barrier(d, number, value),
            Event::Verw => watch.barriers.overwritten = true,
            Event::Branch(branch) => watch.branch(d, state, branch),
            _ => {}
        }
    }
}
