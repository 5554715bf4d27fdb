//! Programs one CPU so that its guests' SYSCALLs land in the switcher.

use alloc::boxed::Box;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use switcher_gen::arch::{HostFeatures, Msr as MsrName, RFlags, Selectors, Speculation};
use switcher_gen::asm::Label;
use switcher_gen::layout::{IstTop, PerCpu, Placement, Tss, TssExtra};
use switcher_gen::{Axes, Gate, Mitigations, NoVariant, Variant};
use x86_64::instructions::tables::sgdt;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

use crate::detect::Detect;
use crate::load::Switcher;
use crate::mapping::MappingList;
use crate::pcid::CleanRoots;

/// A CPU on which a switcher is installed. Not `Send`: it is the CPU it was made on.
#[derive(Debug)]
pub struct Cpu<'s> {
    pub(crate) switcher: &'s Switcher,
    pub(crate) per_cpu: NonNull<PerCpu>,
    before: Registers,
    pub(crate) clean: CleanRoots,
    this_cpu_only: PhantomData<*mut ()>,
}

/// Why a CPU cannot use a switcher. It is left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// No switcher can run here.
    #[error(transparent)]
    NoVariant(#[from] NoVariant),
    /// The switcher was emitted for another kind of CPU or paging mode.
    #[error("this CPU needs variant `{needed}`, but `{assembled}` is loaded")]
    OtherVariant {
        /// What [`Variant::for_host`] says here, under the policy and with the mitigations that were
        /// chosen.
        needed: Variant,
        /// What was assembled.
        assembled: Variant,
    },
    /// An exit would fault: the MSR that it writes does not exist.
    #[error("this switcher has `{0}`, whose MSR this CPU lacks: assemble one without")]
    Mitigation(&'static str),
    /// Per-CPU code would not find its block.
    #[error(
        "the per-CPU block is at {per_cpu:#x}, but this switcher is for the CPU whose block is at \
         {wanted:#x}, a page in front of its code"
    )]
    OtherBlock {
        /// Where it is.
        per_cpu: u64,
        /// Where the code takes it to be.
        wanted: u64,
    },
    /// Event frames would not lie where the switcher looks for them.
    #[error("sp0 is {sp0:#x}: it must be the non-null, 16-byte aligned top of a stack")]
    Sp0 {
        /// Its value.
        sp0: u64,
    },
    /// An event that may come at any instruction would have no stack of its own.
    #[error(
        "IST {index} is {top:#x}: it must be the 16-byte aligned top of a stack of {least} bytes \
         that no other event has, with {} bytes above it",
        size_of::<IstTop>(),
        least = MappingList::LEAST_STACK,
    )]
    Ist {
        /// 1 for #DF, 2 for NMI, 3 for #DB, 4 for #MC.
        index: u8,
        /// What the TSS has.
        top: u64,
    },
    /// Hardware and switcher would use different stacks.
    #[error("TR's TSS is at {tr:#x}, but the per-CPU block holds the one at {per_cpu:#x}")]
    OtherTss {
        /// The base in TR's descriptor.
        tr: u64,
        /// The TSS in the per-CPU block.
        per_cpu: u64,
    },
    /// Guests could use I/O ports.
    #[error("the TSS has an I/O bitmap at {iomap_base:#x}, within its limit {limit:#x}")]
    IoBitmap {
        /// Offset of the bitmap.
        iomap_base: u16,
        /// Offset of the segment's last byte.
        limit: u32,
    },
    /// The host delivers events and leaves ring 0 in ways the emitted code does not know.
    #[error("this host uses {0}, which no switcher supports")]
    Unsupported(&'static str),
    /// A descriptor is not what SYSCALL and SYSRET take for granted.
    #[error("the GDT's descriptor for {name} ({selector:#x}) is {found:#x}, not {expected}")]
    Descriptor {
        /// The selector's name.
        name: &'static str,
        /// The selector.
        selector: u16,
        /// The descriptor, 0 if the GDT is too short.
        found: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// A guest is being run on this CPU.
    #[error("a guest is running on this CPU: host_rsp is not zero")]
    GuestRunning,
}

/// Why a switcher stays installed on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UninstallError {
    /// The registers to be restored are another CPU's.
    #[error("GS base is {found:#x}, not this CPU's block at {expected:#x}: disable preemption")]
    OtherCpu {
        /// GS base.
        found: u64,
        /// The block that `install` was given.
        expected: u64,
    },
    /// It would find another host when it exits.
    #[error("a guest is running on this CPU: host_rsp is not zero")]
    GuestRunning,
    /// Somebody else has changed a register since, and relies on it.
    #[error("{register:?} is {found:#x}, not what `install` has written: {written:#x}")]
    Changed {
        /// Which.
        register: MsrName,
        /// Its value.
        found: u64,
        /// What `install` has written.
        written: u64,
    },
}

/// The registers that `install` and `enter` change, as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Registers {
    fsgsbase: bool,
    syscall: bool,
    msrs: [(MsrName, u64); 7],
}

impl Registers {
    /// As they are. KERNEL_GS_BASE is the one that entries use up.
    fn read() -> Self {
        let name = |msr: MsrName| {
            // SAFETY: MSRs of every CPU with long mode; reading changes nothing.
            (msr, unsafe { Msr::new(msr.address()).read() })
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

impl Switcher {
    /// Makes this CPU use the switcher: checks that it can, then writes CR4.FSGSBASE, EFER.SCE,
    /// STAR, LSTAR, CSTAR, SFMASK, SYSENTER_CS (0: SYSENTER faults) and GS base (`per_cpu`), and an
    /// [`IstTop`] where the TSS's IST 1 to 4 point. The IDT stays the host's.
    ///
    /// # Errors
    /// If the CPU needs another variant, or if GDT, TSS or stacks are not what the emitted code relies
    /// on. Nothing has been changed then.
    ///
    /// # Safety
    /// Must be called at CPL 0. From then on, until [`Cpu::uninstall`]:
    ///
    /// * the switcher is not dropped, and nothing else changes the registers written here, nor what
    ///   the variant follows: CR4.LA57, PCIDE, PKE and CET;
    /// * `per_cpu` is valid for reads and writes, and used by nothing but this CPU's hardware, the
    ///   switcher and the result; its stacks do not change;
    /// * the stack below sp0 has room for a [`PtRegs`](switcher_gen::layout::PtRegs) and is used by
    ///   nobody while a guest is entered: in particular, [`Cpu::enter`] is not called on it;
    /// * IST 1 to 4 of the TSS point to [`IstTop`]s, writable and nobody else's, above stacks of at least
    ///   [`MappingList::LEAST_STACK`] bytes each, and as many more as the host's [`Hooks`](crate::Hooks) need;
    /// * the hooks are as [`Hooks`](crate::Hooks) asks;
    /// * no CPL 3 of the host's own executes SYSCALL, in 64-bit or 32-bit mode: give LSTAR and CSTAR
    ///   back to the host before it runs one;
    /// * the host tells kernel from user by something else than the sign of GS base, which CPL 3 can
    ///   now set to anything.
    pub unsafe fn install(&self, per_cpu: NonNull<PerCpu>) -> Result<Cpu<'_>, InstallError> {
        let assembled = *self.image().variant();
        let selectors = assembled.selectors();
        let features = HostFeatures::detect();
        let Axes { policy, mitigations, .. } = assembled.axes();
        let needed = Variant::for_host(&features, selectors)?;
        // What a host does not decide by its CPU; mitigations of another vendor stay a difference.
        let axes = Axes { policy, mitigations, ..needed.axes() };
        let needed = Variant::new(axes, selectors).unwrap_or(needed);
        if needed != assembled {
            return Err(InstallError::OtherVariant { needed, assembled });
        }
        check_mitigations(mitigations, features.speculation())?;
        check_block(policy.placement, per_cpu.as_ptr() as u64, self.base())?;
        // SAFETY: the caller vouches that `per_cpu` is valid for reads.
        let PerCpu { tss, tss_extra } = unsafe { per_cpu.read() };
        let sp0 = u64::from(tss.sp0);
        if sp0 == 0 || !sp0.is_multiple_of(16) {
            return Err(InstallError::Sp0 { sp0 });
        }
        let stacks = check_stacks(&tss)?;
        if tss_extra.host_rsp != 0 {
            return Err(InstallError::GuestRunning);
        }
        check_modes()?;
        check_descriptors(selectors)?;
        check_tss(per_cpu, tss.iomap_base)?;

        // From here on nothing can fail.
        let before = Registers::read();
        self.installed.fetch_add(1, Ordering::AcqRel);
        // SAFETY: the features are there (`for_host`); the caller vouches for not deciding by the
        // sign of GS base.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::FSGSBASE)) };
        // SAFETY: as above.
        unsafe { Efer::update(|efer| efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        for (msr, value) in self.msrs(per_cpu) {
            // SAFETY: the values are legal for their MSRs (selectors and addresses were checked
            // when they were made). The entry points are sealed code that is sound to be entered by
            // SYSCALL; the caller vouches for GS base and for leaving the MSRs alone.
            unsafe { Msr::new(msr.address()).write(value) };
        }
        for top in stacks {
            let top = core::ptr::with_exposed_provenance_mut::<IstTop>(top as usize);
            let mut content = IstTop::default();
            content.gs_base = per_cpu.as_ptr() as u64;
            // SAFETY: `check_stacks` has found it to be aligned and not null; the caller vouches that
            // it may be written, and that it is nobody else's.
            unsafe { top.write(content) };
        }
        let clean = CleanRoots::unknown();
        Ok(Cpu { switcher: self, per_cpu, before, clean, this_cpu_only: PhantomData })
    }

    /// What `install` writes.
    fn msrs(&self, per_cpu: NonNull<PerCpu>) -> [(MsrName, u64); 6] {
        [
            (MsrName::Star, self.image().variant().selectors().star().bits()),
            (MsrName::Lstar, self.address(Label::Syscall64)),
            (MsrName::Cstar, self.address(Label::SyscallCompat)),
            (MsrName::Sfmask, RFlags::SYSCALL_CLEARS.bits()),
            (MsrName::SysenterCs, 0),
            (MsrName::GsBase, per_cpu.as_ptr() as u64),
        ]
    }
}

impl Cpu<'_> {
    /// The switcher installed here.
    #[must_use]
    pub const fn switcher(&self) -> &Switcher {
        self.switcher
    }

    /// What every guest root that is entered on this CPU must map, as the host's does. Besides it:
    /// [`PvcsPage::mapping`](crate::PvcsPage::mapping). The host's IDT and what it leads to is not among
    /// it: under a guest's root it is not loaded.
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
        let idt = self.switcher.idt();
        let address = self.per_cpu.addr().get() as u64;
        MappingList::with_idt(&block, address, idt.address(), size_of_val(idt) as u64)
            .with_code(self.switcher.base(), self.switcher.image().bytes().len() as u64)
    }

    /// Gives the CPU back as [`install`](Switcher::install) found it: STAR, LSTAR, CSTAR, SFMASK,
    /// SYSENTER_CS, GS base and KERNEL_GS_BASE have their values of then, CR4.FSGSBASE and EFER.SCE
    /// are clear again if they were. Interrupts must be off.
    ///
    /// # Errors
    /// If this is not the CPU of `install`, if a guest is running, or if somebody else has changed a
    /// register. Nothing has been changed then, and the switcher stays installed: the result is the
    /// CPU itself, and why.
    pub fn uninstall(self) -> Result<(), Box<(Self, UninstallError)>> {
        if let Err(why) = self.can_be_uninstalled() {
            return Err(Box::new((self, why)));
        }
        let Registers { fsgsbase, syscall, msrs } = self.before;
        // SYSCALL first: it must not land in an entry whose other registers are gone.
        if !syscall {
            // SAFETY: as `install` has found it.
            unsafe { Efer::update(|efer| efer.remove(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        }
        for (msr, value) in msrs {
            // SAFETY: the value was read from this MSR of this CPU. Who relied on it may again; who
            // relies on `install`'s has been told that it ends here.
            unsafe { Msr::new(msr.address()).write(value) };
        }
        if !fsgsbase {
            // SAFETY: as for EFER.
            unsafe { Cr4::update(|cr4| cr4.remove(Cr4Flags::FSGSBASE)) };
        }
        self.switcher.installed.fetch_sub(1, Ordering::AcqRel);
        Ok(())
    }

    fn can_be_uninstalled(&self) -> Result<(), UninstallError> {
        // GS base first: it says whether the others are those of `install`'s CPU.
        let mut written = self.switcher.msrs(self.per_cpu);
        written.reverse();
        for (register, written) in written {
            // SAFETY: MSRs of every CPU with long mode; reading changes nothing.
            let found = unsafe { Msr::new(register.address()).read() };
            if found == written {
                continue;
            }
            return Err(match register {
                MsrName::GsBase => UninstallError::OtherCpu { found, expected: written },
                _ => UninstallError::Changed { register, found, written },
            });
        }
        // SAFETY: `install` was given a block that is valid for reads, and this is its CPU.
        match unsafe { self.tss_extra().read() }.host_rsp {
            0 => Ok(()),
            _ => Err(UninstallError::GuestRunning),
        }
    }

    /// What the switcher keeps of the running guest.
    pub(crate) fn tss_extra(&self) -> NonNull<TssExtra> {
        // SAFETY: `install` was given a pointer to a whole `PerCpu`; the field lies within it.
        unsafe { self.per_cpu.byte_add(PerCpu::tss_extra.bytes()) }.cast()
    }
}

/// The GDT's entry for a selector, 0 beyond its limit.
fn descriptor(selector: u16) -> u64 {
    let gdt = sgdt();
    let offset = u64::from(selector & !0b111);
    if offset + 7 > u64::from(gdt.limit) {
        return 0;
    }
    let entry = (gdt.base.as_u64() + offset) as *const u64;
    // SAFETY: GDTR says that a table of `limit + 1` bytes lies at `base`, and the CPU itself reads
    // it through the same mapping; the entry lies within it. Descriptors may be unaligned.
    unsafe { entry.read_unaligned() }
}

/// SYSCALL and SYSRET load fixed attributes without looking at the descriptors, IRET looks: both
/// ways must lead to the same segments (AMD APM vol. 3, SYSCALL).
fn check_descriptors(selectors: Selectors) -> Result<(), InstallError> {
    // Present, DPL, S, type; L and D. Accessed: or the hardware would write to the GDT, which guests'
    // roots map read-only.
    const MASK: u64 = 1 << 47 | 3 << 45 | 1 << 44 | 0b1011 << 40 | 1 << 53 | 1 << 54;
    const PRESENT: u64 = 1 << 47 | 1 << 44 | 1 << 40;
    const USER: u64 = 3 << 45;
    const CODE: u64 = 0b1010 << 40;
    const DATA: u64 = 0b0010 << 40;
    const LONG: u64 = 1 << 53;
    const SIZE32: u64 = 1 << 54;
    // For data segments D is the stack size, which 64-bit mode ignores.
    const DATA_MASK: u64 = MASK & !LONG & !SIZE32;

    let wanted = [
        ("KERNEL_CS", selectors.kernel_cs(), MASK, CODE | LONG, "accessed 64-bit code of DPL 0"),
        ("KERNEL_DS", selectors.kernel_ds(), DATA_MASK, DATA, "accessed writable data of DPL 0"),
        (
            "USER32_CS",
            selectors.user32_cs(),
            MASK,
            CODE | SIZE32 | USER,
            "accessed 32-bit code of DPL 3",
        ),
        ("USER_DS", selectors.user_ds(), DATA_MASK, DATA | USER, "accessed writable data of DPL 3"),
        ("USER_CS", selectors.user_cs(), MASK, CODE | LONG | USER, "accessed 64-bit code of DPL 3"),
    ];
    for (name, selector, mask, attributes, expected) in wanted {
        let found = descriptor(selector);
        if found & mask != PRESENT | attributes {
            return Err(InstallError::Descriptor { name, selector, found, expected });
        }
    }
    Ok(())
}

/// Ways of running a kernel under which the emitted code would fault, possibly on a guest's root.
fn check_modes() -> Result<(), InstallError> {
    /// Intel FRED specification, 9: SWAPGS is undefined, events do not come through the IDT.
    const CR4_FRED: u64 = 1 << 32;
    /// Intel SDM vol. 1, 17.1: a shadow stack would not survive a call that returns elsewhere.
    const CR4_CET: u64 = 1 << 23;
    const SH_STK_EN: u64 = 1 << 0;
    let cr4 = Cr4::read_raw();
    if cr4 & CR4_FRED != 0 {
        return Err(InstallError::Unsupported("FRED"));
    }
    // SAFETY: the MSR exists where CR4.CET can be set; reading it changes nothing.
    if cr4 & CR4_CET != 0 && unsafe { Msr::new(MsrName::SCet.address()).read() } & SH_STK_EN != 0 {
        return Err(InstallError::Unsupported("supervisor shadow stacks"));
    }
    Ok(())
}

/// Whether the MSRs exist that the mitigations write.
fn check_mitigations(mitigations: Mitigations, has: Speculation) -> Result<(), InstallError> {
    let wanted = [
        (mitigations.ibrs, "ibrs", Speculation::IBRS),
        (mitigations.ibpb, "ibpb", Speculation::IBPB),
    ];
    match wanted.into_iter().find(|(is_on, _, msr)| *is_on && !has.contains(*msr)) {
        Some((_, name, _)) => Err(InstallError::Mitigation(name)),
        None => Ok(()),
    }
}

/// The stacks that the switcher's gates name, each apart from the others and from that at sp0; the
/// result is where they point.
fn check_stacks(tss: &Tss) -> Result<[u64; Gate::STACKS.len()], InstallError> {
    let ist = [tss.ist1, tss.ist2, tss.ist3, tss.ist4].map(u64::from);
    const { assert!(matches!(Gate::STACKS, [1, 2, 3, 4]), "the four that are looked at") };
    for (index, top) in Gate::STACKS.into_iter().zip(ist) {
        let others = ist.into_iter().chain([u64::from(tss.sp0)]);
        // Itself is the one that overlaps.
        let overlapping = others
            .filter(|other| {
                other.abs_diff(top) < MappingList::LEAST_STACK + size_of::<IstTop>() as u64
            })
            .count();
        let room = top > MappingList::LEAST_STACK;
        if !room || !top.is_multiple_of(align_of::<IstTop>() as u64) || overlapping != 1 {
            return Err(InstallError::Ist { index, top });
        }
    }
    Ok(ist)
}

/// Code that reaches the block relative to RIP is one CPU's: that whose block lies in front of it.
const fn check_block(placement: Placement, per_cpu: u64, code: u64) -> Result<(), InstallError> {
    let wanted = code.wrapping_sub(PerCpu::BEFORE_CODE);
    match placement {
        Placement::PerCpu if per_cpu != wanted => Err(InstallError::OtherBlock { per_cpu, wanted }),
        Placement::PerCpu | Placement::Gs => Ok(()),
    }
}

/// The hardware takes sp0 from TR's TSS, the switcher from the per-CPU block. And ports it takes
/// from an I/O bitmap, if there is one within the TSS's limit.
fn check_tss(per_cpu: NonNull<PerCpu>, iomap_base: u16) -> Result<(), InstallError> {
    let selector: u16;
    // SAFETY: STR only stores TR's selector into a register.
    unsafe {
        core::arch::asm!("str {0:x}", out(reg) selector, options(nomem, nostack, preserves_flags));
    }
    let found = SystemSegment::decode(descriptor(selector), descriptor(selector + 8));
    let tss = per_cpu.as_ptr() as u64 + PerCpu::tss.bytes() as u64;
    if found.base != tss {
        return Err(InstallError::OtherTss { tr: found.base, per_cpu: tss });
    }
    if u32::from(iomap_base) <= found.limit {
        return Err(InstallError::IoBitmap { iomap_base, limit: found.limit });
    }
    Ok(())
}

/// Where a TSS descriptor says the segment lies (Intel SDM vol. 3, figure 8-4).
#[derive(Debug, PartialEq, Eq)]
struct SystemSegment {
    base: u64,
    limit: u32,
}

impl SystemSegment {
    fn decode(low: u64, high: u64) -> Self {
        const GRANULARITY: u64 = 1 << 55;
        let base = low >> 16 & 0xFF_FFFF | low >> 56 << 24 | high << 32;
        let limit = (low & 0xFFFF | low >> 32 & 0xF_0000) as u32;
        let limit = if low & GRANULARITY == 0 { limit } else { limit << 12 | 0xFFF };
        Self { base, limit }
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
        assert_eq!(check_stacks(&tss(good, 0x6000)), Ok(good));
        for index in 0..4 {
            for bad in [0, 0x100, 0x8008, 0x6000, 0x6000 + 0x100, good[(index + 1) % 4]] {
                let mut ist = good;
                ist[index] = bad;
                let refused = check_stacks(&tss(ist, 0x6000)).unwrap_err();
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

    #[test]
    fn a_tss_descriptor_is_decoded_field_by_field() {
        // Base 0x8877_6655_4433_2211, limit 0xA_0067, present, available 64-bit TSS.
        let low = 0x44 << 56 | 0xA << 48 | 0x89 << 40 | 0x33_2211 << 16 | 0x0067;
        let found = SystemSegment::decode(low, 0x8877_6655);
        assert_eq!(found, SystemSegment { base: 0x8877_6655_4433_2211, limit: 0xA_0067 });
        let pages = SystemSegment::decode(low | 1 << 55, 0x8877_6655);
        assert_eq!(pages.limit, 0xA006_7FFF);
    }
}
