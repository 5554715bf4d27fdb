//! A guest's breakpoints: live while it runs, and only for addresses of its own.
//!
//! A watchpoint that matches an address of the host's makes #DB arrive in the middle of the
//! switcher, and tells the guest what the host accesses (spec/hazards.md, row 31: XSA-444). So a
//! guest's value of DR7 is never loaded: DR7 is made here, from breakpoints that lie in the guest's
//! range with their whole width. GD, which would make the host's own access to a debug register
//! fault, cannot be expressed at all.

use core::arch::asm;
use core::ops::Range;

use switcher_gen::arch::dr7;

use crate::exit::DebugCauses;
use crate::registers;

/// Which accesses a breakpoint is about (Intel SDM vol. 3, 18.2.4, R/W fields). There are no
/// breakpoints on I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The instruction that starts at the address is executed. Such a breakpoint is one byte wide.
    Execute,
    /// The bytes are written.
    Write(Width),
    /// The bytes are read or written.
    ReadWrite(Width),
}

/// How many bytes are watched. The address is a multiple of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    One,
    /// 2 bytes.
    Two,
    /// 4 bytes.
    Four,
    /// 8 bytes.
    Eight,
}

impl Width {
    /// The width in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The width as DR7's LEN field has it.
    const fn field(self) -> u64 {
        match self {
            Self::One => 0b00,
            Self::Two => 0b01,
            Self::Four => 0b11,
            Self::Eight => 0b10,
        }
    }
}

impl Access {
    const fn width(self) -> Width {
        match self {
            Self::Execute => Width::One,
            Self::Write(width) | Self::ReadWrite(width) => width,
        }
    }

    /// The access as DR7's R/W field has it.
    const fn field(self) -> u64 {
        match self {
            Self::Execute => 0b00,
            Self::Write(_) => 0b01,
            Self::ReadWrite(_) => 0b11,
        }
    }
}

/// Why a guest's breakpoint is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DebugError {
    /// A CPU has four breakpoints.
    #[error("there is no breakpoint {0}: they are 0 to 3")]
    NoSuchBreakpoint(usize),
    /// The hardware would round the address down, beyond what was checked.
    #[error("{bytes} bytes at {address:#x} are not aligned")]
    Unaligned {
        /// The first address.
        address: u64,
        /// How many bytes are to be watched.
        bytes: u64,
    },
    /// A part of what is to be watched may be the host's.
    #[error("{bytes} bytes at {address:#x} are not all the guest's")]
    NotTheGuests {
        /// The first address.
        address: u64,
        /// How many bytes are to be watched.
        bytes: u64,
    },
}

/// A guest's four breakpoints: [`Guest::debug`](crate::Guest::debug). At first, no breakpoint is
/// set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDebug {
    guest: Range<u64>,
    breakpoints: [Option<(u64, Access)>; 4],
}

impl GuestDebug {
    /// Breakpoints for a guest whose own addresses are the range `guest`.
    ///
    /// # Safety
    /// The host has nothing in that range for as long as a guest may be entered with these
    /// breakpoints: no range of [`Cpu::mappings`](crate::Cpu::mappings), of any CPU, nor of
    /// [`PvcsPage::mapping`](crate::PvcsPage::mapping), and nothing that its hooks or the code
    /// around the guest access on the host's root. A breakpoint on the switcher's own code would be
    /// met in ring 0 for ever, and a watchpoint on the host's memory tells the guest what the host
    /// does (spec/hazards.md, row 31).
    #[must_use]
    pub const unsafe fn new(guest: Range<u64>) -> Self {
        Self { guest, breakpoints: [None; 4] }
    }

    /// Sets breakpoint `number`, or clears it.
    ///
    /// # Errors
    /// If there is no such breakpoint, if it is not aligned, or if a byte of it is not the guest's.
    /// The breakpoint is as it was then.
    pub fn set(
        &mut self,
        number: usize,
        breakpoint: Option<(u64, Access)>,
    ) -> Result<(), DebugError> {
        let slot = self.breakpoints.get_mut(number).ok_or(DebugError::NoSuchBreakpoint(number))?;
        if let Some((address, access)) = breakpoint {
            let bytes = access.width().bytes();
            if !address.is_multiple_of(bytes) {
                return Err(DebugError::Unaligned { address, bytes });
            }
            let last = address.checked_add(bytes - 1);
            let is_guests = self.guest.contains(&address)
                && last.is_some_and(|last| self.guest.contains(&last));
            if !is_guests {
                return Err(DebugError::NotTheGuests { address, bytes });
            }
        }
        *slot = breakpoint;
        Ok(())
    }

    /// DR7 while the guest runs: local enables, and never GD. LE and GE, the exact-match bits, are
    /// clear: no CPU with long mode heeds them (Intel SDM vol. 3, 18.2.4).
    #[must_use]
    pub fn dr7(&self) -> u64 {
        let mut dr7 = dr7::DISABLED;
        for (number, breakpoint) in self.breakpoints.iter().enumerate() {
            if let Some((_, access)) = breakpoint {
                let field = access.field() | access.width().field() << 2;
                dr7 |= 1 << (2 * number) | field << (16 + 4 * number);
            }
        }
        dr7
    }

    /// The breakpoints that are set, as DR6 counts them: B0 is bit 0.
    fn matches(&self) -> u64 {
        let set = self.breakpoints.iter().enumerate().filter(|(_, set)| set.is_some());
        set.map(|(number, _)| 1 << number).sum()
    }

    /// Whether this CPU's DR0 to DR3 and DR7 are as [`arm`](Self::arm) has left them. Must be
    /// called at CPL 0, as `arm`.
    pub(crate) fn is_armed(&self) -> bool {
        let wanted = self.breakpoints.map(|set| set.map_or(0, |(address, _)| address));
        registers::dr7() == self.dr7() && addresses() == wanted
    }

    /// Makes the breakpoints live on this CPU, until [`disarm`](Self::disarm): directly around the
    /// guest. The result is what the host had in DR0 to DR3.
    ///
    /// # Safety
    /// Must be called at CPL 0, with interrupts off, on the CPU that enters the guest; the host has
    /// no breakpoints of its own enabled, and DR7.GD is clear.
    pub(crate) unsafe fn arm(&self) -> [u64; 4] {
        let [dr0, dr1, dr2, dr3] =
            self.breakpoints.map(|set| set.map_or(0, |(address, _)| address));
        let host = addresses();
        // SAFETY: the caller vouches for CPL 0, and for DR7.GD, with which the accesses would
        // fault. DR7 is written last; its reserved bits are as the manual wants them. What it
        // enables are breakpoints on the guest's own memory: `set` has found each to lie within the
        // range for which the caller of `new` vouches.
        unsafe {
            asm!(
                "mov dr0, {dr0}",
                "mov dr1, {dr1}",
                "mov dr2, {dr2}",
                "mov dr3, {dr3}",
                "mov dr7, {dr7}",
                dr0 = in(reg) dr0,
                dr1 = in(reg) dr1,
                dr2 = in(reg) dr2,
                dr3 = in(reg) dr3,
                dr7 = in(reg) self.dr7(),
                options(nostack, preserves_flags),
            );
        }
        host
    }

    /// Switches all breakpoints of this CPU off. The guest's addresses are replaced by the host's,
    /// because DR6 reports what matches, enabled or not. DR6 is cleared as well: a #DB that the
    /// switcher has ignored, left over from a guest's MOV SS, is not the host's.
    ///
    /// # Safety
    /// Must be called at CPL 0; the host has no breakpoints of its own enabled. The argument is
    /// what [`arm`](Self::arm) has returned.
    pub(crate) unsafe fn disarm([dr0, dr1, dr2, dr3]: [u64; 4]) {
        // SAFETY: the caller vouches for CPL 0; from the first instruction on, no breakpoint is
        // enabled. After an exit GD is clear, because `arm` has never set it.
        unsafe {
            asm!(
                "mov dr7, {dr7}",
                "mov dr0, {dr0}",
                "mov dr1, {dr1}",
                "mov dr2, {dr2}",
                "mov dr3, {dr3}",
                "mov dr6, {dr6}",
                dr6 = in(reg) DebugCauses::DR6_CLEAR,
                dr7 = in(reg) dr7::DISABLED,
                dr0 = in(reg) dr0,
                dr1 = in(reg) dr1,
                dr2 = in(reg) dr2,
                dr3 = in(reg) dr3,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Reads DR0 to DR3. The access faults if DR7.GD is set; so does the one to DR7 itself, which
/// callers make before.
fn addresses() -> [u64; 4] {
    let (dr0, dr1, dr2, dr3): (u64, u64, u64, u64);
    // SAFETY: reading changes nothing. Elsewhere than at CPL 0, where `arm` runs, it faults.
    unsafe {
        asm!(
            "mov {0}, dr0",
            "mov {1}, dr1",
            "mov {2}, dr2",
            "mov {3}, dr3",
            out(reg) dr0,
            out(reg) dr1,
            out(reg) dr2,
            out(reg) dr3,
            options(nomem, nostack, preserves_flags),
        );
    }
    [dr0, dr1, dr2, dr3]
}

/// DR6 of a guest's #DB without the matches that are not its own: the hardware reports what is
/// in DR0 to DR3 whether it is enabled or not (Intel SDM vol. 3, 18.2.3), and that may be an
/// address of the host's, or the 0 of a breakpoint that is not set.
pub(crate) fn of_guests(dr6: u64, guest: Option<&GuestDebug>) -> u64 {
    const MATCHES: u64 = 0b1111;
    dr6 & !MATCHES | dr6 & guest.map_or(0, GuestDebug::matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTHS: [Width; 4] = [Width::One, Width::Two, Width::Four, Width::Eight];

    fn debug() -> GuestDebug {
        // SAFETY: these breakpoints are never armed.
        unsafe { GuestDebug::new(0x1000..0x2004) }
    }

    #[test]
    fn a_watchpoint_is_refused_unless_every_byte_is_the_guests() {
        for width in WIDTHS {
            for access in [Access::Write(width), Access::ReadWrite(width)] {
                let bytes = width.bytes();
                for address in (0xFF0..0x1010).chain(0x1FF0..0x2010) {
                    let expected = if address % bytes != 0 {
                        Err(DebugError::Unaligned { address, bytes })
                    } else if (address..address + bytes)
                        .all(|byte| (0x1000..0x2004).contains(&byte))
                    {
                        Ok(())
                    } else {
                        Err(DebugError::NotTheGuests { address, bytes })
                    };
                    assert_eq!(debug().set(0, Some((address, access))), expected, "{address:#x}");
                }
            }
        }
        // These are eight bytes that begin within the range and end beyond it.
        let straddling = debug().set(0, Some((0x2000, Access::Write(Width::Eight))));
        let refused = DebugError::NotTheGuests { address: 0x2000, bytes: 8 };
        assert_eq!(straddling, Err(refused));
    }

    #[test]
    fn the_end_of_the_address_space_is_no_way_around() {
        // SAFETY: these breakpoints are never armed.
        let mut debug = unsafe { GuestDebug::new(0..u64::MAX) };
        let last = u64::MAX - 7;
        let refused = DebugError::NotTheGuests { address: last, bytes: 8 };
        assert_eq!(debug.set(0, Some((last, Access::Write(Width::Eight)))), Err(refused));
    }

    #[test]
    fn dr7_is_as_the_manual_has_it() {
        let mut debug = debug();
        assert_eq!(debug.dr7(), 0x400);
        debug.set(0, Some((0x1000, Access::Execute))).unwrap();
        assert_eq!(debug.dr7(), 0x401);
        debug.set(1, Some((0x1008, Access::Write(Width::Eight)))).unwrap();
        assert_eq!(debug.dr7(), 0x90_0405);
        debug.set(3, Some((0x1004, Access::ReadWrite(Width::Four)))).unwrap();
        assert_eq!(debug.dr7(), 0xF090_0445);
        debug.set(1, None).unwrap();
        assert_eq!(debug.dr7(), 0xF000_0441);
        assert_eq!(debug.set(4, None), Err(DebugError::NoSuchBreakpoint(4)));
        // LE and GE are clear, as the documentation of `dr7` has it.
        assert_eq!(debug.dr7() & 0b11 << 8, 0);
    }

    #[test]
    fn a_match_is_a_guests_if_that_breakpoint_is_its_own() {
        // DR6 with every match, a single step and the bits that are constant.
        let all = DebugCauses::DR6_CLEAR | 1 << 14 | 0b1111;
        let none = all & !0b1111;
        assert_eq!(of_guests(all, None), none);
        assert_eq!(of_guests(all, Some(&debug())), none);
        for number in 0..4 {
            let mut debug = debug();
            debug.set(number, Some((0x1000, Access::Execute))).unwrap();
            assert_eq!(of_guests(all, Some(&debug)), none | 1 << number);
            assert_eq!(of_guests(none, Some(&debug)), none);
        }
    }

    #[test]
    fn no_breakpoint_sets_gd_or_watches_io_ports() {
        for number in 0..4 {
            let accesses =
                WIDTHS.into_iter().flat_map(|w| [Access::Write(w), Access::ReadWrite(w)]);
            for access in accesses.chain([Access::Execute]) {
                let mut debug = debug();
                debug.set(number, Some((0x1000, access))).unwrap();
                assert_eq!(debug.dr7() & dr7::GD, 0);
                assert_ne!(debug.dr7() >> (16 + 4 * number) & 3, 0b10);
            }
        }
    }
}
