//! The per-CPU block: the hardware's TSS and, after it, what the switcher keeps of the running
//! guest. Code reaches it by its [`Placement`]: relative to GS, whose base is the block's address
//! in the host, or relative to RIP, as it lies a page in front of the code. Displacements are
//! offsets into [`PerCpu`] either way. (spec/abi.md, "The per-CPU block" and "switch_flags".)

use bitflags::bitflags;

use super::offset::sealed;
use super::{AsmLayout, Narrow, Scalar};
use crate::arch::{Cr3, imm32};

/// How emitted code reaches the per-CPU block (spec/switcher.md, "GS").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placement {
    /// Through the host's GS base: one code for all CPUs, SWAPGS on every way in and out.
    #[default]
    Gs,
    /// Relative to RIP: a copy of the code for each CPU, [`PerCpu::BEFORE_CODE`] bytes after its
    /// block. Direct switches have no SWAPGS.
    PerCpu,
}

/// A 64-bit value that the hardware places at a multiple of 4 only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Split64 {
    lo: u32,
    hi: u32,
}

impl Scalar<8> for Split64 {}
impl Scalar<8> for Cr3 {}

impl From<u64> for Split64 {
    fn from(value: u64) -> Self {
        Self { lo: value as u32, hi: (value >> 32) as u32 }
    }
}

impl From<Split64> for u64 {
    fn from(value: Split64) -> Self {
        Self::from(value.hi) << 32 | Self::from(value.lo)
    }
}

/// The task state segment (Intel SDM vol. 3, 8.7; AMD APM vol. 2, 12.2.5).
#[derive(Clone, Copy, Debug, AsmLayout)]
#[repr(C)]
#[asm(size = 104, align = 4)]
pub struct Tss {
    _reserved0: u32,
    /// The stack on which events of CPL 3 and SYSCALL exits land; guest frames end here.
    #[asm(at = 0x04)]
    pub sp0: Split64,
    /// Unused by hardware in 64-bit mode.
    #[asm(at = 0x0C)]
    pub sp1: Split64,
    /// Unused by hardware in 64-bit mode: scratch for the guest's RSP at SYSCALL.
    #[asm(at = 0x14)]
    pub sp2: Split64,
    _reserved1: Split64,
    /// Stack of IST 1.
    #[asm(at = 0x24)]
    pub ist1: Split64,
    /// Stack of IST 2.
    pub ist2: Split64,
    /// Stack of IST 3.
    pub ist3: Split64,
    /// Stack of IST 4.
    pub ist4: Split64,
    /// Stack of IST 5.
    pub ist5: Split64,
    /// Stack of IST 6.
    pub ist6: Split64,
    /// Stack of IST 7.
    pub ist7: Split64,
    _reserved2: Split64,
    _reserved3: u16,
    /// Offset of the I/O permission bitmap; at or beyond the segment's limit, the TSS has no
    /// bitmap.
    #[asm(at = 0x66)]
    pub iomap_base: u16,
}

impl Default for Tss {
    /// A TSS without stacks and without an I/O permission bitmap: with `iomap_base` 0 the TSS
    /// itself would be the bitmap, and its zeroes would give CPL 3 the ports.
    fn default() -> Self {
        let none = Split64::default();
        Self {
            _reserved0: 0,
            sp0: none,
            sp1: none,
            sp2: none,
            _reserved1: none,
            ist1: none,
            ist2: none,
            ist3: none,
            ist4: none,
            ist5: none,
            ist6: none,
            ist7: none,
            _reserved2: none,
            _reserved3: 0,
            iomap_base: size_of::<Self>() as u16,
        }
    }
}

bitflags! {
    /// Which mode a guest is in and what keeps it from direct switching. All 64 bits count: every
    /// bit but [`SMOD`](Self::SMOD) and [`UMOD`](Self::UMOD) inhibits, the host's own from bit 12
    /// on too.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[repr(transparent)]
    pub struct SwitchFlags: u64 {
        /// The guest is in its supervisor mode.
        const SMOD = 1 << 0;
        /// The guest is in its user mode.
        const UMOD = 1 << 1;
        /// The other mode's CR3 is not prepared.
        const NO_DS_CR3 = 1 << 2;
        /// The host wants the next chance to inject an interrupt.
        const IRQ_WIN = 1 << 8;
        /// The host wants the next chance to inject an NMI.
        const NMI_WIN = 1 << 9;
        /// The host single-steps the guest.
        const SINGLE_STEP = 1 << 10;
        /// No PVCS is registered: there is nowhere to save umod's registers.
        const PVCS_INVALID = 1 << 11;
        /// The bits a host may define for itself.
        const HOST_OWN = !0 << 12;

        /// What a direct switch toggles.
        const MODE_TOGGLE = Self::SMOD.bits() | Self::UMOD.bits();
        /// One test answers "in umod" and "no inhibitor" at once.
        const NO_DS_TO_SMOD = !Self::UMOD.bits();
        /// One test answers "in smod" and "no inhibitor" at once.
        const NO_DS_TO_UMOD = !Self::SMOD.bits();
    }
}

impl Scalar<8> for SwitchFlags {}
// A bit set is an integer, so it has lower parts.
impl sealed::Narrows<u8> for SwitchFlags {}
impl Narrow<u8> for SwitchFlags {}

impl SwitchFlags {
    /// These bits as an instruction's immediate.
    #[must_use]
    pub const fn imm32(self) -> i32 {
        imm32(self.bits())
    }

    /// These bits as the immediate of an access to the flags' low byte.
    #[must_use]
    pub const fn imm8(self) -> i8 {
        assert!(self.bits() <= i8::MAX as u64, "these flags are not in the low byte");
        self.bits() as i8
    }
}

/// The guest's two modes, both at CPL 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The supervisor mode, in which the guest's kernel runs.
    Smod,
    /// The user mode, in which the guest's programs run.
    Umod,
}

impl Mode {
    /// The mode that this one switches to.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Smod => Self::Umod,
            Self::Umod => Self::Smod,
        }
    }

    /// The mode's bit in the switch flags.
    #[must_use]
    pub const fn flag(self) -> SwitchFlags {
        match self {
            Self::Smod => SwitchFlags::SMOD,
            Self::Umod => SwitchFlags::UMOD,
        }
    }
}

/// What the switcher knows of the guest it runs. A direct switch touches only the second cache
/// line. The host owns every field that the switcher is not said to write.
#[derive(Clone, Copy, Debug, Default, AsmLayout)]
#[repr(C, align(64))]
#[asm(size = 0x80, align = 64)]
pub struct TssExtra {
    /// CR3 to load on exit.
    #[asm(at = 0x00)]
    pub host_cr3: Cr3,
    /// The host's stack to return to; non-zero exactly while a guest is being run. The switcher
    /// writes it.
    #[asm(at = 0x08)]
    pub host_rsp: u64,
    /// CR3 for the next entry.
    #[asm(at = 0x10)]
    pub enter_cr3: Cr3,
    _line0: [u64; 3],
    _line0_end: u32,
    /// PKRU of smod, in variants with protection keys: 0, or what the host chooses for its guest.
    #[asm(at = 0x34)]
    pub smod_pkru: u32,
    /// MSR SPEC_CTRL, low half, for host code: what an exit writes in variants with IBRS.
    #[asm(at = 0x38)]
    pub host_spec_ctrl: u32,
    /// MSR SPEC_CTRL, low half, for the guest: what an entry writes in variants with IBRS.
    #[asm(at = 0x3C)]
    pub guest_spec_ctrl: u32,
    /// The guest's mode and what inhibits direct switching. The switcher toggles the mode, without
    /// a LOCK: only this CPU may write the flags, from whatever context.
    #[asm(at = 0x40)]
    pub switch_flags: SwitchFlags,
    /// Root of smod.
    #[asm(at = 0x48)]
    pub smod_cr3: Cr3,
    /// Root of umod.
    #[asm(at = 0x50)]
    pub umod_cr3: Cr3,
    /// The PVCS as the host addresses it, mapped supervisor in every guest root.
    #[asm(at = 0x58)]
    pub pvcs: u64,
    /// The address after the SYSCALL that means ERETU.
    #[asm(at = 0x60)]
    pub retu_rip: u64,
    /// Where a SYSCALL of umod lands (the guest's LSTAR). Canonical.
    #[asm(at = 0x68)]
    pub smod_entry: u64,
    /// GS base smod starts with. Canonical.
    #[asm(at = 0x70)]
    pub smod_gsbase: u64,
    /// RSP of smod, which ERETU saves and umod's SYSCALL loads. Switcher and host write it. With
    /// V2026 of the PVCS, RSP passes through, and this is scratch of the switcher's.
    #[asm(at = 0x78)]
    pub smod_rsp: u64,
}

/// The block of one CPU. The alignment keeps the TSS within a page, as hardware wants it.
#[derive(Clone, Copy, Debug, Default, AsmLayout)]
#[repr(C, align(256))]
#[asm(size = 0x100, align = 256)]
pub struct PerCpu {
    /// The hardware's part.
    #[asm(at = 0x00, nested)]
    pub tss: Tss,
    /// The switcher's part.
    #[asm(at = 0x80, nested)]
    pub tss_extra: TssExtra,
}

impl PerCpu {
    /// With [`Placement::PerCpu`], how many bytes before an image's first byte its block starts:
    /// one page, as code and data have different rights.
    pub const BEFORE_CODE: u64 = 0x1000;
    /// How many bytes after GS base the block ends. What lies behind it up to the end of the page
    /// is the host's: no emitted code touches it, and guests' roots map it, for the supervisor
    /// alone. Hooks find there what is their CPU's.
    pub const TAIL: usize = size_of::<Self>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split64_keeps_all_bits() {
        let value = 0x0123_4567_89AB_CDEF;
        assert_eq!(u64::from(Split64::from(value)), value);
    }

    #[test]
    fn a_default_tss_has_no_io_bitmap_within_its_limit() {
        assert!(usize::from(Tss::default().iomap_base) >= size_of::<Tss>());
    }

    #[test]
    fn one_test_answers_mode_and_inhibitors() {
        for bit in 0..64 {
            let flag = SwitchFlags::from_bits_retain(1 << bit);
            assert_eq!(flag.intersects(SwitchFlags::NO_DS_TO_SMOD), bit != 1, "bit {bit}");
            assert_eq!(flag.intersects(SwitchFlags::NO_DS_TO_UMOD), bit != 0, "bit {bit}");
        }
    }
}
