//! Whole runs on the model of the CPU: the host's call of `switcher_enter_guest`, the switcher, the
//! guest's own instructions at CPL 3, SYSCALLs and events, until the call returns.
//!
//! This engine depends on no CPU. It has both vendors, both paging modes, ring 0 and CPL 3 with
//! memory of their own, each mode of the guest with its own pages at the same addresses. It takes
//! the same [`Setup`]s as [`native`](crate::native) and gives the same
//! [`ScenarioEnd`](crate::scenario::ScenarioEnd)s.
//!
//! | file | purpose |
//! |---|---|
//! | `run` | from one ring to the other |
//! | `guest` | CPL 3: fetches, faults, traps; what a CPU does around an instruction |
//! | `watch` | what must never happen, checked at every instruction of the switcher |
//! | `bytes` | structs in memory |
//!
//! **Memory.** Ring 0 reaches the per-CPU block, the PVCS, the frame's stack and an IST stack under
//! any root, and the host's own stack under the host's; nothing of the guest's, as under SMAP. CPL
//! 3 reaches the pages of the root that is loaded. Any other access is a fault.
//!
//! **Not modelled**: interrupts and NMIs, #AC, 32-bit code beyond SYSCALL and a few traps, and
//! whatever [`machine`](switcher_model) has no semantics for. Each is an [`Error`] if it is met.

mod bytes;
mod guest;
mod run;
mod watch;

use std::ops::Range;

use crate::scenario::{Failure, Places, Setup};
use guest::Space;
use switcher_gen::Variant;
use switcher_gen::arch::RFlags;
use switcher_gen::asm::{AsmError, Label};
use switcher_gen::layout::{AsmLayout, Mode, PerCpu, Placement, Pvcs};
use switcher_gen::{Image, LinkError};
use switcher_model::program::Program;
use switcher_model::{
    Concrete, CpuModel, EFER, Flags, Memory, Msrs, Region, RegionName, State, Stuck, Undeliverable,
    cr4,
};
use watch::Watch;

/// Why a run did not come to an end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The switcher did what no switcher may.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The switcher has changed memory that is the host's alone.
    #[error("the switcher wrote to {region}+{offset:#x}")]
    HostMemory {
        /// The name of the region.
        region: &'static str,
        /// The first byte that differs, from the start of the region.
        offset: usize,
    },
    /// The switcher came to an instruction whose effect is not known.
    #[error(transparent)]
    Stuck(#[from] Stuck<u64>),
    /// An event of the guest has no stack to land on.
    #[error(transparent)]
    Undeliverable(#[from] Undeliverable),
    /// It executed HLT.
    #[error("switcher+{offset:#x}: HLT")]
    Halted {
        /// Where, from the start of the image.
        offset: u64,
    },
    /// The guest came to an instruction or a situation that is not modelled.
    #[error("the guest at {rip:#x}: {what} is not modelled")]
    NotModelled {
        /// The value of RIP.
        rip: u64,
        /// The instruction, and why it cannot be executed.
        what: String,
    },
    /// No CPU would load this GS base.
    #[error("the guest's GS base {address:#x} is not canonical")]
    GsBase {
        /// The base.
        address: u64,
    },
    /// The guest has not exited within the limit.
    #[error("still running after {instructions} instructions")]
    Endless {
        /// The number of instructions that were executed.
        instructions: u64,
    },
    /// Code is to be placed where the mode has no page of code.
    #[error("{mode:?} has no page of code for {len} bytes at {address:#x}")]
    NoPage {
        /// The mode whose code it is.
        mode: Mode,
        /// The address.
        address: u64,
        /// The number of bytes.
        len: usize,
    },
    /// An emitter is wrong.
    #[error(transparent)]
    Asm(#[from] AsmError),
    /// The image refers to a host, which does not exist here, or it cannot lie at the address that
    /// it is given.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// What a guest's page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Instructions: readable, not writable; INT3 where nothing was loaded.
    Code,
    /// Data: readable and writable, not executable.
    Data,
}

/// Indices of the regions that ring 0 reaches; the hottest first.
mod region {
    pub(super) const PER_CPU: usize = 0;
    pub(super) const FRAME: usize = 1;
    pub(super) const PVCS: usize = 2;
    pub(super) const HOST: usize = 3;
    pub(super) const IST: usize = 4;
}

const STACK_LEN: usize = 4096;
/// RSP when the call of `switcher_enter_guest` has returned.
const HOST_STACK: u64 = 0xFFFF_C900_0000_4000;
/// Where it returns to.
const LANDING: u64 = 0xFFFF_FFFF_8100_0000;
/// The end of the stack of events that have one of their own.
const IST_STACK: u64 = 0xFFFF_C900_0001_4000;

/// An image, loaded, with a host, a guest and memory around it.
#[derive(Debug)]
pub struct Interpreter {
    d: Concrete,
    image: Image,
    model: CpuModel,
    places: Places,
    /// The host's GS base.
    host_gs: u64,
    switcher: Program,
    spaces: [Space; 2],
    breakpoint: Option<u64>,
    limit: u64,
    state: State<Concrete>,
    watch: Watch,
    /// The mode whose memory the CPU reaches: that of ring 0 is then in its [`Space`].
    inside: Option<usize>,
    run: run::RunState,
}

impl Interpreter {
    /// How many bytes of code a mode has to begin with.
    pub const CODE_LEN: usize = Places::CODE_LEN;
    const LIMIT: u64 = 100_000_000;

    /// Addresses as a host might choose them, canonical in both paging modes.
    pub const PLACES: Places = Places {
        switcher: 0xFFFF_FE80_0000_0000,
        per_cpu: 0xFFFF_FE00_0000_0000,
        sp0: 0xFFFF_FE00_0000_4000,
        pvcs: 0xFFFF_FE00_0001_0000,
        smod: 0x4000_0000_0000,
        umod: 0x4000_0010_0000,
    };

    /// A machine for `variant` as the emitters make it.
    ///
    /// # Errors
    /// Only if an emitter is wrong.
    pub fn new(variant: &Variant) -> Result<Self, Error> {
        Self::with_image(Image::new(variant)?, Self::PLACES)
    }

    /// A machine for an image, which need not be right: what it does wrong ends a run as an
    /// [`Error`]. The two modes' code may be at the same address. With [`Placement::PerCpu`], the
    /// per-CPU block lies in front of the code, whatever `places` says of it.
    ///
    /// # Errors
    /// If the image cannot lie there.
    pub fn with_image(image: Image, mut places: Places) -> Result<Self, Error> {
        /// What a host may have there if no switcher uses it.
        const OF_NO_SWITCHER: u64 = 0xFFFF_8880_0000_1000;
        let host_gs = match image.variant().placement() {
            Placement::Gs => places.per_cpu,
            Placement::PerCpu => {
                places.per_cpu = places.switcher.wrapping_sub(PerCpu::BEFORE_CODE);
                OF_NO_SWITCHER
            }
        };
        let linked = image.link_without_hooks(places.switcher)?;
        let switcher = Program::new(places.switcher, linked.bytes().to_vec());
        let model = CpuModel::from(image.variant());
        let selectors = image.variant().selectors();
        let d = Concrete::default();
        let regions = vec![
            Region::new(RegionName::PerCpu, places.per_cpu, 0, vec![0; PerCpu::LAYOUT.size]),
            stack(RegionName::Sp0Stack, places.sp0),
            Region::new(RegionName::Pvcs, places.pvcs, 0, vec![0; Pvcs::LAYOUT.size]),
            stack(RegionName::HostStack, HOST_STACK),
            stack(RegionName::IstStack, IST_STACK),
        ];
        let watch = Watch::new(&image, places.switcher, watch::stacks(&regions));
        let state = State {
            gpr: [0; 16],
            rip: 0,
            flags: Flags::new(&d, RFlags::FIXED.bits()),
            cs: selectors.kernel_cs().into(),
            ss: selectors.kernel_ds().into(),
            cpl: 0,
            gs_base: 0,
            inactive_gs_base: 0,
            fs_base: 0,
            cr3: 0,
            cr4: cr4(image.variant()),
            pkru: 0,
            nmi_blocked: false,
            msrs: Msrs {
                star: selectors.star().bits(),
                lstar: linked.address(Label::Syscall64),
                cstar: linked.address(Label::SyscallCompat),
                sfmask: RFlags::SYSCALL_CLEARS.bits(),
                spec_ctrl: 0,
                efer: EFER,
            },
            memory: Memory { regions, racing: false },
        };
        let mut machine = Self {
            d,
            model,
            places,
            host_gs,
            switcher,
            spaces: [Space::default(), Space::default()],
            breakpoint: None,
            limit: Self::LIMIT,
            state,
            watch,
            inside: None,
            run: run::RunState::default(),
            image,
        };
        machine.map(Mode::Smod, places.smod, Self::CODE_LEN, PageKind::Code);
        machine.map(Mode::Umod, places.umod, Self::CODE_LEN, PageKind::Code);
        Ok(machine)
    }

    /// What runs here.
    #[must_use]
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// Where everything lies.
    #[must_use]
    pub const fn places(&self) -> Places {
        self.places
    }

    /// The registers that decide where a guest's SYSCALL leads.
    #[must_use]
    pub const fn msrs(&self) -> &Msrs<Concrete> {
        &self.state.msrs
    }

    /// The CPU.
    #[must_use]
    pub const fn model(&self) -> &CpuModel {
        &self.model
    }

    /// Where `mode` has the code that it has to begin with.
    #[must_use]
    pub const fn code(&self, mode: Mode) -> Range<u64> {
        self.places.code(mode)
    }

    /// Gives `mode` a page, or several. Where it has one already, that one stays in front.
    pub fn map(&mut self, mode: Mode, start: u64, len: usize, kind: PageKind) {
        self.spaces[mode as usize].map(start, len, kind);
    }

    /// Puts `program` into the code of `mode`, at `offset`. Elsewhere there is INT3.
    ///
    /// # Errors
    /// If it does not fit there.
    pub fn load(&mut self, mode: Mode, offset: usize, program: &[u8]) -> Result<(), Error> {
        let start = self.places.code(mode).start;
        self.write_code(mode, start.wrapping_add(offset as u64), program)
    }

    /// Puts `program` into a page of code of `mode`.
    ///
    /// # Errors
    /// If `mode` has none there that is large enough.
    pub fn write_code(&mut self, mode: Mode, address: u64, program: &[u8]) -> Result<(), Error> {
        let written = self.spaces[mode as usize].write_code(address, program);
        written.then_some(()).ok_or(Error::NoPage { mode, address, len: program.len() })
    }

    /// Fills all of the guest's code with INT3 again.
    pub fn clear_code(&mut self) {
        self.spaces.iter_mut().for_each(Space::clear_code);
    }

    /// Sets the instruction breakpoint of DR0 for CPL 3, or clears it.
    pub const fn set_breakpoint(&mut self, at: Option<u64>) {
        self.breakpoint = at;
    }

    /// Gives the GDT two more descriptors: see [`CpuModel::aliases`].
    pub const fn set_aliases(&mut self, aliases: (u16, u16)) {
        self.model.aliases = Some(aliases);
    }

    /// How many instructions a run may take before it is given up: 100 million, to begin with.
    pub const fn set_limit(&mut self, instructions: u64) {
        self.limit = instructions;
    }

    /// Breaks the code it runs.
    ///
    /// # Panics
    /// If the bytes are not all within the image.
    pub fn overwrite(&mut self, offset: usize, bytes: &[u8]) {
        self.switcher.patch(self.places.switcher + offset as u64, bytes);
    }

    /// Everything in order: see [`Setup::new`].
    #[must_use]
    pub fn setup(&self, mode: Mode) -> Setup {
        Setup::new(self.image.variant(), &self.places, mode)
    }

    /// How many instructions the last run took, the guest's included.
    #[must_use]
    pub const fn instructions(&self) -> u64 {
        self.run.instructions
    }

    /// How often the last run executed the instruction at each offset of the image.
    #[must_use]
    pub fn hits(&self) -> &[u64] {
        &self.watch.hits
    }
}

/// A stack that ends at `end`.
fn stack(name: RegionName, end: u64) -> Region<Concrete> {
    Region::new(name, end, -(STACK_LEN as i64), vec![0; STACK_LEN])
}
