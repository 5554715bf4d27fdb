//! Registers as numbers of 64 bits.
//!
//! Which numbers are addresses depends on the paging mode, and
//! [`PagingMode`](switcher_gen::arch::PagingMode) decides it. A type that knows 48 bits only, such
//! as the `x86_64` crate's `VirtAddr`, truncates or refuses the addresses of a five-level host
//! (spec/hazards.md, row 52), so this crate passes addresses to the hardware without such a type:
//! `.clippy.toml` forbids it here.

use core::arch::asm;

use switcher_gen::arch::{CanonicalAddr, NonCanonical, PagingMode, RFlags};
use x86_64::registers::rflags;

/// The operand of LGDT, LIDT, SGDT and SIDT (Intel SDM vol. 3, 2.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed(2))]
pub struct DescriptorTablePointer {
    limit: u16,
    base: u64,
}

const _: () = assert!(size_of::<DescriptorTablePointer>() == 10, "a limit and a base, no gap");

impl DescriptorTablePointer {
    /// A table at `base` whose last byte is at offset `limit`.
    ///
    /// # Errors
    /// If either end is not canonical in the paging mode: LGDT and LIDT would fault.
    pub const fn new(base: u64, limit: u16, paging: PagingMode) -> Result<Self, NonCanonical> {
        let first: CanonicalAddr = match paging.address(base) {
            Ok(first) => first,
            Err(why) => return Err(why),
        };
        match paging.address(base.wrapping_add(limit as u64)) {
            Ok(_) => Ok(Self { limit, base: first.get() }),
            Err(why) => Err(why),
        }
    }

    /// The address of the table's first byte.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.base
    }

    /// The offset of the table's last byte.
    #[must_use]
    pub const fn limit(self) -> u16 {
        self.limit
    }

    /// Reads GDTR. SGDT faults at CPL 3 under UMIP.
    #[must_use]
    pub fn gdtr() -> Self {
        let mut found = Self::default();
        // SAFETY: SGDT stores ten bytes, and `found` has ten.
        unsafe { asm!("sgdt [{}]", in(reg) &raw mut found, options(nostack, preserves_flags)) };
        found
    }

    /// Reads IDTR. SIDT faults at CPL 3 under UMIP.
    #[must_use]
    pub fn idtr() -> Self {
        let mut found = Self::default();
        // SAFETY: SIDT stores ten bytes, and `found` has ten.
        unsafe { asm!("sidt [{}]", in(reg) &raw mut found, options(nostack, preserves_flags)) };
        found
    }

    /// Loads GDTR. LGDT reloads no segment register.
    ///
    /// # Safety
    /// Must be called at CPL 0. There is a descriptor table in that place for as long as it is
    /// loaded, and for each selector in use it has the descriptor that was loaded by it.
    pub unsafe fn load_gdt(self) {
        // SAFETY: the caller vouches for CPL 0 and the table; LGDT reads the ten bytes of `self`.
        unsafe { asm!("lgdt [{}]", in(reg) &raw const self, options(nostack, preserves_flags)) };
    }

    /// Loads IDTR.
    ///
    /// # Safety
    /// Must be called at CPL 0. There is a descriptor table in that place for as long as it is
    /// loaded, and its gates lead to what can take the events of this CPU.
    pub unsafe fn load_idt(self) {
        // SAFETY: the caller vouches for CPL 0 and the table; LIDT reads the ten bytes of `self`.
        unsafe { asm!("lidt [{}]", in(reg) &raw const self, options(nostack, preserves_flags)) };
    }
}

/// Reads a model-specific register.
///
/// # Safety
/// Must be called at CPL 0; the register exists on this CPU.
pub(crate) unsafe fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller vouches for CPL 0 and the register; reading one changes nothing.
    unsafe {
        asm!(
            "rdmsr",
            in("ecx") number,
            out("eax") low,
            out("edx") high,
            options(nostack, preserves_flags),
        );
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// Must be called at CPL 0; the register exists, takes the value, and nobody relies on the old one.
pub(crate) unsafe fn write_msr(number: u32, value: u64) {
    // SAFETY: the caller vouches for CPL 0, the register and the value. The write may be a barrier,
    // so the options let no memory access move across it.
    unsafe {
        asm!(
            "wrmsr",
            in("ecx") number,
            in("eax") value as u32,
            in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags),
        );
    }
}

macro_rules! read {
    ($(#[$doc:meta])* $name:ident: $type:ty = $instruction:literal, $($reason:literal)?) => {
        $(#[$doc])*
        pub(crate) fn $name() -> $type {
            let value: $type;
            // SAFETY: the instruction only stores the register's value. It may fault at another CPL
            // than 0; all of this crate that reads registers runs at CPL 0.
            unsafe { asm!($instruction, out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    };
}

read!(
    /// Reads CR0.
    cr0: u64 = "mov {}, cr0",
);
read!(
    /// Reads CR2.
    cr2: u64 = "mov {}, cr2",
);
read!(
    /// Reads CR3, LAM bits included.
    cr3: u64 = "mov {}, cr3",
);
read!(
    /// Reads CR4.
    cr4: u64 = "mov {}, cr4",
);
read!(
    /// Reads DR6. The access faults with DR7.GD set, as for DR7.
    dr6: u64 = "mov {}, dr6",
);
read!(
    /// Reads DR7. With DR7.GD set the access faults: no host sets it except for a debugger of its
    /// own.
    dr7: u64 = "mov {}, dr7",
);
read!(
    /// Reads LDTR's selector.
    ldtr: u16 = "sldt {:x}",
);
read!(
    /// Reads CS's selector.
    cs: u16 = "mov {:x}, cs",
);
read!(
    /// Reads TR's selector.
    tr: u16 = "str {:x}",
);
read!(
    /// Reads FS base. CR4.FSGSBASE must be set.
    fs_base: u64 = "rdfsbase {}",
);
read!(
    /// Reads GS base. CR4.FSGSBASE must be set.
    gs_base: u64 = "rdgsbase {}",
);

/// Writes DR6.
///
/// # Safety
/// Must be called at CPL 0; DR7.GD is clear, and nobody still has to read what DR6 reports.
pub(crate) unsafe fn set_dr6(value: u64) {
    // SAFETY: the caller vouches for CPL 0, and for DR7.GD, with which the access would fault.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Writes FS base.
///
/// # Safety
/// CR4.FSGSBASE is set; this CPU takes the address, and nothing that uses FS relies on another.
pub(crate) unsafe fn set_fs_base(base: u64) {
    // SAFETY: the caller vouches for CR4.FSGSBASE and the address.
    unsafe { asm!("wrfsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}

/// Sets GS base. CR4.FSGSBASE must be set.
///
/// # Safety
/// CR4.FSGSBASE is set and the address is canonical; nobody uses GS for what lay at the old one.
pub(crate) unsafe fn set_gs_base(base: u64) {
    // SAFETY: the caller vouches for CR4.FSGSBASE and the address.
    unsafe { asm!("wrgsbase {}", in(reg) base, options(nostack, preserves_flags)) };
}

/// Reads RFLAGS.
pub(crate) fn flags() -> RFlags {
    RFlags::from_bits_retain(rflags::read_raw())
}

/// Reads the selectors in DS, ES, FS and GS.
pub(crate) fn data_selectors() -> [u16; 4] {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: the instructions only store the selectors.
    unsafe {
        asm!(
            "mov {0:x}, ds",
            "mov {1:x}, es",
            "mov {2:x}, fs",
            "mov {3:x}, gs",
            out(reg) ds,
            out(reg) es,
            out(reg) fs,
            out(reg) gs,
            options(nomem, nostack, preserves_flags),
        );
    }
    [ds, es, fs, gs]
}

#[cfg(test)]
mod tests {
    use super::*;
    use PagingMode::{FiveLevel, FourLevel};

    /// Addresses of 57 bits in both halves, with bit 47 clear and set. Truncation to 48 bits
    /// changes each of them.
    const HIGH: [u64; 4] = [
        0x00A5_2000_0000_1000,
        0x00A5_A000_0000_1000,
        0xFF10_2000_0000_1000,
        0xFF10_A000_0000_1000,
    ];

    #[test]
    fn a_table_above_47_bits_keeps_its_address_to_the_byte() {
        for base in HIGH {
            let pointer = DescriptorTablePointer::new(base, 0xFFF, FiveLevel).unwrap();
            assert_eq!((pointer.base(), pointer.limit()), (base, 0xFFF));
            let mut bytes = [0; 10];
            bytes[..2].copy_from_slice(&0xFFF_u16.to_le_bytes());
            bytes[2..].copy_from_slice(&base.to_le_bytes());
            // SAFETY: the type is ten bytes without padding.
            let raw: [u8; 10] = unsafe { core::mem::transmute(pointer) };
            assert_eq!(raw, bytes);
        }
    }

    #[test]
    fn a_table_that_is_no_address_of_the_mode_is_refused_not_cut() {
        for base in HIGH {
            let refused = DescriptorTablePointer::new(base, 0xFFF, FourLevel).unwrap_err();
            assert_eq!((refused.addr, refused.mode), (base, FourLevel));
        }
        for mode in [FourLevel, FiveLevel] {
            let end = 1_u64 << (mode.address_bits() - 1);
            assert!(DescriptorTablePointer::new(end, 7, mode).is_err());
            // The end of the table must be canonical, too.
            assert!(DescriptorTablePointer::new(end - 0x1000, 0xFFF, mode).is_ok());
            let refused = DescriptorTablePointer::new(end - 0x1000, 0x1000, mode).unwrap_err();
            assert_eq!(refused.addr, end);
        }
    }
}
