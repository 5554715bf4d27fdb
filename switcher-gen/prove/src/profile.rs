//! Known kernels: how their switchers' symbols are called, where their data lies, and what the code
//! around them guarantees. Each line of a profile can be added to or waived by whoever judges.
//!
//! The facts are from reading and trying those kernels (spec/foreign.md); no code is theirs.

use switcher_gen::asm::Window;
use switcher_gen::layout::Revision;
use switcher_gen::{Policy, Variant};

use crate::contract::{Clauses, Contract, Room};
use crate::elf::{Foreign, Request};
use crate::layouts::{LayoutError, Places};
use crate::setting::{BlockOffsets, Setting};
use crate::target::Target;

/// What is known of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name for `--profile`.
    pub name: &'static str,
    /// Which kernels are meant.
    pub about: &'static str,
    /// Symbols of ours, and what they are called there.
    pub symbols: &'static [(&'static str, &'static str)],
    /// The per-CPU variable that holds the TSS, and how far after its start the switcher's data
    /// begins; `None` if the TSS begins where GS base points to.
    pub tss: Option<(&'static str, i64)>,
    /// Where the fields of the switcher's data lie, from its start on; empty if as ours.
    pub extra: &'static [(&'static str, u64)],
    /// The revision of the PVCS; `None` if the variant says it.
    pub pvcs: Option<Revision>,
    /// Where the host's handlers of NMIs and machine checks take RSP for the guest's.
    pub unsafe_stack: &'static [Range],
    /// What the code around the switcher guarantees.
    pub contract: Contract,
}

/// A range of code, by symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// From one symbol to another.
    Between(&'static str, &'static str),
    /// The instruction at a symbol.
    At(&'static str),
    /// The answer to a 32-bit SYSCALL, whatever it is called, up to its first return or jump.
    SyscallCompat,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Between(start, end) => write!(f, "from {start} to {end}"),
            Self::At(at) => write!(f, "at {at}"),
            Self::SyscallCompat => {
                f.write_str("in the answer to a 32-bit SYSCALL, up to its first return or jump")
            }
        }
    }
}

/// What the C code and the event entries of Linux guarantee.
const LINUX: Contract = {
    let clauses = Clauses::ENTRY_REGISTERS
        .union(Clauses::ENTRY_FLAGS)
        .union(Clauses::FRAME_FLAGS)
        .union(Clauses::FRAME_SELECTORS)
        .union(Clauses::DIRECT_CALLS)
        .union(Clauses::ANY_RDI);
    // An entry stack has a page, and a kernel's stack several.
    match (Room::new(4096), Room::new(4096)) {
        (Ok(entry_stack), Ok(caller_stack)) => Contract { clauses, entry_stack, caller_stack },
        _ => panic!("a page is room"),
    }
};

/// Where Linux's handlers of NMIs take RSP for the guest's.
const LINUX_UNSAFE_STACK: &[Range] = &[
    Range::Between("entry_SYSCALL_64_switcher", "entry_SYSCALL_64_switcher_safe_stack"),
    Range::At("entry_SYSRETQ_switcher_unsafe_stack"),
    Range::SyscallCompat,
];

/// The same of the module, whose handlers do not know of its answer to a 32-bit SYSCALL.
const MODULE_UNSAFE_STACK: &[Range] = &[
    Range::Between("entry_SYSCALL_64_switcher", "entry_SYSCALL_64_switcher_safe_stack"),
    Range::At("entry_SYSRETQ_switcher_unsafe_stack"),
];

/// The variable of Linux that holds the TSS.
const CPU_TSS: (&str, i64) = ("cpu_tss_rw", 0x80);

impl Profile {
    /// All of them, our own first.
    pub const ALL: [Self; 4] = [
        Self {
            name: "ours",
            about: "switchers of this toolkit, and what is written after its specification",
            symbols: &[],
            tss: None,
            extra: &[],
            pvcs: None,
            unsafe_stack: &[],
            contract: Contract::OURS,
        },
        Self {
            name: "linux-pvm-2024",
            about: "Linux with the PVM patches of 2024, and what was made of them with the same \
                    structs",
            symbols: &[("entry_IRETQ_switcher", "native_irq_return_iret")],
            tss: Some(CPU_TSS),
            extra: &[],
            pvcs: None,
            unsafe_stack: LINUX_UNSAFE_STACK,
            contract: LINUX,
        },
        Self {
            name: "linux-pvm-module-2026",
            about: "the module of 2026 with an IDT of its own, whose data has `host_gs_base` after \
                    `host_rsp`",
            symbols: &[
                ("entry_IRETQ_switcher", "entry_IRETQ_switcher_rip"),
                ("entry_SYSCALL_compat_switcher", "entry_pvm_SYSCALL32_ignore"),
            ],
            tss: Some(CPU_TSS),
            extra: &[
                ("host_cr3", 0x00),
                ("host_rsp", 0x08),
                ("host_gs_base", 0x10),
                ("enter_cr3", 0x18),
                ("switch_flags", 0x40),
                ("smod_cr3", 0x48),
                ("umod_cr3", 0x50),
                ("pvcs", 0x58),
                ("retu_rip", 0x60),
                ("smod_entry", 0x68),
                ("smod_gsbase", 0x70),
                ("smod_rsp", 0x78),
            ],
            pvcs: None,
            unsafe_stack: MODULE_UNSAFE_STACK,
            contract: LINUX,
        },
        Self {
            name: "aledbf-2026",
            about: "the kernel of 2026 that has a guest's protection keys in the switcher's data",
            symbols: &[("entry_IRETQ_switcher", "native_irq_return_iret")],
            tss: Some(CPU_TSS),
            extra: &[
                ("host_cr3", 0x00),
                ("host_rsp", 0x08),
                ("enter_cr3", 0x10),
                ("switch_flags", 0x40),
                ("smod_cr3", 0x48),
                ("umod_cr3", 0x50),
                ("pvcs", 0x58),
                ("retu_rip", 0x60),
                ("smod_entry", 0x68),
                ("smod_gsbase", 0x70),
                ("pku_on", 0x78),
                ("smod_pkru", 0x7C),
            ],
            pvcs: Some(Revision::V2026),
            unsafe_stack: LINUX_UNSAFE_STACK,
            contract: LINUX,
        },
    ];

    /// The profile of this name.
    ///
    /// # Errors
    /// Lists the names that there are.
    pub fn named(name: &str) -> Result<&'static Self, NoProfile> {
        const ALL: &[Profile] = &Profile::ALL;
        ALL.iter()
            .find(|profile| profile.name == name)
            .ok_or_else(|| NoProfile { name: name.into() })
    }
}

impl Profile {
    /// The labels by which its handlers know the windows.
    pub fn labels(&self) -> impl Iterator<Item = &'static str> {
        self.unsafe_stack.iter().flat_map(|range| match *range {
            Range::Between(start, end) => vec![start, end],
            Range::At(at) => vec![at],
            Range::SyscallCompat => Vec::new(),
        })
    }

    /// The symbols under which a file of this kernel has what ours have other names for, and the
    /// variable that holds the TSS.
    ///
    /// # Panics
    /// Never: each profile is tried by a test.
    #[must_use]
    pub fn request(&self) -> Request {
        let request = self.tss.iter().fold(Request::default(), |all, (tss, _)| all.with_data(tss));
        let request = self.labels().fold(request, Request::with_label);
        self.symbols.iter().fold(request, |request, (ours, theirs)| {
            request.with_symbol(ours, theirs).expect("a profile names symbols of ours")
        })
    }

    /// What its kernels are on a host that `variant` is for, with the revision that they have.
    ///
    /// # Errors
    /// If their structs lack a field that the variant needs.
    pub fn setting(&self, variant: &Variant) -> Result<Setting, LayoutError> {
        let policy = variant.policy();
        let revision = self.pvcs.unwrap_or(policy.revision);
        let variant = variant.with_policy(Policy { revision, ..policy });
        let setting = Setting::from(&variant).with_contract(self.contract);
        if self.extra.is_empty() {
            return Ok(setting);
        }
        let fields = self.extra.iter().map(|(name, at)| (*name, *at, None));
        setting.with_extra(Places::new(None, fields)?)
    }

    /// Where the TSS and the switcher's data lie relative to GS base, if the file refers to them.
    #[must_use]
    pub fn block(&self, foreign: &Foreign) -> Option<BlockOffsets> {
        let Some((variable, extra)) = self.tss else { return Some(BlockOffsets::default()) };
        let tss = foreign.data.get(variable)?.cast_signed();
        Some(BlockOffsets { tss, tss_extra: tss.wrapping_add(extra) })
    }

    /// The same code, of which the host is told of the windows, if the code has all symbols that
    /// they are known by.
    #[must_use]
    pub fn with_windows(&self, target: Target, foreign: &Foreign) -> Target {
        let symbol = |name: &str| foreign.symbols.get(name).copied();
        // No range for what the code does not have and need not have.
        let range = |range: &Range| match range {
            Range::Between(start, end) => Some(Some(symbol(start)?..symbol(end)?)),
            // No other instruction begins within it.
            Range::At(at) => symbol(at).map(|at| Some(at..at.wrapping_add(1))),
            Range::SyscallCompat => {
                Some(target.syscall_compat.map(|entry| entry..target.straight_end(entry)))
            }
        };
        let ranges = self.unsafe_stack.iter().map(range).collect::<Option<Vec<_>>>();
        match ranges {
            Some(ranges) if !ranges.is_empty() => {
                target.with_window(Window::UnsafeStack, ranges.into_iter().flatten().collect())
            }
            _ => target,
        }
    }
}

/// No profile has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no profile is called `{name}`: there is `{}`", Profile::ALL.map(|profile| profile.name).join("`, `")
)]
pub struct NoProfile {
    /// The name.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use switcher_gen::kernels::ModuleExtra;
    use switcher_gen::layout::AsmLayout;

    use super::*;

    #[test]
    fn every_profile_names_what_there_is() {
        for profile in &Profile::ALL {
            assert_eq!(Profile::named(profile.name), Ok(profile));
            for (ours, theirs) in profile.symbols {
                assert_eq!(profile.request().theirs(ours), *theirs, "{}", profile.name);
            }
            for revision in [Revision::V2024, Revision::V2026] {
                let policy = Policy { revision, ..Policy::DEFAULT };
                let setting = profile.setting(&Variant::REFERENCE.with_policy(policy));
                assert!(setting.is_ok(), "{}: {setting:?}", profile.name);
            }
        }
        let error = Profile::named("linux").unwrap_err().to_string();
        assert!(error.contains("`linux-pvm-2024`"), "{error}");
    }

    /// What is emitted in the place of a kernel's switcher is for the struct that is judged.
    #[test]
    fn the_struct_that_is_emitted_for_is_that_of_the_profile() {
        let profile = Profile::named("linux-pvm-module-2026").unwrap();
        let fields = ModuleExtra::LAYOUT.fields.iter().filter(|it| !it.name.starts_with('_'));
        let fields: Vec<_> = fields.map(|field| (field.name, field.offset as u64)).collect();
        assert_eq!(fields, profile.extra);
    }
}
