//! The cases that an engine cannot run, whatever the switcher does.
//!
//! This is the only list for the shared cases. A host case says in its entry what it needs, so no
//! host case has to be listed: see [`HOST_CASES`].
//!
//! Such a case is run all the same, so that the engine itself has to refuse it: a case that is
//! listed here but can be run is a failure, and so is one that is refused but not listed. See
//! [`judge`](crate::judge).

use hw_protocol::{HOST_CASES, HostCase, Need};

use super::{Engine, Runs};
use crate::judge::NotHere;

const NATIVE: &[&str] = &super::native::NAMES;
/// Bochs 3 with several CPUs.
const SMP: &[&str] = &super::bochs3::SMP;
const BREAKPOINT: &str =
    "with several CPUs, Bochs 3.0 does not come back from a breakpoint on execution";

/// A shared case, the engines that cannot run it, and what they lack.
type Shared = (&'static str, &'static [&'static str], &'static str);

/// The shared cases that some engine cannot run.
pub const SHARED: &[Shared] = &[
    (
        "syscall_as_the_last_canonical_instruction_returns_behind_it",
        NATIVE,
        "Linux maps nothing in the last page of the lower half",
    ),
    ("a_resume_flag_from_the_pvcs_passes_the_breakpoint", NATIVE, "DR0 is the kernel's"),
    ("a_resume_flag_from_the_pvcs_passes_the_breakpoint", SMP, BREAKPOINT),
    (
        "selectors_of_the_guests_own_are_entered_with_and_end_with_an_eretu",
        NATIVE,
        "Linux's GDT has no second descriptors for user code and data",
    ),
    ("sysenter_is_shut", NATIVE, "SYSENTER would reach Linux, unless the silicon is AMD's"),
    ("syscall_and_its_like_lead_where_the_abi_says", NATIVE, "the MSRs are the kernel's"),
    ("a_32_bit_syscall_is_answered_or_shut", NATIVE, "a 32-bit SYSCALL would reach Linux"),
];

/// The cases that one engine cannot run.
#[must_use]
pub fn of(engine: &dyn Engine) -> Vec<NotHere> {
    let shared = SHARED.iter().filter(|(_, engines, _)| engines.contains(&engine.name()));
    let mut all: Vec<_> =
        shared.map(|&(case, _, why)| NotHere { case, why, always: true }).collect();
    if engine.runs() == Runs::Kernel {
        all.extend(HOST_CASES.iter().filter_map(|case| host_case(engine, case)));
    }
    all
}

/// The reason why an engine cannot run a host case, if there is one.
fn host_case(engine: &dyn Engine, case: &HostCase) -> Option<NotHere> {
    let lacks = |why| Some(NotHere { case: case.name, why, always: true });
    if engine.cpus() < case.cpus {
        return lacks("this engine has one CPU");
    }
    case.needs.iter().find_map(|need| match (need, engine.tracks_branches()) {
        (Need::Breakpoints, _) if !engine.breakpoints() => lacks(BREAKPOINT),
        (Need::BranchTracking, Some(false)) => {
            lacks("the emulated CPU does not track indirect branches")
        }
        (Need::BranchTracking, None) => Some(NotHere {
            case: case.name,
            why: "KVM shows its guests no indirect branch tracking",
            always: false,
        }),
        // The kernel looks whether it does.
        (Need::CountedInstructions, _) if !engine.counts_instructions() => Some(NotHere {
            case: case.name,
            why: "nobody says that the TSC counts instructions",
            always: false,
        }),
        (
            Need::Breakpoints | Need::BranchTracking | Need::LocalApic | Need::CountedInstructions,
            _,
        ) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_and_cases_of_the_list_exist() {
        let engines = crate::engine::all();
        for (case, listed, _) in SHARED {
            for engine in *listed {
                assert!(engines.iter().any(|known| known.name() == *engine), "{engine}");
            }
            assert!(crate::cases::shared().contains(case), "{case}");
        }
    }

    #[test]
    fn between_them_the_engines_run_every_case() {
        let engines = crate::engine::all();
        let kernels = engines.iter().map(|engine| engine.as_ref());
        let emulators: Vec<&dyn Engine> = kernels
            .filter(|engine| engine.runs() == Runs::Kernel && engine.name() != "qemu-kvm")
            .collect();
        for case in crate::cases::names() {
            let lacks = |engine: &dyn Engine| of(engine).iter().any(|lacking| lacking.case == case);
            assert!(emulators.iter().any(|engine| !lacks(*engine)), "{case}");
        }
    }

    #[test]
    fn what_an_entry_asks_for_is_asked_of_the_engine() {
        let lacking = |engine: &str| -> Vec<_> {
            let engines = crate::engine::all();
            let engine = engines.iter().find(|known| known.name() == engine).expect("an engine");
            of(engine.as_ref()).into_iter().map(|lacking| lacking.case).collect()
        };
        let four = "host/four_cpus_run_guests_at_once";
        let boundaries = "host/an_nmi_at_every_instruction_of_every_path_changes_nothing";
        let tracking = "host/an_indirect_branch_to_no_endbr64_is_refused";
        let of_host = |engine: &str| {
            let lacking = lacking(engine);
            [four, boundaries, tracking].map(|case| lacking.contains(&case))
        };
        assert_eq!(of_host("qemu-tcg-4level"), [false, false, true]);
        assert_eq!(of_host("bochs3-intel-la57"), [true, false, false]);
        assert_eq!(of_host("bochs3-intel-la57-smp"), [false, true, false]);
        assert_eq!(of_host("native"), [false, false, false]);
    }
}
