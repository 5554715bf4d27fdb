//! CR3 values (Intel SDM vol. 3, 2.5 and 4.10.4.1).
//!
//! NOFLUSH and PCIDs exist only where CR4.PCIDE is set: with it clear, bit 63 raises #GP in ring 0
//! on a guest's root (spec/hazards.md, rows 19 and 20). So they take a [`PcidEnabled`], which only
//! a host's state can give.

/// A value of CR3: a root's physical address, perhaps with a PCID and NOFLUSH.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Cr3(u64);

/// A proof that CR4.PCIDE is set. Only a [`HostState`](super::HostState) in which it is set gives
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcidEnabled(());

impl PcidEnabled {
    pub(super) const fn new() -> Self {
        Self(())
    }
}

/// A process-context identifier, 0 to 4095.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pcid(u16);

impl Pcid {
    /// The largest number.
    pub const LAST: u16 = 0xFFF;

    /// # Errors
    /// If `pcid` does not fit into 12 bits.
    pub const fn new(pcid: u16) -> Result<Self, Cr3Error> {
        if pcid <= Self::LAST { Ok(Self(pcid)) } else { Err(Cr3Error::Pcid(pcid)) }
    }
}

/// Why a value cannot be loaded into CR3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Cr3Error {
    /// The address is not that of a page table root, which is a page-aligned physical address below
    /// 2^52.
    #[error(
        "{0:#x} is not the address of a page table root: it must be 4 KiB-aligned and below 2^52"
    )]
    Root(u64),
    /// A PCID has more than 12 bits.
    #[error("PCID {0} does not fit into 12 bits")]
    Pcid(u16),
}

impl Cr3 {
    /// The value of a slot whose root is not prepared. It is never loaded, because NO_DS_CR3 is set
    /// then.
    pub const NONE: Self = Self(0);
    const NOFLUSH: u64 = 1 << 63;
    const ROOT: u64 = (1 << 52) - (1 << 12);

    /// The value for the root at physical address `root`, with PCID 0, which flushes.
    ///
    /// # Errors
    /// If `root` is not page-aligned, or has more than the architecture's 52 bits.
    pub const fn new(root: u64) -> Result<Self, Cr3Error> {
        if root & !Self::ROOT == 0 { Ok(Self(root)) } else { Err(Cr3Error::Root(root)) }
    }

    /// A value that was read from the register, to be loaded again on the same CPU.
    #[must_use]
    pub const fn from_register(bits: u64) -> Self {
        Self(bits & !Self::NOFLUSH)
    }

    /// This root under a PCID.
    #[must_use]
    pub const fn with_pcid(self, pcid: Pcid, _: PcidEnabled) -> Self {
        Self(self.0 & !0xFFF | pcid.0 as u64)
    }

    /// The same value with NOFLUSH: the TLB keeps what it holds of this PCID.
    #[must_use]
    pub const fn without_flush(self, _: PcidEnabled) -> Self {
        Self(self.0 | Self::NOFLUSH)
    }

    /// The root of `other`, under this PCID and with this NOFLUSH.
    #[must_use]
    pub const fn with_root_of(self, other: Self) -> Self {
        Self(self.0 & !Self::ROOT | other.0 & Self::ROOT)
    }

    /// The bits as they were read from the register, or are to be loaded into it.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether it can be loaded only with CR4.PCIDE set: otherwise, bits 0 to 11 and 63 mean
    /// something else, or nothing.
    #[must_use]
    pub const fn uses_pcid(self) -> bool {
        self.0 & (Self::NOFLUSH | 0xFFF) != 0
    }

    /// The root's physical address.
    #[must_use]
    pub const fn root(self) -> u64 {
        self.0 & Self::ROOT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_page_below_2_to_the_52() {
        assert_eq!(Cr3::new(0x1000).unwrap().bits(), 0x1000);
        assert_eq!(Cr3::new(0x1008), Err(Cr3Error::Root(0x1008)));
        assert_eq!(Cr3::new(1 << 63), Err(Cr3Error::Root(1 << 63)));
    }

    #[test]
    fn noflush_and_pcid_leave_the_root_alone() {
        let enabled = PcidEnabled::new();
        let cr3 = Cr3::new(0x5000).unwrap();
        let tagged = cr3.with_pcid(Pcid::new(33).unwrap(), enabled).without_flush(enabled);
        assert_eq!(tagged.bits(), 1 << 63 | 0x5021);
        assert_eq!(tagged.root(), 0x5000);
        assert!(tagged.uses_pcid() && !cr3.uses_pcid());
        assert_eq!(tagged.with_root_of(Cr3::new(0x7000).unwrap()).bits(), 1 << 63 | 0x7021);
        assert!(cr3.without_flush(enabled).uses_pcid());
        assert_eq!(Pcid::new(4096), Err(Cr3Error::Pcid(4096)));
    }
}
