//! Paging modes and canonical addresses (Intel SDM vol. 3, 4.5; vol. 1, 3.3.7.1).

use core::fmt;

/// The paging mode a host runs in. This is **not** what its CPU is capable of: which addresses are
/// canonical follows CR4.LA57 (spec/hazards.md, row 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PagingMode {
    /// 48-bit linear addresses.
    FourLevel,
    /// 57-bit linear addresses: CR4.LA57 = 1.
    FiveLevel,
}

impl PagingMode {
    /// How many tables a page walk goes through.
    #[must_use]
    pub const fn levels(self) -> u8 {
        match self {
            Self::FourLevel => 4,
            Self::FiveLevel => 5,
        }
    }

    /// How many low bits of a linear address are translated: 9 by each table, 12 within the page.
    /// The others must equal the highest of them.
    #[must_use]
    pub const fn address_bits(self) -> u8 {
        12 + 9 * self.levels()
    }

    /// How many high bits of an address repeat its sign bit: the distance of the two shifts that
    /// make an address canonical.
    #[must_use]
    pub const fn sign_bits(self) -> u8 {
        64 - self.address_bits()
    }

    /// `addr` with its high bits replaced by its sign bit.
    #[must_use]
    pub const fn canonicalize(self, addr: u64) -> u64 {
        let shift = self.sign_bits() as u32;
        ((addr << shift).cast_signed() >> shift).cast_unsigned()
    }

    /// Whether an access to `addr` can succeed in this mode.
    #[must_use]
    pub const fn is_canonical(self, addr: u64) -> bool {
        self.canonicalize(addr) == addr
    }

    /// `addr` as an address of this mode.
    ///
    /// # Errors
    /// If it is not canonical.
    pub const fn address(self, addr: u64) -> Result<CanonicalAddr, NonCanonical> {
        if self.is_canonical(addr) {
            Ok(CanonicalAddr { addr, mode: self })
        } else {
            Err(NonCanonical { addr, mode: self })
        }
    }

    /// The name in variants and on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FourLevel => "4level",
            Self::FiveLevel => "la57",
        }
    }
}

impl fmt::Display for PagingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A linear address that is canonical for the paging mode it was made with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CanonicalAddr {
    addr: u64,
    mode: PagingMode,
}

impl CanonicalAddr {
    /// The address.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.addr
    }

    /// The paging mode it is canonical for.
    #[must_use]
    pub const fn mode(self) -> PagingMode {
        self.mode
    }
}

impl fmt::Debug for CanonicalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CanonicalAddr({:#x}, {})", self.addr, self.mode)
    }
}

/// An address that is not canonical in the given paging mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{addr:#x} is not canonical under {mode} paging: bits {} to 63 differ", mode.address_bits() - 1)]
pub struct NonCanonical {
    /// The address that was given.
    pub addr: u64,
    /// The paging mode it was meant for.
    pub mode: PagingMode,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_follows_the_mode_at_every_boundary() {
        for (mode, bits) in [(PagingMode::FourLevel, 48), (PagingMode::FiveLevel, 57)] {
            let half = 1_u64 << (bits - 1);
            assert!(mode.is_canonical(half - 1));
            assert!(!mode.is_canonical(half));
            assert!(mode.is_canonical(half.wrapping_neg()));
            assert!(!mode.is_canonical(half.wrapping_neg() - 1));
            assert!(mode.is_canonical(0) && mode.is_canonical(u64::MAX));
        }
    }

    #[test]
    fn a_57_bit_address_is_none_under_4_level_paging() {
        assert!(PagingMode::FiveLevel.address(1 << 47).is_ok());
        let refused = PagingMode::FourLevel.address(1 << 47).unwrap_err();
        assert_eq!(
            alloc::format!("{refused}"),
            "0x800000000000 is not canonical under 4level paging: bits 47 to 63 differ"
        );
    }

    #[test]
    fn canonicalizing_changes_nothing_that_is_canonical() {
        for addr in [0, 1, 0x7fff_ffff_ffff, 0xffff_8000_0000_0000, u64::MAX] {
            assert_eq!(PagingMode::FourLevel.canonicalize(addr), addr);
        }
        assert_eq!(PagingMode::FourLevel.canonicalize(1 << 60), 0);
        assert_eq!(PagingMode::FourLevel.canonicalize(1 << 47), 0xffff_8000_0000_0000);
    }
}
