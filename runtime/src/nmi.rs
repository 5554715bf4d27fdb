//! The blocking of NMIs after an NMI has ended a guest's run.

use core::arch::asm;

use crate::cpu::Cpu;
use crate::prepare::{Prepared, WrongCpu};

impl Prepared<'_> {
    /// Whether an NMI has ended the last run of a guest on this CPU, and the host has not handled
    /// it yet: NMIs are blocked.
    #[must_use]
    pub const fn are_nmis_blocked(&self) -> bool {
        self.nmis_blocked
    }

    /// Ends the blocking of NMIs after [`Exit::Nmi`](crate::Exit::Nmi), by an IRETQ to where this
    /// code is. It is for hosts that have handled the NMI without a handler that ends with an IRET.
    /// An NMI that was sent meanwhile comes at once, to the host's own handler. If NMIs are not
    /// blocked, nothing happens.
    ///
    /// # Errors
    /// If this is not the CPU of `prepare`, or if this code could be moved to another one.
    pub fn unblock_nmis(&mut self) -> Result<(), WrongCpu> {
        self.is_here()?;
        if core::mem::take(&mut self.nmis_blocked) {
            // SAFETY: this is CPL 0, as `prepare` asks. Nothing of the switcher waits for the
            // handling of an NMI once `enter` has returned.
            unsafe { iretq_to_here() };
        }
        Ok(())
    }
}

impl Cpu<'_> {
    /// What [`Prepared::are_nmis_blocked`] says.
    #[must_use]
    pub const fn are_nmis_blocked(&self) -> bool {
        self.prepared.are_nmis_blocked()
    }

    /// Does what [`Prepared::unblock_nmis`] does.
    ///
    /// # Errors
    /// As there.
    pub fn unblock_nmis(&mut self) -> Result<(), WrongCpu> {
        self.prepared.unblock_nmis()
    }
}

/// An IRETQ that changes nothing but the blocking of NMIs.
///
/// # Safety
/// Must be called at CPL 0, where an NMI may come to whatever handler is loaded.
unsafe fn iretq_to_here() {
    // SAFETY: the frame has this code's own address, selectors, flags and stack. The caller vouches
    // for CPL 0; SS is null or of that level, so the IRETQ takes it.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "mov {other:e}, ss",
            "push {other}",
            "push {stack}",
            "pushfq",
            "mov {other:e}, cs",
            "push {other}",
            "lea {other}, [rip + 2f]",
            "push {other}",
            "iretq",
            "int3",
            "2:",
            stack = out(reg) _,
            other = out(reg) _,
        );
    }
}
