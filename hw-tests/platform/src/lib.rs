//! Bare metal for hosts of a switcher: everything that a hypervisor needs below itself on a PC.
//!
//! The test kernel and the smallest hypervisor of the examples use it; a hypervisor of your own may
//! begin here, and replace parts of it later. As none of it runs under an operating system, its
//! example is a program that the tests build and boot: `examples/minimal-host/src/main.rs`.
//!
//! A binary names its main function with [`kernel_main!`] and links with this package's linker
//! script (`build.rs`). By the time `main` is called,
//!
//! * the CPU is in long mode with the paging mode that the command line asks for; SSE, NX and WP
//!   are on, and SMEP and SMAP where the CPU has them,
//! * memory is identity-mapped below 512 GiB, for the supervisor only, with each of the image's
//!   sections protected by its kind; frames, a heap and guest address spaces can be had,
//! * GDT, TSS and IDT are loaded, the TSS inside the per-CPU block, and every event from CPL 3
//!   becomes a `PtRegs`,
//! * the serial port works ([`serial_println!`]).
//!
//! # Rules on which everything here rests
//! * Interrupts are off outside guests. The interrupt controller is masked throughout.
//! * One CPU brings the platform up and runs `main`; each other CPU runs one job for it at a time
//!   ([`smp`]).
//! * Any event at CPL 0 that is not the guest's is fatal, except those that end a self test's own
//!   programs. So no code here is interrupted and resumed, which makes the red zone and SSE in the
//!   precompiled `core` harmless.
//! * Guest pages are accessed only through the identity map: SMAP forbids the other way.
//!
//! # The order of the modules
//! A module imports only from those above it in this list: `hw-tests/tests/module_order.rs` sees to
//! it.
//!
//! 1. `linkage`: the functions that the precompiled `core` expects of a C library.
//! 2. `regions`: lists of physical memory regions.
//! 3. `high`: addresses above 47 bits.
//! 4. `gs`: the two GS bases.
//! 5. `screen`: the screen in text mode.
//! 6. `serial`: output, to the serial port and the screen.
//! 7. `boot`: from the boot loader to Rust, and from real mode for further CPUs.
//! 8. `exit`: the end of a run.
//! 9. `multiboot`: what the boot loader passes on.
//! 10. `cpu`: the features of this CPU, and its control bits.
//! 11. `percpu`: what each CPU has for itself: block, GDT, stacks.
//! 12. `segments`: GDT and task register.
//! 13. `events`: the IDT and its stubs.
//! 14. `memory`: frames, the heap, page tables.
//! 15. `code_memory`: memory that a switcher is assembled into.
//! 16. `apic`: interrupt commands to other CPUs.
//! 17. `returns`: the return thunk and its untraining.
//! 18. `hooks`: the functions that a switcher's event entries call.
//! 19. `smp`: further CPUs.
//! 20. `platform`: the order in which all of it comes up.

#![cfg_attr(not(test), no_std)]

#[cfg(not(test))]
extern crate alloc;

pub mod high;
pub mod regions;

// The following modules drive hardware, and their assembly needs image.ld, so unit tests leave them
// out.
#[cfg(not(test))]
pub mod apic;
#[cfg(not(test))]
pub mod boot;
#[cfg(not(test))]
pub mod code_memory;
#[cfg(not(test))]
pub mod cpu;
#[cfg(not(test))]
pub mod events;
#[cfg(not(test))]
pub mod exit;
#[cfg(not(test))]
pub mod gs;
#[cfg(not(test))]
pub mod hooks;
#[cfg(not(test))]
mod linkage;
#[cfg(not(test))]
pub mod memory;
#[cfg(not(test))]
mod multiboot;
#[cfg(not(test))]
pub mod percpu;
#[cfg(not(test))]
pub mod platform;
#[cfg(not(test))]
pub mod returns;
#[cfg(not(test))]
mod screen;
#[cfg(not(test))]
pub mod segments;
#[cfg(not(test))]
pub mod serial;
#[cfg(not(test))]
pub mod smp;

#[cfg(not(test))]
pub use platform::{Platform, init};
