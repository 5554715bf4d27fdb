//! The platform layer of a bare-metal host: everything below a hypervisor on a PC.
//!
//! A binary names its main function with [`kernel_main!`] and links with this package's linker
//! script (`build.rs`). By the time `main` is called,
//!
//! * the CPU is in long mode with the paging mode the command line asked for ([`boot`]),
//!   SSE, NX, WP, and SMEP and SMAP where the CPU has them ([`cpu`]),
//! * memory is identity-mapped below 512 GiB, supervisor only, with the image's sections protected
//!   by what they are; frames, a heap and guest address spaces are to be had ([`memory`]),
//! * GDT, TSS and IDT are loaded, the TSS inside the per-CPU block, and every event from CPL3
//!   becomes a `PtRegs` ([`percpu`], [`segments`], [`events`]),
//! * the serial port works ([`serial_println!`], [`report`]).
//!
//! # Rules that everything here rests on
//! * Interrupts are off outside guests. The interrupt controller is masked throughout.
//! * One CPU brings the platform up and runs `main`; others run a job for it at a time ([`smp`]).
//! * Any event at CPL0 that is not the guest's is fatal, but for those that a self test's own programs
//!   end with. So no code here runs "under" an interrupt that returns, which is what makes the red
//!   zone and SSE in the precompiled `core` harmless.
//! * Guest pages are touched through the identity map alone: SMAP forbids the other way.

#![cfg_attr(not(test), no_std)]

#[cfg(not(test))]
extern crate alloc;

pub mod high;
pub mod regions;

// What follows drives hardware, and its assembly needs kernel.ld: the unit tests leave it out.
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
mod linkage;
#[cfg(not(test))]
pub mod memory;
#[cfg(not(test))]
mod model;
#[cfg(not(test))]
mod multiboot;
#[cfg(not(test))]
pub mod percpu;
#[cfg(not(test))]
pub mod report;
#[cfg(not(test))]
pub mod returns;
#[cfg(not(test))]
mod screen;
#[cfg(not(test))]
pub mod segments;
#[cfg(not(test))]
pub mod selftest;
#[cfg(not(test))]
pub mod serial;
#[cfg(not(test))]
pub mod smp;

#[cfg(not(test))]
mod platform;
#[cfg(not(test))]
pub use platform::{Platform, init};
