//! What must hold of an access to memory: where it may go, on which root, and what it may store.

use crate::goal::Goals;
use crate::layouts::ExtraField;
use crate::obligation;
use crate::run::origins::is_a_leak;
use crate::run::stores::Store;
use crate::run::watch::Watch;
use crate::run::{locked, stores};
use switcher_model::{Access, Domain, Origin, Place, Region, RegionName, State as Machine};

impl<'a, D: Domain> Watch<'a, D> {
    /// What must hold of an access, and what is remembered of it.
    pub(crate) fn access(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        access: &Access<D::Word>,
    ) {
        self.mapped(d, goals, state, access.place.region);
        let region = &state.memory.regions[access.place.region];
        let name = region.name;
        if name.is_stack() {
            self.lost.accessed(access.place);
        }
        let program = &self.entry.target.program;
        let op = self.trace.last().and_then(|at| program.at(*at)).and_then(Result::ok);
        self.pushed.access(d, program, access, op.map(|op| op.kind));
        if access.gs {
            let ours = d.eq(state.gs_base, self.start.host_gs);
            goals.add(obligation::GS_IS_THE_HOSTS, ours, "GS base");
            if let Some(is_certain) = self.gs.is_certain(self.entry.theorem) {
                goals.add(obligation::SWAPGS_FENCED, d.bit(is_certain), "GS base");
            }
        }
        if op.is_some_and(|op| op.locks()) {
            let (at, size) = (region.offset(access.place.index), access.place.size);
            let is_whole = locked::is_in_one_line(name, at, size);
            goals.add(obligation::SPLIT_LOCK, d.bit(is_whole), name.name());
        }
        if access.store {
            self.store(d, goals, state, access);
        }
        let is_frame = self.is_of_frame(name) && !d.mentions(access.value, Origin::is_the_hosts);
        self.barriers.overwritten &= is_frame;
        self.blocking.uses(name);
        if name == RegionName::InterruptedStack {
            self.blocking.interrupted_stack(d, goals, state);
        }
        if let Some((at, size)) = self.reads_flags(state, access) {
            self.decisions.read_flags(access.value, at, size);
        }
        if name == RegionName::Pvcs {
            let is_free = d.bit(!self.decisions.is_a_secret());
            goals.add(obligation::NO_HOST_VALUE, is_free, "what decided the way here");
            if !access.store {
                self.met.read(access.place.index, access.place.size, access.value);
            }
            self.pvcs_at = self.pvcs_at.or(self.trace.last().copied());
        }
    }

    /// Whether an access to this region is to the frame that is returned to. A guest's lies there
    /// with its registers. Ring 0's lies beside values of the host's: only the IRETQ may read it,
    /// or what takes its place on the interrupted stack.
    pub(crate) fn is_of_frame(&self, name: RegionName) -> bool {
        if self.entry.theorem.has_hook() {
            let at = self.trace.last().and_then(|at| self.entry.target.program.at(*at));
            let is_iretq = at.and_then(Result::ok).is_some_and(|op| op.is_iretq());
            return is_iretq || name == RegionName::InterruptedStack;
        }
        name == RegionName::Sp0Stack
    }

    /// From which byte on an access reads switch_flags, and how many bytes.
    pub(crate) fn reads_flags(
        &self,
        state: &Machine<D>,
        access: &Access<D::Word>,
    ) -> Option<(usize, usize)> {
        let Place { region, index, size } = access.place;
        let region = &state.memory.regions[region];
        let flags = self.entry.target.setting.own_extra_at(ExtraField::SwitchFlags);
        let at = usize::try_from(region.offset(index) - flags).ok()?;
        let is_there = region.name == RegionName::TssExtra && at + size <= 8;
        (is_there && !access.store).then_some((at, size))
    }

    /// What must hold of a store: it goes to where this theorem may store, and what is stored may
    /// be known there.
    pub(crate) fn store(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        access: &Access<D::Word>,
    ) {
        let region = &state.memory.regions[access.place.region];
        let at = region.offset(access.place.index);
        let store = Store { region: region.name, at, size: access.place.size };
        let setting = &self.entry.target.setting;
        let is_allowed = self.may_store(region, access.place);
        if let Some(hooks) = store.hooks_bits(setting).filter(|_| is_allowed) {
            let at = self.trace.last().copied();
            let op = at.and_then(|at| self.entry.target.program.at(at));
            let changed = d.xor(access.value, region.read(d, store.at, store.size));
            let changed = d.truncate(changed, store.size);
            // It must not change twice. A CMPXCHG that fails stores what was there.
            let is_change = d.any(changed, u64::MAX);
            let again = d.both(self.stored.flags_changed, is_change);
            self.stored.flags_changed = d.either(self.stored.flags_changed, is_change);
            let is_one = stores::is_one_update(op.and_then(Result::ok));
            let holds = d.both(d.bit(is_one), d.not(again));
            goals.add(obligation::ONE_UPDATE, holds, "switch_flags");
            // Whatever else the store breaks says more.
            let holds = d.not(d.any(changed, hooks));
            goals.add_last(obligation::ONE_UPDATE, holds, "switch_flags");
        }
        // The guest reads at any instant, not only at the end.
        if region.sharing.is_guests() {
            goals.add(
                obligation::NO_HOST_VALUE,
                d.bit(!is_a_leak(d, access.value)),
                store.region.name(),
            );
        }
        goals.add(obligation::KEPT, d.bit(is_allowed), store.region.name());
        if store.is_to_host_rsp(setting) {
            // It changes at once, from what it was to what it will be.
            self.stored.host_rsp += 1;
            goals.add(obligation::KEPT, d.bit(self.stored.host_rsp == 1), "host_rsp");
        }
    }

    /// Whether the code may store there at all.
    pub(crate) fn may_store(&self, region: &Region<D>, place: Place) -> bool {
        let at = region.offset(place.index);
        let store = Store { region: region.name, at, size: place.size };
        store.is_allowed(self.entry)
    }

    /// What only the host maps is there on the host's root alone, so that page-table isolation
    /// needs no instruction.
    pub(crate) fn mapped(
        &mut self,
        d: &D,
        goals: &mut Goals<D>,
        state: &Machine<D>,
        region: usize,
    ) {
        let name = state.memory.regions[region].name;
        let everywhere = d.bit(name.is_under_every_root());
        let holds = d.either(everywhere, d.eq(state.cr3, self.start.block.host_cr3));
        self.reads_code |= name == RegionName::Code;
        goals.add(obligation::MAPPED, holds, name.name());
    }
}
