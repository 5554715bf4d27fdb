//! The part of the switcher toolkit that is linked into a host hypervisor.
//!
//! `no_std` + `alloc`, and no OS assumed: the host brings memory ([`CodeMapping`]), page tables,
//! GDT and TSS. In the order of use:
//!
//! 1. [`HostFeatures::detect`](Detect::detect) asks this CPU; [`Variant::for_host`] chooses.
//! 2. [`Switcher::assemble`] emits the code *here, now, for this host*, and maps it: writable while
//!    it is written, executable afterwards, never both.
//! 3. [`Switcher::prepare`] finds out, once for each CPU, whether that CPU can use it.
//! 4. [`Prepared::activate`] programs the CPU: once, or around each run.
//! 5. [`Cpu::enter`] runs a [`Guest`] until it exits, and says why ([`Exit`]).
//! 6. [`Cpu::deactivate`] gives the host its registers back; [`Prepared::release`] removes what
//!    guests have left in the TLB and the predictors; [`Switcher::unload`] gives the memory back.
//!
//! This program does it for a host that has its memory, its roots and its GDT already
//! (`examples/minimal-host` is a complete host):
//!
//! ```no_run
//! use core::ptr::NonNull;
//! use switcher_runtime::switcher_gen::arch::{Cr3, Selectors};
//! use switcher_runtime::switcher_gen::layout::PerCpu;
//! use switcher_runtime::{
//!     CodeMapping, Detect, Exit, Guest, GuestRoot, Hooks, HostFeatures, Mode, Switcher, Tables,
//!     Variant,
//! };
//!
//! fn run(
//!     memory: &mut impl CodeMapping,
//!     hooks: &Hooks,
//!     block: NonNull<PerCpu>,
//!     root: Cr3,
//! ) -> Result<Exit, &'static str> {
//!     let features = HostFeatures::detect();
//!     let variant =
//!         Variant::for_host(&features, Selectors::DEFAULT).map_err(|_| "an unfit host")?;
//!     // Code that is not on record as proved is refused here.
//!     let switcher = Switcher::assemble(&variant, hooks, memory).map_err(|_| "not loaded")?;
//!     // SAFETY: the block is this CPU's alone, its TSS is loaded, and it lies where the code
//!     // expects it.
//!     let prepared = unsafe { switcher.prepare(block, Tables::Hosts) };
//!     let prepared = prepared.map_err(|_| "an unfit CPU")?;
//!     // SAFETY: nothing else writes the MSRs of SYSCALL, and no other code at CPL 3 executes one.
//!     let mut cpu = unsafe { prepared.activate() }.map_err(|_| "not on this CPU")?;
//!     let mut guest = Guest::new(features.state().paging);
//!     // SAFETY: the root maps what `Cpu::mappings` lists, for the supervisor alone.
//!     guest.set_root(Mode::Smod, Some(unsafe { GuestRoot::new(root) }));
//!     guest.regs.rip = 0x40_0000;
//!     cpu.enter(&mut guest).map_err(|_| "not entered")
//! }
//! ```
//!
//! # What the host must see to
//!
//! The switcher runs at CPL 0 on a *guest's* page tables. Its soundness therefore rests on things
//! only the host can arrange; each is the safety contract of the function that takes it:
//!
//! * every [`GuestRoot`] maps what [`Cpu::mappings`] lists exactly as the host's root does, for the
//!   supervisor alone;
//! * the [`PvcsPage`] is mapped for the supervisor in every guest root;
//! * of any two roots that are loaded on a CPU, the host's own among them, an entry at an address
//!   that the other one does not translate alike is not global;
//! * a CPU is not reset, suspended or taken offline while a switcher is active there, or is
//!   declared [gone](Cpu::gone) afterwards;
//! * what [`Switcher::prepare`] has found in the GDT, EFER, S_CET and IA32_USER_MSR_CTL stays so,
//!   and with CR4.PCIDE, the [`Switcher::pcids`] are the guests' alone;
//! * the TSS names four stacks, IST 1 to 4, for #DF, NMI, #DB and #MC, each of at least
//!   [`MappingList::LEAST_STACK`] bytes under an [`IstTop`](switcher_gen::layout::IstTop), where
//!   the TSS points, and what the host's [`Hooks`] use;
//! * FPU, SSE and further state that XSAVE knows is the host's to switch: see [`Cpu::enter`].
//!
//! [`CPU_STATE`] says who sees to each register and structure that CPL 3 can see, change or be
//! ruled by, as far as the manuals of Intel and AMD tell: the switcher, [`Switcher::prepare`],
//! [`Cpu::enter`], or the host, by a duty with a name. The checks are in that table.
//!
//! # Which events come to whom
//!
//! [`Cpu::enter`] loads an IDT of the switcher's, whose entries are emitted and proved with the
//! rest, and puts the host's own back before it returns. The host keeps its IDT for itself; a
//! guest's root does not map it, nor its handlers. While the switcher's is loaded:
//!
//! * whatever interrupts *a guest* ends its run, and is an [`Exit`]; after an NMI, NMIs are blocked
//!   until the host has handled it;
//! * an NMI or a machine check that interrupts *ring 0*, which is the switcher or the few
//!   instructions of `enter` around it, calls [`Hooks::nmi`] or [`Hooks::machine_check`] on the
//!   host's root, with the host's GS and after the mitigations of an exit, and leaves everything as
//!   it was;
//! * what the host's own code raises there goes to [`Hooks::exception`], if there is such a
//!   handler;
//! * anything else in ring 0 calls [`Hooks::fatal`].
//!
//! While the host's is loaded, before and after, NMIs and machine checks come to the host's own
//! entries, on the same stacks. Interrupts are off all the time, so each NMI comes to one or the
//! other.
//!
//! # What may grow
//!
//! Errors and what they hold are `#[non_exhaustive]`: later versions check more. [`Exit`] is not,
//! nor is what a variant is chosen from ([`Variant`], [`switcher_gen`]): a host that does not
//! handle a new kind of exit would be wrong, and its compiler must say so.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod barrier;
mod cpu;
mod debug;
mod detect;
mod enter;
mod exchange;
mod exit;
mod fit;
mod guest;
mod hand_on;
mod has;
mod hooks;
mod idt;
mod load;
mod mapping;
mod nmi;
mod pcid;
mod predictors;
mod prepare;
mod refused;
mod registers;
mod state;
mod tables;
mod work;

pub use cpu::{Cpu, DeactivateError};
pub use debug::{Access, DebugError, GuestDebug, Width};
pub use detect::Detect;
pub use enter::EnterError;
pub use exit::{DebugCauses, Detail, Exception, Exit};
pub use fit::PrepareError;
pub use guest::{DataSelectors, Guest, GuestError, GuestRoot, PvcsPage};
pub use hand_on::{HandOnError, HostEvent, HostHandler};
pub use hooks::{ExceptionHandler, FatalHook, Hook, Hooks, ReturnThunk};
pub use load::{CodeMapping, LoadError, Protection, Reserved, StillPrepared, Switcher};
pub use mapping::{Mapping, MappingList, Purpose, Rights};
pub use pcid::{BadPcids, GuestPcid, GuestPcids, NotAGuests};
pub use predictors::{Barriers, Domain};
pub use prepare::{Prepared, WrongCpu};
pub use refused::Refused;
pub use registers::DescriptorTablePointer;
pub use state::{CPU_STATE, Care, Entry, State, StateError, document, exchanged};
pub use switcher_gen::arch::HostFeatures;
pub use switcher_gen::layout::Mode;
pub use switcher_gen::{self, ReturnMethod, Variant, Why};
pub use tables::{Tables, TablesError};
pub use work::ExitWork;
