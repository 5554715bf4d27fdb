//! What a jump on an arm may depend on.

use crate::run::arms::Arms;
use crate::run::arms::points::leads_to;
use crate::run::origins::is_a_leak;
use crate::run::watch::Watch;
use switcher_model::{Access, Domain, Region, State as Machine};

impl<D: Domain> Arms<D> {
    /// Whether a jump by `condition`, a truth value as a number, tells what was found, or what no
    /// guest may learn, beyond what it is told anyway: by the way of the path itself, or because it
    /// is run at all.
    pub(crate) fn tells(
        &self,
        d: &D,
        watch: &Watch<'_, D>,
        state: &Machine<D>,
        condition: D::Word,
    ) -> bool {
        is_a_leak(d, condition)
            && !self.told.contains(&condition)
            && !watch.decisions.is_told(d, condition)
            && !watch.decisions.is_in_parts(d, state, condition)
    }
}

impl<D: Domain> Watch<'_, D> {
    /// Whether `condition` is what a comparison comes to, by the flags of `state`,
    ///
    /// * of the interrupted address with one of the code's: whether something has been interrupted
    ///   in the code, and where in there, decides what is done about it;
    /// * of two addresses that lead into one region or beside it, or into the code: wherever that
    ///   lies, which is not at the end of all addresses, so that neither begins anew at zero.
    pub(crate) fn is_of_places(
        &self,
        d: &D,
        state: &Machine<D>,
        interrupted: Option<D::Word>,
        condition: D::Word,
    ) -> bool {
        let [a, b, ..] = state.flags.made_of();
        let is_label = |word| {
            let at = d.code_at(word).filter(|_| d.known(word).is_none());
            at.is_some_and(|at| self.entry.target.has_label(at))
        };
        let is_rip =
            interrupted.is_some_and(|rip| a == rip && is_label(b) || b == rip && is_label(a));
        let are_in = |region: &Region<D>| {
            !region.is_code && leads_to(d, region, a) && leads_to(d, region, b)
        };
        let are_in_one = || is_label(a) && is_label(b) || state.memory.regions.iter().any(are_in);
        let (is, below) = (d.eq(a, b), d.lt(a, b));
        let all = [is, below, d.either(is, below)];
        let is_one = |bit: D::Bit| [bit, d.not(bit)].map(|bit| d.number(bit)).contains(&condition);
        (is_rip || are_in_one()) && all.into_iter().any(is_one)
    }

    /// The bytes of switch_flags that a load has read, if they are what the path itself would read
    /// there, or that with some of its bits toggled. What an arm has stored there is another's.
    pub(crate) fn own_flags(
        &self,
        d: &D,
        state: &Machine<D>,
        load: &Access<D::Word>,
    ) -> Option<(usize, usize)> {
        let (at, size) = self.reads_flags(state, load)?;
        let region = &state.memory.regions[load.place.region];
        let now = region.hooked.map_or(self.start.block.switch_flags, |hooked| hooked.now);
        let toggled = d.xor(load.value, d.truncate(d.shr(now, 8 * at as u32), size));
        d.known(toggled).is_some().then_some((at, size))
    }

    /// Whether all of host_rsp is loaded, as the path has found it.
    pub(crate) fn is_own_host_rsp(&self, state: &Machine<D>, load: &Access<D::Word>) -> bool {
        !load.store && self.is_host_rsp(state, load) && load.value == self.start.block.host_rsp
    }
}
