//! Programs one CPU so that its guests' SYSCALLs land in the switcher.

use core::marker::PhantomData;
use core::ptr::NonNull;

use switcher_gen::Variant;
use switcher_gen::arch::{HostFeatures, Msr as MsrName, RFlags, Selectors, Unfit};
use switcher_gen::asm::Label;
use switcher_gen::layout::{PerCpu, TssExtra};
use x86_64::instructions::tables::sgdt;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

use crate::detect::Detect;
use crate::load::Switcher;

/// A CPU on which a switcher is installed. Not `Send`: it is the CPU it was made on.
#[derive(Debug)]
pub struct Cpu<'s> {
    pub(crate) switcher: &'s Switcher,
    pub(crate) per_cpu: NonNull<PerCpu>,
    this_cpu_only: PhantomData<*mut ()>,
}

/// Why a CPU cannot use a switcher. It is left as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// No switcher can run here.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The switcher was emitted for another kind of CPU or paging mode.
    #[error("this CPU needs variant `{needed}`, but `{assembled}` is loaded")]
    OtherVariant {
        /// What [`Variant::for_host`] says here.
        needed: Variant,
        /// What was assembled.
        assembled: Variant,
    },
    /// Event frames would not lie where the switcher looks for them.
    #[error("sp0 is {sp0:#x}: it must be the non-null, 16-byte aligned top of a stack")]
    Sp0 {
        /// Its value.
        sp0: u64,
    },
    /// Hardware and switcher would use different stacks.
    #[error("TR's TSS is at {tr:#x}, but the per-CPU block holds the one at {per_cpu:#x}")]
    OtherTss {
        /// The base in TR's descriptor.
        tr: u64,
        /// The TSS in the per-CPU block.
        per_cpu: u64,
    },
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

impl Switcher {
    /// Makes this CPU use the switcher: checks that it can, then writes CR4.FSGSBASE, EFER.SCE,
    /// STAR, LSTAR, CSTAR, SFMASK, SYSENTER_CS (0: SYSENTER faults) and GS base (`per_cpu`).
    ///
    /// # Errors
    /// If the CPU needs another variant, or if GDT, TSS or sp0 are not what the emitted code relies
    /// on. Nothing has been changed then.
    ///
    /// # Safety
    /// Must be called at CPL 0. For as long as the result or any code that relies on this CPU's
    /// SYSCALL MSRs lives: `per_cpu` is valid for reads and writes by this CPU alone, the stack
    /// below its sp0 has room for a [`PtRegs`](switcher_gen::layout::PtRegs) and the host's event
    /// handlers, IDT and IST are as the [crate documentation](crate) asks, and nothing else changes
    /// the registers written here. The host itself must not rely on GS base for anything but
    /// `per_cpu`.
    pub unsafe fn install(&self, per_cpu: NonNull<PerCpu>) -> Result<Cpu<'_>, InstallError> {
        let assembled = *self.image().variant();
        let selectors = assembled.selectors();
        let needed = Variant::for_host(&HostFeatures::detect(), selectors)?;
        if needed != assembled {
            return Err(InstallError::OtherVariant { needed, assembled });
        }
        // SAFETY: the caller vouches that `per_cpu` is valid for reads.
        let PerCpu { tss, tss_extra } = unsafe { per_cpu.read() };
        let sp0 = u64::from(tss.sp0);
        if sp0 == 0 || !sp0.is_multiple_of(16) {
            return Err(InstallError::Sp0 { sp0 });
        }
        if tss_extra.host_rsp != 0 {
            return Err(InstallError::GuestRunning);
        }
        check_descriptors(selectors)?;
        check_tss(per_cpu)?;

        // From here on nothing can fail.
        let base = per_cpu.as_ptr() as u64;
        let mask = RFlags::SYSCALL_CLEARS.bits();
        // SAFETY: the features are there (`for_host`); enabling FSGSBASE and SYSCALL takes nothing
        // away from the host.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::FSGSBASE)) };
        // SAFETY: as above.
        unsafe { Efer::update(|efer| efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS)) };
        for (msr, value) in [
            (MsrName::Star, selectors.star().bits()),
            (MsrName::Lstar, self.address(Label::Syscall64)),
            (MsrName::Cstar, self.address(Label::SyscallCompat)),
            (MsrName::Sfmask, mask),
            (MsrName::SysenterCs, 0),
            (MsrName::GsBase, base),
        ] {
            // SAFETY: the values are legal for their MSRs (selectors and addresses were checked
            // when they were made). The entry points are sealed code that is sound to be entered by
            // SYSCALL; the caller vouches for GS base and for leaving the MSRs alone.
            unsafe { Msr::new(msr.address()).write(value) };
        }
        Ok(Cpu { switcher: self, per_cpu, this_cpu_only: PhantomData })
    }
}

impl Cpu<'_> {
    /// The switcher installed here.
    #[must_use]
    pub const fn switcher(&self) -> &Switcher {
        self.switcher
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
    // Present, DPL, S, type without the accessed bit; L and D.
    const MASK: u64 = 1 << 47 | 3 << 45 | 1 << 44 | 0b1010 << 40 | 1 << 53 | 1 << 54;
    const PRESENT: u64 = 1 << 47 | 1 << 44;
    const USER: u64 = 3 << 45;
    const CODE: u64 = 0b1010 << 40;
    const DATA: u64 = 0b0010 << 40;
    const LONG: u64 = 1 << 53;
    const SIZE32: u64 = 1 << 54;
    // For data segments D is the stack size, which 64-bit mode ignores.
    const DATA_MASK: u64 = MASK & !LONG & !SIZE32;

    let wanted = [
        ("KERNEL_CS", selectors.kernel_cs(), MASK, CODE | LONG, "64-bit code of DPL 0"),
        ("KERNEL_DS", selectors.kernel_ds(), DATA_MASK, DATA, "writable data of DPL 0"),
        ("USER32_CS", selectors.user32_cs(), MASK, CODE | SIZE32 | USER, "32-bit code of DPL 3"),
        ("USER_DS", selectors.user_ds(), DATA_MASK, DATA | USER, "writable data of DPL 3"),
        ("USER_CS", selectors.user_cs(), MASK, CODE | LONG | USER, "64-bit code of DPL 3"),
    ];
    for (name, selector, mask, attributes, expected) in wanted {
        let found = descriptor(selector);
        if found & mask != PRESENT | attributes {
            return Err(InstallError::Descriptor { name, selector, found, expected });
        }
    }
    Ok(())
}

/// The hardware takes sp0 from TR's TSS, the switcher from the per-CPU block.
fn check_tss(per_cpu: NonNull<PerCpu>) -> Result<(), InstallError> {
    let selector: u16;
    // SAFETY: STR only stores TR's selector into a register.
    unsafe {
        core::arch::asm!("str {0:x}", out(reg) selector, options(nomem, nostack, preserves_flags));
    }
    let (low, high) = (descriptor(selector), descriptor(selector + 8));
    let tr = low >> 16 & 0xFF_FFFF | low >> 56 << 24 | high << 32;
    let tss = per_cpu.as_ptr() as u64 + PerCpu::tss.bytes() as u64;
    if tr == tss { Ok(()) } else { Err(InstallError::OtherTss { tr, per_cpu: tss }) }
}
