//! What is to be shown, by name and with the hazards that it keeps away.

use serde::Serialize;

use switcher_gen::Hazard;

/// One thing that must hold wherever a theorem meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Obligation {
    /// Short and stable.
    pub name: &'static str,
    /// What it keeps from happening: rows of spec/hazards.md.
    pub rows: &'static [Hazard],
    /// What must hold.
    pub statement: &'static str,
}

macro_rules! obligations {
    ($($constant:ident = $name:literal [$($row:ident),*] $statement:literal;)*) => {
        $(
            #[doc = $statement]
            pub const $constant: Obligation =
                Obligation { name: $name, rows: &[$(Hazard::$row),*], statement: $statement };
        )*

        impl Obligation {
            /// All there are, in the order of a path.
            pub const ALL: &[Obligation] = &[$($constant),*];
        }
    };
}

obligations! {
    // What must hold on the way.
    MEMORY = "memory" [SwapgsParity, MappedSet]
        "every access is to the switcher's own memory";
    MAPPED = "mapped" [MappedSet]
        "on a guest's root, only what every guest's root maps is accessed";
    KEPT = "kept" [EventFields]
        "what an event entry relies on is not stored to, not even for one instruction";
    ONE_UPDATE = "one-update" [SplitUpdate]
        "switch_flags changes in one instruction, so that no hook's bit is lost";
    ONE_MODE = "one-mode" [ModeConfusion, EventFields, SplitUpdate]
        "between any two instructions, switch_flags says that the guest is in one mode";
    GS_CANONICAL = "gs-canonical" [AddressWidth, WrgsbaseFault, EventFields]
        "between any two instructions, GS base is canonical";
    GS_IS_THE_HOSTS = "per-cpu-access" [SwapgsParity]
        "GS is the host's at each access to the per-CPU block";
    RING_0_FLAGS = "ring-0-flags" [TrapAndResumeFlags, PastTrap]
        "IF and TF are clear in ring 0";
    SWAPGS_FENCED = "swapgs-fenced" [SpeculativeSwapgs, NoFence]
        "GS is the host's at each access, whichever way jumps are predicted up to a fence";
    NO_DECISION_ON_RSP = "no-decision-on-rsp" [RspAtNmiStack]
        "no decision rests on an RSP of the guest's";
    CR3_OPERAND = "cr3-operand" [BadCr3]
        "only the published roots are loaded into CR3";
    CR3_PREPARED = "cr3-prepared" [BadCr3]
        "the other mode's root is loaded only if it is prepared";
    WRGSBASE_CANONICAL = "wrgsbase-canonical" [AddressWidth, WrgsbaseFault]
        "what WRGSBASE loads is canonical";
    WINDOW_ROOT = "window-guest-root" [WindowGap]
        "ring 0 on a guest's root is within the window";
    WINDOW_STACK = "window-unsafe-stack" [RspAtNmiStack]
        "ring 0 on a guest's RSP is within the window";
    NO_FAULT = "no-fault" [PastTrap]
        "no instruction faults in ring 0";
    EXISTS = "exists" [Nonexistent]
        "each instruction exists, and each value is allowed, where the variant says so";
    SPLIT_LOCK = "split-lock" [PastTrap]
        "what is locked lies in one cache line";
    NO_TRAP = "no-trap" [PastTrap]
        "UD2 and INT3 are not reached";
    TRAPPED = "trapped" [StraightLine]
        "a trap comes after a return and after an indirect jump";
    UPPER_HALF = "upper-half" [TargetSelection]
        "RETs and indirect branches are in the upper half of a cache line";
    INDIRECT_FIRST = "indirect-first" [EarlyBranch]
        "no indirect branch comes before what keeps a guest from choosing its target";
    IBRS_FIRST = "ibrs-first" [MitigationOrder]
        "SPEC_CTRL is the host's before the first RET of an exit or a hook";
    IBPB_FIRST = "ibpb-first" [MitigationOrder]
        "predictors are emptied before the first RET of an exit or a hook";
    UNTRAINED = "untrained" [MitigationOrder]
        "exits and hooks return through the host's thunk, once that is untrained";
    RSB_FILLED = "rsb-filled" [MitigationOrder, NoFence, SequenceUndone]
        "the return stack buffer is filled before an exit or a hook returns";
    BHB_CLEARED = "bhb-cleared" [MitigationOrder, NoFence, SequenceUndone]
        "the history of branches is overwritten before an exit or a hook returns";
    VERW_LAST = "verw-last" [MitigationOrder, BuffersCleared]
        "after VERW, nothing is read but the frame that is returned to";
    UNTAKEN_CODE = "untaken-code" [EarlyBranch, TwoDecoders]
        "where a jump may be predicted to lead, there is code that is known";
    UNTAKEN_MEMORY = "untaken-memory" [SwapgsParity, MappedSet, LiveInHook]
        "where a jump may be predicted to lead, no access tells what a guest may not know";
    UNTAKEN_TARGET = "untaken-target" [EarlyBranch]
        "where a jump may be predicted to lead, nothing goes on where a guest says";
    // What must hold at SYSRETQ and IRETQ.
    SYSRETQ_CANONICAL = "sysretq-canonical" [SysretNonCanonical, SyscallAtCanonicalEnd, AddressWidth]
        "at SYSRETQ, RCX is canonical";
    SYSRETQ_RF_TF = "sysretq-rf-tf" [TrapAndResumeFlags]
        "at SYSRETQ, RF and TF are clear";
    SYSRETQ_SS = "sysretq-ss" [SysretSs]
        "at SYSRETQ on AMD, SS is not null";
    IRETQ_NT = "iretq-nt" [NestedTask]
        "at IRETQ, NT is clear";
    IRETQ_LABEL = "iretq-label" [SwapgsParity, VectorUnlikeOthers]
        "a fault of the IRETQ is recognised by its address";
    IRETQ_FRAME = "iretq-frame" [IretqFrame]
        "the IRETQ to a guest takes its frame from right below sp0, where its fault is looked for";
    IRETQ_FLAGS = "iretq-flags" [PrivilegedFlags, IretqFrame]
        "at the IRETQ to a guest, ring 0's flags are such as a guest may have, with which its fault is judged";
    IRETQ_RING_3 = "iretq-ring-3" [AssumedSelectors]
        "IRETQ leads to CPL 3";
    GUEST_FLAGS = "guest-flags" [PrivilegedFlags]
        "flags at CPL 3 are within the allowed set, the fixed ones set";
    HOST_GS_KEPT = "host-gs-kept" [SwapgsParity]
        "at CPL 3, the inactive GS base is the host's";
    ROOT_OF_MODE = "root-of-mode" [NmiRoot, ModeConfusion]
        "at CPL 3, CR3 is the root of the mode in switch_flags";
    // What must hold at CPL 3, by the specification.
    KIND = "kind" [AddressWidth, TrapAndResumeFlags, AssumedSelectors, ModeConfusion, VectorUnlikeOthers]
        "the routine ends where and how the specification says";
    REGISTERS = "registers" [RcxOnIret, Registers]
        "every general register is the guest's";
    NO_HOST_VALUE = "no-host-value" [DoubleFetch, Registers, HostValueInPvcs, Provenance]
        "no value of the host's gets to the guest, nor, for one instruction, to what it reads, nor decides what that is";
    RIP = "rip" [Registers]
        "RIP is the guest's";
    RFLAGS = "rflags" [TrapAndResumeFlags, PrivilegedFlags]
        "RFLAGS is the guest's, sanitised";
    SELECTORS = "selectors" [AssumedSelectors]
        "CS and SS are the guest's";
    GS_BASE = "gs-base" [WrgsbaseFault, StaleGsBase, SwapgsParity]
        "GS base is the guest's";
    ROOT = "root" [NmiRoot, ModeConfusion]
        "CR3 is as specified";
    SPEC_CTRL = "spec-ctrl" [MitigationOrder]
        "SPEC_CTRL is the guest's in the guest and the host's in the host and its hooks";
    PKRU = "pkru" [Registers]
        "PKRU is the mode's: umod's own, smod's as the host has chosen it";
    SWITCH_FLAGS = "switch-flags" [ModeConfusion]
        "the mode toggles exactly on a direct switch";
    TSS_EXTRA = "tss-extra" [Registers]
        "the per-CPU block is as specified";
    PVCS_GSBASE = "pvcs-gsbase" [StaleGsBase]
        "PVCS.user_gsbase is the GS base the guest had";
    PVCS = "pvcs" [Registers]
        "the PVCS is as specified";
    SFMASK = "sfmask" [PrivilegedFlags, FlagsInHost]
        "SYSCALL clears DF, AC, IOPL and RF";
    PVCS_REGISTERED = "pvcs-registered" [MappedSet, ModeConfusion]
        "the PVCS is accessed only if there is one";
    UNCHANGED = "unchanged" [MappedSet]
        "nothing else is written";
    SAVED = "saved" [Registers]
        "what is saved of the host does not depend on the guest";
    // What must hold in the host.
    EXIT_FLAGS = "exit-flags" [NestedTask, FlagsInHost]
        "DF, AC, NT, TF, IF and IOPL are clear in the host";
    EXIT_SCRATCH = "exit-scratch" [Registers]
        "scratch registers hold nothing of the guest's";
    EXIT_CALLER = "exit-caller" [Registers]
        "the caller's registers are restored";
    EXIT_FRAME = "exit-frame" [SyscallAtCanonicalEnd, Registers, VectorUnlikeOthers]
        "the exit frame holds every register of the guest";
    EXIT_RESULT = "exit-result" [Registers]
        "the call returns the frame's address";
    EXIT_ROOT = "exit-root" [WindowGap]
        "the host is back on its own root";
    EXIT_GS = "exit-gs" [SwapgsParity]
        "GS is the host's, the inactive base the guest's";
    EXIT_HOST_RSP = "exit-host-rsp" [Registers]
        "host_rsp says whether a guest is being run";
    EXIT_SS = "exit-ss" [SysretSs]
        "on AMD, SS is not null in the host";
    // What must hold of events.
    HOST_RSP_SET = "host-rsp-set" [NmiRoot, WindowGap, EventFields]
        "on a guest's root, host_rsp says that a guest is being run";
    HOOK = "hook" [NmiRoot, VectorUnlikeOthers]
        "the host's hook for this event is called, once";
    HOOK_ROOT = "hook-root" [NmiRoot]
        "the hook runs on the host's root";
    HOOK_GS = "hook-gs" [SwapgsParity]
        "the hook runs with the host's GS";
    HOOK_STACK = "hook-stack" [RspAtNmiStack]
        "the hook runs on a known stack, aligned by the ABI";
    HOOK_FLAGS = "hook-flags" [FlagsInHost]
        "the hook runs with DF, AC, NT, TF and IF clear";
    HOOK_FRAME = "hook-frame" [Registers]
        "the hook is told every register of what was interrupted";
    HOOK_REGISTERS = "hook-registers" [LiveInHook]
        "no register but RDI tells the hook of what was interrupted";
    RESUMED = "resumed" [NmiRoot, MovSsSyscall]
        "what was interrupted goes on, with the flags it had";
    RESUMED_ROOT = "resumed-root" [NmiRoot, WindowGap]
        "CR3 is what was interrupted";
    RESUMED_GS = "resumed-gs" [SwapgsParity]
        "both GS bases are what was interrupted";
    RESUMED_REGISTERS = "resumed-registers" [Registers]
        "every general register is what was interrupted";
    NMI_UNBLOCKED = "nmi-unblocked" [NmisStayBlocked, EarlyNmi]
        "an IRET has ended the blocking of NMIs once it is over";
    NMI_KEPT = "nmi-blocked" [EarlyNmi]
        "NMIs that are blocked stay so until what they wait for is over";
    NMI_OPEN = "nmi-open" [NmisStayBlocked, EarlyNmi]
        "NMIs are not blocked in code to which a #DB or a #MC returns by IRETQ";
    STACK_ROOM = "stack-room" [RspAtNmiStack, EarlyNmi]
        "in other code of ring 0, RSP is a stack with room for the return of a #DB or a #MC";
    RESUMED_STACK = "resumed-stack" [RspAtNmiStack, EarlyNmi]
        "the interrupted RSP is used only where it is ring 0's";
    NMI_STACK = "nmi-stack" [RspAtNmiStack, NmisStayBlocked]
        "once NMIs are no longer blocked, nothing is on their stack";
    IRETQ_RING_0 = "iretq-ring-0" [AssumedSelectors]
        "what IRETQ does not take to a guest stays in ring 0";
    FATAL_TRAP = "fatal-trap" [PastTrap]
        "UD2 comes after the call of a hook that does not return";
    GATE_DPL = "gate-dpl" [VectorSpoofing]
        "gates of DPL 3 are those of vectors 3, 4 and 0x80";
    GATE_ONCE = "gate-once" [VectorUnlikeOthers]
        "each vector has one gate";
    GATE_IST = "gate-ist" [RspAtNmiStack, MovSsSyscall, VectorUnlikeOthers]
        "#DF, NMI, #DB and #MC have stacks of their own, others have none";
    // What is seen by looking at the code (hazards.md's S rows).
    ADJACENT = "rsp-adjacent" [RspToSysret]
        "the load of RSP comes right before SYSRETQ";
    ENDBR = "endbr" [FredAndIbt]
        "under IBT, what is jumped to indirectly is ENDBR64";
}
