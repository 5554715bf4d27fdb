//! The terms that cases and engines share: the state of a guest before a run, everything that is
//! visible after it, and the host that runs guests.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use switcher_gen::arch::{PagingMode, RFlags, Selectors, Vendor};
use switcher_gen::layout::{PtRegs, Pvcs, Revision, SwitchFlags};
use switcher_runtime::{Exit, Mode};

/// What expected outcomes depend on.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// The vendor, whose SYSRET the CPU has.
    pub vendor: Vendor,
    /// The paging mode, which says how wide a canonical address is.
    pub paging: PagingMode,
    /// The host's selectors.
    pub selectors: Selectors,
    /// CS and SS of other GDT entries with the same content as `user_cs` and `user_ds`: only
    /// IRETQ can load them.
    pub aliases: (u16, u16),
    /// The revision of the PVCS. Cases use the layout of 2024. An engine whose switcher is for
    /// another revision puts the fields where that revision has them, and leaves out those that it
    /// lacks.
    pub revision: Revision,
    /// Whether each mode has a PKRU of its own: CR4.PKE.
    pub pku: bool,
}

/// Where a guest's pages lie. smod and umod have pages of their own at the same addresses, so that
/// a guest that runs on the wrong root is noticed.
pub mod place {
    use switcher_gen::arch::PagingMode;

    /// Size of each page.
    pub const PAGE: u64 = 4096;
    /// Code, in both modes.
    pub const TEXT: u64 = 0x4000_0000_0000;
    /// Where umod's code starts, by custom of the cases.
    pub const UMOD_CODE: u64 = TEXT + 0x100;
    /// Where SYSCALLs of umod land, by custom of the cases.
    pub const SMOD_ENTRY: u64 = TEXT + 0x400;
    /// The SYSCALL that means ERETU, by custom of the cases.
    pub const ERETU: u64 = TEXT + 0x800;
    /// The address that ERETU's SYSCALL leaves in RCX.
    pub const RETU_RIP: u64 = ERETU + 2;
    /// Code below 4 GiB, for 32-bit code. One page for both modes.
    pub const TEXT32: u64 = 0xC000_0000;
    /// Stack, in both modes.
    pub const STACK: u64 = TEXT + 0x10_0000;
    /// The first address above the stack.
    pub const STACK_TOP: u64 = STACK + PAGE;
    /// Nothing is mapped here.
    pub const NOWHERE: u64 = TEXT + 0x20_0000;

    /// The last page of the lower canonical half: code, in both modes.
    #[must_use]
    pub const fn last(paging: PagingMode) -> u64 {
        first_non_canonical(paging) - PAGE
    }

    /// The address after the lower canonical half.
    #[must_use]
    pub const fn first_non_canonical(paging: PagingMode) -> u64 {
        1 << (paging.address_bits() - 1)
    }
}

/// Bytes of a guest's program.
#[derive(Clone, Debug)]
pub struct GuestBytes {
    /// The mode whose page it is.
    pub mode: Mode,
    /// The address, in [`place::TEXT`], [`place::last`] or [`place::TEXT32`].
    pub at: u64,
    /// The bytes. Everything else in these pages is INT3.
    pub bytes: Vec<u8>,
}

/// A guest about to be entered.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The mode it is entered in.
    pub mode: Mode,
    /// Its registers.
    pub regs: PtRegs,
    /// Its active GS base.
    pub gs_base: u64,
    /// Its PKRU, where there are protection keys.
    pub pkru: u32,
    /// Inhibitors that do not follow from the rest.
    pub inhibitors: SwitchFlags,
    /// The PVCS's content; registered if [`pvcs_registered`](Self::pvcs_registered).
    pub pvcs: Pvcs,
    /// Whether the host knows of the PVCS.
    pub pvcs_registered: bool,
    /// Whether the root of the mode it is not in is prepared.
    pub other_root: bool,
    /// The address after ERETU's SYSCALL.
    pub retu_rip: u64,
    /// Where umod's SYSCALL lands.
    pub smod_entry: u64,
    /// The GS base that smod is entered with.
    pub smod_gsbase: u64,
    /// The RSP that smod is entered with.
    pub smod_rsp: u64,
    /// The PKRU that smod is entered with.
    pub smod_pkru: u32,
    /// The programs.
    pub code: Vec<GuestBytes>,
    /// An instruction breakpoint (DR0) while the guest runs.
    pub breakpoint: Option<u64>,
}

/// Everything that can be observed after an exit.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Why the guest exited.
    pub exit: Exit,
    /// The guest's registers.
    pub regs: PtRegs,
    /// The guest's active GS base.
    pub gs_base: u64,
    /// Its PKRU; what the setup has where there are no protection keys.
    pub pkru: u32,
    /// The mode it is in now.
    pub mode: Mode,
    /// The switch flags as the switcher left them.
    pub switch_flags: SwitchFlags,
    /// smod's stack as the switcher left it.
    pub smod_rsp: u64,
    /// The PVCS's content.
    pub pvcs: Pvcs,
    /// The host.
    pub host: HostAfter,
}

/// What a host finds when the call that entered a guest has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAfter {
    /// RFLAGS, directly after the call.
    pub flags: RFlags,
    /// RBX, RBP and R12 to R15 are what they were.
    pub callee_saved_kept: bool,
    /// RCX, RDX, RSI, RDI and R8 to R11 are zero: nothing of the guest to speculate with.
    pub scratch_cleared: bool,
    /// RSP is what it was.
    pub stack_kept: bool,
    /// SS is the host's data segment, where it matters: on AMD a null SS, which an event from CPL 3
    /// leaves, would reach the next guest through SYSRETQ (spec/hazards.md, row 18).
    pub stack_segment_loaded: bool,
    /// CR3 is what it was.
    pub root_kept: bool,
    /// GS base is what it was.
    pub gs_kept: bool,
    /// host_rsp is zero again.
    pub host_rsp_cleared: bool,
}

impl HostAfter {
    /// A host that has kept everything and has none of the guest's flags.
    pub const IN_ORDER: Self = Self {
        flags: RFlags::FIXED,
        callee_saved_kept: true,
        scratch_cleared: true,
        stack_kept: true,
        stack_segment_loaded: true,
        root_kept: true,
        gs_kept: true,
        host_rsp_cleared: true,
    };

    /// The same without the flags that instructions may have set between the return and looking.
    #[must_use]
    pub fn without_arithmetic(self) -> Self {
        const ARITHMETIC: RFlags = RFlags::CF
            .union(RFlags::PF)
            .union(RFlags::AF)
            .union(RFlags::ZF)
            .union(RFlags::SF)
            .union(RFlags::OF);
        Self { flags: self.flags - ARITHMETIC, ..self }
    }
}

/// The registers that decide where a guest's SYSCALL, SYSENTER and 32-bit SYSCALL lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// MSR STAR.
    pub star: u64,
    /// MSR SFMASK.
    pub sfmask: u64,
    /// MSR SYSENTER_CS.
    pub sysenter_cs: u64,
    /// MSR LSTAR is the address of `entry_SYSCALL_64_switcher`.
    pub lstar_is_the_entry: bool,
    /// MSR CSTAR is the address of `entry_SYSCALL_compat_switcher`.
    pub cstar_is_the_stub: bool,
    /// EFER.SCE and CR4.FSGSBASE.
    pub enabled: bool,
}

/// Why a case failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an engine has nothing to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This engine cannot do what the case asks for, whatever the switcher does.
    NotHere(String),
    /// The switcher did what no switcher may, and the engine has noticed.
    Failure(Failure),
}

/// A host that can run guests for the cases. Every engine implements it.
pub trait CaseHost {
    /// What its CPU does with SYSCALL, SYSENTER and 32-bit SYSCALL.
    ///
    /// # Errors
    /// If the engine cannot tell.
    fn entries(&self) -> Result<Entries, Refusal>;
    /// The platform that it runs guests on.
    fn platform(&self) -> Platform;
    /// Runs one guest until its next exit.
    ///
    /// # Errors
    /// If it could not be run, or did not come to an exit as it must.
    fn run(&mut self, setup: &Setup) -> Result<Observed, Refusal>;
}
