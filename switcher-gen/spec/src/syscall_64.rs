//! `entry_SYSCALL_64_switcher` (spec/switcher.md, "SYSCALL entry"): the decision.

use super::{Caller, ExitFrame, Host, Outcome, State, return_from_guest, to_smod, to_umod};
use switcher_gen::arch::RFlags;
use switcher_gen::layout::{ExitReason, SwitchFlags};
use switcher_model::Domain;

/// The guest, at CPL 3 in 64-bit code, has executed SYSCALL; `state.guest.rip` is the address
/// after it. `frame_at` is where an exit frame lies.
pub fn syscall_64<D: Domain>(
    d: &D,
    host: &Host,
    caller: &Caller<D::Word>,
    frame_at: D::Word,
    state: &mut State<D>,
) -> Outcome<D::Word> {
    // The instruction itself: RCX = return RIP, R11 = RFLAGS.
    let guest = &mut state.guest;
    guest.rflags = d.mask(guest.rflags, !RFlags::RF.bits());
    guest.registers.rcx = guest.rip;
    guest.registers.r11 = guest.rflags;

    // 1. umod, no inhibitor.
    let flags = state.tss_extra.switch_flags;
    if d.decide(d.not(d.any(flags, SwitchFlags::NO_DS_TO_SMOD.bits()))) {
        return to_smod::to_smod(d, host, state);
    }

    // 2. smod, no inhibitor, RCX == retu_rip, and the PVCS asks for the usual selectors.
    let uninhibited = d.not(d.any(flags, SwitchFlags::NO_DS_TO_UMOD.bits()));
    let eretu = d.eq(state.guest.registers.rcx, state.tss_extra.retu_rip);
    if d.decide(d.both(uninhibited, eretu)) {
        let cs = d.is(state.pvcs.user_cs, host.selectors.user_cs().into());
        let ss = d.is(state.pvcs.user_ss, host.selectors.user_ds().into());
        if d.decide(d.both(cs, ss)) {
            return to_umod::to_umod(d, host, state);
        }
    }

    // 3. Otherwise: exit, with a full frame.
    let mut guest = state.guest;
    guest.cs = d.word(host.selectors.user_cs().into());
    guest.ss = d.word(host.selectors.user_ds().into());
    let orig_ax = d.word(u64::from(ExitReason::Syscall as u32) << 32);
    let frame = ExitFrame { guest, orig_ax };
    return_from_guest(d, host, caller, Some(frame), frame_at, state)
}
