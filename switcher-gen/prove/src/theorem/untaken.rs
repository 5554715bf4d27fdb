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

mod eye;
mod origins;
mod strayed;
mod tells;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::rc::Rc;

use iced_x86::{Mnemonic, OpKind};

use super::{BadCode, Goal, Watch, is_a_leak};
use crate::events;
use crate::mitigations::{Barriers, Pushed, is_steered};
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
    Access, Domain, Flags, Gpr, Msrs, Op, Origin, Place, Program, RegionName, State as Machine, Step, Stuck,
};

use eye::Eye;
use origins::Origins;
use strayed::{NEAR, Strayed, is_counted};
use tells::is_of_places;

/// More instructions than all arms of a theorem have.
pub(crate) const ARMS: usize = 1 << 17;
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
#[derive(Clone, Copy, Debug, Default)]
struct SoFar {
    /// What its stores may have left where nobody knows.
    strayed: Strayed,
    /// How many VERWs the path had executed, if nothing may be read behind the last of them.
    overwritten: usize,
}

/// What is never forgotten of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Traits {
    /// Whether a store may have been to anywhere.
    has_strayed: bool,
    overwritten: usize,
    /// Whether either GS base is the host's.
    gs: [bool; 2],
    has_host_spec_ctrl: bool,
}

/// What is forgotten of a state but for where it comes from: sets of [`Origin`]s, none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Forgotten {
    words: [Origins; WORDS],
    flags: Origins,
    /// By region and index of the chunk.
    cells: BTreeMap<(usize, usize), Origins>,
    /// What may lie anywhere.
    strayed: Strayed,
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

    /// Whether it is said that there may be as much.
    fn is_said(&self, strayed: &Strayed) -> bool {
        let index = self.chunks.end() * CHUNK;
        strayed.is_among_calls(Place { region: self.region, index, size: 8 }, false)
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
    /// How many instructions were executed.
    pub executed: usize,
    /// The branches that must stay in their cache line for what was shown.
    pub lines: BTreeSet<u64>,
    /// Whether it may matter how far addresses of the code are from each other.
    pub of_place: bool,
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

/// The region that `address` points to, or beside, or that it is counted from.
fn region<D: Domain>(d: &D, state: &Machine<D>, address: D::Word) -> Option<usize> {
    state.memory.regions.iter().position(|region| {
        let around = region.start - NEAR..=region.offset(region.cells.len()) + NEAR;
        let distance = d.sub(address, region.base);
        match d.known(distance) {
            Some(at) => around.contains(&at.cast_signed()),
            None => !region.is_code && is_counted(d, distance),
        }
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

/// Where [`words`] has one of [`pointers`].
const fn slot_of(pointer: usize) -> usize {
    // FS base is behind CS, SS and the bases of GS.
    if pointer < 16 { pointer } else { 20 }
}

fn set_words<D: Domain>(state: &mut Machine<D>, all: [D::Word; WORDS]) {
    state.gpr.copy_from_slice(&all[..16]);
    let [.., cs, ss, gs_base, inactive, fs_base, cr3, pkru, star, lstar, cstar, sfmask, ctrl, efer] =
        all;
    (state.cs, state.ss, state.gs_base, state.inactive_gs_base) = (cs, ss, gs_base, inactive);
    (state.fs_base, state.cr3, state.pkru) = (fs_base, cr3, pkru);
    state.msrs = Msrs { star, lstar, cstar, sfmask, spec_ctrl: ctrl, efer };
}

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
                .all(|((known, now), to)| known == now || region(d, state, now) == to)
        };
        self.traits == *traits
            && self.barriers.is_no_better_than(barriers, mitigations)
            && is_deep()
            && points_alike()
    }

    /// What of `state` is there only because it is deeper within calls: these chunks of a stack, and that
    /// RSP is below them.
    /// Each of those must hold what its call has pushed: else a RET ends in another way there.
    fn deeper(
        &self,
        d: &D,
        (state, barriers): (&Machine<D>, &Barriers),
        program: &Program,
    ) -> Option<Deeper> {
        let more = self.barriers.deeper(barriers).filter(|more| *more > 0)?;
        let rsp = state.get(Gpr::Rsp);
        let place = state.memory.locate(d, rsp, 8 * more, state.cr3)?;
        let is_return = |depth: usize| {
            let place = Place { index: place.index + 8 * depth, size: 8, ..place };
            let to = d.code_at(state.memory.load(d, place));
            match barriers.pushed(depth) {
                Some(Pushed::Address(next)) => to == Some(next),
                Some(Pushed::Trap) => {
                    let op = to.and_then(|to| program.at(to)).and_then(Result::ok);
                    op.is_some_and(|op| matches!(op.kind, Kind::Int3 | Kind::Ud2))
                }
                None => false,
            }
        };
        let is_whole = place.index.is_multiple_of(CHUNK);
        if !is_whole || !(0..more).all(is_return) {
            return None;
        }
        let first = place.index / CHUNK;
        Some(Deeper {
            region: place.region,
            chunks: first..=(place.index + place.size - 1) / CHUNK,
        })
    }

    /// Whether `state` is one of these.
    fn covers(
        &self,
        d: &D,
        (state, barriers): (&Machine<D>, &Barriers),
        strayed: &Strayed,
        program: &Program,
    ) -> bool {
        let deeper = self.deeper(d, (state, barriers), program);
        let is_rsp = |slot| deeper.is_some() && slot == Gpr::Rsp as usize;
        let fits = |set: Origins, word| !set.is_empty() && Origins::of(d, word).is_within(set);
        let Forgotten { words: sets, flags, cells, strayed: known } = &self.forgotten;
        let mut all = words(&self.state).into_iter().zip(words(state)).zip(sets).enumerate();
        let are_flags = || {
            let fits = |word| fits(*flags, word);
            self.state.flags.is_same(&state.flags) || state.flags.made_of().into_iter().all(fits)
        };
        let is_cell = |at| cells.get(&at).is_some_and(|set| fits(*set, chunk(d, state, at)));
        all.all(|(slot, ((known, now), set))| known == now || is_rsp(slot) || fits(*set, now))
            && are_flags()
            && strayed.is_within(known)
            && deeper.as_ref().is_none_or(|deeper| deeper.is_said(known))
            && other_chunks(&self.state, state)
                .all(|at| deeper.as_ref().is_some_and(|deeper| deeper.has(at)) || is_cell(at))
    }

    /// Forgets whatever `state` has differently.
    fn forget(
        &mut self,
        d: &D,
        (state, barriers): (&Machine<D>, &Barriers),
        strayed: &Strayed,
        program: &Program,
    ) {
        let deeper = self.deeper(d, (state, barriers), program);
        let mut joined = copy(&self.state);
        let mut all = words(&joined);
        for (slot, (word, now)) in all.iter_mut().zip(words(state)).enumerate() {
            if *word != now && (deeper.is_none() || slot != Gpr::Rsp as usize) {
                let set = &mut self.forgotten.words[slot];
                *set = both(d, *set, [*word, now]);
                *word = self.either(d, slot, [now, *word]);
            }
        }
        set_words(&mut joined, all);
        if !joined.flags.is_same(&state.flags) {
            let made_of: Vec<_> =
                state.flags.made_of().into_iter().chain(joined.flags.made_of()).collect();
            let all = made_of.iter().map(|word| Origins::of(d, *word));
            self.forgotten.flags = all.fold(self.forgotten.flags.and(Origins::CODE), Origins::and);
            joined.flags = Flags::new(d, d.forgotten(&made_of));
        }
        let others = other_chunks(&self.state, state);
        for at in others.filter(|at| !deeper.as_ref().is_some_and(|deeper| deeper.has(*at))) {
            let [was, now] = [&*self.state, state].map(|state| chunk(d, state, at));
            let set = self.forgotten.cells.entry(at).or_default();
            *set = both(d, *set, [was, now]);
            let cells = &mut joined.memory.regions[at.0].cells;
            let end = cells.len().min((at.1 + 1) * CHUNK);
            d.store(&mut cells[at.1 * CHUNK..end], d.forgotten(&[now, was]));
        }
        self.forgotten.strayed.join(strayed);
        if let Some(Deeper { region, chunks }) = &deeper {
            self.forgotten.strayed.call_below(*region, (chunks.end() + 1) * CHUNK);
        }
        self.state = Rc::new(joined);
    }

    /// One of two words, of which no more is known. Two that are counted from a region stay so.
    fn either(&self, d: &D, slot: usize, words: [D::Word; 2]) -> D::Word {
        let of = (0..self.pointers.len()).find(|pointer| slot_of(*pointer) == slot);
        let Some(region) = of.and_then(|pointer| self.pointers[pointer]) else {
            return d.forgotten(&words);
        };
        let base = self.state.memory.regions[region].base;
        d.add(base, d.forgotten(&words.map(|word| d.sub(word, base))))
    }
}

/// What is forgotten of two words that differ, besides `set`.
fn both<D: Domain>(d: &D, set: Origins, words: [D::Word; 2]) -> Origins {
    words.into_iter().fold(set.and(Origins::CODE), |set, word| set.and(Origins::of(d, word)))
}

impl<D: Domain> Watch<'_, D> {
    fn traits(&self, d: &D, state: &Machine<D>, so_far: SoFar) -> Traits {
        let is = |a, b| d.distance(a, b) == Some(0);
        Traits {
            has_strayed: so_far.strayed.is_elsewhere(),
            overwritten: so_far.overwritten,
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
        let program = &self.target.program;
        let is_like = |seen: &Seen<D>| seen.is_like(d, here, &traits, self);
        let alike: Vec<usize> = (0..seen.len()).filter(|at| is_like(&seen[*at])).collect();
        if alike.iter().any(|at| seen[*at].covers(d, here, &so_far.strayed, program)) {
            return;
        }
        let like = alike.last().filter(|_| alike.len() >= EXACT).map(|at| &mut seen[*at]);
        let (state, barriers, strayed) = match like {
            Some(like) => {
                like.forget(d, here, &so_far.strayed, program);
                (Rc::clone(&like.state), like.barriers.clone(), like.forgotten.strayed)
            }
            None => {
                let (state, barriers) = (Rc::new(copy(state)), barriers.clone());
                let forgotten = Forgotten { strayed: so_far.strayed, ..Forgotten::default() };
                let (kept, done) = (Rc::clone(&state), barriers.clone());
                let rounds = seen.len();
                let pointers = pointers(&kept).map(|word| region(d, &kept, word));
                seen.push(Seen {
                    traits,
                    pointers,
                    barriers: done,
                    state: kept,
                    forgotten,
                    rounds,
                });
                (state, barriers, so_far.strayed)
            }
        };
        let so_far = SoFar { strayed, ..so_far };
        arms.ahead.push(Arm { to, state, barriers, so_far });
    }

    /// Before each instruction of the path.
    pub(super) fn pass(&mut self, d: &D, state: &Machine<D>, at: u64) {
        let Some(mut arms) = self.arms.take() else { return };
        self.close(d, &mut arms, Some(at));
        if let Some(Ok(op)) = self.target.program.at(at) {
            let is_last = self.barriers.overwritten;
            let overwritten = if is_last { arms.verws } else { 0 };
            let so_far = SoFar { strayed: Strayed::default(), overwritten };
            if let Kind::JumpIf(condition) = op.kind {
                let [next, to] = arms_of(self.target, at);
                let condition = state.flags.holds(d, condition);
                // A loop's is a number.
                let holds = d.known(d.number(condition));
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
        if std::env::var("ARMDBG").is_ok() { eprintln!("BROKEN {} {about} {:x?} {}", obligation.name, self.trace, self.trace.last().and_then(|at| self.target.program.text(*at)).unwrap_or_default()); }
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
    let interrupted = world.event.as_ref().map(|event| event.interrupted.rip);
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
            Kind::Sysretq | Kind::Sysretl => {
                watch.verw(d);
                tells_a_guest(d, &world.machine, watch);
                return Ok(());
            }
            Kind::ReturnFar(_) => {
                watch.verw(d);
                at_guest(d, &world.machine, watch);
                return Ok(());
            }
            Kind::JumpIf(condition) => {
                let condition = d.number(world.machine.flags.holds(d, condition));
                let is_excused = || is_of_places(d, &world.machine, interrupted, condition);
                if arms.tells(d, watch, condition) && !is_excused() {
                    if std::env::var("ARMDBG").is_ok() { eprintln!("{condition:?} {:?} {:?} {:?} known {:?}", world.machine.flags.made_of(), Origins::of(d, condition), interrupted, world.machine.flags.made_of().map(|w| (Origins::of(d, w).list(), d.code_at(w)))); }
                    watch.broken(d, obligation::UNTAKEN_MEMORY, "flags");
                    return Ok(());
                }
                if is_steered(d, condition) {
                    watch.barriers.poison();
                }
                for (is_taken, to) in arms_of(target, at).into_iter().enumerate() {
                    let mut barriers = watch.barriers.clone();
                    if is_taken != 0 {
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
        let is_frame = op.kind == Kind::PopFlags
            && next.is_some_and(|next| matches!(next.kind, Kind::ReturnFar(_)));
        let mut eye = Eye {
            op,
            is_last,
            is_frame,
            told: &mut arms.told,
            strayed: &mut so_far.strayed,
            is_over: false,
            settled_by: Vec::new(),
            places: eye::places(d, machine, &op),
            watch: &mut *watch,
        };
        let stepped = machine.step(d, model, &target.program, &mut eye);
        if eye::sets_rsp(&op) {
            eye.strayed.set_rsp();
        }
        let (is_over, settled_by) = (eye.is_over, std::mem::take(&mut eye.settled_by));
        arms.reached.of_place |= eye.places > 1;
        if is_over {
            return Ok(());
        }
        if settled_by.into_iter().any(|condition| arms.tells(d, watch, condition)) {
            watch.broken(d, obligation::UNTAKEN_MEMORY, "RIP");
            return Ok(());
        }
        let is_transfer = matches!(op.kind, Kind::Jump | Kind::Call) || is_return;
        let by_value = is_return || op.is_indirect();
        match stepped {
            Ok(Step::Next | Step::Left) if by_value
                    && (so_far.strayed.is_elsewhere() || is_a_guests(d, machine.rip)) => {
                watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
                return Ok(());
            }
            Ok(Step::Next) if is_transfer => {
                let to = d.code_at(machine.rip).unwrap_or_default();
                watch.go_later(d, arms, to, machine, &watch.barriers, so_far);
                return Ok(());
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
                let rsp = machine.get(Gpr::Rsp);
                let place = machine.memory.locate(d, rsp, 8, machine.cr3);
                let is_of_host = d.code_at(machine.rip).is_some_and(|rip| {
                    target.returns.iter().any(|of_host| *of_host != 0 && *of_host == rip)
                });
                if is_of_host && place.is_some_and(|place| so_far.strayed.is_open(place.region)) {
                    watch.broken(d, obligation::UNTAKEN_TARGET, "RIP");
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
            // All that is loaded or stored has an answer, but for what the host's code is found to do.
            Err(Stuck::Wild { .. }) => {
                watch.broken(d, obligation::UNTAKEN_MEMORY, "address");
                return Ok(());
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
            Err(Stuck::Program(_) | Stuck::Msr { .. } | Stuck::NoCode { .. }) => {
                watch.broken(d, obligation::UNTAKEN_CODE, "instruction");
                return Ok(());
            }
        }
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

/// The arm enters a guest, if it is about routines that do: an event returns to ring 0.
fn at_guest<D: Domain>(d: &D, machine: &Machine<D>, watch: &mut Watch<'_, D>) {
    if !watch.theorem.is_of_events() {
        tells_a_guest(d, machine, watch);
    }
}

/// The arm goes on at CPL 3.
fn tells_a_guest<D: Domain>(d: &D, machine: &Machine<D>, watch: &mut Watch<'_, D>) {
    for register in Gpr::ALL.into_iter().filter(|register| *register != Gpr::Rsp) {
        let is_free = !is_a_leak(d, machine.get(register));
        watch.goal(obligation::NO_HOST_VALUE, d.bit(is_free), register.name());
    }
}

/// Whether a guest has a hand in where this leads.
fn is_a_guests<D: Domain>(d: &D, rip: D::Word) -> bool {
    d.mentions(rip, |origin| origin.is_a_guests_choice() || origin == Origin::Cpu)
}
