//! What must hold of an access to memory: where it may go, on which root, and what it may store.

use crate::goal::Goal;
use crate::obligation;
use crate::run::origins::is_a_leak;
use crate::run::stores;
use crate::run::stores::Store;
use crate::run::watch::Watch;
use switcher_gen::layout::TssExtra;
use switcher_model::{Access, Domain, Place, RegionName, State as Machine};

impl<'a, D: Domain> Watch<'a, D> {
    /// Whether an access to this region is to the frame that is returned to. A guest's lies there with
    /// its registers. Ring 0's lies beside values of the host's: only the IRETQ may read it, or what
    /// takes its place on the interrupted stack.
    pub(crate) fn is_of_frame(&self, name: RegionName) -> bool {
        if self.theorem.has_hook() {
            let at = self.trace.last().and_then(|at| self.target.program.at(*at));
            let is_iretq = at.and_then(Result::ok).is_some_and(|op| op.is_iretq());
            return is_iretq || name == RegionName::InterruptedStack;
        }
        name == RegionName::Sp0Stack
    }

    /// How many bytes of switch_flags an access reads, from the first on.
    pub(crate) fn reads_flags(
        &self,
        state: &Machine<D>,
        access: &Access<D::Word>,
    ) -> Option<usize> {
        let Place { region, index, size } = access.place;
        let region = &state.memory.regions[region];
        let block = self.target.setting.block.tss_extra;
        let is_there = region.name == RegionName::TssExtra
            && region.offset(index) == block + TssExtra::switch_flags.bytes() as i64;
        (is_there && !access.store).then_some(size)
    }

    /// A store: to what may be stored to, and of what may be known there.
    pub(crate) fn store(&mut self, d: &D, state: &Machine<D>, access: &Access<D::Word>) {
        let region = &state.memory.regions[access.place.region];
        let at = region.offset(access.place.index);
        let store = Store { region: region.name, at, size: access.place.size };
        let setting = &self.target.setting;
        let is_allowed = store.is_allowed(self.theorem, setting);
        if let Some(hooks) = store.hooks_bits(setting).filter(|_| is_allowed) {
            let at = self.trace.last().copied();
            let op = at.and_then(|at| self.target.program.at(at));
            self.flags_stored += 1;
            let is_one = stores::is_one_update(op.and_then(Result::ok)) && self.flags_stored == 1;
            self.goal(obligation::ONE_UPDATE, d.bit(is_one), "switch_flags");
            // What this breaks otherwise says more.
            let changed = d.xor(access.value, region.read(d, store.at, store.size));
            let holds = d.not(d.any(d.truncate(changed, store.size), hooks));
            let (obligation, about) = (obligation::ONE_UPDATE, "switch_flags");
            self.running.push(Goal { obligation, holds, about, values: None, at });
        }
        // At no instant, not only at the end.
        if region.sharing.is_guests() {
            self.goal(
                obligation::NO_HOST_VALUE,
                d.bit(!is_a_leak(d, access.value)),
                store.region.name(),
            );
        }
        self.goal(obligation::KEPT, d.bit(is_allowed), store.region.name());
        if store.is_to_host_rsp(setting) {
            // It is what it was, or what it will be, and nothing in between.
            self.host_rsp_stored += 1;
            self.goal(obligation::KEPT, d.bit(self.host_rsp_stored == 1), "host_rsp");
        }
    }

    /// An access to a region: what only the host maps is there on the host's root alone, so that
    /// isolation needs no instruction.
    pub(crate) fn mapped(&mut self, d: &D, state: &Machine<D>, region: usize) {
        let name = state.memory.regions[region].name;
        let everywhere = d.bit(name.is_under_every_root());
        let holds = d.either(everywhere, d.eq(state.cr3, self.roots.host_cr3));
        self.reads_code |= name == RegionName::Code;
        self.goal(obligation::MAPPED, holds, name.name());
    }
}
