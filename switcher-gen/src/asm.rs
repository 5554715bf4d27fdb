//! The assembler (`switcher-asm`) with the names that a switcher has. The emitters write to it.

mod program;

pub use program::Program;
pub use switcher_asm::{LINE, to_upper_half};

pub use crate::names::{HostSymbol, Label, Switcher, Window};

/// A [`Sink`] that keeps the code: see [`switcher_asm::CodeBuffer`].
pub type CodeBuffer = switcher_asm::CodeBuffer<Switcher>;
/// A [`Sink`] that only counts: see [`switcher_asm::Length`].
pub type Length = switcher_asm::Length<Switcher>;
/// Finished code: see [`switcher_asm::Code`].
pub type Code = switcher_asm::Code<Switcher>;
/// Why code could not be assembled: see [`switcher_asm::AsmError`].
pub type AsmError = switcher_asm::AsmError<Switcher>;
/// A half-open range of offsets in which a [`Window`] applies.
pub type WindowRange = switcher_asm::WindowRange<Window>;
/// A 32-bit field that refers to the host: see [`switcher_asm::Relocation`].
pub type Relocation = switcher_asm::Relocation<HostSymbol>;
/// What lies outside an image: see [`switcher_asm::External`].
pub type External = switcher_asm::External<HostSymbol>;

/// What emitters write to: an assembler of code with these names. To make one, implement
/// [`switcher_asm::Sink`].
pub trait Sink: switcher_asm::Sink<Names = Switcher> {}

impl<S: switcher_asm::Sink<Names = Switcher>> Sink for S {}
