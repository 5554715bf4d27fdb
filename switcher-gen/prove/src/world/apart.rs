//! Whether a state of numbers is one that proofs speak of: they take regions to be apart, and a
//! model of their unknown addresses may have them over each other.

use crate::target::overlap::share_a_byte;
use crate::world::World;
use switcher_model::Domain;

/// Whether no two regions share a byte, as far as their addresses are numbers.
pub(crate) fn are_regions<D: Domain>(d: &D, world: &World<D>) -> bool {
    let regions = world.machine.memory.regions.iter();
    let spans = regions.filter_map(|region| {
        let base = d.known(region.base)?;
        Some((base.wrapping_add_signed(region.start), region.cells.len() as u64))
    });
    let spans: Vec<_> = spans.filter(|(_, size)| *size > 0).collect();
    let mut pairs = spans.iter().enumerate();
    pairs.all(|(number, one)| !spans[number + 1..].iter().any(|other| share_a_byte(*one, *other)))
}
