//! What happened in a run: the ways taken through the switcher, and what was emulated.

use switcher_gen::layout::SwitchFlags;

/// How control got into the switcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WayIn {
    /// The host's call.
    Enter,
    /// SYSCALL, with the mode and the inhibitors that were set then.
    Syscall(SwitchFlags),
    /// SYSCALL from 32-bit code, where the CPU has it, with the mode and the inhibitors.
    SyscallCompat(SwitchFlags),
    /// An event of the guest, through the host's handler.
    Event,
}

/// How control left the switcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WayOut {
    /// SYSRETQ to the guest.
    Sysretq,
    /// IRETQ to the guest, even if it faulted.
    Iretq,
    /// Return to the host.
    Host,
}

/// One way through the switcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Crossing {
    /// How control got into the switcher.
    pub way_in: WayIn,
    /// How control left the switcher.
    pub way_out: WayOut,
    /// Executed instructions of the switcher, SYSRETQ and RET included, IRETQ, the host's CALL and
    /// the guest's SYSCALL not. Zero unless the run counts.
    pub executed: u64,
}

/// How often each instruction was emulated, because it faults or means something else at CPL 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "instructions are what they are called")]
pub struct Emulated {
    pub syscall: u64,
    pub swapgs: u64,
    pub mov_cr3: u64,
    pub sysretq: u64,
    pub mov_ss: u64,
    pub wrmsr: u64,
    /// Only where SYSCALLs are found by stepping.
    pub iretq: u64,
}

/// Crossings and CR3 loads are kept up to this many of each; all are counted.
const KEPT: usize = 256;

/// What happened in a run.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) crossings: Vec<Crossing>,
    pub(crate) crossings_total: u64,
    pub(crate) cr3_loads: Vec<u64>,
    pub(crate) emulated: Emulated,
    pub(crate) traps: u64,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            // The native engine's signal handler must not allocate.
            crossings: Vec::with_capacity(KEPT),
            crossings_total: 0,
            cr3_loads: Vec::with_capacity(KEPT),
            emulated: Emulated::default(),
            traps: 0,
        }
    }

    pub(crate) fn crossed(&mut self, crossing: Crossing) {
        self.crossings_total += 1;
        if self.crossings.len() < KEPT {
            self.crossings.push(crossing);
        }
    }

    pub(crate) fn loaded_cr3(&mut self, value: u64) {
        self.emulated.mov_cr3 += 1;
        if self.cr3_loads.len() < KEPT {
            self.cr3_loads.push(value);
        }
    }
}
