//! Shows whether the model of a CPU (`switcher_model`) is right.
//!
//! [`forms`] lists the instructions, [`random`] makes states to execute them from. The tests of
//! `switcher-gen` run both as a guest's code on this CPU. For ring 0, [`table`] asks the model what
//! becomes of them there, and the bare-metal kernel (`hw-tests/kernel`) compares.
//!
//! [`known`] is the only list of what emulators are known to do differently.

pub mod forms;
pub mod known;
pub mod random;
mod ring0;

pub use ring0::table;
