//! The gates that a guest reaches by INT n.

use alloc::format;

use hw_cases::{CaseHost, Expected};
use switcher_gen::asm::Program;
use switcher_macros::asm;
use switcher_runtime::switcher_gen::Hazard;
use switcher_runtime::{Exit, Mode};

use crate::bench::{Ended, HostCase};
use crate::case_host::BareMetal;
use crate::setup::setup;

pub(super) const CASES: &[HostCase] = &[HostCase {
    name: "host/int_n_reaches_three_gates_and_no_other",
    shown: "INT n is #GP but for INT3, INTO and the guest's system call.",
    rows: &[Hazard::VectorSpoofing],
    cpus: 1,
    needs: &[],
    run: |bench| int_n(bench.host()?),
}];

/// A guest executes INT n for all n: it may use three gates, and every other INT n is #GP
/// (spec/hazards.md, row 32).
fn int_n(host: &mut BareMetal<'_>) -> Ended {
    let mut rng = fastrand::Rng::with_seed(32);
    let mut entered = 0;
    for vector in 0..=255_u8 {
        for mode in [Mode::Smod, Mode::Umod] {
            let mut code = Program::new();
            asm!(code ; int BYTE vector.cast_signed());
            let setup = setup(host, &mut rng, mode, code.bytes());
            let outcome = host.run(&setup).map_err(|why| format!("{why:?}"))?;
            let exit = match vector {
                3 | 4 => Expected::exception(vector),
                0x80 => Exit::Interrupt { vector },
                _ => {
                    // The error code names the gate by 8 times its number; by 16 times in QEMU 7.2.
                    let [manual, qemu] = [8, 16]
                        .map(|size| Expected::general_protection(u32::from(vector) * size + 2));
                    if outcome.exit == qemu { qemu } else { manual }
                }
            };
            let mut expected = Expected::unchanged(&setup, exit);
            if matches!(vector, 3 | 4 | 0x80) {
                expected.regs.rip += 2;
            }
            let compared = expected.compare(&setup, &outcome);
            compared.map_err(|why| format!("{mode:?}, INT {vector:#x}: {why}"))?;
            entered += 1;
        }
    }
    Ok(entered)
}
