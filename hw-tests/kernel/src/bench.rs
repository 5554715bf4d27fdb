//! Host cases: cases that only a kernel can run, because they need several CPUs or page tables of
//! their own. Each is an entry in the table of its file in `cases/`. The runner takes the names
//! that it expects from these tables, too.

use alloc::string::String;

use hw_protocol::Need;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::switcher_gen::arch::Msr as MsrName;
use x86_64::registers::control::{Cr4, Efer};
use x86_64::registers::model_specific::Msr;

use crate::case_host::BareMetal;
use crate::others::Others;
use crate::paths::{self, Path};

/// The result of a host case: how many guests were entered, or why it failed.
pub(crate) type Ended = Result<u64, String>;

/// A case that is about the host around a switcher.
///
/// `hw-protocol` reads the tables of these at build time, and has all fields but `run`.
pub(crate) struct HostCase {
    /// The name of the case: unique, stable, and a sentence.
    pub(crate) name: &'static str,
    /// What a pass shows.
    #[expect(dead_code, reason = "for the runner, which has it by way of hw-protocol")]
    pub(crate) shown: &'static str,
    /// The rows of spec/hazards.md that the case tries.
    #[expect(dead_code, reason = "for the runner, which has it by way of hw-protocol")]
    pub(crate) rows: &'static [Hazard],
    /// The least number of CPUs that the case takes.
    pub(crate) cpus: usize,
    /// What else an engine must have for it.
    pub(crate) needs: &'static [Need],
    /// The function that runs the case.
    pub(crate) run: fn(&mut Bench) -> Ended,
}

/// What the host cases work on.
pub(crate) struct Bench {
    /// The CPU that has booted, with a switcher and guests' memory, until a case takes it apart.
    host: Option<BareMetal<'static>>,
    /// Every path through the switcher. The first case that interrupts a path finds the addresses
    /// of its instructions, for the other cases as well.
    paths: [Path; 7],
    /// The other CPUs, as long as they run the case list.
    others: Option<Others>,
    /// The boot CPU before a switcher was active.
    before: Control,
}

impl Bench {
    pub(crate) fn new(host: BareMetal<'static>, others: Others, before: Control) -> Self {
        let paths = paths::paths(&host);
        Self { host: Some(host), paths, others: Some(others), before }
    }

    pub(crate) fn host(&mut self) -> Result<&mut BareMetal<'static>, String> {
        self.host.as_mut().ok_or_else(|| "no switcher is active any more".into())
    }

    /// The CPU, and the paths through its switcher.
    pub(crate) fn host_and_paths(
        &mut self,
    ) -> Result<(&mut BareMetal<'static>, &mut [Path]), String> {
        let host = self.host.as_mut().ok_or("no switcher is active any more")?;
        Ok((host, &mut self.paths))
    }

    /// The CPU, to take its switcher away, and the state that it had before the switcher was
    /// active.
    pub(crate) fn take_host(&mut self) -> Result<(BareMetal<'static>, &Control), String> {
        let host = self.host.take().ok_or("no switcher is active any more")?;
        Ok((host, &self.before))
    }

    /// Gives a CPU back that was taken.
    pub(crate) fn put_host(&mut self, host: BareMetal<'static>) {
        self.host = Some(host);
    }

    /// The other CPUs, if they still run the case list.
    pub(crate) fn take_others(&mut self) -> Option<Others> {
        self.others.take()
    }
}

/// The registers of a CPU that a switcher changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Control {
    cr4: u64,
    efer: u64,
    msrs: [u64; 7],
}

impl Control {
    const MSRS: [MsrName; 7] = [
        MsrName::Star,
        MsrName::Lstar,
        MsrName::Cstar,
        MsrName::Sfmask,
        MsrName::SysenterCs,
        MsrName::GsBase,
        MsrName::KernelGsBase,
    ];

    pub(crate) fn read() -> Self {
        // SAFETY: every CPU with long mode has these MSRs; reading them changes nothing.
        let msr = |name: MsrName| unsafe { Msr::new(name.address()).read() };
        Self { cr4: Cr4::read_raw(), efer: Efer::read_raw(), msrs: Self::MSRS.map(msr) }
    }
}
