//! Engines, which run the cases. Emulators boot the kernel, and each has a file; the other engines
//! are this program itself in a second process ([`mod@hosted`]), which writes the same report.
//!
//! An engine only starts a run, waits for it and collects its output. [`judge`] decides whether it
//! has passed.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use hw_protocol::{CPUS, Options, Suite};
use switcher_gen::Policy;
use switcher_gen::arch::PagingMode;
use switcher_gen::layout::Placement;

use crate::cases;
use crate::debian::Root;
use crate::judge::{self, Expected, Judgement};
use crate::run::EngineRun;
use crate::tools::{self, Tool};

pub mod blind;
pub mod bochs;
pub mod bochs3;
pub mod hosted;
pub mod machine;
pub mod native;
pub mod not_here;
pub mod qemu;

use hosted::Hosted;

/// The program that an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// The bare-metal kernel.
    Kernel,
    /// This program: `xtask cases`.
    Xtask,
}

/// An engine: an emulator, a machine or a process that runs the cases.
pub trait Engine: Sync {
    /// The engine's name, for `--engine` and the summary.
    fn name(&self) -> &'static str;

    /// The tools that have to be installed for the engine.
    fn tools(&self) -> &'static [Tool];

    /// The paging mode in which its cases are run.
    fn paging(&self) -> PagingMode;

    /// The policy of the switcher through which its cases are run.
    fn policy(&self) -> Policy;

    /// The root that the engine is in, if it is from another release of Debian than this machine's.
    fn root(&self) -> Option<&'static Root> {
        None
    }

    /// The number of CPUs that the engine has.
    fn cpus(&self) -> usize {
        CPUS
    }

    /// Whether an instruction with a breakpoint can be executed on it. Watchpoints always can be
    /// used.
    fn breakpoints(&self) -> bool {
        true
    }

    /// Whether its TSC is known to count instructions.
    fn counts_instructions(&self) -> bool {
        false
    }

    /// Whether its CPUs track indirect branches; `None` if that depends on the machine.
    fn tracks_branches(&self) -> Option<bool> {
        Some(false)
    }

    /// The program that the engine runs.
    fn runs(&self) -> Runs {
        Runs::Kernel
    }

    /// Why the engine cannot be used here, although its tools are installed; `None` if it can be.
    /// Running the kernel's self tests is a good way to find out.
    ///
    /// # Errors
    /// If it could not be found out.
    fn unavailable(&self, program: &Path) -> Result<Option<String>> {
        let _ = program;
        Ok(None)
    }

    /// Runs the program that it [`runs`](Self::runs), for no longer than `limit`, and collects its
    /// output.
    ///
    /// # Errors
    /// If the engine could not be started. A program that dies or hangs gives an [`EngineRun`],
    /// too.
    fn boot(&self, program: &Path, options: Options, limit: Duration) -> Result<EngineRun>;
}

/// Every engine, in the order in which they are run.
#[must_use]
pub fn all() -> Vec<Box<dyn Engine>> {
    let emulators: Vec<Box<dyn Engine>> = vec![
        Box::new(qemu::Qemu::TCG_4LEVEL),
        Box::new(qemu::Qemu::TCG_LA57),
        Box::new(qemu::Qemu::TCG_LA57_INTEL),
        Box::new(qemu::Qemu::TCG_4LEVEL_PERCPU_CURRENT),
        Box::new(bochs::Bochs::INTEL),
        Box::new(bochs::Bochs::AMD),
        Box::new(bochs::Bochs::INTEL_PERCPU),
        Box::new(bochs::Bochs::AMD_CURRENT),
        Box::new(bochs3::Bochs3::INTEL_LA57),
        Box::new(bochs3::Bochs3::INTEL_4LEVEL),
        Box::new(bochs3::Bochs3::INTEL_LA57_PERCPU_CURRENT),
        Box::new(bochs3::Bochs3::INTEL_LA57_SMP),
        Box::new(bochs3::Bochs3::INTEL_4LEVEL_SMP_PERCPU),
        Box::new(qemu::Qemu::KVM),
    ];
    emulators
        .into_iter()
        .chain(all_hosted().map(|engine| Box::new(engine) as Box<dyn Engine>))
        .collect()
}

/// The engines that need no kernel, in the order in which they are run.
fn all_hosted() -> impl Iterator<Item = Hosted> {
    machine::ENGINES.into_iter().chain(native::ENGINES)
}

/// The engine of that name, if it needs no kernel.
#[must_use]
pub fn hosted(name: &str) -> Option<Hosted> {
    all_hosted().find(|engine| engine.name == name)
}

/// The names of the cases that an engine must report.
#[must_use]
pub fn cases(engine: &dyn Engine) -> Vec<&'static str> {
    match engine.runs() {
        Runs::Kernel => cases::names(),
        Runs::Xtask => cases::shared(),
    }
}

/// The result of running an engine.
#[derive(Debug)]
pub enum EngineEnd {
    /// The engine cannot be used on this machine, which is neither a pass nor a failure.
    Unavailable(String),
    /// The engine ran the cases.
    Judged(Judgement, EngineRun),
}

/// Runs all cases on an engine, and judges the run against the names of those that must be
/// reported.
///
/// # Errors
/// If a tool is missing, or the engine could not be started.
pub fn run(engine: &dyn Engine, program: &Path, limit: Duration) -> Result<EngineEnd> {
    tools::require(engine.tools())?;
    engine.root().map_or(Ok(()), Root::require)?;
    if let Some(why) = engine.unavailable(program)? {
        return Ok(EngineEnd::Unavailable(why));
    }
    let options = options(engine, Suite::All);
    let run = engine.boot(program, options, limit)?;
    let switchers = match (engine.runs(), options.policy.placement) {
        (Runs::Kernel, Placement::PerCpu) => engine.cpus(),
        (Runs::Kernel, Placement::Gs) | (Runs::Xtask, _) => 1,
    };
    let expected = Expected {
        paging: options.paging,
        policy: options.policy,
        cases: &cases(engine),
        switchers,
        not_here: &not_here::of(engine),
    };
    let judgement = judge::judge(&run, &expected);
    Ok(EngineEnd::Judged(judgement, run))
}

/// The options of the kernel for an engine.
fn options(engine: &dyn Engine, suite: Suite) -> Options {
    Options {
        paging: engine.paging(),
        policy: engine.policy(),
        suite,
        breakpoints: engine.breakpoints(),
    }
}

/// Runs only the kernel's self tests on an engine. Returns why they did not pass, if they did not.
fn self_test(engine: &dyn Engine, kernel: &Path, limit: Duration) -> Result<Option<String>> {
    let options = options(engine, Suite::SelfTest);
    let run = engine.boot(kernel, options, limit)?;
    let Options { paging, policy, .. } = options;
    let cases = &cases::self_tests();
    let expected = Expected { paging, policy, cases, switchers: 0, not_here: &[] };
    let judgement = judge::judge(&run, &expected);
    Ok(judgement.failures.first().map(|why| {
        let emulator = run.emulator.lines().find(|line| !line.trim().is_empty());
        match emulator {
            Some(line) => format!("the kernel's self test: {why} ({})", line.trim()),
            None => format!("the kernel's self test: {why}"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_have_names_of_their_own() {
        let mut names: Vec<_> = all().iter().map(|engine| engine.name()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_emulators_policy_stands_behind_its_name() {
        let mut chosen = 0;
        for engine in all().into_iter().filter(|engine| engine.runs() == Runs::Kernel) {
            let policy = engine.policy();
            assert!(engine.name().ends_with(&policy.to_string()), "{}", engine.name());
            chosen += usize::from(policy != Policy::DEFAULT);
        }
        assert!(chosen > 0, "no emulator has another policy than the default one");
    }

    #[test]
    fn the_engines_of_known_differences_exist() {
        let engines = all();
        for name in hw_vectors::known::ALL.iter().flat_map(|known| known.engines) {
            assert!(engines.iter().any(|engine| engine.name() == *name), "{name}");
        }
    }
}
