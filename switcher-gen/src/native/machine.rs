//! A machine to run one image on: what a run starts from and what comes of it.

use std::ops::Range;

use super::cpu::{Cpu, Interception, Limits, Memory};
use super::failure::Failure;
use super::memory::{self, Code, Data, PAGE};
use super::record::{Crossing, Emulated};
use super::signal::{self, SignalStack};
use super::{Error, supported};
use crate::arch::{Cr3, HostState, PagingMode, Pcid, RFlags, Selectors};
use crate::image::Image;
use crate::layout::{Mode, PtRegs, Pvcs, TssExtra};
use crate::variant::Variant;

/// What a run starts from. [`Machine::setup`] makes one in which everything is in order.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What `switcher_enter_guest` finds below sp0.
    pub frame: PtRegs,
    /// The guest's GS base. Must be canonical, as every GS base is.
    pub gs_base: u64,
    /// What the host has prepared.
    pub extra: TssExtra,
    /// The page shared with the guest.
    pub pvcs: Pvcs,
    /// Execute the switcher one instruction at a time and count them.
    pub count: bool,
    /// How many signals to take before the run is given up: 10 for a round trip at full speed.
    pub traps: u64,
}

/// What came of a run that got back to the host with everything a host needs in order.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The exit frame: the guest's registers and why it exited.
    pub frame: PtRegs,
    /// The guest's GS base.
    pub gs_base: u64,
    /// What the switcher has left.
    pub extra: TssExtra,
    /// The page shared with the guest.
    pub pvcs: Pvcs,
    /// The ways taken through the switcher, the first 256 of them.
    pub crossings: Vec<Crossing>,
    /// How many there were.
    pub crossings_total: u64,
    /// The values loaded into CR3, the first 256 of them.
    pub cr3_loads: Vec<u64>,
    /// How often which instruction was emulated.
    pub emulated: Emulated,
    /// The signals it took.
    pub traps: u64,
}

/// An image, loaded, with memory around it: a per-CPU block, a stack for frames, a PVCS and a page
/// of code for each of the guest's modes. Roots are numbers here: all of it is mapped all the time.
pub struct Machine {
    cpu: Box<Cpu>,
    signal_stack: SignalStack,
}

impl Machine {
    /// How many bytes of code a mode can have.
    pub const CODE_LEN: usize = PAGE;
    const STACK_LEN: usize = PAGE;
    const HOST_ROOT: u64 = 0x1000;
    const SMOD_ROOT: u64 = 0x2000;
    const UMOD_ROOT: u64 = 0x3000;
    const TRAPS: u64 = 100_000;

    /// A machine for `variant` as the emitters make it.
    ///
    /// # Errors
    /// If this machine cannot do it, or memory cannot be had.
    pub fn new(variant: &Variant) -> Result<Self, Error> {
        Self::with_image(Image::new(variant)?)
    }

    /// A machine for an image, which need not be right: what it does wrong ends a run as a
    /// [`Failure`]. Code that overwrites memory of this process is beyond that.
    ///
    /// # Errors
    /// If this machine cannot do it, or memory cannot be had.
    pub fn with_image(image: Image) -> Result<Self, Error> {
        let interception = supported()?;
        let selectors = image.variant().selectors();
        if selectors != Selectors::DEFAULT {
            return Err(Error::Selectors { selectors });
        }
        signal::install()?;
        let mut code = Code::new(image.bytes())?;
        let linked = image.link(code.address(), |_| None)?;
        // The same length that the pages were made for.
        code.load(0, linked.bytes())?;
        let memory = Memory {
            code,
            smod: Code::new(&[])?,
            umod: Code::new(&[])?,
            per_cpu: Data::new()?,
            frame: Data::ending_stack(Self::STACK_LEN)?,
            pvcs: Data::new()?,
        };
        let cpu = Box::new(Cpu::new(image, memory, interception, memory::paging_mode()?));
        Ok(Self { cpu, signal_stack: SignalStack::new()? })
    }

    /// How a guest's SYSCALL is kept from this machine's own kernel.
    #[must_use]
    pub fn interception(&self) -> Interception {
        self.cpu.interception
    }

    /// The paging mode this CPU is in. An image for the other mode runs as well, but ends with
    /// [`Failure::NotOnThisCpu`] where an address matters on which the two differ.
    #[must_use]
    pub fn real_paging(&self) -> PagingMode {
        self.cpu.real_paging
    }

    /// Keeps SYSCALLs from the kernel by stepping even if there is a faster way.
    pub fn intercept_by_stepping(&mut self) {
        self.cpu.interception = Interception::Stepping;
    }

    /// What runs here.
    #[must_use]
    pub fn image(&self) -> &Image {
        self.cpu.image()
    }

    /// Where `mode` has its code.
    #[must_use]
    pub fn code(&self, mode: Mode) -> Range<u64> {
        let start = match mode {
            Mode::Smod => self.cpu.memory.smod.address(),
            Mode::Umod => self.cpu.memory.umod.address(),
        };
        start..start + Self::CODE_LEN as u64
    }

    /// Puts `program` into the code of `mode`, at `offset`. Elsewhere there is INT3.
    ///
    /// # Errors
    /// If it does not fit there, or if protections cannot be changed.
    pub fn load(&mut self, mode: Mode, offset: usize, program: &[u8]) -> Result<(), Error> {
        let code = match mode {
            Mode::Smod => &mut self.cpu.memory.smod,
            Mode::Umod => &mut self.cpu.memory.umod,
        };
        if code.load(offset, program)? { Ok(()) } else { Err(Error::ProgramTooLong) }
    }

    /// Breaks the code it runs.
    #[cfg(test)]
    pub(super) fn overwrite(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        if self.cpu.memory.code.load(offset, bytes)? { Ok(()) } else { Err(Error::ProgramTooLong) }
    }

    /// Everything in order: no inhibitor, smod's entry and umod's RIP at the start of their code,
    /// ERETU being a SYSCALL at smod's entry, and a frame that enters `mode` by SYSRETQ.
    #[must_use]
    pub fn setup(&self, mode: Mode) -> Setup {
        let axes = self.image().variant().axes();
        // PCIDs as a host would have them: its own flushed when loaded, the guest's never.
        let state = HostState { paging: axes.paging, pcid: axes.pcid, ibt: axes.ibt };
        let root = |address, pcid| {
            // Page-aligned and low, and a small PCID: neither is ever refused.
            let root = Cr3::new(address).unwrap_or(Cr3::NONE);
            match (state.pcid_enabled(), Pcid::new(pcid)) {
                (Some(enabled), Ok(pcid)) => root.with_pcid(pcid, enabled).without_flush(enabled),
                _ => root,
            }
        };
        let (smod, umod) = (self.code(Mode::Smod), self.code(Mode::Umod));
        let mut extra = TssExtra::default();
        extra.host_cr3 = root(Self::HOST_ROOT, 1);
        extra.smod_cr3 = root(Self::SMOD_ROOT, 2);
        extra.umod_cr3 = root(Self::UMOD_ROOT, 3);
        extra.enter_cr3 = match mode {
            Mode::Smod => extra.smod_cr3,
            Mode::Umod => extra.umod_cr3,
        };
        extra.switch_flags = mode.flag();
        extra.pvcs = self.cpu.memory.pvcs.address();
        extra.retu_rip = smod.start + SYSCALL_LEN;
        extra.smod_entry = smod.start;

        let selectors = self.image().variant().selectors();
        let flags = RFlags::GUEST_FIXED.bits();
        let rip = self.code(mode).start;
        let (cs, ss) = (selectors.user_cs().into(), selectors.user_ds().into());
        let frame =
            PtRegs { rip, rcx: rip, cs, ss, eflags: flags, r11: flags, ..PtRegs::default() };
        let mut pvcs = Pvcs::default();
        pvcs.user_cs = selectors.user_cs();
        pvcs.user_ss = selectors.user_ds();
        pvcs.eflags = RFlags::GUEST_FIXED.imm32().cast_unsigned();
        pvcs.r11 = flags;
        pvcs.rip = umod.start;
        pvcs.rcx = umod.start;
        Setup { frame, gs_base: 0, extra, pvcs, count: false, traps: Self::TRAPS }
    }

    /// Enters the guest as the host would, and comes back when the guest has exited.
    ///
    /// # Errors
    /// If the switcher did what no switcher may, or if this machine could not run it.
    pub fn run(&mut self, setup: &Setup) -> Result<Outcome, Error> {
        let gs_base = setup.gs_base;
        if !self.cpu.real_paging.is_canonical(gs_base) {
            return Err(Failure::NotOnThisCpu { address: gs_base }.into());
        }
        let mut per_cpu = self.cpu.memory.per_cpu.read();
        per_cpu.tss_extra = setup.extra;
        per_cpu.tss.sp0 = self.cpu.sp0().into();
        self.cpu.memory.per_cpu.write(per_cpu);
        self.cpu.memory.pvcs.write(setup.pvcs);
        self.cpu.memory.frame.write(setup.frame);
        self.cpu.prepare(gs_base, Limits { count: setup.count, traps: setup.traps });

        signal::run(&mut self.cpu, &self.signal_stack)?;

        let (gs_base, record) = self.cpu.finish()?;
        Ok(Outcome {
            frame: self.cpu.memory.frame.read(),
            gs_base,
            extra: self.cpu.memory.per_cpu.read().tss_extra,
            pvcs: self.cpu.memory.pvcs.read(),
            crossings: record.crossings,
            crossings_total: record.crossings_total,
            cr3_loads: record.cr3_loads,
            emulated: record.emulated,
            traps: record.traps,
        })
    }
}

/// Bytes of a SYSCALL.
pub(super) const SYSCALL_LEN: u64 = 2;
