//! `switcher offsets`: the layouts in other languages, or beside those of somebody else.

use std::path::PathBuf;

use clap::ValueEnum;
use switcher_gen::layout::Revision;
use switcher_listing::offsets;

use crate::foreign::Pvcs;
use crate::output::{Content, Destination, Failure, json, write};
use crate::theirs;

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher offsets                              constants for Rust
  switcher offsets --format c -o switcher.h     a header that asserts itself
  switcher offsets --format gas > switcher.inc  .equ for the GNU assembler
  switcher offsets --from vmlinux               a kernel's structs beside ours
  switcher offsets --from asm-offsets.h --from vmlinux --format json
                                                a header, and sizes from DWARF
  switcher offsets --from vmlinux --struct tss_extra=my_extra
                                                where a struct has another name

", exit_codes!()))]
pub(crate) struct Args {
    /// The language to write them in [default: rust, or with `--from`, tables to be read]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Show the structs that FILE has beside ours: from DWARF or BTF of a vmlinux, an object or a
    /// module, from the kernel's asm-offsets.h, or from TOML or JSON. May be repeated: each file
    /// fills what those before it lack
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// What a struct is called in the files of `--from`: tss_struct, tss, tss_extra or pvcs, and
    /// its name in C [default: tss_struct, x86_hw_tss, tss_extra, pvm_vcpu_struct]
    #[arg(
        long = "struct",
        value_name = "STRUCT=NAME",
        value_parser = theirs::named,
        requires = "from"
    )]
    named: Vec<theirs::Named>,
    /// With which of our layouts of the PVCS theirs is compared [default: the more similar one]
    #[arg(long, value_name = "REVISION", value_enum, requires = "from")]
    pvcs: Option<Pvcs>,
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
    /// Every struct and field, with size, type and documentation; with `--from`, theirs as well
    Json,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let text = match args.from.as_slice() {
        [] => export(args.format.unwrap_or(Format::Rust))?,
        from => {
            let is_json = match args.format {
                None => false,
                Some(Format::Json) => true,
                Some(Format::Rust | Format::C | Format::Gas) => {
                    return Err(Failure::Usage(
                        "the layouts of `--from` are for reading, and not for a compiler: leave \
                         `--format` away, or take `--format json`"
                            .into(),
                    ));
                }
            };
            let compared = theirs::compare(from, &args.named, args.pvcs.map(Revision::from))?;
            if is_json { json(&compared)? } else { compared.text() }
        }
    };
    write(args.destination.output.as_deref(), &Content::Text(text))
}

fn export(format: Format) -> Result<String, Failure> {
    Ok(match format {
        Format::Rust => offsets::rust(),
        Format::C => offsets::c(),
        Format::Gas => offsets::gas(),
        Format::Json => {
            offsets::json().map_err(|error| Failure::failed("cannot write JSON", error))?
        }
    })
}
