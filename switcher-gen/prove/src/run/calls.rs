//! Where the addresses are that calls and INTs have pushed: if they go nowhere but to the RETs that they
//! are for, the code may lie anywhere.

use crate::run::watch::Watch;
use switcher_model::program::Kind;
use switcher_model::{Access, Domain, Gpr, Place, State as Machine};

impl<'a, D: Domain> Watch<'a, D> {
    /// An access may be to an address that a call has pushed.
    pub(crate) fn follow(&mut self, d: &D, access: &Access<D::Word>, kind: Option<Kind>) {
        let Place { region, index, size } = access.place;
        let program = &self.target.program;
        let is_return = matches!(kind, Some(Kind::Return(_)));
        let overlaps =
            |p: &Place| p.region == region && p.index < index + size && index < p.index + p.size;
        let is_pushed = self.pushed.iter().any(overlaps);
        if access.store {
            let covers = |p: &Place| index <= p.index && p.index + p.size <= index + size;
            self.is_movable &= self.pushed.iter().all(|p| !overlaps(p) || covers(p));
            self.pushed.retain(|p| !overlaps(p));
            if kind == Some(Kind::Call) {
                self.pushed.push(access.place);
            }
        } else if is_pushed {
            // An INT has pushed more, which may have overwritten some.
            let is_whole = self.pushed.contains(&access.place) && !self.was_interrupted;
            self.is_movable &= is_return && is_whole;
        } else if is_return {
            let is_code = d.code_at(access.value).is_some_and(|value| program.contains(value));
            self.is_movable &= !is_code;
        }
    }

    /// The code's own INT has pushed its address.
    pub(crate) fn interrupted(&mut self, d: &D, state: &Machine<D>) {
        self.was_interrupted = true;
        match state.memory.locate(d, state.get(Gpr::Rsp), 8, state.cr3) {
            Some(place) => self.pushed.push(place),
            None => self.is_movable = false,
        }
    }

    /// The host's code, which is not looked at, has popped its return address.
    pub(crate) fn popped(&mut self, d: &D, access: &Access<D::Word>) {
        self.follow(d, access, Some(Kind::Return(0)));
    }
}
