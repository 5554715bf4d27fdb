//! Report lines on the serial port: the kernel's side of `hw-protocol`.

use alloc::borrow::Cow;
use alloc::string::ToString;

use hw_platform::exit::{self, ExitStatus};
use hw_platform::{Platform, cpu, serial_println};
use hw_protocol::{CaseVerdict, ReportLine};
use switcher_runtime::Switcher;

/// Prints one line of the report.
pub(crate) fn event(event: &ReportLine<'_>) {
    match event.to_line() {
        Ok(line) => serial_println!("{line}"),
        Err(why) => exit::fatal(format_args!("{why}")),
    }
}

/// The report of a run. It counts the cases as they are reported, so that the closing line cannot
/// disagree with them.
#[derive(Debug)]
pub(crate) struct Report {
    passed: u64,
    failed: u64,
}

impl Report {
    /// Reports the machine and the beginning of a run of `cases` cases.
    #[must_use]
    pub(crate) fn begin(platform: &Platform, cases: usize) -> Self {
        // BIOS and GRUB leave an unfinished line on the port.
        serial_println!();
        event(&ReportLine::Machine {
            brand: platform.features.brand.as_str().into(),
            features: platform.features.names().map(Cow::Borrowed).collect(),
            memory: platform.memory,
        });
        event(&ReportLine::Begin {
            vendor: platform.features.vendor.as_str().into(),
            paging: platform.paging.name().into(),
            pcid: cpu::pcid_enabled(),
            cases: cases as u64,
        });
        Self { passed: 0, failed: 0 }
    }

    /// Reports a switcher that the following cases are about.
    pub(crate) fn switcher(&self, switcher: &Switcher) {
        let image = switcher.image();
        event(&ReportLine::Switcher {
            variant: image.variant().to_string().into(),
            fingerprint: image.fingerprint().to_string().into(),
            base: switcher.base(),
        });
    }

    /// Reports one case that was run `runs` times. `failure` says what went wrong, if it did.
    pub(crate) fn case(&mut self, name: &str, runs: u64, failure: Option<&str>) {
        self.detailed(name, runs, failure.is_none(), failure.unwrap_or(""));
    }

    /// Reports one case, with something worth knowing even if it passed.
    pub(crate) fn detailed(&mut self, name: &str, runs: u64, passed: bool, detail: &str) {
        let (verdict, count) = match passed {
            true => (CaseVerdict::Pass, &mut self.passed),
            false => (CaseVerdict::Fail, &mut self.failed),
        };
        *count += 1;
        event(&ReportLine::Case { name: name.into(), verdict, runs, detail: detail.into() });
    }

    /// Reports one case that cannot be run on this machine.
    pub(crate) fn not_here(&mut self, name: &str, why: &str) {
        let verdict = CaseVerdict::NotHere;
        event(&ReportLine::Case { name: name.into(), verdict, runs: 0, detail: why.into() });
    }

    /// Reports the end, and ends the run.
    pub(crate) fn end(self) -> ! {
        event(&ReportLine::End { passed: self.passed, failed: self.failed });
        exit::exit(if self.failed == 0 { ExitStatus::Success } else { ExitStatus::Failure })
    }
}
