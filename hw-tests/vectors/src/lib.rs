//! Shows whether the model of a CPU (`switcher_model`) is right.
//!
//! [`forms`] lists the instructions, [`random`] makes states to execute them from. The tests of
//! `switcher-engine` run both as a guest's code on this CPU. For ring 0, [`table`] asks the model
//! what becomes of them there, and the bare-metal kernel (`hw-tests/kernel`) compares.
//!
//! [`known`] is the only list of what emulators are known to do differently.
//!
//! ```
//! // What the kernel is to try on QEMU: instructions, states before and after, known differences.
//! let table = hw_vectors::table("qemu-tcg-4level");
//! let parsed = hw_protocol::vectors::VectorTable::parse(&table);
//! let parsed = parsed.map_err(|why| format!("{why:?}"))?;
//! assert!(parsed.vectors().count() > 1000);
//! # Ok::<(), String>(())
//! ```

pub mod forms;
pub mod known;
pub mod random;
mod ring0;

pub use ring0::table;
