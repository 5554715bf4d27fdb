//! Random scenarios on this CPU, on the model of it, and by the specification: all three must say
//! the same of all that comes out.
//!
//! A case is a whole run: the host's entry, by SYSRETQ or IRETQ, then SYSCALLs of a guest whose
//! pages have nothing else but a few instructions that fault, until something exits. Some are
//! loops: hundreds of direct switches. Equal seeds give equal cases, but for the addresses at which
//! this process has the guest's pages.
//!
//! | file | purpose |
//! |---|---|
//! | `cases` | what is tried |
//! | `specified` | what must come of it |
//! | `difference` | what came of it instead, made small |
//!
//! **What cannot be tried here**: addresses that are canonical in only one paging mode, where this
//! CPU is in the other one. Such cases are compared between the specification and the model, and
//! counted apart. And 32-bit code: its SYSCALL would reach this machine's own kernel.

mod cases;
mod difference;
mod specified;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;

pub use difference::{Disagreement, NativeDifference, Witness};
pub use specified::SwitcherPath;

use super::Class;
use super::scenario::Random;
use crate::native;
use crate::native::Machine;
use crate::scenario::{Emulated, Failure, ScenarioEnd, Setup};
use crate::{Interpreter, interpreter};
use cases::{Cases, NOBODYS, NULL};
use difference::Said;
use specified::{Facts, GuestSlots, Specification, Specified};
use switcher_gen::Image;
use switcher_gen::layout::Mode;

/// Why nothing can be tried.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// This machine cannot run emitted bytes, or its operating system refused.
    #[error(transparent)]
    Native(#[from] native::Error),
    /// The model cannot.
    #[error(transparent)]
    Interpreter(#[from] interpreter::Error),
    /// This process has memory where guests are to find none.
    #[error("this process has memory at {address:#x}, where guests are to find none")]
    Occupied {
        /// The address.
        address: u64,
    },
}

/// An image with the same memory around it on this CPU, in the model and for the specification. For
/// one thread.
pub struct Engines {
    native: Machine,
    interpreter: Interpreter,
    specification: Specification,
}

/// What was tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeCoverage {
    /// Cases by the way they took through the switcher and by the class of what the guest was last
    /// returned to with.
    pub classes: BTreeMap<(SwitcherPath, Class), u64>,
    /// Direct switches to smod and back, one after the other, of all cases that this CPU ran.
    pub round_trips: u64,
    /// Cases that this CPU could not run, because it is in the other paging mode.
    pub not_here: u64,
}

impl NativeCoverage {
    /// How many cases there were.
    #[must_use]
    pub fn cases(&self) -> u64 {
        self.classes.values().sum()
    }

    /// How many ways through the switcher were taken.
    #[must_use]
    pub fn paths(&self) -> usize {
        let mut paths: Vec<_> = self.classes.keys().map(|(path, _)| *path).collect();
        paths.dedup();
        paths.len()
    }

    /// Adds another one's.
    pub fn add(&mut self, other: Self) {
        for (class, count) in other.classes {
            *self.classes.entry(class).or_default() += count;
        }
        self.round_trips += other.round_trips;
        self.not_here += other.not_here;
    }
}

/// Runs cases `cases` of `seed`; the first difference ends it.
///
/// # Errors
/// If the operating system refuses to run any.
pub fn native(
    engines: &mut Engines,
    seed: u64,
    cases: Range<u64>,
    coverage: &mut NativeCoverage,
) -> Result<Option<NativeDifference>, NativeError> {
    for case in cases {
        let setup = engines.case(seed, case);
        let said = engines.run(&setup)?;
        if said.differ() {
            return engines.minimise(case, setup).map(Some);
        }
        let Specified { path, class, round_trips, .. } = said.specified;
        *coverage.classes.entry((path, class)).or_default() += 1;
        if said.native.is_some() {
            coverage.round_trips += round_trips;
        } else {
            coverage.not_here += 1;
        }
    }
    Ok(None)
}

/// What all three say.
struct AllSaid {
    specified: Specified,
    /// `None` where this CPU is in the other paging mode.
    native: Option<Result<ScenarioEnd, Failure>>,
    interpreter: Result<ScenarioEnd, interpreter::Error>,
}

impl AllSaid {
    fn differ(&self) -> bool {
        let specified = &self.specified.facts;
        let Ok(interpreted) = &self.interpreter else { return true };
        if Facts::from(interpreted) != *specified {
            return true;
        }
        match &self.native {
            None => false,
            Some(Err(_)) => true,
            // The specification does not say which instructions there are: the other two count.
            Some(Ok(native)) => {
                Facts::from(native) != *specified || counts(native) != counts(interpreted)
            }
        }
    }

    /// Each in the order of [`Witness`]'s variants.
    fn facts(&self) -> [Said; 3] {
        let native = self.native.as_ref().map(|native| match native {
            Ok(outcome) => Ok(Facts::from(outcome)),
            Err(failure) => Err(failure.to_string()),
        });
        let interpreted = self.interpreter.as_ref().map(Facts::from);
        [
            Some(Ok(self.specified.facts.clone())),
            native,
            Some(interpreted.map_err(ToString::to_string)),
        ]
    }
}

/// What a native run does not emulate is not counted.
fn counts(outcome: &ScenarioEnd) -> Emulated {
    Emulated { iretq: 0, ..outcome.emulated }
}

impl Engines {
    /// More instructions than the longest case executes.
    const LIMIT: u64 = 2_000_000;

    /// For `image`, which need not be right. Code that overwrites this process's memory is beyond
    /// what can be found out here.
    ///
    /// # Errors
    /// If this machine cannot run emitted bytes, or has memory where guests are to find none.
    pub fn new(image: Image) -> Result<Self, NativeError> {
        let variant = *image.variant();
        let mut native = Machine::with_image(image.clone())?;
        let places = native.places();
        let mut interpreter = Interpreter::with_image(image, places)?;
        interpreter.set_limit(Self::LIMIT);
        let code = GuestSlots::new();
        for mode in [Mode::Smod, Mode::Umod] {
            native.load(mode, 0, &code.bytes(mode))?;
            interpreter.load(mode, 0, &code.bytes(mode))?;
        }
        if let Some(address) = occupied().map_err(native::Error::Os)? {
            return Err(NativeError::Occupied { address });
        }
        let specification = Specification::new(&variant, places, code);
        Ok(Self { native, interpreter, specification })
    }

    fn case(&self, seed: u64, case: u64) -> Setup {
        let cases = Cases { engine: &self.native, code: &self.specification.code };
        cases.make(&mut Random::of_case(seed, case))
    }

    fn run(&mut self, setup: &Setup) -> Result<AllSaid, NativeError> {
        let native = match self.native.run(setup) {
            Ok(outcome) => Some(Ok(outcome)),
            Err(native::Error::Failure(Failure::NotOnThisCpu { .. })) => None,
            Err(native::Error::Failure(failure)) => Some(Err(failure)),
            Err(error) => return Err(error.into()),
        };
        let interpreter = self.interpreter.run(setup);
        let specified = self.specification.run(setup);
        Ok(AllSaid { specified, native, interpreter })
    }

    fn minimise(&mut self, case: u64, setup: Setup) -> Result<NativeDifference, NativeError> {
        let usual = self.native.setup(specified::mode(setup.extra.switch_flags.bits()));
        let setup = difference::minimise(setup, &usual, |setup| {
            self.run(setup).is_ok_and(|said| said.differ())
        });
        let places = self.native.places();
        let all = self.run(&setup)?;
        let said = all.facts();
        let mut between = difference::between(&said);
        let mut about = difference::about(&said, &places);
        if let (Some(Ok(native)), Ok(interpreted)) = (&all.native, &all.interpreter)
            && counts(native) != counts(interpreted)
        {
            let pair = (Witness::Native, Witness::Interpreter);
            if !between.contains(&pair) {
                between.push(pair);
            }
            let [native, interpreted] =
                [native, interpreted].map(|outcome| Some(format!("{:?}", counts(outcome))));
            let what = "instructions of ring 0".to_owned();
            about.push(Disagreement { what, values: [None, native, interpreted] });
        }
        let setup = difference::numbers(&setup);
        Ok(NativeDifference { case, between, about, setup, places })
    }
}

/// The first address of this process's memory that guests are to find nothing at.
fn occupied() -> io::Result<Option<u64>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let all = maps.lines().filter_map(|line| {
        let (start, rest) = line.split_once('-')?;
        let (end, _) = rest.split_once(' ')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(start)?..number(end)?)
    });
    let overlap = |one: &Range<u64>, other: &Range<u64>| {
        (one.start < other.end && other.start < one.end).then(|| one.start.max(other.start))
    };
    let found = all.filter_map(|memory| overlap(&memory, &NOBODYS).or(overlap(&memory, &NULL)));
    Ok(found.min())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find;
    use switcher_gen::Variant;
    use switcher_gen::asm::Label;
    use switcher_gen::layout::Pvcs;
    use switcher_gen::program;

    fn engines(variant: &Variant) -> Engines {
        Engines::new(Image::new(variant).unwrap()).unwrap()
    }

    fn cover(variant: &Variant, seed: u64, cases: Range<u64>) -> NativeCoverage {
        let mut coverage = NativeCoverage::default();
        if let Some(difference) = native(&mut engines(variant), seed, cases, &mut coverage).unwrap()
        {
            panic!("{variant}, {difference}");
        }
        coverage
    }

    #[test]
    fn equal_seeds_give_equal_cases_and_many_paths_are_taken() {
        let coverage = cover(&Variant::REFERENCE, 1, 0..2000);
        assert_eq!(coverage, cover(&Variant::REFERENCE, 1, 0..2000));
        assert_ne!(coverage, cover(&Variant::REFERENCE, 2, 0..2000));
        assert_eq!(coverage.cases(), 2000);
        for (path, class) in coverage.classes.keys() {
            println!("{path}, {class:?}");
        }
        assert!(coverage.paths() > 50, "{}", coverage.paths());
        assert!(coverage.round_trips > 2000, "{}", coverage.round_trips);
    }

    /// On the way to smod, umod's RSP goes to the PVCS's CR2 and not to its RSP.
    fn break_store(image: &Image) -> (usize, &'static [u8]) {
        let right = program!(; mov QWORD [BYTE rdi + Pvcs::rsp], rsp);
        let wrong = program!(; mov QWORD [BYTE rdi + Pvcs::cr2], rsp);
        (find::encoded(image, Label::Syscall64, right), wrong)
    }

    fn difference(engines: &mut Engines) -> NativeDifference {
        let mut find = |cases| native(engines, 1, cases, &mut NativeCoverage::default()).unwrap();
        let found = find(0..1000).expect("it is found");
        assert_eq!(find(found.case..found.case + 1).as_ref(), Some(&found));
        found
    }

    #[test]
    fn what_the_code_does_wrong_on_both_is_found_and_made_small() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let (offset, bad) = break_store(&image);
        let mut engines = Engines::new(image).unwrap();
        engines.native.overwrite(offset, bad).unwrap();
        engines.interpreter.overwrite(offset, bad);
        let found = difference(&mut engines);
        let wrong = Witness::Specification;
        assert_eq!(found.between, [(wrong, Witness::Native), (wrong, Witness::Interpreter)]);
        let about: Vec<_> = found.about.iter().map(|one| one.what.as_str()).collect();
        assert!(about.contains(&"pvcs.rsp") || about.contains(&"pvcs.cr2"), "{found}");
        assert!(found.setup.len() < 20, "{found}");
    }

    #[test]
    fn an_engine_that_disagrees_with_the_other_two_is_named() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let (offset, bad) = break_store(&image);
        let mut engines = Engines::new(image).unwrap();
        engines.interpreter.overwrite(offset, bad);
        let (code, model) = (Witness::Native, Witness::Interpreter);
        assert_eq!(
            difference(&mut engines).between,
            [(Witness::Specification, model), (code, model)]
        );
        let image = Image::new(&Variant::REFERENCE).unwrap();
        let mut engines = Engines::new(image).unwrap();
        engines.native.overwrite(offset, bad).unwrap();
        assert_eq!(
            difference(&mut engines).between,
            [(Witness::Specification, code), (code, model)]
        );
    }

    #[test]
    fn a_failure_of_the_switcher_is_a_difference() {
        let image = Image::new(&Variant::REFERENCE).unwrap();
        // What makes umod's GS base canonical.
        let canonicalise = program!(; shl r11, 16 ; sar r11, 16);
        let offset = find::encoded(&image, Label::NotToSmod, canonicalise);
        let nops = program!(; nop).repeat(canonicalise.len());
        let mut engines = Engines::new(image).unwrap();
        engines.native.overwrite(offset, &nops).unwrap();
        engines.interpreter.overwrite(offset, &nops);
        let found = difference(&mut engines);
        let run = found.about.iter().find(|one| one.what == "the run").unwrap();
        let message = run.values[1].as_ref().unwrap();
        assert!(message.starts_with("vector 13 in ring 0"), "{found}");
        assert_eq!(run.values[2].as_ref(), Some(message));
    }
}
