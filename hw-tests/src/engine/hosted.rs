//! Engines that need no kernel: they run the cases in a process of their own, which reports as the
//! kernel does. It is a process so that a run that dies or hangs has failed without ending `xtask`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hw_cases::{CaseHost, HostAfter, Platform, Refusal};
use hw_protocol::{CaseVerdict, Options, ReportLine};
use switcher_engine::scenario::{ScenarioEnd, Setup};
use switcher_gen::arch::{Cr3, PagingMode};
use switcher_gen::layout::{Mode, SwitchFlags};
use switcher_gen::{Hazard, Image, Policy, Variant};
use switcher_runtime::{DebugCauses, Exit};

use super::qemu::read;
use super::{Engine, Runs};
use crate::run::{EngineRun, RunEnd};
use crate::tools::{self, Ending, Tool};

/// The host that runs the cases, and its description for the report.
pub(super) type NamedHost = (Box<dyn CaseHost>, String);

/// An engine that runs in a process of its own.
#[derive(Debug, Clone, Copy)]
pub struct Hosted {
    pub(super) name: &'static str,
    /// Chooses the variant that is run.
    pub(super) variant: fn() -> Result<Variant>,
    /// Makes the machine on which to run it, with a description.
    pub(super) host: fn(&Variant) -> Result<NamedHost>,
    /// Why the engine cannot be used here, if it cannot.
    pub(super) unavailable: fn() -> Option<String>,
}

impl Engine for Hosted {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tools(&self) -> &'static [Tool] {
        &[]
    }

    fn paging(&self) -> PagingMode {
        // An engine without a variant reports that when it is run.
        (self.variant)().map_or(PagingMode::FourLevel, |variant| variant.paging())
    }

    fn policy(&self) -> Policy {
        (self.variant)().map_or(Policy::DEFAULT, |variant| variant.policy())
    }

    fn runs(&self) -> Runs {
        Runs::Xtask
    }

    fn unavailable(&self, _program: &Path) -> Result<Option<String>> {
        Ok((self.unavailable)())
    }

    fn boot(&self, program: &Path, _options: Options, limit: Duration) -> Result<EngineRun> {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let output = directory.path().join("output");
        let file = File::create(&output).context("a temporary file")?;
        let mut command = tools::command(program);
        command.arg("cases").arg(self.name);
        let (ending, took) = tools::run(&mut command, file, limit).context("running the cases")?;
        let end = match ending {
            Ending::Exited(status) if status.success() => RunEnd::ByItself,
            Ending::Exited(_) => RunEnd::Otherwise(format!("the process ended with {ending}")),
            Ending::TimedOut(_) => RunEnd::Otherwise(format!("the process hangs: {ending}")),
        };
        Ok(EngineRun { log: read(&output), emulator: String::new(), end, took })
    }
}

/// Runs the cases on an engine, and reports on standard output.
///
/// # Errors
/// If the engine cannot be used.
pub fn report(engine: Hosted) -> Result<()> {
    let variant = (engine.variant)()?;
    let (mut host, brand) = (engine.host)(&variant)?;
    let cases = hw_cases::all();
    let image = Image::new(&variant)?;
    let config = variant.config();
    say(&ReportLine::Machine { brand: brand.into(), features: Vec::new(), memory: 0 })?;
    say(&ReportLine::Begin {
        vendor: config.vendor.to_string().into(),
        paging: config.paging.name().into(),
        pcid: config.pcid,
        cases: cases.len() as u64,
    })?;
    say(&ReportLine::Switcher {
        variant: variant.to_string().into(),
        fingerprint: image.fingerprint().to_string().into(),
        base: 0,
    })?;
    let (mut passed, mut failed) = (0, 0);
    for case in cases {
        let (runs, end) = case.run(host.as_mut());
        let (verdict, detail) = match end {
            hw_cases::CaseEnd::Passed => {
                passed += 1;
                (CaseVerdict::Pass, String::new())
            }
            hw_cases::CaseEnd::Failed(why) => {
                failed += 1;
                (CaseVerdict::Fail, format!("{}: {why}", Hazard::join(case.rows)))
            }
            hw_cases::CaseEnd::NotHere(why) => (CaseVerdict::NotHere, why),
        };
        say(&ReportLine::Case { name: case.name.into(), verdict, runs, detail: detail.into() })?;
    }
    say(&ReportLine::End { passed, failed })
}

fn say(event: &ReportLine<'_>) -> Result<()> {
    let line = event.to_line().map_err(|why| anyhow::anyhow!("{why}"))?;
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").context("reporting")?;
    // The output is flushed, so that a process that dies has reported what it has done.
    out.flush().context("reporting")
}

/// A case's setup in the form of `switcher-gen`'s engines. What a case leaves open is taken from
/// `usual`.
pub(super) fn setup(case: &hw_cases::Setup, usual: Setup) -> Setup {
    let mut setup = usual;
    setup.frame = case.regs;
    setup.gs_base = case.gs_base;
    setup.pkru = case.pkru;
    setup.pvcs = case.pvcs;
    let extra = &mut setup.extra;
    extra.switch_flags = case.inhibitors | case.mode.flag();
    extra.switch_flags.set(SwitchFlags::NO_DS_CR3, !case.other_root);
    extra.switch_flags.set(SwitchFlags::PVCS_INVALID, !case.pvcs_registered);
    if !case.other_root {
        match case.mode {
            Mode::Smod => extra.umod_cr3 = Cr3::NONE,
            Mode::Umod => extra.smod_cr3 = Cr3::NONE,
        }
    }
    if !case.pvcs_registered {
        extra.pvcs = 0;
    }
    extra.retu_rip = case.retu_rip;
    extra.smod_entry = case.smod_entry;
    extra.smod_gsbase = case.smod_gsbase;
    extra.smod_rsp = case.smod_rsp;
    extra.smod_pkru = case.smod_pkru;
    setup
}

/// The outcome of a run in the form of the cases. The engines themselves end a run as a failure
/// unless the host has everything as [`HostAfter`] wants it, so the host's state is not compared
/// again.
pub(super) fn outcome(outcome: ScenarioEnd) -> hw_cases::Observed {
    let flags = outcome.extra.switch_flags;
    hw_cases::Observed {
        exit: Exit::from_frame(
            outcome.frame.orig_ax,
            || outcome.cr2.unwrap_or_default(),
            // In user mode no debug register is set, so a #DB is a single step.
            || {
                let step = DebugCauses::SINGLE_STEP;
                outcome.dr6.map_or(step, DebugCauses::from_bits_truncate).to_dr6()
            },
        ),
        regs: outcome.frame,
        gs_base: outcome.gs_base,
        pkru: outcome.pkru,
        mode: if flags.contains(SwitchFlags::UMOD) { Mode::Umod } else { Mode::Smod },
        switch_flags: flags,
        smod_rsp: outcome.extra.smod_rsp,
        pvcs: outcome.pvcs,
        host: HostAfter { host_rsp_cleared: outcome.extra.host_rsp == 0, ..HostAfter::IN_ORDER },
    }
}

/// The refusal of an engine whose switcher has done what no switcher may.
pub(super) fn failure(why: impl std::fmt::Display) -> Refusal {
    Refusal::Failure(hw_cases::Failure(why.to_string()))
}

/// The platform that cases find in a variant.
pub(super) fn platform(variant: &Variant) -> Platform {
    /// The selectors of hw-tests/platform/src/segments.rs.
    const ALIASES: (u16, u16) = (0x4B, 0x53);
    let config = variant.config();
    Platform {
        vendor: config.vendor,
        paging: config.paging,
        selectors: variant.selectors(),
        aliases: ALIASES,
        revision: config.policy.revision,
        pku: config.pku,
    }
}
