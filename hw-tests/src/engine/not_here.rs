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
}

const NATIVE: &[&str] = &super::native::NAMES;

/// All of them.
pub const ALL: &[NotHere] = &[
    NotHere {
        engines: NATIVE,
        case: "syscall_as_the_last_canonical_instruction_returns_behind_it",
        why: "Linux maps nothing in the last page of the lower half",
    },
    NotHere {
        engines: NATIVE,
        case: "a_resume_flag_from_the_pvcs_passes_the_breakpoint",
        why: "DR0 is the kernel's",
    },
    NotHere {
        engines: NATIVE,
        case: "selectors_of_the_guests_own_are_entered_with_and_end_with_an_eretu",
        why: "Linux's GDT has no second descriptors for user code and data",
    },
    NotHere {
        engines: NATIVE,
        case: "sysenter_is_shut",
        why: "SYSENTER would reach Linux, unless the silicon is AMD's",
    },
    NotHere {
        engines: NATIVE,
        case: "syscall_and_its_like_lead_where_the_abi_says",
        why: "the MSRs are the kernel's",
    },
    NotHere {
        engines: NATIVE,
        case: "a_32_bit_syscall_is_answered_or_shut",
        why: "a 32-bit SYSCALL would reach Linux",
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
