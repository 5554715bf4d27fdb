//! Why a guest came back.

use switcher_gen::arch::vector;
use switcher_gen::layout::{ExitReason, OrigAx};

/// Why a guest exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It executed SYSCALL and no direct switch was possible: in smod a hypercall, ERETU or ERETS,
    /// in umod a system call the host has to deliver.
    Syscall,
    /// An exception or interrupt arrived while it ran.
    Event(Event),
    /// Its state could not be entered.
    FailedEntry,
    /// The frame names a reason that does not exist: an event handler of the host is wrong.
    Unknown(OrigAx),
}

/// An exception or interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// 0 to 255.
    pub vector: u8,
    /// What the hardware pushed, for the vectors for which it does.
    pub error_code: Option<u32>,
    /// CR2, for page faults.
    pub address: Option<u64>,
}

impl Exit {
    /// Reads an exit frame's cause; `cr2` is asked for page faults alone.
    pub fn from_frame(cause: OrigAx, cr2: impl FnOnce() -> u64) -> Self {
        const SYSCALL: u32 = ExitReason::Syscall as u32;
        const FAILED_ENTRY: u32 = ExitReason::FailedEntry as u32;
        match cause.reason {
            SYSCALL => Self::Syscall,
            FAILED_ENTRY => Self::FailedEntry,
            reason => u8::try_from(reason).map_or(Self::Unknown(cause), |vector| {
                Self::Event(Event {
                    vector,
                    error_code: vector::pushes_error_code(vector).then_some(cause.error_code),
                    address: (vector == vector::PF).then(cr2),
                })
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: u32, error_code: u32) -> Exit {
        Exit::from_frame(OrigAx { error_code, reason }, || 0xABC)
    }

    #[test]
    fn reasons_are_told_apart() {
        assert_eq!(exit(1024, 0), Exit::Syscall);
        assert_eq!(exit(1025, 0), Exit::FailedEntry);
        let unknown = OrigAx { error_code: 0, reason: 256 };
        assert_eq!(exit(256, 0), Exit::Unknown(unknown));
    }

    #[test]
    fn only_page_faults_have_an_address_and_only_some_vectors_an_error_code() {
        let event =
            |vector, error_code, address| Exit::Event(Event { vector, error_code, address });
        assert_eq!(exit(14, 6), event(14, Some(6), Some(0xABC)));
        assert_eq!(exit(13, 0x18), event(13, Some(0x18), None));
        assert_eq!(exit(6, u32::MAX), event(6, None, None));
        assert_eq!(exit(255, u32::MAX), event(255, None, None));
    }
}
