//! The cases on this CPU, in user mode (`switcher_engine::native`): the CPU executes the emitted
//! bytes and the guests, whose pages follow the root on which they run. What Linux denies to user
//! mode is refused here with the reason, and listed in [`not_here`](super::not_here).

use std::fs;

use anyhow::{Result, anyhow};
use hw_cases::{CaseHost, Entries, Observed, Platform, Refusal, Setup, place};
use switcher_engine::native;
use switcher_engine::native::{Error, Failure, Machine};
use switcher_engine::scenario;
use switcher_gen::arch::{Selectors, Vendor, vector};
use switcher_gen::layout::{Mode, Placement};
use switcher_gen::{Config, Image, Policy, Variant};

use super::hosted::{self, Hosted, NamedHost};

/// The names of the engines.
pub(super) const NAMES: [&str; 2] = ["native", "native-percpu"];

/// One engine for each placement.
pub(super) const ENGINES: [Hosted; 2] = [
    Hosted { name: NAMES[0], variant, host, unavailable },
    Hosted { name: NAMES[1], variant: percpu, host, unavailable },
];

fn unavailable() -> Option<String> {
    native::supported().err().map(|why| why.to_string())
}

/// The value of a line in /proc/cpuinfo.
fn cpuinfo(key: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_prefix(':'));
    Ok(value.ok_or_else(|| anyhow!("/proc/cpuinfo has no {key}"))?.trim().to_owned())
}

/// The variant for this CPU, in the paging mode that its kernel uses.
fn variant() -> Result<Variant> {
    let vendor = match cpuinfo("vendor_id")?.as_str() {
        "AuthenticAMD" | "HygonGenuine" => Vendor::Amd,
        _ => Vendor::Intel,
    };
    let paging = Machine::new(&Variant::REFERENCE)?.real_paging();
    let config = Config { vendor, paging, ..Variant::REFERENCE.config() };
    Ok(Variant::new(config, Selectors::DEFAULT)?)
}

fn percpu() -> Result<Variant> {
    let policy = Policy { placement: Placement::PerCpu, ..Policy::DEFAULT };
    Ok(variant()?.with_policy(policy))
}

fn host(variant: &Variant) -> Result<NamedHost> {
    let mut machine = Machine::with_code_at(Image::new(variant)?, place::TEXT)?;
    machine.map_data(place::STACK)?;
    let host = Native { machine, platform: hosted::platform(variant), loaded: Vec::new() };
    Ok((Box::new(host), cpuinfo("model name")?))
}

/// This CPU with the pages that cases use.
struct Native {
    machine: Machine,
    platform: Platform,
    /// The parts of the guests' code that are not INT3.
    loaded: Vec<(Mode, usize, usize)>,
}

const INT3: u8 = 0xCC;
const SYSENTER: [u8; 2] = [0x0F, 0x34];

impl Native {
    /// Refuses setups from which Linux would not return, or would return in another way than a CPU.
    fn check(&self, setup: &Setup) -> Result<(), Refusal> {
        let (cs, ss) = self.platform.aliases;
        let why = if setup.breakpoint.is_some() {
            "a breakpoint register would be needed"
        } else if setup.code.iter().any(|code| !is_in_page(code)) {
            "code lies where user mode has none"
        } else if setup.code.iter().any(|code| code.bytes.windows(2).any(|two| two == SYSENTER)) {
            "SYSENTER would be executed"
        } else if setup.regs.cs == u64::from(cs) || setup.regs.ss == u64::from(ss) {
            "a second descriptor would be needed"
        } else {
            return Ok(());
        };
        Err(Refusal::NotHere(why.into()))
    }
}

/// Whether code lies in the one page that the guests have for it.
fn is_in_page(code: &hw_cases::GuestBytes) -> bool {
    let offset = code.at.wrapping_sub(place::TEXT);
    offset < place::PAGE && code.bytes.len() as u64 <= place::PAGE - offset
}

impl CaseHost for Native {
    fn platform(&self) -> Platform {
        self.platform
    }

    fn entries(&self) -> Result<Entries, Refusal> {
        Err(Refusal::NotHere("user mode cannot read MSRs".into()))
    }

    fn run(&mut self, setup: &Setup) -> Result<Observed, Refusal> {
        self.check(setup)?;
        for (mode, offset, len) in self.loaded.drain(..) {
            self.machine.load(mode, offset, &vec![INT3; len]).map_err(hosted::failure)?;
        }
        for code in &setup.code {
            let offset = (code.at - place::TEXT) as usize;
            self.machine.load(code.mode, offset, &code.bytes).map_err(hosted::failure)?;
            self.loaded.push((code.mode, offset, code.bytes.len()));
        }
        let mut run = hosted::setup(setup, self.machine.setup(setup.mode));
        run.traps = u64::MAX;
        match self.machine.run(&run) {
            Ok(outcome) => Ok(hosted::outcome(as_hardware_says(outcome))),
            Err(Error::Failure(why @ Failure::NotOnThisCpu { .. })) => {
                Err(Refusal::NotHere(why.to_string()))
            }
            Err(why) => Err(hosted::failure(why)),
        }
    }
}

/// Corrects the error code of a page fault. Linux reports every page of its own half of the address
/// space as present, so that user mode cannot tell which are (arch/x86/mm/fault.c,
/// `sanitize_error_code`). No page is mapped there for a guest.
fn as_hardware_says(mut outcome: scenario::ScenarioEnd) -> scenario::ScenarioEnd {
    const PRESENT: u32 = 1;
    let is_kernels = outcome.cr2.is_some_and(|address| address >> 63 != 0);
    if outcome.frame.orig_ax.reason == u32::from(vector::PF) && is_kernels {
        outcome.frame.orig_ax.error_code &= !PRESENT;
    }
    outcome
}
