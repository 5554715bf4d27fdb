//! `switcher profiles`: the kernels that are known, and what a verdict on them rests on.

use serde::Serialize;
use switcher_prove::{Clauses, Profile, ProfileRange};

use crate::output::{Failure, Format, conclude, json};

#[derive(clap::Args)]
#[command(after_help = concat!("\
Examples:
  switcher profiles
  switcher profiles linux-pvm-2024
  switcher profiles --format json

A profile says what the symbols of a kernel's switcher are called, where its data lies, and what the
code around it guarantees: the clauses of its contract. `switcher prove --elf theirs.o --profile NAME`
takes them, and options say what is different: --symbol, --gs-tss, --assume, --waive and so on.

JSON is an array of objects: `name`, `about`; `symbols`, an array of objects, `ours` and `theirs`; `tss`,
null or an object: `variable`, and `extra`, how far after it the switcher's data begins; `extra`, the
places of fields of that data, an array of objects, `field` and `at`, empty if they are as ours;
`pvcs`, null or \"V2024\" or \"V2026\"; `unsafe_stack`, where the host's handlers take RSP for the
guest's, in words; `clauses`, an array of objects, `name` and `text`; `entry_stack` and
`caller_stack`, in bytes; and, of each, `known_clauses`, the names of all clauses that there are.

", exit_codes!()))]
pub(crate) struct Args {
    /// One of them
    #[arg(value_parser = Profile::named)]
    name: Option<&'static Profile>,
    /// How to write them
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Serialize)]
struct Shown {
    name: &'static str,
    about: &'static str,
    symbols: Vec<Symbol>,
    tss: Option<Tss>,
    extra: Vec<Field>,
    pvcs: Option<String>,
    unsafe_stack: Vec<String>,
    clauses: Vec<Clause>,
    entry_stack: i64,
    caller_stack: i64,
    known_clauses: Vec<&'static str>,
}

#[derive(Serialize)]
struct Symbol {
    ours: &'static str,
    theirs: &'static str,
}

#[derive(Serialize)]
struct Tss {
    variable: &'static str,
    extra: i64,
}

#[derive(Serialize)]
struct Field {
    field: &'static str,
    at: u64,
}

#[derive(Serialize)]
struct Clause {
    name: &'static str,
    text: &'static str,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let all: Vec<Shown> = match args.name {
        Some(profile) => vec![Shown::new(profile)],
        None => Profile::ALL.iter().map(Shown::new).collect(),
    };
    let report = match args.format {
        Format::Text => {
            let texts: Vec<_> = all.iter().map(Shown::text).collect();
            texts.join("\n")
        }
        Format::Json => json(&all)?,
    };
    conclude(report, Ok(()))
}

impl Shown {
    fn new(profile: &Profile) -> Self {
        let symbols = profile.symbols.iter();
        let clauses = profile.contract.clauses.texts();
        Self {
            name: profile.name,
            about: profile.about,
            symbols: symbols.map(|(ours, theirs)| Symbol { ours, theirs }).collect(),
            tss: profile.tss.map(|(variable, extra)| Tss { variable, extra }),
            extra: profile.extra.iter().map(|(field, at)| Field { field, at: *at }).collect(),
            pvcs: profile.pvcs.map(|revision| format!("{revision:?}")),
            unsafe_stack: profile.unsafe_stack.iter().map(ProfileRange::to_string).collect(),
            clauses: clauses.map(|(name, text)| Clause { name, text }).collect(),
            entry_stack: profile.contract.entry_stack.bytes(),
            caller_stack: profile.contract.caller_stack.bytes(),
            known_clauses: Clauses::all_names(),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}: {}\n", self.name, self.about);
        for Symbol { ours, theirs } in &self.symbols {
            text += &format!("  symbol: {ours} is called {theirs}\n");
        }
        if let Some(Tss { variable, extra }) = &self.tss {
            text += &format!("  TSS: {variable}, the switcher's data {extra:#x} after it\n");
        }
        if !self.extra.is_empty() {
            let fields = self.extra.iter().map(|Field { field, at }| format!("{field} {at:#x}"));
            text += &format!("  fields: {}\n", fields.collect::<Vec<_>>().join(", "));
        }
        if let Some(pvcs) = &self.pvcs {
            text += &format!("  PVCS: {pvcs}\n");
        }
        for range in &self.unsafe_stack {
            text += &format!("  window: RSP may be the guest's {range}\n");
        }
        for Clause { name, text: says } in &self.clauses {
            text += &format!("  clause {name}: {says}\n");
        }
        let Self { entry_stack, caller_stack, .. } = self;
        text + &format!(
            "  room: {entry_stack} bytes at sp0, {caller_stack} on the caller's stack\n"
        )
    }
}
