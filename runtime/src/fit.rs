//! Whether a CPU can use a switcher: all that is found out before anything is changed.

use core::ptr::NonNull;

use raw_cpuid::CpuIdReaderNative;
use switcher_gen::arch::{HostFeatures, PagingMode, RFlags, Speculation};
use switcher_gen::asm::Label;
use switcher_gen::layout::{IstTop, PerCpu, Placement, Tss};
use switcher_gen::{Config, Gate, Mitigation, Mitigations, NoVariant, Variant};
use x86_64::registers::control::Cr4Flags;

use crate::detect::Detect;
use crate::has::Has;
use crate::load::Switcher;
use crate::mapping::MappingList;
use crate::registers;
use crate::state::{self, Control, Host, StateError};
use crate::tables::{OwnTables, Tables, TablesError};

/// Why a CPU cannot use a switcher. The CPU is left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// Interrupts are enabled: what is found on one CPU could be written to another one.
    #[error("interrupts are enabled: disable them around `prepare`")]
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
        /// The address of the block that `prepare` was given.
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
    /// The GDT for guests' runs cannot be made.
    #[error(transparent)]
    Tables(#[from] TablesError),
    /// A guest runs on this CPU.
    #[error("a guest is running on this CPU: host_rsp is not zero")]
    GuestRunning,
}

/// What `prepare` has found out before it changes anything.
pub(crate) struct Checked {
    pub(crate) stacks: [u64; Gate::STACKS.len()],
    pub(crate) has: Has,
    pub(crate) then: Control,
    pub(crate) own: Option<OwnTables>,
}

impl Switcher {
    /// Makes all checks of `prepare`. What it allocates, it has freed when it returns.
    ///
    /// # Safety
    /// Must be called at CPL 0; `per_cpu` is valid for reads, and `tables` tells the truth.
    pub(crate) unsafe fn check(
        &self,
        per_cpu: NonNull<PerCpu>,
        tables: Tables<'_>,
    ) -> Result<Checked, PrepareError> {
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
            return Err(PrepareError::OtherVariant { needed, assembled });
        }
        check_mitigations(mitigations, features.speculation())?;
        check_block(policy.placement, per_cpu.as_ptr() as u64, self.base())?;
        // SAFETY: the caller vouches that `per_cpu` is valid for reads.
        let PerCpu { tss, tss_extra } = unsafe { per_cpu.read() };
        let sp0 = u64::from(tss.sp0);
        let room = sp0 > MappingList::LEAST_ENTRY_STACK;
        if !room || !sp0.is_multiple_of(16) || !paging.is_canonical(sp0) {
            return Err(PrepareError::Sp0 { sp0 });
        }
        let stacks = check_stacks(&tss, paging)?;
        if tss_extra.host_rsp != 0 {
            return Err(PrepareError::GuestRunning);
        }
        let has = Has::from_cpuid(&CpuIdReaderNative, state::pebs_is_unavailable);
        let tss_address = per_cpu.as_ptr() as u64 + PerCpu::tss.bytes() as u64;
        let own = match tables {
            Tables::Hosts => None,
            Tables::Own { writable, keep } => {
                // SAFETY: CPL 0; the caller vouches for the host's GDT.
                Some(unsafe { OwnTables::new(selectors, tss_address, (writable, keep), paging) }?)
            }
        };
        let of_guests = own.as_ref().map(OwnTables::gdtr);
        let host = Host::read(has, paging, selectors, of_guests, (tss_address, tss.iomap_base));
        state::check_host(&host)?;
        let now = Control::read();
        let fsgsbase = Cr4Flags::FSGSBASE.bits();
        let then =
            Control { cr4: now.cr4 | fsgsbase, lstar: self.address(Label::Syscall64), ..now };
        Ok(Checked { stacks, has, then, own })
    }
}

const fn check_flags(flags: RFlags) -> Result<(), PrepareError> {
    if flags.contains(RFlags::IF) { Err(PrepareError::InterruptsEnabled) } else { Ok(()) }
}

/// Checks that the MSRs exist which the mitigations write.
fn check_mitigations(mitigations: Mitigations, has: Speculation) -> Result<(), PrepareError> {
    let wanted = [(Mitigation::Ibrs, Speculation::IBRS), (Mitigation::Ibpb, Speculation::IBPB)];
    let is_lacking =
        |(one, msr): &(Mitigation, _)| mitigations.contains(*one) && !has.contains(*msr);
    match wanted.into_iter().find(is_lacking) {
        Some((one, _)) => Err(PrepareError::Mitigation(one)),
        None => Ok(()),
    }
}

/// Checks the stacks that the switcher's gates name: each must lie apart from the others and from
/// that at sp0. Returns the addresses to which the TSS's IST 1 to 4 point.
fn check_stacks(tss: &Tss, paging: PagingMode) -> Result<[u64; Gate::STACKS.len()], PrepareError> {
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
            return Err(PrepareError::Ist { index, top });
        }
    }
    Ok(ist)
}

/// Checks that code which reaches the block relative to RIP is used with the block right before it:
/// such code serves one CPU.
const fn check_block(placement: Placement, per_cpu: u64, code: u64) -> Result<(), PrepareError> {
    let wanted = code.wrapping_sub(PerCpu::BEFORE_CODE);
    match placement {
        Placement::PerCpu if per_cpu != wanted => Err(PrepareError::OtherBlock { per_cpu, wanted }),
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
                    matches!(refused, PrepareError::Ist { index: found, top }
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
                matches!(refused, Err(PrepareError::OtherBlock { wanted, .. }) if wanted == block)
            );
        }
    }

    #[test]
    fn interrupts_are_off() {
        assert_eq!(check_flags(RFlags::FIXED), Ok(()));
        let enabled = RFlags::FIXED | RFlags::IF;
        assert_eq!(check_flags(enabled), Err(PrepareError::InterruptsEnabled));
    }
}
