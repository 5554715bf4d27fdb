//! The case list on the other CPUs, a part of it on each, while the CPU that has booted runs the
//! whole list.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use hw_cases::{Case, CaseEnd};
use hw_platform::boot::MAX_CPUS;
use hw_platform::smp;
use spin::Mutex;

use crate::case_host::BareMetal;
use crate::switchers::{Switchers, fatal, host_on};

/// The result of a CPU: how many guests were entered, or why it failed.
type Ended = Result<u64, String>;

/// The other CPUs, which run the case list.
pub(crate) struct Others {
    done: [Arc<Mutex<Ended>>; MAX_CPUS],
    /// The number of CPUs that run the case list.
    count: usize,
}

/// The number of CPUs that run a guest, or are about to.
pub(crate) static RUNNING: AtomicU64 = AtomicU64::new(0);
/// The highest number of CPUs that have run guests at once.
static MOST: AtomicU64 = AtomicU64::new(0);

impl Others {
    /// Starts the other CPUs.
    pub(crate) fn start(switchers: Switchers, breakpoints: bool) -> Self {
        let done = core::array::from_fn(|_| Arc::new(Mutex::new(Err("not run".into()))));
        let count = smp::count();
        for (cpu, done) in (0..).zip(&done).take(count).skip(1) {
            let done: Arc<Mutex<Ended>> = Arc::clone(done);
            let job = move || {
                let running = RUNNING.fetch_add(1, Ordering::AcqRel) + 1;
                MOST.fetch_max(running, Ordering::AcqRel);
                let ended = part_of_cases(cpu, &mut host_on(switchers, cpu, breakpoints));
                RUNNING.fetch_sub(1, Ordering::AcqRel);
                *done.lock() = ended;
            };
            smp::start(cpu, Box::new(job)).unwrap_or_else(|why| fatal(&why));
        }
        Self { done, count }
    }

    /// Waits for the other CPUs.
    pub(crate) fn wait(self) -> Ended {
        (1..self.count).for_each(smp::wait);
        let of =
            |cpu: usize| self.done[cpu].lock().clone().map_err(|why| format!("CPU {cpu}: {why}"));
        (1..self.count).map(of).sum()
    }

    /// Waits for the other CPUs, and checks that all of them have run guests at once.
    pub(crate) fn end(self) -> Ended {
        let count = self.count;
        let entered = self.wait()?;
        let most = MOST.load(Ordering::Acquire) as usize + 1;
        if most != count {
            return Err(format!("only {most} of {count} CPUs ran guests at the same time"));
        }
        Ok(entered)
    }
}

/// Runs a CPU's part of the list. The CPU that has booted runs the whole list.
fn part_of_cases(cpu: usize, host: &mut BareMetal<'_>) -> Ended {
    let cases = hw_cases::all();
    let len = cases.len().div_ceil(MAX_CPUS - 1);
    cases.iter().skip((cpu - 1) * len).take(len).map(|case| one_case(case, host)).sum()
}

fn one_case(case: &Case, host: &mut BareMetal<'_>) -> Ended {
    match case.run(host) {
        (entered, CaseEnd::Passed) => Ok(entered),
        (_, CaseEnd::Failed(why)) => Err(format!("{}: {why}", case.name)),
        // The CPU that has booted runs the case, too, and reports this.
        (_, CaseEnd::NotHere(_)) => Ok(0),
    }
}
