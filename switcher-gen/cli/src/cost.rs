//! `switcher cost`: what each path costs.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::Serialize;
use switcher_gen::Variant;
use switcher_prove::Unexplored;
use switcher_prove::cost;
use switcher_prove::cost::PathCost;

use crate::output::{self, Content, Failure, write};
use crate::subject::Subject;
use crate::target::TargetArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  switcher cost
  switcher cost --variant amd-la57-pcid --format json
  switcher cost --compare
  switcher cost --elf theirs.o --variant intel-4level --gs-tss 0x6000 --gs-tss-extra 0x6080

Paths are those that the proofs go: all that any state leads to. A path's name says where it
starts and ends, and what holds on it and not on its neighbours; paths that this does not tell
apart are numbered, and listed with their jumps.

Counted are instructions of the switcher, up to the SYSRETQ, the RET or the last one before an
IRETQ; accesses to memory; what serialises (MOV to CR3, WRMSR, IRETQ, LFENCE, MFENCE); bytes
and lines of code; lines of data, those of the PVCS apart; conditional jumps. A line has 64
bytes. Assumed alignments: per-CPU block 64, PVCS 4096, sp0 64, IST and host stack 16 (the
worst case counts), code as in the file, an object or an image at 0xfffffe8000000000.

JSON is one object: `target`, and `paths`, an array of objects: `kind`, the name; `number` and
`of`, which path of that kind; `instructions`; `kernel_2024`, as many of the kernel's, or null;
`loads`, `stores`, `serialising`, `cr3_writes`, `swapgs`, `code_bytes`, `code_lines`;
`data_lines`, an object: `per_cpu`, `pvcs`, `sp0_stack`, `ist_stack`, `host_stack`, `code`;
`branches`, `branches_taken`; `taken`, the addresses of the latter. Of --compare it is one object:
`families`, an array of objects: `variants`, the names of those that cost the same, and `rows`,
an array of objects: `path`, `instructions`, `kernel_2024`, `swapgs`, `kernel_2024_swapgs`,
`cr3_writes`, `serialising`, `accesses`, `data_lines`, `pvcs_lines`. Fields may be added.")]
pub(crate) struct Args {
    #[command(flatten)]
    target: TargetArgs,
    /// The paths that matter in every variant, beside the kernel's switcher of 2024
    #[arg(long, conflicts_with_all = ["variant", "elf"])]
    compare: bool,
    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// A table
    Text,
    /// An object
    Json,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    if args.compare && args.target.foreign.is_used() {
        let message = "options about a file need `--elf`, and `--compare` is about all variants";
        return Err(Failure::Usage(message.into()));
    }
    if args.compare {
        return compare(args.format);
    }
    let (name, target) = (args.target.name(), args.target.target()?);
    let paths = cost::paths(&target).map_err(|error| {
        let message = format!("cannot find all paths of {name}: {error}");
        match error {
            Unexplored::Code(_) | Unexplored::NoEntry => Failure::Usage(message),
            Unexplored::Explore(_) => Failure::Failed(message),
        }
    })?;
    let text = match args.format {
        Format::Text => text(&name, &paths),
        Format::Json => json(&name, &paths)?,
    };
    write(None, &Content::Text(text))
}

fn compare(format: Format) -> Result<(), Failure> {
    let targets = Variant::unmitigated()
        .map(|variant| Subject::of_variant(&variant).map(|subject| (subject.name, subject.target)));
    let targets: Vec<_> = targets.collect::<Result<_, _>>()?;
    let families = cost::compare(targets)
        .map_err(|error| Failure::failed("cannot find all paths of every variant", error))?;
    let text = match format {
        Format::Text => cost::table(&families),
        Format::Json => output::json(&BTreeMap::from([("families", families)]))?,
    };
    write(None, &Content::Text(text))
}

fn json(target: &str, paths: &[PathCost]) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Report<'a> {
        target: &'a str,
        paths: &'a [PathCost],
    }
    serde_json::to_string_pretty(&Report { target, paths })
        .map(|json| json + "\n")
        .map_err(|error| Failure::failed("cannot write JSON", error))
}

/// What stands over the figures, each as wide as its column.
const HEADINGS: [&str; 13] = [
    "instr", "(2024)", "loads", "stores", "serial", "cr3", "swapgs", "bytes", "lines", "data",
    "pvcs", "jcc", "taken",
];

fn text(target: &str, paths: &[PathCost]) -> String {
    let name_width = paths.iter().map(|path| path.to_string().len()).max().unwrap_or_default();
    let row = |name: &str, figures: [String; HEADINGS.len()]| {
        let columns = figures.iter().zip(HEADINGS);
        let columns = columns.map(|(figure, heading)| format!("  {figure:>0$}", heading.len()));
        format!("{name:<name_width$}{}\n", columns.collect::<String>())
    };
    let mut text = format!("{target}\n\n{}", row("path", HEADINGS.map(String::from)));
    for path in paths {
        let kernel = path.kernel_2024.map_or(String::new(), |count| format!("({count})"));
        let figures = [
            path.instructions.to_string(),
            kernel,
            path.loads.to_string(),
            path.stores.to_string(),
            path.serialising.to_string(),
            path.cr3_writes.to_string(),
            path.swapgs.to_string(),
            path.code_bytes.to_string(),
            path.code_lines.to_string(),
            path.data_lines.hosts().to_string(),
            path.data_lines.pvcs.to_string(),
            path.branches.to_string(),
            path.branches_taken.to_string(),
        ];
        text += &row(&path.to_string(), figures);
    }
    text += "\n(2024): instructions of the kernel's switcher of 2024. bytes, lines: of code.\n\
             data, pvcs: cache lines of the host's data and of the PVCS. jcc: conditional jumps.\n";
    let numbered: Vec<_> = paths.iter().filter(|path| path.of > 1).collect();
    if !numbered.is_empty() {
        text += "\nPaths of one name take these jumps:\n";
    }
    for path in numbered {
        let taken: Vec<_> = path.taken.iter().map(|at| format!("{at:#x}")).collect();
        let taken = if taken.is_empty() { "none".into() } else { taken.join(", ") };
        text += &format!("  {path}: {taken}\n");
    }
    text
}
