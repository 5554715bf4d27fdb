//! `switcher variants`: what can be emitted.

use clap::ValueEnum;
use serde::Serialize;
use switcher_gen::{Image, Mitigations, Variant};

use crate::host;
use crate::output::{Content, Failure, write};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  switcher variants
  switcher variants --format json

A name lists the CPU's vendor, the paging mode and what is switched on. Mitigations go
behind each name, as in `intel-4level+ibrs+rsb`: ibrs, rsb or rsblite, bhb and verw on
Intel's CPUs; ibrs, ibpb, untrain, rsb or rsblite on AMD's. The arrow marks the variant for this
host.")]
pub(crate) struct Args {
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A table
    Text,
    /// An array of objects
    Json,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    vendor: &'static str,
    paging: &'static str,
    ibt: bool,
    pcid: bool,
    pku: bool,
    mitigations: Vec<&'static str>,
    /// In bytes.
    size: usize,
    fingerprint: String,
    this_host: bool,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let host = host::variant_if_known();
    let mitigated = host.filter(|host| host.mitigations() != Mitigations::NONE);
    let entries = Variant::unmitigated()
        .chain(mitigated)
        .map(|variant| entry(&variant, host == Some(variant)));
    let entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
    let text = match args.format {
        Format::Text => table(&entries),
        Format::Json => serde_json::to_string_pretty(&entries)
            .map(|json| json + "\n")
            .map_err(|error| Failure::failed("cannot write JSON", error))?,
    };
    write(None, &Content::Text(text))
}

fn entry(variant: &Variant, this_host: bool) -> Result<Entry, Failure> {
    let image = Image::new(variant)
        .map_err(|error| Failure::failed(format!("cannot assemble {variant}"), error))?;
    let config = variant.config();
    Ok(Entry {
        name: variant.to_string(),
        vendor: config.vendor.name(),
        paging: config.paging.name(),
        ibt: config.ibt,
        pcid: config.pcid,
        pku: config.pku,
        mitigations: config.mitigations.names().collect(),
        size: image.bytes().len(),
        fingerprint: image.fingerprint().to_string(),
        this_host,
    })
}

fn table(entries: &[Entry]) -> String {
    let mut table = format!("{:<24} {:>5}  fingerprint\n", "variant", "bytes");
    for Entry { name, size, fingerprint, this_host, .. } in entries {
        let mark = if *this_host { "  <- this host" } else { "" };
        table += &format!("{name:<24} {size:>5}  {}{mark}\n", &fingerprint[..16]);
    }
    table
}
