//! Every variant is proved, and the table of certificates says so of exactly these images.

use std::sync::Arc;

use switcher_gen::{Image, Variant, certificate};
use switcher_prove::{
    GuestMemory, Obligation, Prove, Prover, Report, SharingProver, Target, Theorem, Verdict,
};

const HEADER: &str = "\
# Images all of whose theorems are proved: the variant's name and the image's fingerprint.
# Made by `BLESS=1 cargo test -p switcher-prove --test proofs`; see src/certificate.rs.
";

fn proved(prover: &impl Prove, image: &Image) -> Vec<Report> {
    let variant = image.variant();
    match prover.prove(&Target::image(image)) {
        Verdict::Proved(reports) => reports,
        Verdict::Refuted(counterexample) => panic!("{variant}: {counterexample}"),
        Verdict::Unknown(why) => panic!("{variant}: not known: {why}"),
        Verdict::Unsupported(code) => panic!("{variant}: {code}"),
        Verdict::Interrupted(theorem) => panic!("{variant}: {theorem}: interrupted"),
    }
}

/// The table, and nothing is in it that is not proved if it is to be `shown`.
fn table(shown: bool) -> String {
    let shared = Arc::default();
    let line = |variant: &Variant| {
        let image = Image::new(variant).unwrap();
        if shown {
            proved(&SharingProver::new(&shared), &image);
        }
        format!("{variant} {}\n", image.fingerprint())
    };
    let variants: Vec<_> = Variant::all().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let parts = std::thread::scope(|scope| {
        let parts = variants.chunks(variants.len().div_ceil(threads));
        let parts = parts.map(|part| scope.spawn(|| part.iter().map(line).collect::<String>()));
        parts.collect::<Vec<_>>().into_iter().map(|part| part.join().unwrap()).collect::<String>()
    });
    format!("{HEADER}{parts}")
}

/// That each of them is proved, and is found in the table, the command shows: `prove --all`, in
/// switcher-gen/cli/tests/cli_prove.rs. Here nothing else is in the table, and it is made anew.
#[test]
fn the_table_is_of_all_variants() {
    let shown = std::env::var_os("BLESS").is_some();
    let table = table(shown);
    if shown {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../certificates.txt"), &table)
            .unwrap();
    } else {
        assert_eq!(
            certificate::TABLE,
            table,
            "certificates.txt is stale: run `BLESS=1 cargo test -p switcher-prove --test proofs`"
        );
    }
}

#[test]
fn every_theorem_is_proved_with_stable_and_with_racing_memory() {
    for variant in Variant::representative().step_by(7) {
        let reports = proved(&Prover::default(), &Image::new(&variant).unwrap());
        // Events are judged once for both.
        assert_eq!(reports.len(), 2 * Theorem::ALL.len() + Theorem::EVENTS.len(), "{variant}");
    }
}

#[test]
fn the_number_of_paths_is_that_of_the_ways_through_the_code() {
    let prover = Prover::default();
    let reports = proved(&prover, &Image::new(&Variant::REFERENCE).unwrap());
    let paths = |theorem| {
        let mut reports = reports.iter().filter(|report| report.theorem == theorem);
        let report = reports.find(|report| report.guest_memory == GuestMemory::Stable).unwrap();
        (report.paths, report.goals)
    };
    // By SYSRETQ at either test of the flags; by IRETQ for RCX, the address, R11's flags, R11; and
    // for CS and for SS.
    assert_eq!(paths(Theorem::EnterGuest).0, 8);
    // To smod; out: an inhibitor, not ERETU's address, other selectors; six returns to umod.
    assert_eq!(paths(Theorem::Syscall64).0, 10);
    for straight in [Theorem::SyscallCompat, Theorem::ReturnFromGuest, Theorem::ReturnFromGuestIst]
    {
        assert_eq!(paths(straight).0, 1, "{}", straight.name());
    }
    for theorem in Theorem::ALL {
        assert!(paths(theorem).1 > 100, "{}: {} goals", theorem.name(), paths(theorem).1);
    }
}

/// An obligation that no theorem meets would be one that nothing can break.
#[test]
fn every_obligation_is_met_by_some_variant() {
    let prover = SharingProver::new(&Arc::default());
    let mut met = std::collections::BTreeSet::new();
    // All are proved above; between them, these have everything.
    for variant in ["intel-4level-ibt+ibrs+rsb+bhb+verw", "amd-la57-percpu-current+ibpb"] {
        let reports = proved(&prover, &Image::new(&variant.parse().unwrap()).unwrap());
        met.extend(reports.into_iter().flat_map(|report| report.obligations.into_keys()));
    }
    // These come up where something is wrong, and only there.
    let faults = [
        "memory",
        "no-fault",
        "no-trap",
        "exists",
        "indirect-first",
        "split-lock",
        "untaken-code",
        "untaken-memory",
        "untaken-target",
    ];
    for obligation in Obligation::ALL {
        let expected = !faults.contains(&obligation.name);
        assert_eq!(met.contains(obligation.name), expected, "{}", obligation.name);
    }
}
