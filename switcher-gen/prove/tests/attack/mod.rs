//! What attacks on the prover have in common: the hand-written switcher, broken, and what becomes
//! of it. Include it beside `mod gas;`.

#![allow(dead_code, reason = "each test uses some of it")]

pub(crate) mod arms;
pub(crate) mod mitigated;

use switcher_gen::Variant;
use switcher_prove::elf;
use switcher_prove::{Prover, Setting, Target, Verdict};

use crate::gas;

/// A text of the source, and what takes its place.
pub(crate) type Change<'a> = (&'a str, &'a str);

/// The hand-written switcher with these changes, for a host of this variant.
#[track_caller]
pub(crate) fn target(variant: &str, changes: &[Change<'_>]) -> Target {
    let source = gas::replaced(gas::SWITCHER, changes);
    let foreign = elf::read(&gas::assemble(&source, &[])).unwrap();
    let variant: Variant = variant.parse().unwrap();
    Target::foreign(&foreign, Setting::from(&variant)).unwrap()
}

pub(crate) fn prove(target: &Target) -> Verdict {
    Prover::default().prove(target)
}

/// It must be refuted by this obligation.
#[track_caller]
pub(crate) fn refuted(what: &str, target: &Target, obligation: &str) {
    match prove(target) {
        Verdict::Refuted(found) => {
            assert_eq!(found.obligation.name, obligation, "{what}: {found}");
        }
        Verdict::Proved(_) => panic!("{what}: proved"),
        other => panic!("{what}: {other:?}"),
    }
}

/// It must be proved.
#[track_caller]
pub(crate) fn proved(what: &str, target: &Target) {
    match prove(target) {
        Verdict::Proved(_) => {}
        Verdict::Refuted(found) => panic!("{what}: {found}"),
        other => panic!("{what}: {other:?}"),
    }
}

/// A place in the hand-written switcher where the stack is the host's and GS base too.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    /// What stands after it.
    pub(crate) before: &'static str,
}

/// Places on every kind of path: entering a guest, both direct switches, an exit before and after
/// the host's root.
pub(crate) const PLACES: [Place; 5] = [
    Place { name: "entering", before: "\tmovq\t%gs:TSS_SP0, %rsp\n\tsubq\t$PT_REGS_SIZE, %rsp\n" },
    Place { name: "to smod", before: "\t/* The mode and its root belong together. */\n" },
    Place {
        name: "to umod",
        before: "\t/* smod -> umod: ERETU. No way back from here, so RCX and R11 are free. */\n",
    },
    Place { name: "leaving", before: "\tpushq\t$0\n\tmovl\t$REASON_SYSCALL, 4(%rsp)\n" },
    Place { name: "in the host", before: "\tpushq\t$FLAGS_HOST\n\tpopfq\n" },
];

/// The switcher with `code` at a place; it leaves all registers and flags but the arithmetic ones.
#[track_caller]
pub(crate) fn inserted(variant: &str, place: &Place, code: &str) -> Target {
    target(variant, &[(place.before, &format!("{code}{}", place.before))])
}
