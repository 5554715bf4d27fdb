//! Programs one CPU so that its guests' SYSCALLs land in the switcher, and gives it back.

use core::ptr::NonNull;

use switcher_gen::arch::{Msr as MsrName, RFlags};
use switcher_gen::asm::Label;
use switcher_gen::layout::TssExtra;
use switcher_gen::mitigations::Assessment;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};

use crate::load::Switcher;
use crate::mapping::MappingList;
use crate::predictors::Barriers;
use crate::prepare::{Prepared, WrongCpu};
use crate::refused::Refused;
use crate::registers::{read_msr, write_msr};

/// A CPU on which a switcher is active: it can [enter](Self::enter) guests. Not `Send`: it is the
/// CPU it was made on.
#[derive(Debug)]
pub struct Cpu<'s> {
    pub(crate) prepared: Prepared<'s>,
    before: Registers,
}

/// Why a switcher stays active on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeactivateError {
    /// The registers to be restored are another CPU's, or may be in the middle of it.
    #[error(transparent)]
    WrongCpu(#[from] WrongCpu),
    /// A guest runs on this CPU: when it exits, the switcher would not find its host.
    #[error("a guest is running on this CPU: host_rsp is not zero")]
    GuestRunning,
    /// Somebody else has changed a register since `activate`, and relies on it; or the CPU has been
    /// reset.
    #[error(
        "{register:?} is {found:#x}, not what `activate` has written: {written:#x}; after a reset of the CPU, \
         call `Cpu::gone` instead"
    )]
    Changed {
        /// The register that is not as `activate` has left it.
        register: MsrName,
        /// The value that was found.
        found: u64,
        /// The value that `activate` has written.
        written: u64,
    },
}

/// The registers that `activate` and `enter` change, with the values that they had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    fsgsbase: bool,
    syscall: bool,
    msrs: [(MsrName, u64); 6],
}

impl Registers {
    /// Reads the registers as they are now. KERNEL_GS_BASE is the one that `enter` uses up.
    fn read() -> Self {
        let name = |msr: MsrName| {
            // SAFETY: every CPU with long mode has these MSRs; reading them changes nothing.
            (msr, unsafe { read_msr(msr.address()) })
        };
        Self {
            fsgsbase: Cr4::read().contains(Cr4Flags::FSGSBASE),
            syscall: Efer::read().contains(EferFlags::SYSTEM_CALL_EXTENSIONS),
            msrs: [
                MsrName::Star,
                MsrName::Lstar,
                MsrName::Cstar,
                MsrName::Sfmask,
                MsrName::SysenterCs,
                MsrName::KernelGsBase,
            ]
            .map(name),
        }
    }
}

impl Switcher {
    /// The MSRs that `activate` writes, each with its value.
    fn msrs(&self) -> [(MsrName, u64); 5] {
        [
            (MsrName::Star, self.variant().selectors().star().bits()),
            (MsrName::Lstar, self.address(Label::Syscall64)),
            (MsrName::Cstar, self.address(Label::SyscallCompat)),
            (MsrName::Sfmask, RFlags::SYSCALL_CLEARS.bits()),
            (MsrName::SysenterCs, 0),
        ]
    }
}

impl<'s> Prepared<'s> {
    /// Makes this CPU use the switcher: writes CR4.FSGSBASE, EFER.SCE, STAR, LSTAR, CSTAR, SFMASK
    /// and SYSENTER_CS (0: SYSENTER faults). GS base, IDT, GDT and TSS stay the host's. A host does
    /// this once, or around each run of a guest: it is a read and a write for each of these
    /// registers, and allocates and frees nothing. It needs less than 2.5 KiB of stack, in an
    /// optimised build.
    ///
    /// # Errors
    /// If this is not the CPU of `prepare`, or if interrupts are enabled. Nothing has been changed
    /// then: the error holds the prepared CPU itself, and says why.
    ///
    /// # Safety
    /// Must be called at CPL 0. From then on, until [`Cpu::deactivate`]:
    ///
    /// * the CPU is not reset, suspended or taken offline; if it has been, [`Cpu::gone`] comes
    ///   before anything else;
    /// * nothing else changes the registers written here;
    /// * no CPL 3 of the host's own executes SYSCALL, in 64-bit or 32-bit mode;
    /// * the host tells kernel from user by something else than the sign of GS base, which CPL 3
    ///   can now set to anything.
    #[expect(
        clippy::result_large_err,
        reason = "a box would be allocated where a host may not be able to"
    )]
    pub unsafe fn activate(self) -> Result<Cpu<'s>, Refused<Self, WrongCpu>> {
        if let Err(why) = self.is_here() {
            return Err(Refused::new(self, why));
        }
        // From here on nothing can fail, and nothing is allocated or freed.
        let before = Registers::read();
        if !before.fsgsbase {
            // SAFETY: the feature is there (`for_host`); the caller vouches for not deciding by the
            // sign of GS base.
            unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::FSGSBASE)) };
        }
        for (msr, value) in self.switcher.msrs() {
            // SAFETY: the values are legal for their MSRs (selectors and addresses were checked
            // when they were made). The entry points are sealed code that is sound to be entered by
            // SYSCALL; the caller vouches for leaving the MSRs alone.
            unsafe { write_msr(msr.address(), value) };
        }
        if !before.syscall {
            // SAFETY: every CPU with long mode has EFER.SCE; the caller vouches that no CPL 3 of
            // the host's own executes the SYSCALL that it enables.
            unsafe { Efer::update(|efer| efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        }
        Ok(Cpu { prepared: self, before })
    }
}

impl<'s> Cpu<'s> {
    /// The CPU as [`prepare`](Switcher::prepare) has found it fit.
    #[must_use]
    pub const fn prepared(&self) -> &Prepared<'s> {
        &self.prepared
    }

    /// The switcher that is active here.
    #[must_use]
    pub const fn switcher(&self) -> &'s Switcher {
        self.prepared.switcher()
    }

    /// What [`Prepared::mappings`] says.
    #[must_use]
    pub fn mappings(&self) -> MappingList {
        self.prepared.mappings()
    }

    /// What [`Prepared::assess`] says.
    ///
    /// # Errors
    /// As there.
    pub fn assess(&self) -> Result<Assessment, WrongCpu> {
        self.prepared.assess()
    }

    /// Does what [`Prepared::barrier_before_user_mode`] does.
    ///
    /// # Errors
    /// As there.
    pub fn barrier_before_user_mode(&mut self) -> Result<(), WrongCpu> {
        self.prepared.barrier_before_user_mode()
    }

    /// Does what [`Prepared::set_barriers`] does.
    pub const fn set_barriers(&mut self, barriers: Barriers) {
        self.prepared.set_barriers(barriers);
    }

    /// What [`Prepared::barriers`] says.
    #[must_use]
    pub const fn barriers(&self) -> u64 {
        self.prepared.barriers()
    }

    /// Gives the host its registers back, as [`activate`](Prepared::activate) found them: STAR,
    /// LSTAR, CSTAR, SFMASK, SYSENTER_CS and KERNEL_GS_BASE have the values again that they had
    /// then, CR4.FSGSBASE and EFER.SCE are clear again if they were. Interrupts must be off.
    ///
    /// What guests have left in the TLB and the predictors stays: the CPU is prepared still. Before
    /// it runs code of the host's at CPL 3, call [`Prepared::barrier_before_user_mode`].
    ///
    /// It needs less than 2.5 KiB of stack, in an optimised build.
    ///
    /// # Errors
    /// If this is not the CPU of `prepare`, if interrupts are enabled, if a guest is running, or if
    /// somebody else has changed a register. Nothing has been changed then, and the switcher stays
    /// active: the error holds the CPU itself, and says why.
    #[expect(
        clippy::result_large_err,
        reason = "a box would be allocated where a host may not be able to"
    )]
    pub fn deactivate(self) -> Result<Prepared<'s>, Refused<Self, DeactivateError>> {
        if let Err(why) = self.can_be_deactivated() {
            return Err(Refused::new(self, why));
        }
        let Registers { fsgsbase, syscall, msrs } = self.before;
        // SYSCALL is switched off first: it must not land in an entry whose other registers are
        // gone.
        if !syscall {
            // SAFETY: EFER.SCE was clear when `activate` came, so the host does without SYSCALL.
            unsafe { Efer::update(|efer| efer.remove(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        }
        for (msr, value) in msrs {
            // SAFETY: the value was read from this MSR of this CPU. Whoever relied on it before
            // `activate` may rely on it again; whoever relies on the value of `activate` knows that
            // it ends here.
            unsafe { write_msr(msr.address(), value) };
        }
        if !fsgsbase {
            // SAFETY: CR4.FSGSBASE was clear when `activate` came, so the host does without these
            // instructions; this crate uses none of them until the next `activate`.
            unsafe { Cr4::update(|cr4| cr4.remove(Cr4Flags::FSGSBASE)) };
        }
        Ok(self.prepared)
    }

    /// Declares that this CPU has nothing of the switcher any more: see [`Prepared::gone`]. Nothing
    /// is restored: its registers hold what its host has put there since, if anything.
    /// [`enter`](Self::enter) refuses on such a CPU, and so would [`deactivate`](Self::deactivate).
    ///
    /// # Safety
    /// The contract of [`Prepared::gone`].
    pub unsafe fn gone(self) {
        // SAFETY: the caller vouches for the same contract.
        unsafe { self.prepared.gone() };
    }

    fn can_be_deactivated(&self) -> Result<(), DeactivateError> {
        self.prepared.is_here()?;
        for (register, written) in self.switcher().msrs() {
            // SAFETY: every CPU with long mode has these MSRs; reading them changes nothing.
            let found = unsafe { read_msr(register.address()) };
            if found == written {
                continue;
            }
            return Err(DeactivateError::Changed { register, found, written });
        }
        // SAFETY: `prepare` was given a block that is valid for reads, and this is its CPU.
        match unsafe { self.tss_extra().read() }.host_rsp {
            0 => Ok(()),
            _ => Err(DeactivateError::GuestRunning),
        }
    }

    /// What [`Prepared::tss_extra`] says.
    pub(crate) fn tss_extra(&self) -> NonNull<TssExtra> {
        self.prepared.tss_extra()
    }
}
