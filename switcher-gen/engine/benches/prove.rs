//! What a proof costs, next to what it is about: emitting the same variant, in the same run.
//!
//! The numbers that count are those of a fresh prover, which knows nothing yet; a prover that is
//! kept, as for mutants, has answered most questions before.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switcher_engine::fuzz;
use switcher_engine::fuzz::Coverage;
use switcher_gen::{Image, Variant};
use switcher_prove::mutate;
use switcher_prove::{Prover, Target, Verdict};

fn target(variant: &Variant) -> Target {
    match Image::new(variant) {
        Ok(image) => Target::image(&image),
        Err(error) => panic!("{variant}: {error}"),
    }
}

fn prove(prover: &Prover, target: &Target) {
    let verdict = prover.prove(black_box(target));
    assert!(matches!(verdict, Verdict::Proved(_)), "{verdict:?}");
}

fn proofs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prove");
    group.sample_size(10);
    let reference = target(&Variant::REFERENCE);
    group.bench_function("one variant", |b| b.iter(|| prove(&Prover::default(), &reference)));
    let kept = Prover::default();
    group.bench_function("one variant, known", |b| b.iter(|| prove(&kept, &reference)));
    let all: Vec<_> = Variant::unmitigated().map(|variant| target(&variant)).collect();
    group.bench_function("all variants", |b| {
        b.iter(|| {
            let prover = Prover::default();
            all.iter().for_each(|target| prove(&prover, target));
        });
    });
    group.finish();
}

/// A sample of mutants, as `switcher mutate` does them: one prover for all.
fn mutants(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mutate");
    let reference = target(&Variant::REFERENCE);
    let sample: Vec<_> = mutate::mutants(&reference).into_iter().step_by(97).collect();
    group.sample_size(10).throughput(Throughput::Elements(sample.len() as u64));
    group.bench_function("mutants", |b| {
        b.iter(|| {
            let prover = Prover::default();
            for mutant in &sample {
                black_box(mutate::judge(&prover, &reference, mutant));
            }
        });
    });
    group.finish();
}

fn cases(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fuzz");
    let reference = target(&Variant::REFERENCE);
    group.sample_size(10).throughput(Throughput::Elements(1000));
    group.bench_function("machine against the specification", |b| {
        b.iter(|| fuzz::machine(&reference, 1, 0..1000, &mut Coverage::default()));
    });
    group.finish();
}

criterion_group!(benches, proofs, mutants, cases);
criterion_main!(benches);
