//! What a #MC or a #DB overwrites on a stack, between any two instructions (spec/hazards.md, rows
//! 8, 27 and 39): outside of the routines, what lies more than [`FarFrame::RED_ZONE`] bytes below
//! RSP, where their return puts its frame; and all of a stack of the IST that an event has left,
//! for the next event begins at its top.
//!
//! Reading there is not refused: it finds something new, and what depends on that is refused for
//! what it breaks.

use crate::entry::Entry;
use crate::run::blocking::is_on_ist;
use switcher_gen::layout::FarFrame;
use switcher_model::{Domain, Gpr, Place, RegionName, State as Machine};

/// What was overwritten so far, and what may be overwritten again.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    /// For each region, up to which cell everything was overwritten.
    ends: Vec<usize>,
    /// The places that were accessed since. What was stored there may be lost again, and what was
    /// read there may be compared with what is read there later.
    accessed: Vec<Place>,
}

/// The name of the unknowns that overwrite a stack.
const OVERWRITTEN: &str = "overwritten stack";

impl Lost {
    /// A stack was accessed there.
    pub(crate) fn accessed(&mut self, place: Place) {
        if !self.accessed.contains(&place) {
            self.accessed.push(place);
        }
    }

    /// Overwrites what an event may overwrite that comes before the instruction at `at`.
    pub(crate) fn lose<D: Domain>(
        &mut self,
        d: &D,
        entry: Entry<'_>,
        state: &mut Machine<D>,
        at: u64,
    ) {
        if entry.target.gates.is_none() || entry.is_fatal() {
            return;
        }
        let is_blocked = entry.theorem.is_of_nmis() && state.nmi_blocked == d.bit(true);
        let is_left = entry.theorem.is_on_ist() && !is_blocked && !is_on_ist(d, state);
        let is_routine = entry.target.is_routine(at);
        let rsp = state.get(Gpr::Rsp);
        for (region, stack) in state.memory.regions.iter_mut().enumerate() {
            if !stack.name.is_stack() {
                continue;
            }
            let end = if is_left && stack.name == RegionName::IstStack {
                Some(0)
            } else if is_routine {
                None
            } else {
                let top = stack.offset(stack.cells.len());
                let rsp = d.distance(rsp, stack.base);
                let rsp = rsp.filter(|rsp| (stack.start..=top).contains(rsp));
                rsp.map(|rsp| rsp - FarFrame::RED_ZONE as i64)
            };
            let end = end.and_then(|end| usize::try_from(end - stack.start).ok());
            if let Some(end) = end {
                self.overwrite(d, region, &mut stack.cells, end);
            }
        }
    }

    /// Overwrites all cells of a region before `end`, as far as it makes a difference.
    fn overwrite<D: Domain>(&mut self, d: &D, region: usize, cells: &mut [D::Cell], end: usize) {
        let mut anew = |start: usize, end: usize| {
            for chunk in cells[start..end].chunks_mut(8) {
                let value = d.anew(OVERWRITTEN, chunk.len());
                d.store(chunk, value);
            }
        };
        if self.ends.len() <= region {
            self.ends.resize(region + 1, 0);
        }
        let before = self.ends[region];
        self.accessed.retain(|place| {
            if place.region != region || place.index >= end {
                return true;
            }
            // The part of the place from `end` on is not overwritten yet.
            let last = (place.index + place.size).min(end);
            if place.index < before {
                anew(place.index, last);
            }
            last == end && place.index + place.size > end
        });
        if before < end {
            anew(before, end);
            self.ends[region] = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_model::Concrete;

    /// Cells that are overwritten have the numbers 0xF1, 0xF2 and so on.
    fn domain() -> Concrete {
        let number = |n: u64| (format!("{OVERWRITTEN}#{n}"), 0xF1 + n);
        Concrete::told((0..16).map(number))
    }

    #[test]
    fn what_is_below_is_overwritten_once_and_again_where_it_was_accessed() {
        let d = domain();
        let mut lost = Lost::default();
        let mut cells = [1; 32];
        let place = |index| Place { region: 0, index, size: 8 };
        lost.overwrite(&d, 0, &mut cells, 16);
        assert_eq!([cells[0], cells[8], cells[16], cells[24]], [0xF1, 0xF2, 1, 1]);
        // What nobody has looked at says nothing twice.
        lost.overwrite(&d, 0, &mut cells, 16);
        lost.overwrite(&d, 0, &mut cells, 8);
        assert_eq!([cells[0], cells[8], cells[16], cells[24]], [0xF1, 0xF2, 1, 1]);
        for index in [0, 8, 24] {
            lost.accessed(place(index));
        }
        lost.overwrite(&d, 0, &mut cells, 8);
        assert_eq!([cells[0], cells[8], cells[16], cells[24]], [0xF3, 0xF2, 1, 1]);
        lost.overwrite(&d, 0, &mut cells, 32);
        assert_eq!([cells[0], cells[8], cells[16], cells[24]], [0xF3, 0xF4, 0xF5, 0xF6]);
        // Another region's is not touched.
        lost.accessed(Place { region: 1, index: 0, size: 8 });
        lost.overwrite(&d, 0, &mut cells, 32);
        assert_eq!(cells[0], 0xF3);
    }
}
