//! QEMU: its interpreter (TCG) with either paging mode, and KVM where that can boot a PC.
//!
//! What QEMU 7.2's TCG does differently from a CPU: it has no PCIDs; SYSRETQ to a non-canonical
//! address does not fault at CPL 0, whatever the vendor it claims (that is AMD's way); #GP of an
//! INT n through a gate with DPL 0 has the error code n * 16 + 2 instead of n * 8 + 2.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hw_protocol::{CPUS, Options};
use switcher_gen::Policy;
use switcher_gen::arch::PagingMode;
use switcher_gen::layout::{Placement, Revision};

use super::{Engine, self_test};
use crate::run::{EngineRun, RunEnd};
use crate::tools::{self, Ending, QEMU, Tool};

/// The exit codes that the kernel causes: `isa-debug-exit` makes an exit code of twice the value
/// that is written, plus one, and hw-tests/platform/src/exit.rs writes 0x10 or 0x11. Any other code
/// is not caused by the kernel.
const KERNEL_EXITS: [i32; 2] = [0x10 * 2 + 1, 0x11 * 2 + 1];
/// How long KVM may take to boot the kernel. If it can boot it at all, that takes less than a
/// second.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// One way to start QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qemu {
    name: &'static str,
    /// Whether KVM runs the guest.
    kvm: bool,
    /// The value of the `-cpu` argument.
    cpu: &'static str,
    paging: PagingMode,
    policy: Policy,
}

impl Qemu {
    /// The interpreter, with four-level paging.
    pub const TCG_4LEVEL: Self = Self {
        name: "qemu-tcg-4level",
        kvm: false,
        cpu: "max",
        paging: PagingMode::FourLevel,
        policy: Policy::DEFAULT,
    };
    /// The interpreter, with four-level paging, placement `percpu` and V2026 of the PVCS.
    pub const TCG_4LEVEL_PERCPU_CURRENT: Self = Self {
        name: "qemu-tcg-4level-percpu-current",
        policy: Policy { placement: Placement::PerCpu, revision: Revision::V2026 },
        ..Self::TCG_4LEVEL
    };
    /// The interpreter, with five-level paging.
    pub const TCG_LA57: Self =
        Self { name: "qemu-tcg-la57", paging: PagingMode::FiveLevel, ..Self::TCG_4LEVEL };
    /// The interpreter, with five-level paging, under Intel's name: this is the only way to run
    /// that variant where no CPU has LA57.
    pub const TCG_LA57_INTEL: Self =
        Self { name: "qemu-tcg-la57-intel", cpu: "max,vendor=GenuineIntel", ..Self::TCG_LA57 };
    /// The real CPU, by KVM.
    pub const KVM: Self = Self { name: "qemu-kvm", kvm: true, cpu: "host", ..Self::TCG_4LEVEL };
}

impl Engine for Qemu {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tools(&self) -> &'static [Tool] {
        &[QEMU]
    }

    fn paging(&self) -> PagingMode {
        self.paging
    }

    fn policy(&self) -> Policy {
        self.policy
    }

    /// KVM is there if it boots the kernel: a `/dev/kvm` may belong to a hypervisor that runs
    /// nothing but its own paravirtualised guests.
    fn tracks_branches(&self) -> Option<bool> {
        if self.kvm { None } else { Some(false) }
    }

    fn unavailable(&self, kernel: &Path) -> Result<Option<String>> {
        if !self.kvm {
            return Ok(None);
        }
        if let Err(why) = File::options().read(true).write(true).open("/dev/kvm") {
            return Ok(Some(format!("/dev/kvm: {why}")));
        }
        self_test(self, kernel, PROBE_LIMIT)
    }

    fn boot(&self, kernel: &Path, options: Options, limit: Duration) -> Result<EngineRun> {
        let directory = tempfile::tempdir().context("a temporary directory")?;
        let serial = directory.path().join("serial");
        let output = directory.path().join("output");
        let vectors = directory.path().join("vectors");
        fs::write(&vectors, hw_vectors::table(self.name)).context("writing the vectors")?;
        let mut command = tools::command(QEMU.what);
        command
            .arg("-kernel")
            .arg(kernel)
            .arg("-append")
            .arg(options.to_string())
            // For a multiboot kernel, QEMU makes this file a module.
            .arg("-initrd")
            .arg(&vectors)
            .args(if self.kvm { ["-accel", "kvm"] } else { ["-accel", "tcg"] })
            .args(["-cpu", self.cpu])
            .args(["-smp", &CPUS.to_string(), "-m", "512", "-nodefaults"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-serial")
            .arg(format!("file:{}", serial.display()));
        let file = File::create(&output).context("a temporary file")?;
        let (ending, took) = tools::run(&mut command, file, limit).context("running QEMU")?;
        let end = match ending {
            Ending::Exited(status)
                if status.code().is_some_and(|code| KERNEL_EXITS.contains(&code)) =>
            {
                RunEnd::ByItself
            }
            Ending::Exited(status) if status.success() => {
                RunEnd::Otherwise("the virtual machine reset itself (a triple fault?)".into())
            }
            Ending::Exited(_) => RunEnd::Otherwise(format!("QEMU ended with {ending}")),
            Ending::TimedOut(_) => RunEnd::Otherwise(format!("the kernel hangs: {ending}")),
        };
        Ok(EngineRun { log: read(&serial), emulator: read(&output), end, took })
    }
}

/// The text of a log, whatever bytes it has; empty if there is no log.
pub(super) fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
