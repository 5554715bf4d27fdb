//! What libFuzzer looks for, in the layout of cargo-fuzz: an input for which one of these panics.
//!
//! | file | what is asserted of any input |
//! |---|---|
//! | `reader` | the ELF reader neither panics nor needs much memory, and judges the same bytes alike, however often and wherever it reads them from |
//! | `step` | what the model takes for an instruction is one to both decoders, and one step on numbers and on terms comes to the same |
//! | `seeds` | what fuzzing begins with: `corpus/`, made by the emitter |
//!
//! ```console
//! $ cargo xtask fuzz
//! ```
//!
//! This runs both for a bounded time, with stable Rust; `cargo fuzz run reader --features
//! libfuzzer` does so without end, where cargo-fuzz is installed. The tests of this package try
//! each file of `corpus/` without libFuzzer.

pub mod reader;
pub mod seeds;
pub mod step;

use std::sync::LazyLock;

/// The variable that plants a defect in each target, so that it can be seen whether fuzzing finds
/// one.
pub const PLANTED: &str = "SWITCHER_FUZZ_PLANTED";

/// Panics if a defect was to be planted, and an input has led to it.
fn planted(what: &str) {
    static IS_PLANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os(PLANTED).is_some());
    assert!(!*IS_PLANTED, "planted: {what}");
}
