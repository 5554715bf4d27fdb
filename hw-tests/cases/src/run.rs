//! One case, and the run of it.

use alloc::format;
use alloc::string::String;

use crate::case_host::{CaseHost, Entries, Failure, Observed, Platform, Refusal, Setup, place};
use crate::expect::Expected;
use crate::program;
use switcher_gen::Hazard;
use switcher_runtime::Mode;

/// A case: its name, the hazards that it tries, and what to do.
#[derive(Clone, Copy)]
pub struct Case {
    /// Unique, stable, and a sentence.
    pub name: &'static str,
    /// The hazards that the case tries.
    pub rows: &'static [Hazard],
    /// The case itself.
    pub body: fn(&mut CaseRun<'_>) -> Result<(), Failure>,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaseEnd {
    /// Everything was as it must be.
    Passed,
    /// Something was not as it must be.
    Failed(Failure),
    /// The engine cannot do what the case asks for, and says why.
    NotHere(String),
}

impl Case {
    /// Runs the case. Returns the number of guests that were entered, and what came of it.
    pub fn run(&self, host: &mut dyn CaseHost) -> (u64, CaseEnd) {
        let platform = host.platform();
        // Every case has its own sequence, so that adding one changes no other.
        let seed = self.name.bytes().fold(0, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        let rng = fastrand::Rng::with_seed(seed);
        let mut run = CaseRun { host, platform, rng, entered: 0, not_here: None };
        let result = (self.body)(&mut run);
        let entered = run.entered;
        let end = match (run.not_here, result) {
            (Some(why), _) => CaseEnd::NotHere(why),
            (None, Ok(())) if entered == 0 => {
                CaseEnd::Failed(Failure("the case entered no guest".into()))
            }
            (None, Ok(())) => CaseEnd::Passed,
            (None, Err(Failure(why))) => {
                CaseEnd::Failed(Failure(format!("guest {entered}: {why}")))
            }
        };
        (entered, end)
    }
}

/// A case being run.
pub struct CaseRun<'w> {
    host: &'w mut dyn CaseHost,
    /// The platform that the case is run on.
    pub platform: Platform,
    /// The case's own random numbers.
    pub rng: fastrand::Rng,
    entered: u64,
    /// What the engine said first when it could not go on.
    not_here: Option<String>,
}

impl CaseRun<'_> {
    /// What the engine's CPU does with SYSCALL and its like.
    ///
    /// # Errors
    /// If the engine cannot tell.
    pub fn entries(&mut self) -> Result<Entries, Failure> {
        let entries = self.host.entries();
        self.unless_refused(entries)
    }

    /// Runs a guest until its next exit.
    ///
    /// # Errors
    /// If the engine cannot run it, or has found a switcher that does what no switcher may.
    pub fn enter(&mut self, setup: &Setup) -> Result<Observed, Failure> {
        self.entered += 1;
        let outcome = self.host.run(setup);
        self.unless_refused(outcome)
    }

    /// Ends the case either way; what an engine cannot do is no failure of the switcher.
    fn unless_refused<T>(&mut self, result: Result<T, Refusal>) -> Result<T, Failure> {
        result.map_err(|refusal| match refusal {
            Refusal::Failure(failure) => failure,
            Refusal::NotHere(why) => {
                self.not_here.get_or_insert_with(|| why.clone());
                Failure(why)
            }
        })
    }

    /// Runs a guest and compares everything.
    ///
    /// # Errors
    /// With all differences.
    pub fn check(&mut self, setup: &Setup, expected: &Expected) -> Result<(), Failure> {
        let outcome = self.enter(setup)?;
        expected.compare(setup, &outcome)
    }

    /// A random guest in umod, about to make a SYSCALL that leads to `code` in smod.
    pub fn syscall_to(&mut self, code: &[u8]) -> Setup {
        self.about_to(Mode::Umod, program::SYSCALL).with(Mode::Smod, place::SMOD_ENTRY, code)
    }

    /// A random guest in smod, about to execute the ERETU that leads to `code` in umod.
    pub fn eretu_to(&mut self, code: &[u8]) -> Setup {
        let setup = self.setup(Mode::Smod).with(Mode::Smod, place::ERETU, program::SYSCALL);
        setup.with(Mode::Umod, place::UMOD_CODE, code)
    }

    /// A random guest in umod that runs `code`, whose SYSCALLs smod answers with ERETU at once.
    pub fn round_trip(&mut self, code: &[u8]) -> Setup {
        let mut setup = self.about_to(Mode::Umod, code);
        setup.smod_entry = place::ERETU;
        setup.with(Mode::Smod, place::ERETU, program::SYSCALL)
    }

    /// A random guest about to run `code`, which is neither at smod's entry nor ERETU.
    pub fn about_to(&mut self, mode: Mode, code: &[u8]) -> Setup {
        let mut setup = self.setup(mode);
        setup.regs.rip = place::UMOD_CODE;
        setup.with(mode, place::UMOD_CODE, code)
    }

    /// A random guest: see [`Setup::random`].
    pub fn setup(&mut self, mode: Mode) -> Setup {
        Setup::random(&mut self.rng, &self.platform, mode)
    }
}
