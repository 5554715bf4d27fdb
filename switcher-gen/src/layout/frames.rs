//! The frames on a host stack (spec/abi.md, "The exit frame"; Intel SDM vol. 3, 7.14.2).

use super::AsmLayout;

/// A guest's registers. Lies so that it ends at sp0, whoever builds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 168, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct PtRegs {
    #[asm(at = 0x00)]
    pub r15: u64,
    #[asm(at = 0x08)]
    pub r14: u64,
    #[asm(at = 0x10)]
    pub r13: u64,
    #[asm(at = 0x18)]
    pub r12: u64,
    #[asm(at = 0x20)]
    pub rbp: u64,
    #[asm(at = 0x28)]
    pub rbx: u64,
    #[asm(at = 0x30)]
    pub r11: u64,
    #[asm(at = 0x38)]
    pub r10: u64,
    #[asm(at = 0x40)]
    pub r9: u64,
    #[asm(at = 0x48)]
    pub r8: u64,
    #[asm(at = 0x50)]
    pub rax: u64,
    #[asm(at = 0x58)]
    pub rcx: u64,
    #[asm(at = 0x60)]
    pub rdx: u64,
    #[asm(at = 0x68)]
    pub rsi: u64,
    #[asm(at = 0x70)]
    pub rdi: u64,
    /// On exit, why: see [`OrigAx`]. On entry, unused.
    #[asm(at = 0x78)]
    pub orig_ax: OrigAx,
    #[asm(at = 0x80)]
    pub rip: u64,
    #[asm(at = 0x88)]
    pub cs: u64,
    #[asm(at = 0x90)]
    pub eflags: u64,
    #[asm(at = 0x98)]
    pub rsp: u64,
    #[asm(at = 0xA0)]
    pub ss: u64,
}

impl PtRegs {
    /// All registers zero; `Default`, for constants.
    pub const ZERO: Self = Self {
        r15: 0,
        r14: 0,
        r13: 0,
        r12: 0,
        rbp: 0,
        rbx: 0,
        r11: 0,
        r10: 0,
        r9: 0,
        r8: 0,
        rax: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        orig_ax: OrigAx { error_code: 0, reason: 0 },
        rip: 0,
        cs: 0,
        eflags: 0,
        rsp: 0,
        ss: 0,
    };
}

/// What an exit frame says of the exit's cause: error code (0 for SYSCALL) and reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C, align(8))]
#[asm(size = 8, align = 8)]
pub struct OrigAx {
    /// The hardware's error code; -1 for a vector that has none, 0 for SYSCALL.
    #[asm(at = 0x00)]
    pub error_code: u32,
    /// A vector below 256, or an [`ExitReason`].
    #[asm(at = 0x04)]
    pub reason: u32,
}

impl super::Scalar<8> for OrigAx {}

/// Reasons of an exit that no vector stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ExitReason {
    /// The guest executed SYSCALL and no direct switch was possible.
    Syscall = 1024,
    /// The guest's state could not be entered.
    FailedEntry = 1025,
}

/// What IRETQ pops: the tail of a [`PtRegs`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 40, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct IretFrame {
    #[asm(at = 0x00)]
    pub rip: u64,
    #[asm(at = 0x08)]
    pub cs: u64,
    #[asm(at = 0x10)]
    pub eflags: u64,
    #[asm(at = 0x18)]
    pub rsp: u64,
    #[asm(at = 0x20)]
    pub ss: u64,
}

// The tail of an exit frame is what IRETQ takes, field by field.
const _: () = {
    let tail = size_of::<PtRegs>() - size_of::<IretFrame>();
    assert!(PtRegs::rip.bytes() == tail + IretFrame::rip.bytes());
    assert!(PtRegs::cs.bytes() == tail + IretFrame::cs.bytes());
    assert!(PtRegs::eflags.bytes() == tail + IretFrame::eflags.bytes());
    assert!(PtRegs::rsp.bytes() == tail + IretFrame::rsp.bytes());
    assert!(PtRegs::ss.bytes() == tail + IretFrame::ss.bytes());
};
