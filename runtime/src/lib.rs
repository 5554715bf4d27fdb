//! The part of the switcher toolkit that is linked into a host hypervisor.
//!
//! `no_std` + `alloc`, and no OS assumed: the host brings memory ([`CodeMapping`]), page tables,
//! GDT, TSS and IDT. In the order of use:
//!
//! 1. [`HostFeatures::detect`](Detect::detect) asks this CPU; [`Variant::for_host`] chooses.
//! 2. [`Switcher::assemble`] emits the code *here, now, for this host*, and maps it: writable while
//!    it is written, executable afterwards, never both.
//! 3. [`Switcher::install`] programs one CPU to use it, after checking all it can check.
//! 4. [`Cpu::enter`] runs a [`Guest`] until it exits, and says why ([`Exit`]).
//! 5. [`Cpu::uninstall`] gives the CPU back as it was, [`Switcher::unload`] the memory.
//!
//! # What the host must see to
//!
//! The switcher runs at CPL 0 on a *guest's* page tables. Its soundness therefore rests on things
//! only the host can arrange; each is the safety contract of the function that takes it:
//!
//! * every [`GuestRoot`] maps the switcher, the per-CPU block, the stacks, IDT, GDT and event
//!   handlers exactly as the host's root does, for the supervisor alone;
//! * the [`PvcsPage`] is mapped for the supervisor in every guest root;
//! * NMI, #MC, #DB and #DF use IST stacks. Handlers of events that interrupted CPL 3 build a
//!   [`PtRegs`](switcher_gen::layout::PtRegs), execute SWAPGS and jump to
//!   [`Switcher::return_from_guest`], all in assembly, as DF and AC are still the guest's; a fault
//!   at [`Switcher::iretq`] is the guest's; a #DB inside the switcher is ignored;
//! * an NMI that ends a guest's run leaves NMIs blocked, because the exit is no IRET: a host that
//!   gets [`Exit::Nmi`] executes an IRET to itself before it goes on. An NMI that
//!   interrupts the *switcher* must restore CR3, GS base and all registers:
//!   [`Switcher::is_in`] tells where;
//! * a guest's breakpoints are live only around [`Cpu::enter`], and only as [`GuestDebug`] makes them;
//! * FPU, SSE and segment registers other than CS, SS and the GS base are the host's to
//!   switch: see [`Cpu::enter`].
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod cpu;
mod debug;
mod detect;
mod enter;
mod exit;
mod guest;
mod load;
mod mapping;
mod pcid;

pub use cpu::{Cpu, InstallError, UninstallError};
pub use debug::{Access, DebugError, GuestDebug, Width};
pub use detect::Detect;
pub use enter::EnterError;
pub use exit::{Detail, Exception, Exit};
pub use guest::{Guest, GuestError, GuestRoot, PvcsPage};
pub use load::{CodeMapping, LoadError, Protection, StillInstalled, Switcher};
pub use mapping::{Mapping, MappingList, Purpose, Rights};
pub use pcid::{GuestPcid, NotAGuests};
pub use switcher_gen::arch::HostFeatures;
pub use switcher_gen::layout::Mode;
pub use switcher_gen::{self, Variant};
