//! What no switcher may do, and how a run says that one did.

use switcher_gen::asm::Window;

/// What a switcher did that would be fatal to a host, or to a guest that kept to the rules.
/// Offsets are bytes from the start of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// An exception in ring 0, not at the IRETQ to a guest.
    #[error("vector {vector} in ring 0 at switcher+{offset:#x}, address {address:#x}")]
    Fault {
        /// The vector.
        vector: u32,
        /// The offset in the image.
        offset: u64,
        /// CR2, for a page fault.
        address: u64,
    },
    /// On Intel, #GP in ring 0 on the guest's RSP: a takeover of the host. Wrong on AMD too, where
    /// the guest would fault, because CPUID's vendor is not always the silicon's.
    #[error("SYSRETQ with the non-canonical RCX {rcx:#x}")]
    SysretNonCanonical {
        /// RCX.
        rcx: u64,
    },
    /// R11 has a flag that no guest may have, or one that SYSRETQ cannot restore, or lacks IF.
    #[error("SYSRETQ with R11 {r11:#x}")]
    SysretFlags {
        /// R11.
        r11: u64,
    },
    /// On AMD, SYSRETQ or return to the host, whose next entry ends with SYSRETQ, with the null SS
    /// that an event leaves: a guest would get its attributes.
    #[error("SS is null")]
    NullSs,
    /// IRETQ would give a guest flags it may not have, or ring 0.
    #[error("IRETQ from a frame with CS {cs:#x}, RFLAGS {eflags:#x}")]
    IretFrame {
        /// CS in the frame.
        cs: u64,
        /// RFLAGS in the frame.
        eflags: u64,
    },
    /// A value that is in none of the four slots, or marks a root that is not prepared, or has
    /// NOFLUSH without PCIDs, loaded into CR3.
    #[error("{value:#x} loaded into CR3")]
    Cr3 {
        /// The value.
        value: u64,
    },
    /// A guest would run in one mode on the other's root.
    #[error("guest entered with switch_flags {flags:#x} on root {cr3:#x}")]
    Root {
        /// What the per-CPU block says.
        flags: u64,
        /// What was loaded.
        cr3: u64,
    },
    /// The inactive GS base is not the per-CPU block's at CPL 3.
    #[error("guest entered while the inactive GS base is {inactive:#x}")]
    Swapgs {
        /// What it is.
        inactive: u64,
    },
    /// A window does not say what is the case, so a host's NMI handler would go wrong.
    #[error("window {} is wrong about switcher+{offset:#x}", window.name())]
    Window {
        /// The window.
        window: Window,
        /// The address it is wrong about.
        offset: u64,
    },
    /// The call of `switcher_enter_guest` returned with a register that is not as the ABI wants.
    #[error("back in the host, {register} is {value:#x} and not {expected:#x}")]
    HostRegister {
        /// The name of the register.
        register: &'static str,
        /// What it is.
        value: u64,
        /// What it should be.
        expected: u64,
    },
    /// Control got to where none of the three places is.
    #[error("control got to {rip:#x}")]
    Astray {
        /// The value of RIP.
        rip: u64,
    },
    /// More traps than the setup allows.
    #[error("still running after {traps} traps")]
    Endless {
        /// How many there were.
        traps: u64,
    },
    /// Not the switcher's fault: the guest called Linux by another instruction than SYSCALL, and
    /// the kernel's interception of it does not keep all registers.
    #[error("the guest executed INT 0x80 or another system call before {rip:#x}")]
    OtherSystemCall {
        /// The address after it.
        rip: u64,
    },
    /// Not the switcher's fault: an address on which the two paging modes differ, in a variant for
    /// the mode that this CPU is not in.
    #[error("{address:#x} is canonical in only one paging mode, and this CPU is in the other")]
    NotOnThisCpu {
        /// The address.
        address: u64,
    },
}
