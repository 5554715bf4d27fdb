//! The reasons why a guest exits.

use bitflags::bitflags;
use switcher_gen::arch::vector;
use switcher_gen::layout::{ExitReason, OrigAx};

/// Why a guest exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest executed SYSCALL and no direct switch was possible: in smod a hypercall, ERETU or
    /// ERETS, in umod a system call that the host has to deliver.
    Syscall,
    /// The guest caused a fault or a trap: vectors 0 to 31, without 2 and 18.
    Exception(Exception),
    /// An interrupt for the host arrived, or the guest executed `INT 0x80`: the one vector beyond
    /// the exceptions whose gate a guest may use, which the host therefore gives to no device.
    Interrupt {
        /// The vector, 32 to 255.
        vector: u8,
    },
    /// An NMI arrived while the guest ran. No hook was called. NMIs are blocked, as they are when
    /// hardware calls a handler: the host's handler, by its own IRET, or
    /// [`Cpu::unblock_nmis`](crate::Cpu::unblock_nmis) ends that, and until then no guest is
    /// entered on this CPU.
    Nmi,
    /// A machine check arrived. The host reads the banks, and decides whether it can go on.
    MachineCheck,
    /// The guest's state could not be loaded: its selectors or its RIP are not valid.
    FailedEntry {
        /// The error code of the IRETQ's #GP, #NP or #SS.
        error_code: u32,
    },
    /// The frame names a reason that does not exist. Only a broken switcher leaves such a frame.
    Unknown(OrigAx),
}

/// A fault or trap of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The vector, 0 to 31.
    pub vector: u8,
    /// The error code that the hardware pushed, for the vectors for which it does.
    pub error_code: Option<u32>,
    /// What the hardware says in a register, which was read before anything could change it.
    pub detail: Detail,
}

/// What an exception leaves in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// The exception leaves nothing in a register.
    None,
    /// For #PF: the address that was accessed.
    Cr2(u64),
    /// For #DB: its causes. DR6 itself has nothing to report any more.
    Dr6(DebugCauses),
}

bitflags! {
    /// The causes of a #DB, as DR6 reports them (Intel SDM vol. 3, 18.2.3), except that each bit is
    /// set for a cause here: the hardware *clears* two of its bits for a cause. INT1 is a #DB
    /// without any of them.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DebugCauses: u64 {
        /// Breakpoint 0 matches, which is one of the guest's. The hardware also reports matches of
        /// breakpoints that are not enabled, and of what the host has left in DR0 to DR3:
        /// [`Cpu::enter`](crate::Cpu::enter) leaves those out.
        const B0 = 1 << 0;
        /// Breakpoint 1 matches.
        const B1 = 1 << 1;
        /// Breakpoint 2 matches.
        const B2 = 1 << 2;
        /// Breakpoint 3 matches.
        const B3 = 1 << 3;
        /// The instruction before has locked the bus (BLD, which DR6 clears), and somebody has
        /// asked to be told: [`Guest::trap_bus_locks`](crate::Guest::trap_bus_locks).
        const BUS_LOCK = 1 << 11;
        /// A debug register was accessed while DR7.GD was set.
        const ACCESS = 1 << 13;
        /// A single step was taken.
        const SINGLE_STEP = 1 << 14;
        /// A task switch happened.
        const TASK_SWITCH = 1 << 15;
        /// The #DB happened in a transaction (RTM, which DR6 clears).
        const TRANSACTION = 1 << 16;
    }
}

impl DebugCauses {
    /// The value of DR6 with nothing to report: the two bits are set that a cause clears, and so
    /// are those that are always set.
    pub const DR6_CLEAR: u64 = 0xFFFF_0FF0;

    /// The causes in a value of DR6. On CPUs that do not know a cause, its bit is constant, and is
    /// no cause here.
    #[must_use]
    pub const fn from_dr6(dr6: u64) -> Self {
        // The constant bits are equal in both values, so they are clear in the result.
        Self::from_bits_truncate(dr6 ^ Self::DR6_CLEAR)
    }

    /// The value of DR6 for these causes: for hosts that hand the #DB on to the guest's kernel.
    #[must_use]
    pub const fn to_dr6(self) -> u64 {
        self.bits() ^ Self::DR6_CLEAR
    }
}

impl Exit {
    /// The reason for an exit, from the cause in its frame. `cr2` is called for page faults alone,
    /// `dr6` for #DB alone.
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
                    vector::DB => Detail::Dr6(DebugCauses::from_dr6(dr6())),
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
        let causes = DebugCauses::SINGLE_STEP | DebugCauses::B0;
        assert_eq!(exit(1, u32::MAX), exception(1, None, Detail::Dr6(causes)));
    }

    #[test]
    fn a_debug_exception_keeps_each_of_its_causes_whatever_its_polarity() {
        // This is what DR6 is for each cause alone, by the manual. Two of the causes clear their
        // bits.
        let by_the_manual = [
            (0xFFFF_0FF0, DebugCauses::empty()),
            (0xFFFF_0FF1, DebugCauses::B0),
            (0xFFFF_0FF8, DebugCauses::B3),
            (0xFFFF_07F0, DebugCauses::BUS_LOCK),
            (0xFFFF_2FF0, DebugCauses::ACCESS),
            (0xFFFF_4FF0, DebugCauses::SINGLE_STEP),
            (0xFFFF_8FF0, DebugCauses::TASK_SWITCH),
            (0xFFFE_0FF0, DebugCauses::TRANSACTION),
            (0xFFFF_47F0, DebugCauses::BUS_LOCK | DebugCauses::SINGLE_STEP),
        ];
        for (dr6, causes) in by_the_manual {
            assert_eq!(DebugCauses::from_dr6(dr6), causes, "{dr6:#x}");
            assert_eq!(causes.to_dr6(), dr6);
            let exit = Exit::from_frame(OrigAx { error_code: 0, reason: 1 }, || 0, || dr6);
            let Exit::Exception(Exception { detail, .. }) = exit else { panic!("{exit:?}") };
            assert_eq!(detail, Detail::Dr6(causes));
        }
        for bit in 0..32 {
            let causes = DebugCauses::from_dr6(DebugCauses::DR6_CLEAR ^ 1 << bit);
            let known = matches!(bit, 0..=3 | 11 | 13..=16);
            assert_eq!(!causes.is_empty(), known, "{bit}");
        }
    }
}
