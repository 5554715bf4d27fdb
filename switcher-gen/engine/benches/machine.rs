//! How fast the model of the CPU runs on numbers: round trips umod -> smod -> umod, every check of
//! the interpreter included. Goal: at least 20 million instructions per second.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use switcher_engine::Interpreter;
use switcher_engine::scenario::Mode;
use switcher_gen::Variant;

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

fn round_trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("machine");
    for name in ["intel-4level", "amd-la57"] {
        let variant: Variant = name.parse().expect("this variant exists");
        let mut machine = Interpreter::new(&variant).expect("the emitters are right");
        machine.load(Mode::Umod, 0, &SYSCALLS).expect("it fits");
        machine.load(Mode::Smod, 0, &ERETU).expect("it fits");
        let mut setup = machine.setup(Mode::Umod);
        setup.frame.rbx = ROUND_TRIPS;
        let outcome = machine.run(&setup).expect("the switcher is right");
        assert_eq!(outcome.crossings_total, 2 * ROUND_TRIPS + 2);
        group.throughput(Throughput::Elements(machine.instructions()));
        group.bench_function(name, |b| b.iter(|| machine.run(black_box(&setup))));
    }
    group.finish();
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
