//! Whether a proof says anything: whether its assumptions can be met on each path, and its goals be
//! broken.

use crate::counterexample::Numbers;
use crate::entry::EntryPoints;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use switcher_model::Domain;

use crate::prover::{Prover, Unexplored, Unknowns, assume};
use crate::run::Extent;
use crate::target::Target;
use crate::theorem::{GuestMemory, Theorem};
use crate::{counterexample, run};
use switcher_model::symbolic::{Symbolic, Validity as Answer};

/// Whether the proof of a theorem says anything: see [`Prover::substance`].
#[derive(Clone, Debug, Default)]
pub struct Substance {
    /// For each path, a state of numbers that meets all assumptions and takes it, if one was found.
    pub paths: Vec<(GuestMemory, Option<Numbers>)>,
    /// By the name of an obligation: of how many goals the contrary is refuted, and how many there
    /// are.
    pub contrary: BTreeMap<&'static str, (usize, usize)>,
}

impl Prover {
    /// Whether a proof says anything: for each path of `theorem`, a state that takes it; and for
    /// each goal, whether the contrary is refuted.
    ///
    /// # Errors
    /// If no theorem can be about the code.
    pub fn substance(&self, target: &Target, theorem: Theorem) -> Result<Substance, Unexplored> {
        let d = &self.domain;
        d.reset();
        let points = EntryPoints::of(target);
        let entry = points.entry(theorem);
        let saved = run::saved(d, &points, &mut Unknowns)?.ok_or(Unexplored::NoEntry)?;
        let mut found = Substance::default();
        let guest_memories = [GuestMemory::Racing, GuestMemory::Stable];
        let needed = if theorem.is_of_events() { &guest_memories[1..] } else { &guest_memories };
        for &guest_memory in needed {
            d.reset();
            let mut bad = None;
            let run = |d: &Symbolic| {
                let how = (guest_memory, Extent::Everything);
                run::run_to(d, entry, how, &mut Unknowns, Some(&saved), assume(d))
            };
            let explored = d.explore_until(run, |_, result| {
                let run = match result {
                    Ok(run) => run,
                    Err(error) => {
                        bad = Some(error);
                        return ControlFlow::Break(());
                    }
                };
                // A contradiction is refuted by any state of the path.
                let state = match d.check(d.bit(false)) {
                    Answer::Fails(model) => {
                        counterexample::witness(entry, guest_memory, &run, &model)
                    }
                    Answer::Holds { .. } | Answer::Unknown(_) => None,
                };
                found.paths.push((guest_memory, state));
                for goal in &run.goals {
                    let is_refuted = matches!(d.check(d.not(goal.holds)), Answer::Fails(_));
                    let (refuted, all) = found.contrary.entry(goal.obligation.name).or_default();
                    *refuted += usize::from(is_refuted);
                    *all += 1;
                }
                ControlFlow::Continue(())
            });
            match bad {
                Some(bad) => return Err(bad.into()),
                None => explored.map(drop)?,
            }
        }
        Ok(found)
    }
}
