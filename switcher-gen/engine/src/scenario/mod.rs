//! A run of a switcher: what it starts from, what comes of it, and what must not happen in it. It
//! is the same for every engine: [`native`](crate::native) on this CPU, and
//! [`Interpreter`](crate::Interpreter) on the model of a CPU.
//!
//! | file | purpose |
//! |---|---|
//! | `failure` | what must never happen, checked all the time |
//! | `record` | what happened |

mod failure;
mod record;

use std::ops::Range;

pub use failure::Failure;
pub(crate) use record::Record;
pub use record::{Crossing, Emulated, WayIn, WayOut};

use switcher_gen::Variant;
use switcher_gen::arch::{Cr3, HostState, Pcid, RFlags};
pub use switcher_gen::layout::Mode;
use switcher_gen::layout::{PtRegs, Pvcs, SwitchFlags, TssExtra};

/// What a run starts from. [`Setup::new`] makes one in which everything is in order.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What `switcher_enter_guest` finds below sp0.
    pub frame: PtRegs,
    /// The guest's GS base. Must be canonical, as every GS base is.
    pub gs_base: u64,
    /// The guest's PKRU, where the variant has protection keys.
    pub pkru: u32,
    /// What the host has prepared.
    pub extra: TssExtra,
    /// The page shared with the guest.
    pub pvcs: Pvcs,
    /// Count the instructions of the switcher; on the real CPU, by executing one at a time.
    pub count: bool,
    /// How many signals a native run may take before it is given up: 8 for a round trip at full
    /// speed, 10 with IBT. Interpreters have no signals, and a limit of their own.
    pub traps: u64,
}

/// What came of a run that got back to the host with everything a host needs in order.
#[derive(Clone, Debug)]
pub struct ScenarioEnd {
    /// The exit frame: the guest's registers and why it exited.
    pub frame: PtRegs,
    /// CR2, if it was a page fault that ended the run.
    pub cr2: Option<u64>,
    /// The causes in DR6, if it was a #DB that ended the run and the engine can tell.
    pub dr6: Option<u64>,
    /// The guest's GS base.
    pub gs_base: u64,
    /// The guest's PKRU.
    pub pkru: u32,
    /// What the switcher has left.
    pub extra: TssExtra,
    /// The page shared with the guest.
    pub pvcs: Pvcs,
    /// The ways taken through the switcher, the first 256 of them.
    pub crossings: Vec<Crossing>,
    /// How many there were.
    pub crossings_total: u64,
    /// The values loaded into CR3, the first 256 of them.
    pub cr3_loads: Vec<u64>,
    /// How often an instruction was executed that means something else at CPL 3, or nothing.
    pub emulated: Emulated,
    /// The signals a native run took.
    pub traps: u64,
}

/// Where an engine has put what a run refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The first byte of the image.
    pub switcher: u64,
    /// The per-CPU block.
    pub per_cpu: u64,
    /// The end of the stack that frames lie on.
    pub sp0: u64,
    /// The page shared with the guest.
    pub pvcs: u64,
    /// The page of smod's code.
    pub smod: u64,
    /// The page of umod's code.
    pub umod: u64,
}

impl Places {
    /// How many bytes of code a mode has.
    pub const CODE_LEN: usize = 4096;

    /// Where `mode` has its code.
    #[must_use]
    pub const fn code(&self, mode: Mode) -> Range<u64> {
        let start = match mode {
            Mode::Smod => self.smod,
            Mode::Umod => self.umod,
        };
        start..start + Self::CODE_LEN as u64
    }
}

impl Setup {
    /// How many signals a native run may take, unless somebody wants it otherwise.
    const TRAPS: u64 = 100_000;
    const HOST_ROOT: u64 = 0x1000;
    const SMOD_ROOT: u64 = 0x2000;
    const UMOD_ROOT: u64 = 0x3000;

    /// Everything in order: no inhibitor, smod's entry and umod's RIP at the start of their code,
    /// ERETU being a SYSCALL at smod's entry, and a frame that enters `mode` by SYSRETQ.
    #[must_use]
    pub fn new(variant: &Variant, places: &Places, mode: Mode) -> Self {
        let config = variant.config();
        // PCIDs as a host would have them: its own flushed when loaded, the guest's never.
        let state = HostState { paging: config.paging, pcid: config.pcid, ..HostState::PLAIN };
        let root = |address, pcid| {
            // Page-aligned and low, and a small PCID: neither is ever refused.
            let root = Cr3::new(address).unwrap_or(Cr3::NONE);
            match (state.pcid_enabled(), Pcid::new(pcid)) {
                (Some(enabled), Ok(pcid)) => root.with_pcid(pcid, enabled).without_flush(enabled),
                _ => root,
            }
        };
        let (smod, umod) = (places.code(Mode::Smod), places.code(Mode::Umod));
        let mut extra = TssExtra::default();
        extra.host_cr3 = root(Self::HOST_ROOT, 1);
        extra.smod_cr3 = root(Self::SMOD_ROOT, 2);
        extra.umod_cr3 = root(Self::UMOD_ROOT, 3);
        extra.enter_cr3 = match mode {
            Mode::Smod => extra.smod_cr3,
            Mode::Umod => extra.umod_cr3,
        };
        extra.switch_flags = mode.flag();
        extra.pvcs = places.pvcs;
        extra.retu_rip = smod.start + SYSCALL_LEN;
        extra.smod_entry = smod.start;

        let selectors = variant.selectors();
        let flags = RFlags::GUEST_FIXED.bits();
        let rip = places.code(mode).start;
        let (cs, ss) = (selectors.user_cs().into(), selectors.user_ds().into());
        let frame =
            PtRegs { rip, rcx: rip, cs, ss, eflags: flags, r11: flags, ..PtRegs::default() };
        let mut pvcs = Pvcs::default();
        pvcs.user_cs = selectors.user_cs();
        pvcs.user_ss = selectors.user_ds();
        pvcs.eflags = RFlags::GUEST_FIXED.imm32().cast_unsigned();
        pvcs.r11 = flags;
        pvcs.rip = umod.start;
        pvcs.rcx = umod.start;
        Self { frame, gs_base: 0, pkru: 0, extra, pvcs, count: false, traps: Self::TRAPS }
    }
}

/// Bytes of a SYSCALL.
pub(crate) const SYSCALL_LEN: u64 = 2;

/// What stands in an exit frame for a vector that has no error code.
pub(crate) const NO_ERROR_CODE: u32 = !0;

/// The root that a guest must be on: of its mode, or the one it is entered on.
pub(crate) fn right_root(way_in: WayIn, extra: &TssExtra) -> Option<Cr3> {
    match (way_in, extra.switch_flags & SwitchFlags::MODE_TOGGLE) {
        (WayIn::Enter, _) => Some(extra.enter_cr3),
        (_, SwitchFlags::SMOD) => Some(extra.smod_cr3),
        (_, SwitchFlags::UMOD) => Some(extra.umod_cr3),
        _ => None,
    }
}

/// Whether `value` may be loaded into CR3: one of the four slots, with a root, and NOFLUSH only
/// where there are PCIDs.
pub(crate) fn may_load(value: u64, extra: &TssExtra, pcid: bool) -> bool {
    let slots = [extra.host_cr3, extra.enter_cr3, extra.smod_cr3, extra.umod_cr3];
    let noflush = value >> 63 != 0;
    slots.iter().any(|slot| slot.bits() == value) && value != Cr3::NONE.bits() && (pcid || !noflush)
}

/// Whether a guest may get these flags from SYSRETQ.
pub(crate) fn may_sysret(r11: u64) -> bool {
    let flags = RFlags::from_bits_retain(r11);
    !flags.intersects(RFlags::sysret_obstacles()) && flags.contains(RFlags::GUEST_FIXED)
}

/// Whether IRETQ in ring 0 may load these from a guest's frame.
pub(crate) fn may_iret(cs: u64, eflags: u64) -> bool {
    RFlags::from_bits_retain(eflags).sanitised().bits() == eflags && cs & 3 == 3
}
