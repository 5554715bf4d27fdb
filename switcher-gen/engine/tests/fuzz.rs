//! Random scenarios of every variant: this CPU, the model and the specification agree.

use switcher_engine::fuzz;
use switcher_engine::fuzz::{Engines, NativeCoverage};
use switcher_engine::native::Machine;
use switcher_gen::{Image, Variant};

/// Cases per variant.
const CASES: u64 = 2000;

/// Where this CPU's paging mode is the variant's, all cases run on it. Elsewhere, those do in which
/// no address is one for only one of the modes, and the others are still compared without it.
#[test]
fn this_cpu_the_model_and_the_specification_agree_on_every_variant() {
    let variants = Variant::representative().filter(|variant| !variant.pku());
    for (seed, variant) in variants.enumerate() {
        let real_paging = Machine::new(&variant).unwrap().real_paging();
        let mut engines = Engines::new(Image::new(&variant).unwrap()).unwrap();
        let mut coverage = NativeCoverage::default();
        let found = fuzz::native(&mut engines, seed as u64, 0..CASES, &mut coverage).unwrap();
        if let Some(found) = found {
            panic!("{variant}, {found}");
        }
        let (cases, paths) = (coverage.cases(), coverage.paths());
        println!("{variant}: {paths} paths, {} not on this CPU", coverage.not_here);
        assert_eq!(cases, CASES);
        assert!(paths > 40, "{variant}: {paths}");
        assert!(coverage.round_trips > CASES, "{variant}: {}", coverage.round_trips);
        if variant.paging() == real_paging {
            assert_eq!(coverage.not_here, 0, "{variant}");
        } else {
            assert!(0 < coverage.not_here && coverage.not_here < CASES / 10, "{variant}");
        }
    }
}
