//! The model-specific registers a switcher's host programs (AMD APM vol. 2, 6.1; Intel SDM vol. 4).

/// An MSR by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Msr {
    /// Whether CPL 3 may access MSRs (USER_MSR).
    UserMsrCtl = 0x1C,
    /// Which kinds of speculation are restricted: IBRS and others.
    SpecCtrl = 0x48,
    /// Commands to the predictors; IBPB is bit 0. Write only.
    PredCmd = 0x49,
    /// Which faults a CPU does not have.
    ArchCapabilities = 0x10A,
    /// Whether transactions abort at once.
    TsxCtrl = 0x122,
    /// Which of the microcode's mitigations are switched off.
    McuOptCtrl = 0x123,
    /// The code segment that SYSENTER loads; 0 makes SYSENTER fault.
    SysenterCs = 0x174,
    /// What a CPU has switched off; bit 12 says that there is no PEBS.
    MiscEnable = 0x1A0,
    /// What debugging records: last branches, single steps of branches.
    Debugctl = 0x1D9,
    /// Which counters sample to memory.
    PebsEnable = 0x3F1,
    /// User CET: shadow stacks and indirect branch tracking of CPL 3.
    UCet = 0x6A0,
    /// Supervisor CET: bit 2 is ENDBR_EN, indirect branch tracking.
    SCet = 0x6A2,
    /// Extended features: SCE, AIBRSE, LME, LMA, NXE.
    Efer = 0xC000_0080,
    /// Selectors of SYSCALL and SYSRET.
    Star = 0xC000_0081,
    /// Where SYSCALL from 64-bit mode lands.
    Lstar = 0xC000_0082,
    /// Where SYSCALL from compatibility mode lands (AMD).
    Cstar = 0xC000_0083,
    /// RFLAGS bits that SYSCALL clears.
    Sfmask = 0xC000_0084,
    /// FS base.
    FsBase = 0xC000_0100,
    /// The active GS base.
    GsBase = 0xC000_0101,
    /// The inactive GS base, which SWAPGS exchanges with the active one.
    KernelGsBase = 0xC000_0102,
    /// What RDTSCP and RDPID show.
    TscAux = 0xC000_0103,
    /// How a guest of AMD's is protected from its host: SEV, SEV-ES, SEV-SNP.
    SevStatus = 0xC001_0131,
}

impl Msr {
    /// The register's number, which RDMSR and WRMSR take in ECX.
    #[must_use]
    pub const fn address(self) -> u32 {
        self as u32
    }
}

/// The value of MSR STAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Star(u64);

impl Star {
    pub(super) const fn new(kernel_cs: u16, user32_cs: u16) -> Self {
        Self((user32_cs as u64) << 48 | (kernel_cs as u64) << 32)
    }

    /// The register's value; the low half, SYSCALL's 32-bit target, is zero.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}
