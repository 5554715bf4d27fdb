//! What is to be shown, by name, with the hazards that it keeps away and with what is at stake.
//!
//! Severities are decided obligation by obligation, by the worst that a guest can make of it, and
//! where there is a doubt, the graver one counts. `spec/obligations.md` is this table as a
//! document.

use std::fmt::Write as _;

use serde::Serialize;

use crate::severity::Severity;
use switcher_gen::Hazard;

/// One thing that must hold wherever a theorem meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Obligation {
    /// Short and stable.
    pub name: &'static str,
    /// What it keeps from happening: rows of spec/hazards.md.
    pub rows: &'static [Hazard],
    /// What is at stake if it does not hold.
    pub severity: Severity,
    /// What must hold.
    pub statement: &'static str,
    /// What happens if it does not: why it is of this severity.
    pub otherwise: &'static str,
}

macro_rules! obligations {
    ($($constant:ident = $name:literal $severity:ident [$($row:ident),*] $statement:literal, $otherwise:literal;)*) => {
        $(
            #[doc = $statement]
            pub const $constant: Obligation = Obligation {
                name: $name,
                rows: &[$(Hazard::$row),*],
                severity: Severity::$severity,
                statement: $statement,
                otherwise: $otherwise,
            };
        )*

        impl Obligation {
            /// All there are, in the order of a path.
            pub const ALL: &[Obligation] = &[$($constant),*];
        }
    };
}

impl Obligation {
    /// The table as `spec/obligations.md`.
    #[must_use]
    pub fn document() -> String {
        let mut text = String::from(HEAD);
        for severity in Severity::ALL {
            let all = Self::ALL.iter().filter(|it| it.severity == severity);
            let (name, count) = (severity.name(), all.clone().count());
            // Writing to a string does not fail.
            let _ = write!(text, "\n## Severity `{name}`: {count}\n\n{}.\n\n", severity.meaning());
            text += "| obligation | what must hold | otherwise | rows |\n|---|---|---|---|\n";
            for Self { name, rows, statement, otherwise, .. } in all {
                let rows: Vec<_> = rows.iter().map(|row| row.number().to_string()).collect();
                let rows = rows.join(", ");
                let _ = writeln!(text, "| `{name}` | {statement} | {otherwise} | {rows} |");
            }
        }
        text
    }
}

/// What the document begins with.
const HEAD: &str = "\
# Obligations, and what is at stake

<!-- `BLESS=1 cargo test -p switcher-prove --test obligations` writes this page. -->

What `switcher prove` shows of all code, and what a finding means: the table is
`switcher-gen/prove/src/obligation.rs`. A severity is the worst that a guest can make of a broken
obligation; where there is a doubt, the graver one counts. Rows are those of
[hazards.md](hazards.md). The exit code of `switcher prove` is that of the gravest finding.
";

obligations! {
    // What must hold on the way.
    MEMORY = "memory" Host [SwapgsParity, MappedSet]
        "every access is to the switcher's own memory",
        "the host's memory is read or overwritten, or a page fault comes in ring 0";
    MAPPED = "mapped" Host [MappedSet]
        "on a guest's root, only what every guest's root maps is accessed",
        "an access faults in ring 0 on a guest's root, or the root maps more of the host than it must";
    DESCRIPTORS = "descriptors" Host [SecretSelector]
        "which descriptor is read says nothing that a guest may not know",
        "a cache tells the guest which line of the GDT was read, and so bits of a value of the host's";
    KEPT = "kept" Host [EventFields]
        "what an event entry relies on is not stored to, not even for one instruction",
        "an NMI, a machine check or another event goes on by a value that is not so";
    ONE_UPDATE = "one-update" Host [SplitUpdate]
        "switch_flags changes in one instruction, so that no hook's bit is lost",
        "a bit is lost by which the host forbids direct switches, such as that there is no PVCS";
    ONE_MODE = "one-mode" Host [ModeConfusion, EventFields, SplitUpdate]
        "between any two instructions, switch_flags says that the guest is in one mode",
        "an NMI that comes there returns to the root of the wrong mode";
    GS_CANONICAL = "gs-canonical" Host [AddressWidth, WrgsbaseFault, EventFields]
        "between any two instructions, GS base is canonical",
        "whoever restores GS base after an NMI faults in ring 0";
    GS_IS_THE_HOSTS = "per-cpu-access" Host [SwapgsParity]
        "GS is the host's at each access to the per-CPU block",
        "ring 0 takes its data, its stack and its roots from an address that the guest has chosen";
    RING_0_FLAGS = "ring-0-flags" Host [TrapAndResumeFlags, PastTrap]
        "IF and TF are clear in ring 0",
        "an interrupt or a trap comes in ring 0, where nothing is prepared for it";
    SWAPGS_FENCED = "swapgs-fenced" Host [SpeculativeSwapgs, NoFence]
        "GS is the host's at each access, whichever way jumps are predicted up to a fence",
        "a CPU reads speculatively by a GS base that the guest has chosen";
    NO_DECISION_ON_RSP = "no-decision-on-rsp" Host [RspAtNmiStack]
        "no decision rests on an RSP of the guest's",
        "a guest that points RSP to a stack of the host's decides what ring 0 does";
    CR3_OPERAND = "cr3-operand" Host [BadCr3]
        "only the published roots are loaded into CR3",
        "ring 0 runs on page tables that the host has not made, or the load faults";
    CR3_PREPARED = "cr3-prepared" Host [BadCr3]
        "the other mode's root is loaded only if it is prepared",
        "ring 0 runs on page tables that are not there";
    WRGSBASE_CANONICAL = "wrgsbase-canonical" Host [AddressWidth, WrgsbaseFault]
        "what WRGSBASE loads is canonical",
        "WRGSBASE faults in ring 0, at a time that the guest chooses";
    WINDOW_ROOT = "window-guest-root" Host [WindowGap]
        "ring 0 on a guest's root is within the window",
        "an NMI that comes there is taken for one of the host's, which goes on on a guest's root";
    WINDOW_STACK = "window-unsafe-stack" Host [RspAtNmiStack]
        "ring 0 on a guest's RSP is within the window",
        "an event that comes there pushes its frame where the guest has pointed RSP";
    NO_FAULT = "no-fault" Host [PastTrap]
        "no instruction faults in ring 0",
        "ring 0 takes an exception for which nothing is prepared";
    EXISTS = "exists" Host [Nonexistent]
        "each instruction exists, and each value is allowed, where the variant says so",
        "ring 0 takes #UD or #GP on a CPU that the variant is for";
    SPLIT_LOCK = "split-lock" Host [PastTrap]
        "what is locked lies in one cache line",
        "ring 0 takes #AC where split locks are forbidden, and stalls every CPU where they are not";
    NO_TRAP = "no-trap" Host [PastTrap]
        "UD2 and INT3 are not reached",
        "ring 0 runs into a trap, at a time that the guest may choose";
    TRAPPED = "trapped" Host [StraightLine]
        "a trap comes after a return and after an indirect jump",
        "a CPU goes on speculatively with whatever lies behind a return or a jump";
    UPPER_HALF = "upper-half" Host [TargetSelection]
        "RETs and indirect branches are in the upper half of a cache line",
        "a guest that has trained the predictor chooses where the CPU goes on speculatively";
    INDIRECT_FIRST = "indirect-first" Host [EarlyBranch]
        "no indirect branch comes before what keeps a guest from choosing its target",
        "a guest that has trained the predictor chooses where the CPU goes on speculatively";
    IBRS_FIRST = "ibrs-first" Host [MitigationOrder]
        "SPEC_CTRL is the host's before the first RET of an exit or a hook",
        "returns of the host are predicted by what the guest has trained";
    IBPB_FIRST = "ibpb-first" Host [MitigationOrder]
        "predictors are emptied before the first RET of an exit or a hook",
        "returns of the host are predicted by what the guest has trained";
    UNTRAINED = "untrained" Host [MitigationOrder]
        "exits and hooks return through the host's thunk, once that is untrained",
        "returns of the host are predicted by what the guest has trained";
    RSB_FILLED = "rsb-filled" Host [MitigationOrder, NoFence, SequenceUndone]
        "the return stack buffer is filled before an exit or a hook returns",
        "returns of the host are predicted by addresses that the guest has pushed";
    BHB_CLEARED = "bhb-cleared" Host [MitigationOrder, NoFence, SequenceUndone]
        "the history of branches is overwritten before an exit or a hook returns",
        "indirect branches of the host are predicted by a history that the guest has made";
    VERW_LAST = "verw-last" Host [MitigationOrder, BuffersCleared]
        "after VERW, nothing is read but the frame that is returned to",
        "buffers of the CPU keep data of the host's that the guest can sample";
    UNTAKEN_CODE = "untaken-code" Host [EarlyBranch, TwoDecoders]
        "where a jump may be predicted to lead, there is code that is known",
        "a CPU executes speculatively what nobody has looked at";
    UNTAKEN_MEMORY = "untaken-memory" Host [SwapgsParity, MappedSet, LiveInHook, SecretSelector]
        "where a jump may be predicted to lead, no access tells what a guest may not know",
        "a cache tells the guest a value of the host's, or reads by an address of the guest's";
    UNTAKEN_TARGET = "untaken-target" Host [EarlyBranch]
        "where a jump may be predicted to lead, nothing goes on where a guest says",
        "a guest chooses where the CPU goes on speculatively";
    // What must hold at SYSRETQ and IRETQ.
    SYSRETQ_CANONICAL = "sysretq-canonical" Host [SysretNonCanonical, SyscallAtCanonicalEnd, AddressWidth]
        "at SYSRETQ, RCX is canonical",
        "SYSRETQ faults in ring 0, on the stack that the guest has chosen";
    SYSRETQ_RF_TF = "sysretq-rf-tf" Guest [TrapAndResumeFlags]
        "at SYSRETQ, RF and TF are clear",
        "the guest gets its trap one instruction late, or never gets past its own breakpoint";
    SYSRETQ_SS = "sysretq-ss" Guest [SysretSs]
        "at SYSRETQ on AMD, SS is not null",
        "SS of the guest has a null descriptor behind it, so that 32-bit code of the guest faults";
    IRETQ_NT = "iretq-nt" Host [NestedTask]
        "at IRETQ, NT is clear",
        "IRETQ faults in ring 0 because of a flag that the guest has set";
    IRETQ_LABEL = "iretq-label" Host [SwapgsParity, VectorUnlikeOthers]
        "a fault of the IRETQ is recognised by its address",
        "a fault that the guest can cause at the IRETQ is taken for one of the host's own";
    IRETQ_FRAME = "iretq-frame" Host [IretqFrame]
        "the IRETQ to a guest takes its frame from right below sp0, where its fault is looked for",
        "a fault of the IRETQ is judged by memory that is not its frame";
    IRETQ_FLAGS = "iretq-flags" Host [PrivilegedFlags, IretqFrame]
        "at the IRETQ to a guest, ring 0's flags are such as a guest may have, with which its fault is judged",
        "a fault of the IRETQ is judged with flags that no guest may have";
    IRETQ_RING_3 = "iretq-ring-3" Host [AssumedSelectors]
        "IRETQ leads to CPL 3",
        "the guest goes on at a privilege level that is not its own";
    GUEST_FLAGS = "guest-flags" Host [PrivilegedFlags]
        "flags at CPL 3 are within the allowed set, the fixed ones set",
        "the guest may use ports, switch interrupts off, or set what only ring 0 may set";
    HOST_GS_KEPT = "host-gs-kept" Host [SwapgsParity]
        "at CPL 3, the inactive GS base is the host's",
        "the next entry finds another GS base than the host's";
    ROOT_OF_MODE = "root-of-mode" Host [NmiRoot, ModeConfusion]
        "at CPL 3, CR3 is the root of the mode in switch_flags",
        "the guest runs on a root that the host does not take it to be on, and its user code may reach its kernel's memory";
    // What must hold at CPL 3, by the specification.
    KIND = "kind" Host [AssumedSelectors, ModeConfusion, VectorUnlikeOthers]
        "the routine ends in the guest or in the host, as the specification says",
        "a guest runs that should have left, or the host is told of an exit that is none";
    IRETQ_RETURN = "iretq-return" Guest [TrapAndResumeFlags, AssumedSelectors, RcxOnIret, AddressWidth]
        "the return is by IRETQ where SYSRETQ would give the guest something else than its own",
        "the guest goes on with what SYSRETQ makes of it: 64-bit selectors, RCX for RIP, R11 for RFLAGS, no RF";
    SYSRETQ_RETURN = "sysretq-return" Speed [AddressWidth]
        "the return is by SYSRETQ where that gives the guest all that is its own",
        "the guest gets all that is its own, but later: an IRETQ takes many times as long";
    REGISTERS = "registers" Guest [RcxOnIret, Registers]
        "every general register is the guest's",
        "the guest finds values in its registers that are not its own";
    NO_HOST_VALUE = "no-host-value" Host [DoubleFetch, Registers, HostValueInPvcs, Provenance]
        "no value of the host's gets to the guest, nor, for one instruction, to what it reads, nor decides what that is",
        "the guest learns a value of the host's, such as an address";
    RIP = "rip" Guest [Registers]
        "RIP is the guest's",
        "the guest goes on at an address that is not its own";
    RFLAGS = "rflags" Guest [TrapAndResumeFlags, PrivilegedFlags]
        "RFLAGS is the guest's, sanitised",
        "the guest goes on with flags that are not its own";
    SELECTORS = "selectors" Guest [AssumedSelectors]
        "CS and SS are the guest's",
        "the guest goes on with selectors that are not its own, such as in 64-bit mode with 32-bit code";
    GS_BASE = "gs-base" Guest [WrgsbaseFault, StaleGsBase, SwapgsParity]
        "GS base is the guest's",
        "the guest finds another GS base than its own";
    ROOT = "root" Host [NmiRoot, ModeConfusion]
        "CR3 is as specified",
        "the guest runs on page tables that are not those of its mode";
    SPEC_CTRL = "spec-ctrl" Host [MitigationOrder]
        "SPEC_CTRL is the guest's in the guest and the host's in the host and its hooks",
        "the host runs without the protection that it has chosen, or the guest without its own";
    PKRU = "pkru" Guest [Registers]
        "PKRU is the mode's: umod's own, smod's as the host has chosen it",
        "keys that one mode of the guest has denied are open to the other";
    SWITCH_FLAGS = "switch-flags" Host [ModeConfusion]
        "the mode toggles exactly on a direct switch",
        "the host and the next switch take the guest to be in the mode in which it is not";
    TSS_EXTRA = "tss-extra" Host [Registers]
        "the per-CPU block is as specified",
        "the host finds other data of its own than it has left there";
    PVCS_GSBASE = "pvcs-gsbase" Guest [StaleGsBase]
        "PVCS.user_gsbase is the GS base the guest had",
        "the guest's kernel restores another GS base than its user code had";
    PVCS = "pvcs" Guest [Registers]
        "the PVCS is as specified",
        "the guest's kernel finds something else than what its user code left";
    SFMASK = "sfmask" Host [PrivilegedFlags, FlagsInHost]
        "SYSCALL clears DF, AC, IOPL and RF",
        "ring 0 is entered with flags that the guest has set, such as AC, which ends SMAP";
    PVCS_REGISTERED = "pvcs-registered" Host [MappedSet, ModeConfusion]
        "the PVCS is accessed only if there is one",
        "ring 0 writes to an address at which there is no PVCS";
    UNCHANGED = "unchanged" Host [MappedSet]
        "nothing else is written",
        "memory of the host's is overwritten";
    SAVED = "saved" Host [Registers]
        "what is saved of the host does not depend on the guest",
        "the host goes on with a stack or registers that the guest has chosen";
    // What must hold in the host.
    EXIT_FLAGS = "exit-flags" Host [NestedTask, FlagsInHost]
        "DF, AC, NT, TF, IF and IOPL are clear in the host",
        "code of the host runs with flags of the guest's: strings go backwards, SMAP is off, an IRETQ faults";
    EXIT_SCRATCH = "exit-scratch" Contract [Registers]
        "scratch registers hold nothing of the guest's",
        "code of the host finds values that the guest has chosen in registers that it is told are zero, and may speculate with them; nothing is unsafe by that alone";
    EXIT_CALLER = "exit-caller" Host [Registers]
        "the caller's registers are restored",
        "the host goes on with other registers, or elsewhere, than the caller had";
    EXIT_FRAME = "exit-frame" Host [SyscallAtCanonicalEnd, Registers, VectorUnlikeOthers]
        "the exit frame holds every register of the guest",
        "the host judges an exit by what the guest was not doing, and hands that back later";
    EXIT_RESULT = "exit-result" Host [Registers]
        "the call returns the frame's address",
        "the host takes other memory for the guest's registers";
    EXIT_ROOT = "exit-root" Host [WindowGap]
        "the host is back on its own root",
        "the host goes on on page tables of the guest's";
    EXIT_GS = "exit-gs" Host [SwapgsParity]
        "GS is the host's, the inactive base the guest's",
        "the host goes on with a GS base of the guest's";
    EXIT_HOST_RSP = "exit-host-rsp" Host [Registers]
        "host_rsp says whether a guest is being run",
        "the next event takes a guest to be running when none is, or the reverse";
    EXIT_SS = "exit-ss" Contract [SysretSs]
        "on AMD, SS is not null in the host",
        "the host finds a null SS after an exit, and has to load it before any SYSRET of its own; nothing is unsafe by that alone";
    // What must hold of events.
    HOST_RSP_SET = "host-rsp-set" Host [NmiRoot, WindowGap, EventFields]
        "on a guest's root, host_rsp says that a guest is being run",
        "an NMI or a machine check that comes there runs host code on a guest's root";
    HOOK = "hook" Host [NmiRoot, VectorUnlikeOthers]
        "the host's hook for this event is called, once",
        "an event of the host's is lost, taken for another one, or handled twice";
    HOOK_ROOT = "hook-root" Host [NmiRoot]
        "the hook runs on the host's root",
        "code of the host runs on page tables of the guest's";
    HOOK_GS = "hook-gs" Host [SwapgsParity]
        "the hook runs with the host's GS",
        "code of the host runs with a GS base of the guest's";
    HOOK_STACK = "hook-stack" Host [RspAtNmiStack]
        "the hook runs on a known stack, aligned by the ABI",
        "code of the host runs on a stack that the guest has chosen, or that is in use";
    HOOK_FLAGS = "hook-flags" Host [FlagsInHost]
        "the hook runs with DF, AC, NT, TF and IF clear",
        "code of the host runs with flags of the guest's";
    HOOK_FRAME = "hook-frame" Host [Registers]
        "the hook is told every register of what was interrupted",
        "the host judges an event by what was not interrupted";
    HOOK_REGISTERS = "hook-registers" Host [LiveInHook]
        "no register but RDI tells the hook of what was interrupted",
        "code of the host may speculate with values that the guest has chosen, at a time that it chooses";
    RESUMED = "resumed" Host [NmiRoot, MovSsSyscall]
        "what was interrupted goes on, with the flags it had",
        "interrupted code of ring 0 goes on elsewhere or with other flags";
    RESUMED_ROOT = "resumed-root" Host [NmiRoot, WindowGap]
        "CR3 is what was interrupted",
        "interrupted code of ring 0 goes on on another root";
    RESUMED_GS = "resumed-gs" Host [SwapgsParity]
        "both GS bases are what was interrupted",
        "interrupted code of ring 0 goes on with another GS base";
    RESUMED_REGISTERS = "resumed-registers" Host [Registers]
        "every general register is what was interrupted",
        "interrupted code of ring 0 goes on with other values";
    NMI_UNBLOCKED = "nmi-unblocked" Host [NmisStayBlocked, EarlyNmi]
        "an IRET has ended the blocking of NMIs once it is over",
        "no NMI arrives any more";
    NMI_KEPT = "nmi-blocked" Host [EarlyNmi]
        "NMIs that are blocked stay so until what they wait for is over",
        "an NMI overwrites the frame of the one that is being handled";
    NMI_OPEN = "nmi-open" Host [NmisStayBlocked, EarlyNmi]
        "NMIs are not blocked in code to which a #DB or a #MC returns by IRETQ",
        "an NMI overwrites the frame of the one that is being handled";
    STACK_ROOM = "stack-room" Host [RspAtNmiStack, EarlyNmi]
        "in other code of ring 0, RSP is a stack with room for the return of a #DB or a #MC",
        "the return of an event overwrites memory that is in use, or that a guest has chosen";
    RESUMED_STACK = "resumed-stack" Host [RspAtNmiStack, EarlyNmi]
        "the interrupted RSP is used only where it is ring 0's",
        "ring 0 writes where the guest has pointed RSP";
    NMI_STACK = "nmi-stack" Host [RspAtNmiStack, NmisStayBlocked]
        "once NMIs are no longer blocked, nothing is on their stack",
        "an NMI overwrites the frame of the one that is being handled";
    IRETQ_RING_0 = "iretq-ring-0" Host [AssumedSelectors]
        "what IRETQ does not take to a guest stays in ring 0",
        "the return of an event leads to a privilege level that was not interrupted";
    HANDED_ON = "handed-on" Host [SwapgsParity, RspAtNmiStack, VectorUnlikeOthers]
        "what the host's own code has raised reaches its handler as the CPU has delivered it",
        "code of the host handles an event of the switcher's on a stack that a guest has chosen, or returns elsewhere than it was interrupted";
    HAND_ON = "hand-on" Host [HandedOn]
        "the host's handler of an event that has ended a run finds what the CPU would have delivered, once",
        "the host handles an event with other flags, on another stack or with NMIs no longer blocked, or not at all";
    HANDED_BACK = "handed-back" Host [HandedOn, Registers]
        "whoever hands an event on goes on as it was, with interrupts off",
        "code of the host goes on with other values";
    FATAL_TRAP = "fatal-trap" Host [PastTrap]
        "UD2 comes after the call of a hook that does not return",
        "a host that cannot go on goes on";
    GATE_DPL = "gate-dpl" Host [VectorSpoofing]
        "gates of DPL 3 are those of vectors 3, 4 and 0x80",
        "a guest can raise an event by INT that hardware alone may raise";
    GATE_ONCE = "gate-once" Host [VectorUnlikeOthers]
        "each vector has one gate",
        "a vector is not handled, or as another one";
    GATE_IST = "gate-ist" Host [RspAtNmiStack, MovSsSyscall, VectorUnlikeOthers]
        "#DF, NMI, #DB and #MC have stacks of their own, others have none",
        "an event pushes its frame on a stack that the guest has chosen, or that is in use";
    // What is seen by looking at the code (hazards.md's S rows).
    ADJACENT = "rsp-adjacent" Host [RspToSysret]
        "the load of RSP comes right before SYSRETQ",
        "an event that comes between the two runs on a stack that the guest has chosen";
    ENDBR = "endbr" Host [FredAndIbt]
        "under IBT, what is jumped to indirectly is ENDBR64",
        "the branch faults in ring 0 with #CP";
}
