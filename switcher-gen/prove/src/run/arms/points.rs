//! What a word on an arm points to, so that states in which it points elsewhere are not joined, and
//! what is to be kept in mind of a word whose own form is not.

use crate::run::arms::origin_set::Origins;
use switcher_model::{Domain, Origin, Region, State as Machine};

/// How far beyond a region an address is still beside it.
const NEAR: i64 = 4096;

/// By how much a round of a loop may change a number that is taken to stay where it is.
const STRIDE: i64 = 64;

/// What a word points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// A region, or beside it, or it is counted from there.
    Region(usize),
    /// Anywhere at a distance of the code's own from GS base, the active one or the other one.
    Gs(usize),
}

/// Whether a number is the code's own, and not known.
pub(crate) fn is_counted<D: Domain>(d: &D, number: D::Word) -> bool {
    d.known(number).is_none() && !d.mentions(number, |origin| origin != Origin::Code)
}

/// Whether `address` leads into a region or beside it, or is counted from it.
pub(crate) fn leads_to<D: Domain>(d: &D, region: &Region<D>, address: D::Word) -> bool {
    is_beside(d, region, address) || is_counted_from(d, region, address)
}

/// Whether `address` leads into a region, or beside it.
pub(crate) fn is_beside<D: Domain>(d: &D, region: &Region<D>, address: D::Word) -> bool {
    around(region, d.distance(address, region.base).map(|at| (at, at)))
}

/// Whether `address` is counted from a region, and leads into it or beside it wherever the number
/// lies that it is counted by.
pub(crate) fn is_counted_from<D: Domain>(d: &D, region: &Region<D>, address: D::Word) -> bool {
    let distance = d.sub(address, region.base);
    !region.is_code && is_counted(d, distance) && around(region, d.span(distance))
}

fn around<D: Domain>(region: &Region<D>, span: Option<(i64, i64)>) -> bool {
    let around = region.start - NEAR..=region.offset(region.cells.len()) + NEAR;
    span.is_some_and(|(least, most)| around.contains(&least) && around.contains(&most))
}

/// What `word` points to.
pub(crate) fn points_to<D: Domain>(d: &D, state: &Machine<D>, word: D::Word) -> Option<To> {
    let is_number = d.known(word).is_some();
    let is_one = |region: &Region<D>| {
        // A number is at no distance from what is not known.
        let may_be = !is_number || d.known(region.base).is_some();
        may_be && leads_to(d, region, word)
    };
    let region = state.memory.regions.iter().position(is_one);
    region.map(To::Region).or_else(|| gs_of(d, state, word).map(To::Gs))
}

/// The GS base that a word is counted from, or may be by its conditions, however far away.
fn gs_of<D: Domain>(d: &D, state: &Machine<D>, word: D::Word) -> Option<usize> {
    let is_of = |base: &D::Word| {
        let is_near = |word| {
            let distance = d.sub(word, *base);
            d.known(distance).is_some() || is_counted(d, distance)
        };
        // Numbers may be close by chance.
        d.shares(word, *base) && d.alternatives(word).into_iter().any(is_near)
    };
    [state.gs_base, state.inactive_gs_base].iter().position(is_of)
}

/// Where a word comes from of which nothing else will be known. What depends on a GS base, in
/// whatever way, is then taken for something that was found: no address for anything.
pub(crate) fn origins<D: Domain>(d: &D, state: &Machine<D>, word: D::Word) -> Origins {
    let from = Origins::of(d, word);
    let is_of_gs = [state.gs_base, state.inactive_gs_base].iter().any(|base| d.shares(word, *base));
    let is_marked = is_of_gs && !matches!(points_to(d, state, word), Some(To::Region(_)));
    if is_marked { from.with(Origin::Found) } else { from }
}

/// Whether a number that is not known any more may be the other one: by where that lies, or as the
/// next one in a loop, which is taken to stay where it is if its steps are small.
pub(crate) fn stays<D: Domain>(d: &D, [known, now]: [D::Word; 2]) -> bool {
    // Of numbers alone nothing is forgotten.
    let Some((least, most)) = d.span(known).filter(|_| d.known(known).is_none()) else {
        return true;
    };
    let Some((low, high)) = d.span(now) else { return false };
    let is_small = |step: &i64| (-STRIDE..=STRIDE).contains(step);
    let is_step = || match d.distance(now, known) {
        Some(step) => is_small(&step),
        // A register that has fewer bits, of which the next number downwards may be a large one.
        None => {
            let before = d.truncate(known, 4);
            let is_wide = high.abs_diff(low) > most.abs_diff(least);
            let up = low.checked_sub(least).filter(|step| !is_wide && is_small(step));
            let down = (0..=STRIDE.ilog2()).map(|log| -1 << log).filter(|_| is_wide);
            let mut steps = up.into_iter().chain(down);
            steps.any(|step| now == d.truncate(d.plus(before, step), 4))
        }
    };
    least <= low && high <= most || d.known(now).is_none() && is_step()
}
