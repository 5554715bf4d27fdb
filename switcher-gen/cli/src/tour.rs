//! `switcher`: the whole journey once, on this machine.

use std::fmt::Write;
use std::time::{Duration, Instant};

use switcher_engine::native;
use switcher_engine::native::{Error, PathCount};
use switcher_gen::arch::{Feature, HostFeatures, PagingMode};
use switcher_gen::asm::Label;
use switcher_gen::{Image, Variant, certificate};
use switcher_listing::{Listing, ListingOptions};
use switcher_prove::{GuestMemory, Prover, Report, Target, Verdict};

use crate::host;
use crate::output::{Failure, print};

pub(crate) fn run() -> Result<(), Failure> {
    let features = host::features()?;
    print(heading(1, "This CPU") + &cpu(&features))?;

    let variant = host::variant(&features).map_err(|unfit| Failure::Failed(unfit.to_string()))?;
    print(heading(2, "Its variant") + &choice(&variant))?;

    let assembled = |error| Failure::failed(format!("cannot assemble {variant}"), error);
    let image = Image::new(&variant).map_err(assembled)?;
    print(heading(3, "The code") + &code(&image, time_of_assembly(&variant)))?;

    let listing = Listing::new(&image, &ListingOptions { base: None, source: true })
        .map_err(|error| Failure::failed(format!("cannot list {variant}"), error))?;
    print(heading(4, "Its direct switches, listed") + &direct_switches(&listing))?;

    print(heading(5, "Proved"))?;
    print(proved(&image)?)?;

    print(heading(6, "Run on this CPU"))?;
    // Linux keeps its own protection keys meanwhile.
    print(run_natively(&variant.without_pku())?)?;

    print(heading(7, "Where to go from here") + NEXT)
}

const NEXT: &str = "   \
   switcher emit                      the whole listing, with bytes
   switcher emit --variant amd-la57   another variant; `switcher variants` lists them
   switcher emit --format elf -o switcher.o
   switcher offsets --format c        the layouts, for a host in another language
   switcher prove --all               the proofs, obligation by obligation
   switcher mutate --every 50         break the code on purpose: do the proofs object?
   switcher cost                      what each path costs
   switcher --help                    the rest

   With cargo, put `cargo run --release --` in the place of `switcher`.
   `cargo xtask test` boots a bare-metal host in QEMU and Bochs, with real guests in it.
";

fn heading(number: u8, title: &str) -> String {
    let gap = if number == 1 { "" } else { "\n" };
    format!("{gap}{number}. {title}\n\n")
}

fn cpu(features: &HostFeatures) -> String {
    let mut text = format!("   {}\n", features.brand());
    for feature in Feature::REQUIRED {
        let has = if features.has(feature) { "yes" } else { "MISSING" };
        text += &format!("   {:<12} {has}\n", feature.name());
    }
    let state = features.state();
    let paging = match state.paging {
        PagingMode::FourLevel => "4-level: addresses are canonical by bit 47",
        PagingMode::FiveLevel => "5-level (LA57): addresses are canonical by bit 56",
    };
    let on = |is_on| if is_on { "in use" } else { "not in use" };
    text += &format!("   {:<12} {paging}\n", "paging");
    text += &format!("   {:<12} {}\n", "PCID", on(state.pcid));
    text += &format!("   {:<12} {}\n", "IBT", on(state.ibt));
    text += &format!("   {:<12} {}\n", "PKU", on(state.pku));
    text
}

fn choice(variant: &Variant) -> String {
    let selectors = variant.selectors();
    format!(
        "   {variant}, one of {}\n   \
            selectors: kernel {:#x}/{:#x}, user {:#x}/{:#x}\n",
        Variant::all().count(),
        selectors.kernel_cs(),
        selectors.kernel_ds(),
        selectors.user_cs(),
        selectors.user_ds(),
    )
}

fn code(image: &Image, time: Duration) -> String {
    let mut text = format!(
        "   {} bytes, assembled in {:.1} us (median of {RUNS})\n   fingerprint {}\n\n",
        image.bytes().len(),
        time.as_secs_f64() * 1e6,
        image.fingerprint()
    );
    for (label, offset) in image.symbols() {
        text += &format!("   {offset:04x}  {}\n", label.name());
    }
    text
}

/// Odd, so that there is a median.
const RUNS: usize = 101;

/// How long it takes to emit and assemble `variant`, once caches are warm.
fn time_of_assembly(variant: &Variant) -> Duration {
    let mut times = [Duration::ZERO; RUNS];
    for time in &mut times {
        let start = Instant::now();
        std::hint::black_box(Image::new(std::hint::black_box(variant)).is_ok());
        *time = start.elapsed();
    }
    times.sort_unstable();
    times[RUNS / 2]
}

fn direct_switches(listing: &Listing) -> String {
    let switches = listing.between(Label::Syscall64, Label::ExitEretu);
    let shared = listing.between(Label::ReturnToGuest, Label::Syscall64);
    let mut text = String::from(
        "   In the margin, S: RSP is not the host's; R: a guest's root is loaded.\n   \
            On the right, the line of the emitter that wrote the instruction.\n",
    );
    // Writing to a string does not fail.
    let _ = write!(text, "{}{}", listing.brief(switches), listing.brief(shared));
    text
}

/// Proves the image before it is run. What is not proved is not run.
fn proved(image: &Image) -> Result<String, Failure> {
    let start = Instant::now();
    let reports = match Prover::default().prove(&Target::image(image)) {
        Verdict::Proved(reports) => reports,
        Verdict::Refuted(counterexample) => {
            return Err(Failure::Failed(format!("{}: {counterexample}", image.variant())));
        }
        Verdict::Unknown(why) => {
            return Err(Failure::failed("the proof was not found", why));
        }
        Verdict::Interrupted(theorem) => {
            return Err(Failure::failed(
                "the proof was not found",
                format!("{theorem}: interrupted"),
            ));
        }
        Verdict::Unsupported(code) => {
            return Err(Failure::failed("this code cannot be proved", code));
        }
    };
    let time = start.elapsed();
    let mut text = String::from(
        "   From any state of a guest's, these bytes do what the specification says; and they stay\n   \
            safe if another of its CPUs changes the PVCS between any two instructions.\n\n",
    );
    for stable in reports.iter().filter(|report| report.guest_memory == GuestMemory::Stable) {
        let Report { theorem, paths, goals, .. } = stable;
        text += &format!("   {:<24} {paths:>3} paths  {goals:>5} goals\n", theorem.name());
    }
    let goals: usize = reports.iter().map(|report| report.goals).sum();
    let by_solver: usize = reports.iter().map(|report| report.by_solver).sum();
    text += &format!(
        "\n   {goals} goals in all, {by_solver} of them by the solver, in {:.0} ms.\n",
        time.as_secs_f64() * 1e3
    );
    if certificate::is_proved(image) {
        text += "   The fingerprint is on record, so a host may map this image.\n";
    }
    Ok(text)
}

/// Runs the variant, if this machine lets user mode do so, and says what was run.
fn run_natively(variant: &Variant) -> Result<String, Failure> {
    let report = match native::tour(variant) {
        Ok(report) => report,
        Err(Error::Unsupported(why)) => return Ok(format!("   Not run: {why}.\n")),
        Err(error) => return Err(Failure::failed(format!("running {variant} failed"), error)),
    };
    let mut text = report.ran().lines().map(wrapped).collect::<String>();
    text += "\n   Instructions executed, and as many by the kernel's switcher of 2024:\n\n";
    for PathCount { name, executed, kernel_2024, .. } in &report.paths {
        text += &format!("   {name:<54} {executed:>3}  {kernel_2024:>3}\n");
    }
    Ok(text)
}

/// `line` in lines of a terminal's width, indented as the rest of the tour.
fn wrapped(line: &str) -> String {
    const WIDTH: usize = 92;
    let mut text = String::new();
    let mut column = WIDTH;
    for word in line.split(' ') {
        if column + 1 + word.len() > WIDTH {
            text += if text.is_empty() { "  " } else { "\n  " };
            column = 2;
        }
        text += &format!(" {word}");
        column += 1 + word.len();
    }
    text + "\n"
}
