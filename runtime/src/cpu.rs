//! Programs one CPU so that its guests' SYSCALLs land in the switcher.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use raw_cpuid::CpuIdReaderNative;
use switcher_gen::arch::{HostFeatures, Msr as MsrName, PagingMode, RFlags, Speculation};
use switcher_gen::asm::Label;
use switcher_gen::layout::{IstTop, PerCpu, Placement, Tss, TssExtra};
use switcher_gen::mitigations::Assessment;
use switcher_gen::{Config, Gate, Mitigation, Mitigations, NoVariant, Variant};
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};

use crate::detect::{self, Detect};
use crate::has::Has;
use crate::load::Switcher;
use crate::mapping::MappingList;
use crate::pcid::CleanRoots;
use crate::predictors::{Barriers, Predictors};
use crate::refused::Refused;
use crate::registers::{self, DescriptorTablePointer, read_msr, write_msr};
use crate::state::{self, Host, Installed, StateError};

/// A CPU on which a switcher is installed. Not `Send`: it is the CPU it was made on.
#[derive(Debug)]
pub struct Cpu<'s> {
    pub(crate) switcher: &'s Switcher,
    pub(crate) per_cpu: NonNull<PerCpu>,
    before: Registers,
    pub(crate) has: Has,
    /// The registers as `install` has found or left them, with which `enter` compares.
    pub(crate) then: Installed,
    pub(crate) clean: CleanRoots,
    pub(crate) predictors: Predictors,
    pub(crate) barriers: Barriers,
    this_cpu_only: PhantomData<*mut ()>,
}

/// Why something cannot be done on this CPU at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrongCpu {
    /// What is to be done could begin on this CPU and end on another one.
    #[error("interrupts are enabled: disable them around this")]
    InterruptsEnabled,
    /// This code has been moved to another CPU since `install`, or GS base has been changed.
    #[error("GS base is {found:#x}, not this CPU's block at {expected:#x}: disable preemption")]
    OtherCpu {
        /// The value of GS base.
        found: u64,
        /// The block that `install` was given.
        expected: u64,
    },
}

impl WrongCpu {
    /// Whether code with these flags and this GS base is on the CPU with this block, and stays
    /// there.
    pub(crate) const fn check(flags: RFlags, gs_base: u64, block: u64) -> Result<(), Self> {
        if flags.contains(RFlags::IF) {
            return Err(Self::InterruptsEnabled);
        }
        if gs_base != block {
            return Err(Self::OtherCpu { found: gs_base, expected: block });
        }
        Ok(())
    }
}

/// Why a CPU cannot use a switcher. The CPU is left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// Interrupts are enabled: what is found on one CPU could be written to another one.
    #[error("interrupts are enabled: disable them around `install`")]
    InterruptsEnabled,
    /// There is no variant for this CPU as it is set up.
    #[error(transparent)]
    NoVariant(#[from] NoVariant),
    /// The switcher was emitted for another kind of CPU or paging mode.
    #[error("this CPU needs variant `{needed}`, but `{assembled}` is loaded")]
    OtherVariant {
        /// What [`Variant::for_host`] says here, under the policy and with the mitigations that
        /// were chosen.
        needed: Variant,
        /// The variant that was assembled.
        assembled: Variant,
    },
    /// The switcher writes an MSR that this CPU lacks: an exit would fault.
    #[error("this switcher has `{0}`, whose MSR this CPU lacks: assemble one without")]
    Mitigation(Mitigation),
    /// The per-CPU block does not lie where the code looks for it.
    #[error(
        "the per-CPU block is at {per_cpu:#x}, but this switcher is for the CPU whose block is at \
         {wanted:#x}, a page in front of its code"
    )]
    OtherBlock {
        /// The address of the block that `install` was given.
        per_cpu: u64,
        /// The address at which the code looks for its block.
        wanted: u64,
    },
    /// The stack at sp0 would not put event frames where the switcher looks for them.
    #[error(
        "sp0 is {sp0:#x}: it must be the 16-byte aligned top of a stack of {least} bytes",
        least = MappingList::LEAST_ENTRY_STACK,
    )]
    Sp0 {
        /// The value of sp0.
        sp0: u64,
    },
    /// A stack of the IST cannot be used: an event that may come at any instruction would have none
    /// of its own.
    #[error(
        "IST {index} is {top:#x}: it must be the 16-byte aligned top of a stack of {least} bytes \
         that no other event has, with {} bytes above it",
        size_of::<IstTop>(),
        least = MappingList::LEAST_STACK,
    )]
    Ist {
        /// 1 for #DF, 2 for NMI, 3 for #DB, 4 for #MC.
        index: u8,
        /// The address that the TSS has for this stack.
        top: u64,
    },
    /// A register or a structure that guests see, change or are ruled by is not as it has to be.
    #[error(transparent)]
    State(#[from] StateError),
    /// A guest runs on this CPU.
    #[error("a guest is running on this CPU: host_rsp is not zero")]
    GuestRunning,
}

/// Why a switcher stays installed on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UninstallError {
    /// The registers to be restored are another CPU's, or may be in the middle of it.
    #[error(transparent)]
    WrongCpu(#[from] WrongCpu),
    /// A guest runs on this CPU: when it exits, the switcher would not find its host.
    #[error("a guest is running on this CPU: host_rsp is not zero")]
    GuestRunning,
    /// Somebody else has changed a register since `install`, and relies on it; or the CPU has been
    /// reset.
    #[error(
        "{register:?} is {found:#x}, not what `install` has written: {written:#x}; after a reset of the CPU, \
         call `Cpu::gone` instead"
    )]
    Changed {
        /// The register that is not as `install` has left it.
        register: MsrName,
        /// The value that was found.
        found: u64,
        /// The value that `install` has written.
        written: u64,
    },
}

/// The registers that `install` and `enter` change, with the values that they had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    fsgsbase: bool,
    syscall: bool,
    msrs: [(MsrName, u64); 7],
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
                MsrName::GsBase,
            ]
            .map(name),
        }
    }
}

/// What `install` has found out before it changes anything.
struct Checked {
    stacks: [u64; Gate::STACKS.len()],
    has: Has,
}

impl Switcher {
    /// Makes this CPU use the switcher: checks that it can, then writes CR4.FSGSBASE, EFER.SCE,
    /// STAR, LSTAR, CSTAR, SFMASK, SYSENTER_CS (0: SYSENTER faults) and GS base (`per_cpu`), and an
    /// [`IstTop`] where the TSS's IST 1 to 4 point. The IDT stays the host's.
    ///
    /// From GS base on it allocates and frees nothing: a host whose allocator uses a GS base of its
    /// own finds it changed when this returns.
    ///
    /// # Errors
    /// If the CPU needs another variant, if the stacks are not what the emitted code relies on, or
    /// if [`CPU_STATE`](crate::CPU_STATE) has an objection. Nothing has been changed then.
    ///
    /// # Safety
    /// Must be called at CPL 0, with interrupts off, which is checked, or otherwise so that the
    /// caller stays on this CPU. From then on, until [`Cpu::uninstall`]:
    ///
    /// * the CPU is not reset, suspended or taken offline; if it has been, [`Cpu::gone`] comes
    ///   before anything else;
    /// * the switcher is not dropped, and nothing else changes the registers written here, nor what
    ///   the variant follows: CR4.LA57, PCIDE, PKE and CET;
    /// * what is checked here, but not by each [`Cpu::enter`] again, stays as it is: no entry of
    ///   the GDT becomes one that would be refused, the I/O map base of the TSS stays beyond its
    ///   limit, EFER.LMSLE and UAIE stay clear, and S_CET and IA32_USER_MSR_CTL as they are;
    /// * with CR4.PCIDE, the [`pcids`](Self::pcids) are the guests': the host has no translations
    ///   under them, and loads no CR3 with one;
    /// * `per_cpu` is valid for reads and writes, and used by nothing but this CPU's hardware, the
    ///   switcher and the result; its stacks do not change;
    /// * the stack below sp0 has at least [`MappingList::LEAST_ENTRY_STACK`] bytes and is used by
    ///   nobody while a guest is entered: in particular, [`Cpu::enter`] is not called on it;
    /// * IST 1 to 4 of the TSS point to [`IstTop`]s, writable and nobody else's, above stacks of at
    ///   least [`MappingList::LEAST_STACK`] bytes each, and as many more as the host's
    ///   [`Hooks`](crate::Hooks) need;
    /// * the hooks are as [`Hooks`](crate::Hooks) asks;
    /// * no CPL 3 of the host's own executes SYSCALL, in 64-bit or 32-bit mode: give LSTAR and
    ///   CSTAR back to the host before it runs one;
    /// * the host tells kernel from user by something else than the sign of GS base, which CPL 3
    ///   can now set to anything.
    pub unsafe fn install(&self, per_cpu: NonNull<PerCpu>) -> Result<Cpu<'_>, InstallError> {
        // SAFETY: the caller vouches that `per_cpu` is valid for reads.
        let Checked { stacks, has } = unsafe { self.check(per_cpu) }?;

        // From here on nothing can fail, and nothing is allocated or freed.
        let before = Registers::read();
        self.installed.fetch_add(1, Ordering::AcqRel);
        // SAFETY: the features are there (`for_host`); the caller vouches for not deciding by the
        // sign of GS base.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::FSGSBASE)) };
        // SAFETY: every CPU with long mode has EFER.SCE; the caller vouches that no CPL 3 of the
        // host's own executes the SYSCALL that it enables.
        unsafe { Efer::update(|efer| efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        for (msr, value) in self.msrs(per_cpu) {
            // SAFETY: the values are legal for their MSRs (selectors and addresses were checked
            // when they were made). The entry points are sealed code that is sound to be entered by
            // SYSCALL; the caller vouches for GS base and for leaving the MSRs alone.
            unsafe { write_msr(msr.address(), value) };
        }
        for top in stacks {
            let top = core::ptr::with_exposed_provenance_mut::<IstTop>(top as usize);
            let mut content = IstTop::default();
            content.gs_base = per_cpu.as_ptr() as u64;
            // SAFETY: `check_stacks` has found the address to be aligned and not null; the caller
            // vouches that it may be written, and that it is nobody else's.
            unsafe { top.write(content) };
        }
        Ok(Cpu {
            switcher: self,
            per_cpu,
            before,
            has,
            then: Installed::read(),
            clean: CleanRoots::unknown(),
            predictors: Predictors::unknown(),
            barriers: Barriers::Enter,
            this_cpu_only: PhantomData,
        })
    }

    /// Makes all checks of `install`. What it allocates, it has freed when it returns.
    ///
    /// # Safety
    /// Must be called at CPL 0; `per_cpu` is valid for reads.
    unsafe fn check(&self, per_cpu: NonNull<PerCpu>) -> Result<Checked, InstallError> {
        check_flags(registers::flags())?;
        let assembled = *self.variant();
        let selectors = assembled.selectors();
        let features = HostFeatures::detect();
        let Config { policy, mitigations, paging, .. } = assembled.config();
        let needed = Variant::for_host(&features, selectors)?;
        // The policy is the host's to choose, whatever its CPU. The mitigations are, too, but those
        // of another vendor remain a difference.
        let config = Config { policy, mitigations, ..needed.config() };
        let needed = Variant::new(config, selectors).unwrap_or(needed);
        if needed != assembled {
            return Err(InstallError::OtherVariant { needed, assembled });
        }
        check_mitigations(mitigations, features.speculation())?;
        check_block(policy.placement, per_cpu.as_ptr() as u64, self.base())?;
        // SAFETY: the caller vouches that `per_cpu` is valid for reads.
        let PerCpu { tss, tss_extra } = unsafe { per_cpu.read() };
        let sp0 = u64::from(tss.sp0);
        let room = sp0 > MappingList::LEAST_ENTRY_STACK;
        if !room || !sp0.is_multiple_of(16) || !paging.is_canonical(sp0) {
            return Err(InstallError::Sp0 { sp0 });
        }
        let stacks = check_stacks(&tss, paging)?;
        if tss_extra.host_rsp != 0 {
            return Err(InstallError::GuestRunning);
        }
        let has = Has::from_cpuid(&CpuIdReaderNative, state::pebs_is_unavailable);
        let tss_address = per_cpu.as_ptr() as u64 + PerCpu::tss.bytes() as u64;
        let host = Host::read(has, paging, selectors, tss_address, tss.iomap_base);
        state::check_host(&host)?;
        Ok(Checked { stacks, has })
    }

    /// What every guest root that is entered on the CPU with this block must map: the list that
    /// [`Cpu::mappings`] returns once the switcher is installed there. It is for hosts that cannot
    /// allocate at that time. GDTR is read: it must be the one that guests run with.
    #[must_use]
    pub fn mappings_of(&self, block: &PerCpu, address: u64) -> MappingList {
        self.mappings_with(block, address, DescriptorTablePointer::gdtr())
    }

    fn mappings_with(
        &self,
        block: &PerCpu,
        address: u64,
        gdtr: DescriptorTablePointer,
    ) -> MappingList {
        let idt = self.idt();
        MappingList::with_tables(block, address, gdtr, idt.address(), size_of_val(idt) as u64)
            .with_code(self.base(), self.image().bytes().len() as u64)
    }

    /// The MSRs that `install` writes, each with its value.
    fn msrs(&self, per_cpu: NonNull<PerCpu>) -> [(MsrName, u64); 6] {
        [
            (MsrName::Star, self.variant().selectors().star().bits()),
            (MsrName::Lstar, self.address(Label::Syscall64)),
            (MsrName::Cstar, self.address(Label::SyscallCompat)),
            (MsrName::Sfmask, RFlags::SYSCALL_CLEARS.bits()),
            (MsrName::SysenterCs, 0),
            (MsrName::GsBase, per_cpu.as_ptr() as u64),
        ]
    }
}

impl Cpu<'_> {
    /// What the faults of **this** CPU ask for as it is set up now, and what the host has not done
    /// about them. A variant is chosen once, but each CPU has MSRs of its own: one whose SPEC_CTRL
    /// differs from the others' may need more than the variant has, which
    /// [`Mitigations::covers`](switcher_gen::Mitigations::covers) tells. A host may know better, so
    /// [`install`](crate::Switcher::install) does not refuse. A variant with `untrain` is taken for
    /// the word of a host that has return thunks.
    ///
    /// # Errors
    /// If this is not the CPU of `install`, or if this code could be moved to another one
    /// meanwhile.
    pub fn assess(&self) -> Result<Assessment, WrongCpu> {
        self.is_here()?;
        let Config { vendor, mitigations, .. } = self.switcher().variant().config();
        Ok(detect::assess(HostFeatures::detect(), vendor, mitigations.untrain))
    }

    /// The switcher installed here.
    #[must_use]
    pub const fn switcher(&self) -> &Switcher {
        self.switcher
    }

    /// What every guest root that is entered on this CPU must map, as the host's root does. The
    /// list is the same wherever this is called: the GDT is that of `install`. Besides the list, a
    /// root maps [`PvcsPage::mapping`](crate::PvcsPage::mapping). The host's IDT and its handlers
    /// are not in the list: while a guest's root is loaded, that IDT is not.
    ///
    /// ```no_run
    /// # use switcher_runtime::{Cpu, Rights};
    /// # fn map(page: u64, write: bool, execute: bool) {}
    /// fn fill_guest_root(cpu: &Cpu<'_>) {
    ///     for mapping in cpu.mappings() {
    ///         for page in mapping.pages() {
    ///             let rights = mapping.rights;
    ///             map(page, rights == Rights::ReadWrite, rights == Rights::ReadExecute);
    ///         }
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn mappings(&self) -> MappingList {
        // SAFETY: `install` was given a block that is valid for reads. No guest is running.
        let block = unsafe { self.per_cpu.read() };
        self.switcher.mappings_with(&block, self.per_cpu.addr().get() as u64, self.then.gdtr)
    }

    /// Gives the CPU back as [`install`](Switcher::install) found it: STAR, LSTAR, CSTAR, SFMASK,
    /// SYSENTER_CS, GS base and KERNEL_GS_BASE have the values again that they had then,
    /// CR4.FSGSBASE and EFER.SCE are clear again if they were. Interrupts must be off.
    ///
    /// Then it removes what guests have left: with CR4.PCIDE, all translations of the CPU go, those
    /// of guests' PCIDs and global ones among them, so that the host may use these PCIDs; and at
    /// last its predictors are emptied as by
    /// [`barrier_before_user_mode`](Self::barrier_before_user_mode), whoever sees to the barriers
    /// between guests. That comes last because nothing of a guest's is executed after it: whatever
    /// the host runs next on this CPU, at CPL 3 or under another switcher, needs no barrier against
    /// what ran before.
    ///
    /// # Errors
    /// If this is not the CPU of `install`, if interrupts are enabled, if a guest is running, or if
    /// somebody else has changed a register. Nothing has been changed then, and the switcher stays
    /// installed: the error holds the CPU itself, and says why.
    #[expect(
        clippy::result_large_err,
        reason = "a box would be allocated under the switcher's GS base"
    )]
    pub fn uninstall(mut self) -> Result<(), Refused<Self, UninstallError>> {
        if let Err(why) = self.can_be_uninstalled() {
            return Err(Refused::new(self, why));
        }
        let Registers { fsgsbase, syscall, msrs } = self.before;
        // SYSCALL is switched off first: it must not land in an entry whose other registers are
        // gone.
        if !syscall {
            // SAFETY: EFER.SCE was clear when `install` came, so the host does without SYSCALL.
            unsafe { Efer::update(|efer| efer.remove(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        }
        for (msr, value) in msrs {
            // SAFETY: the value was read from this MSR of this CPU. Whoever relied on it before
            // `install` may rely on it again; whoever relies on the value of `install` knows that
            // it ends here.
            unsafe { write_msr(msr.address(), value) };
        }
        if !fsgsbase {
            // SAFETY: CR4.FSGSBASE was clear when `install` came, so the host does without these
            // instructions; this crate uses none of them until the next `install`.
            unsafe { Cr4::update(|cr4| cr4.remove(Cr4Flags::FSGSBASE)) };
        }
        for debt in Cleanup::of(self.switcher.variant().pcid()) {
            match debt {
                Cleanup::Translations => flush_all_translations(),
                Cleanup::Training => self.forget_training(),
            }
        }
        self.switcher.installed.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// Declares that this CPU has nothing of the switcher any more: it has been reset, by being
    /// taken offline, suspended with the machine, or sent INIT; or it does not exist any more.
    /// Nothing is restored: its registers hold what its host has put there since, if anything.
    /// [`enter`](Self::enter) refuses on such a CPU, and so would [`uninstall`](Self::uninstall).
    ///
    /// # Safety
    /// No SYSCALL, SYSENTER or event of this CPU leads to the switcher, now or later, except after
    /// another [`install`](Switcher::install): its LSTAR and CSTAR do not name the switcher's
    /// entries, its IDT is not the switcher's, and no guest is running on it. Its branch predictors
    /// are empty before code of the host's at CPL 3 runs there, and its TLB before a CR3 with one
    /// of the guests' PCIDs is loaded: a reset empties both, INIT neither.
    pub unsafe fn gone(self) {
        self.switcher.installed.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether this code runs on the CPU of `install`, and stays there. GS base is read as an MSR:
    /// on another CPU, CR4.FSGSBASE may be clear.
    pub(crate) fn is_here(&self) -> Result<(), WrongCpu> {
        // SAFETY: every CPU with long mode has the MSR; reading it changes nothing.
        let gs_base = unsafe { read_msr(MsrName::GsBase.address()) };
        WrongCpu::check(registers::flags(), gs_base, self.per_cpu.addr().get() as u64)
    }

    fn can_be_uninstalled(&self) -> Result<(), UninstallError> {
        self.is_here()?;
        for (register, written) in self.switcher.msrs(self.per_cpu) {
            // SAFETY: every CPU with long mode has these MSRs; reading them changes nothing.
            let found = unsafe { read_msr(register.address()) };
            if found == written {
                continue;
            }
            return Err(UninstallError::Changed { register, found, written });
        }
        // SAFETY: `install` was given a block that is valid for reads, and this is its CPU.
        match unsafe { self.tss_extra().read() }.host_rsp {
            0 => Ok(()),
            _ => Err(UninstallError::GuestRunning),
        }
    }

    /// The half of the per-CPU block in which the switcher keeps what it knows of the running
    /// guest.
    pub(crate) fn tss_extra(&self) -> NonNull<TssExtra> {
        // SAFETY: `install` was given a pointer to a whole `PerCpu`; the field lies within it.
        unsafe { self.per_cpu.byte_add(PerCpu::tss_extra.bytes()) }.cast()
    }
}

/// What a CPU owes its host when it has no guests any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cleanup {
    /// Translations under the guests' PCIDs are to be flushed.
    Translations,
    /// The predictors that guests have trained are to be emptied.
    Training,
}

impl Cleanup {
    /// The debts in the order in which they are paid. Without PCIDs there are no translations left:
    /// the last exit has flushed all of a guest's root by loading the host's.
    const fn of(pcid: bool) -> &'static [Self] {
        if pcid { &[Self::Translations, Self::Training] } else { &[Self::Training] }
    }
}

/// Flushes the translations of all PCIDs, and global ones: whatever changes CR4.PGE does that, also
/// on CPUs without INVPCID (Intel SDM vol. 3, 4.10.4.1; AMD APM vol. 2, 5.5.3).
fn flush_all_translations() {
    let cr4 = registers::cr4();
    for value in [cr4 ^ Cr4Flags::PAGE_GLOBAL.bits(), cr4] {
        // SAFETY: this is CPL 0, as it was when `install` ran. PGE may be set or clear in any mode,
        // and decides only which translations outlive a load of CR3; CR3 is not loaded between the
        // two writes.
        unsafe { Cr4::write_raw(value) };
    }
}

const fn check_flags(flags: RFlags) -> Result<(), InstallError> {
    if flags.contains(RFlags::IF) { Err(InstallError::InterruptsEnabled) } else { Ok(()) }
}

/// Checks that the MSRs exist which the mitigations write.
fn check_mitigations(mitigations: Mitigations, has: Speculation) -> Result<(), InstallError> {
    let wanted = [(Mitigation::Ibrs, Speculation::IBRS), (Mitigation::Ibpb, Speculation::IBPB)];
    let is_lacking =
        |(one, msr): &(Mitigation, _)| mitigations.contains(*one) && !has.contains(*msr);
    match wanted.into_iter().find(is_lacking) {
        Some((one, _)) => Err(InstallError::Mitigation(one)),
        None => Ok(()),
    }
}

/// Checks the stacks that the switcher's gates name: each must lie apart from the others and from
/// that at sp0. Returns the addresses to which the TSS's IST 1 to 4 point.
fn check_stacks(tss: &Tss, paging: PagingMode) -> Result<[u64; Gate::STACKS.len()], InstallError> {
    let ist = [tss.ist1, tss.ist2, tss.ist3, tss.ist4].map(u64::from);
    const { assert!(matches!(Gate::STACKS, [1, 2, 3, 4]), "the four that are looked at") };
    for (index, top) in Gate::STACKS.into_iter().zip(ist) {
        let others = ist.into_iter().chain([u64::from(tss.sp0)]);
        // A stack is among the `others`, and overlaps itself: the count is 1.
        let overlapping = others
            .filter(|other| {
                other.abs_diff(top) < MappingList::LEAST_STACK + size_of::<IstTop>() as u64
            })
            .count();
        let room = top > MappingList::LEAST_STACK && paging.is_canonical(top);
        if !room || !top.is_multiple_of(align_of::<IstTop>() as u64) || overlapping != 1 {
            return Err(InstallError::Ist { index, top });
        }
    }
    Ok(ist)
}

/// Checks that code which reaches the block relative to RIP is used with the block right before it:
/// such code serves one CPU.
const fn check_block(placement: Placement, per_cpu: u64, code: u64) -> Result<(), InstallError> {
    let wanted = code.wrapping_sub(PerCpu::BEFORE_CODE);
    match placement {
        Placement::PerCpu if per_cpu != wanted => Err(InstallError::OtherBlock { per_cpu, wanted }),
        Placement::PerCpu | Placement::Gs => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_mitigation_whose_msr_does_not_exist_is_refused() {
        let wanted = Mitigations { ibrs: true, ibpb: true, ..Mitigations::NONE };
        let check = |has| check_mitigations(wanted, has).map_err(|error| error.to_string());
        assert_eq!(check(Speculation::IBRS | Speculation::IBPB), Ok(()));
        let refused = check(Speculation::IBRS).unwrap_err();
        assert!(refused.starts_with("this switcher has `ibpb`, whose MSR this CPU lacks"));
        assert!(check(Speculation::IBPB).unwrap_err().contains("`ibrs`"));
        assert!(check_mitigations(Mitigations::NONE, Speculation::empty()).is_ok());
    }

    #[test]
    fn what_is_about_one_cpu_is_done_there_and_without_interrupts() {
        let fixed = RFlags::FIXED;
        let enabled = fixed | RFlags::IF;
        assert_eq!(WrongCpu::check(fixed, 0x1000, 0x1000), Ok(()));
        let elsewhere = WrongCpu::OtherCpu { found: 0x2000, expected: 0x1000 };
        assert_eq!(WrongCpu::check(fixed, 0x2000, 0x1000), Err(elsewhere));
        assert_eq!(WrongCpu::check(enabled, 0x1000, 0x1000), Err(WrongCpu::InterruptsEnabled));
        assert_eq!(check_flags(fixed), Ok(()));
        assert_eq!(check_flags(enabled), Err(InstallError::InterruptsEnabled));
    }

    #[test]
    fn a_cpu_without_guests_has_none_of_their_translations_nor_of_their_training() {
        assert_eq!(Cleanup::of(true), [Cleanup::Translations, Cleanup::Training]);
        assert_eq!(Cleanup::of(false), [Cleanup::Training]);
    }

    #[test]
    fn four_stacks_are_there_aligned_and_apart_or_refused_by_number() {
        let tss = |ist: [u64; 4], sp0: u64| {
            let mut tss = Tss::default();
            [tss.ist1, tss.ist2, tss.ist3, tss.ist4] = ist.map(Into::into);
            tss.sp0 = sp0.into();
            tss
        };
        let good = [0x1FF0, 0x2FF0, 0x3FF0, 0x4FF0];
        assert_eq!(check_stacks(&tss(good, 0x6000), PagingMode::FourLevel), Ok(good));
        for index in 0..4 {
            for bad in [
                0,
                0x100,
                0x8008,
                0x6000,
                0x6000 + 0x100,
                good[(index + 1) % 4],
                1 << 47,
                0xFF10 << 48,
            ] {
                let mut ist = good;
                ist[index] = bad;
                let refused = check_stacks(&tss(ist, 0x6000), PagingMode::FourLevel).unwrap_err();
                assert!(
                    matches!(refused, InstallError::Ist { index: found, top }
                        if top == bad && (usize::from(found) == index + 1 || index == 3)),
                    "{refused}"
                );
            }
        }
    }

    #[test]
    fn per_cpu_code_is_for_the_block_in_front_of_it_alone() {
        let code = 0xFFFF_FE80_0000_0000;
        let block = code - PerCpu::BEFORE_CODE;
        assert!(check_block(Placement::PerCpu, block, code).is_ok());
        assert!(check_block(Placement::Gs, 0xFFFF_FE00_0000_0000, code).is_ok());
        for per_cpu in [code, block - 0x100, block + 0x100] {
            let refused = check_block(Placement::PerCpu, per_cpu, code);
            assert!(
                matches!(refused, Err(InstallError::OtherBlock { wanted, .. }) if wanted == block)
            );
        }
    }
}
