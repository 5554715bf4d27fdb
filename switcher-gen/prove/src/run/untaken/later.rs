//! An arm that is followed later: its state is kept with those that have come to the same place.

use crate::run::arms::seen::Traits;
use crate::run::arms::{Arms, SoFar};
use crate::run::barriers::Barriers;
use crate::run::watch::Watch;
use switcher_model::{Domain, State as Machine};

impl<D: Domain> Watch<'_, D> {
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
        let block = &self.start.block;
        let of_host = [self.start.host_gs, block.host_spec_ctrl, block.host_cr3];
        let traits = Traits::new(d, state, so_far, of_host);
        arms.go_later(d, self.entry.target, traits, to, (state, barriers), so_far);
    }
}
