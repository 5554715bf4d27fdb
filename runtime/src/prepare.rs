//! Finds out, once for each CPU, whether it can use a switcher: the slow part, of which a run of a
//! guest repeats nothing.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use switcher_gen::Config;
use switcher_gen::arch::{HostFeatures, RFlags};
use switcher_gen::layout::{IstTop, PerCpu, TssExtra};
use switcher_gen::mitigations::Assessment;
use x86_64::registers::control::{Cr4, Cr4Flags};

use crate::barrier;
use crate::detect::{self, Detect};
use crate::fit::{Checked, PrepareError};
use crate::has::Has;
use crate::load::Switcher;
use crate::mapping::MappingList;
use crate::pcid::CleanRoots;
use crate::predictors::{Barriers, Predictors};
use crate::refused::Refused;
use crate::registers::{self, DescriptorTablePointer};
use crate::state::{self, Control};
use crate::tables::{OwnTables, Tables};

/// A CPU that can use a switcher, which is not [active](Self::activate) there: its registers are
/// the host's. Not `Send`: it is the CPU it was made on.
#[derive(Debug)]
pub struct Prepared<'s> {
    pub(crate) switcher: &'s Switcher,
    pub(crate) per_cpu: NonNull<PerCpu>,
    pub(crate) has: Has,
    /// What `prepare` has found, and `activate` makes of it, with which `enter` compares.
    pub(crate) then: Control,
    /// The GDT and the TSS of guests' runs, if they are others than the host's.
    pub(crate) own: Option<OwnTables>,
    pub(crate) clean: CleanRoots,
    pub(crate) predictors: Predictors,
    pub(crate) barriers: Barriers,
    /// Whether an NMI has ended the last run of a guest, and nothing has ended the blocking since.
    pub(crate) nmis_blocked: bool,
    this_cpu_only: PhantomData<*mut ()>,
}

/// Why something cannot be done on this CPU at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WrongCpu {
    /// What is to be done could begin on this CPU and end on another one.
    #[error("interrupts are enabled: disable them around this")]
    InterruptsEnabled,
    /// This code has been moved to another CPU since `prepare`: no two CPUs have one TSS.
    #[error(
        "this CPU's TSS is at {found:#x}, and that of the CPU that was prepared at {expected:#x}: \
         disable preemption"
    )]
    OtherCpu {
        /// The address that TR's descriptor has now.
        found: u64,
        /// The address that it had in `prepare`.
        expected: u64,
    },
}

impl WrongCpu {
    /// Whether code with these flags, under a TSS at `found`, is on the CPU whose TSS is at
    /// `expected`, and stays there.
    pub(crate) const fn check(flags: RFlags, found: u64, expected: u64) -> Result<(), Self> {
        if flags.contains(RFlags::IF) {
            return Err(Self::InterruptsEnabled);
        }
        if found != expected {
            return Err(Self::OtherCpu { found, expected });
        }
        Ok(())
    }
}

impl Switcher {
    /// Finds out whether this CPU can use the switcher, and writes an [`IstTop`] where the TSS's
    /// IST 1 to 4 point. No register is changed. This is done once: it asks CPUID a few dozen
    /// times, judges the whole GDT, and allocates. [`Prepared::activate`] and
    /// [`Cpu::enter`](crate::Cpu::enter) do neither.
    ///
    /// It needs less than 5 KiB of stack, in an optimised build.
    ///
    /// # Errors
    /// If the CPU needs another variant, if the stacks are not what the emitted code relies on, or
    /// if [`CPU_STATE`](crate::CPU_STATE) has an objection. Nothing has been changed then.
    ///
    /// # Safety
    /// Must be called at CPL 0, with interrupts off, which is checked, or otherwise so that the
    /// caller stays on this CPU. From then on, until [`Prepared::release`]:
    ///
    /// * the switcher is not dropped;
    /// * this CPU is not prepared once more, for this switcher or another one: what guests of the
    ///   one have left in the TLB and the predictors, the other one would not know of;
    /// * what the variant follows stays as it is: CR4.LA57, PCIDE, PKE and CET, and what CPUID says
    ///   (a CPU that gets new microcode is prepared anew);
    /// * what is checked here, but not by each [`Cpu::enter`](crate::Cpu::enter) again, stays as it
    ///   is: no entry of the GDT becomes one that would be refused, the I/O map base of the TSS
    ///   stays beyond its limit, EFER.LMSLE and UAIE stay clear, and S_CET and IA32_USER_MSR_CTL as
    ///   they are;
    /// * with CR4.PCIDE, the [`pcids`](Self::pcids) are the guests': the host has no translations
    ///   under them, and loads no CR3 with one;
    /// * `per_cpu` is valid for reads and writes, and used by nothing but this CPU's hardware, the
    ///   switcher and the result; its stacks do not change;
    /// * the stack below sp0 has at least [`MappingList::LEAST_ENTRY_STACK`] bytes and is used by
    ///   nobody while a guest is entered: in particular, [`Cpu::enter`](crate::Cpu::enter) is not
    ///   called on it;
    /// * IST 1 to 4 of the TSS point to [`IstTop`]s, writable and nobody else's, above stacks of at
    ///   least [`MappingList::LEAST_STACK`] bytes each, and as many more as the host's
    ///   [`Hooks`](crate::Hooks) need;
    /// * the hooks are as [`Hooks`](crate::Hooks) asks;
    /// * with [`Tables::Own`], the host's GDT is all the time where that says, and neither its
    ///   descriptor for TR nor the LDT's changes while a guest runs; the host's handlers of NMIs
    ///   and machine checks can be called on the block's stacks of IST 2 and 4, with the GDT that
    ///   was made, and have enough room there.
    pub unsafe fn prepare(
        &self,
        per_cpu: NonNull<PerCpu>,
        tables: Tables<'_>,
    ) -> Result<Prepared<'_>, PrepareError> {
        // SAFETY: the caller vouches that `per_cpu` is valid for reads, and for the tables.
        let Checked { stacks, has, then, own } = unsafe { self.check(per_cpu, tables) }?;
        for top in stacks {
            let top = core::ptr::with_exposed_provenance_mut::<IstTop>(top as usize);
            let mut content = IstTop::default();
            content.gs_base = per_cpu.as_ptr() as u64;
            // SAFETY: `check_stacks` has found the address to be aligned and not null; the caller
            // vouches that it may be written, and that it is nobody else's.
            unsafe { top.write(content) };
        }
        self.prepared.fetch_add(1, Ordering::AcqRel);
        Ok(Prepared {
            switcher: self,
            per_cpu,
            has,
            then,
            own,
            clean: CleanRoots::unknown(),
            predictors: Predictors::unknown(),
            barriers: Barriers::Enter,
            nmis_blocked: false,
            this_cpu_only: PhantomData,
        })
    }

    /// What every guest root that is entered on the CPU with this block must map: the list that
    /// [`Prepared::mappings`] returns once that CPU is prepared. It is for hosts that make roots
    /// before, and for guests that run with the host's GDT, which is read from GDTR.
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
}

impl<'s> Prepared<'s> {
    /// What the faults of **this** CPU ask for as it is set up now, and what the host has not done
    /// about them. A variant is chosen once, but each CPU has MSRs of its own: one whose SPEC_CTRL
    /// differs from the others' may need more than the variant has, which
    /// [`Mitigations::covers`](switcher_gen::Mitigations::covers) tells. A host may know better, so
    /// [`prepare`](crate::Switcher::prepare) does not refuse. A variant with `untrain` is taken for
    /// the word of a host that has return thunks.
    ///
    /// It needs less than 2 KiB of stack, in an optimised build.
    ///
    /// # Errors
    /// If this is not the CPU of `prepare`, or if this code could be moved to another one
    /// meanwhile.
    pub fn assess(&self) -> Result<Assessment, WrongCpu> {
        self.is_here()?;
        let Config { vendor, mitigations, .. } = self.switcher().variant().config();
        Ok(detect::assess(HostFeatures::detect(), vendor, mitigations.untrain))
    }

    /// The switcher that this CPU can use.
    #[must_use]
    pub const fn switcher(&self) -> &'s Switcher {
        self.switcher
    }

    /// What every guest root that is entered on this CPU must map, as the host's root does. The
    /// list is the same wherever this is called: the GDT is that of `prepare`, or the one that it
    /// has made. Besides the list, a root maps [`PvcsPage::mapping`](crate::PvcsPage::mapping). The
    /// host's IDT and its handlers are not in the list: while a guest's root is loaded, that IDT is
    /// not.
    ///
    /// It needs less than 2 KiB of stack, in an optimised build.
    ///
    /// ```no_run
    /// # use switcher_runtime::{Prepared, Rights};
    /// # fn map(page: u64, write: bool, execute: bool) {}
    /// fn fill_guest_root(cpu: &Prepared<'_>) {
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
        // SAFETY: `prepare` was given a block that is valid for reads. No guest is running.
        let block = unsafe { self.per_cpu.read() };
        self.switcher.mappings_with(&block, self.per_cpu.addr().get() as u64, self.gdtr_of_guests())
    }

    /// To be called before code of the host's at CPL 3 runs on this CPU, such as the user part of a
    /// virtual machine monitor: what a guest has trained would steer it (VMScape, CVE-2025-40300).
    /// It executes one IBPB if a guest has run since the last one and the CPU has the command,
    /// whatever [`set_barriers`](Self::set_barriers) says. What that code trains would steer guests
    /// in turn: the next guest is entered after a barrier, unless barriers between guests are the
    /// host's. It needs less than 0.5 KiB of stack, in an optimised build.
    ///
    /// # Errors
    /// If this is not the CPU of `prepare`, or if this code could be moved to another one
    /// meanwhile: the barrier would happen on the wrong CPU, and is still to be made.
    pub fn barrier_before_user_mode(&mut self) -> Result<(), WrongCpu> {
        self.is_here()?;
        self.forget_training();
        Ok(())
    }

    /// Sets who makes the barrier before a guest of another [domain](crate::Domain) than the last
    /// one's. It is [`Barriers::Enter`] unless this is called. What has run without a barrier
    /// before this call is remembered.
    pub const fn set_barriers(&mut self, barriers: Barriers) {
        self.barriers = barriers;
    }

    /// How many barriers the guests of this CPU, and the host's user mode after them, have made
    /// necessary, without those left to the host. Each was an IBPB, if the CPU has it.
    #[must_use]
    pub const fn barriers(&self) -> u64 {
        self.predictors.barriers()
    }

    /// Gives the CPU up, which has no guests any more. What guests have left goes: with CR4.PCIDE,
    /// all translations of the CPU, those of guests' PCIDs and global ones among them, so that the
    /// host may use these PCIDs; and at last its predictors are emptied as by
    /// [`barrier_before_user_mode`](Self::barrier_before_user_mode), whoever sees to the barriers
    /// between guests. That comes last because nothing of a guest's is executed after it: whatever
    /// the host runs next on this CPU, at CPL 3 or under another switcher, needs no barrier against
    /// what ran before. It needs less than 2.5 KiB of stack, in an optimised build.
    ///
    /// # Errors
    /// If this is not the CPU of `prepare`, or if interrupts are enabled. Nothing has been done
    /// then: the error holds the prepared CPU itself, and says why.
    #[expect(
        clippy::result_large_err,
        reason = "a box would be allocated where a host may not be able to"
    )]
    pub fn release(mut self) -> Result<(), Refused<Self, WrongCpu>> {
        if let Err(why) = self.is_here() {
            return Err(Refused::new(self, why));
        }
        for debt in Cleanup::of(self.switcher.variant().pcid()) {
            match debt {
                Cleanup::Translations => flush_all_translations(),
                Cleanup::Training => self.forget_training(),
            }
        }
        self.switcher.prepared.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    /// Declares that this CPU has nothing of its guests any more: it has been reset, by being taken
    /// offline, suspended with the machine, or sent INIT; or it does not exist any more. Nothing is
    /// done on it.
    ///
    /// # Safety
    /// No SYSCALL, SYSENTER or event of this CPU leads to the switcher, now or later, except after
    /// another [`prepare`](Switcher::prepare): its LSTAR and CSTAR do not name the switcher's
    /// entries, its IDT is not the switcher's, and no guest is running on it. Its branch predictors
    /// are empty before code of the host's at CPL 3 runs there, and its TLB before a CR3 with one
    /// of the guests' PCIDs is loaded: a reset empties both, INIT neither.
    pub unsafe fn gone(self) {
        self.switcher.prepared.fetch_sub(1, Ordering::AcqRel);
    }

    /// The GDT that is loaded while a guest runs.
    pub(crate) fn gdtr_of_guests(&self) -> DescriptorTablePointer {
        self.own.as_ref().map_or(self.then.gdtr, OwnTables::gdtr)
    }

    /// Whether this code runs on the CPU of `prepare`, and stays there.
    pub(crate) fn is_here(&self) -> Result<(), WrongCpu> {
        let tss = state::tss_of(DescriptorTablePointer::gdtr(), registers::tr());
        WrongCpu::check(registers::flags(), tss, self.then.tss)
    }

    /// Makes sure that nothing a guest has trained steers what comes next on this CPU.
    pub(crate) fn forget_training(&mut self) {
        if self.predictors.leave() {
            self.barrier();
        }
    }

    /// Empties this CPU's branch predictors, that of returns among them, as far as the CPU can.
    pub(crate) fn barrier(&self) {
        // SAFETY: CPL 0, at which the CPU was prepared; `has` is what CPUID says of it.
        unsafe { barrier::empty_predictors(self.has.ibpb) };
    }

    /// The half of the per-CPU block in which the switcher keeps what it knows of the running
    /// guest.
    pub(crate) fn tss_extra(&self) -> NonNull<TssExtra> {
        // SAFETY: `prepare` was given a pointer to a whole `PerCpu`; the field lies within it.
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
        // SAFETY: this is CPL 0, as it was when `prepare` ran. PGE may be set or clear in any mode,
        // and decides only which translations outlive a load of CR3; CR3 is not loaded between the
        // two writes.
        unsafe { Cr4::write_raw(value) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_about_one_cpu_is_done_there_and_without_interrupts() {
        let fixed = RFlags::FIXED;
        let enabled = fixed | RFlags::IF;
        assert_eq!(WrongCpu::check(fixed, 0x1000, 0x1000), Ok(()));
        let elsewhere = WrongCpu::OtherCpu { found: 0x2000, expected: 0x1000 };
        assert_eq!(WrongCpu::check(fixed, 0x2000, 0x1000), Err(elsewhere));
        assert_eq!(WrongCpu::check(enabled, 0x1000, 0x1000), Err(WrongCpu::InterruptsEnabled));
    }

    #[test]
    fn a_cpu_without_guests_has_none_of_their_translations_nor_of_their_training() {
        assert_eq!(Cleanup::of(true), [Cleanup::Translations, Cleanup::Training]);
        assert_eq!(Cleanup::of(false), [Cleanup::Training]);
    }
}
