//! Bochs 3, as an Intel CPU with five-level paging, PCIDs, protection keys and indirect branch
//! tracking: all that the newest of Bochs 2.7's models lacks.
//!
//! It is from another release of Debian than the other tools, and is in a [root](crate::debian) of
//! its own; its files are in a directory there. That release's build starts without the debugger
//! unless it is asked for.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hw_protocol::{CPUS, Options};
use switcher_gen::Policy;
use switcher_gen::arch::PagingMode;
use switcher_gen::layout::{Placement, Revision};

use super::Engine;
use super::bochs::{configuration, ending_of};
use super::qemu::read;
use crate::debian::{BOCHS3, Root};
use crate::iso::{self, MenuEntry};
use crate::run::EngineRun;
use crate::tools::{self, CHROOT, GRUB_MKRESCUE, GRUB_PC, MMDEBSTRAP, MTOOLS, Tool, XORRISO};

const MODEL: &str = "sapphire_rapids";

/// The engines with several CPUs.
pub(super) const SMP: [&str; 2] = ["bochs3-intel-la57-smp", "bochs3-intel-4level-smp-percpu"];

/// A Sapphire Rapids in one paging mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bochs3 {
    name: &'static str,
    cpus: usize,
    paging: PagingMode,
    policy: Policy,
}

impl Bochs3 {
    /// Five-level paging.
    pub const INTEL_LA57: Self = Self {
        name: "bochs3-intel-la57",
        cpus: 1,
        paging: PagingMode::FiveLevel,
        policy: Policy::DEFAULT,
    };
    /// Four-level paging.
    pub const INTEL_4LEVEL: Self =
        Self { name: "bochs3-intel-4level", paging: PagingMode::FourLevel, ..Self::INTEL_LA57 };
    /// Five-level paging and several CPUs. An instruction with a breakpoint hangs all of them.
    pub const INTEL_LA57_SMP: Self = Self { name: SMP[0], cpus: CPUS, ..Self::INTEL_LA57 };
    /// Four-level paging and several CPUs, with placement `percpu`.
    pub const INTEL_4LEVEL_SMP_PERCPU: Self = Self {
        name: SMP[1],
        paging: PagingMode::FourLevel,
        policy: Policy { placement: Placement::PerCpu, ..Policy::DEFAULT },
        ..Self::INTEL_LA57_SMP
    };
    /// Five-level paging, with placement `percpu` and V2026 of the PVCS.
    pub const INTEL_LA57_PERCPU_CURRENT: Self = Self {
        name: "bochs3-intel-la57-percpu-current",
        policy: Policy { placement: Placement::PerCpu, revision: Revision::V2026 },
        ..Self::INTEL_LA57
    };
}

impl Engine for Bochs3 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tools(&self) -> &'static [Tool] {
        &[MMDEBSTRAP, CHROOT, GRUB_MKRESCUE, GRUB_PC, XORRISO, MTOOLS]
    }

    fn root(&self) -> Option<&'static Root> {
        Some(&BOCHS3)
    }

    fn tracks_branches(&self) -> Option<bool> {
        Some(true)
    }

    fn cpus(&self) -> usize {
        self.cpus
    }

    fn breakpoints(&self) -> bool {
        self.cpus == 1
    }

    /// With several CPUs, it advances by turns.
    fn counts_instructions(&self) -> bool {
        self.cpus == 1
    }

    fn paging(&self) -> PagingMode {
        self.paging
    }

    fn policy(&self) -> Policy {
        self.policy
    }

    fn boot(&self, kernel: &Path, options: Options, limit: Duration) -> Result<EngineRun> {
        let root = BOCHS3.path();
        let directory = tempfile::tempdir_in(root.join("tmp")).context("a temporary directory")?;
        let path = |name: &str| directory.path().join(name);
        // This is the path of the same directory as it is seen from within the root.
        let inside = Path::new("/").join(directory.path().strip_prefix(&root)?);
        let inside = inside.to_str().context("the name of a temporary directory")?;
        let entries = [MenuEntry { title: "cases", options }];
        iso::write(kernel, &hw_vectors::table(self.name), &entries, 0, &path("boot.iso"))?;
        let configuration = configuration(MODEL, self.cpus, inside);
        fs::write(path("bochsrc"), configuration).context("writing bochsrc")?;

        let mut command = BOCHS3.command("/usr/bin/bochs-bin");
        command.args(["-q", "-f"]).arg(format!("{inside}/bochsrc"));
        let file = File::create(path("output")).context("a temporary file")?;
        let (ending, took) = tools::run(&mut command, file, limit).context("running Bochs")?;
        let (end, emulator) = ending_of(&ending, read(&path("output")), read(&path("log")));
        Ok(EngineRun { log: read(&path("serial")), emulator, end, took })
    }
}
