//! What the theorems about events in ring 0 assume of the state that they interrupt, in one place:
//! they assume it, and every theorem shows it of each state that it passes through. So what holds
//! at the end of a routine alone, and not in between, is refused (spec/hazards.md, row 36).
//!
//! The rest follows from how a world is made: registers and CR3 are anything, fields of the block
//! that nobody may store to are as they were, and RIP is an address of the code's. Where RSP has to
//! be a stack is in `run/blocking.rs`.

use crate::layouts::ExtraField;
use crate::obligation;
use crate::obligation::Obligation;
use crate::setting::Setting;
use switcher_gen::arch::RFlags;
use switcher_gen::layout::SwitchFlags;
use switcher_model::{CpuModel, Domain, RegionName, State as Machine};

/// One thing that holds at every boundary.
pub(crate) struct Condition<D: Domain> {
    /// The obligation that it is shown as.
    pub(crate) obligation: Obligation,
    /// What of the state it is about.
    pub(crate) about: &'static str,
    /// The condition as an assumption, in words.
    pub(crate) text: &'static str,
    /// Whether it holds.
    pub(crate) holds: D::Bit,
}

/// What holds between any two instructions of ring 0, one of a routine's or not.
pub(crate) fn conditions<D: Domain>(
    d: &D,
    model: &CpuModel,
    setting: &Setting,
    state: &Machine<D>,
    in_routines: D::Bit,
) -> [Condition<D>; 5] {
    let extra = state.memory.region(RegionName::TssExtra).expect("every world has all regions");
    let at = setting.own_extra_at(ExtraField::SwitchFlags);
    let clear = |flags: RFlags| d.not(d.any(state.rflags(d), flags.bits()));
    [
        Condition {
            obligation: obligation::ONE_MODE,
            about: "switch_flags",
            text: ONE_MODE,
            holds: has_one_mode(d, extra.read(d, at, 8)),
        },
        Condition {
            obligation: obligation::GS_CANONICAL,
            about: "GS base",
            text: "what ring 0 has as its GS base is canonical",
            holds: model.is_canonical(d, state.gs_base),
        },
        Condition {
            obligation: obligation::RING_0_FLAGS,
            about: "VIF, VIP",
            text: "VIF and VIP are clear in ring 0",
            // POPFQ leaves these flags as a hook has them.
            holds: clear(RFlags::VIF | RFlags::VIP),
        },
        Condition {
            obligation: obligation::RING_0_FLAGS,
            about: "IF, TF",
            text: "IF and TF are clear in other code of ring 0",
            holds: d.either(in_routines, clear(RFlags::IF | RFlags::TF)),
        },
        Condition {
            obligation: obligation::NMI_OPEN,
            about: "NMIs",
            text: "NMIs are not blocked in a routine",
            holds: d.either(d.not(in_routines), d.not(state.nmi_blocked)),
        },
    ]
}

/// The condition as an assumption, in words.
pub(crate) const ONE_MODE: &str = "exactly one of SMOD and UMOD is set in switch_flags";

/// Whether it says which mode the guest is in.
pub(crate) fn has_one_mode<D: Domain>(d: &D, flags: D::Word) -> D::Bit {
    let mode = d.mask(flags, SwitchFlags::MODE_TOGGLE.bits());
    d.either(d.is(mode, SwitchFlags::SMOD.bits()), d.is(mode, SwitchFlags::UMOD.bits()))
}
