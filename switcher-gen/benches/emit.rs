//! How long emitting takes: one variant, beside two assemblers that make the same code.
//!
//! | name | what it does |
//! |---|---|
//! | `switcher` | [`Image::new`]: the emitters into a `CodeBuffer`, everything resolved and checked |
//! | `iced` | iced-x86's `CodeAssembler`, given the instructions ready-made, labels for the jumps |
//! | `dynasmrt` | the same emitters into dynasmrt's `VecAssembler`, with its memory reserved |
//!
//! Criterion measures each by itself; what is printed at the end was measured in turns, so that a
//! change of the machine's speed does not look like a difference between them. Goals: at most 10
//! us, no slower than iced, at most 1.2 times as long as dynasmrt.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group};
use dynasmrt::x64::X64Relocation;
use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, VecAssembler};
use iced_x86::code_asm::{CodeAssembler, CodeLabel};
use iced_x86::{Decoder, DecoderOptions, FlowControl, IcedError, Instruction, Mnemonic};
use switcher_asm::Sink;
use switcher_gen::asm::Switcher;
use switcher_gen::asm::{External, LINE, Label, Window, to_upper_half};
use switcher_gen::layout::Placement;
use switcher_gen::{Image, Variant, emit};

const VARIANT: Variant = Variant::REFERENCE;

fn switcher() -> Image {
    Image::new(black_box(&VARIANT)).expect("the reference assembles")
}

/// dynasmrt's assembler as the emitters want it. Notes and windows are nothing to it.
struct Dynasmrt {
    assembler: VecAssembler<X64Relocation>,
    labels: [DynamicLabel; Label::ALL.len()],
}

impl Dynasmrt {
    fn assemble() -> Vec<u8> {
        let mut assembler = VecAssembler::new_with_capacity(0, 1024, 0, 0, Label::ALL.len(), 0, 32);
        let labels = Label::ALL.map(|_| assembler.new_dynamic_label());
        let mut sink = Self { assembler, labels };
        emit::switcher(&mut sink, black_box(&VARIANT));
        sink.assembler.finalize().expect("the reference assembles")
    }
}

impl Sink for Dynasmrt {
    type Names = Switcher;

    fn push(&mut self, byte: u8) {
        self.assembler.push(byte);
    }
    fn extend(&mut self, bytes: &[u8]) {
        self.assembler.extend(bytes);
    }
    fn dynamic_label(&mut self, label: Label) {
        self.assembler.dynamic_label(self.labels[label as usize]);
    }
    fn dynamic_reloc(&mut self, label: Label, target: isize, field: u8, reference: u8, kind: u8) {
        let label = self.labels[label as usize];
        self.assembler.dynamic_reloc(label, target, field, reference, kind);
    }
    fn value_reloc(&mut self, _: impl Into<External>, field: u8, reference: u8, kind: u8) {
        self.assembler.value_reloc(0, field, reference, kind);
    }

    fn place(&mut self, placement: Placement) {
        assert_eq!(placement, Placement::Gs, "nothing else is compared");
    }

    fn placement(&self) -> Placement {
        Placement::Gs
    }
    fn align(&mut self, alignment: usize, byte: u8) {
        self.assembler.align(alignment, byte);
    }
    fn upper_half(&mut self, distance: usize, byte: u8) {
        let ahead = self.assembler.offset().0 + distance;
        self.assembler.extend(&[byte; LINE][..to_upper_half(ahead)]);
    }
    fn open(&mut self, _: Window) {}
    fn close(&mut self, _: Window) {}
}

/// The image as calls of a `CodeAssembler`.
struct Iced {
    steps: Vec<Step>,
    labels: usize,
}

enum Step {
    Label(usize),
    Jump(Mnemonic, usize),
    Other(Instruction),
}

impl Iced {
    fn new(image: &Image) -> Self {
        let decoder = Decoder::with_ip(64, image.bytes(), 0, DecoderOptions::NONE);
        let instructions: Vec<Instruction> = decoder.into_iter().collect();
        let target = |i: &Instruction| match i.flow_control() {
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                Some(i.near_branch_target())
            }
            _ => None,
        };
        let mut targets: Vec<u64> = instructions.iter().filter_map(target).collect();
        targets.sort_unstable();
        targets.dedup();
        let mut steps = Vec::new();
        for mut i in instructions {
            steps.extend(targets.binary_search(&i.ip()).ok().map(Step::Label));
            let to = target(&i).and_then(|target| targets.binary_search(&target).ok());
            // A `CodeAssembler` keeps labels in the place of addresses; 0 stands for no label.
            i.set_ip(0);
            steps.push(to.map_or(Step::Other(i), |to| Step::Jump(i.mnemonic(), to)));
        }
        Self { steps, labels: targets.len() }
    }

    fn assemble(&self) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut labels: Vec<CodeLabel> = (0..self.labels).map(|_| a.create_label()).collect();
        for step in black_box(&self.steps) {
            match *step {
                Step::Label(label) => a.set_label(&mut labels[label])?,
                Step::Jump(Mnemonic::Je, to) => a.je(labels[to])?,
                Step::Jump(Mnemonic::Ja, to) => a.ja(labels[to])?,
                Step::Jump(Mnemonic::Jb, to) => a.jb(labels[to])?,
                Step::Jump(Mnemonic::Jae, to) => a.jae(labels[to])?,
                Step::Jump(Mnemonic::Jne, to) => a.jne(labels[to])?,
                Step::Jump(Mnemonic::Jmp, to) => a.jmp(labels[to])?,
                Step::Jump(other, _) => unreachable!("the switcher has no {other:?}"),
                Step::Other(instruction) => a.add_instruction(instruction)?,
            }
        }
        a.assemble(0)
    }
}

/// All three make the same instructions, or the comparison means nothing.
fn check(iced: &Iced) {
    let image = switcher();
    let mut by_dynasmrt = Dynasmrt::assemble();
    // It fills the references to the host's hooks in, as if they were at address 0.
    for relocation in image.relocations() {
        let at = relocation.at as usize;
        by_dynasmrt[at..at + 4].copy_from_slice(&image.bytes()[at..at + 4]);
    }
    assert_eq!(by_dynasmrt, image.bytes());
    let mnemonics = |bytes: &[u8]| -> Vec<Mnemonic> {
        let decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        decoder.into_iter().map(|i| i.mnemonic()).collect()
    };
    let by_iced = iced.assemble().expect("iced assembles what it has decoded");
    assert_eq!(mnemonics(&by_iced), mnemonics(image.bytes()));
}

fn emit_one_variant(c: &mut Criterion) {
    let iced = Iced::new(&switcher());
    check(&iced);
    let mut group = c.benchmark_group("emit");
    group.bench_function("switcher", |b| b.iter(switcher));
    group.bench_function("iced", |b| b.iter(|| iced.assemble()));
    group.bench_function("dynasmrt", |b| b.iter(Dynasmrt::assemble));
    group.finish();
}

criterion_group!(benches, emit_one_variant);

/// How long `work` takes, on average over a few.
fn time<T>(mut work: impl FnMut() -> T) -> Duration {
    const BATCH: u32 = 16;
    let start = Instant::now();
    for _ in 0..BATCH {
        black_box(work());
    }
    start.elapsed() / BATCH
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures the three in turns and prints how they compare.
fn compare() {
    const ROUNDS: usize = 2001;
    let iced = Iced::new(&switcher());
    let rounds: Vec<[f64; 3]> = (0..ROUNDS)
        .map(|_| [time(switcher), time(|| iced.assemble()), time(Dynasmrt::assemble)])
        .map(|times| times.map(|time| time.as_secs_f64() * 1e6))
        .collect();
    let medians = |i: usize| median(rounds.iter().map(|times| times[i]).collect());
    let ratio = |i: usize| median(rounds.iter().map(|times| times[0] / times[i]).collect());
    println!("\nin turns, medians of {ROUNDS} rounds:");
    println!("  switcher  {:6.2} us  (goal: at most 10)", medians(0));
    for (i, name, goal) in [(1, "iced", 1.0), (2, "dynasmrt", 1.2)] {
        let (time, ratio) = (medians(i), ratio(i));
        println!("  {name:<8}  {time:6.2} us  ratio {ratio:.2}  (goal: at most {goal:.1})");
    }
}

fn main() {
    benches();
    // `cargo test --benches` asks for one run of each only.
    if std::env::args().any(|arg| arg == "--bench") {
        compare();
    }
    Criterion::default().configure_from_args().final_summary();
}
