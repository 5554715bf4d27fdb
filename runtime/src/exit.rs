//! Why a guest came back.

use switcher_gen::arch::vector;
use switcher_gen::layout::{ExitReason, OrigAx};

/// Why a guest exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It executed SYSCALL and no direct switch was possible: in smod a hypercall, ERETU or ERETS,
    /// in umod a system call the host has to deliver.
    Syscall,
    /// It caused a fault or a trap: vectors 0 to 31, without 2 and 18.
    Exception(Exception),
    /// An interrupt for the host arrived, or the guest executed `INT 0x80`: the one vector beyond
    /// the exceptions whose gate a guest may use, which the host therefore gives to no device.
    Interrupt {
        /// 32 to 255.
        vector: u8,
    },
    /// An NMI arrived while the guest ran. NMIs are not blocked any more, as the exit has executed an
    /// IRET: the host handles this one at once, or another one may come first. No hook was called.
    Nmi,
    /// A machine check arrived. The host reads the banks, and decides whether it can go on.
    MachineCheck,
    /// The guest's state could not be loaded: its selectors or its RIP are none.
    FailedEntry {
        /// Of the IRETQ's #GP, #NP or #SS.
        error_code: u32,
    },
    /// The frame names a reason that does not exist. Only a broken switcher leaves one.
    Unknown(OrigAx),
}

/// A fault or trap of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// 0 to 31.
    pub vector: u8,
    /// What the hardware pushed, for the vectors for which it does.
    pub error_code: Option<u32>,
    /// What the hardware says in a register, read before anything could change it.
    pub detail: Detail,
}

/// What an exception leaves in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    None,
    /// Of #PF: the address.
    Cr2(u64),
    /// Of #DB: its causes, [`Exit::DR6_CAUSES`] of DR6. The register itself is clear again, because
    /// the hardware only ever sets them. It sets B0 to B3 for breakpoints that match, enabled or not.
    Dr6(u64),
}

impl Exit {
    /// DR6's B0 to B3, BD, BS and BT (Intel SDM vol. 3, 18.2.3). The other bits are constants, or
    /// mean something only where the host has asked for it.
    pub const DR6_CAUSES: u64 = 0xE00F;
    /// DR6's BS: the #DB is a single step.
    pub const DR6_SINGLE_STEP: u64 = 1 << 14;

    /// Reads an exit frame's cause. `cr2` is called for page faults alone, `dr6` for #DB alone.
    pub fn from_frame(cause: OrigAx, cr2: impl FnOnce() -> u64, dr6: impl FnOnce() -> u64) -> Self {
        const SYSCALL: u32 = ExitReason::Syscall as u32;
        const FAILED_ENTRY: u32 = ExitReason::FailedEntry as u32;
        let vector = match cause.reason {
            SYSCALL => return Self::Syscall,
            FAILED_ENTRY => return Self::FailedEntry { error_code: cause.error_code },
            reason => match u8::try_from(reason) {
                Ok(vector) => vector,
                Err(_) => return Self::Unknown(cause),
            },
        };
        match vector {
            vector::NMI => Self::Nmi,
            vector::MC => Self::MachineCheck,
            vector::FIRST_INTERRUPT.. => Self::Interrupt { vector },
            _ => Self::Exception(Exception {
                vector,
                error_code: vector::pushes_error_code(vector).then_some(cause.error_code),
                detail: match vector {
                    vector::PF => Detail::Cr2(cr2()),
                    vector::DB => Detail::Dr6(dr6() & Self::DR6_CAUSES),
                    _ => Detail::None,
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: u32, error_code: u32) -> Exit {
        Exit::from_frame(OrigAx { error_code, reason }, || 0xABC, || 0xFFFF_4FF1)
    }

    #[test]
    fn reasons_are_told_apart() {
        assert_eq!(exit(1024, 0), Exit::Syscall);
        assert_eq!(exit(1025, 0x33), Exit::FailedEntry { error_code: 0x33 });
        for reason in [256, 1023, 1026, u32::MAX] {
            assert_eq!(exit(reason, 0), Exit::Unknown(OrigAx { error_code: 0, reason }));
        }
    }

    #[test]
    fn every_vector_is_what_the_manual_says() {
        for vector in 0..=255 {
            let got = exit(vector.into(), 7);
            match vector {
                2 => assert_eq!(got, Exit::Nmi),
                18 => assert_eq!(got, Exit::MachineCheck),
                32.. => assert_eq!(got, Exit::Interrupt { vector }),
                _ => assert!(matches!(got, Exit::Exception(e) if e.vector == vector), "{got:?}"),
            }
        }
    }

    #[test]
    fn exceptions_have_an_error_code_and_a_register_where_the_hardware_gives_them() {
        let exception =
            |vector, error_code, detail| Exit::Exception(Exception { vector, error_code, detail });
        assert_eq!(exit(14, 6), exception(14, Some(6), Detail::Cr2(0xABC)));
        assert_eq!(exit(13, 0x18), exception(13, Some(0x18), Detail::None));
        assert_eq!(exit(6, u32::MAX), exception(6, None, Detail::None));
        // The constant bits of DR6 are no cause.
        assert_eq!(exit(1, u32::MAX), exception(1, None, Detail::Dr6(0x4001)));
    }
}
