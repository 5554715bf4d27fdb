//! A guest's CPU as the switcher sees it: registers, mode, roots and where SYSCALL leads.
//!
//! Everything is set through methods, and `switch_flags` is *derived* when the guest is entered, so
//! that a host cannot forget PVCS_INVALID where there is no PVCS or NO_DS_CR3 where the other
//! mode's root is not prepared: the two mistakes that would let the switcher write through a null
//! pointer or load a null root.

use core::ptr::NonNull;

use switcher_gen::ReturnMethod;
use switcher_gen::arch::{CanonicalAddr, Cr3, NonCanonical, PagingMode, RFlags, Selectors};
use switcher_gen::layout::{Mode, PtRegs, Pvcs, SwitchFlags, TssExtra};

use crate::debug::GuestDebug;
use crate::mapping::{self, Mapping};
use crate::pcid::{CleanRoots, Generation, GuestPcid, Tagged};
use crate::predictors::Domain;

/// A page table root that guests may run on. It has an identity of its own, which is not its
/// address. Copies are the same root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRoot(Tagged);

impl GuestRoot {
    pub(crate) const fn tagged(self) -> Tagged {
        self.0
    }

    /// Makes a root without a PCID: each load of it flushes the TLB. PCID and NOFLUSH of `cr3` are
    /// ignored.
    ///
    /// # Safety
    /// For as long as a guest may be entered with it:
    ///
    /// * the root maps, at the same addresses and for the supervisor alone, all that the host's
    ///   root maps and the switcher or the handling of an event uses:
    ///   [`Cpu::mappings`](crate::Cpu::mappings) of each CPU that the guest is entered on, and
    ///   [`PvcsPage::mapping`];
    /// * nothing that it maps for CPL 3 is memory of the host;
    /// * where this root and another one that is loaded on the same CPU, such as the host's own,
    ///   translate an address differently, its entry is global in neither: MOV to CR3 leaves global
    ///   translations for the next root (Intel SDM vol. 3, 4.10.2.4 and 4.10.4.1). So the G bit of
    ///   the guest's own tables is not copied; entries for CPL 3 and those that map a PVCS have G
    ///   clear; and so have the entries of the *host's* root for pages that this root does not map
    ///   alike. [`Mapping::may_be_global`] says which entries may be global;
    /// * with a PCID, nothing is taken out of the root, or loses a right, while this very value is
    ///   in use: see [`after_unmapping`](Self::after_unmapping).
    ///
    /// Each call makes another root, also on a page that has been a root before: no CPU has kept
    /// translations for it. So call this once for a root that both modes share, and copy the
    /// result.
    #[must_use]
    pub unsafe fn new(cr3: Cr3) -> Self {
        let root = Cr3::NONE.with_root_of(cr3);
        Self(Tagged { root, pcid: None, generation: Generation::new() })
    }

    /// The same root under a PCID: its translations stay when another root is loaded.
    #[must_use]
    pub const fn with_pcid(self, pcid: GuestPcid) -> Self {
        Self(Tagged { pcid: Some(pcid), ..self.0 })
    }

    /// The same root after something was taken out of it: no CPU keeps an older translation for a
    /// guest that has the result. A guest that has the former value must not be entered any more.
    #[must_use]
    pub fn after_unmapping(self) -> Self {
        Self(Tagged { generation: Generation::new(), ..self.0 })
    }
}

/// A registered PVCS, by the address at which the host reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvcsPage(NonNull<Pvcs>);

// SAFETY: nothing here reads or writes through the pointer; the switcher does, and `new`'s contract
// holds for every CPU on which the guest may be entered.
unsafe impl Send for PvcsPage {}
// SAFETY: nothing here reads or writes through the pointer, as for `Send`.
unsafe impl Sync for PvcsPage {}

impl PvcsPage {
    /// Registers a page that is laid out as the switcher's variant has it. A pointer to a
    /// [`PvcsV2026`](switcher_gen::layout::PvcsV2026), which has the same size, is cast.
    ///
    /// # Safety
    /// The page must stay mapped there, writable and for the supervisor, in the host's root and in
    /// every root the guest is entered with, on every CPU, for as long as it is registered.
    #[must_use]
    pub const unsafe fn new(pvcs: NonNull<Pvcs>) -> Self {
        Self(pvcs)
    }

    /// What every root of the guest must map for its PVCS, besides the [list](crate::Cpu::mappings)
    /// of each CPU the guest is entered on.
    #[must_use]
    pub fn mapping(self) -> Mapping {
        mapping::pvcs(self.0.addr().get() as u64)
    }
}

/// Why a guest's state was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// An address that the switcher loads is not canonical.
    #[error(transparent)]
    NonCanonical(#[from] NonCanonical),
    /// A flag cannot be set by hand: the mode bits belong to the switcher, NO_DS_CR3 and
    /// PVCS_INVALID to this type.
    #[error("{0:?} cannot be set by hand: set the mode, a root or the PVCS instead")]
    DerivedFlags(SwitchFlags),
}

/// The selectors in a guest's data segment registers. The default is a null selector in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataSelectors {
    /// DS.
    pub ds: u16,
    /// ES.
    pub es: u16,
    /// FS.
    pub fs: u16,
    /// GS.
    pub gs: u16,
}

impl DataSelectors {
    pub(crate) const fn as_array(self) -> [u16; 4] {
        let Self { ds, es, fs, gs } = self;
        [ds, es, fs, gs]
    }

    pub(crate) const fn from_array([ds, es, fs, gs]: [u16; 4]) -> Self {
        Self { ds, es, fs, gs }
    }
}

/// One virtual CPU.
#[derive(Clone, Debug)]
pub struct Guest {
    paging: PagingMode,
    domain: Domain,
    /// All registers, CS, SS, RIP and RFLAGS included; forbidden flags are dropped on entry.
    pub regs: PtRegs,
    /// RSP of smod, which ERETU saves. With V2026 of the PVCS, RSP passes through a switch, and the
    /// switcher may leave any value here.
    pub smod_rsp: u64,
    /// The address **after** the SYSCALL that means ERETU. It may have any value, because it is
    /// only compared with.
    pub retu_rip: u64,
    /// PKRU of the mode that the guest is in. It is loaded and taken back in variants with `pku`. A
    /// host that moves the guest between its modes itself exchanges this as the switcher does:
    /// umod's is kept in the PVCS, smod's is [`smod_pkru`](Self::smod_pkru).
    pub pkru: u32,
    /// The PKRU that a direct switch to smod loads: 0, or what the guest has asked for.
    pub smod_pkru: u32,
    /// The selectors of DS, ES, FS and GS, which both modes share.
    /// [`Cpu::enter`](crate::Cpu::enter) refuses selectors that do not load.
    pub selectors: DataSelectors,
    /// The guest's breakpoints, which are live while it runs.
    pub debug: Option<GuestDebug>,
    /// TSC_AUX while the guest runs. With `None` it has the host's, which the guest can see.
    /// Switching it costs some hundred cycles.
    pub tsc_aux: Option<u32>,
    /// Whether a #DB comes after each instruction of the guest's that locks the bus, where the CPU
    /// can do that: [`DebugCauses::BUS_LOCK`](crate::DebugCauses::BUS_LOCK).
    pub trap_bus_locks: bool,
    mode: Mode,
    gs_base: u64,
    fs_base: u64,
    smod_entry: CanonicalAddr,
    smod_gsbase: CanonicalAddr,
    pvcs: Option<PvcsPage>,
    smod_root: Option<GuestRoot>,
    umod_root: Option<GuestRoot>,
    inhibitors: SwitchFlags,
}

impl Guest {
    /// Flags that follow from the rest of the state.
    const DERIVED: SwitchFlags =
        SwitchFlags::MODE_TOGGLE.union(SwitchFlags::NO_DS_CR3).union(SwitchFlags::PVCS_INVALID);

    /// A guest in smod with nothing prepared: no PVCS, no roots, all addresses 0. `paging` is the
    /// host's mode (CR4.LA57, not what its CPU could do); [`Cpu::enter`](crate::Cpu::enter) refuses
    /// a guest made for another one.
    ///
    /// It is in a [`Domain`] of its own: further virtual CPUs of the same machine are put into that
    /// by [`set_domain`](Self::set_domain). A clone of the guest is in the same domain.
    #[must_use]
    pub fn new(paging: PagingMode) -> Self {
        let Ok(zero) = paging.address(0) else { panic!("0 is canonical in every mode") };
        Self {
            paging,
            domain: Domain::new(),
            regs: PtRegs::ZERO,
            smod_rsp: 0,
            retu_rip: 0,
            pkru: 0,
            smod_pkru: 0,
            selectors: DataSelectors { ds: 0, es: 0, fs: 0, gs: 0 },
            debug: None,
            tsc_aux: None,
            trap_bus_locks: false,
            mode: Mode::Smod,
            gs_base: 0,
            fs_base: 0,
            smod_entry: zero,
            smod_gsbase: zero,
            pvcs: None,
            smod_root: None,
            umod_root: None,
            inhibitors: SwitchFlags::empty(),
        }
    }

    /// The paging mode that the guest's addresses are checked for.
    #[must_use]
    pub const fn paging(&self) -> PagingMode {
        self.paging
    }

    /// By which instruction [`Cpu::enter`](crate::Cpu::enter) would enter the guest as it is now,
    /// on a host with these selectors, and why not by the faster one.
    #[must_use]
    pub fn return_method(&self, selectors: Selectors) -> ReturnMethod {
        // The switcher drops the flags that no guest may have before it chooses.
        let eflags = RFlags::from_bits_retain(self.regs.eflags).sanitised().bits();
        ReturnMethod::of(&PtRegs { eflags, ..self.regs }, selectors, self.paging)
    }

    /// The mode that the guest is in.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Puts the guest into a mode, as a host does that delivers an event or emulates ERETU. The
    /// caller changes the registers and GS base.
    pub const fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The guest's active GS base.
    #[must_use]
    pub const fn gs_base(&self) -> u64 {
        self.gs_base
    }

    /// # Errors
    /// If `base` is not canonical in the host's paging mode: the MSR would not take it.
    pub fn set_gs_base(&mut self, base: u64) -> Result<(), GuestError> {
        self.gs_base = self.paging.address(base)?.get();
        Ok(())
    }

    /// The guest's FS base, which both modes share.
    #[must_use]
    pub const fn fs_base(&self) -> u64 {
        self.fs_base
    }

    /// # Errors
    /// If `base` is not canonical in the host's paging mode: WRFSBASE would fault in ring 0.
    pub fn set_fs_base(&mut self, base: u64) -> Result<(), GuestError> {
        self.fs_base = self.paging.address(base)?.get();
        Ok(())
    }

    /// Those whose branches the guest may train, and be steered by.
    #[must_use]
    pub const fn domain(&self) -> Domain {
        self.domain
    }

    /// Puts the guest into the domain of the other virtual CPUs of its machine: there is no barrier
    /// between them.
    pub const fn set_domain(&mut self, domain: Domain) {
        self.domain = domain;
    }

    /// Sets where a SYSCALL of umod lands, and the GS base it lands with.
    ///
    /// # Errors
    /// If either is not canonical in the host's paging mode: SYSRETQ or WRGSBASE would fault at
    /// CPL 0, the former on a stack of the guest's choice.
    pub fn set_smod_entry(&mut self, entry: u64, gs_base: u64) -> Result<(), GuestError> {
        let (entry, gs_base) = (self.paging.address(entry)?, self.paging.address(gs_base)?);
        self.smod_entry = entry;
        self.smod_gsbase = gs_base;
        Ok(())
    }

    /// Registers or removes the PVCS. Without one there is no direct switch.
    pub const fn set_pvcs(&mut self, pvcs: Option<PvcsPage>) {
        self.pvcs = pvcs;
    }

    /// Prepares a mode's root, or withdraws it. A guest can be entered only in a mode that has
    /// one, and switches directly only if both do.
    pub const fn set_root(&mut self, mode: Mode, root: Option<GuestRoot>) {
        match mode {
            Mode::Smod => self.smod_root = root,
            Mode::Umod => self.umod_root = root,
        }
    }

    /// The root of a mode, if it is prepared.
    #[must_use]
    pub const fn root(&self, mode: Mode) -> Option<GuestRoot> {
        match mode {
            Mode::Smod => self.smod_root,
            Mode::Umod => self.umod_root,
        }
    }

    /// Sets what inhibits direct switching besides what follows from the state: windows the host
    /// waits for, single-stepping, bits of the host's own. Replaces what was set before, and what
    /// hooks have set since: see [`inhibitors`](Self::inhibitors).
    ///
    /// # Errors
    /// If `flags` has a bit that follows from the state.
    pub fn set_inhibitors(&mut self, flags: SwitchFlags) -> Result<(), GuestError> {
        let derived = flags.intersection(Self::DERIVED);
        if !derived.is_empty() {
            return Err(GuestError::DerivedFlags(derived));
        }
        self.inhibitors = flags;
        Ok(())
    }

    /// What inhibits direct switching besides what follows from the state: what
    /// [`set_inhibitors`](Self::set_inhibitors) has set, and what [`Hooks`](crate::Hooks) have set
    /// in `switch_flags` while the guest ran. A bit that a hook has set stays until the host takes
    /// it away, as one that the host has set.
    #[must_use]
    pub const fn inhibitors(&self) -> SwitchFlags {
        self.inhibitors
    }

    /// The flags the guest will be entered with.
    #[must_use]
    pub fn switch_flags(&self) -> SwitchFlags {
        let mut flags = self.inhibitors | self.mode.flag();
        flags.set(SwitchFlags::NO_DS_CR3, self.root(self.mode.other()).is_none());
        flags.set(SwitchFlags::PVCS_INVALID, self.pvcs.is_none());
        flags
    }

    /// What the switcher must find of this guest on a CPU whose TLB has these translations. The
    /// result is `None` if the guest's mode has no root.
    pub(crate) fn tss_extra(&self, host_cr3: Cr3, clean: &mut CleanRoots) -> Option<TssExtra> {
        let mut extra = TssExtra::default();
        extra.host_cr3 = host_cr3;
        extra.enter_cr3 = clean.enter(self.root(self.mode)?.0);
        // The slots come after `enter`, which flushes what the mode's own slot then keeps.
        let mut slot = |root: Option<GuestRoot>| root.map_or(Cr3::NONE, |root| clean.slot(root.0));
        extra.switch_flags = self.switch_flags();
        extra.smod_cr3 = slot(self.smod_root);
        extra.umod_cr3 = slot(self.umod_root);
        extra.pvcs = self.pvcs.map_or(0, |PvcsPage(pvcs)| pvcs.as_ptr() as u64);
        extra.retu_rip = self.retu_rip;
        extra.smod_entry = self.smod_entry.get();
        extra.smod_gsbase = self.smod_gsbase.get();
        extra.smod_rsp = self.smod_rsp;
        extra.smod_pkru = self.smod_pkru;
        Some(extra)
    }

    /// Takes back what the guest and the switcher may have changed.
    pub(crate) fn take_back(&mut self, regs: PtRegs, extra: &TssExtra) {
        self.regs = regs;
        self.smod_rsp = extra.smod_rsp;
        let umod = extra.switch_flags.contains(SwitchFlags::UMOD);
        self.mode = if umod { Mode::Umod } else { Mode::Smod };
        // A hook of the host's may have set bits in the block, which the next entry overwrites. The
        // switcher clears no such bit.
        self.inhibitors |= extra.switch_flags.difference(Self::DERIVED);
    }

    /// Takes a GS base from the hardware, which will accept it again. It need not be an address of
    /// the paging mode: CPUs with LA57 take 57-bit bases under 4-level paging too.
    pub(crate) const fn take_gs_base(&mut self, base: u64) {
        self.gs_base = base;
    }

    /// Takes an FS base from the hardware, which will accept it again, as for GS.
    pub(crate) const fn take_fs_base(&mut self, base: u64) {
        self.fs_base = base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switcher_gen::Why;

    #[test]
    fn forbidden_flags_are_no_reason_for_an_iretq() {
        let selectors = Selectors::DEFAULT;
        let mut guest = Guest::new(PagingMode::FourLevel);
        (guest.regs.cs, guest.regs.ss) = (selectors.user_cs().into(), selectors.user_ds().into());
        (guest.regs.eflags, guest.regs.r11) = (RFlags::IOPL.bits(), RFlags::GUEST_FIXED.bits());
        assert_eq!(guest.return_method(selectors), ReturnMethod::SysRet);
        guest.regs.rcx = 1;
        assert_eq!(guest.return_method(selectors), ReturnMethod::IRet(Why::Rip));
    }

    fn root(page: u64) -> GuestRoot {
        // SAFETY: the root is never entered.
        unsafe { GuestRoot::new(Cr3::new(page).unwrap()) }
    }

    fn guest() -> Guest {
        let mut guest = Guest::new(PagingMode::FourLevel);
        guest.set_root(Mode::Smod, Some(root(0x1000)));
        guest.set_root(Mode::Umod, Some(root(0x2000)));
        // SAFETY: the pointer is never dereferenced.
        guest.set_pvcs(Some(unsafe { PvcsPage::new(NonNull::dangling()) }));
        guest
    }

    #[test]
    fn a_guest_can_be_kept_in_a_static_and_moved_between_cpus() {
        fn shared<T: Send + Sync>() {}
        shared::<Guest>();
    }

    #[test]
    fn a_new_guest_cannot_switch_directly() {
        let flags = Guest::new(PagingMode::FourLevel).switch_flags();
        assert_eq!(flags, SwitchFlags::SMOD | SwitchFlags::NO_DS_CR3 | SwitchFlags::PVCS_INVALID);
    }

    #[test]
    fn a_prepared_guest_has_its_mode_flag_alone() {
        let mut guest = guest();
        assert_eq!(guest.switch_flags(), SwitchFlags::SMOD);
        guest.set_mode(Mode::Umod);
        assert_eq!(guest.switch_flags(), SwitchFlags::UMOD);
        assert_eq!(
            guest.tss_extra(Cr3::NONE, &mut CleanRoots::unknown()).unwrap().enter_cr3.root(),
            0x2000
        );
    }

    #[test]
    fn a_missing_pvcs_or_root_cannot_be_forgotten() {
        let mut guest = guest();
        guest.set_pvcs(None);
        assert!(guest.switch_flags().contains(SwitchFlags::PVCS_INVALID));
        assert_eq!(guest.tss_extra(Cr3::NONE, &mut CleanRoots::unknown()).unwrap().pvcs, 0);
        guest.set_root(Mode::Umod, None);
        assert!(guest.switch_flags().contains(SwitchFlags::NO_DS_CR3));
        guest.set_mode(Mode::Umod);
        assert!(guest.tss_extra(Cr3::NONE, &mut CleanRoots::unknown()).is_none());
    }

    #[test]
    fn derived_flags_cannot_be_set_or_cleared_by_hand() {
        let mut guest = guest();
        for flag in [SwitchFlags::UMOD, SwitchFlags::NO_DS_CR3, SwitchFlags::PVCS_INVALID] {
            assert_eq!(guest.set_inhibitors(flag), Err(GuestError::DerivedFlags(flag)));
        }
        guest.set_inhibitors(SwitchFlags::IRQ_WIN).unwrap();
        assert_eq!(guest.switch_flags(), SwitchFlags::SMOD | SwitchFlags::IRQ_WIN);
    }

    #[test]
    fn what_a_hook_has_set_stays_until_the_host_takes_it_away() {
        let mut guest = guest();
        guest.set_inhibitors(SwitchFlags::IRQ_WIN).unwrap();
        let mut extra = guest.tss_extra(Cr3::NONE, &mut CleanRoots::unknown()).unwrap();
        let own = SwitchFlags::from_bits_retain(1 << 40);
        // One of the bits that the hook has set follows from the state; and the guest has changed
        // its mode.
        extra.switch_flags |= SwitchFlags::NMI_WIN | own | SwitchFlags::PVCS_INVALID;
        extra.switch_flags.toggle(SwitchFlags::MODE_TOGGLE);
        guest.take_back(PtRegs::ZERO, &extra);
        let wanted = SwitchFlags::IRQ_WIN | SwitchFlags::NMI_WIN | own;
        assert_eq!(guest.inhibitors(), wanted);
        assert_eq!(guest.switch_flags(), wanted | SwitchFlags::UMOD);
        guest.set_inhibitors(SwitchFlags::empty()).unwrap();
        assert_eq!(guest.switch_flags(), SwitchFlags::UMOD);
    }

    #[test]
    fn addresses_are_refused_by_the_width_of_the_paging_mode() {
        let mut four = Guest::new(PagingMode::FourLevel);
        assert!(four.set_smod_entry(1 << 47, 0).is_err());
        assert!(four.set_smod_entry(0, 1 << 60).is_err());
        assert!(four.set_gs_base(1 << 47).is_err());
        assert!(four.set_fs_base(1 << 47).is_err());
        let mut five = Guest::new(PagingMode::FiveLevel);
        assert!(five.set_smod_entry(1 << 47, 1 << 55).is_ok());
        for high in [1 << 47, 1 << 55, 0xFF10_0000_0000_0000, 0xFF10_A000_0000_1000] {
            assert!(five.set_gs_base(high).is_ok() && five.set_fs_base(high).is_ok());
            assert_eq!((five.gs_base(), five.fs_base()), (high, high));
        }
        assert!(five.set_smod_entry(1 << 56, 0).is_err());
    }
}
