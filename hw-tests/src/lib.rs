//! Runs the bare-metal kernel on every engine.
