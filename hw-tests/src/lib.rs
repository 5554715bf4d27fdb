//! Runs the cases (`hw-tests/cases`) on every engine, and judges what is reported.
//!
//! An [`Engine`](engine::Engine) is something that boots the bare-metal kernel (`hw-tests/kernel`),
//! an emulator, or one that runs the cases in a process: the model of a CPU, or this CPU itself in
//! user mode. It returns a [`Run`](run::Run), the raw log and how it ended; [`judge::judge`] says
//! what that is worth, against the names of the cases that had to be reported. What is
//! *printed* decides: an emulator that exits happily without a complete report has failed.
//!
//! `src/bin/xtask.rs` is the command line around it.

pub mod bare_metal;
pub mod cases;
pub mod compare;
pub mod coverage;
pub mod debian;
pub mod engine;
pub mod iso;
pub mod judge;
pub mod run;
pub mod summary;
pub mod tools;
pub mod workspace;
