//! A proof from assumptions that contradict each other proves everything, and so does one whose
//! goals cannot fail. So each path of each theorem is taken by a state of numbers that meets all
//! assumptions, and of each goal the contrary is refuted.

use std::collections::BTreeMap;

use switcher_gen::{Image, Variant};
use switcher_prove::{Obligation, Prover, Target, Theorem};

/// Obligations that come up only where they are broken: no path of right code has occasion for
/// them. That each is objected to is for the attacks to show (tests/redteam*.rs, tests/mutants.rs).
const ONLY_BROKEN: [&str; 9] = [
    "memory",
    "no-fault",
    "no-trap",
    "indirect-first",
    "exists",
    "split-lock",
    "untaken-code",
    "untaken-memory",
    "untaken-target",
];

const VARIANTS: [&str; 5] = [
    "intel-4level+ibrs+rsb+bhb+verw",
    "intel-la57-ibt-pku-percpu-current",
    "amd-4level-pcid-percpu",
    "amd-la57-current+ibrs+ibpb+rsb",
    "amd-4level+untrain+rsblite",
];

#[test]
fn each_path_is_taken_by_a_state_and_each_goal_could_fail() {
    let mut all = BTreeMap::<&str, (usize, usize)>::new();
    for name in VARIANTS {
        let variant: Variant = name.parse().unwrap();
        let target = Target::image(&Image::new(&variant).unwrap());
        for theorem in Theorem::of(&target) {
            let found = Prover::default().substance(&target, theorem).unwrap();
            assert!(!found.paths.is_empty(), "{name}: {theorem}");
            for (number, (guest_memory, state)) in found.paths.iter().enumerate() {
                assert!(
                    state.is_some(),
                    "{name}: {theorem}: no state takes path {number} ({guest_memory:?})"
                );
            }
            for (obligation, (refuted, goals)) in found.contrary {
                assert_eq!(refuted, goals, "{name}: {theorem}: {obligation}");
                let (sum, count) = all.entry(obligation).or_default();
                (*sum, *count) = (*sum + refuted, *count + goals);
            }
        }
    }
    for Obligation { name, .. } in Obligation::ALL {
        let could_fail = all.get(name).is_some_and(|(refuted, _)| *refuted > 0);
        assert_ne!(could_fail, ONLY_BROKEN.contains(name), "{name}");
    }
}
