//! The direct switch from umod to smod (spec/switcher.md, "SYSCALL entry", point 1).

use super::{Host, Outcome, Return, State};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::{Revision, SwitchFlags};
use switcher_model::Domain;

/// `state.guest` is umod, which has executed SYSCALL; it becomes smod.
pub(super) fn to_smod<D: Domain>(d: &D, host: &Host, state: &mut State<D>) -> Outcome<D::Word> {
    let State { guest, root, pkru, tss_extra, pvcs, .. } = state;

    // The PVCS keeps umod.
    pvcs.user_cs = d.word(host.selectors.user_cs().into());
    pvcs.user_ss = d.word(host.selectors.user_ds().into());
    pvcs.eflags = d.truncate(guest.rflags, 4);
    pvcs.rip = guest.rip;
    pvcs.rcx = guest.rip;
    pvcs.r11 = guest.registers.r11;
    pvcs.user_gsbase = guest.gs_base;
    if host.revision == Revision::V2024 {
        pvcs.rsp = guest.registers.rsp;
    }
    if host.pku {
        let has_keys = d.any(tss_extra.pku_on, u64::MAX);
        pvcs.pkru = d.select(has_keys, *pkru, pvcs.pkru);
        *pkru = d.select(has_keys, tss_extra.smod_pkru, *pkru);
    }

    // Mode and root change together.
    let toggle = d.word(SwitchFlags::MODE_TOGGLE.bits());
    tss_extra.switch_flags = d.xor(tss_extra.switch_flags, toggle);
    *root = tss_extra.smod_cr3;

    // smod; all other registers are untouched.
    guest.gs_base = tss_extra.smod_gsbase;
    if host.revision == Revision::V2024 {
        guest.registers.rsp = tss_extra.smod_rsp;
    }
    guest.rip = tss_extra.smod_entry;
    guest.registers.rcx = tss_extra.smod_entry;
    guest.rflags = d.word(RFlags::SMOD_ENTRY.bits());
    guest.registers.r11 = d.word(RFlags::SMOD_ENTRY.bits());
    guest.cs = d.word(host.selectors.user_cs().into());
    guest.ss = d.word(host.selectors.user_ds().into());
    Outcome::Guest(Return::Sysretq)
}
