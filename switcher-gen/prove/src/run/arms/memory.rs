//! Memory on an arm: what lies where nothing is said to lie, and what may lie elsewhere since a
//! store has gone astray.
//!
//! An address is one of a region, or
//!
//! * beside one: less than a page from it. What lies there is the host's, and from before, or a
//!   guest's beside the PVCS, and whatever the arm has stored beside that region;
//! * counted from one: by a number of the code's own, of which it is not known any more which it
//!   is, but that all that it may be lead into this region, or beside it. A loop that goes round
//!   once more than it does is taken to stay there;
//! * elsewhere. What lies there may be anything ([`Origin::Found`]), and what is stored there may
//!   be what is found in any region from then on.
//!
//! A load never finds the same twice: each has an unknown of its own.

use crate::run::arms::origin_set::Origins;
use crate::run::arms::points::{is_beside, is_counted_from, origins};
use switcher_model::{Domain, Origin, Place, Region, RegionName, State as Machine};

/// How many regions are told apart. A world has fewer, but for the pieces of somebody's code, which
/// come last.
const REGIONS: usize = 16;

/// By which number a region is known here: those from the last one on are taken for one, in which
/// may lie whatever may in any of them.
const fn known(region: usize) -> usize {
    if region < REGIONS { region } else { REGIONS - 1 }
}

/// Some of a world's regions, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Regions(u16);

impl Regions {
    const ALL: Self = Self(u16::MAX);

    fn of(regions: impl Iterator<Item = usize>) -> Self {
        Self(regions.fold(0, |set, region| set | 1 << known(region)))
    }

    const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn has(self, region: usize) -> bool {
        self.0 >> known(region) & 1 != 0
    }
}

/// Where an address leads that is not in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lies {
    /// Beside these, or partly within.
    Beside(Regions),
    /// Anywhere in these, or beside them.
    Counted(Regions),
    Elsewhere,
}

impl Lies {
    /// Where `address` leads, and which of the regions it is counted from.
    pub(crate) fn new<D: Domain>(d: &D, state: &Machine<D>, address: D::Word) -> Self {
        let of = |is_one: &dyn Fn(&Region<D>) -> bool| {
            let regions = state.memory.regions.iter().enumerate();
            Regions::of(regions.filter(|(_, region)| is_one(region)).map(|(number, _)| number))
        };
        let near = of(&|region| is_beside(d, region, address));
        if !near.is_empty() {
            return Self::Beside(near);
        }
        let counted = of(&|region| is_counted_from(d, region, address));
        if counted.is_empty() { Self::Elsewhere } else { Self::Counted(counted) }
    }

    /// Whether it leads to code, or beside it.
    pub(crate) fn is_code<D: Domain>(self, state: &Machine<D>) -> bool {
        let mut regions = state.memory.regions.iter().enumerate();
        self != Self::Elsewhere
            && regions.any(|(number, region)| region.is_code && self.regions().has(number))
    }

    /// Whether it may lead to one of these regions, or beside it.
    pub(crate) fn is_one_of<D: Domain>(
        self,
        state: &Machine<D>,
        is_one: impl Fn(&Region<D>) -> bool,
    ) -> bool {
        let mut regions = state.memory.regions.iter().enumerate();
        regions.any(|(number, region)| self.regions().has(number) && is_one(region))
    }

    const fn regions(self) -> Regions {
        match self {
            Self::Beside(regions) | Self::Counted(regions) => regions,
            Self::Elsewhere => Regions::ALL,
        }
    }
}

/// What may lie in memory by stores of which it is not known where they have gone: where it comes
/// from, by region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strayed {
    /// Whether a store has been elsewhere: nothing that lay in memory by then is known any more.
    elsewhere: bool,
    within: [Origins; REGIONS],
    beside: [Origins; REGIONS],
    /// Below which cell of a stack there may be more of the return addresses that calls from one
    /// place within each other have pushed, with RSP below them. How many is not known, nor,
    /// therefore, where an address leads down there that is not counted from RSP.
    calls_below: [usize; REGIONS],
    /// Whether RSP has been set to such an address.
    is_set: bool,
    /// Whether something that no guest may learn was stored to where a guest may load it.
    pub(crate) tells: bool,
    /// Whether something that a guest may have chosen was stored to where the host may load it and
    /// take it for its own.
    pub(crate) steers: bool,
}

impl Strayed {
    /// Whether nothing may lie anywhere but what may in `other`, too.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        let pairs = |a: &[Origins; REGIONS], b: &[Origins; REGIONS]| {
            a.iter().zip(b).all(|(a, b)| a.is_within(*b))
        };
        let calls = self.calls_below.iter().zip(&other.calls_below);
        self.elsewhere <= other.elsewhere
            && self.is_set <= other.is_set
            && self.tells <= other.tells
            && self.steers <= other.steers
            && calls.into_iter().all(|(a, b)| a <= b)
            && pairs(&self.within, &other.within)
            && pairs(&self.beside, &other.beside)
    }

    /// And what may lie there in `other`.
    pub(crate) fn join(&mut self, other: &Self) {
        self.elsewhere |= other.elsewhere;
        self.is_set |= other.is_set;
        self.tells |= other.tells;
        self.steers |= other.steers;
        let calls = self.calls_below.iter_mut().zip(&other.calls_below);
        calls.for_each(|(end, other)| *end = (*end).max(*other));
        let all = self.within.iter_mut().zip(&other.within);
        let all = all.chain(self.beside.iter_mut().zip(&other.beside));
        all.for_each(|(set, more)| *set = set.and(*more));
    }

    /// Whether somebody else than the code may have chosen what is loaded from this region, or it
    /// tells something, by such a store.
    pub(crate) fn is_open(&self, region: usize) -> bool {
        self.elsewhere || !self.within[known(region)].is_within(Origins::CODE)
    }

    /// Whether a store has been elsewhere.
    pub(crate) const fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// A store of what comes from `value`.
    pub(crate) fn store<D: Domain>(
        &mut self,
        d: &D,
        state: &mut Machine<D>,
        lies: Lies,
        value: Origins,
        is_partly_within: bool,
    ) {
        self.elsewhere |= lies == Lies::Elsewhere;
        let is_within = is_partly_within || matches!(lies, Lies::Counted(_));
        for (number, region) in state.memory.regions.iter_mut().enumerate() {
            if !lies.regions().has(number) || region.is_code {
                continue;
            }
            let beside = &mut self.beside[known(number)];
            match lies {
                Lies::Beside(_) => *beside = beside.and(value),
                Lies::Counted(_) => *beside = beside.and(value).and(Origins::CODE),
                // What is stored from now on lies there.
                Lies::Elsewhere => {
                    *beside = beside.with(Origin::Found);
                    for cells in region.cells.chunks_mut(8) {
                        d.store(cells, d.any_of("found", 8, &[Origin::Found]));
                    }
                }
            }
            if is_within && lies != Lies::Elsewhere {
                let within = &mut self.within[known(number)];
                *within = within.and(value).and(Origins::CODE);
            }
        }
    }

    /// Where what a load finds comes from that leads there.
    pub(crate) fn load<D: Domain>(
        &self,
        d: &D,
        state: &Machine<D>,
        lies: Lies,
        is_partly_within: bool,
    ) -> Origins {
        if lies == Lies::Elsewhere {
            return Origins::NONE.with(Origin::Found);
        }
        let is_within = is_partly_within || matches!(lies, Lies::Counted(_));
        let mut from = Origins::NONE.with(Origin::Stale);
        for (number, region) in state.memory.regions.iter().enumerate() {
            if !lies.regions().has(number) {
                continue;
            }
            from = from.and(self.beside[known(number)]);
            if region.name == RegionName::Pvcs {
                from = from.with(Origin::Guest);
            }
            if is_within {
                let cells = region.cells.chunks(8).map(|cells| origins(d, state, d.load(cells)));
                from = cells.fold(from.and(self.within[known(number)]), Origins::and);
            }
        }
        from
    }

    /// What may be found in a region, where `value` was stored last.
    pub(crate) fn amended(&self, place: Place, is_by_rsp: bool, value: Origins) -> Option<Origins> {
        let more = self.within[known(place.region)];
        if self.is_among_calls(place, is_by_rsp) {
            return Some(more.and(value).with(Origin::Stale).with(Origin::Place));
        }
        (!more.is_empty()).then(|| more.and(value))
    }

    /// A store to a region.
    pub(crate) fn stored(&mut self, place: Place, is_by_rsp: bool, value: Origins) {
        if self.is_among_calls(place, is_by_rsp) {
            let within = &mut self.within[known(place.region)];
            *within = within.and(value).and(Origins::CODE);
        }
    }

    /// Whether there may be more calls or fewer than where this is. `is_by_rsp` says whether it is
    /// counted from RSP, and not below it.
    pub(crate) fn is_among_calls(&self, place: Place, is_by_rsp: bool) -> bool {
        place.index < self.calls_below[known(place.region)] && (!is_by_rsp || self.is_set)
    }

    /// Below this cell of a stack there may be more calls.
    pub(crate) fn call_below(&mut self, region: usize, end: usize) {
        let below = &mut self.calls_below[known(region)];
        *below = (*below).max(end);
    }

    /// RSP is set to something that is not counted from it.
    pub(crate) fn set_rsp(&mut self) {
        self.is_set |= self.calls_below.iter().any(|end| *end != 0);
    }
}

/// Whether some of `size` bytes at `address` are a region's: on another root, or over its end.
pub(crate) fn is_partly_within<D: Domain>(
    d: &D,
    state: &Machine<D>,
    address: D::Word,
    size: usize,
) -> bool {
    state.memory.regions.iter().any(|region| {
        let there = region.start..region.offset(region.cells.len());
        d.distance(address, region.base)
            .is_some_and(|at| at < there.end && there.start < at.saturating_add(size as i64))
    })
}
