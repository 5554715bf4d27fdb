//! `switcher offsets`: the layouts in other languages.

use clap::ValueEnum;
use switcher_listing::offsets;

use crate::output::{Content, Destination, Failure, write};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  switcher offsets                              constants for Rust
  switcher offsets --format c -o switcher.h     a header that asserts itself
  switcher offsets --format gas > switcher.inc  .equ for the GNU assembler")]
pub(crate) struct Args {
    /// The language to write them in
    #[arg(long, value_enum, default_value_t = Format::Rust)]
    format: Format,
    #[command(flatten)]
    destination: Destination,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// Modules of constants
    Rust,
    /// A header: structs, #defines, and assertions that they agree
    C,
    /// .equ directives
    Gas,
    /// Every struct and field, with size, type and documentation
    Json,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let text = match args.format {
        Format::Rust => offsets::rust(),
        Format::C => offsets::c(),
        Format::Gas => offsets::gas(),
        Format::Json => {
            offsets::json().map_err(|error| Failure::failed("cannot write JSON", error))?
        }
    };
    write(args.destination.output.as_deref(), &Content::Text(text))
}
