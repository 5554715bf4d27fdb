//! Bits of control and debug registers, and of MSRs, that have no type of their own (Intel SDM vol.
//! 3, 2.5; AMD APM vol. 2, 3.1).

/// Bits of CR0.
pub mod cr0 {
    /// The FPU is emulated.
    pub const EM: u64 = 1 << 2;
    /// The FPU is another task's.
    pub const TS: u64 = 1 << 3;
    /// Errors of the FPU are reported as #MF.
    pub const NE: u64 = 1 << 5;
    /// Ring 0 cannot write to read-only pages.
    pub const WP: u64 = 1 << 16;
}

/// Bits of CR4.
pub mod cr4 {
    /// Virtual interrupts in protected mode.
    pub const PVI: u64 = 1 << 1;
    /// CPL 3 may read performance counters.
    pub const PCE: u64 = 1 << 8;
    /// SSE may be used.
    pub const OSFXSR: u64 = 1 << 9;
    /// SGDT and its like fault at CPL 3.
    pub const UMIP: u64 = 1 << 11;
    /// Paging has five levels.
    pub const LA57: u64 = 1 << 12;
    /// RDGSBASE and its like may be used.
    pub const FSGSBASE: u64 = 1 << 16;
    /// CR3 has process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE may be used.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Key Locker can be used.
    pub const KL: u64 = 1 << 19;
    /// Ring 0 cannot execute user pages.
    pub const SMEP: u64 = 1 << 20;
    /// Ring 0 can access user pages with AC set alone.
    pub const SMAP: u64 = 1 << 21;
    /// User pages have protection keys.
    pub const PKE: u64 = 1 << 22;
    /// Shadow stacks and indirect branch tracking, as S_CET and U_CET say.
    pub const CET: u64 = 1 << 23;
    /// User interrupts can be sent and received.
    pub const UINTR: u64 = 1 << 25;
    /// Linear address space separation is on (also Linux, uapi/asm/processor-flags.h).
    pub const LASS: u64 = 1 << 27;
    /// Linear address masking is on for addresses with bit 63 set.
    pub const LAM_SUP: u64 = 1 << 28;
    /// Flexible return and event delivery is on.
    pub const FRED: u64 = 1 << 32;
}

/// Bits of MSR EFER (AMD APM vol. 2, 3.1.7).
pub mod efer {
    /// Segments have limits in 64-bit mode.
    pub const LMSLE: u64 = 1 << 13;
    /// Upper bits of addresses are ignored.
    pub const UAIE: u64 = 1 << 20;
}

/// Bits of MSR S_CET (Intel SDM vol. 1, 17.1).
pub mod s_cet {
    /// Shadow stacks are on.
    pub const SH_STK_EN: u64 = 1 << 0;
    /// Indirect branch tracking is on.
    pub const ENDBR_EN: u64 = 1 << 2;
    /// The prefix NOTRACK exempts a branch from indirect branch tracking.
    pub const NO_TRACK_EN: u64 = 1 << 4;
}

/// Bits of MSR DEBUGCTL (Intel SDM vol. 3, 18.4.1).
pub mod debugctl {
    /// Last branches are recorded.
    pub const LBR: u64 = 1 << 0;
    /// A single step goes on to the next branch.
    pub const BTF: u64 = 1 << 1;
    /// A bus lock at CPL 3 is a #DB.
    pub const BUS_LOCK_DETECT: u64 = 1 << 2;
}

/// Bits of DR7 (Intel SDM vol. 3, 18.2.4).
pub mod dr7 {
    /// The bit that is always set; with this alone, no breakpoint is enabled.
    pub const DISABLED: u64 = 1 << 10;
    /// Enables breakpoint 0 for the task that runs. The bits of the others follow, two bits for
    /// each breakpoint.
    pub const L0: u64 = 1 << 0;
    /// All bits that enable a breakpoint: L0 to G3.
    pub const ARMED: u64 = 0xFF;
    /// An access to a debug register is a #DB.
    pub const GD: u64 = 1 << 13;
}
