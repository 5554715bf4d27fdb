//! The frames on a host stack (spec/abi.md, "The exit frame"; Intel SDM vol. 3, 7.14.2).

use super::AsmLayout;

/// A guest's registers. The frame lies so that it ends at sp0, whoever builds it.
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
    /// On exit, the cause of the exit: see [`OrigAx`]. On entry, the field is unused.
    #[asm(at = 0x78, nested)]
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
    /// A frame with all registers zero: `Default`, for constants.
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
    /// The vector, if it is below 256, or else an [`ExitReason`].
    #[asm(at = 0x04)]
    pub reason: u32,
}

impl super::Scalar<8> for OrigAx {}

/// The reasons for an exit that no vector stands for.
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

// IRETQ takes the tail of an exit frame, field by field.
const _: () = {
    let tail = size_of::<PtRegs>() - size_of::<IretFrame>();
    assert!(PtRegs::rip.bytes() == tail + IretFrame::rip.bytes());
    assert!(PtRegs::cs.bytes() == tail + IretFrame::cs.bytes());
    assert!(PtRegs::eflags.bytes() == tail + IretFrame::eflags.bytes());
    assert!(PtRegs::rsp.bytes() == tail + IretFrame::rsp.bytes());
    assert!(PtRegs::ss.bytes() == tail + IretFrame::ss.bytes());
};

/// What an event entry has on its stack once vector and error code are there: the tail of a
/// [`PtRegs`], except that the vector has the place of RDI until that is saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 56, align = 8)]
pub struct EventFrame {
    /// The vector in the low byte; the other bytes repeat its sign.
    #[asm(at = 0x00)]
    pub vector: u64,
    /// The hardware's error code, or -1.
    #[asm(at = 0x08)]
    pub error_code: u64,
    /// The frame that the CPU pushed.
    #[asm(at = 0x10, nested)]
    pub iret: IretFrame,
}

// Pushing the fourteen registers below RDI makes a `PtRegs` of this frame.
const _: () = {
    let base = PtRegs::rdi.bytes();
    assert!(base + EventFrame::error_code.bytes() == PtRegs::orig_ax.bytes());
    assert!(base + EventFrame::iret.bytes() == PtRegs::rip.bytes());
};

/// The sp0 stack when an IRETQ to a guest has faulted and RAX has been pushed. The frame that the
/// IRETQ refused ends at sp0, a multiple of 16; the CPU has aligned RSP before it pushed its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 112, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct RefusedIretq {
    #[asm(at = 0x00)]
    pub rax: u64,
    /// The vector of the IRETQ's own fault: an [`EventFrame`] about it starts here.
    #[asm(at = 0x08)]
    pub vector: u64,
    #[asm(at = 0x10)]
    pub error_code: u64,
    #[asm(at = 0x18)]
    pub rip: u64,
    #[asm(at = 0x20)]
    pub cs: u64,
    #[asm(at = 0x28)]
    pub eflags: u64,
    #[asm(at = 0x30)]
    pub rsp: u64,
    /// The frame that is made of it: an event of the guest whose IRETQ has faulted. It begins where
    /// the CPU has pushed SS, and its error code lies where the CPU's alignment has left a gap.
    #[asm(at = 0x38, nested)]
    pub guests: EventFrame,
}

/// What lies above a stack of the IST, where the TSS points. The host writes it, and emitted code
/// finds the host's GS base by it, whatever GS is. It has 16 bytes, so that the stack below is
/// aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C, align(16))]
#[asm(size = 16, align = 16)]
pub struct IstTop {
    /// The host's GS base on this CPU: with [`Placement::Gs`](super::Placement), its per-CPU
    /// block's address.
    #[asm(at = 0x00)]
    pub gs_base: u64,
    _reserved: u64,
}

impl IstTop {
    /// How many bytes of the stack below it emitted code uses itself: for a [`PtRegs`], for what is
    /// kept over a hook, and for the return addresses of `Bhb::Long`, each of whose rounds is
    /// called by the one before. The proofs allow no more. What hooks need comes on top.
    pub const USED: usize = 384;
    /// The least size of such a stack, in bytes: below what is used, a #MC and a #DB may each need
    /// their [`FarFrame`], as either may interrupt the other's return. Neither interrupts itself.
    pub const LEAST: usize = Self::USED + 2 * FarFrame::ROOM;
}

/// A stack of the IST with the registers of what was interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 184, align = 8)]
pub struct IstFrame {
    /// All general registers, and the frame that the CPU pushed.
    #[asm(at = 0x00, nested)]
    pub regs: PtRegs,
    /// The field of the [`IstTop`] above the stack.
    #[asm(at = 0xA8)]
    pub gs_base: u64,
    _reserved: u64,
}

/// A stack of the IST on which only the CPU has pushed, without an error code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 56, align = 8)]
pub struct IstEntry {
    /// The frame that the CPU pushed.
    #[asm(at = 0x00, nested)]
    pub iret: IretFrame,
    /// The field of the [`IstTop`] above the stack.
    #[asm(at = 0x28)]
    pub gs_base: u64,
    _reserved: u64,
}

/// An event of a guest on a stack of the IST, on its way to the sp0 stack: two registers are saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 72, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct EventOnIst {
    #[asm(at = 0x00)]
    pub rsi: u64,
    #[asm(at = 0x08)]
    pub rdi: u64,
    #[asm(at = 0x10, nested)]
    pub event: EventFrame,
}

/// The end of the sp0 stack when an event of a guest has come there from a stack of the IST: one
/// register is still to be loaded from below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 64, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct LeavingIst {
    #[asm(at = 0x00)]
    pub rdi: u64,
    #[asm(at = 0x08, nested)]
    pub event: EventFrame,
}

/// What POPFQ and a far RET take to return to ring 0 without an IRETQ: it lies on the stack that is
/// returned to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 24, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct FarFrame {
    #[asm(at = 0x00)]
    pub eflags: u64,
    #[asm(at = 0x08)]
    pub rip: u64,
    #[asm(at = 0x10)]
    pub cs: u64,
}

impl FarFrame {
    /// How many bytes below RSP may be in use on the stack that is returned to (System V ABI, "The
    /// Stack Frame"): the frame lies below them.
    pub const RED_ZONE: usize = 128;
    /// How many bytes below RSP a return to that stack uses.
    pub const ROOM: usize = Self::RED_ZONE + size_of::<Self>();
}

/// The stack that `TSS.sp0` points to, the end of which is the end of a guest's frame.
#[derive(Clone, Copy, Debug)]
pub struct Sp0;

impl Sp0 {
    /// The least size of the stack, in bytes: a [`PtRegs`], and below it what a #MC and a #DB need
    /// to return, each once, if they interrupt an event's entry or the common exit: a #DB that a
    /// guest has left pending by a MOV SS comes at the first instruction of a stub.
    pub const LEAST: usize = size_of::<PtRegs>() + 2 * FarFrame::ROOM;
}

/// An event's own stack when ring 0 is about to be returned to: two registers are saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, AsmLayout)]
#[repr(C)]
#[asm(size = 56, align = 8)]
#[expect(missing_docs, reason = "registers are what they are called")]
pub struct ResumingRing0 {
    #[asm(at = 0x00)]
    pub rcx: u64,
    #[asm(at = 0x08)]
    pub rax: u64,
    #[asm(at = 0x10, nested)]
    pub iret: IretFrame,
}
