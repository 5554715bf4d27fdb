//! The return to a guest (spec/switcher.md, "Return to the guest"): SYSRETQ or IRETQ.

use super::{Guest, Host, Return, canonical};
use switcher_gen::arch::RFlags;
use switcher_model::Domain;

/// How a guest with these registers is returned to. Either way it ends up with all of them.
pub fn return_to_guest<D: Domain>(d: &D, host: &Host, guest: &Guest<D::Word>) -> Return {
    let conditions = [
        // SYSRETQ loads these selectors, whatever the guest's are.
        d.is(guest.cs, host.selectors.user_cs().into()),
        d.is(guest.ss, host.selectors.user_ds().into()),
        // RF and TF are clear.
        d.not(d.any(guest.rflags, (RFlags::RF | RFlags::TF).bits())),
        // R11 == RFLAGS.
        d.eq(guest.registers.r11, guest.rflags),
        // RCX == RIP.
        d.eq(guest.registers.rcx, guest.rip),
        // RIP is canonical for the active paging mode.
        d.eq(canonical(d, host, guest.rip), guest.rip),
    ];
    let by_sysretq = conditions.into_iter().fold(d.bit(true), |all, one| d.both(all, one));
    if d.decide(by_sysretq) { Return::Sysretq } else { Return::Iretq }
}
