//! The return to a guest (spec/switcher.md, "Return to the guest"): SYSRETQ or IRETQ.

use super::{Guest, Host, Return, canonical};
use switcher_gen::arch::RFlags;
use switcher_model::Domain;

/// How a guest with these registers is returned to. Either way it ends up with all of them.
pub fn return_to_guest<D: Domain>(d: &D, host: &Host, guest: &Guest<D::Word>) -> Return {
    let needs = needs_of_sysretq(d, host, guest).map(|need| d.eq(need.given, need.own));
    let by_sysretq = needs.into_iter().fold(d.bit(true), |all, one| d.both(all, one));
    if d.decide(by_sysretq) { Return::Sysretq } else { Return::Iretq }
}

/// Something of a guest's that SYSRETQ must be able to give it.
#[derive(Clone, Copy, Debug)]
pub struct NeedOfSysretq<W> {
    /// What of the guest it is about.
    pub name: &'static str,
    /// What the guest gets by SYSRETQ.
    pub given: W,
    /// What is its own.
    pub own: W,
}

/// What SYSRETQ gives a guest, and what it should have: a return by SYSRETQ is right if all are
/// equal.
pub fn needs_of_sysretq<D: Domain>(
    d: &D,
    host: &Host,
    guest: &Guest<D::Word>,
) -> [NeedOfSysretq<D::Word>; 6] {
    let need = |name, given, own| NeedOfSysretq { name, given, own };
    [
        // SYSRETQ loads these selectors, whatever the guest's are.
        need("CS", d.word(host.selectors.user_cs().into()), guest.cs),
        need("SS", d.word(host.selectors.user_ds().into()), guest.ss),
        // It does not set RF, and traps too late for TF.
        need("RF and TF", d.word(0), d.mask(guest.rflags, (RFlags::RF | RFlags::TF).bits())),
        need("RFLAGS", guest.registers.r11, guest.rflags),
        need("RIP", guest.registers.rcx, guest.rip),
        // It faults where RCX is not canonical for the active paging mode.
        need("canonical RIP", canonical(d, host, guest.rip), guest.rip),
    ]
}
