//! The one list of what an engine cannot run, whatever the switcher does.
//!
//! Such a case is run all the same, so that the engine itself has to refuse it: a case that is
//! listed here and could be run is a failure, and so is one that is refused and not listed. See
//! [`judge`](crate::judge).

/// A case that an engine cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotHere {
    /// The engines.
    pub engines: &'static [&'static str],
    /// The case.
    pub case: &'static str,
    /// What it lacks.
    pub why: &'static str,
    /// Whether it always does: where it depends on the machine, the case may be run after all.
    pub always: bool,
}

const NATIVE: &[&str] = &super::native::NAMES;
/// Bochs 3 with one CPU, and with several.
const ONE_CPU: &[&str] = &super::bochs3::ONE_CPU;
const SMP: &[&str] = &super::bochs3::SMP;
const NO_OTHER_CPU: &str = "this engine has one CPU";
const BREAKPOINT: &str =
    "with several CPUs, Bochs 3.0 does not come back from a breakpoint on execution";
/// What emulates CPUs that do not track indirect branches.
const UNTRACKED: &[&str] = &[
    "qemu-tcg-4level",
    "qemu-tcg-la57",
    "qemu-tcg-la57-intel",
    "qemu-tcg-4level-percpu-current",
    "bochs-intel",
    "bochs-amd",
    "bochs-intel-percpu",
    "bochs-amd-current",
];

/// All of them.
pub const ALL: &[NotHere] = &[
    NotHere {
        engines: NATIVE,
        case: "syscall_as_the_last_canonical_instruction_returns_behind_it",
        why: "Linux maps nothing in the last page of the lower half",
        always: true,
    },
    NotHere {
        engines: NATIVE,
        case: "a_resume_flag_from_the_pvcs_passes_the_breakpoint",
        why: "DR0 is the kernel's",
        always: true,
    },
    NotHere {
        engines: NATIVE,
        case: "selectors_of_the_guests_own_are_entered_with_and_end_with_an_eretu",
        why: "Linux's GDT has no second descriptors for user code and data",
        always: true,
    },
    NotHere {
        engines: NATIVE,
        case: "sysenter_is_shut",
        why: "SYSENTER would reach Linux, unless the silicon is AMD's",
        always: true,
    },
    NotHere {
        engines: NATIVE,
        case: "syscall_and_its_like_lead_where_the_abi_says",
        why: "the MSRs are the kernel's",
        always: true,
    },
    NotHere {
        engines: NATIVE,
        case: "a_32_bit_syscall_is_answered_or_shut",
        why: "a 32-bit SYSCALL would reach Linux",
        always: true,
    },
    NotHere {
        engines: ONE_CPU,
        case: "host/four_cpus_run_guests_at_once",
        why: NO_OTHER_CPU,
        always: true,
    },
    NotHere {
        engines: ONE_CPU,
        case: "host/the_pvcs_flips_while_guests_switch",
        why: NO_OTHER_CPU,
        always: true,
    },
    NotHere {
        engines: ONE_CPU,
        case: "host/no_nmi_is_lost_during_a_million_switches",
        why: NO_OTHER_CPU,
        always: true,
    },
    NotHere {
        engines: ONE_CPU,
        case: "host/no_nmi_is_lost_while_rsp_is_an_address_of_the_hosts",
        why: NO_OTHER_CPU,
        always: true,
    },
    NotHere {
        engines: SMP,
        case: "a_resume_flag_from_the_pvcs_passes_the_breakpoint",
        why: BREAKPOINT,
        always: true,
    },
    NotHere {
        engines: SMP,
        case: "host/an_nmi_at_every_instruction_of_every_path_changes_nothing",
        why: BREAKPOINT,
        always: true,
    },
    NotHere {
        engines: SMP,
        case: "host/a_machine_check_at_every_instruction_of_every_path_changes_nothing",
        why: BREAKPOINT,
        always: true,
    },
    NotHere {
        engines: SMP,
        case: "host/a_second_nmi_arrives_when_the_first_one_is_over",
        why: BREAKPOINT,
        always: true,
    },
    NotHere {
        engines: SMP,
        case: "host/an_nmi_at_every_instruction_writes_nowhere_while_rsp_is_the_hosts",
        why: BREAKPOINT,
        always: true,
    },
    NotHere {
        engines: UNTRACKED,
        case: "host/an_indirect_branch_to_no_endbr64_is_refused",
        why: "the emulated CPU does not track indirect branches",
        always: true,
    },
    NotHere {
        engines: &["qemu-kvm"],
        case: "host/an_indirect_branch_to_no_endbr64_is_refused",
        why: "KVM shows its guests no indirect branch tracking",
        always: false,
    },
];

/// Those of one engine.
#[must_use]
pub fn of(engine: &str) -> Vec<NotHere> {
    ALL.iter().filter(|listed| listed.engines.contains(&engine)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_and_cases_of_the_list_exist() {
        let engines = crate::engine::all();
        for NotHere { engines: listed, case, .. } in ALL {
            for engine in *listed {
                assert!(engines.iter().any(|known| known.name() == *engine), "{engine}");
            }
            assert!(crate::cases::names().contains(case), "{case}");
        }
    }
}
