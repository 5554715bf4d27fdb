//! How fast emitted code runs on this CPU, in user mode: round trips umod -> smod -> umod, which
//! take 8 signals each; and random scenarios with all that they are compared with. Goals: 40 000
//! round trips per second, and a million cases in five minutes.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switcher_engine::fuzz;
use switcher_engine::fuzz::{Engines, NativeCoverage};
use switcher_engine::native::Machine;
use switcher_engine::scenario::Mode;
use switcher_gen::{Image, Variant};

/// In umod: SYSCALL as often as RBX says, then UD2.
const SYSCALLS: [u8; 10] = [
    0x0F, 0x05, // syscall
    0x48, 0x83, 0xEB, 0x01, // sub rbx, 1
    0x75, 0xF8, // jnz to the syscall
    0x0F, 0x0B, // ud2
];
/// In smod: ERETU.
const ERETU: [u8; 2] = [0x0F, 0x05];
const ROUND_TRIPS: u64 = 1000;
const CASES: u64 = 1000;
const NAMES: [&str; 2] = ["intel-4level", "amd-4level"];

fn variant(name: &str) -> Variant {
    name.parse().expect("this variant exists")
}

fn round_trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("native/round trips");
    for name in NAMES {
        let mut machine = Machine::new(&variant(name)).expect("this machine can run them");
        machine.load(Mode::Umod, 0, &SYSCALLS).expect("it fits");
        machine.load(Mode::Smod, 0, &ERETU).expect("it fits");
        let mut setup = machine.setup(Mode::Umod);
        setup.frame.rbx = ROUND_TRIPS;
        let outcome = machine.run(&setup).expect("the switcher is right");
        assert_eq!(outcome.crossings_total, 2 * ROUND_TRIPS + 2);
        group.throughput(Throughput::Elements(ROUND_TRIPS));
        group.bench_function(name, |b| b.iter(|| machine.run(black_box(&setup))));
    }
    group.finish();
}

fn cases(c: &mut Criterion) {
    let mut group = c.benchmark_group("native/fuzz cases");
    group.sample_size(10);
    for name in NAMES {
        let image = Image::new(&variant(name)).expect("the emitters are right");
        let mut engines = Engines::new(image).expect("this machine can run them");
        group.throughput(Throughput::Elements(CASES));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut coverage = NativeCoverage::default();
                let found = fuzz::native(&mut engines, 1, 0..CASES, &mut coverage);
                assert!(found.is_ok_and(|found| found.is_none()));
                coverage
            });
        });
    }
    group.finish();
}

criterion_group!(benches, round_trips, cases);
criterion_main!(benches);
