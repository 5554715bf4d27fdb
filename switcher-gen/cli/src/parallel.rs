//! Work in numbered parts on every core, and how far it is.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroU16;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::interrupt;
use crate::output::Failure;

/// To be flattened into a command's arguments.
#[derive(clap::Args)]
pub(crate) struct Jobs {
    /// How many threads work; the result does not depend on it [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroU16>,
}

impl Jobs {
    fn count(&self) -> u64 {
        match self.jobs {
            Some(jobs) => jobs.get().into(),
            None => thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
        }
    }

    /// Does parts `0..parts` and returns what they give, in their order. Each thread has a worker
    /// of its own, which need not be `Send`. Nothing after the first part that breaks is returned,
    /// whoever was done first. Once somebody has pressed Ctrl-C, no part is begun any more.
    pub(crate) fn each<W, T: Send>(
        &self,
        parts: u64,
        worker: impl Fn() -> W + Sync,
        part: impl Fn(&mut W, u64) -> ControlFlow<T, T> + Sync,
    ) -> Result<Vec<T>, Failure> {
        let (next, last) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let results = Mutex::new(BTreeMap::new());
        let work = || {
            let mut worker = worker();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if interrupt::requested()
                    || number >= parts
                    || number > last.load(Ordering::Relaxed)
                {
                    return;
                }
                let result = match part(&mut worker, number) {
                    ControlFlow::Continue(result) => result,
                    ControlFlow::Break(result) => {
                        last.fetch_min(number, Ordering::Relaxed);
                        result
                    }
                };
                results.lock().unwrap_or_else(PoisonError::into_inner).insert(number, result);
            }
        };
        thread::scope(|scope| {
            for number in 0..self.count().min(parts) {
                match thread::Builder::new().spawn_scoped(scope, work) {
                    Ok(_) => {}
                    Err(error) if number == 0 => {
                        return Err(Failure::failed("cannot start a thread", error));
                    }
                    // Those that there are do it all.
                    Err(_) => break,
                }
            }
            Ok(())
        })?;
        let last = last.into_inner();
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(results.into_iter().filter(|(number, _)| *number <= last).map(|(_, it)| it).collect())
    }
}

/// A bar on standard error, if that is a terminal. `what` is counted.
pub(crate) fn progress(name: &str, total: u64, what: &str) -> ProgressBar {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let template = format!("{name}: {{bar:30}} {{pos}} of {{len}} {what}, {{eta}} left");
    let style = ProgressStyle::with_template(&template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total), target).with_style(style)
}

/// A line beside the result. If nobody can read it, so be it.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The same, only for somebody who is looking.
pub(crate) fn note_on_terminal(text: &str) {
    if io::stderr().is_terminal() {
        note(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(count: u16) -> Jobs {
        Jobs { jobs: NonZeroU16::new(count) }
    }

    #[test]
    fn parts_come_in_their_order_and_end_at_the_first_that_breaks() {
        for count in [1, 2, 7, 100] {
            let all = jobs(count).each(50, || (), |(), part| ControlFlow::Continue(part));
            assert_eq!(all.unwrap(), (0..50).collect::<Vec<_>>());
            let some = jobs(count).each(
                50,
                || (),
                |(), part| match part {
                    20 | 21 | 40 => ControlFlow::Break(part),
                    _ => ControlFlow::Continue(part),
                },
            );
            assert_eq!(some.unwrap(), (0..=20).collect::<Vec<_>>());
        }
        let none = jobs(3).each(0, || (), |(), part| ControlFlow::Continue(part));
        assert!(none.unwrap().is_empty());
    }
}
