//! What entering a guest leaves on the host's stack, which every exit finds there.

use crate::bad_code::BadCode;
use crate::entry::EntryPoints;
use crate::goal::Goals;
use crate::layouts::ExtraField;
use crate::run::end::End;
use crate::run::execute;
use crate::run::watch::Watch;
use crate::target::overlap;
use crate::theorem::Start;
use crate::theorem::Theorem;
use crate::world::name::{Name, Object, Part, Source};
use crate::world::{Saved, World, region_of};
use switcher_gen::arch::RFlags;
use switcher_model::{Domain, RegionName};

/// What the `switcher_enter_guest` of a target leaves on the host's stack, found by entering a
/// guest all of whose registers are known. That it is always the same is a part of the theorem
/// about it. `None` if that does not lead to a guest.
///
/// # Errors
/// If no theorem can be about the code.
pub fn saved<D: Domain>(
    d: &D,
    points: &EntryPoints<'_>,
    source: &mut impl Source<D>,
) -> Result<Option<Saved<D>>, BadCode> {
    let entry = points.entry(Theorem::EnterGuest);
    let target = entry.target;
    overlap::check(target)?;
    let mut known = KnownFrame { inner: source, selectors: target.model().selectors };
    let mut world = World::new(d, &mut known, target, Start::Call, None);
    let mut watch = Watch::new(d, entry, &world);
    // The theorem itself shows what must hold.
    let mut goals = Goals::new();
    let End::Guest { .. } = execute(d, &mut world, &mut watch, &mut goals)? else {
        return Ok(None);
    };
    let extra = region_of(&world, RegionName::TssExtra);
    let at = world.setting.own_extra_at(ExtraField::HostRsp);
    let host_rsp = extra.read(d, at, 8);
    Ok(Some(Saved { stack: region_of(&world, RegionName::HostStack).cells.to_vec(), host_rsp }))
}

/// Whether the unknown of this name can have another value at the exit than it had at the entry.
fn is_changed(Name { of, part, .. }: Name) -> bool {
    matches!(
        (of, part),
        (Object::FsBase | Object::Pkru | Object::Pvcs, _)
            | (Object::Guest, Part::Field("gs_base"))
            | (_, Part::Scratch(_))
            // ERETU writes down the stack of the guest's kernel.
            | (Object::TssExtra, Part::Field("switch_flags" | "smod_rsp"))
            | (Object::Sp0Stack | Object::IstStack, _)
    )
}

/// A source whose frame is one of known numbers, so that there is one path.
struct KnownFrame<'a, S> {
    inner: &'a mut S,
    selectors: switcher_gen::arch::Selectors,
}

impl<D: Domain, S: Source<D>> Source<D> for KnownFrame<'_, S> {
    fn value(&mut self, d: &D, name: Name, bits: u32) -> D::Word {
        match (name.of, name.part) {
            (Object::Frame, Part::Field("cs")) => d.word(self.selectors.user_cs().into()),
            (Object::Frame, Part::Field("ss")) => d.word(self.selectors.user_ds().into()),
            (Object::Frame, Part::Field("rflags")) => d.word(RFlags::GUEST_FIXED.bits()),
            (Object::Frame | Object::OrigAx, _) => d.word(0),
            // The guest, or another routine, may change these before an exit: what was saved of
            // them is not what they are then.
            _ if is_changed(name) => self.inner.value(d, Name { at_entry: true, ..name }, bits),
            _ => self.inner.value(d, name, bits),
        }
    }
}
