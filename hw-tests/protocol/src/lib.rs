//! What the bare-metal kernel (`hw-tests/kernel`) and the engine runner (`hw-tests`) say to each
//! other.
//!
//! * Runner to kernel: words on the multiboot command line, [`Options`], and a multiboot module
//!   with instructions to execute, [`vectors`].
//! * Kernel to runner: one line per event on the serial port, [`ReportLine`], each [`PREFIX`]ed so
//!   that what the BIOS, GRUB or an emulator's debugger prints is told apart from a report.
//!
//! Both directions are defined here once, and used by both sides. The lines of a run are, in this
//! order: one [`ReportLine::Machine`], one [`ReportLine::Begin`], a [`ReportLine::Case`] per self
//! test, a [`ReportLine::Switcher`] per switcher that is assembled, a [`ReportLine::Case`] per case
//! and per [host case](HOST_CASES), one [`ReportLine::End`]. A kernel that dies prints a [`PANIC`]
//! or a [`FATAL`] line instead, which are plain text because nothing (the heap least of all) can be
//! trusted by then.
//!
//! ```
//! use hw_protocol::{CaseVerdict, ReportLine};
//!
//! let (name, verdict, detail) = ("c".into(), CaseVerdict::Pass, "".into());
//! let case = ReportLine::Case { name, verdict, runs: 20, detail };
//! let line = case.to_line()?;
//! assert!(line.starts_with(hw_protocol::PREFIX));
//! assert_eq!(ReportLine::parse(&line)?, Some(case));
//! // Whatever else an emulator prints is no report.
//! assert_eq!(ReportLine::parse("SeaBIOS (version 1.16)")?, None);
//! # Ok::<(), hw_protocol::ReportLineError>(())
//! ```

#![no_std]

extern crate alloc;

mod cases;
mod options;
mod report_line;
pub mod vectors;

pub use cases::{HOST_CASES, HostCase, Need, SELFTESTS, SelfTest};
pub use options::{Options, OptionsError, Suite};
pub use report_line::{CaseVerdict, FATAL, PANIC, PREFIX, ReportLine, ReportLineError};

/// How many CPUs an engine has for the kernel, and how many of a machine's it uses at most.
pub const CPUS: usize = 4;
