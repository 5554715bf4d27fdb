//! `switcher emit`: one variant in one of several shapes.

use clap::ValueEnum;
use serde::Serialize;
use switcher_gen::arch::CanonicalAddr;
use switcher_gen::{Image, LinkError, Variant};
use switcher_listing::object_file;
use switcher_listing::{Listing, ListingOptions};
use switcher_prove::Profile;

use crate::host;
use crate::kbuild;
use crate::names;
use crate::output::{Content, Destination, Failure, write};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  switcher emit                                      list the variant for this host
  switcher emit --variant intel-la57-ibt-pcid
  switcher emit --base 0xfffffe8000000000            with the addresses it will run at
  switcher emit --format elf -o switcher.o
  switcher emit --variant amd-4level --format bin | ndisasm -b 64 -
  switcher emit --variant intel-4level --profile linux-pvm-module-2026 --format kbuild -o DIR

`switcher variants` lists the names.

With --format kbuild, the switcher is for a kernel that has one of its own, which it replaces: for
its structs, its symbols and its build. It is proved as `switcher prove --elf` proves one, before
anything is written. DIR then has switcher.S, which the kernel's build assembles; switcher.o, which
is what was proved; switcher.h, which does not compile for other structs, and switcher_layout.c,
which includes it; and Kbuild, to be included by the Makefile there.")]
pub(crate) struct Args {
    /// Which variant [default: the one for this host; intel-4level if there is none]
    #[arg(long, value_name = "NAME", value_parser = names::variant)]
    variant: Option<Variant>,
    /// The shape to write it in
    #[arg(long, value_enum, default_value_t = Format::Listing)]
    format: Format,
    /// The address it is to run at: a multiple of 64, canonical in the variant's paging mode
    #[arg(long, value_name = "ADDR", value_parser = address)]
    base: Option<u64>,
    #[command(flatten)]
    destination: Destination,
    /// The kernel of which the switcher is to be replaced, for `--format kbuild`
    #[arg(long, value_name = "NAME", value_parser = Profile::named)]
    profile: Option<&'static Profile>,
    /// Write into the folder of `--format kbuild` even if it has other files, which are left alone
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Annotated disassembly
    Listing,
    /// The bytes, and nothing else
    Bin,
    /// A relocatable ELF64 object
    Elf,
    /// The listing and the image's parts as data
    Json,
    /// A folder with source, object and header, for a kernel whose switcher it replaces
    Kbuild,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let variant = args.variant.or_else(host::variant_if_known).unwrap_or(Variant::REFERENCE);
    let is_of_kernel = args.format == Format::Kbuild;
    if !is_of_kernel && (args.profile.is_some() || args.force) {
        let message = "`--profile` and `--force` are about a kernel: they need `--format kbuild`";
        return Err(Failure::Usage(message.into()));
    }
    let image = Image::new(&variant)
        .map_err(|error| Failure::failed(format!("cannot assemble {variant}"), error))?;
    let content = match args.format {
        Format::Listing => Content::Text(listing(&image, args.base)?.to_string()),
        Format::Bin => Content::Binary(match args.base {
            Some(base) => link(&image, base)?.1,
            None => image.bytes().to_vec(),
        }),
        Format::Elf if args.base.is_some() => {
            let message = "an ELF object is relocatable: the linker places it, not `--base`";
            return Err(Failure::Usage(message.into()));
        }
        Format::Elf => Content::Binary(
            object_file(&image)
                .map_err(|error| Failure::failed("cannot write an object", error))?,
        ),
        Format::Json => Content::Text(json(&image, args.base)?),
        Format::Kbuild => return kbuild(args, &variant),
    };
    write(args.destination.output.as_deref(), &content)
}

fn kbuild(args: &Args, variant: &Variant) -> Result<(), Failure> {
    let usage = |message: &str| Err(Failure::Usage(message.into()));
    let Some(profile) = args.profile else {
        return usage("`--format kbuild` is for a kernel: say which, with `--profile NAME`");
    };
    let Some(folder) = args.destination.output.as_deref() else {
        return usage("`--format kbuild` writes several files: name a folder, with `-o DIR`");
    };
    if args.base.is_some() {
        return usage("the kernel's linker places the code, not `--base`");
    }
    kbuild::write(profile, variant, folder, args.force)
}

fn listing(image: &Image, base: Option<u64>) -> Result<Listing, Failure> {
    let base = base.map(|base| link(image, base)).transpose()?.map(|(base, _)| base);
    Listing::new(image, &ListingOptions { base, source: true })
        .map_err(|error| Failure::failed(format!("cannot list {}", image.variant()), error))
}

/// The image's bytes as they are at `base`.
fn link(image: &Image, base: u64) -> Result<(CanonicalAddr, Vec<u8>), Failure> {
    match image.link_without_hooks(base) {
        Ok(linked) => Ok((linked.base(), linked.bytes().to_vec())),
        Err(error @ (LinkError::Unresolved { .. } | LinkError::Unreachable { .. })) => {
            Err(Failure::failed("cannot link", error))
        }
        // Everything else is about the address that was asked for.
        Err(error) => Err(Failure::Usage(error.to_string())),
    }
}

fn json(image: &Image, base: Option<u64>) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Export {
        #[serde(flatten)]
        listing: Listing,
        relocations: Vec<Relocation>,
        /// In hexadecimal, relocations unfilled.
        bytes: String,
    }
    #[derive(Serialize)]
    struct Relocation {
        /// Offset of the 32-bit field, which wants `symbol + addend - address of the field`.
        at: u32,
        symbol: &'static str,
        addend: i32,
    }
    let relocation = |relocation: &switcher_gen::asm::Relocation| Relocation {
        at: relocation.at,
        symbol: relocation.symbol.0,
        addend: relocation.addend,
    };
    let export = Export {
        listing: listing(image, base)?,
        relocations: image.relocations().iter().map(relocation).collect(),
        bytes: image.bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    serde_json::to_string_pretty(&export)
        .map(|json| json + "\n")
        .map_err(|error| Failure::failed("cannot write JSON", error))
}

/// A 64-bit address.
fn address(text: &str) -> Result<u64, String> {
    number(text).ok_or_else(|| "not a 64-bit address such as 0xfffffe8000000000 or 4096".into())
}

/// A number: decimal, or hexadecimal with `0x` before it, with `_` where it helps.
pub(crate) fn number(text: &str) -> Option<u64> {
    let digits = text.replace('_', "");
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (&*digits, 10),
    };
    // `from_str_radix` would take a sign.
    let value = digits.starts_with(|first: char| first.is_ascii_hexdigit());
    value.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn addresses_are_hexadecimal_or_decimal() {
        assert_eq!(address("0xffff_fe80_0000_0000"), Ok(0xffff_fe80_0000_0000));
        assert_eq!(address("4096"), Ok(4096));
        for bad in ["", "0x", "fffe", "-16", "0x1_0000_0000_0000_0000", "0x+1"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
