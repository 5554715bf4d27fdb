//! The cases that only the kernel runs: its self tests, and those about the host around a switcher.
//!
//! They are written down once, in tables of the kernel's own, each beside the function that runs
//! it: `hw-tests/kernel/src/selftest.rs` and the files of `hw-tests/kernel/src/cases`. The build
//! script of this crate takes the lists here from there.

use switcher_gen::Hazard;

/// A test of the kernel itself, which it runs before any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SelfTest {
    /// The name in reports.
    pub name: &'static str,
    /// What a pass shows.
    pub shown: &'static str,
}

/// A case about the host around a switcher: with several CPUs and page tables of its own, which
/// only the kernel has. It runs them after the case list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCase {
    /// The name in reports.
    pub name: &'static str,
    /// What a pass shows.
    pub shown: &'static str,
    /// The rows of spec/hazards.md that the case tries.
    pub rows: &'static [Hazard],
    /// How many CPUs it takes at least.
    pub cpus: usize,
    /// What else an engine must have for it.
    pub needs: &'static [Need],
}

/// What not every engine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A local APIC, to send interrupts with.
    LocalApic,
    /// Breakpoints on execution from which the CPU comes back.
    Breakpoints,
    /// A CPU that tracks indirect branches.
    BranchTracking,
    /// A TSC that counts instructions.
    CountedInstructions,
}

include!(concat!(env!("OUT_DIR"), "/cases.rs"));
