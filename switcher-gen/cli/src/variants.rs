//! `switcher variants`: what can be emitted.

use std::str::FromStr;

use clap::ValueEnum;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use serde::Serialize;
use switcher_gen::arch::{PagingMode, Vendor};
use switcher_gen::layout::{Placement, Revision};
use switcher_gen::{Config, Image, Mitigation, Mitigations, Policy, Variant};

use crate::foreign::Pvcs;
use crate::host;
use crate::output::{Content, Failure, write};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  switcher variants
  switcher variants --vendor amd --paging la57 --with pcid
  switcher variants --with rsb,verw --without ibrs --placement percpu
  switcher variants --mitigations --format json

A name lists the CPU's vendor, the paging mode and what is switched on; mitigations follow, as in
`intel-4level+ibrs+rsb`. Listed are those without mitigations, unless `--with` names one, or
`--mitigations` asks for all. The arrow marks the variant for this host.

Words: ibt (Intel), pcid, pku; mitigations: ibrs, rsb or rsblite, verw, on Intel's CPUs bhb or
bhblong, on AMD's ibpb, untrain. When typed, the words of a name may stand in any order.

JSON is an array of objects: `name`; `vendor`, `paging`, `placement` and `pvcs`, as the options have
them; `ibt`, `pcid`, `pku`; `mitigations`, an array of words; `size` in bytes; `fingerprint`;
`this_host`. Fields may be added.")]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// List every combination of mitigations
    #[arg(long)]
    mitigations: bool,
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Which variants are listed: those that meet all of it.
#[derive(clap::Args)]
struct Filter {
    /// For CPUs of this vendor
    #[arg(long, value_parser = vendor())]
    vendor: Option<Vendor>,
    /// For hosts in this paging mode
    #[arg(long, value_parser = paging())]
    paging: Option<PagingMode>,
    /// Whose code reaches the per-CPU block so
    #[arg(long, value_parser = placement())]
    placement: Option<Placement>,
    /// With this layout of the PVCS
    #[arg(long, value_name = "REVISION", value_enum)]
    pvcs: Option<Pvcs>,
    /// With all of these options and mitigations
    #[arg(long, value_name = "WORD", value_delimiter = ',', value_parser = part())]
    with: Vec<Part>,
    /// With none of these
    #[arg(long, value_name = "WORD", value_delimiter = ',', value_parser = part())]
    without: Vec<Part>,
}

/// What a variant may have or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Ibt,
    Pcid,
    Pku,
    Mitigation(Mitigation),
}

impl Part {
    const OPTIONS: [(&str, Self); 3] =
        [("ibt", Self::Ibt), ("pcid", Self::Pcid), ("pku", Self::Pku)];

    fn is_in(self, config: &Config) -> bool {
        match self {
            Self::Ibt => config.ibt,
            Self::Pcid => config.pcid,
            Self::Pku => config.pku,
            Self::Mitigation(mitigation) => config.mitigations.contains(mitigation),
        }
    }

    fn find(word: &str) -> Option<Self> {
        let option = Self::OPTIONS.into_iter().find(|(name, _)| *name == word).map(|it| it.1);
        option.or_else(|| Mitigation::from_str(word).ok().map(Self::Mitigation))
    }
}

/// Takes one of these words for what it says.
fn word<T: Copy + Send + Sync + 'static, const N: usize>(
    all: [(&'static str, T); N],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.map(|(name, _)| name)).try_map(move |typed| {
        let found = all.into_iter().find(|(name, _)| *name == typed);
        // The parser lets no other word through.
        found.map(|(_, value)| value).ok_or("an unknown word")
    })
}

fn vendor() -> impl TypedValueParser<Value = Vendor> {
    word([Vendor::Intel, Vendor::Amd].map(|it| (it.name(), it)))
}

fn paging() -> impl TypedValueParser<Value = PagingMode> {
    word([PagingMode::FourLevel, PagingMode::FiveLevel].map(|it| (it.name(), it)))
}

fn placement() -> impl TypedValueParser<Value = Placement> {
    word([Placement::Gs, Placement::PerCpu].map(|it| (placement_name(it), it)))
}

fn part() -> impl TypedValueParser<Value = Part> {
    let mitigations = Mitigation::ALL.into_iter().map(Mitigation::name);
    let all = Part::OPTIONS.into_iter().map(|(name, _)| name).chain(mitigations);
    PossibleValuesParser::new(all).try_map(|typed| Part::find(&typed).ok_or("an unknown word"))
}

const fn placement_name(placement: Placement) -> &'static str {
    match placement {
        Placement::Gs => "gs",
        Placement::PerCpu => "percpu",
    }
}

impl Filter {
    fn admits(&self, config: &Config) -> bool {
        let Policy { placement, revision } = config.policy;
        let is = |part: &Part| part.is_in(config);
        self.vendor.is_none_or(|wanted| wanted == config.vendor)
            && self.paging.is_none_or(|wanted| wanted == config.paging)
            && self.placement.is_none_or(|wanted| wanted == placement)
            && self.pvcs.is_none_or(|wanted| Revision::from(wanted) == revision)
            && self.with.iter().all(is)
            && !self.without.iter().any(is)
    }

    /// Whether only variants with mitigations can meet it.
    fn wants_mitigations(&self) -> bool {
        self.with.iter().any(|part| matches!(part, Part::Mitigation(_)))
    }
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
    placement: &'static str,
    pvcs: &'static str,
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
    let Filter { with, without, .. } = &args.filter;
    if with.iter().any(|part| without.contains(part)) {
        let message = "what variants are listed with, they cannot be without: a word is in both";
        return Err(Failure::Usage(message.into()));
    }
    let host = host::variant_if_known();
    let variants: Vec<Variant> = if args.mitigations || args.filter.wants_mitigations() {
        Variant::all().collect()
    } else {
        let mitigated = host.filter(|host| host.mitigations() != Mitigations::NONE);
        Variant::unmitigated().chain(mitigated).collect()
    };
    let admitted = variants.iter().filter(|variant| args.filter.admits(&variant.config()));
    let entries = admitted.map(|variant| entry(variant, host == Some(*variant)));
    let entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
    if entries.is_empty() {
        let message =
            "no variant is like that: no CPU has it, or the options contradict each other";
        return Err(Failure::Failed(message.into()));
    }
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
        placement: placement_name(config.policy.placement),
        pvcs: match config.policy.revision {
            Revision::V2024 => "v2024",
            Revision::V2026 => "v2026",
        },
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
    let longest = entries.iter().map(|entry| entry.name.len()).max().unwrap_or_default();
    let width = longest.max("variant".len());
    let mut table = format!("{:<width$} {:>5}  fingerprint\n", "variant", "bytes");
    for Entry { name, size, fingerprint, this_host, .. } in entries {
        let mark = if *this_host { "  <- this host" } else { "" };
        table += &format!("{name:<width$} {size:>5}  {}{mark}\n", &fingerprint[..16]);
    }
    table
}
