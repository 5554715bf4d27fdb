//! Cases that pass on an engine whatever the switcher does about one of their hazards, because the
//! engine lacks what the hazard needs.
//!
//! They are run there all the same, as they show other things as well. The coverage matrix
//! ([`coverage`](crate::coverage)) does not count them: a hazard is tried only where its case can
//! fail.

use switcher_gen::Hazard;

/// A case, the engines on which it shows nothing of its hazard, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blind {
    /// The case.
    pub case: &'static str,
    /// The hazard that the case cannot show there.
    pub hazard: Hazard,
    /// The beginning of the engines' names.
    pub engines: &'static str,
    /// What the engine does differently from a CPU, or lacks.
    pub why: &'static str,
}

const QEMU: &str = "qemu-tcg-";
const BOCHS: &str = "bochs-";
const BOCHS_3: &str = "bochs3-";

const NEVER_FAULTS: &str = "QEMU's SYSRETQ to a non-canonical address faults at CPL 3, whatever vendor it plays, so the \
     check before it can be missing";
const NO_PCID: &str = "QEMU has no PCIDs: each load of CR3 flushes, so no translation can be stale";
const FLUSHES: &str = "Bochs has PCIDs, and the case passes with NOFLUSH forced as well: its translations do not stay";
const ATTRIBUTES: &str = "SYSRET loads the attributes of SS as Intel's CPUs do, whatever vendor QEMU plays, so they are right \
     without a reload";
const KEPT: &str = "Bochs keeps the attributes of SS across SYSRET as AMD's CPUs do, on Intel's models too, \
     where the case therefore accepts a stack of 16 bits";
const NO_UNTRAINING: &str = "the kernel takes a variant with `untrain` on AMD's CPUs alone, and this engine plays Intel's: \
     nothing is untrained, and nothing is to be counted";

/// All such cases.
pub const ALL: &[Blind] = &[
    Blind {
        case: "eretu_to_a_rip_with_any_high_bit_faults_in_the_guest",
        hazard: Hazard::SysretNonCanonical,
        engines: QEMU,
        why: NEVER_FAULTS,
    },
    Blind {
        case: "entering_at_a_rip_with_any_high_bit_faults_in_the_guest",
        hazard: Hazard::SysretNonCanonical,
        engines: QEMU,
        why: NEVER_FAULTS,
    },
    Blind {
        case: "host/mov_ss_on_a_watched_operand_and_syscall_is_no_event_of_the_host",
        hazard: Hazard::MovSsSyscall,
        engines: QEMU,
        why: "QEMU does not hold data breakpoints off after MOV SS: the #DB comes in the guest, which the \
              case accepts",
    },
    Blind {
        case: "host/a_push_works_in_32_bit_code_after_sysret",
        hazard: Hazard::SysretSs,
        engines: QEMU,
        why: ATTRIBUTES,
    },
    Blind {
        case: "host/a_push_works_in_32_bit_code_after_sysret",
        hazard: Hazard::SysretSs,
        engines: "bochs-intel",
        why: KEPT,
    },
    Blind {
        case: "host/a_push_works_in_32_bit_code_after_sysret",
        hazard: Hazard::SysretSs,
        engines: BOCHS_3,
        why: KEPT,
    },
    Blind {
        case: "host/what_was_unmapped_faults_after_a_direct_switch",
        hazard: Hazard::StaleTranslations,
        engines: QEMU,
        why: NO_PCID,
    },
    Blind {
        case: "host/what_was_unmapped_faults_after_a_direct_switch",
        hazard: Hazard::StaleTranslations,
        engines: BOCHS,
        why: FLUSHES,
    },
    Blind {
        case: "host/what_was_unmapped_faults_after_a_direct_switch",
        hazard: Hazard::StaleTranslations,
        engines: BOCHS_3,
        why: FLUSHES,
    },
    Blind {
        case: "host/a_root_on_a_dead_ones_page_has_none_of_its_translations",
        hazard: Hazard::RecycledTag,
        engines: QEMU,
        why: NO_PCID,
    },
    Blind {
        case: "host/a_root_on_a_dead_ones_page_has_none_of_its_translations",
        hazard: Hazard::RecycledTag,
        engines: BOCHS,
        why: FLUSHES,
    },
    Blind {
        case: "host/a_root_on_a_dead_ones_page_has_none_of_its_translations",
        hazard: Hazard::RecycledTag,
        engines: BOCHS_3,
        why: FLUSHES,
    },
    Blind {
        case: "host/each_exit_untrains_returns_once_where_the_host_does",
        hazard: Hazard::MitigationOrder,
        engines: "qemu-tcg-la57-intel",
        why: NO_UNTRAINING,
    },
    Blind {
        case: "host/each_exit_untrains_returns_once_where_the_host_does",
        hazard: Hazard::MitigationOrder,
        engines: "bochs-intel",
        why: NO_UNTRAINING,
    },
    Blind {
        case: "host/each_exit_untrains_returns_once_where_the_host_does",
        hazard: Hazard::MitigationOrder,
        engines: BOCHS_3,
        why: NO_UNTRAINING,
    },
];

/// Why a case shows nothing of a hazard on an engine, or `None` if it does show it.
#[must_use]
pub fn why(case: &str, hazard: Hazard, engine: &str) -> Option<&'static str> {
    let mut of_case = ALL.iter().filter(|it| it.case == case && it.hazard == hazard);
    let found = of_case.find(|it| engine.starts_with(it.engines));
    found.map(|it| it.why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_and_cases_of_the_list_exist_and_run() {
        let (engines, names) = (crate::engine::all(), crate::cases::names());
        for Blind { case, engines: beginning, .. } in ALL {
            assert!(names.contains(case), "{case}");
            let of_name = engines.iter().filter(|engine| engine.name().starts_with(beginning));
            let lacking = of_name.map(|engine| {
                super::super::not_here::of(engine.as_ref()).iter().any(|it| it.case == *case)
            });
            let lacking: Vec<_> = lacking.collect();
            assert!(lacking.contains(&false), "{case}: no engine {beginning} runs it");
        }
    }

    #[test]
    fn an_engine_is_found_by_the_beginning_of_its_name() {
        let unmapped = "host/what_was_unmapped_faults_after_a_direct_switch";
        let of = |engine| why(unmapped, Hazard::StaleTranslations, engine);
        assert_eq!(of("qemu-tcg-la57"), Some(NO_PCID));
        assert_eq!(of("bochs3-intel-la57"), Some(FLUSHES));
        assert_eq!(of("qemu-kvm"), None);
        assert_eq!(why(unmapped, Hazard::BadCr3, "qemu-tcg-la57"), None);
    }
}
