//! `switch_flags` is the hooks', too: a hook of NMI or #MC may set a bit of it between any two
//! instructions, to be looked at before the guest is entered directly (spec/hazards.md, row 37).
//!
//! So each look but the first may find more bits set than the one before, of those that are not the
//! mode's: [`Memory::look`](switcher_model::Memory::look). What was found earlier says nothing of
//! what is there later, but for bits that were set: nobody clears them. The specification has to
//! decide on a value that the code may have seen: on the first, with the fewest bits, if the guest
//! was entered, and on the last if it was not. Code that decides on neither is refuted, since
//! nothing is assumed of either. What is there in the end is what the specification leaves, with
//! all that hooks have set.

use crate::layouts::ExtraField;
use crate::world::{World, region_of};
use switcher_gen::layout::SwitchFlags;
use switcher_model::{Domain, Hooked, RegionName};
use switcher_spec as spec;

impl<D: Domain> World<D> {
    /// From here on, hooks set bits.
    pub(crate) fn share_with_hooks(&mut self, d: &D) {
        let at = self.setting.own_extra_at(ExtraField::SwitchFlags);
        let extra = self.machine.memory.region_mut(RegionName::TssExtra);
        let extra = extra.expect("every world has all regions");
        let now = extra.read(d, at, 8);
        let bits = !SwitchFlags::MODE_TOGGLE.bits();
        extra.hooked = Some(Hooked { at, bits, now, is_seen: false });
    }

    /// The bits that hooks have set are not changes of the code's.
    pub(crate) fn add_what_hooks_set(&mut self, d: &D) {
        let Some(Hooked { at, now, .. }) = region_of(self, RegionName::TssExtra).hooked else {
            return;
        };
        if let Some(before) = self.before.region_mut(RegionName::TssExtra) {
            before.write(d, at, 8, now);
        }
    }

    /// The flags as the specification is to decide on them, for what has ended with the guest or
    /// not.
    pub(crate) fn flags_to_decide_on(&self, to_guest: bool) -> D::Word {
        let hooked = region_of(self, RegionName::TssExtra).hooked;
        let last = hooked.map(|hooked| hooked.now).filter(|_| !to_guest);
        last.unwrap_or(self.spec.tss_extra.switch_flags)
    }

    /// Adds what hooks have set to what the specification has made of the flags that it has decided
    /// on.
    pub(crate) fn with_what_hooks_set(
        &self,
        d: &D,
        decided_on: D::Word,
        spec: &mut spec::State<D>,
    ) {
        if let Some(Hooked { now, .. }) = region_of(self, RegionName::TssExtra).hooked {
            let toggled = d.xor(spec.tss_extra.switch_flags, decided_on);
            spec.tss_extra.switch_flags = d.xor(now, toggled);
        }
    }
}
