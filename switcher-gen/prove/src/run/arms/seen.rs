//! Arms that come to one place: whether one such state was followed already, and what is forgotten
//! of states so that the next is covered.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::rc::Rc;

use crate::run::arms::memory::Strayed;
use crate::run::arms::origin_set::Origins;
use crate::run::arms::points::{To, is_counted, origins, points_to, stays};
use crate::run::arms::{Arm, Arms, SoFar, copy};
use crate::run::barriers::{Barriers, Pushed};
use crate::target::Target;
use switcher_model::{Domain, Gpr, Msrs, Origin, Place, State as Machine};

/// How many states of a kind are told apart at one place.
const EXACT: usize = 1;

/// How many of any kind, before RSP is forgotten too.
const MANY: usize = 64;

/// How many of any kind, before it is forgotten what registers point to.
const KINDS: usize = 128;

/// More states than arms come to one place in, if no more is forgotten.
pub(crate) const STATES: usize = 1024;

/// A cell is forgotten together with those beside it.
const CHUNK: usize = 8;

/// What is never forgotten of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Traits {
    /// Whether a store may have been to anywhere.
    has_strayed: bool,
    overwritten: usize,
    /// Whether either GS base is the host's.
    gs: [bool; 2],
    /// Whether the host's root is loaded.
    is_on_hosts_root: bool,
    has_host_spec_ctrl: bool,
}

impl Traits {
    /// Of a state with what its arm has done, in a host of this GS base and this SPEC_CTRL.
    pub(crate) fn new<D: Domain>(
        d: &D,
        state: &Machine<D>,
        so_far: SoFar,
        [host_gs, host_spec_ctrl, host_cr3]: [D::Word; 3],
    ) -> Self {
        let is = |a, b| d.distance(a, b) == Some(0);
        Self {
            has_strayed: so_far.strayed.is_elsewhere(),
            overwritten: so_far.overwritten,
            gs: [state.gs_base, state.inactive_gs_base].map(|base| is(base, host_gs)),
            is_on_hosts_root: is(state.cr3, host_cr3),
            has_host_spec_ctrl: is(state.msrs.spec_ctrl, host_spec_ctrl),
        }
    }
}

/// What is forgotten of a state but for where it comes from: sets of [`Origin`]s, none of them
/// empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Forgotten {
    words: [Origins; WORDS],
    /// The arithmetic flags.
    flags: Origins,
    /// All other flags: what a comparison has been of says nothing of DF and AC.
    other_flags: Origins,
    /// By region and index of the chunk.
    cells: BTreeMap<(usize, usize), Origins>,
    /// What may lie anywhere.
    strayed: Strayed,
}

/// The states that have come to a place, joined.
#[derive(Debug)]
pub(crate) struct Seen<D: Domain> {
    traits: Traits,
    /// What registers and FS base point to.
    pointers: Pointers,
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

    /// Whether it is said that there may be as much.
    fn is_said(&self, strayed: &Strayed) -> bool {
        let index = self.chunks.end() * CHUNK;
        strayed.is_among_calls(Place { region: self.region, index, size: 8 }, false)
    }
}

/// What each of [`pointers`] points to.
type Pointers = [Option<To>; 17];

/// A state that has come to a place.
struct Here<'a, D: Domain> {
    state: &'a Machine<D>,
    barriers: &'a Barriers,
    pointers: [OnceCell<Option<To>>; 17],
}

impl<D: Domain> Here<'_, D> {
    /// What one of its [`pointers`] points to.
    fn points_to(&self, d: &D, pointer: usize) -> Option<To> {
        let find = || points_to(d, self.state, pointers(self.state)[pointer]);
        *self.pointers[pointer].get_or_init(find)
    }

    /// Where one of [`words`] comes from, if it is all that is known of it.
    fn origins(&self, d: &D, slot: usize, word: D::Word) -> Origins {
        let from = Origins::of(d, word);
        let points = pointer_of(slot).and_then(|pointer| self.points_to(d, pointer));
        if matches!(points, Some(To::Gs(_))) { from.with(Origin::Found) } else { from }
    }
}

/// The words that are told apart by what they point to.
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

/// Which of [`pointers`] is one of [`words`].
const fn pointer_of(slot: usize) -> Option<usize> {
    match slot {
        0..16 => Some(slot),
        // FS base comes after CS, SS and the bases of GS.
        20 => Some(16),
        _ => None,
    }
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

/// The chunk in which hooks set bits, and which bits the code has toggled there since it was
/// entered. `None` if the code may have stored anything else there.
fn toggled<D: Domain>(d: &D, state: &Machine<D>) -> Option<((usize, usize), u64)> {
    let mut regions = state.memory.regions.iter().enumerate();
    let (number, region, hooked) =
        regions.find_map(|(number, region)| Some((number, region, region.hooked?)))?;
    let at = (number, region.index(hooked.at)? / CHUNK);
    d.known(d.xor(chunk(d, state, at), hooked.now)).map(|bits| (at, bits))
}

/// What hooks alone would have left, and whether the code has read it, by region.
fn left_by_hooks<D: Domain>(state: &Machine<D>) -> impl Iterator<Item = Option<(D::Word, bool)>> {
    state.memory.regions.iter().map(|region| region.hooked.map(|it| (it.now, it.is_seen)))
}

/// What is in a chunk of memory.
fn chunk<D: Domain>(d: &D, state: &Machine<D>, (region, chunk): (usize, usize)) -> D::Word {
    let cells = &state.memory.regions[region].cells;
    d.load(&cells[chunk * CHUNK..cells.len().min((chunk + 1) * CHUNK)])
}

impl<D: Domain> Seen<D> {
    /// Whether it is all of the state's kind, so that what differs may be forgotten.
    fn is_like(&self, d: &D, here: &Here<'_, D>, traits: &Traits, target: &Target) -> bool {
        let Here { state, barriers, .. } = here;
        let mitigations = target.setting.variant.mitigations();
        let is_deep = || {
            let more = self.barriers.deeper(barriers).unwrap_or_default();
            let [known, now] = [&*self.state, state].map(|state| state.get(Gpr::Rsp));
            // If a loop has another RSP in each round, its rounds are not told apart for ever.
            let is_round = more == 0 && self.rounds >= MANY;
            is_round || known == now || d.distance(known, now) == Some(8 * more as i64)
        };
        let same_gs = || {
            let bases = |state: &Machine<D>| [state.gs_base, state.inactive_gs_base];
            bases(&self.state) == bases(state)
        };
        // With the same bases, equal words point to the same.
        let points_alike = || {
            let mut pairs = pointers(&self.state).into_iter().zip(pointers(state)).enumerate();
            self.rounds >= KINDS
                || pairs.all(|(pointer, (known, now))| {
                    known == now || here.points_to(d, pointer) == self.pointers[pointer]
                })
        };
        self.traits == *traits
            && self.barriers.is_no_better_than(barriers, mitigations)
            && same_gs()
            && is_deep()
            && points_alike()
    }

    /// What of `state` is there only because it is deeper within calls: these chunks of a stack,
    /// and that RSP is below them. Each of those must hold what its call has pushed: else a RET
    /// ends in another way there.
    fn deeper(&self, d: &D, here: &Here<'_, D>, target: &Target) -> Option<Deeper> {
        let Here { state, barriers, .. } = here;
        let more = self.barriers.deeper(barriers).filter(|more| *more > 0)?;
        let rsp = state.get(Gpr::Rsp);
        let place = state.memory.locate(d, rsp, 8 * more, state.cr3)?;
        let is_return = |depth: usize| {
            let place = Place { index: place.index + 8 * depth, size: 8, ..place };
            let to = d.code_at(state.memory.load(d, place));
            match barriers.pushed(depth) {
                Some(Pushed::Address(next)) => to == Some(next),
                Some(Pushed::Trap) => to.is_some_and(|to| target.after_trap(to).is_some()),
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

    /// Whether the state is one of these.
    fn covers(&self, d: &D, here: &Here<'_, D>, strayed: &Strayed, target: &Target) -> bool {
        let state = here.state;
        let deeper = self.deeper(d, here, target);
        let is_rsp = |slot| deeper.is_some() && slot == Gpr::Rsp as usize;
        let Forgotten { flags, other_flags, strayed: known, .. } = &self.forgotten;
        let mut all = words(&self.state).into_iter().zip(words(state)).enumerate();
        let are_flags = || {
            let fits = |set: &Origins, word| is_fit(*set, Origins::of(d, word));
            let (had, has) = (&self.state.flags, &state.flags);
            (had.is_same(has) || has.made_of().into_iter().all(|word| fits(flags, word)))
                && (had.others() == has.others() || fits(other_flags, has.others()))
        };
        let is_toggled =
            || toggled(d, &self.state).is_none_or(|own| toggled(d, state) == Some(own));
        let are_seen = || {
            let mut pairs = left_by_hooks(&self.state).zip(left_by_hooks(state));
            pairs.all(|(known, now)| known.map(|it| it.1) >= now.map(|it| it.1))
        };
        all.all(|(slot, (known, now))| {
            known == now || is_rsp(slot) || self.has_word(d, here, slot, [known, now])
        }) && are_flags()
            && is_toggled()
            && are_seen()
            && strayed.is_within(known)
            && deeper.as_ref().is_none_or(|deeper| deeper.is_said(known))
            && other_chunks(&self.state, state).all(|at| {
                deeper.as_ref().is_some_and(|deeper| deeper.has(at)) || self.has_cell(d, state, at)
            })
    }

    /// Whether what is forgotten of one of [`words`] may be what the state has there.
    fn has_word(&self, d: &D, here: &Here<'_, D>, slot: usize, words: [D::Word; 2]) -> bool {
        let set = self.forgotten.words[slot];
        let numbers = || words.map(|word| self.counted(d, slot, word));
        let is_number = set.is_within(Origins::CODE) || self.base(slot).is_some();
        let is_alike = pointer_of(slot).is_none_or(|pointer| {
            self.pointers[pointer].is_none_or(|to| here.points_to(d, pointer) == Some(to))
        });
        is_alike
            && is_fit(set, here.origins(d, slot, words[1]))
            && (!is_number || stays(d, numbers()))
    }

    /// Whether what is forgotten of a chunk of memory may be what `state` has there.
    fn has_cell(&self, d: &D, state: &Machine<D>, at: (usize, usize)) -> bool {
        let [known, now] = [&*self.state, state].map(|state| chunk(d, state, at));
        self.forgotten.cells.get(&at).is_some_and(|set| {
            let is_number = set.is_within(Origins::CODE);
            is_fit(*set, origins(d, state, now)) && (!is_number || stays(d, [known, now]))
        })
    }

    /// Forgets whatever the state has differently.
    fn forget(&mut self, d: &D, here: &Here<'_, D>, strayed: &Strayed, target: &Target) {
        let state = here.state;
        let deeper = self.deeper(d, here, target);
        let mut joined = copy(&self.state);
        let mut all = words(&joined);
        for (slot, (word, now)) in all.iter_mut().zip(words(state)).enumerate() {
            let is_had = d.known(*word).is_none() && self.has_word(d, here, slot, [*word, now]);
            let is_other = *word != now && !is_had;
            if is_other && (deeper.is_none() || slot != Gpr::Rsp as usize) {
                let from = here.origins(d, slot, now).and(self.origins(d, slot, *word));
                if let Some(pointer) = pointer_of(slot)
                    && self.pointers[pointer] != here.points_to(d, pointer)
                {
                    self.pointers[pointer] = None;
                }
                let set = &mut self.forgotten.words[slot];
                *set = set.and(Origins::CODE).and(from);
                *word = self.either(d, slot, [now, *word], from);
            }
        }
        set_words(&mut joined, all);
        let (had, has) = (joined.flags, &state.flags);
        let add = |set: &mut Origins, words: &[D::Word]| {
            let all = words.iter().map(|word| Origins::of(d, *word));
            *set = all.fold(set.and(Origins::CODE), Origins::and);
        };
        if !had.is_same(has) {
            let made_of: Vec<_> = has.made_of().into_iter().chain(had.made_of()).collect();
            add(&mut self.forgotten.flags, &made_of);
            joined.flags = joined.flags.with_arithmetic(d.forgotten(&made_of));
        }
        if had.others() != has.others() {
            let others = [has.others(), had.others()];
            add(&mut self.forgotten.other_flags, &others);
            joined.flags = joined.flags.with_others(d, d.forgotten(&others));
        }
        let others = other_chunks(&self.state, state);
        let is_known = |at: &(usize, usize)| {
            deeper.as_ref().is_some_and(|deeper| deeper.has(*at))
                || d.known(chunk(d, &self.state, *at)).is_none() && self.has_cell(d, state, *at)
        };
        let others: Vec<_> = others.filter(|at| !is_known(at)).collect();
        for at in others {
            let [was, now] = [&*self.state, state].map(|state| chunk(d, state, at));
            let from = origins(d, &self.state, was).and(origins(d, state, now));
            let set = self.forgotten.cells.entry(at).or_default();
            *set = set.and(Origins::CODE).and(from);
            let cells = &mut joined.memory.regions[at.0].cells;
            let end = cells.len().min((at.1 + 1) * CHUNK);
            d.store(&mut cells[at.1 * CHUNK..end], forgotten(d, [now, was], from));
        }
        // Hooks may have set other bits in both. What the code itself has done there is not
        // forgotten, so that it is still known that what lies there are the flags.
        let same = toggled(d, &self.state).filter(|own| toggled(d, state) == Some(*own));
        let pairs = left_by_hooks(&self.state).zip(left_by_hooks(state)).enumerate();
        for (number, pair) in pairs {
            let (Some((was, was_seen)), Some((now, is_seen))) = pair else { continue };
            let region = &mut joined.memory.regions[number];
            let Some(hooked) = &mut region.hooked else { continue };
            hooked.is_seen = was_seen || is_seen;
            if was != now {
                hooked.now = d.forgotten(&[now, was]);
            }
            let (at, now) = (hooked.at, hooked.now);
            if let Some((_, bits)) = same.filter(|((of, _), _)| *of == number && was != now) {
                region.write(d, at, CHUNK, d.xor(now, d.word(bits)));
            }
        }
        self.forgotten.strayed.join(strayed);
        if let Some(Deeper { region, chunks }) = &deeper {
            self.forgotten.strayed.call_below(*region, (chunks.end() + 1) * CHUNK);
        }
        self.state = Rc::new(joined);
    }

    /// Where one of [`words`] of its own comes from, if it is all that is known of it.
    fn origins(&self, d: &D, slot: usize, word: D::Word) -> Origins {
        let from = Origins::of(d, word);
        let points = pointer_of(slot).and_then(|pointer| self.pointers[pointer]);
        if matches!(points, Some(To::Gs(_))) { from.with(Origin::Found) } else { from }
    }

    /// What one of [`words`] is counted from, if it is a pointer.
    fn base(&self, slot: usize) -> Option<D::Word> {
        let Machine { memory, gs_base, inactive_gs_base, .. } = &*self.state;
        Some(match self.pointers[pointer_of(slot)?]? {
            To::Region(region) => memory.regions[region].base,
            To::Gs(which) => [*gs_base, *inactive_gs_base][which],
        })
    }

    /// The number by which one of [`words`] is counted.
    fn counted(&self, d: &D, slot: usize, word: D::Word) -> D::Word {
        self.base(slot).map_or(word, |base| d.sub(word, base))
    }

    /// One of two words, of which no more is known than that they come from there. Two that are
    /// counted from one thing stay so.
    fn either(&self, d: &D, slot: usize, words: [D::Word; 2], from: Origins) -> D::Word {
        if let Some(base) = self.base(slot) {
            let numbers = words.map(|word| d.sub(word, base));
            if numbers.into_iter().all(|number| d.known(number).is_some() || is_counted(d, number))
            {
                return d.add(base, d.forgotten(&numbers));
            }
        }
        forgotten(d, words, from)
    }
}

/// One of two words, of which no more is known than that they come from there.
fn forgotten<D: Domain>(d: &D, words: [D::Word; 2], from: Origins) -> D::Word {
    let is_found = Origins::NONE.with(Origin::Found).is_within(from);
    if is_found { d.any_of("found", 8, &from.list()) } else { d.forgotten(&words) }
}

/// Whether what is forgotten may come from there. Of what comes from nowhere, nothing is forgotten.
fn is_fit(set: Origins, from: Origins) -> bool {
    !set.is_empty() && from.is_within(set)
}

impl<D: Domain> Arms<D> {
    /// Follows the arm from `to` later, unless one such state was followed from there.
    pub(crate) fn go_later(
        &mut self,
        d: &D,
        target: &Target,
        traits: Traits,
        to: u64,
        (state, barriers): (&Machine<D>, &Barriers),
        so_far: SoFar,
    ) {
        let seen = self.seen.entry(to).or_default();
        let here = Here { state, barriers, pointers: Default::default() };
        let is_like = |seen: &Seen<D>| seen.is_like(d, &here, &traits, target);
        let alike: Vec<usize> = (0..seen.len()).filter(|at| is_like(&seen[*at])).collect();
        if alike.iter().any(|at| seen[*at].covers(d, &here, &so_far.strayed, target)) {
            return;
        }
        let many = seen.len();
        let like = alike.last().filter(|_| alike.len() >= EXACT).map(|at| &mut seen[*at]);
        let (state, barriers, strayed) = match like {
            Some(like) => {
                like.forget(d, &here, &so_far.strayed, target);
                (Rc::clone(&like.state), like.barriers.clone(), like.forgotten.strayed)
            }
            None if many >= STATES => {
                self.crowded = Some(to);
                return;
            }
            None => {
                let kept = Rc::new(copy(state));
                let pointers = std::array::from_fn(|pointer| here.points_to(d, pointer));
                let forgotten = Forgotten { strayed: so_far.strayed, ..Forgotten::default() };
                let (done, state) = (barriers.clone(), Rc::clone(&kept));
                seen.push(Seen {
                    traits,
                    pointers,
                    barriers: done,
                    state,
                    forgotten,
                    rounds: many,
                });
                (kept, barriers.clone(), so_far.strayed)
            }
        };
        let so_far = SoFar { strayed, ..so_far };
        self.ahead.push(Arm { to, state, barriers, so_far });
    }
}
