//! Runs the cases (`hw-tests/cases`) on every engine, and judges what is reported: the library of
//! `cargo xtask`.
//!
//! An [`Engine`](engine::Engine) either boots the bare-metal kernel (`hw-tests/kernel`), as an
//! emulator does, or runs the cases in a process: on the model of a CPU, or on this CPU itself in
//! user mode. It returns an [`EngineRun`](run::EngineRun), the raw log and how it ended.
//! [`judge::judge`] compares it with the names of the cases that had to be reported. What is
//! *printed* decides: an emulator that exits with success, but without a complete report, has
//! failed.
//!
//! ```
//! use hw_tests::engine::{self, not_here};
//!
//! let engines = engine::all();
//! let native = engines.iter().find(|engine| engine.name() == "native").ok_or("no such engine")?;
//! // What it cannot run is known, with the reason: in user mode, the MSRs are Linux's.
//! let lacking = not_here::of(native.as_ref());
//! let entries = "syscall_and_its_like_lead_where_the_abi_says";
//! let why = lacking.iter().find(|it| it.case == entries).map(|it| it.why);
//! assert_eq!(why, Some("the MSRs are the kernel's"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `src/bin/xtask.rs` is the command line around it. [`coverage`] writes COVERAGE.md from the cases
//! and the engines.

pub mod bare_metal;
pub mod cases;
pub mod compare;
pub mod coverage;
pub mod debian;
pub mod distribution;
pub mod engine;
pub mod fuzzing;
pub mod iso;
pub mod judge;
pub mod run;
pub mod summary;
pub mod tools;
pub mod workspace;
