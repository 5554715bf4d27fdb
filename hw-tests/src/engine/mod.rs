//! Engines: what can boot the kernel. One file per emulator.
//!
//! An engine only boots, waits and collects. Whether the run is worth anything is
//! [`judge`]'s business.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use hw_protocol::{Options, SELFTESTS, Suite};
use switcher_gen::arch::PagingMode;

use crate::judge::{self, Expected, Judgement};
use crate::run::Run;
use crate::tools::{self, Tool};

pub mod bochs;
pub mod qemu;

/// Something that boots the kernel.
pub trait Engine {
    /// What `--engine` and the summary call it.
    fn name(&self) -> &'static str;

    /// What has to be installed for it.
    fn tools(&self) -> &'static [Tool];

    /// The paging mode that it makes the kernel use.
    fn paging(&self) -> PagingMode;

    /// Whether the engine can be used here at all, beyond its tools being installed. `Some` says
    /// why it cannot. Running the kernel's self tests is a good way to find out.
    ///
    /// # Errors
    /// It could not be found out.
    fn unavailable(&self, kernel: &Path) -> Result<Option<String>> {
        let _ = kernel;
        Ok(None)
    }

    /// Boots the kernel and collects what it says, for no longer than `limit`.
    ///
    /// # Errors
    /// The engine could not be started. A kernel that dies or hangs is a [`Run`] all the same.
    fn boot(&self, kernel: &Path, options: Options, limit: Duration) -> Result<Run>;
}

/// Every engine, in the order they are run.
#[must_use]
pub fn all() -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(qemu::Qemu::TCG_4LEVEL),
        Box::new(qemu::Qemu::TCG_LA57),
        Box::new(qemu::Qemu::TCG_LA57_INTEL),
        Box::new(bochs::Bochs::INTEL),
        Box::new(bochs::Bochs::AMD),
        Box::new(qemu::Qemu::KVM),
    ]
}

/// What came of an engine.
#[derive(Debug)]
pub enum Outcome {
    /// It cannot be used on this machine; neither a pass nor a failure.
    Unavailable(String),
    /// It ran the kernel.
    Judged(Judgement, Run),
}

/// Boots the kernel with an engine, all of its cases, and judges the run against the names of the
/// cases that must be reported.
///
/// # Errors
/// A tool is missing, or the engine could not be started.
pub fn run(engine: &dyn Engine, kernel: &Path, cases: &[&str], limit: Duration) -> Result<Outcome> {
    tools::require(engine.tools())?;
    if let Some(why) = engine.unavailable(kernel)? {
        return Ok(Outcome::Unavailable(why));
    }
    let options = Options { paging: engine.paging(), suite: Suite::All };
    let run = engine.boot(kernel, options, limit)?;
    let judgement = judge::judge(&run, &Expected { paging: options.paging, cases, switcher: true });
    Ok(Outcome::Judged(judgement, run))
}

/// Runs the kernel's self tests alone on an engine; says why they did not pass, if they did not.
fn self_test(engine: &dyn Engine, kernel: &Path, limit: Duration) -> Result<Option<String>> {
    let options = Options { paging: engine.paging(), suite: Suite::SelfTest };
    let run = engine.boot(kernel, options, limit)?;
    let judgement =
        judge::judge(&run, &Expected { paging: options.paging, cases: SELFTESTS, switcher: false });
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
}
