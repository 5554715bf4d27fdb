//! Where values lie: the fields of the per-CPU block, of the PVCS and of a frame, by name, offset
//! and size.

use crate::layouts::{ExtraField, KnownField, Places};
use crate::setting::Setting;
use switcher_gen::layout::{IretFrame, PtRegs};
use switcher_model::{Domain, Gpr, Region};
use switcher_spec as spec;
use switcher_spec::Registers;

pub(crate) const FRAME: i64 = size_of::<PtRegs>() as i64;

/// A field's place: name, offset, size.
pub(crate) type FieldAt = (&'static str, i64, usize);

/// The fields of the switcher's data, as far as there are such: of each its name, its offset from
/// the struct's start and its size.
pub(crate) fn extra_fields(setting: &Setting) -> [Option<FieldAt>; 15] {
    known(&setting.extra)
}

/// The fields of the PVCS; V2026 has no RSP.
pub(crate) fn pvcs_fields(setting: &Setting) -> [Option<FieldAt>; 9] {
    known(&setting.pvcs)
}

fn known<F: KnownField, const N: usize>(places: &Places<F>) -> [Option<FieldAt>; N] {
    std::array::from_fn(|number| {
        let field = F::ALL[number];
        Some((field.name(), places.at(field)?, field.size()))
    })
}

/// Where a general register is in a [`PtRegs`].
pub(crate) fn in_frame(register: Gpr) -> i64 {
    let offset = match register {
        Gpr::Rax => PtRegs::rax.bytes(),
        Gpr::Rcx => PtRegs::rcx.bytes(),
        Gpr::Rdx => PtRegs::rdx.bytes(),
        Gpr::Rbx => PtRegs::rbx.bytes(),
        Gpr::Rsp => PtRegs::rsp.bytes(),
        Gpr::Rbp => PtRegs::rbp.bytes(),
        Gpr::Rsi => PtRegs::rsi.bytes(),
        Gpr::Rdi => PtRegs::rdi.bytes(),
        Gpr::R8 => PtRegs::r8.bytes(),
        Gpr::R9 => PtRegs::r9.bytes(),
        Gpr::R10 => PtRegs::r10.bytes(),
        Gpr::R11 => PtRegs::r11.bytes(),
        Gpr::R12 => PtRegs::r12.bytes(),
        Gpr::R13 => PtRegs::r13.bytes(),
        Gpr::R14 => PtRegs::r14.bytes(),
        Gpr::R15 => PtRegs::r15.bytes(),
    };
    offset as i64
}

/// The fields of a [`PtRegs`] besides the general registers.
pub(crate) const FRAME_REST: [FieldAt; 5] = [
    ("orig_ax", PtRegs::orig_ax.bytes() as i64, 8),
    ("rip", PtRegs::rip.bytes() as i64, 8),
    ("cs", PtRegs::cs.bytes() as i64, 8),
    ("rflags", PtRegs::eflags.bytes() as i64, 8),
    ("ss", PtRegs::ss.bytes() as i64, 8),
];

pub(crate) fn registers<W: Copy>(gpr: &[W; 16]) -> Registers<W> {
    let get = |register: Gpr| gpr[register as usize];
    Registers {
        rax: get(Gpr::Rax),
        rcx: get(Gpr::Rcx),
        rdx: get(Gpr::Rdx),
        rbx: get(Gpr::Rbx),
        rsp: get(Gpr::Rsp),
        rbp: get(Gpr::Rbp),
        rsi: get(Gpr::Rsi),
        rdi: get(Gpr::Rdi),
        r8: get(Gpr::R8),
        r9: get(Gpr::R9),
        r10: get(Gpr::R10),
        r11: get(Gpr::R11),
        r12: get(Gpr::R12),
        r13: get(Gpr::R13),
        r14: get(Gpr::R14),
        r15: get(Gpr::R15),
    }
}

/// General registers by number.
pub(crate) fn by_number<W: Copy>(r: &Registers<W>) -> [W; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
        r.r13, r.r14, r.r15,
    ]
}

/// The per-CPU block's fields, as the specification names them.
pub(crate) fn read_extra<D: Domain>(
    d: &D,
    extra: &Region<D>,
    setting: &Setting,
) -> spec::TssExtra<D::Word> {
    let [
        host_cr3,
        host_rsp,
        enter_cr3,
        switch_flags,
        smod_cr3,
        umod_cr3,
        pvcs,
        retu_rip,
        smod_entry,
        smod_gsbase,
        smod_rsp,
        host_spec_ctrl,
        guest_spec_ctrl,
        smod_pkru,
        pku_on,
    ] = extra_fields(setting).map(|field| match field {
        Some((_, at, size)) => extra.read(d, setting.block.tss_extra + at, size),
        None => d.word(0),
    });
    let has_pku_on = setting.extra_at(ExtraField::PkuOn).is_some();
    spec::TssExtra {
        host_cr3,
        host_rsp,
        enter_cr3,
        switch_flags,
        smod_cr3,
        umod_cr3,
        pvcs,
        retu_rip,
        smod_entry,
        smod_gsbase,
        smod_rsp,
        host_spec_ctrl,
        guest_spec_ctrl,
        smod_pkru,
        // Without it, every guest has protection keys.
        pku_on: if has_pku_on { pku_on } else { d.word(1) },
    }
}

/// The PVCS's fields, as the specification names them.
pub(crate) fn read_pvcs<D: Domain>(
    d: &D,
    pvcs: &Region<D>,
    setting: &Setting,
) -> spec::Pvcs<D::Word> {
    let [user_cs, user_ss, user_gsbase, eflags, pkru, rip, rsp, rcx, r11] = pvcs_fields(setting)
        .map(|field| match field {
            Some((_, at, size)) => pvcs.read(d, at, size),
            None => d.word(0),
        });
    spec::Pvcs { user_cs, user_ss, user_gsbase, eflags, pkru, rip, rsp, rcx, r11 }
}

// An IRET frame is the end of a PtRegs: a routine that returns to a guest may build it there.
const _: () = assert!(size_of::<IretFrame>() < size_of::<PtRegs>());
