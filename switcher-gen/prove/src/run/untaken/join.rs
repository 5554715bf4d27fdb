//! Arms that come to one place: whether one such state was followed already, and what is forgotten
//! of states so that the next is covered.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::rc::Rc;

use crate::run::barriers::Barriers;
use crate::run::untaken::{Arm, Arms, SoFar, copy};
use crate::run::watch::Watch;
use switcher_model::{Domain, Flags, Gpr, Msrs, Origin, State as Machine};

/// How many states of a kind are told apart at one place.
const EXACT: usize = 1;

/// How many of any kind, before RSP is forgotten too.
const MANY: usize = 64;

/// A cell is forgotten together with those beside it.
pub(crate) const CHUNK: usize = 8;

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
    /// What is forgotten of memory, by region and by index of the chunk.
    cells: BTreeMap<(usize, usize), u16>,
}

/// The states that have come to a place, joined.
#[derive(Debug)]
pub(crate) struct Seen<D: Domain> {
    traits: Traits,
    /// The regions that registers and FS base point to.
    pointers: [Option<usize>; 17],
    barriers: Barriers,
    pub(crate) state: Rc<Machine<D>>,
    forgotten: Forgotten,
    /// How many states were seen there before.
    rounds: usize,
}

/// Chunks of a stack that differ only because calls are deeper: see [`Seen::deeper`].
struct Deeper {
    region: usize,
    chunks: RangeInclusive<usize>,
}

impl Deeper {
    fn has(&self, (region, chunk): (usize, usize)) -> bool {
        region == self.region && self.chunks.contains(&chunk)
    }
}

/// The region that `address` points to, or right after.
pub(crate) fn region<D: Domain>(
    d: &D,
    state: &Machine<D>,
    address: D::Word,
    near: i64,
) -> Option<usize> {
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

/// All words that instructions change.
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

pub(crate) const fn is_within(part: u16, whole: u16) -> bool {
    part & !whole == 0
}

/// The origin of what nobody chooses.
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
        let mitigations = watch.entry.target.setting.variant.mitigations();
        let is_deep = || {
            let more = self.barriers.deeper(barriers).unwrap_or_default();
            let [known, now] = [&*self.state, state].map(|state| state.get(Gpr::Rsp));
            // If a loop has another RSP in each round, its rounds are not told apart for ever.
            let is_round = more == 0 && self.rounds >= MANY;
            is_round || known == now || d.distance(known, now) == Some(8 * more as i64)
        };
        // Equal words point to the same region.
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
            gs: [state.gs_base, state.inactive_gs_base].map(|base| is(base, self.start.host_gs)),
            has_host_spec_ctrl: is(state.msrs.spec_ctrl, self.start.block.host_spec_ctrl),
        }
    }

    /// Follows the arm from `to` later, unless one such state was followed from there.
    pub(crate) fn go_later(
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
}
