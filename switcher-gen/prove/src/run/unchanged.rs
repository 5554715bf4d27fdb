//! Memory and MSRs at the end of a run: what is as specified, and what is as before.

use crate::goal::Goals;
use crate::obligation;
use crate::obligation::Obligation;
use crate::run::watch::Watch;
use crate::setting::BlockOffsets;
use crate::world::fields::{FieldAt, extra_fields, pvcs_fields};
use crate::world::name::{Object, is_scratch};
use crate::world::{World, entries, region_of};
use switcher_gen::layout::Tss;
use switcher_model::{Domain, Region, RegionName};
use switcher_spec as spec;

/// What no routine changes is as before, and SPEC_CTRL and PKRU are as specified.
pub(crate) fn untouched<D: Domain>(
    d: &D,
    world: &World<D>,
    watch: &mut Watch<'_, D>,
    goals: &mut Goals<D>,
    spec: &spec::State<D>,
) {
    let World { machine, fs_base, .. } = world;
    goals.equal(d, obligation::UNCHANGED, "FS base", *fs_base, machine.fs_base);
    goals.equal(d, obligation::PKRU, "PKRU", spec.pkru, machine.pkru);
    goals.equal(d, obligation::SPEC_CTRL, "SPEC_CTRL", spec.spec_ctrl, machine.msrs.spec_ctrl);
    let before = entries(d, watch.entry.target, &world.setting);
    let msrs = &machine.msrs;
    goals.equal(d, obligation::UNCHANGED, "STAR", before.star, msrs.star);
    goals.equal(d, obligation::UNCHANGED, "LSTAR", before.lstar, msrs.lstar);
    goals.equal(d, obligation::UNCHANGED, "CSTAR", before.cstar, msrs.cstar);
    goals.equal(d, obligation::UNCHANGED, "SFMASK", before.sfmask, msrs.sfmask);
}

/// The per-CPU block and the PVCS are as specified.
pub(crate) fn memory<D: Domain>(
    d: &D,
    world: &World<D>,
    goals: &mut Goals<D>,
    spec: &spec::State<D>,
) {
    let BlockOffsets { tss, tss_extra } = world.setting.block;
    let e = &spec.tss_extra;
    let values = [
        e.host_cr3,
        e.host_rsp,
        e.enter_cr3,
        e.switch_flags,
        e.smod_cr3,
        e.umod_cr3,
        e.pvcs,
        e.retu_rip,
        e.smod_entry,
        e.smod_gsbase,
        e.smod_rsp,
        e.host_spec_ctrl,
        e.guest_spec_ctrl,
        e.smod_pkru,
        e.pku_on,
    ];
    let fields = extra_fields(&world.setting).into_iter().zip(values);
    let fields = fields.filter_map(|(field, value)| {
        let (name, at, size) = field?;
        let obligation = match name {
            "switch_flags" => obligation::SWITCH_FLAGS,
            "host_rsp" => obligation::EXIT_HOST_RSP,
            _ => obligation::TSS_EXTRA,
        };
        let is_scratch = is_scratch(Object::TssExtra, name, world.setting.revision());
        Some(((name, tss_extra + at, size), (!is_scratch).then_some(value), obligation))
    });
    compare(d, world, goals, RegionName::TssExtra, fields);
    let p = &spec.pvcs;
    let values =
        [p.user_cs, p.user_ss, p.user_gsbase, p.eflags, p.pkru, p.rip, p.rsp, p.rcx, p.r11];
    let fields = pvcs_fields(&world.setting).into_iter().zip(values);
    let fields = fields.filter_map(|(field, value)| {
        let field = field?;
        let obligation =
            if field.0 == "user_gsbase" { obligation::PVCS_GSBASE } else { obligation::PVCS };
        Some((field, Some(value), obligation))
    });
    compare(d, world, goals, RegionName::Pvcs, fields);
    // Every routine may leave anything in sp2.
    let sp2 = tss + Tss::sp2.bytes() as i64;
    unchanged(d, world, goals, RegionName::Tss, i64::MIN..sp2);
    unchanged(d, world, goals, RegionName::Tss, sp2 + 8..i64::MAX);
}

/// A region holds the values of `fields`, anything in a field without a value, and elsewhere what
/// it held before.
fn compare<D: Domain>(
    d: &D,
    world: &World<D>,
    goals: &mut Goals<D>,
    name: RegionName,
    fields: impl Iterator<Item = (FieldAt, Option<D::Word>, Obligation)>,
) {
    let region = region_of(world, name);
    let mut others = Vec::new();
    let mut next = region.start;
    let mut fields: Vec<_> = fields.collect();
    fields.sort_by_key(|((_, at, _), ..)| *at);
    for ((field, at, size), value, obligation) in fields {
        others.push(next..at);
        next = at + size as i64;
        if let Some(value) = value {
            goals.equal(d, obligation, field, value, region.read(d, at, size));
        }
    }
    others.push(next..region.offset(region.cells.len()));
    for range in others {
        unchanged(d, world, goals, name, range);
    }
}

/// What lies at these offsets of a region is as before.
pub(crate) fn unchanged<D: Domain>(
    d: &D,
    world: &World<D>,
    goals: &mut Goals<D>,
    name: RegionName,
    range: std::ops::Range<i64>,
) {
    let now = region_of(world, name);
    let before = world.before.region(name).expect("the same regions as now");
    let end = range.end.min(now.offset(now.cells.len()));
    let mut at = range.start.max(now.start);
    while at < end {
        let size = (end - at).min(8) as usize;
        goals.equal(
            d,
            obligation::UNCHANGED,
            name.name(),
            before.read(d, at, size),
            now.read(d, at, size),
        );
        at += size as i64;
    }
}

/// What the entry has saved of its caller is what it always saves.
pub(crate) fn compare_stack<D: Domain>(
    d: &D,
    goals: &mut Goals<D>,
    now: &Region<D>,
    expected: &[D::Cell],
) {
    for (index, cells) in expected.chunks(8).enumerate() {
        let got = d.load(&now.cells[8 * index..8 * index + cells.len()]);
        goals.equal(d, obligation::SAVED, "host stack", d.load(cells), got);
    }
}
