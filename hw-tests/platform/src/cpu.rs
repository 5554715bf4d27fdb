//! The features of this CPU, and the control bits that this kernel wants.
//!
//! The kernel does not touch what belongs to the switcher's runtime: EFER.SCE, CR4.FSGSBASE and the
//! SYSCALL MSRs.
//!
//! # Indirect branch tracking
//! A switcher for a CPU that tracks indirect branches begins with ENDBR64 wherever such a branch
//! may lead. This kernel's own code, and the precompiled `core`, are compiled without any. So
//! branches are tracked only while a switcher runs, from just before its call to just after
//! ([`track`], [`untrack`]), and while the runtime detects the CPU's features ([`tracked`]).

use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::{CpuId, CpuIdReader, CpuIdReaderNative};
use switcher_gen::arch::{Msr, s_cet};
use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags, Efer, EferFlags};

use crate::exit;

/// The CPU's vendor string or brand string, as CPUID spells it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name {
    bytes: [u8; 48],
    len: usize,
}

impl Name {
    fn new(text: &str) -> Self {
        let mut bytes = [0; 48];
        // CPUID's strings are ASCII of at most 48 bytes; a longer one would lose its tail.
        let text = text.trim().as_bytes();
        let len = text.len().min(bytes.len());
        bytes[..len].copy_from_slice(&text[..len]);
        Self { bytes, len }
    }

    /// The string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The features that CPUID reports, as far as they matter to the kernel or to whoever reads a
/// report.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    /// The vendor's string: `GenuineIntel`, `AuthenticAMD` and so on.
    pub vendor: Name,
    /// The brand string, empty if there is none.
    pub brand: Name,
    /// The CPU has no-execute pages.
    pub nx: bool,
    /// The CPU has SYSCALL in long mode.
    pub syscall: bool,
    /// The CPU has RDGSBASE and its like.
    pub fsgsbase: bool,
    /// The CPU has process-context identifiers.
    pub pcid: bool,
    /// The CPU has INVPCID.
    pub invpcid: bool,
    /// The CPU can make SGDT and its like fault at CPL 3.
    pub umip: bool,
    /// The CPU has supervisor-mode execution prevention.
    pub smep: bool,
    /// The CPU has supervisor-mode access prevention.
    pub smap: bool,
    /// The CPU has five-level paging.
    pub la57: bool,
    /// The CPU has protection keys for user pages.
    pub pku: bool,
    /// The CPU has indirect branch tracking.
    pub ibt: bool,
}

impl Features {
    /// The names of the features this CPU has.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [
            ("nx", self.nx),
            ("syscall", self.syscall),
            ("fsgsbase", self.fsgsbase),
            ("pcid", self.pcid),
            ("invpcid", self.invpcid),
            ("umip", self.umip),
            ("smep", self.smep),
            ("smap", self.smap),
            ("la57", self.la57),
            ("pku", self.pku),
            ("ibt", self.ibt),
        ]
        .into_iter()
        .filter_map(|(name, has)| has.then_some(name))
    }
}

/// Asks CPUID for the features.
pub(crate) fn detect() -> Features {
    let cpuid = CpuId::with_cpuid_reader(CpuIdReaderNative);
    let basic = cpuid.get_feature_info();
    let structured = cpuid.get_extended_feature_info();
    let extended = cpuid.get_extended_processor_and_feature_identifiers();
    let structured =
        |has: fn(&raw_cpuid::ExtendedFeatures) -> bool| structured.as_ref().is_some_and(has);
    Features {
        vendor: Name::new(cpuid.get_vendor_info().as_ref().map_or("", |vendor| vendor.as_str())),
        brand: Name::new(
            cpuid.get_processor_brand_string().as_ref().map_or("", |brand| brand.as_str()),
        ),
        nx: extended.as_ref().is_some_and(|leaf| leaf.has_execute_disable()),
        syscall: extended.as_ref().is_some_and(|leaf| leaf.has_syscall_sysret()),
        fsgsbase: structured(|leaf| leaf.has_fsgsbase()),
        pcid: basic.as_ref().is_some_and(|leaf| leaf.has_pcid()),
        invpcid: structured(|leaf| leaf.has_invpcid()),
        umip: structured(|leaf| leaf.has_umip()),
        smep: structured(|leaf| leaf.has_smep()),
        smap: structured(|leaf| leaf.has_smap()),
        la57: structured(|leaf| leaf.has_la57()),
        pku: structured(|leaf| leaf.has_pku()),
        // raw-cpuid 11 has no name for this bit: CPUID.7.0:EDX[20].
        ibt: structured(|_| CpuIdReaderNative.cpuid2(7, 0).edx & 1 << 20 != 0),
    }
}

/// Sets the control bits that this kernel wants. On a CPU without NX, it ends the run.
pub(crate) fn enable(features: &Features) {
    if !features.nx {
        exit::fatal(format_args!("this CPU has no NX, or the firmware turned it off"));
    }
    // SAFETY: the CPU has NX, and the boot tables set bit 63 nowhere.
    unsafe { Efer::update(|efer| efer.insert(EferFlags::NO_EXECUTE_ENABLE)) }
    // SAFETY: the boot tables have no read-only page, so WP takes nothing away yet.
    unsafe { Cr0::update(|cr0| cr0.insert(Cr0Flags::WRITE_PROTECT)) }
    let mut wanted = Cr4Flags::empty();
    wanted.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, features.umip);
    wanted.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, features.smep);
    wanted.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, features.smap);
    wanted.set(Cr4Flags::PROTECTION_KEY_USER, features.pku);
    // By itself this bit does nothing: S_CET and U_CET say what is done.
    wanted.set(Cr4Flags::CONTROL_FLOW_ENFORCEMENT, features.ibt);
    TRACKING.store(if features.ibt { s_cet::ENDBR_EN } else { 0 }, Ordering::Relaxed);
    // SAFETY: the CPU has the features of the bits, and no page that is mapped so far is a user
    // page.
    unsafe { Cr4::update(|cr4| cr4.insert(wanted)) }
}

/// Turns PCIDs on, if the CPU has them, and says whether they are.
///
/// # Safety
/// The low 12 bits of CR3 are zero (the SDM's condition for setting CR4.PCIDE), and whoever loads
/// CR3 from now on knows that they select a PCID.
pub unsafe fn enable_pcid(features: &Features) -> bool {
    if features.pcid {
        // SAFETY: the CPU has PCIDs; the caller vouches for CR3.
        unsafe { Cr4::update(|cr4| cr4.insert(Cr4Flags::PCID)) }
    }
    features.pcid
}

/// Whether CR4.PCIDE is set.
#[must_use]
pub fn pcid_enabled() -> bool {
    Cr4::read().contains(Cr4Flags::PCID)
}

/// Reads the TSC.
#[must_use]
pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDTSC only reads.
    unsafe { core::arch::asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// Whether the TSC advances by one with each instruction, as some emulators have it: they bring it
/// up to date every few dozen instructions.
#[must_use]
pub fn counts_instructions() -> bool {
    /// Executes two instructions, so many times.
    fn around(times: u32) -> u64 {
        let before = tsc();
        // SAFETY: the loop only counts.
        unsafe {
            core::arch::asm!("2: dec {0:e}", "jnz 2b", inout(reg) times => _, options(nomem, nostack))
        };
        tsc() - before
    }
    const FEW: u32 = 10_000;
    const MORE: u32 = 60_000;
    (0..3).all(|_| (around(MORE) - around(FEW)).abs_diff(2 * u64::from(MORE - FEW)) < 100)
}

/// Executes an IRETQ to where this code is, which ends the blocking of NMIs.
///
/// # Safety
/// An NMI may come at once, to whatever handler is loaded.
pub unsafe fn end_nmi_blocking() {
    // SAFETY: the frame has this code's own address, selectors, flags and stack, at CPL 0, where
    // this kernel runs.
    unsafe {
        core::arch::asm!(
            "mov {stack}, rsp",
            "mov {other:e}, ss",
            "push {other}",
            "push {stack}",
            "pushfq",
            "mov {other:e}, cs",
            "push {other}",
            "lea {other}, [rip + 2f]",
            "push {other}",
            "iretq",
            "2:",
            stack = out(reg) _,
            other = out(reg) _,
        );
    }
}

global_asm!(
    r#"
    .text
    // These turn tracking on and off. They change RAX, RCX, RDX and flags, and need the host's
    // root.
    .global hw_platform_track
hw_platform_track:
    mov     rax, [rip + {tracking}]
    jmp     0f
    .global hw_platform_untrack
hw_platform_untrack:
    xor     eax, eax
0:  cmp     qword ptr [rip + {tracking}], 0
    je      1f                          // there may be no such MSR
    mov     ecx, {s_cet}
    xor     edx, edx
    wrmsr
1:  ret
"#,
    tracking = sym TRACKING,
    s_cet = const Msr::SCet.address(),
);

unsafe extern "C" {
    /// Turns tracking of indirect branches on, if this CPU can: a branch that does not lead to an
    /// ENDBR64 is then a #CP. It is for assembly: it keeps all registers but RAX, RCX and RDX.
    #[link_name = "hw_platform_track"]
    pub fn track();
    /// Turns tracking off again. It is for assembly, like [`track`].
    #[link_name = "hw_platform_untrack"]
    pub fn untrack();
}

/// The value of S_CET while branches are tracked; 0 on a CPU that cannot track them.
static TRACKING: AtomicU64 = AtomicU64::new(0);

/// Whether branches are tracked while switchers run.
#[must_use]
pub fn is_tracking() -> bool {
    TRACKING.load(Ordering::Relaxed) != 0
}

/// Sets whether, while branches are tracked, those with the prefix NOTRACK are exempt. Switchers
/// have no such branch; a case that resumes what it has interrupted in a switcher has one.
pub fn set_notrack(allowed: bool) {
    if is_tracking() {
        TRACKING.store(
            s_cet::ENDBR_EN | if allowed { s_cet::NO_TRACK_EN } else { 0 },
            Ordering::Relaxed,
        );
    }
}

/// Runs code of the runtime with branches tracked. The compiler's own indirect branches are let
/// through by the handler of this kernel's IDT ([`events`](crate::events)).
pub fn tracked<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: from here to `untrack`, this kernel's IDT is loaded, whose handler takes a #CP.
    unsafe { track() }
    let result = work();
    // SAFETY: no code needs its branches tracked any more.
    unsafe { untrack() }
    result
}
