//! What must come of a setup, and the comparison with what was observed.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Debug;

use switcher_gen::arch::RFlags;
use switcher_gen::layout::{OrigAx, PtRegs, Pvcs, Revision, SwitchFlags};
use switcher_runtime::{DebugCauses, Detail, Exception, Exit, Mode};

use crate::case_host::{Failure, GuestBytes, HostAfter, Observed, Platform, Setup, place};

/// The exact state that must be observed, except for RF in the flags of an event: hardware sets it
/// there for faults, some emulators do not.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Why the guest exits.
    pub exit: Exit,
    /// Its registers; `orig_ax` follows from `exit`.
    pub regs: PtRegs,
    /// Its active GS base.
    pub gs_base: u64,
    /// Its PKRU.
    pub pkru: u32,
    /// Its mode.
    pub mode: Mode,
    /// smod's stack.
    pub smod_rsp: u64,
    /// Its PVCS.
    pub pvcs: Pvcs,
}

impl Expected {
    /// The guest exits with everything as it was.
    #[must_use]
    pub fn unchanged(setup: &Setup, exit: Exit) -> Self {
        Self {
            exit,
            regs: PtRegs { eflags: flags(setup.regs.eflags), ..setup.regs },
            gs_base: setup.gs_base,
            pkru: setup.pkru,
            mode: setup.mode,
            smod_rsp: setup.smod_rsp,
            pvcs: setup.pvcs,
        }
    }

    /// An exception without error code, such as the probe's #UD.
    #[must_use]
    pub const fn exception(vector: u8) -> Exit {
        Exit::Exception(Exception { vector, error_code: None, detail: Detail::None })
    }

    /// A #DB with these causes, as [`DebugCauses`] has them.
    #[must_use]
    pub const fn debug(causes: u64) -> Exit {
        Exit::Exception(Exception {
            vector: 1,
            error_code: None,
            detail: Detail::Dr6(DebugCauses::from_bits_truncate(causes)),
        })
    }

    /// The trap after an instruction that TF was set for.
    pub const SINGLE_STEP: Exit = Self::debug(DebugCauses::SINGLE_STEP.bits());

    /// A general protection fault.
    #[must_use]
    pub const fn general_protection(error_code: u32) -> Exit {
        Exit::Exception(Exception {
            vector: 13,
            error_code: Some(error_code),
            detail: Detail::None,
        })
    }

    /// A page fault.
    #[must_use]
    pub const fn page_fault(error_code: u32, address: u64) -> Exit {
        Exit::Exception(Exception {
            vector: 14,
            error_code: Some(error_code),
            detail: Detail::Cr2(address),
        })
    }

    /// What fetching an instruction at `rip`, where nothing is mapped, leads to.
    #[must_use]
    pub const fn fetch_fault(platform: &Platform, rip: u64) -> Exit {
        /// User, instruction fetch, not present.
        const FETCH: u32 = 0x14;
        if platform.paging.is_canonical(rip) {
            Self::page_fault(FETCH, rip)
        } else {
            Self::general_protection(0)
        }
    }

    /// What the switcher does with a SYSCALL that is no direct switch: RIP follows the SYSCALL,
    /// RCX and R11 are what SYSCALL makes of them.
    #[must_use]
    pub fn syscall_exit(setup: &Setup, at: u64) -> Self {
        let mut expected = Self::unchanged(setup, Exit::Syscall);
        let regs = &mut expected.regs;
        regs.rip = at.wrapping_add(2);
        regs.rcx = regs.rip;
        regs.r11 = regs.eflags;
        expected
    }

    /// What must be after umod's SYSCALL at `at`, when smod's first instruction is the probe.
    #[must_use]
    pub fn to_smod(setup: &Setup, platform: &Platform, at: u64) -> Self {
        let umod = flags(setup.regs.eflags);
        let rip = at.wrapping_add(2);
        let smod_flags = RFlags::SMOD_ENTRY.bits();
        let selectors = platform.selectors;
        let mut pvcs = setup.pvcs;
        pvcs.user_cs = selectors.user_cs();
        pvcs.user_ss = selectors.user_ds();
        pvcs.user_gsbase = setup.gs_base;
        pvcs.eflags = umod as u32;
        pvcs.rip = rip;
        let rsp = match platform.revision {
            Revision::V2024 => {
                pvcs.rsp = setup.regs.rsp;
                setup.smod_rsp
            }
            // RSP passes through in this revision.
            Revision::V2026 => setup.regs.rsp,
        };
        pvcs.rcx = rip;
        pvcs.r11 = umod;
        let mut pkru = setup.pkru;
        if platform.pku {
            pvcs.pkru = pkru;
            pkru = setup.smod_pkru;
        }
        Self {
            exit: Self::UD,
            regs: PtRegs {
                rip: setup.smod_entry,
                rcx: setup.smod_entry,
                rsp,
                r11: smod_flags,
                eflags: smod_flags,
                cs: selectors.user_cs().into(),
                ss: selectors.user_ds().into(),
                ..setup.regs
            },
            gs_base: setup.smod_gsbase,
            pkru,
            mode: Mode::Smod,
            smod_rsp: setup.smod_rsp,
            pvcs,
        }
    }

    /// What must be after smod's ERETU, when umod's first instruction is the probe.
    #[must_use]
    pub fn to_umod(setup: &Setup, platform: &Platform) -> Self {
        let pvcs = setup.pvcs;
        let selectors = platform.selectors;
        let (rsp, smod_rsp) = match platform.revision {
            Revision::V2024 => (pvcs.rsp, setup.regs.rsp),
            // RSP passes through in this revision.
            Revision::V2026 => (setup.regs.rsp, setup.smod_rsp),
        };
        Self {
            exit: Self::UD,
            regs: PtRegs {
                rip: pvcs.rip,
                rcx: pvcs.rcx,
                rsp,
                r11: pvcs.r11,
                eflags: flags(pvcs.eflags.into()),
                cs: selectors.user_cs().into(),
                ss: selectors.user_ds().into(),
                ..setup.regs
            },
            gs_base: platform.paging.canonicalize(pvcs.user_gsbase),
            pkru: if platform.pku { pvcs.pkru } else { setup.pkru },
            mode: Mode::Umod,
            smod_rsp,
            pvcs,
        }
    }

    /// The probe's exit.
    pub const UD: Exit = Self::exception(6);

    /// Compares everything that was observed.
    ///
    /// # Errors
    /// With every difference, by name.
    pub fn compare(&self, setup: &Setup, got: &Observed) -> Result<(), Failure> {
        let mut differences = Differences(Vec::new());
        differences.note("exit", &self.exit, &got.exit);
        for ((name, wanted), (_, got)) in
            registers(&self.regs).into_iter().zip(registers(&got.regs))
        {
            differences.hex(name, wanted, got);
        }
        let ignored = if got.exit == Exit::Syscall { 0 } else { RFlags::RF.bits() };
        differences.hex("eflags", self.regs.eflags & !ignored, got.regs.eflags & !ignored);
        differences.note("orig_ax", &orig_ax(self.exit), &got.regs.orig_ax);
        differences.hex("gs base", self.gs_base, got.gs_base);
        differences.hex("pkru", self.pkru.into(), got.pkru.into());
        differences.note("mode", &self.mode, &got.mode);
        differences.note("switch_flags", &switch_flags(setup, self.mode), &got.switch_flags);
        differences.hex("smod_rsp", self.smod_rsp, got.smod_rsp);
        differences.note("pvcs", &self.pvcs, &got.pvcs);
        differences.note("host", &HostAfter::IN_ORDER, &got.host.without_arithmetic());
        if differences.0.is_empty() { Ok(()) } else { Err(Failure(differences.0.join("; "))) }
    }
}

/// The flags that a guest gets when it asks for these.
fn flags(wanted: u64) -> u64 {
    RFlags::from_bits_retain(wanted).sanitised().bits()
}

/// The flags with the mode toggled as it must be: the switcher changes no other bit.
fn switch_flags(setup: &Setup, mode: Mode) -> SwitchFlags {
    let mut flags = setup.inhibitors | mode.flag();
    flags.set(SwitchFlags::NO_DS_CR3, !setup.other_root);
    flags.set(SwitchFlags::PVCS_INVALID, !setup.pvcs_registered);
    flags
}

/// The frame's account of an exit.
fn orig_ax(exit: Exit) -> OrigAx {
    match exit {
        Exit::Syscall => OrigAx { error_code: 0, reason: 1024 },
        Exit::FailedEntry { error_code } => OrigAx { error_code, reason: 1025 },
        Exit::Unknown(cause) => cause,
        Exit::Interrupt { vector } => event(vector, None),
        Exit::Nmi => event(2, None),
        Exit::MachineCheck => event(18, None),
        Exit::Exception(exception) => event(exception.vector, exception.error_code),
    }
}

/// The frame's account of an event.
fn event(vector: u8, error_code: Option<u32>) -> OrigAx {
    OrigAx { error_code: error_code.unwrap_or(u32::MAX), reason: vector.into() }
}

/// All registers of a frame but the flags.
fn registers(regs: &PtRegs) -> [(&'static str, u64); 19] {
    [
        ("rax", regs.rax),
        ("rbx", regs.rbx),
        ("rcx", regs.rcx),
        ("rdx", regs.rdx),
        ("rsi", regs.rsi),
        ("rdi", regs.rdi),
        ("rbp", regs.rbp),
        ("rsp", regs.rsp),
        ("r8", regs.r8),
        ("r9", regs.r9),
        ("r10", regs.r10),
        ("r11", regs.r11),
        ("r12", regs.r12),
        ("r13", regs.r13),
        ("r14", regs.r14),
        ("r15", regs.r15),
        ("rip", regs.rip),
        ("cs", regs.cs),
        ("ss", regs.ss),
    ]
}

struct Differences(Vec<String>);

impl Differences {
    fn note<T: PartialEq + Debug>(&mut self, name: &str, wanted: &T, got: &T) {
        if wanted != got {
            self.0.push(format!("{name} is {got:x?}, not {wanted:x?}"));
        }
    }

    fn hex(&mut self, name: &str, wanted: u64, got: u64) {
        if wanted != got {
            self.0.push(format!("{name} is {got:#x}, not {wanted:#x}"));
        }
    }
}

impl Setup {
    /// A guest of the cases' custom: in `mode`, everything prepared, everything else random.
    #[must_use]
    pub fn random(rng: &mut fastrand::Rng, platform: &Platform, mode: Mode) -> Self {
        let selectors = platform.selectors;
        let mut any = || rng.u64(..);
        let regs = PtRegs {
            r15: any(),
            r14: any(),
            r13: any(),
            r12: any(),
            rbp: any(),
            rbx: any(),
            r11: any(),
            r10: any(),
            r9: any(),
            r8: any(),
            rax: any(),
            rcx: any(),
            rdx: any(),
            rsi: any(),
            rdi: any(),
            orig_ax: OrigAx { error_code: u32::MAX, reason: u32::MAX },
            rip: match mode {
                Mode::Smod => place::ERETU,
                Mode::Umod => place::UMOD_CODE,
            },
            cs: selectors.user_cs().into(),
            eflags: any() & Self::HARMLESS_FLAGS.bits() | RFlags::GUEST_FIXED.bits(),
            rsp: any(),
            ss: selectors.user_ds().into(),
        };
        let mut pvcs = random_pvcs(&mut any, platform);
        if mode == Mode::Umod {
            // The fields start with random values before umod's SYSCALL, because the switcher must
            // write all of them.
            pvcs.user_cs = any() as u16;
            pvcs.user_ss = any() as u16;
        }
        let paging = platform.paging;
        Self {
            mode,
            regs,
            gs_base: paging.canonicalize(any()),
            pkru: any() as u32 & Self::PKRU,
            inhibitors: SwitchFlags::empty(),
            pvcs,
            pvcs_registered: true,
            other_root: true,
            retu_rip: place::RETU_RIP,
            smod_entry: place::SMOD_ENTRY,
            smod_gsbase: paging.canonicalize(any()),
            smod_rsp: any(),
            smod_pkru: any() as u32 & Self::PKRU,
            code: Vec::new(),
            breakpoint: None,
        }
    }

    /// What a guest may have set without its next instruction behaving differently.
    const HARMLESS_FLAGS: RFlags = RFlags::CF
        .union(RFlags::PF)
        .union(RFlags::AF)
        .union(RFlags::ZF)
        .union(RFlags::SF)
        .union(RFlags::DF)
        .union(RFlags::OF)
        .union(RFlags::NT)
        .union(RFlags::AC)
        .union(RFlags::ID);

    /// What a PKRU may have set without the guests' pages, which have key 0, being out of reach.
    pub const PKRU: u32 = !3;

    /// Adds to a mode's program.
    #[must_use]
    pub fn with(mut self, mode: Mode, at: u64, bytes: &[u8]) -> Self {
        self.code.push(GuestBytes { mode, at, bytes: bytes.to_vec() });
        self
    }
}

/// A PVCS with everything a guest could put there, RIP and the selectors excepted: for an ERETU
/// that gets as far as the probe.
fn random_pvcs(any: &mut impl FnMut() -> u64, platform: &Platform) -> Pvcs {
    let mut pvcs = Pvcs::default();
    pvcs.event_flags = any();
    pvcs.event_errcode = any() as u32;
    pvcs.event_vector = any() as u32;
    pvcs.cr2 = any();
    pvcs.user_cs = platform.selectors.user_cs();
    pvcs.user_ss = platform.selectors.user_ds();
    pvcs.user_gsbase = any();
    pvcs.eflags = any() as u32;
    pvcs.pkru = any() as u32 & Setup::PKRU;
    pvcs.rip = place::UMOD_CODE;
    pvcs.rsp = any();
    pvcs.rcx = any();
    pvcs.r11 = any();
    pvcs
}
