//! What is to be shown, by name and by row of spec/hazards.md.

use serde::Serialize;

/// One thing that must hold wherever a theorem meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Obligation {
    /// Short and stable.
    pub name: &'static str,
    /// Rows of spec/hazards.md.
    pub rows: &'static [u8],
    /// What must hold.
    pub statement: &'static str,
}

macro_rules! obligations {
    ($($constant:ident = $name:literal $rows:tt $statement:literal;)*) => {
        $(
            #[doc = $statement]
            pub const $constant: Obligation =
                Obligation { name: $name, rows: &$rows, statement: $statement };
        )*

        impl Obligation {
            /// All there are, in the order of a path.
            pub const ALL: &[Obligation] = &[$($constant),*];
        }
    };
}

obligations! {
    // On the way.
    MEMORY = "memory" [7, 22] "every access is to the switcher's own memory";
    MAPPED = "mapped" [22] "on a guest's root, only what every guest's root maps is accessed";
    KEPT = "kept" [36] "what an event entry relies on is not stored to, not even for one instruction";
    ONE_UPDATE = "one-update" [37] "switch_flags changes in one instruction, so that no hook's bit is lost";
    ONE_MODE = "one-mode" [26, 36, 37] "between any two instructions, switch_flags says that the guest is in one mode";
    GS_CANONICAL = "gs-canonical" [3, 5, 36] "between any two instructions, GS base is canonical";
    GS_IS_THE_HOSTS = "per-cpu-access" [7] "GS is the host's at each access to the per-CPU block";
    RING_0_FLAGS = "ring-0-flags" [13, 30] "IF and TF are clear in ring 0";
    SWAPGS_FENCED = "swapgs-fenced" [28, 43] "GS is the host's at each access, whichever way jumps are predicted up to a fence";
    NO_DECISION_ON_RSP = "no-decision-on-rsp" [10] "no decision rests on an RSP of the guest's";
    CR3_OPERAND = "cr3-operand" [19] "only the published roots are loaded into CR3";
    CR3_PREPARED = "cr3-prepared" [19] "the other mode's root is loaded only if it is prepared";
    WRGSBASE_CANONICAL = "wrgsbase-canonical" [3, 5] "what WRGSBASE loads is canonical";
    WINDOW_ROOT = "window-guest-root" [9] "ring 0 on a guest's root is within the window";
    WINDOW_STACK = "window-unsafe-stack" [10] "ring 0 on a guest's RSP is within the window";
    NO_FAULT = "no-fault" [30] "no instruction faults in ring 0";
    EXISTS = "exists" [48] "each instruction exists, and each value is allowed, where the variant says so";
    SPLIT_LOCK = "split-lock" [30] "what is locked lies in one cache line";
    NO_TRAP = "no-trap" [30] "UD2 and INT3 are not reached";
    TRAPPED = "trapped" [45] "behind a return and an indirect jump is a trap";
    UPPER_HALF = "upper-half" [46] "RETs and indirect branches are in the upper half of a cache line";
    INDIRECT_FIRST = "indirect-first" [41] "no indirect branch comes before what keeps a guest from choosing its target";
    IBRS_FIRST = "ibrs-first" [29] "SPEC_CTRL is the host's before the first RET of an exit or a hook";
    IBPB_FIRST = "ibpb-first" [29] "predictors are emptied before the first RET of an exit or a hook";
    UNTRAINED = "untrained" [29] "exits and hooks return through the host's thunk, once that is untrained";
    RSB_FILLED = "rsb-filled" [29, 43, 44] "the return stack buffer is filled before an exit or a hook returns";
    BHB_CLEARED = "bhb-cleared" [29, 43, 44] "the history of branches is overwritten before an exit or a hook returns";
    VERW_LAST = "verw-last" [29, 42] "behind VERW, nothing is read but the frame that is returned to";
    UNTAKEN_CODE = "untaken-code" [41, 49] "where a jump may be predicted to lead, there is code that is known";
    UNTAKEN_MEMORY = "untaken-memory" [7, 22, 47] "where a jump may be predicted to lead, no access tells what a guest may not know";
    UNTAKEN_TARGET = "untaken-target" [41] "where a jump may be predicted to lead, nothing goes on where a guest says";
    // At SYSRETQ and IRETQ.
    SYSRETQ_CANONICAL = "sysretq-canonical" [1, 2, 3] "at SYSRETQ, RCX is canonical";
    SYSRETQ_RF_TF = "sysretq-rf-tf" [13] "at SYSRETQ, RF and TF are clear";
    SYSRETQ_SS = "sysretq-ss" [18] "at SYSRETQ on AMD, SS is not null";
    IRETQ_NT = "iretq-nt" [15] "at IRETQ, NT is clear";
    IRETQ_LABEL = "iretq-label" [7, 38] "a fault of the IRETQ is recognised by its address";
    IRETQ_FRAME = "iretq-frame" [40] "the IRETQ to a guest takes its frame from right below sp0, where its fault is looked for";
    IRETQ_FLAGS = "iretq-flags" [14, 40] "at the IRETQ to a guest, ring 0's flags are such as a guest may have, with which its fault is judged";
    IRETQ_RING_3 = "iretq-ring-3" [25] "IRETQ leads to CPL 3";
    GUEST_FLAGS = "guest-flags" [14] "flags at CPL 3 are within the allowed set, the fixed ones set";
    HOST_GS_KEPT = "host-gs-kept" [7] "at CPL 3, the inactive GS base is the host's";
    ROOT_OF_MODE = "root-of-mode" [8, 26] "at CPL 3, CR3 is the root of the mode in switch_flags";
    // At CPL 3, against the specification.
    KIND = "kind" [3, 13, 25, 26, 38] "the routine ends where and how the specification says";
    REGISTERS = "registers" [4, 27] "every general register is the guest's";
    NO_HOST_VALUE = "no-host-value" [24, 27, 34, 35] "no value of the host's gets to the guest, nor, for one instruction, to what it reads, nor decides what that is";
    RIP = "rip" [27] "RIP is the guest's";
    RFLAGS = "rflags" [13, 14] "RFLAGS is the guest's, sanitised";
    SELECTORS = "selectors" [25] "CS and SS are the guest's";
    GS_BASE = "gs-base" [5, 6, 7] "GS base is the guest's";
    ROOT = "root" [8, 26] "CR3 is as specified";
    SPEC_CTRL = "spec-ctrl" [29] "SPEC_CTRL is the guest's in the guest and the host's in the host and its hooks";
    PKRU = "pkru" [27] "PKRU is the mode's: umod's own, smod's as the host has chosen it";
    SWITCH_FLAGS = "switch-flags" [26] "the mode toggles exactly on a direct switch";
    TSS_EXTRA = "tss-extra" [27] "the per-CPU block is as specified";
    PVCS_GSBASE = "pvcs-gsbase" [6] "PVCS.user_gsbase is the GS base the guest had";
    PVCS = "pvcs" [27] "the PVCS is as specified";
    SFMASK = "sfmask" [14, 16] "SYSCALL clears DF, AC, IOPL and RF";
    PVCS_REGISTERED = "pvcs-registered" [22, 26] "the PVCS is accessed only if there is one";
    UNCHANGED = "unchanged" [22] "nothing else is written";
    SAVED = "saved" [27] "what is saved of the host does not depend on the guest";
    // In the host.
    EXIT_FLAGS = "exit-flags" [15, 16] "DF, AC, NT, TF, IF and IOPL are clear in the host";
    EXIT_SCRATCH = "exit-scratch" [27] "scratch registers hold nothing of the guest's";
    EXIT_CALLER = "exit-caller" [27] "the caller's registers are restored";
    EXIT_FRAME = "exit-frame" [2, 27, 38] "the exit frame holds every register of the guest";
    EXIT_RESULT = "exit-result" [27] "the call returns the frame's address";
    EXIT_ROOT = "exit-root" [9] "the host is back on its own root";
    EXIT_GS = "exit-gs" [7] "GS is the host's, the inactive base the guest's";
    EXIT_HOST_RSP = "exit-host-rsp" [27] "host_rsp says whether a guest is being run";
    EXIT_SS = "exit-ss" [18] "on AMD, SS is not null in the host";
    // Of events.
    HOST_RSP_SET = "host-rsp-set" [8, 9, 36] "on a guest's root, host_rsp says that a guest is being run";
    HOOK = "hook" [8, 38] "the host's hook for this event is called, once";
    HOOK_ROOT = "hook-root" [8] "the hook runs on the host's root";
    HOOK_GS = "hook-gs" [7] "the hook runs with the host's GS";
    HOOK_STACK = "hook-stack" [10] "the hook runs on a known stack, aligned by the ABI";
    HOOK_FLAGS = "hook-flags" [16] "the hook runs with DF, AC, NT, TF and IF clear";
    HOOK_FRAME = "hook-frame" [27] "the hook is told every register of what was interrupted";
    HOOK_REGISTERS = "hook-registers" [47] "no register but RDI tells the hook of what was interrupted";
    RESUMED = "resumed" [8, 12] "what was interrupted goes on, with the flags it had";
    RESUMED_ROOT = "resumed-root" [8, 9] "CR3 is what was interrupted";
    RESUMED_GS = "resumed-gs" [7] "both GS bases are what was interrupted";
    RESUMED_REGISTERS = "resumed-registers" [27] "every general register is what was interrupted";
    NMI_UNBLOCKED = "nmi-unblocked" [11, 39] "an IRET has ended the blocking of NMIs once it is over";
    NMI_KEPT = "nmi-blocked" [39] "NMIs that are blocked stay so until what they wait for is over";
    NMI_OPEN = "nmi-open" [11, 39] "NMIs are not blocked in code to which a #DB or a #MC returns by IRETQ";
    STACK_ROOM = "stack-room" [10, 39] "in other code of ring 0, RSP is a stack with room for the return of a #DB or a #MC";
    RESUMED_STACK = "resumed-stack" [10, 39] "the interrupted RSP is used only where it is ring 0's";
    NMI_STACK = "nmi-stack" [10, 11] "once NMIs are no longer blocked, nothing is on their stack";
    IRETQ_RING_0 = "iretq-ring-0" [25] "what IRETQ does not take to a guest stays in ring 0";
    FATAL_TRAP = "fatal-trap" [30] "behind the call of a hook that does not return is UD2";
    GATE_DPL = "gate-dpl" [32] "gates of DPL 3 are those of vectors 3, 4 and 0x80";
    GATE_ONCE = "gate-once" [38] "each vector has one gate";
    GATE_IST = "gate-ist" [10, 12, 38] "#DF, NMI, #DB and #MC have stacks of their own, others have none";
    // By looking at the code (hazards.md's S rows).
    ADJACENT = "rsp-adjacent" [23] "the load of RSP is right in front of SYSRETQ";
    ENDBR = "endbr" [33] "under IBT, what is jumped to indirectly is ENDBR64";
}
