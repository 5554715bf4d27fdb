//! Where a CPU may go on that a path does not: predictors do not ask what the operands say, nor whether
//! they can.
//!
//! From each conditional jump, with the registers and the memory that the path has there, the other arm
//! is executed on the same machine, and from there both arms of each further jump, up to what nothing is
//! executed behind before the jump is certain: what serialises, LFENCE, a trap, INT. So is what follows a
//! call that a RET does not return from, although it is predicted to: the return stack buffer has the
//! latest call on top. And so is each place whose address the code makes a value, or that the target may
//! be by its conditions, where a jump through a register or memory leads elsewhere. On an arm
//!
//! * a RET, an indirect branch and a hook of the host's want of mitigations what they want on a path:
//!   a sequence that the arm jumps over was not executed. Where it leaves for the host or a guest,
//!   registers hold nothing that would steer the one, or tell the other;
//! * GS is the host's at each access (hazards.md, row 28), by whatever register its base got into the
//!   address, and in the host;
//! * what lies elsewhere may be loaded from where a guest says, but what was found there, and what no
//!   guest may learn, is no address of another access, decides no jump that the path does not decide in
//!   the same way, and is nowhere to go: each would tell it;
//! * what a store to where a guest says may have reached is found, too, whatever it was;
//! * nothing is read but the frame that is returned to, if the path has no VERW to come;
//! * what it leads to is code, and known.
//!
//! All of this is judged of the path's own states, and after the path: that nobody can be there is no
//! excuse. An arm is not followed again from where another has come in the same state, or in one of which
//! less is known: of states at one place that point to the same things with the same done, whatever they
//! differ in is forgotten but for where it comes from ([`Domain::forgotten`]), and the next of them is
//! one of these.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::rc::Rc;

use iced_x86::{Mnemonic, OpKind, Register};

use super::{BadCode, Goal, Watch, is_a_leak};
use crate::events;
use crate::mitigations::{Barriers, is_steered};
use crate::obligation;
use crate::obligation::Obligation;
use crate::returns;
use crate::returns::Left;
use crate::target::Target;
use crate::theorem::Theorem;
use crate::world::World;
use switcher_gen::asm::HostSymbol;
use switcher_gen::layout::TssExtra;
use switcher_model::program::Kind;
use switcher_model::{
    ARITHMETIC, Access, Domain, Event, Flags, Gpr, Held, Msrs, Observer, Op, Origin, Place,
    RegionName, State as Machine, Step, Stuck,
};

/// More instructions than all arms of a theorem have.
pub(crate) const ARMS: usize = 1 << 17;
/// How far beyond a region an address is still one of it: what is there is the host's.
const NEAR: i64 = 4096;
/// How many states of a kind are told apart at one place.
const EXACT: usize = 1;
/// How many of any kind, before RSP is forgotten too.
const MANY: usize = 64;
/// A cell is forgotten together with those beside it.
const CHUNK: usize = 8;

/// Where an arm begins, or comes to.
#[derive(Debug)]
struct Arm<D: Domain> {
    to: u64,
    state: Rc<Machine<D>>,
    barriers: Barriers,
    so_far: SoFar,
}

/// What an arm has done, and the path in front of it, besides what [`Barriers`] say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SoFar {
    /// Whether it has stored to where a guest says.
    has_stored: bool,
    /// How many VERWs the path had executed, if nothing may be read behind the last of them.
    overwritten: usize,
}

/// What is never forgotten of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Traits {
    so_far: SoFar,
    /// Whether either GS base is the host's.
    gs: [bool; 2],
    has_host_spec_ctrl: bool,
}

/// What is forgotten of a state but for where it comes from: sets of [`Origin`]s, none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Forgotten {
    words: [u16; WORDS],
    flags: u16,
    /// By region and index of the chunk.
    cells: BTreeMap<(usize, usize), u16>,
}

/// What has come to a place.
#[derive(Debug)]
struct Seen<D: Domain> {
    traits: Traits,
    /// The regions that registers and FS base point to.
    pointers: [Option<usize>; 17],
    barriers: Barriers,
    state: Rc<Machine<D>>,
    forgotten: Forgotten,
    /// How many were seen before.
    rounds: usize,
}

/// See [`Seen::deeper`].
struct Deeper {
    region: usize,
    chunks: RangeInclusive<usize>,
}

impl Deeper {
    fn has(&self, (region, chunk): (usize, usize)) -> bool {
        region == self.region && self.chunks.contains(&chunk)
    }
}

/// A conditional jump of which it is not known yet which arm is taken.
#[derive(Debug)]
struct Jump<D: Domain> {
    arms: [u64; 2],
    state: Rc<Machine<D>>,
    barriers: Barriers,
    so_far: SoFar,
}

/// The arms of a path.
#[derive(Debug)]
pub(super) struct Arms<D: Domain> {
    seen: HashMap<u64, Vec<Seen<D>>>,
    open: Option<Jump<D>>,
    ahead: Vec<Arm<D>>,
    reached: Untaken,
    /// How many VERWs of memory the path has executed.
    verws: usize,
    /// What decides no jump that tells more than is told anyway: truth values as numbers, and their
    /// contrary. The path's jumps were decided by them, or they say whether a guest is being run.
    told: Vec<D::Word>,
}

/// Where the arms of a path have led.
#[derive(Clone, Debug, Default)]
pub struct Untaken {
    /// The instructions that were come to.
    pub at: BTreeSet<u64>,
    /// Whether a RET has led to what no call of the code's has pushed: what an address is matters.
    pub by_value: bool,
    /// How many instructions were executed.
    pub executed: usize,
    /// The branches that must stay in their cache line for what was shown.
    pub lines: BTreeSet<u64>,
    /// Whether an arm has ended because the CPU lacks something that another may have.
    pub lacks: bool,
}

impl<D: Domain> Default for Arms<D> {
    fn default() -> Self {
        let (seen, reached) = (HashMap::new(), Untaken::default());
        Self { seen, open: None, ahead: Vec::new(), reached, verws: 0, told: Vec::new() }
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

/// The words that are told apart by the region that they point to.
fn pointers<D: Domain>(state: &Machine<D>) -> [D::Word; 17] {
    let mut all = [state.fs_base; 17];
    all[..16].copy_from_slice(&state.gpr);
    all
}

/// How many words a state has besides RIP, flags and memory.
const WORDS: usize = 29;

/// All that instructions change.
fn words<D: Domain>(state: &Machine<D>) -> [D::Word; WORDS] {
    let Machine { gpr, cs, ss, gs_base, inactive_gs_base, fs_base, cr3, pkru, msrs, .. } = state;
    let Msrs { star, lstar, cstar, sfmask, spec_ctrl, efer } = msrs;
    let mut all = [state.rip; WORDS];
    all[..16].copy_from_slice(gpr);
    let others =
        [cs, ss, gs_base, inactive_gs_base, fs_base, cr3, pkru, star, lstar, cstar, sfmask];
    let others = others.into_iter().chain([spec_ctrl, efer]);
    all[16..].iter_mut().zip(others).for_each(|(slot, word)| *slot = *word);
    all
}

fn set_words<D: Domain>(state: &mut Machine<D>, all: [D::Word; WORDS]) {
    state.gpr.copy_from_slice(&all[..16]);
    let [.., cs, ss, gs_base, inactive, fs_base, cr3, pkru, star, lstar, cstar, sfmask, ctrl, efer] =
        all;
    (state.cs, state.ss, state.gs_base, state.inactive_gs_base) = (cs, ss, gs_base, inactive);
    (state.fs_base, state.cr3, state.pkru) = (fs_base, cr3, pkru);
    state.msrs = Msrs { star, lstar, cstar, sfmask, spec_ctrl: ctrl, efer };
}

/// Where a word comes from, as a set.
fn origins<D: Domain>(d: &D, word: D::Word) -> u16 {
    let set = Cell::new(0);
    d.mentions(word, |origin| {
        set.set(set.get() | 1 << origin as u16);
        false
    });
    set.get()
}

const fn is_within(part: u16, whole: u16) -> bool {
    part & !whole == 0
}

/// What is known only to be nobody's choice comes from here.
const CODE: u16 = 1 << Origin::Code as u16;

/// The chunks of memory that two states have differently.
fn other_chunks<'a, D: Domain>(
    a: &'a Machine<D>,
    b: &'a Machine<D>,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let regions = a.memory.regions.iter().zip(&b.memory.regions).enumerate();
    regions.filter(|(_, (a, b))| a.cells != b.cells).flat_map(|(region, (a, b))| {
        let chunks = a.cells.chunks(CHUNK).zip(b.cells.chunks(CHUNK)).enumerate();
        chunks.filter(|(_, (a, b))| a != b).map(move |(chunk, _)| (region, chunk))
    })
}

/// What is in a chunk of memory.
fn chunk<D: Domain>(d: &D, state: &Machine<D>, (region, chunk): (usize, usize)) -> D::Word {
    let cells = &state.memory.regions[region].cells;
    d.load(&cells[chunk * CHUNK..cells.len().min((chunk + 1) * CHUNK)])
}

impl<D: Domain> Seen<D> {
    /// Whether it is all of `state`'s kind, so that what differs may be forgotten.
    fn is_like(
        &self,
        d: &D,
        (state, barriers): (&Machine<D>, &Barriers),
        traits: &Traits,
        watch: &Watch<'_, D>,
    ) -> bool {
        let mitigations = watch.target.setting.variant.mitigations();
        let is_deep = || {
            let more = self.barriers.deeper(barriers).unwrap_or_default();
            let [known, now] = [&*self.state, state].map(|state| state.get(Gpr::Rsp));
            // Where it goes round with another RSP each time, there is an end to telling them apart.
            let is_round = more == 0 && self.rounds >= MANY;
            is_round || known == now || d.distance(known, now) == Some(8 * more as i64)
        };
        // What is the same points to the same.
        let points_alike = || {
            let pairs = pointers(&self.state).into_iter().zip(pointers(state)).zip(self.pointers);
            pairs
                .into_iter()
                .all(|((known, now), to)| known == now || region(d, state, now, 0) == to)
        };
        self.traits == *traits
            && self.barriers.is_no_better_than(barriers, mitigations)
            && is_deep()
            && points_alike()
    }

    /// What of `state` is there only because it is deeper within calls: these chunks of a stack, and that
    /// RSP is below them.
    fn deeper(&self, d: &D, (state, barriers): (&Machine<D>, &Barriers)) -> Option<Deeper> {
        let more = self.barriers.deeper(barriers).filter(|more| *more > 0)?;
        let rsp = state.get(Gpr::Rsp);
        let place = state.memory.locate(d, rsp, 8 * more, state.cr3)?;
        let first = place.index / CHUNK;
        Some(Deeper {
            region: place.region,
            chunks: first..=(place.index + place.size - 1) / CHUNK,
        })
    }

    /// Whether `state` is one of these.
    fn covers(&self, d: &D, (state, barriers): (&Machine<D>, &Barriers)) -> bool {
        let deeper = self.deeper(d, (state, barriers));
        let is_rsp = |slot| deeper.is_some() && slot == Gpr::Rsp as usize;
        let fits = |set: u16, word| set != 0 && is_within(origins(d, word), set);
        let Forgotten { words: sets, flags, cells } = &self.forgotten;
        let mut all = words(&self.state).into_iter().zip(words(state)).zip(sets).enumerate();
        let are_flags = || {
            let fits = |word| fits(*flags, word);
            self.state.flags.is_same(&state.flags) || state.flags.made_of().into_iter().all(fits)
        };
        let is_cell = |at| cells.get(&at).is_some_and(|set| fits(*set, chunk(d, state, at)));
        all.all(|(slot, ((known, now), set))| known == now || is_rsp(slot) || fits(*set, now))
            && are_flags()
            && other_chunks(&self.state, state)
                .all(|at| deeper.as_ref().is_some_and(|deeper| deeper.has(at)) || is_cell(at))
    }

    /// Forgets whatever `state` has differently.
    fn forget(&mut self, d: &D, (state, barriers): (&Machine<D>, &Barriers)) {
        let deeper = self.deeper(d, (state, barriers));
        let mut joined = copy(&self.state);
        let mut all = words(&joined);
        for (slot, (word, now)) in all.iter_mut().zip(words(state)).enumerate() {
            if *word != now && (deeper.is_none() || slot != Gpr::Rsp as usize) {
                let set = &mut self.forgotten.words[slot];
                *set |= CODE | origins(d, *word) | origins(d, now);
                *word = d.forgotten(&[now, *word]);
            }
        }
        set_words(&mut joined, all);
        if !joined.flags.is_same(&state.flags) {
            let both: Vec<_> =
                state.flags.made_of().into_iter().chain(joined.flags.made_of()).collect();
            let from = both.iter().fold(CODE, |set, word| set | origins(d, *word));
            self.forgotten.flags |= from;
            joined.flags = Flags::new(d, d.forgotten(&both));
        }
        let others = other_chunks(&self.state, state);
        for at in others.filter(|at| !deeper.as_ref().is_some_and(|deeper| deeper.has(*at))) {
            let [was, now] = [&*self.state, state].map(|state| chunk(d, state, at));
            let set = self.forgotten.cells.entry(at).or_default();
            *set |= CODE | origins(d, was) | origins(d, now);
            let cells = &mut joined.memory.regions[at.0].cells;
            let end = cells.len().min((at.1 + 1) * CHUNK);
            d.store(&mut cells[at.1 * CHUNK..end], d.forgotten(&[now, was]));
        }
        self.state = Rc::new(joined);
    }
}

impl<D: Domain> Watch<'_, D> {
    fn traits(&self, d: &D, state: &Machine<D>, so_far: SoFar) -> Traits {
        let is = |a, b| d.distance(a, b) == Some(0);
        Traits {
            so_far,
            gs: [state.gs_base, state.inactive_gs_base].map(|base| is(base, self.host_gs)),
            has_host_spec_ctrl: is(state.msrs.spec_ctrl, self.roots.host_spec_ctrl),
        }
    }

    /// Goes to `to` later, unless that was done in such a state.
    fn go_later(
        &self,
        d: &D,
        arms: &mut Arms<D>,
        to: u64,
        state: &Machine<D>,
        barriers: &Barriers,
        so_far: SoFar,
    ) {
        let seen = arms.seen.entry(to).or_default();
        let traits = self.traits(d, state, so_far);
        let here = (state, barriers);
        let is_like = |seen: &Seen<D>| seen.is_like(d, here, &traits, self);
        let alike: Vec<usize> = (0..seen.len()).filter(|at| is_like(&seen[*at])).collect();
        if alike.iter().any(|at| seen[*at].covers(d, here)) {
            return;
        }
        let like = alike.last().filter(|_| alike.len() >= EXACT).map(|at| &mut seen[*at]);
        let (state, barriers) = match like {
            Some(like) => {
                like.forget(d, here);
                (Rc::clone(&like.state), like.barriers.clone())
            }
            None => {
                let (state, barriers) = (Rc::new(copy(state)), barriers.clone());
                let forgotten = Forgotten::default();
                let (kept, done) = (Rc::clone(&state), barriers.clone());
                let rounds = seen.len();
                let pointers = pointers(&kept).map(|word| region(d, &kept, word, 0));
                seen.push(Seen {
                    traits,
                    pointers,
                    barriers: done,
                    state: kept,
                    forgotten,
                    rounds,
                });
                (state, barriers)
            }
        };
        arms.ahead.push(Arm { to, state, barriers, so_far });
    }

    /// Before each instruction of the path.
    pub(super) fn pass(&mut self, d: &D, state: &Machine<D>, at: u64) {
        let Some(mut arms) = self.arms.take() else { return };
        self.close(d, &mut arms, Some(at));
        if let Some(Ok(op)) = self.target.program.at(at) {
            let is_last = self.barriers.overwritten;
            let overwritten = if is_last { arms.verws } else { 0 };
            let so_far = SoFar { has_stored: false, overwritten };
            // The CPU may take any round for the last one.
            if op.repeats() && d.known(state.get(Gpr::Rcx)) != Some(0) {
                self.go_later(d, &mut arms, op.next, state, &self.barriers, so_far);
            }
            if let Some(condition) = state.jumps_if(d, op.kind) {
                let [next, to] = arms_of(self.target, at);
                // A loop's is a number.
                let holds = d.known(d.number(condition));
                let counted = matches!(op.kind, Kind::Loop(_)).then(|| {
                    let mut counted = copy(state);
                    counted.count_down(d, op.kind);
                    counted
                });
                let state = counted.as_ref().unwrap_or(state);
                arms.told.extend([condition, d.not(condition)].map(|bit| d.number(bit)));
                match holds {
                    Some(holds) => {
                        let other = if holds == 0 { to } else { next };
                        self.go_later(d, &mut arms, other, state, &self.barriers, so_far);
                    }
                    None => {
                        let (state, barriers) = (Rc::new(copy(state)), self.barriers.clone());
                        arms.open = Some(Jump { arms: [next, to], state, barriers, so_far });
                    }
                }
            }
            let is_in_memory = || self.target.program.instruction(at).op0_kind() == OpKind::Memory;
            arms.verws += usize::from(op.kind == Kind::Verw && is_in_memory());
            self.predict(d, &mut arms, (state, &self.barriers, so_far), op, at);
        }
        self.arms = Some(arms);
    }

    /// The path has gone on at `taken`, or has left the code.
    fn close(&self, d: &D, arms: &mut Arms<D>, taken: Option<u64>) {
        let Some(Jump { arms: [next, to], state, barriers, so_far }) = arms.open.take() else {
            return;
        };
        let is_next = taken == Some(next) || taken.is_none() && self.target.program.contains(to);
        let to = if is_next { to } else { next };
        self.go_later(d, arms, to, &state, &barriers, so_far);
    }

    /// The RET or the jump through a register or memory at `at` may be predicted to lead elsewhere in the
    /// code.
    fn predict(
        &self,
        d: &D,
        arms: &mut Arms<D>,
        (state, barriers, so_far): (&Machine<D>, &Barriers, SoFar),
        op: &Op,
        at: u64,
    ) {
        let program = &self.target.program;
        let [_, thunk] = self.target.returns;
        let is_thunk = || thunk != 0 && program.instruction(at).near_branch_target() == thunk;
        let release = match op.kind {
            Kind::Return(release) => Some(release),
            Kind::Jump if is_thunk() => Some(0),
            _ => None,
        };
        if let Some(release) = release {
            let Some(to) = barriers.prediction() else { return };
            let rsp = state.get(Gpr::Rsp);
            let place = state.memory.locate(d, rsp, 8, state.cr3);
            let real = place.and_then(|place| d.code_at(state.memory.load(d, place)));
            if real != Some(to) {
                let (mut state, mut barriers) = (copy(state), barriers.clone());
                state.set(Gpr::Rsp, d.plus(rsp, 8 + i64::from(release)));
                barriers.returned();
                barriers.branch(at, None);
                self.go_later(d, arms, to, &state, &barriers, so_far);
            }
        } else if op.is_indirect() {
            let real = state.leads_to(d, op);
            let code = |word| d.code_at(word).filter(|to| matches!(program.at(*to), Some(Ok(_))));
            let only = real.and_then(code);
            let others = real.map(|word| d.alternatives(word)).unwrap_or_default();
            let named = self.named().into_iter();
            let targets: BTreeSet<u64> = others.into_iter().filter_map(code).chain(named).collect();
            let mut state = copy(state);
            let mut barriers = barriers.clone();
            barriers.poison();
            if op.kind == Kind::Call {
                let rsp = d.plus(state.get(Gpr::Rsp), -8);
                if let Some(place) = state.memory.locate(d, rsp, 8, state.cr3) {
                    state.memory.store(d, place, d.code(op.next));
                }
                state.set(Gpr::Rsp, rsp);
                barriers.called(op.next, self.target.around(at).fills);
            }
            for to in targets.into_iter().filter(|to| only != Some(*to)) {
                let mut barriers = barriers.clone();
                if op.kind == Kind::Jump {
                    barriers.branch(at, Some(to));
                }
                self.go_later(d, arms, to, &state, &barriers, so_far);
            }
        }
    }

    /// The places in the code whose address the theorem's code makes a value.
    fn named(&self) -> BTreeSet<u64> {
        let program = &self.target.program;
        let entries = self.theorem.entries(self.target).into_iter();
        let mut reached: BTreeSet<u64> =
            entries.flat_map(|entry| self.target.reached_from(entry)).collect();
        reached.extend(&self.trace);
        let named = reached.into_iter().filter_map(|at| {
            let instruction = program.instruction(at);
            let is_lea = instruction.mnemonic() == Mnemonic::Lea;
            if is_lea && instruction.is_ip_rel_memory_operand() {
                return Some(instruction.ip_rel_memory_address());
            }
            let is_number = matches!(
                instruction.try_op_kind(1),
                Ok(OpKind::Immediate32 | OpKind::Immediate32to64 | OpKind::Immediate64)
            );
            (program.is_fixed() && is_number).then(|| instruction.immediate(1))
        });
        named.filter(|to| matches!(program.at(*to), Some(Ok(_)))).collect()
    }

    fn broken(&mut self, d: &D, obligation: Obligation, about: &'static str) {
        self.goal(obligation, d.bit(false), about);
    }

    /// The arm has read something, or the like.
    fn has_read(&mut self, d: &D, is_last: bool) {
        let wanted = self.target.setting.variant.mitigations().verw;
        if wanted && is_last && (self.theorem == Theorem::EnterGuest || self.theorem.has_hook()) {
            self.broken(d, obligation::VERW_LAST, "VERW");
        }
    }

    /// Whether all of host_rsp is read.
    fn is_host_rsp(&self, state: &Machine<D>, access: &Access<D::Word>) -> bool {
        let Place { region, index, size } = access.place;
        let region = &state.memory.regions[region];
        let at = self.target.setting.block.tss_extra + TssExtra::host_rsp.bytes() as i64;
        region.name == RegionName::TssExtra && region.offset(index) == at && size == 8
    }

    /// The arm leaves for the host, or calls a hook.
    fn is_host(&mut self, d: &D, machine: &Machine<D>) {
        let ours = d.eq(machine.gs_base, self.host_gs);
        self.goal(obligation::SWAPGS_FENCED, ours, "GS base");
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
) -> Result<(Untaken, Vec<Goal<D>>), BadCode> {
    let Some(mut arms) = watch.arms.take() else { return Ok(Default::default()) };
    watch.close(d, &mut arms, None);
    let path = std::mem::take(&mut watch.trace);
    let goals = std::mem::take(&mut watch.goals);
    let barriers = std::mem::take(&mut watch.barriers);
    while let Some(arm) = arms.ahead.pop() {
        // Otherwise something has been forgotten of it meanwhile, and that is followed.
        let is_it = |seen: &Seen<D>| Rc::ptr_eq(&seen.state, &arm.state);
        if !arms.seen.get(&arm.to).is_some_and(|seen| seen.iter().any(is_it)) {
            continue;
        }
        one(d, target, world, watch, &mut arms, arm)?;
        arms.reached.lines.extend(watch.barriers.lines());
    }
    // Where the host's untraining runs is for paths to show.
    watch.goals.retain(|goal| goal.obligation != obligation::UNTRAINED || goal.about == "RIP");
    let found = std::mem::replace(&mut watch.goals, goals);
    (watch.trace, watch.barriers) = (path, barriers);
    Ok((arms.reached, found))
}

/// Follows one arm to its end, or to where it splits.
fn one<D: Domain>(
    d: &D,
    target: &Target,
    world: &mut World<D>,
    watch: &mut Watch<'_, D>,
    arms: &mut Arms<D>,
    arm: Arm<D>,
) -> Result<(), BadCode> {
    let Arm { to, state, barriers, mut so_far } = arm;
    world.machine = copy(&state);
    drop(state);
    world.machine.rip = d.code(to);
    watch.barriers = barriers;
    let mut is_first = true;
    // Behind the path's last VERW.
    let is_last = so_far.overwritten != 0 && so_far.overwritten == arms.verws;
    loop {
        let at = d.code_at(world.machine.rip).unwrap_or_default();
        if !std::mem::take(&mut is_first) && arms.seen.contains_key(&at) {
            // Others have come here by a jump.
            watch.go_later(d, arms, at, &world.machine, &watch.barriers, so_far);
            return Ok(());
        }
        watch.trace.clear();
        watch.trace.push(at);
        let code = target.program.at(at).and_then(Result::ok).copied();
        let Some(op) = code else {
            watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
            return Ok(());
        };
        arms.reached.executed += 1;
        if arms.reached.executed > ARMS {
            return Err(BadCode::Arms { at, limit: ARMS });
        }
        arms.reached.at.insert(at);
        watch.speculation(d, &world.machine, at);
        let is_return = op.is_return();
        match op.kind {
            Kind::Fence(fence) if fence.stops_dispatch() => return Ok(()),
            Kind::Int3 | Kind::Ud2 | Kind::Int(_) | Kind::WriteCr3 => return Ok(()),
            Kind::Iretq => {
                at_guest(d, &world.machine, watch);
                return Ok(());
            }
            // Nobody says what is executed behind these, or instead.
            Kind::Syscall | Kind::Sysenter => {
                watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
                return Ok(());
            }
            // What is returned to by one of these might be executed.
            Kind::Sysretq | Kind::Sysretl | Kind::ReturnFar(_) => {
                watch.verw(d);
                at_guest(d, &world.machine, watch);
                return Ok(());
            }
            Kind::JumpIf(_) | Kind::Loop(_) | Kind::JumpIfZero => {
                let holds = world.machine.jumps_if(d, op.kind).unwrap_or(d.bit(true));
                world.machine.count_down(d, op.kind);
                let condition = d.number(holds);
                if arms.tells(d, watch, &world.machine, condition) {
                    watch.broken(d, obligation::UNTAKEN_MEMORY, "flags");
                    return Ok(());
                }
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
                for (is_taken, to) in arms_of(target, at).into_iter().enumerate() {
                    let mut barriers = watch.barriers.clone();
                    if is_taken != 0 && matches!(op.kind, Kind::JumpIf(_)) {
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
            arms.reached.by_value |= to.is_some() && !watch.is_predicted(to);
        }
        let stepped = machine.step(
            d,
            model,
            &target.program,
            &mut Eye { watch, is_last, told: &mut arms.told, lacks: &mut arms.reached.lacks },
        );
        let is_transfer = matches!(op.kind, Kind::Jump | Kind::Call) || is_return;
        let by_value = is_return || op.is_indirect();
        match stepped {
            Ok(Step::Next | Step::Left)
                if by_value && (so_far.has_stored || is_a_guests(d, machine.rip)) =>
            {
                watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
                return Ok(());
            }
            Ok(Step::Next) if is_transfer => {
                let to = d.code_at(machine.rip).unwrap_or_default();
                watch.go_later(d, arms, to, machine, &watch.barriers, so_far);
                return Ok(());
            }
            // The next round, or what is behind the last one, which it may be taken for.
            Ok(Step::Next) if op.repeats() && d.code_at(machine.rip) == Some(at) => {
                is_first = true;
                watch.go_later(d, arms, op.next, machine, &watch.barriers, so_far);
            }
            // HLT stops nothing that is ahead of it.
            Ok(Step::Next | Step::Halted) => {}
            Ok(Step::Left) => {
                let hook = d.code_at(machine.rip).and_then(|rip| target.hook(rip));
                if let Some(hook) = hook {
                    // That of what is fatal has none of the mitigations anywhere.
                    if hook != HostSymbol::FATAL {
                        let within = usize::from(watch.is_predicted(Some(op.next)));
                        watch.at_return(d, machine, false, true, within);
                    }
                    events::untold(d, machine, watch);
                    watch.is_host(d, machine);
                    return Ok(());
                }
                match returns::left(d, target, world, watch) {
                    Left::Back => {}
                    Left::Broken(_) => {
                        watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
                        return Ok(());
                    }
                    Left::Elsewhere if !by_value => {
                        watch.broken(d, obligation::UNTAKEN_CODE, "RIP");
                        return Ok(());
                    }
                    // The caller's.
                    Left::Returned | Left::Elsewhere => {
                        at_caller(d, world, watch);
                        return Ok(());
                    }
                }
            }
            Ok(Step::Guest { .. } | Step::Fault(_)) => return Ok(()),
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
                    watch.broken(d, obligation::SWAPGS_FENCED, "GS base");
                    return Ok(());
                }
                // A call's own address, on a stack: how far down that goes is for paths to show.
                let is_call = op.kind == Kind::Call && !op.is_indirect() && is_near;
                if is_call {
                    machine.set(Gpr::Rsp, d.plus(machine.get(Gpr::Rsp), -8));
                    watch.barriers.called(op.next, target.around(at).fills);
                    let to = instruction.near_branch_target();
                    watch.go_later(d, arms, to, machine, &watch.barriers, so_far);
                    return Ok(());
                }
                // Many accesses, of which one is judged.
                let is_string =
                    matches!(op.kind, Kind::StoreString { .. } | Kind::CopyString { .. });
                if tells(d, address) && !is_near || is_transfer || is_string {
                    watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
                    return Ok(());
                }
                let value = match is_near {
                    // Of the host's, and no pointer.
                    true => watch.roots.host_cr3,
                    false => found(d),
                };
                // By which ring 0 goes on where an event has interrupted it.
                let next = target.program.at(op.next).and_then(Result::ok);
                let is_frame = op.kind == Kind::PopFlags
                    && next.is_some_and(|next| matches!(next.kind, Kind::ReturnFar(_)));
                watch.has_read(d, is_last && !is_frame);
                watch.barriers.overwritten &= is_frame;
                watch.barriers.overwritten |= op.kind == Kind::Verw;
                skip(d, machine, &op, &instruction, value);
                if store && !is_near {
                    so_far.has_stored = true;
                    forget_memory(d, machine);
                }
            }
            // Which of them it is, nobody knows.
            Err(Stuck::Several { .. }) => {
                watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
                return Ok(());
            }
            Err(Stuck::SelfModifying { .. }) => {
                watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
                return Ok(());
            }
            Err(
                Stuck::Program(_) | Stuck::Msr { .. } | Stuck::Count { .. } | Stuck::NoCode { .. },
            ) => {
                watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
                return Ok(());
            }
        }
    }
}

impl<D: Domain> Arms<D> {
    /// Whether a jump by `condition` tells what was found, or what no guest may learn, beyond what it is
    /// told anyway: by the way of the path itself, or because it is run at all. Where something has been
    /// interrupted, in the code or not, decides what is done about it.
    fn tells(&self, d: &D, watch: &Watch<'_, D>, state: &Machine<D>, condition: D::Word) -> bool {
        let is_of_code = d.is_of_code(condition);
        let is_secret = |origin: Origin| match origin {
            Origin::Interrupted => !is_of_code,
            Origin::Place => false,
            origin => !origin.may_reach_a_guest(),
        };
        let is_told = || {
            self.told.contains(&condition)
                || watch.decisions.is_told(d, condition)
                || watch.decisions.is_in_parts(d, state, condition)
        };
        is_found(d, condition) || d.mentions(condition, is_secret) && !is_told()
    }
}

/// The arm returns to the host, behind the call of `switcher_enter_guest`.
fn at_caller<D: Domain>(d: &D, world: &World<D>, watch: &mut Watch<'_, D>) {
    let machine = &world.machine;
    if is_a_leak(d, machine.rip) && d.distance(machine.rip, world.caller.rip) != Some(0) {
        watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
    }
    watch.is_host(d, machine);
    for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
        let is_free = !is_steered(d, machine.get(register));
        watch.goal(obligation::EXIT_SCRATCH, d.bit(is_free), register.name());
    }
}

/// The arm enters a guest, if it is about routines that do.
fn at_guest<D: Domain>(d: &D, machine: &Machine<D>, watch: &mut Watch<'_, D>) {
    if watch.theorem.is_of_events() {
        return;
    }
    for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
        let is_free = !is_a_leak(d, machine.get(register));
        watch.goal(obligation::NO_HOST_VALUE, d.bit(is_free), register.name());
    }
}

/// What a load finds where the path loads nothing.
fn found<D: Domain>(d: &D) -> D::Word {
    let found = d.undefined("what only speculation finds", &[]);
    d.select(found, d.word(u64::MAX), d.word(0))
}

/// A store has gone to where a guest says: that may be anywhere, and a load behind it finds that.
fn forget_memory<D: Domain>(d: &D, machine: &mut Machine<D>) {
    for region in machine.memory.regions.iter_mut().filter(|region| !region.is_code) {
        for chunk in region.cells.chunks_mut(CHUNK) {
            d.store(chunk, found(d));
        }
    }
}

/// Whether it says what no guest may learn, or what was found.
fn tells<D: Domain>(d: &D, word: D::Word) -> bool {
    is_found(d, word) || is_a_leak(d, word)
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
        let is_written = n == 0 || matches!(op.kind, Kind::Xchg | Kind::ExchangeAdd);
        if is_written && !only_reads && is_register(n) && instruction.op_register(n).is_gpr() {
            machine.gpr[instruction.op_register(n).full_register().number()] = value;
        }
    }
    if op.kind == Kind::CompareExchange {
        machine.set(Gpr::Rax, value);
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
struct Eye<'a, 'b, D: Domain> {
    watch: &'a mut Watch<'b, D>,
    /// Whether nothing may be read but the frame that is returned to.
    is_last: bool,
    told: &'a mut Vec<D::Word>,
    lacks: &'a mut bool,
}

impl<D: Domain> Observer<D> for Eye<'_, '_, D> {
    fn held(&self, what: Held) -> &[D::Word] {
        self.watch.held(what)
    }

    fn observe(&mut self, d: &D, state: &Machine<D>, event: Event<D::Word>) {
        let watch = &mut *self.watch;
        match event {
            Event::Depends(condition) => {
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
            }
            Event::Access(access) => {
                let name = state.memory.regions[access.place.region].name;
                let is_frame =
                    watch.is_of_frame(name) && !d.mentions(access.value, Origin::is_the_hosts);
                watch.barriers.overwritten &= is_frame;
                watch.has_read(d, self.is_last && !is_frame);
                if let Some((at, size)) = watch.reads_flags(state, &access) {
                    watch.decisions.read_flags(access.value, at, size);
                }
                if watch.is_host_rsp(state, &access) {
                    let is_zero = d.is(access.value, 0);
                    self.told.extend([is_zero, d.not(is_zero)].map(|bit| d.number(bit)));
                }
                if access.gs {
                    let ours = d.eq(state.gs_base, watch.host_gs);
                    watch.goal(obligation::SWAPGS_FENCED, ours, "GS base");
                }
            }
            Event::ReadMsr(_) => {
                watch.barriers.overwritten = false;
                watch.has_read(d, self.is_last);
            }
            Event::WriteMsr { number, value } => watch.barrier(d, number, value),
            Event::Verw => watch.barriers.overwritten = true,
            Event::Branch(branch) => watch.branch(d, state, branch),
            Event::Fence(fence) => watch.barriers.fence(fence),
            // What it says of another CPU, which may lack that, is another's.
            Event::Needs { condition, met } => {
                watch.asked |= condition.asks();
                *self.lacks |= !met && !condition.asks().is_empty();
            }
            // That it goes there is what an arm is; the rest is said of each access.
            Event::Execute(_)
            | Event::Decided(_)
            | Event::LoadCr3(_)
            | Event::WriteGsBase(_)
            | Event::SwapGs
            | Event::Sysretq
            | Event::Iretq(_) => {}
        }
    }
}
