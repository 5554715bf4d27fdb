//! Bochs, as an Intel CPU with PCIDs and as an AMD CPU.
//!
//! Unlike QEMU's interpreter, Bochs follows the vendor that it emulates: SYSRETQ to a non-canonical
//! address faults at CPL 0 on the Intel model. Its release 2.7 has no model with five-level paging;
//! [`bochs3`](super::bochs3) has one.
//!
//! Bochs has no loader for kernels: it boots an ISO with GRUB. Debian's build starts in its
//! debugger, hence the `c` on its input; at the end of input the debugger quits, so that a CPU that
//! shut down (a triple fault) ends the run instead of hanging it.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hw_protocol::{CPUS, Options};
use switcher_gen::Policy;
use switcher_gen::arch::PagingMode;
use switcher_gen::layout::{Placement, Revision};

use super::Engine;
use super::qemu::read;
use crate::iso::{self, MenuEntry};
use crate::run::{EngineRun, RunEnd};
use crate::tools::{
    self, BOCHS, BOCHS_BIOS, Ending, GRUB_MKRESCUE, GRUB_PC, MTOOLS, Tool, VGA_BIOS, XORRISO,
};

/// The text that Bochs prints when the kernel has written "Shutdown" to port 0x8900.
const SHUTDOWN: &str = "shutdown requested";
/// The text that Bochs prints when the CPU shuts down.
const TRIPLE_FAULT: &str = "3rd (";
/// The text that the sound library prints on a machine without sound, whatever Bochs is configured
/// to do.
const NOISE: &str = "ALSA lib ";

/// One of Bochs's CPU models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bochs {
    name: &'static str,
    model: &'static str,
    policy: Policy,
}

impl Bochs {
    /// An Ice Lake: it has PCID, FSGSBASE and SMAP.
    pub const INTEL: Self =
        Self { name: "bochs-intel", model: "corei7_icelake_u", policy: Policy::DEFAULT };
    /// A Ryzen: it has FSGSBASE and SMAP, but no PCID.
    pub const AMD: Self = Self { name: "bochs-amd", model: "ryzen", policy: Policy::DEFAULT };
    /// The Ice Lake, with placement `percpu`.
    pub const INTEL_PERCPU: Self = Self {
        name: "bochs-intel-percpu",
        policy: Policy { placement: Placement::PerCpu, ..Policy::DEFAULT },
        ..Self::INTEL
    };
    /// The Ryzen, with V2026 of the PVCS.
    pub const AMD_CURRENT: Self = Self {
        name: "bochs-amd-current",
        policy: Policy { revision: Revision::V2026, ..Policy::DEFAULT },
        ..Self::AMD
    };
}

/// The text of the configuration file, for files in `directory`.
pub(super) fn configuration(model: &str, cpus: usize, directory: &str) -> String {
    let (bios, vga) = (BOCHS_BIOS.what, VGA_BIOS.what);
    format!(
        "config_interface: textconfig\n\
         display_library: rfb, options=\"timeout=0\"\n\
         cpu: model={model}, count={cpus}, ips=50000000, reset_on_triple_fault=0\n\
         megs: 512\n\
         romimage: file={bios}\n\
         vgaromimage: file={vga}\n\
         ata0-master: type=cdrom, path={directory}/boot.iso, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=file, dev={directory}/serial\n\
         speaker: enabled=0\n\
         log: {directory}/log\n\
         panic: action=fatal\n\
         error: action=report\n\
         info: action=ignore\n"
    )
}

impl Engine for Bochs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tools(&self) -> &'static [Tool] {
        &[BOCHS, BOCHS_BIOS, VGA_BIOS, GRUB_MKRESCUE, GRUB_PC, XORRISO, MTOOLS]
    }

    fn paging(&self) -> PagingMode {
        PagingMode::FourLevel
    }

    fn policy(&self) -> Policy {
        self.policy
    }

    fn boot(&self, kernel: &Path, options: Options, limit: Duration) -> Result<EngineRun> {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let path = |name: &str| directory.path().join(name);
        let entries = [MenuEntry { title: "cases", options }];
        iso::write(kernel, &hw_vectors::table(self.name), &entries, 0, &path("boot.iso"))?;
        let configuration = configuration(self.model, CPUS, ".");
        fs::write(path("bochsrc"), configuration).context("writing bochsrc")?;
        fs::write(path("input"), "c\n").context("writing the debugger's input")?;

        let mut command = tools::command(BOCHS.what);
        command
            .args(["-q", "-f", "bochsrc"])
            .current_dir(directory.path())
            .stdin(File::open(path("input")).context("the debugger's input")?);
        let file = File::create(path("output")).context("a temporary file")?;
        let (ending, took) = tools::run(&mut command, file, limit).context("running Bochs")?;
        let (end, emulator) = ending_of(&ending, read(&path("output")), read(&path("log")));
        Ok(EngineRun { log: read(&path("serial")), emulator, end, took })
    }
}

/// How a run ended, and the part of Bochs's output and log that is worth showing.
pub(super) fn ending_of(ending: &Ending, output: String, log: String) -> (RunEnd, String) {
    let end = match ending {
        Ending::Exited(_) if output.contains(SHUTDOWN) => RunEnd::ByItself,
        Ending::Exited(_) if output.contains(TRIPLE_FAULT) => {
            RunEnd::Otherwise("the CPU shut down: a triple fault".into())
        }
        Ending::Exited(_) => RunEnd::Otherwise(format!("Bochs ended with {ending}")),
        Ending::TimedOut(_) => RunEnd::Otherwise(format!("the kernel hangs: {ending}")),
    };
    // The output is what the debugger prints, and the state of the CPU if Bochs gave up; the log
    // has errors and panics only (see the configuration).
    let emulator = match end {
        RunEnd::ByItself => String::new(),
        RunEnd::Otherwise(_) => [output, log]
            .iter()
            .flat_map(|text| text.lines())
            .filter(|line| !line.starts_with(NOISE))
            .flat_map(|line| [line, "\n"])
            .collect(),
    };
    (end, emulator)
}
