//! The direct switch from smod to umod: ERETU (spec/switcher.md, "SYSCALL entry", point 2).

use super::{Host, Outcome, State, canonical, return_to_guest, sanitised};
use switcher_gen::layout::{Revision, SwitchFlags};
use switcher_model::Domain;

/// `state.guest` is smod, which has executed SYSCALL; it becomes umod.
pub(super) fn to_umod<D: Domain>(d: &D, host: &Host, state: &mut State<D>) -> Outcome<D::Word> {
    let State { guest, root, pkru, tss_extra, pvcs, .. } = state;

    if host.revision == Revision::V2024 {
        tss_extra.smod_rsp = guest.registers.rsp;
    }

    // Mode and root change together.
    let toggle = d.word(SwitchFlags::MODE_TOGGLE.bits());
    tss_extra.switch_flags = d.xor(tss_extra.switch_flags, toggle);
    *root = tss_extra.umod_cr3;

    // umod, from the PVCS; all other registers are untouched.
    guest.gs_base = canonical(d, host, pvcs.user_gsbase);
    if host.revision == Revision::V2024 {
        guest.registers.rsp = pvcs.rsp;
    }
    if host.pku {
        *pkru = d.select(d.any(tss_extra.pku_on, u64::MAX), pvcs.pkru, *pkru);
    }
    guest.rip = pvcs.rip;
    guest.registers.rcx = pvcs.rcx;
    guest.registers.r11 = pvcs.r11;
    guest.rflags = sanitised(d, pvcs.eflags);
    guest.cs = d.word(host.selectors.user_cs().into());
    guest.ss = d.word(host.selectors.user_ds().into());
    Outcome::Guest(return_to_guest(d, host, guest))
}
