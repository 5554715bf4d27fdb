//! The segment selectors SYSCALL and SYSRET imply (Intel SDM vol. 3, 5.8.8).

use super::msr::Star;

/// The five selectors of a host. They are not free: SYSCALL loads CS and CS + 8, SYSRET adds 8 and
/// 16 to a base, so two of them determine the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Selectors {
    kernel_cs: u16,
    user32_cs: u16,
}

/// Why selectors cannot be programmed into STAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectorError {
    /// KERNEL_CS is no selector that SYSCALL could load: SYSCALL forces RPL 0 and loads SS from the
    /// next descriptor, `CS + 8`.
    #[error("KERNEL_CS {0:#x} must be a non-null GDT selector with RPL 0")]
    KernelCs(u16),
    /// USER32_CS is no base that SYSRET could use: SYSRET forces RPL 3 and loads SS from `base +
    /// 8`, CS from `base + 16`.
    #[error("USER32_CS {0:#x} must be a non-null GDT selector with RPL 3, and leave room for +16")]
    User32Cs(u16),
    /// The selectors overlap: two descriptors would have to be one.
    #[error(
        "KERNEL_CS/DS {kernel_cs:#x}/+8 and the three user selectors from {user32_cs:#x} overlap"
    )]
    Overlap {
        /// The host's code selector.
        kernel_cs: u16,
        /// The first of the user selectors.
        user32_cs: u16,
    },
}

impl Selectors {
    /// The requested privilege level, in the lowest byte of a selector. It is zero in a selector of
    /// ring 0.
    pub const RPL: u8 = 0b011;

    /// The selectors of spec/abi.md, "Selectors", and of Linux.
    pub const DEFAULT: Self = match Self::new(0x10, 0x23) {
        Ok(selectors) => selectors,
        Err(_) => panic!("the ABI's own selectors are legal"),
    };

    /// The selectors that follow from the two that STAR holds.
    ///
    /// # Errors
    /// If a selector has a wrong RPL or names the wrong table, or if descriptors would overlap.
    pub const fn new(kernel_cs: u16, user32_cs: u16) -> Result<Self, SelectorError> {
        const RPL: u16 = Selectors::RPL as u16;
        const LDT: u16 = 0b100;
        if kernel_cs < 8 || kernel_cs & (RPL | LDT) != 0 || kernel_cs > u16::MAX - 8 {
            return Err(SelectorError::KernelCs(kernel_cs));
        }
        if user32_cs < 8 || user32_cs & (RPL | LDT) != RPL || user32_cs > u16::MAX - 16 {
            return Err(SelectorError::User32Cs(user32_cs));
        }
        let (kernel, user) = (kernel_cs >> 3, user32_cs >> 3);
        if kernel + 1 >= user && kernel <= user + 2 {
            return Err(SelectorError::Overlap { kernel_cs, user32_cs });
        }
        Ok(Self { kernel_cs, user32_cs })
    }

    /// CS of the host at CPL 0.
    #[must_use]
    pub const fn kernel_cs(self) -> u16 {
        self.kernel_cs
    }

    /// SS of the host at CPL 0.
    #[must_use]
    pub const fn kernel_ds(self) -> u16 {
        self.kernel_cs + 8
    }

    /// CS of 32-bit umod code.
    #[must_use]
    pub const fn user32_cs(self) -> u16 {
        self.user32_cs
    }

    /// SS of smod and, as a rule, of umod.
    #[must_use]
    pub const fn user_ds(self) -> u16 {
        self.user32_cs + 8
    }

    /// CS of smod and of 64-bit umod.
    #[must_use]
    pub const fn user_cs(self) -> u16 {
        self.user32_cs + 16
    }

    /// `user_cs` and `user_ss` of a PVCS as one little-endian dword, when they are the pair that
    /// SYSRETQ loads.
    #[must_use]
    pub const fn user_pair(self) -> u32 {
        (self.user_ds() as u32) << 16 | self.user_cs() as u32
    }

    /// The value that STAR must hold.
    #[must_use]
    pub const fn star(self) -> Star {
        Star::new(self.kernel_cs, self.user32_cs)
    }
}

impl Default for Selectors {
    fn default() -> Self {
        Self::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_abis_table() {
        let s = Selectors::DEFAULT;
        assert_eq!((s.kernel_cs(), s.kernel_ds()), (0x10, 0x18));
        assert_eq!((s.user32_cs(), s.user_ds(), s.user_cs()), (0x23, 0x2B, 0x33));
        assert_eq!(s.user_pair(), 0x002B_0033);
        assert_eq!(s.star().bits(), 0x0023_0010_0000_0000);
    }

    #[test]
    fn selectors_star_cannot_express_are_refused() {
        assert_eq!(Selectors::new(0, 0x23), Err(SelectorError::KernelCs(0)));
        assert_eq!(Selectors::new(0x13, 0x23), Err(SelectorError::KernelCs(0x13)));
        assert_eq!(Selectors::new(0x10, 0x20), Err(SelectorError::User32Cs(0x20)));
        assert_eq!(Selectors::new(0x10, 0x27), Err(SelectorError::User32Cs(0x27)));
        assert_eq!(Selectors::new(0x10, 0xFFFB), Err(SelectorError::User32Cs(0xFFFB)));
        let overlap = SelectorError::Overlap { kernel_cs: 0x10, user32_cs: 0x1B };
        assert_eq!(Selectors::new(0x10, 0x1B), Err(overlap));
        assert_eq!(Selectors::new(0x20, 0x0B).map(Selectors::user_cs), Ok(0x1B));
    }
}
