//! Where the addresses are that calls and INTs have pushed: if they go nowhere but to the RETs that
//! they are for, the code may lie anywhere.

use switcher_model::program::Operation;
use switcher_model::{Access, Domain, Gpr, Place, Program, State as Machine};

/// The addresses of the code that lie on stacks.
#[derive(Debug)]
pub(crate) struct PushedAddresses {
    /// Where they lie.
    places: Vec<Place>,
    /// Whether nothing was done with them but to return.
    is_movable: bool,
    /// Whether an INT has pushed more.
    was_interrupted: bool,
}

impl PushedAddresses {
    /// No address is pushed yet.
    pub(crate) fn new() -> Self {
        Self { places: Vec::with_capacity(8), is_movable: true, was_interrupted: false }
    }

    /// Whether the code may lie anywhere, by what was done so far.
    pub(crate) const fn is_movable(&self) -> bool {
        self.is_movable
    }

    /// Something was done that may have to do with an address of the code.
    pub(crate) const fn moves_if(&mut self, is_movable: bool) {
        self.is_movable &= is_movable;
    }

    /// An access may be to an address that a call has pushed.
    pub(crate) fn access<D: Domain>(
        &mut self,
        d: &D,
        program: &Program,
        access: &Access<D::Word>,
        kind: Option<Operation>,
    ) {
        let Place { region, index, size } = access.place;
        let is_return = matches!(kind, Some(Operation::Return(_)));
        let overlaps =
            |p: &Place| p.region == region && p.index < index + size && index < p.index + p.size;
        let is_pushed = self.places.iter().any(overlaps);
        if access.store {
            let covers = |p: &Place| index <= p.index && p.index + p.size <= index + size;
            self.is_movable &= self.places.iter().all(|p| !overlaps(p) || covers(p));
            self.places.retain(|p| !overlaps(p));
            if kind == Some(Operation::Call) {
                self.places.push(access.place);
            }
        } else if is_pushed {
            // An INT has pushed more, which may have overwritten some.
            let is_whole = self.places.contains(&access.place) && !self.was_interrupted;
            self.is_movable &= is_return && is_whole;
        } else if is_return {
            let is_code = d.code_at(access.value).is_some_and(|value| program.contains(value));
            self.is_movable &= !is_code;
        }
    }

    /// The code's own INT has pushed its address.
    pub(crate) fn interrupt<D: Domain>(&mut self, d: &D, state: &Machine<D>) {
        self.was_interrupted = true;
        match state.memory.locate(d, state.get(Gpr::Rsp), 8, state.cr3) {
            Some(place) => self.places.push(place),
            None => self.is_movable = false,
        }
    }

    /// The host's code, which is not looked at, has popped its return address.
    pub(crate) fn popped<D: Domain>(&mut self, d: &D, program: &Program, access: &Access<D::Word>) {
        self.access(d, program, access, Some(Operation::Return(0)));
    }
}
