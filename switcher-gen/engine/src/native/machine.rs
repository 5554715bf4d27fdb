//! A machine to run one image on.

use std::ops::Range;

use super::cpu::{Cpu, Interception, Limits, Memory};
use super::memory::{self, CodePages, Data, GuestCode, Mapping, ModesPage, PAGE};
use super::signal::{self, SignalStack};
use super::{Error, supported};
use crate::scenario::{Failure, Places, ScenarioEnd, Setup};
use switcher_gen::Image;
use switcher_gen::Variant;
use switcher_gen::arch::{PagingMode, Selectors};
use switcher_gen::layout::{Mode, PerCpu, Placement, PvcsV2026, Revision};

/// An image, loaded, with memory around it: a per-CPU block, a stack for frames, a PVCS and a page
/// of code for each of the guest's modes. Roots are numbers here: all of it is mapped all the time.
pub struct Machine {
    cpu: Box<Cpu>,
    signal_stack: SignalStack,
    /// The guest's pages of data, kept as long as the machine exists.
    data: Vec<Mapping>,
}

// The page in front of the code is where `Placement::PerCpu` has the block.
const _: () = assert!(PerCpu::BEFORE_CODE == PAGE as u64);

impl Machine {
    /// How many bytes of code a mode can have.
    pub const CODE_LEN: usize = Places::CODE_LEN;
    const STACK_LEN: usize = PAGE;

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
        let guest = GuestCode::Apart { smod: CodePages::new(&[])?, umod: CodePages::new(&[])? };
        Self::with_guest(image, guest)
    }

    /// As [`with_image`](Self::with_image), with the code of both modes in one page at `address`,
    /// which holds what the loaded root is to map there.
    ///
    /// # Errors
    /// As [`with_image`](Self::with_image), or if there is something at that address.
    pub fn with_code_at(image: Image, address: u64) -> Result<Self, Error> {
        Self::with_guest(image, GuestCode::OnePage(ModesPage::new(address)?))
    }

    fn with_guest(image: Image, guest: GuestCode) -> Result<Self, Error> {
        let interception = supported()?;
        if image.variant().pku() {
            return Err(Error::ProtectionKeys);
        }
        let selectors = image.variant().selectors();
        if selectors != Selectors::DEFAULT {
            return Err(Error::Selectors { selectors });
        }
        signal::install()?;
        let (mut code, per_cpu) = match image.variant().placement() {
            Placement::Gs => (CodePages::new(image.bytes())?, Data::new()?),
            Placement::PerCpu => CodePages::with_data_in_front(image.bytes())?,
        };
        let linked = image.link_without_hooks(code.address())?;
        // The linked code is as long as the bytes that the pages were made for.
        code.load(0, linked.bytes())?;
        let memory = Memory {
            code,
            guest,
            per_cpu,
            frame: Data::ending_stack(Self::STACK_LEN)?,
            pvcs: Data::new()?,
        };
        let cpu = Box::new(Cpu::new(image, &linked, memory, interception, memory::paging_mode()?));
        Ok(Self { cpu, signal_stack: SignalStack::new()?, data: Vec::new() })
    }

    /// Gives the guest a page of data at `address`, in both modes.
    ///
    /// # Errors
    /// If there is something at that address.
    pub fn map_data(&mut self, address: u64) -> Result<(), Error> {
        self.data.push(Mapping::at(address, PAGE)?);
        Ok(())
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

    /// The image that this machine runs.
    #[must_use]
    pub fn image(&self) -> &Image {
        self.cpu.image()
    }

    /// Where `mode` has its code.
    #[must_use]
    pub fn code(&self, mode: Mode) -> Range<u64> {
        self.places().code(mode)
    }

    /// Where everything lies, for engines that are to be compared with this one.
    #[must_use]
    pub fn places(&self) -> Places {
        let memory = &self.cpu.memory;
        Places {
            switcher: memory.code.address(),
            per_cpu: memory.per_cpu.address(),
            sp0: self.cpu.sp0(),
            pvcs: memory.pvcs.address(),
            smod: memory.guest.address(Mode::Smod),
            umod: memory.guest.address(Mode::Umod),
        }
    }

    /// Puts `program` into the code of `mode`, at `offset`. Elsewhere there is INT3.
    ///
    /// # Errors
    /// If it does not fit there, or if protections cannot be changed.
    pub fn load(&mut self, mode: Mode, offset: usize, program: &[u8]) -> Result<(), Error> {
        let loaded = self.cpu.memory.guest.load(mode, offset, program)?;
        if loaded { Ok(()) } else { Err(Error::ProgramTooLong) }
    }

    /// Changes the code that it runs, to break it on purpose.
    #[cfg(test)]
    pub(crate) fn overwrite(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        if self.cpu.overwrite(offset, bytes)? { Ok(()) } else { Err(Error::ProgramTooLong) }
    }

    /// Everything in order: no inhibitor, smod's entry and umod's RIP at the start of their code,
    /// ERETU being a SYSCALL at smod's entry, and a frame that enters `mode` by SYSRETQ.
    #[must_use]
    pub fn setup(&self, mode: Mode) -> Setup {
        Setup::new(self.image().variant(), &self.places(), mode)
    }

    /// Enters the guest as the host would, and comes back when the guest has exited.
    ///
    /// # Errors
    /// If the switcher did what no switcher may, or if this machine could not run it.
    pub fn run(&mut self, setup: &Setup) -> Result<ScenarioEnd, Error> {
        let gs_base = setup.gs_base;
        if !self.cpu.real_paging.is_canonical(gs_base) {
            return Err(Failure::NotOnThisCpu { address: gs_base }.into());
        }
        let mut per_cpu = self.cpu.memory.per_cpu.read();
        per_cpu.tss_extra = setup.extra;
        per_cpu.tss.sp0 = self.cpu.sp0().into();
        self.cpu.memory.per_cpu.write(per_cpu);
        let revision = self.image().variant().revision();
        let pvcs = &self.cpu.memory.pvcs;
        match revision {
            Revision::V2024 => pvcs.write(setup.pvcs),
            Revision::V2026 => pvcs.viewed_as().write(PvcsV2026::from_v2024(&setup.pvcs)),
        }
        self.cpu.memory.frame.write(setup.frame);
        self.cpu.prepare(gs_base, Limits { count: setup.count, traps: setup.traps });

        signal::run(&mut self.cpu, &self.signal_stack)?;

        let (gs_base, record) = self.cpu.finish()?;
        let mut extra = self.cpu.memory.per_cpu.read().tss_extra;
        let pvcs = &self.cpu.memory.pvcs;
        let pvcs = match revision {
            Revision::V2024 => pvcs.read(),
            Revision::V2026 => {
                // The switcher's scratch: no guest has anything there.
                extra.smod_rsp = setup.extra.smod_rsp;
                pvcs.viewed_as::<PvcsV2026>().read().to_v2024(&setup.pvcs)
            }
        };
        Ok(ScenarioEnd {
            frame: self.cpu.memory.frame.read(),
            cr2: self.cpu.cr2(),
            // Linux does not show DR6 to user mode.
            dr6: None,
            gs_base,
            // A native run does not change PKRU.
            pkru: setup.pkru,
            extra,
            pvcs,
            crossings: record.crossings,
            crossings_total: record.crossings_total,
            cr3_loads: record.cr3_loads,
            emulated: record.emulated,
            traps: record.traps,
        })
    }
}
