//! The command line: a tour of the journey from structs to running code, and its stations one by
//! one.
//!
//! Exit codes: 0 done; 1 it could not be done, as on an unfit host, or what was to be shown is
//! wrong; 2 the command line or an input is wrong; 3 what was to be shown is not known, or not
//! judged; 4 to 6 what was to be shown is wrong, and less grave than 1; 130 somebody has
//! interrupted it.

#[macro_use]
mod output;

mod cost;
mod data_place;
mod diff;
mod emit;
mod explain;
mod foreign;
mod fuzz;
mod gate;
mod host;
mod host_data;
mod interrupt;
mod kbuild;
mod layout;
mod mutate;
mod names;
mod offsets;
mod operands;
mod outline;
mod parallel;
mod places;
mod profiles;
mod proof;
mod prove;
mod redundancy;
mod report;
mod sarif;
mod subject;
mod target;
mod theirs;
mod tour;
mod variants;
mod verdict;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::Failure;

#[derive(Parser)]
#[command(
    name = "switcher",
    version,
    about = "Emits and proves switchers: the ring-0 code that switches a PVM guest's modes",
    long_about = "Emits and proves switchers: the ring-0 code that switches a PVM guest's modes.\n\n\
        Without a command: a tour. It looks at this CPU, chooses the variant for it, assembles \
        it, lists it and runs its direct switches right here, in user mode.",
    after_help = EXAMPLES,
    after_long_help = EXAMPLES,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = concat!(
    "\
Examples:
  switcher                                    take the tour
  switcher variants                           what can be emitted
  switcher emit --variant amd-la57            list a variant
  switcher emit --format elf -o switcher.o    an object to link into a host
  switcher offsets --format c -o switcher.h   the layouts for C
  switcher offsets --from vmlinux             a kernel's layouts beside ours
  switcher diff intel-4level amd-4level       where two variants differ
  switcher cost                               what each path costs
  switcher prove --all                        prove every variant, for every state
  switcher profiles                           the kernels that are known
  switcher explain MODE_TOGGLE                what are these instructions for?
  switcher mutate --variant intel-4level --every 50
                                              break it on purpose: do the proofs object?
  switcher redundancy --all                   does it need each of its instructions?
  switcher fuzz --cases 10_000_000            random states against the specification

",
    exit_codes!()
);

#[derive(Subcommand)]
enum Command {
    /// List the variants there are
    Variants(variants::Args),
    /// Emit one variant: as a listing, as bytes, as an object
    Emit(emit::Args),
    /// Export the layouts that hosts, guests and emitted code share, or compare them with others
    Offsets(offsets::Args),
    /// Show where two variants differ, or a variant and anybody's code
    Diff(diff::Args),
    /// Count what each path costs: instructions, memory, serialising operations, cache lines
    Cost(cost::Args),
    /// Prove a variant or anybody's code: for every state, it does what the specification says
    Prove(prove::Args),
    /// Show the kernels that are known, and what a verdict on their switchers rests on
    Profiles(profiles::Args),
    /// Say what an instruction is for: who objects to the code without it?
    Explain(explain::Args),
    /// Break a variant, one instruction at a time, and see whether the proofs object
    Mutate(mutate::Args),
    /// Take each instruction away by itself: something must object
    Redundancy(redundancy::Args),
    /// Run code from random states and compare what it does with the specification
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        None => tour::run(),
        Some(Command::Variants(args)) => variants::run(&args),
        Some(Command::Emit(args)) => emit::run(&args),
        Some(Command::Offsets(args)) => offsets::run(&args),
        Some(Command::Diff(args)) => diff::run(&args),
        Some(Command::Cost(args)) => cost::run(&args),
        Some(Command::Prove(args)) => prove::run(&args),
        Some(Command::Profiles(args)) => profiles::run(&args),
        Some(Command::Explain(args)) => explain::run(&args),
        Some(Command::Mutate(args)) => mutate::run(&args),
        Some(Command::Redundancy(args)) => redundancy::run(&args),
        Some(Command::Fuzz(args)) => fuzz::run(&args),
    };
    match done {
        // Whoever closed the pipe, such as `head`, has seen enough.
        Ok(()) | Err(Failure::PipeClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            // That two texts differ is a result, and is printed as one.
            if !matches!(failure, Failure::Different) {
                // Who has closed it does not want to know.
                let _ = writeln!(std::io::stderr(), "error: {failure}");
            }
            failure.exit_code()
        }
    }
}
