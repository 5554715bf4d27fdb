//! The names in a switcher: its places, the host's symbols that it refers to, and the windows in
//! which the host's own code must know where it is. The assembler (`switcher-asm`) knows none of
//! these names, and is told them here.

use switcher_abi::layout::PerCpu;
use switcher_asm::{Named, Names};

/// Every place in a switcher that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Label {
    /// The host's call into the guest.
    EnterGuest,
    /// The choice between SYSRETQ and IRETQ.
    ReturnToGuest,
    /// Only IRETQ can load these registers; the selectors are the usual ones.
    ReturnByIretq,
    /// The IRET frame is complete.
    ReturnFrameComplete,
    /// The one IRETQ to a guest; a fault there is the guest's.
    Iretq,
    /// RIP is not canonical; RCX is to be restored.
    ReturnNotCanonical,
    /// RCX or R11 is not what SYSRETQ would have to leave there.
    ReturnOtherRegisters,
    /// Only IRETQ can load these selectors.
    ReturnOtherSelectors,
    /// The entry in LSTAR: SYSCALL of 64-bit code.
    Syscall64,
    /// RSP is the host's from here on.
    Syscall64SafeStack,
    /// Loads the guest's RSP and returns by SYSRETQ.
    Sysretq,
    /// The SYSRETQ with the guest's RSP.
    SysretqUnsafeStack,
    /// PKRU is loaded with smod's value.
    ToSmodPkru,
    /// A SYSCALL that is no direct switch to smod, but perhaps ERETU.
    NotToSmod,
    /// PKRU is loaded with umod's value.
    ToUmodPkru,
    /// umod's flags can be loaded by IRETQ alone, or only once they are sanitised.
    ToUmodOtherFlags,
    /// umod's RIP is not in the lower half.
    ToUmodUpperHalf,
    /// Only IRETQ can take umod to its RIP.
    ToUmodOtherRip,
    /// Everything is umod's but RSP.
    ToUmodSysretq,
    /// An ERETU that the host must do: RCX is to be restored.
    ExitEretu,
    /// A SYSCALL that exits.
    ExitSyscall,
    /// The common exit; host event handlers jump here too.
    ReturnFromGuest,
    /// Two entries of the return stack buffer are to be made harmless.
    RsbFill,
    /// The first of the two entries is made: a trap is at its return address.
    RsbFilledOnce,
    /// Both entries are made.
    RsbFilledTwice,
    /// One round of branches. Each round calls the next one.
    BhbRound,
    /// The branches of a round.
    BhbBranches,
    /// One of the branches.
    BhbBranch,
    /// The target of the branch.
    BhbTarget,
    /// The history is overwritten.
    BhbCleared,
    /// Where the host's return thunk and untraining lead if the host has none.
    NoThunk,
    /// The entry in CSTAR: SYSCALL of 32-bit code.
    SyscallCompat,
    /// An event without an error code.
    Event,
    /// An event with an error code.
    EventError,
    /// An event of a guest, on the sp0 stack.
    EventFromGuest,
    /// An event of a guest, on the sp0 stack, with the host's GS.
    EventOnSp0,
    /// An event that has interrupted ring 0.
    EventRing0,
    /// An event that should not have interrupted ring 0.
    EventUnexpected,
    /// An event that has interrupted the host's own code.
    EventInHost,
    /// An event after which nothing can go on, on a stack that may be any.
    /// [`HostSymbol::EXCEPTION`] leads there where the host has no handler: RSP points to an
    /// [`EventFrame`](crate::layout::EventFrame).
    Unhandled,
    /// The first byte of what runs only while NMIs are not blocked: the routines, up to the common
    /// exit. See `emit/event_return.rs`.
    Routines,
    /// The end of what runs only while NMIs are not blocked.
    RoutinesEnd,
    /// The host's call of its own handler of an event that has ended a guest's run.
    HandOn,
    /// The same of a handler that has a stack of its own.
    HandOnStack,
    /// That handler has returned.
    HandedOn,
    /// The entry of #DB.
    EventDb,
    /// An event of a guest, on a stack of the IST.
    EventIstFromGuest,
    /// A #DB that has interrupted ring 0.
    EventDbRing0,
    /// #DB or #MC in ring 0 is over: RSP points to its IRET frame, and every other register is
    /// restored.
    ResumeRing0,
    /// A #DB or #MC in ring 0 is over, and returns on the interrupted stack.
    ResumeOnStack,
    /// The entry of an NMI.
    EventNmi,
    /// The entry of #MC.
    EventMc,
    /// An NMI or a #MC that has interrupted ring 0.
    Interruption,
    /// The root is the host's, for the hook of an NMI or a #MC.
    InterruptionHook,
    /// [`RsbFill`](Self::RsbFill) before a hook.
    HookRsbFill,
    /// [`RsbFilledOnce`](Self::RsbFilledOnce) before a hook.
    HookRsbFilledOnce,
    /// [`RsbFilledTwice`](Self::RsbFilledTwice) before a hook.
    HookRsbFilledTwice,
    /// [`BhbRound`](Self::BhbRound) before a hook.
    HookBhbRound,
    /// [`BhbBranches`](Self::BhbBranches) before a hook.
    HookBhbBranches,
    /// [`BhbBranch`](Self::BhbBranch) before a hook.
    HookBhbBranch,
    /// [`BhbTarget`](Self::BhbTarget) before a hook.
    HookBhbTarget,
    /// [`BhbCleared`](Self::BhbCleared) before a hook.
    HookBhbCleared,
    /// The hook is that of #MC.
    McHook,
    /// The hook has returned.
    InterruptionOver,
    /// The entry of #DF.
    EventDf,
    /// An event after which nothing can go on, on a stack of its own.
    EventFatal,
    /// An event after which nothing can go on, with the host's GS base in RAX.
    Fatal,
    /// The root is the host's, for the fatal hook.
    FatalHook,
    /// Where hooks lead that the host does not have.
    NoHook,
    /// The first of the 256 event entries: see [`Image::gate`](crate::Image::gate).
    EventStubs,
    /// The end of the last event entry.
    EventStubsEnd,
    /// The end of the image, with the filler behind the event entries; a trap is behind it.
    End,
}

impl Label {
    /// All labels, in the order of their declaration.
    pub const ALL: [Self; 72] = [
        Self::EnterGuest,
        Self::ReturnToGuest,
        Self::ReturnByIretq,
        Self::ReturnFrameComplete,
        Self::Iretq,
        Self::ReturnNotCanonical,
        Self::ReturnOtherRegisters,
        Self::ReturnOtherSelectors,
        Self::Syscall64,
        Self::Syscall64SafeStack,
        Self::Sysretq,
        Self::SysretqUnsafeStack,
        Self::ToSmodPkru,
        Self::NotToSmod,
        Self::ToUmodPkru,
        Self::ToUmodOtherFlags,
        Self::ToUmodUpperHalf,
        Self::ToUmodOtherRip,
        Self::ToUmodSysretq,
        Self::ExitEretu,
        Self::ExitSyscall,
        Self::ReturnFromGuest,
        Self::RsbFill,
        Self::RsbFilledOnce,
        Self::RsbFilledTwice,
        Self::BhbRound,
        Self::BhbBranches,
        Self::BhbBranch,
        Self::BhbTarget,
        Self::BhbCleared,
        Self::NoThunk,
        Self::SyscallCompat,
        Self::Event,
        Self::EventError,
        Self::EventFromGuest,
        Self::EventOnSp0,
        Self::EventRing0,
        Self::EventUnexpected,
        Self::EventInHost,
        Self::Unhandled,
        Self::Routines,
        Self::RoutinesEnd,
        Self::HandOn,
        Self::HandOnStack,
        Self::HandedOn,
        Self::EventDb,
        Self::EventIstFromGuest,
        Self::EventDbRing0,
        Self::ResumeRing0,
        Self::ResumeOnStack,
        Self::EventNmi,
        Self::EventMc,
        Self::Interruption,
        Self::InterruptionHook,
        Self::HookRsbFill,
        Self::HookRsbFilledOnce,
        Self::HookRsbFilledTwice,
        Self::HookBhbRound,
        Self::HookBhbBranches,
        Self::HookBhbBranch,
        Self::HookBhbTarget,
        Self::HookBhbCleared,
        Self::McHook,
        Self::InterruptionOver,
        Self::EventDf,
        Self::EventFatal,
        Self::Fatal,
        Self::FatalHook,
        Self::NoHook,
        Self::EventStubs,
        Self::EventStubsEnd,
        Self::End,
    ];

    /// The symbol as hosts and listings know it; local labels start with `.L`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EnterGuest => "switcher_enter_guest",
            Self::ReturnToGuest => ".Lreturn_to_guest",
            Self::ReturnByIretq => ".Lreturn_by_iretq",
            Self::ReturnFrameComplete => ".Lreturn_frame_complete",
            Self::Iretq => "entry_IRETQ_switcher",
            Self::ReturnNotCanonical => ".Lreturn_not_canonical",
            Self::ReturnOtherRegisters => ".Lreturn_other_registers",
            Self::ReturnOtherSelectors => ".Lreturn_other_selectors",
            Self::Syscall64 => "entry_SYSCALL_64_switcher",
            Self::Syscall64SafeStack => "entry_SYSCALL_64_switcher_safe_stack",
            Self::Sysretq => ".Lsysretq",
            Self::SysretqUnsafeStack => "entry_SYSRETQ_switcher_unsafe_stack",
            Self::ToSmodPkru => ".Lto_smod_pkru",
            Self::NotToSmod => ".Lnot_to_smod",
            Self::ToUmodPkru => ".Lto_umod_pkru",
            Self::ToUmodOtherFlags => ".Lto_umod_other_flags",
            Self::ToUmodUpperHalf => ".Lto_umod_upper_half",
            Self::ToUmodOtherRip => ".Lto_umod_other_rip",
            Self::ToUmodSysretq => ".Lto_umod_sysretq",
            Self::ExitEretu => ".Lexit_eretu",
            Self::ExitSyscall => ".Lexit_syscall",
            Self::ReturnFromGuest => "switcher_return_from_guest",
            Self::RsbFill => ".Lrsb_fill",
            Self::RsbFilledOnce => ".Lrsb_filled_once",
            Self::RsbFilledTwice => ".Lrsb_filled_twice",
            Self::BhbRound => ".Lbhb_round",
            Self::BhbBranches => ".Lbhb_branches",
            Self::BhbBranch => ".Lbhb_branch",
            Self::BhbTarget => ".Lbhb_target",
            Self::BhbCleared => ".Lbhb_cleared",
            Self::NoThunk => ".Lno_thunk",
            Self::SyscallCompat => "entry_SYSCALL_compat_switcher",
            Self::Event => "switcher_event",
            Self::EventError => ".Levent_error",
            Self::EventFromGuest => ".Levent_from_guest",
            Self::EventOnSp0 => ".Levent_on_sp0",
            Self::EventRing0 => ".Levent_ring_0",
            Self::EventUnexpected => ".Levent_unexpected",
            Self::EventInHost => ".Levent_in_host",
            Self::Unhandled => ".Lunhandled",
            Self::Routines => "switcher_routines",
            Self::RoutinesEnd => "switcher_routines_end",
            Self::HandOn => "switcher_hand_on",
            Self::HandOnStack => "switcher_hand_on_stack",
            Self::HandedOn => ".Lhanded_on",
            Self::EventDb => ".Levent_db",
            Self::EventIstFromGuest => ".Levent_ist_from_guest",
            Self::EventDbRing0 => ".Levent_db_ring_0",
            Self::ResumeRing0 => ".Lresume_ring_0",
            Self::ResumeOnStack => ".Lresume_on_stack",
            Self::EventNmi => ".Levent_nmi",
            Self::EventMc => ".Levent_mc",
            Self::Interruption => ".Linterruption",
            Self::InterruptionHook => ".Linterruption_hook",
            Self::HookRsbFill => ".Lhook_rsb_fill",
            Self::HookRsbFilledOnce => ".Lhook_rsb_filled_once",
            Self::HookRsbFilledTwice => ".Lhook_rsb_filled_twice",
            Self::HookBhbRound => ".Lhook_bhb_round",
            Self::HookBhbBranches => ".Lhook_bhb_branches",
            Self::HookBhbBranch => ".Lhook_bhb_branch",
            Self::HookBhbTarget => ".Lhook_bhb_target",
            Self::HookBhbCleared => ".Lhook_bhb_cleared",
            Self::McHook => ".Lmc_hook",
            Self::InterruptionOver => ".Linterruption_over",
            Self::EventDf => ".Levent_df",
            Self::EventFatal => ".Levent_fatal",
            Self::Fatal => ".Lfatal",
            Self::FatalHook => ".Lfatal_hook",
            Self::NoHook => ".Lno_hook",
            Self::EventStubs => "switcher_event_stubs",
            Self::EventStubsEnd => "switcher_event_stubs_end",
            Self::End => ".Lend",
        }
    }

    /// Whether the host may refer to it.
    #[must_use]
    pub fn is_exported(self) -> bool {
        !self.name().starts_with(".L")
    }
}

/// A symbol of the host that emitted code jumps to or calls, always by rel32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostSymbol(pub &'static str);

/// All hooks but [`EXCEPTION`](Self::EXCEPTION) are functions of the host that event entries call,
/// by the System V ABI: `extern "C" fn(*mut PtRegs)`. Interrupts are off, GS base is the host's,
/// the root is the host's if a guest was being run, and the stack is one of the IST that ends 16
/// bytes above the `PtRegs`. RDI is that pointer; no other general register, nor a flag, holds
/// anything of what was interrupted. Hooks that return have the variant's mitigations before and
/// after them, and the host's SPEC_CTRL if that is switched.
impl HostSymbol {
    /// An NMI has interrupted ring 0: the switcher or the host. What was interrupted goes on
    /// afterwards, with its registers as they are then in the `PtRegs`. The hook may not execute
    /// IRET, as a fault's handler does: that would let in a second NMI, onto the same stack. The
    /// registers that ring 0 does not use, such as XMM, are a guest's.
    pub const NMI: Self = Self("switcher_host_nmi");
    /// A machine check has interrupted ring 0; what [`NMI`](Self::NMI) says holds here, too. NMIs
    /// may be blocked, and what was interrupted is then resumed without an IRET: the hook leaves
    /// RIP within the switcher's routines if it was there, and outside of them, with RF clear, if
    /// it was outside.
    pub const MACHINE_CHECK: Self = Self("switcher_host_machine_check");
    /// Something has happened in ring 0 that cannot happen. The hook must not return.
    pub const FATAL: Self = Self("switcher_host_fatal");
    /// The host's own code has raised an exception: any event without a stack of its own that has
    /// interrupted ring 0 outside of the image. It is no function but a handler, which the image
    /// jumps to: RSP points to an [`EventFrame`](crate::layout::EventFrame) on the interrupted
    /// stack, of whose vector the lowest byte counts, and all else is as the CPU has delivered the
    /// event, but for the arithmetic flags. What happens then is the handler's business: it may
    /// return to what was interrupted, or go on at [`FATAL`](Self::FATAL).
    pub const EXCEPTION: Self = Self("switcher_host_exception");
    /// All hooks.
    pub const HOOKS: [Self; 4] = [Self::NMI, Self::MACHINE_CHECK, Self::FATAL, Self::EXCEPTION];

    /// The host's untraining of returns: it is called before the first RET of an exit, and before a
    /// hook, on the root and with the GS base that the hooks have, on the host's stack or one of
    /// the IST, with DF and AC of whatever was interrupted. It may change RAX, RCX, RDX, the
    /// arithmetic flags and up to 128 bytes below RSP; its own return is safe. It may be
    /// interrupted by an NMI, which calls it again, and by a machine check or a #DB, which return
    /// below RSP: see [`FarFrame`](switcher_abi::layout::FarFrame). It executes no IRET and causes
    /// no fault.
    pub const UNTRAIN: Self = Self("switcher_host_untrain_returns");
    /// The host's return thunk, which code jumps to instead of executing a RET: it returns as a RET
    /// does, and may write below RSP.
    pub const RETURN_THUNK: Self = Self("switcher_host_return_thunk");
    /// Both symbols of returns, which only images with [`untrain`](crate::Mitigations::untrain)
    /// refer to. No indirect jump may lead there.
    pub const RETURNS: [Self; 2] = [Self::UNTRAIN, Self::RETURN_THUNK];
}

/// What the host's own NMI and #MC code must know of an address in the switcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Window {
    /// RSP is not yet or no longer the host's.
    UnsafeStack,
    /// A guest's root is loaded although CPL is 0.
    GuestRoot,
}

impl Window {
    /// Both windows.
    pub const ALL: [Self; 2] = [Self::UnsafeStack, Self::GuestRoot];

    /// The window's name in spec/switcher.md.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnsafeStack => "unsafe_stack",
            Self::GuestRoot => "guest_root",
        }
    }
}

/// The names of a switcher, for the assembler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switcher {}

impl Names for Switcher {
    type Label = Label;
    type Window = Window;
    type Symbol = HostSymbol;
    const PER_CPU_BEFORE_CODE: usize = PerCpu::BEFORE_CODE as usize;
}

impl Named for Label {
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl Named for Window {
    const ALL: &'static [Self] = &Self::ALL;

    fn name(self) -> &'static str {
        self.name()
    }

    fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_labels_number_is_its_place_among_all() {
        for (place, label) in Label::ALL.into_iter().enumerate() {
            assert_eq!(label as usize, place, "{}", label.name());
        }
        for (place, window) in Window::ALL.into_iter().enumerate() {
            assert_eq!(window as usize, place, "{}", window.name());
        }
    }
}
